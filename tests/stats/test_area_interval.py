"""The interval of an AUROC over groups: against loops, exact ends, coverage by simulation."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from lens_skills.stats.correlation import area_influence, area_interval, area_under_curve


def test_the_influence_is_that_of_a_loop_and_of_the_jackknife() -> None:
    random = np.random.default_rng(0)
    values = torch.from_numpy(random.integers(0, 6, 40).astype(float))  # with ties
    truth = torch.from_numpy(random.random(40) < 0.4)
    found = area_influence(values, truth)
    area = float(area_under_curve(values, truth.double()))
    share = float(truth.double().mean())
    for row in range(40):
        others = [v for v, t in zip(values, truth, strict=True) if t != truth[row]]
        own = float(values[row])
        won = np.mean([float(own > v) + 0.5 * float(own == v) for v in map(float, others)])
        won = won if truth[row] else 1 - won
        expected = (won - area) / (share if truth[row] else 1 - share)
        assert float(found[row]) == pytest.approx(expected)
    assert float(found.mean()) == pytest.approx(0, abs=1e-12)
    # Leaving a row out moves the area by its influence over n - 1, to first order.
    row, keep = 3, torch.arange(40) != 3
    moved = area - float(area_under_curve(values[keep], truth[keep].double()))
    assert moved == pytest.approx(float(found[row]) / 39, rel=0.2)


def test_where_all_pairs_are_right_the_end_is_exact() -> None:
    values = torch.arange(12.0)
    groups = [str(k) for k in range(12)]
    low, high = area_interval(values, values >= 7, groups)
    assert (low, high) == (pytest.approx(0.025 ** (1 / 5)), 1.0)
    low, high = area_interval(-values, values >= 7, groups)
    assert (low, high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 5)))
    assert all(map(math.isnan, area_interval(values, values >= 7, ["a"] * 7 + ["b"] * 5)))


@pytest.mark.parametrize(("n_groups", "size", "share"), [(60, 2, 0.5), (60, 2, 0.15), (40, 1, 0.5)])
@pytest.mark.parametrize("area", [0.5, 0.8, 0.95])
def test_it_covers_what_it_says(n_groups: int, size: int, share: float, area: float) -> None:
    """Normal activations with half of the variance between groups; 95 % is said."""
    random = np.random.default_rng(int(100 * area) + n_groups)
    apart = norm.ppf(area) * math.sqrt(2)
    home = np.repeat(np.arange(n_groups), size)
    groups = [str(k) for k in home]
    inside = 0
    for _ in range(200):
        truth = random.random(len(home)) < share
        shared = random.normal(size=n_groups)[home] + random.normal(size=len(home))
        values = torch.from_numpy(shared / math.sqrt(2) + apart * truth)
        low, high = area_interval(values, torch.from_numpy(truth), groups)
        inside += low <= area <= high
    assert inside >= 178  # .89, of 200; on the scale of the area itself .80 to .93
