"""Two one-sided tests against SciPy's, and the number of examples against simulation."""

import numpy as np
import pytest
import torch
from scipy import stats

from lens_skills.errors import LensSkillsError
from lens_skills.stats.effect_tests import (
    beyond,
    check_groups,
    delta_from_controls,
    effective_groups,
    equivalent,
    examples_needed,
    opposed,
    resolvable_delta,
)


def test_the_decision_is_that_of_two_one_sided_t_tests() -> None:
    random = np.random.default_rng(0)
    said = []
    for centre in np.linspace(0, 0.8, 30):
        values = random.normal(centre, 1.0, size=60)
        interval = stats.ttest_1samp(values, 0).confidence_interval(0.9)
        low, high = (torch.tensor(end, dtype=torch.float64) for end in interval)
        above = stats.ttest_1samp(values, -0.5, alternative="greater").pvalue
        below = stats.ttest_1samp(values, 0.5, alternative="less").pvalue
        said.append(bool(equivalent(low, high, 0.5)))
        assert said[-1] == (max(above, below) <= 0.05)
    assert 0 < sum(said) < len(said)


def test_each_set_is_decided_alone_and_both_ends_count() -> None:
    low, high = torch.tensor([-0.4, -0.6, -0.4, 0.7]), torch.tensor([0.4, 0.4, 0.6, 0.9])
    assert equivalent(low, high, 0.5).tolist() == [True, False, False, False]


@pytest.mark.parametrize(("mean", "delta"), [(0.9, 0.3), (0.0, 0.3), (0.1, 0.3)])
def test_as_many_examples_as_needed_settle_it_four_times_in_five(mean: float, delta: float) -> None:
    needed = examples_needed(mean, 2.0 / 20**0.5, delta, 20)
    assert needed is not None
    values = np.random.default_rng(0).normal(mean, 2.0, size=(4_000, needed))
    centre, error = values.mean(1), values.std(1, ddof=1) / needed**0.5
    if mean > delta:
        settled = centre - 1.96 * error > delta
    else:
        settled = (centre - 1.645 * error > -delta) & (centre + 1.645 * error < delta)
    # Off the middle both misses are budgeted but one hardly happens: more than asked for.
    assert 0.78 <= settled.mean() <= 0.92


def test_no_number_settles_an_effect_as_large_as_delta() -> None:
    assert examples_needed(0.3, 0.1, 0.3, 100) is None
    assert examples_needed(-0.3, 0.1, 0.3, 100) is None
    assert examples_needed(0.1, float("inf"), 0.3, 100) is None


def test_the_sign_of_the_effect_does_not_matter_and_more_is_asked_for_than_there_is() -> None:
    assert examples_needed(-0.9, 0.4, 0.3, 20) == examples_needed(0.9, 0.4, 0.3, 20)
    assert examples_needed(0.9, 1e-6, 0.3, 20) == 21


def test_beyond_delta_takes_the_whole_interval_and_both_signs() -> None:
    low, high = torch.tensor([0.3, -0.5, -0.4, 0.2]), torch.tensor([0.4, -0.3, 0.4, 0.9])
    assert beyond(low, high, 0.2).tolist() == [1, -1, 0, 0]
    assert [beyond(float(a), float(b), 0.25) for a, b in zip(low, high, strict=True)] == [
        1,
        -1,
        0,
        0,
    ]
    assert opposed([0, 1, -1])
    assert not opposed([0, 1, 1])


def test_delta_is_the_controls_95th_percentile_and_never_zero() -> None:
    effects = torch.linspace(-1, 1, 101, dtype=torch.float64)
    assert delta_from_controls(effects) == pytest.approx(np.quantile(effects.abs().numpy(), 0.95))
    with pytest.raises(LensSkillsError, match="δ would be 0"):
        delta_from_controls(torch.tensor([0.0] * 99 + [1.0]))
    assert delta_from_controls(torch.tensor([0.0] * 99 + [1.0]), at_least=0.3) == 0.3
    assert delta_from_controls(effects, at_least=5.0) == 5.0


@pytest.mark.parametrize("tails", ["normal", "laplace", "student"])
@pytest.mark.parametrize("noise", [0.25, 0.5, 1.0])
def test_delta_does_not_grow_with_the_noise_of_the_controls(tails: str, noise: float) -> None:
    """Uncorrected it is up to 1.4 times what it should be; it depended on how many examples."""
    random = np.random.default_rng(0)
    draw = {
        "normal": random.normal,
        "laplace": random.laplace,
        "student": lambda size: random.standard_t(3, size=size),
    }[tails]
    effects = draw(size=20_000)
    measured = torch.from_numpy(effects + noise * random.normal(size=20_000))
    true = np.quantile(np.abs(effects), 0.95)
    found = delta_from_controls(measured, torch.full((20_000,), noise))
    assert found == pytest.approx(true, rel=0.06)
    if noise == 1.0:
        assert delta_from_controls(measured) > 1.1 * true


def test_a_delta_that_can_be_resolved_is_found_four_times_in_five() -> None:
    error = 0.3
    delta = resolvable_delta(torch.tensor([error]))
    means = np.random.default_rng(0).normal(0, error, size=20_000)
    low, high = means - 1.645 * error, means + 1.645 * error
    assert ((low > -delta) & (high < delta)).mean() == pytest.approx(0.8, abs=0.01)


def test_too_few_groups_are_refused_with_what_is_needed() -> None:
    check_groups([str(k) for k in range(8)], "a verdict")
    with pytest.raises(LensSkillsError, match=r"6 examples in 2 groups: a verdict needs 8 groups"):
        check_groups(["a", "b"] * 3, "a verdict")
    with pytest.raises(LensSkillsError, match=r"more groups\. `sweep` gives effects\."):
        check_groups(["a"], "it", instead="`sweep` gives effects.")


def test_effective_groups_are_the_equal_groups_that_say_as_much() -> None:
    """A mean whose groups are wholly alike has variance Σ n_g² / N² = 1 / G*."""
    sizes = [1, 2, 3, 10, 40]
    groups = [str(g) for g, size in enumerate(sizes) for _ in range(size)]
    assert effective_groups(groups) == pytest.approx(sum(sizes) ** 2 / sum(n * n for n in sizes))
    random = np.random.default_rng(0)
    means = random.normal(size=(20_000, len(sizes))) @ (np.array(sizes) / sum(sizes))
    assert 1 / means.var() == pytest.approx(effective_groups(groups), rel=0.05)
    assert effective_groups([str(g) for g in range(12)]) == 12
    assert effective_groups(["a"] * 7) == 1
    assert effective_groups([]) == 0
