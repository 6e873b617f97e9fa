"""Shared members against chance: simulation, SciPy, and the laws of sets."""

import numpy as np
import pytest
from scipy.stats import hypergeom
from sklearn.metrics import cohen_kappa_score

from lens_skills.stats.set_overlap import (
    compare_sets,
    rarely_chosen_by_chance,
    shared_by_chance,
)


def test_one_stratum_is_the_hypergeometric_distribution() -> None:
    one, other = [(0, i) for i in range(8)], [(0, i) for i in range(5, 15)]
    found = compare_sets(one, other, {0: 60})
    assert (found.count, found.either) == (3, 15)
    assert found.jaccard == pytest.approx(0.2)
    assert found.expected == pytest.approx(8 * 10 / 60)
    assert found.p == pytest.approx(hypergeom.sf(2, 60, 8, 10))


def test_several_strata_are_what_drawing_gives() -> None:
    random = np.random.default_rng(0)
    population, one, other = {0: 12, 3: 20, 5: 9}, {0: 5, 3: 4}, {0: 6, 3: 7, 5: 2}
    counts = []
    for _ in range(4000):
        both = 0
        for stratum, size in population.items():
            a = random.choice(size, one.get(stratum, 0), replace=False)
            b = random.choice(size, other.get(stratum, 0), replace=False)
            both += len(set(a) & set(b))
        counts.append(both)
    drawn = np.bincount(counts, minlength=10)[:10] / 4000
    exact = shared_by_chance(one, other, population)
    assert exact.sum() == pytest.approx(1)
    np.testing.assert_allclose(exact, drawn, atol=0.03)


def test_sets_apart_and_empty() -> None:
    apart = compare_sets([(0, 1)], [(1, 1)], {0: 5, 1: 5})
    assert (apart.count, apart.expected, apart.p) == (0, 0, 1)
    empty = compare_sets([], [], {0: 5})
    assert (empty.jaccard, empty.p) == (0, 1)


def test_layers_alone_make_sets_alike() -> None:
    """Sets in one of ten layers share far less than they seem to once the layer is known."""
    one, other = [(0, i) for i in range(10)], [(0, i) for i in range(5, 15)]
    known = compare_sets(one, other, dict.fromkeys(range(10), 20))
    unknown = compare_sets([(0, i) for _, i in one], [(0, i) for _, i in other], {0: 200})
    assert known.expected == 5
    assert known.p > 0.5
    assert unknown.p < 1e-4


def test_kappa_is_cohens_over_the_population() -> None:
    random = np.random.default_rng(1)
    for a, b in ((8, 10), (3, 30), (50, 60), (0, 4)):
        one, other = (random.choice(60, size, replace=False).tolist() for size in (a, b))
        found = compare_sets([(0, k) for k in one], [(0, k) for k in other], {0: 60})
        expected = cohen_kappa_score([k in one for k in range(60)], [k in other for k in range(60)])
        assert found.kappa == pytest.approx(expected, abs=1e-12)
    same = [("a", name) for name in "xyz"]
    assert compare_sets(same, same, {"a": 9}).kappa == pytest.approx(1)
    assert np.isnan(compare_sets([], [], {"a": 9}).kappa)
    assert np.isnan(compare_sets(same, same, {"a": 3}).kappa)  # all of them: no other choice


def test_the_bound_on_rarely_chosen_members_holds_for_a_greedy_choice() -> None:
    """Noise with a few strong members: of the rest, no more return than the bound allows."""
    random = np.random.default_rng(2)
    population, strong, chosen, n_groups, at_least = 80, 4, 10, 20, 0.75
    returned, bounds = [], []
    for _ in range(200):
        values = random.normal(size=(n_groups, population))
        values[:, :strong] += 1.5
        times = np.zeros(population)
        for _ in range(4):
            order = random.permutation(n_groups)
            for half in (order[: n_groups // 2], order[n_groups // 2 :]):
                times[np.argsort(-values[half].mean(axis=0))[:chosen]] += 1
        returned.append((times[strong:] >= at_least * 8).sum())
        bounds.append(rarely_chosen_by_chance(chosen, population, at_least))
        assert (times[:strong] >= 6).all()
    assert 0 < np.mean(returned) < np.mean(bounds)
    with pytest.raises(ValueError, match=r"above 0\.5"):
        rarely_chosen_by_chance(10, 80, 0.5)
