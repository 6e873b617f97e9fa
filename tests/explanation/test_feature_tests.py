"""Variance explained, overlap and information against NumPy, SciPy and scikit-learn; the nulls."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import linregress
from sklearn.metrics import mutual_info_score

from lens_skills import tasks
from lens_skills.data import halves
from lens_skills.explanation import feature_bank
from lens_skills.explanation.feature_bank import FeatureMatrix
from lens_skills.explanation.feature_tests import (
    FeatureAssociation,
    FeaturePermutation,
    Fit,
    associate,
    first_in_resamples,
    highest,
)
from lens_skills.explanation.features import Feature

N, K = 240, 30
FEATURES = [
    Feature("flag", "flag", lambda e: 0),
    Feature("rare", "flag", lambda e: 0),
    Feature("number", "number", lambda e: 0),
    Feature("category", "category", lambda e: 0),
]


@pytest.fixture(scope="module")
def values() -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "flag": random.integers(0, 2, N),
            "rare": (random.random(N) < 0.1).astype(int),
            "number": random.normal(size=N).round(1),
            "category": random.choice(list("abcd"), N),
        }
    )


@pytest.fixture(scope="module")
def activations(values: pd.DataFrame) -> torch.Tensor:
    random = np.random.default_rng(1)
    level = values["category"].map({"a": 0.0, "b": 2.0, "c": -1.0, "d": 0.5})
    signal = np.stack(
        [-2 * values["flag"], 3 * values["rare"], values["number"], level, np.zeros(N)]
    )
    return torch.from_numpy(signal.astype(float) + random.normal(size=(5, N)))


@pytest.fixture(scope="module")
def sides() -> tuple[torch.Tensor, torch.Tensor]:
    return halves([str(n) for n in range(N)], seed=3)


@pytest.fixture(scope="module")
def found(values, activations, sides) -> FeatureAssociation:
    design = FeatureMatrix.of(FEATURES, values)
    names = [str(n) for n in range(N)]
    return associate(activations, design, names, sides, k=K, n_permutations=199)


def line(x: Any, y: Any) -> Any:
    """SciPy's least-squares line."""
    return linregress(x, y)


def formula(activation: np.ndarray, holds: np.ndarray) -> float:
    """1 - [(1 - q) Var(a | 0) + q Var(a | 1)] / Var(a), word for word."""
    q = holds.mean()
    within = (1 - q) * activation[holds == 0].var() + q * activation[holds == 1].var()
    return 1 - within / activation.var()


def test_a_flag_explains_what_the_formula_says(found, values, activations, sides) -> None:
    held = sides[1].numpy()
    for neuron in range(4):
        a = activations[neuron].numpy()
        for place, name in enumerate(("flag", "rare")):
            f = values[name].to_numpy()
            fit = sides[0].numpy()
            same = np.sign(line(f[fit], a[fit]).slope) == np.sign(line(f[held], a[held]).slope)
            wanted = formula(a[held], f[held]) if same else 0.0
            assert found.explained[neuron, place].item() == pytest.approx(wanted, abs=1e-10)
            slope = line(f[fit], a[fit])
            adjusted = 1 - (1 - slope.rvalue**2) * (len(fit) - 1) / (len(fit) - 2)
            assert found.explained_fitted[neuron, place].item() == pytest.approx(adjusted)
            assert found.direction[neuron, place] == np.sign(slope.slope)


def test_a_number_explains_the_line_of_scipy(found, values, activations, sides) -> None:
    held = sides[1].numpy()
    fitted = line(values["number"][held], activations[2].numpy()[held])
    assert found.explained[2, 2].item() == pytest.approx(fitted.rvalue**2, abs=1e-10)


def test_a_category_explains_what_the_other_halfs_means_do(
    found, values, activations, sides
) -> None:
    fit, held = (side.numpy() for side in sides)
    for neuron in range(5):
        a = pd.Series(activations[neuron].numpy())
        means = a[fit].groupby(values["category"][fit]).mean()
        r = np.corrcoef(a[held], values["category"][held].map(means))[0, 1]
        assert found.r[neuron, 3].item() == pytest.approx(r, abs=1e-10)
        groups = a[fit].groupby(values["category"][fit])
        within = (groups.var(ddof=0) * groups.size()).sum()
        between = 1 - within / (a[fit].var(ddof=0) * len(fit))
        adjusted = 1 - (1 - between) * (len(fit) - 1) / (len(fit) - 4)
        assert found.explained_fitted[neuron, 3].item() == pytest.approx(adjusted, abs=1e-10)


def test_overlap_is_the_share_of_the_strongest_that_have_it(
    found, values, activations, sides
) -> None:
    held = sides[1].numpy()
    for neuron in range(5):
        order = held[np.argsort(-activations[neuron].numpy()[held])]
        for place, name in enumerate(("flag", "rare")):
            f = values[name].to_numpy()
            assert found.overlap_top[neuron, place].item() == pytest.approx(f[order[:K]].mean())
            assert found.overlap_bottom[neuron, place].item() == pytest.approx(f[order[-K:]].mean())
            assert found.base[place].item() == pytest.approx(f[held].mean())
    assert found.overlap_top[:, 2:].isnan().all()
    assert found.p_top[:, 2:].isnan().all()


def test_equals_at_the_edge_of_the_top_share_it() -> None:
    values = torch.tensor([[5.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    assert highest(values, 2).tolist() == [
        pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6]),
        [0, 0, 0.5, 0.5],
    ]


def test_information_is_that_of_scikit_learn(found, values, activations, sides) -> None:
    held = sides[1].numpy()
    for neuron in range(5):
        a = activations[neuron].numpy()[held]
        bins = np.digitize(a, np.histogram_bin_edges(a, 8)[1:-1])
        for place, name in enumerate(("flag", "rare", "number", "category")):
            f = values[name].to_numpy()[held]
            if name == "number":
                f = np.digitize(f, np.histogram_bin_edges(f, 8)[1:-1])
            wanted = mutual_info_score(bins, f) / np.log(2)
            # Numbers are binned over all rows; the held-out half may span less.
            if name != "number":
                assert found.information[neuron, place].item() == pytest.approx(wanted, abs=1e-10)


def test_what_is_planted_is_found_and_nothing_else(found) -> None:
    beyond = found.p <= 0.05
    assert beyond.diagonal().all()
    assert found.q.diagonal().max() <= 0.05
    assert not beyond[4].any()
    assert found.explained_fitted[:4].argmax(1).tolist() == [0, 1, 2, 3]
    assert found.p_information.diagonal().max() <= 0.05
    assert found.p_top[1, 1] <= 0.05
    assert found.p_bottom[0, 0] <= 0.05


def test_p_counts_the_draws_one_by_one(values, activations, sides) -> None:
    names = [str(n) for n in range(N)]
    design = FeatureMatrix.of(FEATURES, values)
    found = associate(activations, design, names, sides, k=K, n_permutations=99, seed=4)
    fit = Fit.of(activations[:, sides[0]], design.rows(sides[0]))
    held = sides[1].numpy()
    draws = FeaturePermutation.of(
        design.rows(sides[1]), [names[n] for n in held], 99, seed=4
    ).draws["free"]
    columns, owner = design.columns[held].numpy(), design.owner.numpy()
    for neuron in (0, 3, 4):
        a = activations[neuron].numpy()[held]
        weights = fit.coefficients[neuron].numpy()

        def rs(rows: np.ndarray, a: np.ndarray = a, w: np.ndarray = weights) -> list[float]:
            predicted = [columns[rows][:, owner == f] @ w[owner == f] for f in range(4)]
            return [float(np.corrcoef(a, one)[0, 1]) for one in predicted]

        observed = rs(np.arange(len(a)))
        null = np.array([rs(draw) for draw in draws.numpy().T])
        for feature in range(4):
            reached = (null.max(1) >= observed[feature] - 1e-6).sum()
            assert found.p[neuron, feature].item() == pytest.approx((1 + reached) / 100)


def grouped(kind: str) -> tuple[list[str], pd.DataFrame, Callable[[int], torch.Tensor]]:
    """Groups, features of each exchange, and activations that share a level within a group."""
    random = np.random.default_rng(7)
    sizes = [3] * 60 if kind == "even" else [6] * 20 + [1] * 60
    groups = np.repeat(np.arange(len(sizes)), sizes)
    level = random.integers(0, 2, len(sizes))
    frame = pd.DataFrame(
        {
            "flag": level[groups],
            "rare": (random.random(len(groups)) < 0.3).astype(int),
            "number": random.normal(size=len(sizes))[groups]
            + 0.3 * random.normal(size=len(groups)),
            "category": random.choice(list("abc"), len(sizes))[groups],
        }
    )

    def draw(seed: int) -> torch.Tensor:
        noise = np.random.default_rng(seed)
        shared = noise.exponential(size=(600, len(sizes)))[:, groups]
        return torch.from_numpy(shared + noise.normal(size=(600, len(groups))))

    return [str(group) for group in groups], frame, draw


@pytest.mark.parametrize("kind", ["even", "uneven"])
def test_features_without_a_say_are_rarely_found(kind: str) -> None:
    groups, frame, draw = grouped(kind)
    design = FeatureMatrix.of(FEATURES, frame)
    sides = halves(groups, seed=0)
    found = associate(draw(11), design, groups, sides, k=15, n_permutations=99)
    for name in ("p", "p_top", "p_bottom", "p_information"):
        rate = (getattr(found, name).nan_to_num(1.0).amin(1) <= 0.05).double().mean().item()
        assert rate <= 0.085, f"{name}: {rate:.3f} of silent neurons"
    assert (found.q <= 0.05).double().mean() <= 0.01


def test_features_that_go_with_the_size_of_their_group_are_rarely_found() -> None:
    task = tasks.arithmetic("+-*", digits=(1, 2), n=1000)
    bank = feature_bank(task)
    bank = bank.only(*(name for name in bank.names if name.startswith("an operand is")))
    groups = [example.group for example in task]
    codes = np.unique(groups, return_inverse=True)[1]
    random = np.random.default_rng(11)
    shared = random.exponential(size=(400, codes.max() + 1))[:, codes]
    noise = torch.from_numpy(shared + 0.3 * random.normal(size=shared.shape))
    design = FeatureMatrix.of(bank.features, bank.values(task))
    found = associate(noise, design, groups, halves(groups, seed=0), k=30, n_permutations=99)
    assert (found.p.amin(1) <= 0.05).double().mean() <= 0.09


def test_intervals_are_of_the_share_explained(found, values, activations, sides) -> None:
    """The r they are of is the one reported; wider with fewer, equal groups; none below eight."""
    assert torch.isfinite(found.low).all()
    assert (found.low <= found.r + 1e-9).all()
    assert (found.r <= found.high + 1e-9).all()
    assert (found.explained_low <= found.explained + 1e-9).all()
    design = FeatureMatrix.of(FEATURES, values)
    few = associate(
        activations, design, [str(n % 7) for n in range(N)], sides, k=K, n_permutations=0
    )
    assert torch.isnan(few.low).all()
    torch.testing.assert_close(few.r, found.r)
    # scikit-learn-free check of one: Fisher's interval of independent rows is close.
    flag, other = values["flag"].to_numpy()[sides[1]], activations[0][sides[1]].numpy()
    r = abs(np.corrcoef(flag, other)[0, 1])
    ends = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) / np.sqrt(len(flag) - 3))
    assert found.low[0, 0].item() == pytest.approx(ends[0], abs=0.03)
    assert found.high[0, 0].item() == pytest.approx(ends[1], abs=0.03)


def test_the_interval_covers_the_share_a_feature_explains() -> None:
    """30 uneven groups that share part of the noise; true r 0.6, nominal 95 %."""
    random = np.random.default_rng(5)
    sizes = np.maximum(2, random.lognormal(1.5, 0.5, 60).astype(int))
    codes = np.repeat(np.arange(60), sizes)
    groups = [str(code) for code in codes]
    parts = halves(groups, seed=0)
    covered = 0
    for _ in range(200):
        x = random.normal(size=60)[codes] * 0.6 + random.normal(size=len(codes)) * 0.8
        noise = random.normal(size=60)[codes] * 0.6 + random.normal(size=len(codes)) * 0.8
        y = 0.6 * x + 0.8 * noise
        table = pd.DataFrame({"number": x})
        design = FeatureMatrix.of([FEATURES[2]], table)
        one = associate(torch.from_numpy(y)[None], design, groups, parts, k=5, n_permutations=0)
        covered += one.explained_low.item() <= 0.36 <= one.explained_high.item()
    assert 0.89 <= covered / 200 <= 0.99


def test_a_first_place_is_as_firm_as_its_lead() -> None:
    random = np.random.default_rng(6)
    table = pd.DataFrame(random.normal(size=(150, 3)), columns=["a", "b", "c"])
    features = [Feature(name, "number", len) for name in table]
    design = FeatureMatrix.of(features, table)
    clear = 2 * table["a"] + random.normal(size=150)
    tie = table["a"] + table["b"] + random.normal(size=150)
    values = torch.from_numpy(np.stack([clear, tie]))
    first = first_in_resamples(values, design, [str(n // 3) for n in range(150)])
    assert first[0].tolist() == [1.0, 0.0, 0.0]
    assert first[1, :2].min() >= 0.02
    assert first[1, 2] == 0
    assert first.sum(1).tolist() == pytest.approx([1.0, 1.0])
    # Copies share the place, and a neuron that does not vary gives none.
    twins = FeatureMatrix.of(features[:2], table.assign(b=table["a"])[["a", "b"]])
    shared = first_in_resamples(
        torch.stack([values[0], torch.zeros(150).double()]), twins, list(map(str, range(150)))
    )
    assert shared.tolist() == [[0.5, 0.5], [0.0, 0.0]]
