"""Every number of a score against SciPy, scikit-learn or the formula written out."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LinearRegression

from lens_skills.activations import stream
from lens_skills.data import Example
from lens_skills.scoring import Scores, score
from lens_skills.settings import config
from lens_skills.stats.multiple_testing import permutation_draws
from lens_skills.stats.rotations import haar_matrix
from tests.scoring.test_covariates import scipy_spline
from tests.scoring.test_handmade import (
    examples_with,
    factor_activations,
    from_the_pass,
    handmade,
)

N, LAYERS, WIDTH = 150, 3, 6


def pearson(units: np.ndarray, metric: Any) -> np.ndarray:
    """SciPy's r of every column with the metric."""
    return np.array([stats.pearsonr(unit, metric).statistic for unit in units.T])


def residuals(values: np.ndarray, design: np.ndarray) -> np.ndarray:
    """What scikit-learn's regression on the design leaves."""
    return values - LinearRegression().fit(design, values).predict(design)


def dummies(examples: list[Example], given: list[str]) -> np.ndarray:
    """pandas's one-hot columns of categories beside SciPy's splines of numbers."""
    frame = pd.DataFrame([dict(example.covariates) for example in examples])[given]
    numbers = frame.select_dtypes(float)
    plain = pd.get_dummies(frame.drop(columns=numbers), drop_first=True).to_numpy(dtype=float)
    return np.column_stack([plain, *(scipy_spline(numbers[name].to_numpy()) for name in numbers)])


class Case:
    """150 examples with labels of many kinds, scored once without and once with covariates."""

    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(0)
        self.acts = factor_activations(random, N, LAYERS, WIDTH)
        self.acts[:, 0, 0] = 2.5  # constant
        self.acts[:, 0, 1] = 1.0
        self.acts[7, 0, 1] = 1.01  # nearly constant: one example differs, by a little
        self.acts[:, 1, 0] += 1e4  # a mean of 10,000 standard deviations
        self.flat = self.acts.reshape(N, -1).astype(np.float64)
        base = self.flat[:, 5]
        plural = (base + random.normal(size=N) > base.mean()).astype(int)
        rare = np.zeros(N, dtype=int)
        rare[random.choice(N, 7, replace=False)] = 1
        self.kind = random.choice(["noun", "verb", "other"], N)
        self.size = random.normal(size=N) + self.flat[:, 8]
        self.columns = {
            "plural": plural,
            "rare": rare,
            "size": np.exp(random.normal(size=N)),
        }
        self.sure = base + random.normal(size=N)
        self.examples = examples_with(
            N,
            labels=self.columns,
            covariates={"kind": self.kind, "length": self.size, "odd": np.arange(N) % 2 == 1},
            kinds=np.arange(N) % 30,
        )
        self.given = ["kind", "length", "odd"]
        self.design = dummies(self.examples, self.given)
        self.table = handmade(folder, self.acts, self.examples, computed={"sure": self.sure})
        self.metrics = [*(f"label:{name}" for name in self.columns), from_the_pass("sure")]
        self.plain = self.score()
        self.partial = self.score(given=self.given)
        self.varying = np.arange(1, LAYERS * WIDTH)

    def score(self, **options: Any) -> Scores:
        options = {"n_permutations": 60, "n_controls": 99, "seed": 5, **options}
        return score(self.table, self.examples, metrics=self.metrics, **options)

    def values(self, name: str) -> np.ndarray:
        return self.sure if name == "sure" else self.columns[name.removeprefix("label:")]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("scores") / "table")


def test_r_is_scipys(case: Case) -> None:
    for place, name in enumerate(case.plain.metrics):
        found = case.plain.r[place, 0].numpy()[case.varying]
        expected = pearson(case.flat[:, case.varying], case.values(name))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("even", [True, False])
def test_the_interval_is_that_of_a_jackknife_over_groups(
    tmp_path: Path, computed: bool, even: bool
) -> None:
    """Fisher's z with every group left out in turn, by NumPy: about the same standard error."""
    random = np.random.default_rng(3)
    n_groups = 24
    groups = np.arange(240) % n_groups if even else random.integers(0, n_groups, 240) ** 2 // 24
    codes = np.unique(groups, return_inverse=True)[1]
    metric = random.normal(size=240) + random.normal(size=n_groups)[codes]
    noise = random.normal(size=(240, 40)) + random.normal(size=(n_groups, 40))[codes]
    acts = np.linspace(0, 1.5, 40) * metric[:, None] + noise
    labels = None if computed else {"m": metric}
    examples = examples_with(240, groups=codes, labels=labels)
    table = handmade(tmp_path / "t", acts.reshape(240, 1, 40), examples, computed={"sure": metric})
    asked = [from_the_pass("sure")] if computed else ["label:m"]
    found = score(table, examples, metrics=asked, n_permutations=0, n_controls=0)
    left_out = np.array(
        [np.arctanh(pearson(acts[codes != g], metric[codes != g])) for g in np.unique(codes)]
    )
    count = len(left_out)
    error = np.sqrt((count - 1) / count * ((left_out - left_out.mean(0)) ** 2).sum(0))
    half = (torch.atanh(found.high[0, 0]) - torch.atanh(found.low[0, 0])).numpy() / 2
    freedom = 240**2 / (np.bincount(codes) ** 2).sum() - 1
    assert found.effective_groups == pytest.approx(freedom + 1)
    ratio = half / stats.t.ppf(0.975, freedom) / error
    # Of uneven groups the one factor for all neurons is a cautious one.
    assert 0.88 < np.median(ratio) < (1.12 if even else 1.4)
    assert (ratio > 0.7).all()
    # Both far from counting examples where a group's examples are alike.
    assert (half[:10] > 1.3 * 1.96 / np.sqrt(237)).all()


def test_the_interval_of_independent_examples_is_about_fishers(case: Case) -> None:
    """From 32 random signs: the standard error within a third of 1 / sqrt(N - 3), on average 1."""
    half = (torch.atanh(case.plain.high) - torch.atanh(case.plain.low)) / 2
    normal = case.plain.metrics.index("sure")
    usual = case.varying[1:]  # the first of them is one example's
    ratio = half[normal, 0, usual].numpy() / stats.t.ppf(0.975, 32) * np.sqrt(N - 3)
    assert np.abs(ratio - 1).max() < 0.6
    assert np.median(ratio) == pytest.approx(1, abs=0.2)


def test_partial_r_is_the_correlation_of_regression_residuals(case: Case) -> None:
    left = residuals(case.flat, case.design)[:, case.varying]
    for place, name in enumerate(case.partial.metrics):
        expected = pearson(left, residuals(case.values(name).astype(float), case.design))
        found = case.partial.r[place, 0].numpy()[case.varying]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
        assert np.abs(expected - case.plain.r[place, 0].numpy()[case.varying]).max() > 0.01


def test_the_partial_interval_is_that_of_what_the_covariates_leave(case: Case) -> None:
    left = residuals(case.flat, case.design)
    for place, name in enumerate(case.partial.metrics):
        own = residuals(case.values(name).astype(float), case.design)
        z = torch.atanh(torch.stack([case.partial.low[place, 0], case.partial.high[place, 0]]))
        half = ((z[1] - z[0]) / 2).numpy()[case.varying] / stats.t.ppf(0.975, 32)
        r = pearson(left[:, case.varying], own)
        x, m = left[:, case.varying] / left[:, case.varying].std(0), own / own.std()
        # White's standard error of a slope on standardised numbers, over sqrt(1 - r²): of z.
        white = np.sqrt((((x - r * m[:, None]) * m[:, None]) ** 2).mean(0) / N / (1 - r**2))
        assert np.median(half / white) == pytest.approx(1, abs=0.25)


def test_class_means_and_the_standardised_difference(case: Case) -> None:
    """Cohen's d with the pooled standard deviation, by hand."""
    assert set(case.plain.smd) == set(case.plain.class_means) == {"label:plural", "label:rare"}
    for name in case.plain.smd:
        is_one = case.values(name) == 1
        zeros, ones = case.flat[~is_one], case.flat[is_one]
        means = case.plain.class_means[name][:, 0].numpy()
        np.testing.assert_allclose(means, [zeros.mean(0), ones.mean(0)], rtol=1e-10)
        pooled = (len(zeros) - 1) * zeros.var(0, ddof=1) + (len(ones) - 1) * ones.var(0, ddof=1)
        with np.errstate(invalid="ignore"):
            d = (ones.mean(0) - zeros.mean(0)) / np.sqrt(pooled / (N - 2))
        found = case.plain.smd[name][0].numpy()
        np.testing.assert_allclose(found[case.varying], d[case.varying], rtol=1e-6, atol=1e-9)
        assert found[0] == 0  # the constant unit


def standardised(acts: np.ndarray) -> np.ndarray:
    """Divided by the standard deviation of the first 128 rows, 1 % of a layer's median at least."""
    scale = acts[:128].astype(np.float64).std(0)
    floor = 0.01 * torch.from_numpy(scale).median(dim=1, keepdim=True).values.numpy()
    return acts.astype(np.float64) / np.maximum(scale, floor)


def test_rotated_r_is_that_of_rotated_standardised_activations(case: Case) -> None:
    found = case.score(n_rotations=2, seed=5)
    for k in range(2):
        q = haar_matrix(WIDTH, seed=5 + k).double().numpy()
        turned = (standardised(case.acts) @ q).reshape(N, -1)
        for name in found.metrics:
            expected = pearson(turned, case.values(name))
            np.testing.assert_allclose(found.rotated_r[name][k], expected, rtol=0, atol=1e-3)


def test_rotated_partial_r_is_that_of_rotated_residuals(case: Case) -> None:
    q = haar_matrix(WIDTH, seed=5).double().numpy()
    turned = residuals((standardised(case.acts) @ q).reshape(N, -1), case.design)
    for name in case.partial.metrics:
        expected = pearson(turned, residuals(case.values(name).astype(float), case.design))
        np.testing.assert_allclose(case.partial.rotated_r[name][0], expected, rtol=0, atol=1e-3)


def test_a_neuron_is_held_against_directions_of_its_own_layer(case: Case) -> None:
    """Random directions drawn one by one, of layer 2 alone: excess and p."""
    found = case.score(n_rotations=400, n_permutations=0, n_controls=0)
    random = np.random.default_rng(0)
    rows = standardised(case.acts)[:, 2]
    lengths = random.normal(size=(WIDTH, 4_000))
    r = np.abs(pearson(rows @ lengths, case.values("label:plural")))
    place, here = found.metrics.index("label:plural"), found.layer == 2
    assert found.excess is not None
    assert found.p_basis is not None
    strength = found.r[place, 0, here].abs().numpy()
    expected = strength / np.sqrt((r**2).mean())
    np.testing.assert_allclose(found.excess[place, 0, here], expected, rtol=0.06)
    p = (r >= strength[:, None]).mean(1)
    np.testing.assert_allclose(found.p_basis[place, 0, here], p, atol=0.04)


def test_constant_neurons_are_excluded_and_near_constant_ones_kept(case: Case) -> None:
    for scores in (case.plain, case.partial):
        assert scores.excluded.tolist() == [True] + [False] * (LAYERS * WIDTH - 1)
        assert (scores.r[:, :, 0] == 0).all()
        assert scores.p is not None
        assert scores.q is not None
        assert (scores.p[:, :, 0] == 1).all()
        assert (scores.q[:, :, 0] == 1).all()
        frame = scores.frame()
        assert not frame.drop(columns=["mean_0", "mean_1", "smd"]).isna().any().any()
        classes = frame[frame.metric == "label:plural"]
        assert not classes.isna().any().any()
        for name in scores.metrics:
            top = scores[name].top(100).rows.tolist()
            assert len(top) == LAYERS * WIDTH - 1
            assert [0, 0] not in top
            assert [0, 1] in top
    assert case.plain.excluded.sum() == 1


def test_a_neuron_that_the_covariates_determine_is_excluded(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    acts = factor_activations(random, 80, 1, 4).astype(np.float64)
    size = acts[:, 0, 2].astype(np.float32).astype(np.float64)
    examples = examples_with(80, labels={"y": random.normal(size=80)}, covariates={"size": size})
    table = handmade(tmp_path / "t", acts, examples)
    found = score(table, examples, metrics="label:y", given=["size"], n_permutations=19)
    assert found.excluded.tolist() == [False, False, True, False]
    assert found.r[0, 0, 2] == 0


def test_rank_and_frame_agree(case: Case) -> None:
    view = case.plain["label:plural"]
    frame = view.frame()
    assert list(frame.columns[:9]) == [
        "name",
        "layer",
        "neuron",
        "position",
        "metric",
        "r",
        "low",
        "high",
        "p",
    ]
    assert frame.r.abs().is_monotonic_decreasing
    assert frame["name"][:5].tolist() == view.top(5).names
    assert frame[["layer", "neuron"]].to_numpy()[:5].tolist() == view.top(5).rows.tolist()
    for _, row in frame.iterrows():
        unit = row.layer * WIDTH + row.neuron
        assert row.r == view.r[0, unit].item()
        assert row["mean"] == pytest.approx(case.flat[:, unit].mean())
        assert row.excluded == (unit == 0)


def test_without_a_null_there_is_no_p(case: Case) -> None:
    found = case.score(n_permutations=0, n_controls=0, n_rotations=0)
    assert found.p is found.p_family is found.q is None
    assert not {"p", "p_family", "q"} & set(found.frame().columns)
    assert found.null_max == found.control_max == found.rotated_r == {}
    assert "no null was drawn" in repr(found)
    torch.testing.assert_close(found.r, case.plain.r, rtol=0, atol=1e-12)


def test_the_order_and_the_batching_of_examples_do_not_matter(case: Case, tmp_path: Path) -> None:
    order = np.random.default_rng(9).permutation(N)
    shuffled = [case.examples[place] for place in order]
    found = score(case.table, shuffled, metrics=case.metrics, n_permutations=0, given=case.given)
    torch.testing.assert_close(found.r, case.partial.r, rtol=0, atol=1e-10)


def test_some_neurons_score_as_they_do_among_all(case: Case) -> None:
    chosen = [(2, 3), (0, 5), (1, 0)]
    found = case.score(neurons=chosen)
    named = case.score(neurons=["L2N3", "L0N5", "L1N0"])
    units = [layer * WIDTH + neuron for layer, neuron in chosen]
    assert torch.stack([found.layer, found.neuron], dim=1).tolist() == [list(c) for c in chosen]
    torch.testing.assert_close(found.r, case.plain.r[:, :, units], rtol=0, atol=1e-12)
    torch.testing.assert_close(named.r, found.r, rtol=0, atol=0)
    assert found.rotated_r == {}  # a part of a layer cannot be rotated


def test_several_positions_are_one_family(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    acts = random.normal(size=(60, 3, 2, 5)).astype(np.float32)
    label = np.arange(60) % 2
    acts[:, 1, 1, 2] += 2 * label  # strong at the middle position only
    acts[:, 2, 0, 0] = 7.0  # constant at one position: there it counts 0, elsewhere it stays
    examples = examples_with(60, labels={"y": label})
    table = handmade(tmp_path / "t", acts, examples)
    found = score(
        table, examples, metrics="label:y", position=[0, 1, 2], n_permutations=99, n_rotations=1
    )
    assert found.positions == ("0", "1", "2")
    for position in range(2):
        expected = pearson(acts[:, position].reshape(60, -1).astype(float), label)
        np.testing.assert_allclose(found.r[0, position], expected, rtol=0, atol=1e-10)
    assert found.r[0, 2, 0] == 0
    assert not found.excluded.any()
    assert found["label:y"].top(1).rows.tolist() == [[1, 2]]
    assert found.frame().iloc[0].position == "1"
    # One maximum over neurons and positions, and one family of tests.
    draws = permutation_draws([e.group for e in examples], 99, "free", seed=0).numpy()
    units = np.delete(acts.reshape(60, -1).astype(float), 20, axis=1)
    for draw in (0, 50, 98):
        expected = np.abs(pearson(units, label[draws[:, draw]])).max()
        assert found.null_max["label:y"][draw].item() == pytest.approx(expected, abs=1e-10)
    assert found.q is not None
    assert found.p is not None
    p = np.delete(found.p[0].numpy().ravel(), 20)
    q = np.delete(found.q[0].numpy().ravel(), 20)
    np.testing.assert_allclose(q, stats.false_discovery_control(p), rtol=1e-12)


# The model itself, at every token: the example, not the token, is the unit.

PROMPTS = [
    f"{first} {second}{' is here' * (place % 4)}"
    for first in ("The keys", "The girl", "What is 3", "true or", "When Mary")
    for place, second in enumerate(("and the boys", "to", "plus 4", "was the key", "if she"))
]


def test_position_all_is_token_level_pearson_with_the_metric_repeated(tiny: Any) -> None:
    random = np.random.default_rng(0)
    size = random.normal(size=len(PROMPTS))
    label = np.arange(len(PROMPTS)) % 2
    examples = [
        Example(f"e{i}", p, labels={"y": int(label[i]), "size": size[i]}, covariates={"z": i % 7})
        for i, p in enumerate(PROMPTS)
    ]
    tokens: dict[int, np.ndarray] = {}
    for batch in stream(tiny, examples, position="all"):
        assert batch.mask is not None
        for row, place in enumerate(batch.index.tolist()):
            tokens[place] = batch.activations[row][batch.mask[row]].double().flatten(1).numpy()
    lengths = [len(tokens[place]) for place in range(len(examples))]
    assert len(set(lengths)) > 3
    everything = np.concatenate([tokens[place] for place in range(len(examples))])

    def repeated(values: Any) -> np.ndarray:
        return np.repeat(np.asarray(values, dtype=float), lengths)

    options = {"metrics": ["label:y", "label:size"], "position": "all", "n_permutations": 40}
    with config(batch_size=6):
        found = score(tiny, examples, seed=2, **options)
    for place, values in enumerate((label, size)):
        expected = pearson(everything, repeated(values))
        np.testing.assert_allclose(found.r[place, 0], expected, rtol=0, atol=1e-6)
    # Whole examples trade; all tokens of one move together.
    draws = permutation_draws([e.group for e in examples], 40, "free", seed=2).numpy()
    for draw in (0, 39):
        expected = np.abs(pearson(everything, repeated(size[draws[:, draw]]))).max()
        assert found.null_max["label:size"][draw].item() == pytest.approx(expected, abs=1e-6)
    # And the interval is that of so many examples, not tokens: each left out in turn.
    row = np.repeat(np.arange(len(examples)), lengths)
    left_out = np.arctanh(
        [
            pearson(everything[row != out], repeated(size)[row != out])
            for out in range(len(examples))
        ]
    )
    error = left_out.std(0) * np.sqrt(len(examples) - 1)
    half = (torch.atanh(found.high[1, 0]) - torch.atanh(found.low[1, 0])).numpy() / 2
    ratio = half / stats.t.ppf(0.975, min(len(examples) - 1, 32)) / error
    assert np.median(ratio) == pytest.approx(1, abs=0.3)
    assert found.n_examples == len(examples)
    # Partial r at every token likewise.
    given = score(tiny, examples, seed=2, given=["z"], **options)
    z = np.column_stack([repeated(np.arange(len(examples)) % 7 == value) for value in range(1, 7)])
    expected = pearson(residuals(everything, z), residuals(repeated(size), z))
    np.testing.assert_allclose(given.r[1, 0], expected, rtol=0, atol=1e-6)
    means = everything.mean(0)
    np.testing.assert_allclose(found.mean[0], means, rtol=1e-6, atol=1e-7)
    ones = repeated(label) == 1
    by_class = [everything[~ones].mean(0), everything[ones].mean(0)]
    np.testing.assert_allclose(found.class_means["label:y"][:, 0], by_class, rtol=1e-5, atol=1e-6)


def test_r_of_the_model_is_that_of_transformer_lens(tiny: Any) -> None:
    """The whole way, from text to r, against run_with_cache one prompt at a time and SciPy."""
    numbers = np.random.default_rng(1).normal(size=len(PROMPTS))
    examples = [Example(f"e{i}", p) for i, p in enumerate(PROMPTS)]
    found = score(tiny, examples, metrics={"mine": numbers}, n_permutations=0)
    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(4)]
    acts = []
    for prompt in PROMPTS:
        with torch.no_grad():
            _, cache = tiny.run_with_cache(
                tiny.to_tokens(prompt), names_filter=lambda n: n in names
            )
        acts.append(torch.cat([cache[name][0, -1] for name in names]).double().numpy())
    expected = pearson(np.stack(acts), numbers)
    np.testing.assert_allclose(found.r[0, 0], expected, rtol=0, atol=1e-4)


def test_a_neuron_moved_by_rounding_alone_is_constant(tiny: Any) -> None:
    """The first word is the same everywhere, so nothing at its position can vary but rounding."""
    examples = [
        Example(f"e{i}", f"The {word}{' is here' * (i % 5)}", labels={"y": i % 2})
        for i, word in enumerate(["keys", "key", "girl", "boys", "author", "doctor"] * 4)
    ]
    with config(batch_size=3):
        found = score(tiny, examples, metrics="label:y", position=1, n_permutations=19)
    assert found.excluded.all(), f"{int((~found.excluded).sum())} neurons are said to vary"
