"""Every draw of the three nulls recomputed by brute force, and what is made of the draws."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lens_skills.activations import stream
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.scoring import Scores, score
from lens_skills.stats.multiple_testing import permutation_draws, signs
from tests.scoring.test_covariates import scipy_spline
from tests.scoring.test_handmade import (
    examples_with,
    factor_activations,
    from_the_pass,
    handmade,
)

N, LAYERS, WIDTH, SEED = 120, 2, 5, 11
GROUPS = np.arange(N) // 3  # 40 groups of three


def correlate(units: np.ndarray, column: np.ndarray) -> np.ndarray:
    return np.corrcoef(np.column_stack([units, column]), rowvar=False)[-1, :-1]


def left_by(design: np.ndarray, values: np.ndarray) -> np.ndarray:
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


class Case:
    """Metrics of every kind of exchange on one set of grouped examples."""

    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(1)
        self.acts = factor_activations(random, N, LAYERS, WIDTH)
        self.flat = self.acts.reshape(N, -1).astype(np.float64)
        self.values = {
            "label:whole": (random.uniform(size=40) < 0.5).astype(float)[GROUPS],
            "label:inside": np.tile([0.0, 1.0, 2.0], 40),
            "label:mixed": random.normal(size=N) + self.flat[:, 3],
            "sure": np.exp(random.normal(size=N)) + self.flat[:, 4],
        }
        size = random.normal(size=N) + self.flat[:, 2]
        self.design = np.column_stack([np.ones(N), scipy_spline(size), np.arange(N) % 2])
        labels = {k.removeprefix("label:"): v for k, v in self.values.items() if k != "sure"}
        self.examples = examples_with(
            N,
            groups=GROUPS,
            kinds=GROUPS % 13,
            labels=labels,
            covariates={"size": size, "odd": np.arange(N) % 2},
        )
        self.table = handmade(
            folder, self.acts, self.examples, computed={"sure": self.values["sure"]}
        )
        self.metrics = [*(f"label:{name}" for name in labels), from_the_pass("sure")]
        self.groups = [example.group for example in self.examples]
        self.kinds = [example.kind for example in self.examples]

    def score(self, **options: Any) -> Scores:
        options = {"n_permutations": 50, "n_controls": 99, "seed": SEED, **options}
        return score(self.table, self.examples, metrics=self.metrics, **options)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("nulls") / "table")


def permuted(values: np.ndarray, case: Case, scheme: Any, n: int) -> np.ndarray:
    draws = permutation_draws(case.groups, n, scheme, seed=SEED).numpy()
    return values[draws]


def flipped(case: Case, n: int) -> np.ndarray:
    return signs(case.groups, n, seed=SEED, purpose="null").numpy().astype(float)


def signed_null(case: Case, values: np.ndarray, design: np.ndarray, n: int) -> np.ndarray:
    """Σ ε (a - ā)(m - m̄) / (1 - h) / sqrt(Σ(a - ā)² Σ(m - m̄)²), residuals for centring.

    h is the leverage of the group's mean: 1 / G without covariates, as all groups are of one size.
    """
    e, x = left_by(design, values), left_by(design, case.flat)
    hat = design @ np.linalg.pinv(design)
    members = [np.flatnonzero(g == GROUPS) for g in range(40)]
    leverage = np.array([hat[np.ix_(rows, rows)].sum() / 3 for rows in members])
    coins = flipped(case, n) / (1 - leverage)[GROUPS][:, None]
    return (coins * e[:, None]).T @ x / np.sqrt((e**2).sum() * (x**2).sum(0))


def test_each_metric_takes_the_exchange_it_allows(case: Case) -> None:
    assert case.score().provenance["exchange"] == {
        "label:whole": "between",
        "label:inside": "within",
        "label:mixed": "signs",
        "sure": "signs",
    }


@pytest.mark.parametrize(
    ("name", "scheme"), [("label:whole", "between"), ("label:inside", "within")]
)
def test_permuted_draws_are_those_of_permuted_metrics(case: Case, name: str, scheme: str) -> None:
    found = case.score()
    columns = permuted(case.values[name], case, scheme, 50)
    expected = [np.abs(correlate(case.flat, column)).max() for column in columns.T]
    np.testing.assert_allclose(found.null_max[name], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["label:mixed", "sure"])
def test_sign_flips_by_brute_force(case: Case, name: str) -> None:
    found = case.score()
    null = signed_null(case, case.values[name], np.ones((N, 1)), 50)
    np.testing.assert_allclose(found.null_max[name], np.abs(null).max(1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["label:mixed", "sure"])
def test_sign_flips_with_covariates_by_brute_force(case: Case, name: str) -> None:
    found = case.score(given=["size", "odd"])
    null = signed_null(case, case.values[name], case.design, 50)
    # The flipped residuals are regressed on the covariates once more; only the numerator moves.
    np.testing.assert_allclose(found.null_max[name], np.abs(null).max(1), rtol=0, atol=1e-9)


def test_freedman_and_lane_by_brute_force(case: Case) -> None:
    """Residuals trade; the traded ones are correlated given the covariates again."""
    # "size" varies inside groups, and so do all residuals: exchange freely for this test.
    found = case.score(given=["size", "odd"], exchange="free")
    for name in ("label:whole", "label:inside", "label:mixed"):
        columns = permuted(left_by(case.design, case.values[name]), case, "free", 50)
        units = left_by(case.design, case.flat)
        expected = [
            np.abs(correlate(units, left_by(case.design, column))).max() for column in columns.T
        ]
        np.testing.assert_allclose(found.null_max[name], expected, rtol=0, atol=1e-9)


def test_a_known_metric_flips_as_a_computed_one_does(case: Case) -> None:
    """Known beforehand or not, the same numbers have the same null."""
    twin = {"known": case.values["sure"], "sure": from_the_pass("sure")}
    for given in ((), ("size", "odd")):
        found = score(
            case.table,
            case.examples,
            metrics=twin,
            exchange="signs",
            given=given,
            n_permutations=50,
            seed=SEED,
        )
        torch.testing.assert_close(found.r[0], found.r[1], rtol=0, atol=1e-12)
        torch.testing.assert_close(
            found.null_max["known"], found.null_max["sure"], rtol=0, atol=1e-10
        )


def control_draws(case: Case, values: np.ndarray, n: int) -> np.ndarray:
    """The kind means of a metric dealt anew among the kinds, in every draw; residuals left out."""
    codes = np.unique(case.kinds, return_inverse=True)[1]
    means = np.bincount(codes, values) / np.bincount(codes)
    order = np.argsort(np.random.default_rng(SEED).random((n, 13)), axis=1)
    return means[order][:, codes]


def test_the_control_task_by_brute_force(case: Case) -> None:
    """A metric of kinds alone: its means are dealt anew, and |r| is that of any other column."""
    of_kind = np.random.default_rng(5).normal(size=13)
    label = of_kind[np.unique(case.kinds, return_inverse=True)[1]]
    for given in ((), ("size", "odd")):
        found = score(
            case.table,
            case.examples,
            metrics={"of kinds": label},
            given=given,
            n_permutations=0,
            n_controls=99,
            seed=SEED,
        )
        design = case.design if given else np.ones((N, 1))
        units, e = left_by(design, case.flat), left_by(design, label)
        if not given:
            drawn = control_draws(case, e, 99)
            expected = [np.abs(correlate(units, left_by(design, c))).max() for c in drawn]
            np.testing.assert_allclose(found.control_max["of kinds"], expected, rtol=0, atol=2e-7)
        strength = found.r[0, 0].abs().numpy()
        assert found.p_control is not None
        assert np.corrcoef(strength, found.p_control[0, 0])[0, 1] < -0.5


def test_residuals_within_kinds_add_the_variance_of_dealing_them(case: Case) -> None:
    """Of a metric that varies within kinds, the draws' variance is that of the real dealing."""
    values, codes = case.values["sure"], np.unique(case.kinds, return_inverse=True)[1]
    means = np.bincount(codes, values) / np.bincount(codes)
    left, random = values - means[codes], np.random.default_rng(0)
    drawn = []
    for _ in range(4_000):
        new = means[random.permutation(13)][codes]
        for code in range(13):
            here = codes == code
            new[here] += random.permutation(left[here])
        drawn.append(correlate(case.flat, new) ** 2)
    found = score(
        case.table, case.examples, metrics=[from_the_pass("sure")], n_permutations=0,
        n_controls=5_000, seed=SEED,
    )  # fmt: skip
    assert found.p_control is not None
    strength = found.r[0, 0].abs().numpy()
    expected = (np.array(drawn) >= strength**2).mean(0)
    np.testing.assert_allclose(found.p_control[0, 0], expected, atol=0.05)


def test_few_draws_pool_what_each_neuron_reaches_in_its_own_deviations(case: Case) -> None:
    """p of 99 draws of all neurons is about that of 5,000 of its own."""
    few, many = (
        score(
            case.table, case.examples, metrics="label:whole", n_permutations=0, n_controls=n,
            seed=SEED,
        )
        for n in (99, 5_000)
    )  # fmt: skip
    assert few.p_control is not None
    assert many.p_control is not None
    np.testing.assert_allclose(few.p_control, many.p_control, atol=0.12)
    assert few.q_control is not None
    assert (few.q_control >= few.p_control).all()


@pytest.mark.parametrize("kinds", [None, np.arange(N) % 7])
def test_without_enough_kinds_there_is_no_control_task(
    tmp_path: Path, case: Case, kinds: Any
) -> None:
    examples = examples_with(N, groups=GROUPS, kinds=kinds, labels={"y": GROUPS % 2})
    table = handmade(tmp_path / "t", case.acts, examples)
    found = score(table, examples, metrics="label:y")
    assert found.p_control is None
    assert found.q_control is None
    words = "no input types declared" if kinds is None else "7 input types"
    assert [note for note in found.notes if words in note]


def test_thresholds_and_family_p_come_from_the_largest_of_each_draw(case: Case) -> None:
    found = case.score(n_permutations=99)
    assert found.p_family is not None
    for place, name in enumerate(found.metrics):
        largest = found.null_max[name].numpy()
        strength = found.r[place, 0].abs().numpy()
        p = np.array([(1 + (largest >= s).sum()) / 100 for s in strength])
        np.testing.assert_allclose(found.p_family[place, 0], p, atol=1e-12)
        bar = found.thresholds[name]
        assert bar is not None
        assert ((strength > bar) == (p <= 0.05 + 1e-12)).all()
        assert found.q_control is not None
        passing = found[name].passing()
        left = (strength > bar) & (found.q_control[place, 0].numpy() <= 0.05)
        assert (passing["beat the control task"][0].numpy() == left).all()


def test_p_is_a_neurons_own_where_draws_are_many(case: Case) -> None:
    found = case.score(n_permutations=999)
    assert found.p is not None
    for name, scheme in (("label:whole", "between"), ("label:inside", "within")):
        columns = permuted(case.values[name], case, scheme, 999)
        null = np.abs(np.corrcoef(case.flat, columns, rowvar=False)[: LAYERS * WIDTH, -999:])
        strength = np.abs(correlate(case.flat, case.values[name]))
        expected = (1 + (null >= strength[:, None] * (1 - 1e-9)).sum(1)) / 1000
        place = found.metrics.index(name)
        np.testing.assert_allclose(found.p[place, 0], expected, atol=1e-12)
    null = np.abs(signed_null(case, case.values["sure"], np.ones((N, 1)), 999))
    strength = np.abs(correlate(case.flat, case.values["sure"]))
    expected = (1 + (null >= strength * (1 - 1e-9)).sum(0)) / 1000
    np.testing.assert_allclose(found.p[3, 0], expected, atol=1e-12)


def test_p_is_pooled_over_neurons_where_draws_are_few(case: Case) -> None:
    found = case.score(n_permutations=50)
    assert found.p is not None
    null = np.abs(signed_null(case, case.values["sure"], np.ones((N, 1)), 50)).ravel()
    strength = np.abs(correlate(case.flat, case.values["sure"]))
    expected = [(1 + (null >= s).sum()) / (1 + null.size) for s in strength]
    np.testing.assert_allclose(found.p[3, 0], expected, atol=1e-12)


def test_the_seed_decides_every_null(case: Case) -> None:
    one, again, other = case.score(), case.score(), case.score(seed=SEED + 1)
    for name in one.metrics:
        for null in ("null_max", "control_max", "rotated_r"):
            same, different = getattr(again, null)[name], getattr(other, null)[name]
            assert torch.equal(getattr(one, null)[name], same)
            assert not torch.equal(same, different)
    torch.testing.assert_close(one.r, other.r, rtol=0, atol=0)


# Ties: few groups leave few arrangements, and an arrangement equal to the observed one counts,
# although its r may differ from the observed r in the last bit.


def test_a_draw_like_the_observed_one_counts_as_one(tmp_path: Path) -> None:
    """Four of eight: 1 in 35 arrangements is the observed one or its mirror: p cannot be below.

    Without a tolerance rounding decides, and p falls to half of what it should be.
    """
    label = np.array([0.0] * 4 + [1.0] * 4)
    examples = examples_with(8, labels={"y": label})
    draws = permutation_draws([e.group for e in examples], 999, "free", seed=1).numpy()
    traded = label[draws]
    alike = (traded == label[:, None]).all(0) | (traded == 1 - label[:, None]).all(0)
    assert 10 < alike.sum() < 60
    least = (1 + alike.sum()) / 1000
    for seed in range(6):
        acts = np.random.default_rng(seed).normal(size=(8, 1, 400)).astype(np.float32) + 3
        table = handmade(tmp_path / f"{seed}", acts, examples)
        found = score(table, examples, metrics="label:y", n_permutations=999, n_controls=0, seed=1)
        assert found.p is not None
        assert found.p_family is not None
        assert found.p.min().item() >= least - 1e-12
        assert found.p_family.min().item() >= least - 1e-12


def test_a_small_exact_null_is_exact(tmp_path: Path) -> None:
    """All 40,320 orders of eight numbers, against the p of 9,999 draws."""
    random = np.random.default_rng(2)
    label = np.array([0.0, 0.0, 1.0, 1.0, 2.0, 5.0, 5.5, 8.0])
    acts = random.normal(size=(8, 1, 8)).astype(np.float32)
    examples = examples_with(8, labels={"y": label})
    table = handmade(tmp_path / "t", acts, examples)
    found = score(table, examples, metrics="label:y", n_permutations=9_999, n_controls=0)
    units = acts.reshape(8, 8).astype(float)
    orders = np.array(list(permutations(range(8))))
    centred, e = units - units.mean(0), label[orders] - label.mean()
    every = e @ (centred / np.sqrt((centred**2).sum(0) * ((label - label.mean()) ** 2).sum()))
    exact = (np.abs(every) >= np.abs(correlate(units, label)) - 1e-9).mean(0)
    assert found.p is not None
    error = 4 * np.sqrt(exact * (1 - exact) / 9_999) + 1e-4
    assert (np.abs(found.p[0, 0].numpy() - exact) < error).all()


def test_an_exchange_that_changes_nothing_finds_nothing(case: Case) -> None:
    """Trading inside groups what is the same there: every draw is the observed metric."""
    random = np.random.default_rng(0)
    for _ in range(8):
        whole = random.normal(size=40)[GROUPS]
        found = score(
            case.table,
            case.examples,
            metrics={"whole": whole},
            exchange="within",
            n_permutations=50,
            n_controls=0,
        )
        assert not found["whole"].passing()["associated"].any()
        assert found.p_family is not None
        assert found.p_family[0, 0, found.r[0, 0].abs().argmax()] == 1


def test_a_null_that_cannot_be_drawn_is_refused_before_the_pass(case: Case) -> None:
    with pytest.raises(LensSkillsError, match=r"5 permutations cannot give p <= 0.05"):
        case.score(n_permutations=5)
    with pytest.raises(LensSkillsError, match="0 or more, not -1"):
        case.score(n_permutations=-1)
    with pytest.raises(LensSkillsError, match="'label:inside' varies inside groups"):
        case.score(exchange="between")
    with pytest.raises(LensSkillsError, match="no exchange scheme 'freely'"):
        case.score(exchange="freely")
    with pytest.raises(LensSkillsError, match="needs whole layers"):
        case.score(neurons=[(0, 1)], n_rotations=1)


@pytest.mark.parametrize("n_controls", [-1, 5, 98])
def test_too_few_control_tasks_are_refused_before_the_pass(
    case: Case, monkeypatch: pytest.MonkeyPatch, n_controls: int
) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the pass began")

    monkeypatch.setattr(type(case.table), "stream", never)
    with pytest.raises(LensSkillsError, match="control"):
        case.score(n_controls=n_controls)


# At every token: the flips are those of groups, the sums those of tokens.

PROMPTS = [
    f"{first} {second}{' is here' * (place % 4)}"
    for first in ("The keys", "The girl", "What is 3", "true or", "When Mary")
    for place, second in enumerate(("and the boys", "to", "plus 4", "was the key", "if she"))
]


def at_every_token(model: Any) -> tuple[Scores, np.ndarray]:
    """Null maxima of one metric, known and computed, and by brute force over the tokens."""
    values = np.random.default_rng(0).normal(size=len(PROMPTS))
    examples = [Example(f"e{i}", p, group=f"g{i // 3}") for i, p in enumerate(PROMPTS)]
    of = {example.id: float(value) for example, value in zip(examples, values, strict=True)}

    def computed(logits: Any, items: Any) -> Any:
        return torch.tensor([of[item.id] for item in items], dtype=torch.float64)

    metrics = {"known": values, "computed": computed}
    options = {"position": "all", "exchange": "signs", "n_permutations": 40, "seed": SEED}
    found = score(model, examples, metrics=metrics, **options)
    tokens: dict[int, np.ndarray] = {}
    for batch in stream(model, examples, position="all"):
        assert batch.mask is not None
        for row, place in enumerate(batch.index.tolist()):
            tokens[place] = batch.activations[row][batch.mask[row]].double().flatten(1).numpy()
    lengths = [len(tokens[place]) for place in range(len(examples))]
    x = np.concatenate([tokens[place] for place in range(len(examples))])
    m = np.repeat(values, lengths)
    x, m = x - x.mean(0), m - m.mean()
    groups = [example.group for example in examples]
    flips = signs(groups, 40, seed=SEED, purpose="null").numpy()
    # The groups' shares of the examples: the lengths are known to the pass alone.
    shares = np.array([groups.count(group) / len(groups) for group in groups])
    coins = np.repeat(flips / (1 - shares)[:, None], lengths, axis=0)
    null = (coins * m[:, None]).T @ x / np.sqrt((m**2).sum() * (x**2).sum(0))
    return found, np.abs(null).max(1)


def test_sign_flips_at_every_token_by_brute_force(tiny: Any) -> None:
    found, expected = at_every_token(tiny)
    np.testing.assert_allclose(found.null_max["computed"], expected, rtol=0, atol=1e-6)


def test_a_known_metric_flips_alike_at_every_token(tiny: Any) -> None:
    found, expected = at_every_token(tiny)
    np.testing.assert_allclose(found.null_max["known"], expected, rtol=0, atol=1e-6)
