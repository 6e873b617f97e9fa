"""Intervals of shares: SciPy's where groups are single, and covering where they are not."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from lens_skills.stats.intervals import share_interval


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
