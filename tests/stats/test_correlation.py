"""r over grouped rows: SciPy's number, and an interval that holds what it says."""

import numpy as np
import pytest
import torch
from scipy import stats

from lens_skills.stats.correlation import correlate, percentiles, standardise


def test_r_is_that_of_scipy() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(3, 50)), random.normal(size=50)
    x[1] += y
    x[2] = 4.0
    found = correlate(torch.from_numpy(x), torch.from_numpy(y), [str(k) for k in range(50)])
    wanted = [stats.pearsonr(x[row], y).statistic for row in range(2)]
    np.testing.assert_allclose(found.r[:2], wanted, atol=1e-12)
    assert (found.r[2], found.low[2] <= 0 <= found.high[2]) == (0.0, True)
    assert bool((found.low <= found.r).all() and (found.r <= found.high).all())


@pytest.mark.parametrize(("rho", "size"), [(0.0, 1), (0.85, 1), (0.4, 6)])
def test_the_interval_covers_the_truth(rho: float, size: int) -> None:
    """Also where a group's rows share both their values; 400 data sets of 40 groups."""
    random = np.random.default_rng(1)
    n_groups, runs, inside = 40, 400, 0
    groups = [str(k // size) for k in range(n_groups * size)]
    for _ in range(runs):
        both = random.multivariate_normal([0, 0], [[1, rho], [rho, 1]], n_groups)
        noise = 0.0 if size == 1 else 0.3
        rows = both.repeat(size, axis=0) + noise * random.normal(size=(n_groups * size, 2))
        truth = rho / (1 + noise**2)
        x, y = torch.from_numpy(rows.T.copy())
        found = correlate(x[None], y, groups)
        inside += bool(found.low[0] <= truth <= found.high[0])
    assert 0.92 <= inside / runs <= 0.98


def test_a_perfect_r_has_no_width_and_a_constant_none() -> None:
    line = torch.arange(9.0)
    found = correlate(torch.stack([line, -line]), line, [str(k) for k in range(9)])
    assert found.r.tolist() == pytest.approx([1, -1])
    assert found.low.tolist() == pytest.approx(found.high.tolist())
    assert standardise(torch.full((1, 4), 0.1)).tolist() == [[0, 0, 0, 0]]


def test_percentiles_are_those_of_scipy() -> None:
    random = np.random.default_rng(2)
    many = random.integers(0, 20, 300).astype(float)
    wanted = [stats.percentileofscore(many, value, "mean") / 100 for value in (0, 3.5, 7, 19)]
    found = percentiles(torch.tensor([0, 3.5, 7, 19]), torch.from_numpy(many))
    np.testing.assert_allclose(found, wanted)
