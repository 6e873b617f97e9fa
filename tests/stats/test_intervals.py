"""Intervals of correlations and shares: those of SciPy, and covering what they say they cover."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from lens_skills.stats.intervals import (
    chance_max_r,
    share_difference,
    share_interval,
)


def test_chance_is_about_what_independent_units_reach() -> None:
    random = np.random.default_rng(2)
    x = random.normal(size=(400, 5_000))
    y = random.normal(size=(400, 20))
    r = np.corrcoef(x, y, rowvar=False)[:5_000, 5_000:]
    assert np.abs(r).max(0).mean() == pytest.approx(chance_max_r(5_000, 400), rel=0.1)
    assert chance_max_r(10**9, 3) == 1.0


@pytest.mark.parametrize("hits", [0, 1, 7, 39, 40])
def test_single_examples_give_the_exact_interval_of_scipy(hits: int) -> None:
    values = (torch.arange(40) < hits).double()
    low, high = share_interval(values, [str(k) for k in range(40)])
    wanted = binomtest(hits, 40).proportion_ci(method="exact")
    # The cluster-robust error has n - 1 degrees of freedom where the binomial has n.
    assert low.item() == pytest.approx(wanted.low, abs=0.006)
    assert high.item() == pytest.approx(wanted.high, abs=0.006)
    assert 0 <= low.item() <= hits / 40 <= high.item() <= 1


def test_copies_of_an_example_count_once() -> None:
    once = (torch.arange(30) < 9).double()
    groups = [str(k) for k in range(30)]
    alone = share_interval(once, groups)
    copied = share_interval(once.repeat(5), groups * 5)
    torch.testing.assert_close(torch.stack(copied), torch.stack(alone))


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5])
def test_the_true_share_is_covered_where_groups_are_alike(share: float) -> None:
    random = np.random.default_rng(3)
    groups = [str(k) for k in range(40) for _ in range(3)]
    # Beta-binomial groups: their examples are alike.
    chances = random.beta(share * 4, (1 - share) * 4, size=(2000, 40))
    values = random.random((2000, 40, 3)) < chances[..., None]
    low, high = share_interval(torch.from_numpy(values.reshape(2000, -1)).double(), groups)
    covered = ((low <= share) & (share <= high)).double().mean().item()
    assert covered >= 0.93


def test_several_sets_are_each_their_own() -> None:
    values = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    low, high = share_interval(values, list("abcd"))
    first = share_interval(values[0], list("abcd"))
    assert (low[0], high[0]) == first
    assert high[1] == 1.0
    assert low.shape == (2,)


def test_a_share_that_only_falls_is_that_share() -> None:
    random = np.random.default_rng(0)
    falls = torch.from_numpy((random.random((5, 40)) < 0.3).astype(float))
    groups = [str(place) for place in range(40)]
    low, high = share_difference(-falls, groups)
    share_low, share_high = share_interval(falls, groups)
    rises = float(share_interval(torch.zeros(40), groups)[1])
    assert low.tolist() == pytest.approx((-share_high).tolist())
    share = falls.mean(1)
    wide = (rises**2 + (share - share_low) ** 2).sqrt()  # what never rose may still rise
    assert high.tolist() == pytest.approx((wide - share).tolist())


@pytest.mark.parametrize(("n_groups", "each"), [(16, 3), (30, 1), (60, 1)])
@pytest.mark.parametrize(("fall", "rise"), [(0.05, 0.0), (0.2, 0.05), (0.4, 0.02)])
@pytest.mark.parametrize("alike", [True, False])
def test_the_difference_of_shares_covers(
    n_groups: int, each: int, fall: float, rise: float, alike: bool
) -> None:
    random = np.random.default_rng(n_groups)
    drawn = random.random((300, n_groups, 1 if alike else each))
    changes = np.where(drawn < fall, -1.0, np.where(drawn < fall + rise, 1.0, 0.0))
    values = np.repeat(changes, each if alike else 1, axis=2).reshape(300, -1)
    groups = [str(place // each) for place in range(n_groups * each)]
    low, high = share_difference(torch.from_numpy(values), groups)
    covered = (low <= rise - fall) & (high >= rise - fall)
    assert float(covered.double().mean()) >= 0.92
