"""How many members random sets share, where each set draws so many from each stratum."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Shared:
    """What two sets share, against random sets with the same counts per stratum.

    Attributes:
        count: Members of both.
        either: Members of either.
        expected: Of ``count``, by chance.
        p: Chance that random sets share as many or more.
    """

    count: int
    either: int
    expected: float
    p: float

    @property
    def jaccard(self) -> float:
        """Those in both over those in either, 0 to 1; 0 where both sets are empty."""
        return self.count / max(self.either, 1)


def compare_sets(
    one: Sequence[tuple[int, int]],
    other: Sequence[tuple[int, int]],
    population: Mapping[Any, int],
) -> Shared:
    """What two sets of (stratum, member) share, against chance.

    By chance, set A draws a_l of the n_l members of stratum l (a layer, say) and set B b_l of
    them, without replacement and independently: stratum l shares Hypergeometric(n_l, a_l, b_l)
    members, and all strata the sum of those, whose exact distribution gives the expectation and p.

    Args:
        one, other: Distinct (stratum, member) pairs.
        population: How many members each stratum has; one stratum for all ignores layers.

    >>> found = compare_sets([(0, 1)], [(0, 1), (0, 2)], {0: 4})
    >>> found.count, found.jaccard, found.expected, round(found.p, 6)
    (1, 0.5, 0.5, 0.5)
    """
    first, second = set(one), set(other)
    counts = [_by_stratum(group) for group in (first, second)]
    chances = shared_by_chance(counts[0], counts[1], population)
    both = len(first & second)
    return Shared(
        count=both,
        either=len(first | second),
        expected=float((chances * np.arange(len(chances))).sum()),
        p=min(1.0, float(chances[both:].sum())),
    )


def shared_by_chance(
    one: Mapping[Any, int], other: Mapping[Any, int], population: Mapping[Any, int]
) -> Float[np.ndarray, " count"]:
    """The probability of each number of shared members, from 0 up.

    >>> shared_by_chance({0: 1}, {0: 2}, {0: 4}).tolist()
    [0.5, 0.5]
    """
    # Imported here: SciPy's statistics take a second to load and --help must not wait for them.
    from scipy.stats import hypergeom

    chances = np.ones(1)
    for stratum in sorted(set(one) & set(other), key=repr):
        count = np.arange(min(one[stratum], other[stratum]) + 1)
        here = hypergeom.pmf(count, population[stratum], one[stratum], other[stratum])
        chances = np.convolve(chances, here)
    return chances


def _by_stratum(members: set[tuple[int, int]]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for stratum, _ in members:
        counts[stratum] = counts.get(stratum, 0) + 1
    return counts
