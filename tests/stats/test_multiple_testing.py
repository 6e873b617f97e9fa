"""Rank p-values and family-wise thresholds by brute force; false discovery rates on a mixture."""

import numpy as np
import pytest
import torch
from scipy import stats

from lens_skills.errors import LensSkillsError
from lens_skills.stats import multiple_testing
from lens_skills.stats.multiple_testing import (
    PooledDraws,
    false_discovery_q,
    family_threshold,
    rank_p,
)


def brute_p(statistic: float, null: np.ndarray) -> float:
    return (1 + sum(value >= statistic for value in null)) / (1 + len(null))


@pytest.mark.parametrize("ties", [False, True])
def test_rank_p_counts_draws_at_least_as_large(ties: bool) -> None:
    random = np.random.default_rng(0)
    null = random.normal(size=57)
    statistic = random.normal(size=(4, 5))
    if ties:
        null, statistic = null.round(0), statistic.round(0)
    found = rank_p(torch.from_numpy(statistic), torch.from_numpy(null))
    expected = np.array([[brute_p(value, null) for value in row] for row in statistic])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_pooled_draws_count_every_draw_of_every_unit_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In whatever pieces they come: of none, of more than are counted at once, of one."""
    monkeypatch.setattr(multiple_testing, "_TOGETHER", 64)
    draws = torch.rand(7, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    strength = torch.rand(11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    draws[:, 5] = 0.0  # a unit that does not vary
    draws[3, 4] = 1.0
    pooled = PooledDraws()
    for part in draws.split([17, 0, 42, 1], dim=1):
        pooled.add(part)
    varying = draws[:, torch.arange(60) != 5].flatten().numpy()
    expected = [brute_p(value, varying) for value in strength.tolist()]
    np.testing.assert_allclose(pooled.p(strength, n_left_out=7), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(pooled.p(strength, n_left_out=7), expected, rtol=0, atol=1e-12)


def test_rank_p_never_reaches_zero_and_may_be_one() -> None:
    null = torch.arange(99.0)
    assert rank_p(torch.tensor(1e9), null).item() == pytest.approx(1 / 100)
    assert rank_p(torch.tensor(-1.0), null).item() == 1


def test_a_tie_is_a_tie_although_its_last_bits_differ() -> None:
    """Sums in another order give the same statistic with another rounding."""
    null = torch.linspace(0.1, 1, 100, dtype=torch.float64)
    for factor in (1 - 1e-12, 1, 1 + 1e-12):
        p = rank_p(null * factor, null)
        torch.testing.assert_close(p, (101 - torch.arange(100).double()) / 101)
        assert not null[95].item() * factor > family_threshold(null)
        assert null[96].item() * factor > family_threshold(null)


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.2])
@pytest.mark.parametrize("n", [19, 20, 39, 99, 100, 999])
@pytest.mark.parametrize("ties", [False, True])
def test_exceeding_the_threshold_is_p_at_most_alpha(n: int, alpha: float, ties: bool) -> None:
    random = np.random.default_rng(n)
    null = random.normal(size=n)
    if ties:
        null = null.round(1)
    if 1 / (1 + n) > alpha + 1e-12:
        with pytest.raises(LensSkillsError, match=f"{n} draws cannot give p <= {alpha:g}"):
            family_threshold(torch.from_numpy(null), alpha=alpha)
        return
    bar = family_threshold(torch.from_numpy(null), alpha=alpha)
    for value in [*null, *(null + 1e-6), *(null - 1e-6), null.max() + 1]:
        assert (value > bar) == (brute_p(value, null) <= alpha + 1e-12)


def test_the_level_is_exact_over_continuous_draws() -> None:
    """With 100 draws a fresh value exceeds the threshold 5 times in 101."""
    random = np.random.default_rng(3)
    draws = torch.from_numpy(random.normal(size=(6_000, 101)))
    hits = sum(float(draw[0]) > family_threshold(draw[1:]) for draw in draws)
    assert stats.binomtest(hits, 6_000, 5 / 101).pvalue > 0.01


def test_q_is_scipys_and_is_benjamini_hochberg_by_hand() -> None:
    p = torch.from_numpy(np.random.default_rng(1).uniform(size=200) ** 3)
    q = false_discovery_q(p)
    np.testing.assert_allclose(q, stats.false_discovery_control(p.numpy()), rtol=1e-15)
    for level in (0.01, 0.05, 0.2):
        ranked = np.sort(p.numpy())
        below = np.flatnonzero(ranked <= level * np.arange(1, 201) / 200)
        largest = ranked[below[-1]] if len(below) else -1.0
        assert ((q <= level).numpy() == (p.numpy() <= largest)).all()
    assert false_discovery_q(torch.zeros(0, dtype=torch.float64)).shape == (0,)


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_the_mean_false_discovery_proportion_stays_below_the_level(level: float) -> None:
    """A planted mixture: 30 of 300 correlated tests carry a signal; 400 draws."""
    random = np.random.default_rng(5)
    n_draws, n_true, n_tests = 400, 30, 300
    proportions, found = [], []
    for _ in range(n_draws):
        shared = random.normal(size=(1, 10)).repeat(30, axis=1).ravel()
        z = np.sqrt(0.3) * shared + np.sqrt(0.7) * random.normal(size=n_tests)
        z[:n_true] += 3.5
        q = false_discovery_q(torch.from_numpy(stats.norm.sf(z))).numpy()
        chosen = np.flatnonzero(q <= level)
        proportions.append((chosen >= n_true).sum() / max(len(chosen), 1))
        found.append((chosen < n_true).sum() / n_true)
    # BH promises level · (share of nulls); three standard errors for the simulation.
    error = np.std(proportions) / np.sqrt(n_draws)
    assert np.mean(proportions) <= level * 0.9 + 3 * error
    assert np.mean(proportions) > 0.3 * level  # and it is not empty caution:
    assert np.mean(found) > 0.5
