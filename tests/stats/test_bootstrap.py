"""Studentised cluster bootstrap: against a plain loop, SciPy, and the truth it should cover."""

import numpy as np
import pytest
import torch
from scipy import stats

from lens_skills.stats.effect_tests import (
    ClusteredRatio,
    cluster_error,
    cluster_interval,
    ratio_interval,
)


def grouped(n_groups: int, *, seed: int = 0, n_sets: int = 1) -> tuple[torch.Tensor, list[str]]:
    """Normal numbers of which half the variance is shared by the group; groups of 1 to 7."""
    random = np.random.default_rng(seed)
    codes = np.repeat(np.arange(n_groups), random.integers(1, 8, size=n_groups))
    values = random.normal(size=(n_sets, n_groups))[:, codes]
    values = values + random.normal(size=(n_sets, len(codes)))
    return torch.from_numpy(values), [f"g{code}" for code in codes]


def test_the_interval_is_that_of_a_plain_loop() -> None:
    values, groups = grouped(12)
    n_draws, seed = 300, 5
    low, high = cluster_interval(values[0], groups, n_draws=n_draws, seed=seed)
    members = [
        values[0, [place for place, name in enumerate(groups) if name == group]].numpy()
        for group in sorted(set(groups))
    ]

    def mean_and_error(parts: list[np.ndarray]) -> tuple[float, float]:
        whole = np.concatenate(parts)
        sums = np.array([(part - whole.mean()).sum() for part in parts])
        n = len(parts)
        return float(whole.mean()), float(np.sqrt(n / (n - 1) * (sums**2).sum()) / len(whole))

    mean, error = mean_and_error(members)
    drawn = np.random.default_rng(seed).multinomial(12, np.full(12, 1 / 12), size=n_draws)
    t = []
    for counts in drawn:
        parts = [part for part, count in zip(members, counts, strict=True) for _ in range(count)]
        one, its_error = mean_and_error(parts)
        t.append((one - mean) / its_error)
    t.sort()
    place = int((n_draws + 1) * 0.025) - 1
    assert low.item() == pytest.approx(mean - t[-1 - place] * error)
    assert high.item() == pytest.approx(mean - t[place] * error)


def test_the_error_is_scipys_where_every_example_is_its_own_group() -> None:
    values = torch.from_numpy(np.random.default_rng(1).exponential(size=40))
    names = [str(place) for place in range(40)]
    assert cluster_error(values, names).item() == pytest.approx(stats.sem(values.numpy()))
    twice = values.repeat_interleave(2)  # every group says the same thing twice: no news
    error = cluster_error(twice, [name for name in names for _ in range(2)])
    assert error.item() == pytest.approx(stats.sem(values.numpy()))


def test_the_interval_of_many_normal_numbers_is_students() -> None:
    values = torch.from_numpy(np.random.default_rng(2).normal(1.0, 2.0, size=400))
    low, high = cluster_interval(values, [str(i) for i in range(400)], n_draws=20_000)
    expected = stats.ttest_1samp(values.numpy(), 0).confidence_interval(0.95)
    width = expected.high - expected.low
    assert low.item() == pytest.approx(expected.low, abs=0.05 * width)
    assert high.item() == pytest.approx(expected.high, abs=0.05 * width)


def test_the_interval_moves_and_stretches_with_the_numbers() -> None:
    values, groups = grouped(9)
    low, high = cluster_interval(values[0], groups)
    moved_low, moved_high = cluster_interval(5 + 3 * values[0], groups)
    assert moved_low.item() == pytest.approx(5 + 3 * low.item())
    assert moved_high.item() == pytest.approx(5 + 3 * high.item())
    turned_low, turned_high = cluster_interval(-values[0], groups)
    assert (turned_low.item(), turned_high.item()) == pytest.approx((-high.item(), -low.item()))


def test_many_sets_at_once_are_each_alone_and_order_does_not_matter() -> None:
    values, groups = grouped(15, n_sets=1_200)  # more than fit one chunk
    low, high = cluster_interval(values, groups)
    for place in (0, 499, 500, 1_199):
        alone = cluster_interval(values[place], groups)
        assert (low[place].item(), high[place].item()) == pytest.approx(
            (alone[0].item(), alone[1].item())
        )
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))
    shuffled = cluster_interval(values[0, order], [groups[at] for at in order.tolist()])
    assert shuffled[0].item() == pytest.approx(low[0].item())
    assert cluster_interval(values[0], groups, seed=1)[0].item() != low[0].item()


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.0])
def test_numbers_that_do_not_vary_have_an_interval_of_no_width(constant: float) -> None:
    low, high = cluster_interval(torch.full((50,), constant), [str(i % 10) for i in range(50)])
    assert low.item() == high.item() == pytest.approx(constant)
    assert low.item() != 0 or constant == 0


def test_one_group_says_nothing() -> None:
    low, high = cluster_interval(torch.tensor([1.0, 2.0, 3.0]), ["a", "a", "a"])
    assert (low.item(), high.item()) == (-torch.inf, torch.inf)


def test_an_effect_on_one_group_of_many_does_not_break_it() -> None:
    values = torch.zeros(40)
    values[3] = 1.0  # a third of all draws miss it and do not vary
    low, high = cluster_interval(values, [str(i) for i in range(40)])
    assert low.item() <= 1 / 40 <= high.item()
    assert not low.isnan() | high.isnan()


def test_a_ratio_of_proportional_numbers_is_certain() -> None:
    values, groups = grouped(20)
    positive = values.exp()
    low, high = ratio_interval(3 * positive, positive, groups)
    assert low.item() == pytest.approx(3)
    assert high.item() == pytest.approx(3)


def test_the_error_of_a_ratio_is_the_delta_methods() -> None:
    random = np.random.default_rng(3)
    below = random.normal(4.0, 1.0, size=5_000)
    above = 0.5 * below + random.normal(size=5_000)
    ratio = ClusteredRatio.of(
        torch.from_numpy(above)[None], torch.from_numpy(below)[None], [str(i) for i in range(5_000)]
    )
    covariance = np.cov(above, below) / 5_000
    slope = np.array([1, -above.mean() / below.mean()]) / below.mean()
    assert ratio.value.item() == pytest.approx(above.mean() / below.mean())
    assert ratio.error.item() == pytest.approx(float(np.sqrt(slope @ covariance @ slope)))


def coverage(n_groups: int, level: float, *, cluster: bool = True, n: int = 2_000) -> float:
    """Share of simulations whose interval holds the true mean, 0."""
    values, groups = grouped(n_groups, seed=n_groups, n_sets=n)
    names = groups if cluster else [str(i) for i in range(len(groups))]
    low, high = cluster_interval(values, names, level=level)
    return float(((low <= 0) & (high >= 0)).double().mean())


@pytest.mark.slow
@pytest.mark.parametrize("n_groups", [30, 100])
def test_the_interval_covers_the_truth(n_groups: int) -> None:
    assert 0.93 <= coverage(n_groups, 0.95) <= 0.97
    assert 0.88 <= coverage(n_groups, 0.9) <= 0.92


def test_forgetting_the_groups_covers_too_little() -> None:
    assert coverage(30, 0.95, n=500) > 0.9
    assert coverage(30, 0.95, cluster=False, n=500) < 0.85
