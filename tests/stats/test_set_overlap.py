"""Shared members against chance: simulation, SciPy, and the laws of sets."""

import numpy as np
import pytest
from scipy.stats import hypergeom

from lens_skills.stats.set_overlap import compare_sets, shared_by_chance


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
