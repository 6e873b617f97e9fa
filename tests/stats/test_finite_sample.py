"""Counts and sums of a population from a sample: exact coverage, and the sum by simulation."""

import math

import pytest
import torch
from scipy.stats import hypergeom

from lens_skills.stats.finite_sample import count_interval, total_from_sample


@pytest.mark.parametrize(("total", "drawn"), [(60, 12), (200, 40), (40, 40), (2000, 60)])
def test_the_interval_of_a_count_covers_whatever_the_count_is(total: int, drawn: int) -> None:
    """Not simulated: every sample that may be drawn, by its probability."""
    ends = [count_interval(found, drawn, total) for found in range(drawn + 1)]
    assert ends == sorted(ends)
    for count in {0, 1, 2, total // 20, total // 3, total - 1, total}:
        covered = sum(
            float(hypergeom.pmf(found, total, count, drawn))
            for found, (low, high) in enumerate(ends)
            if low <= count <= high
        )
        assert covered >= 0.95


def test_it_is_no_wider_than_the_test_demands() -> None:
    low, high = count_interval(3, 50, 400)
    assert hypergeom.sf(2, 400, low, 50) > 0.025 >= hypergeom.sf(2, 400, low - 1, 50)
    assert hypergeom.cdf(3, 400, high, 50) > 0.025 >= hypergeom.cdf(3, 400, high + 1, 50)


def test_what_was_seen_bounds_the_count() -> None:
    assert count_interval(0, 0, 10) == (0, 10)
    assert count_interval(4, 10, 10) == (4, 4)
    assert count_interval(0, 0, 0) == (0, 0)
    low, high = count_interval(5, 5, 1000)
    assert 5 <= low < 1000 == high


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_the_interval_of_a_sum_covers_in_simulation(noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    size, drawn, runs = 4000, 200, 400
    values = torch.randn(size, generator=generator).double().exp()
    guesses = values + noise * torch.randn(size, generator=generator).double()
    held, widths = 0, []
    for _ in range(runs):
        rows = torch.randperm(size, generator=generator)[:drawn]
        _, low, high = total_from_sample(values[rows], guesses[rows], float(guesses.sum()), size)
        held += low <= float(values.sum()) <= high
        widths.append(high - low)
    assert 0.92 <= held / runs <= 0.98
    assert sum(widths) / runs == pytest.approx(4 * noise * size / drawn**0.5, rel=0.15)


def test_a_whole_population_is_known_and_one_of_it_is_not_enough() -> None:
    values = torch.tensor([1.0, 2.0, 4.0])
    assert total_from_sample(values, torch.zeros(3), 0.0, 3) == pytest.approx((7.0, 7.0, 7.0))
    estimate, low, high = total_from_sample(values[:1], torch.zeros(1), 0.0, 3)
    assert estimate == 3.0
    assert math.isnan(low)
    assert math.isnan(high)
