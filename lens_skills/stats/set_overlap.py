"""How many members random sets share, where each set draws so many from each stratum."""

from collections.abc import Collection, Hashable, Mapping
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

    @property
    def kappa(self) -> float:
        """Agreement beyond chance: 0 where they share what random sets do, 1 where they are equal.

        (shared - expected) / (mean size - expected): Cohen's kappa of "in the set or not" over the
        population. NaN where chance alone makes them equal, as two empty sets are.

        Source: Cohen 1960; for sets of one size it is Kuncheva's (2007) index.
        """
        mean_size = (self.count + self.either) / 2
        room = mean_size - self.expected
        return (self.count - self.expected) / room if room > 1e-12 else float("nan")


def compare_sets(
    one: Collection[tuple[Any, Hashable]],
    other: Collection[tuple[Any, Hashable]],
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


def rarely_chosen_by_chance(mean_size: float, population: int, at_least: float) -> float:
    """At most how many members that are rarely chosen a share of all halves would hold.

    Sets are chosen on pairs of disjoint halves of the data. Of the members whose chance to be
    chosen on a half is no larger than the average member's, at most q² / (p (2 at_least - 1)) are
    expected in a share ``at_least`` of the halves, whatever way q of p are chosen.

    Args:
        mean_size: q, the mean number chosen on a half.
        population: p, of how many.
        at_least: The share of the halves, above 0.5.

    Source: Shah & Samworth 2013, theorem 1 with θ = q / p (no assumption but the disjoint halves);
    the bound of Meinshausen & Bühlmann 2010 without theirs of exchangeability.

    >>> round(rarely_chosen_by_chance(10, 1000, 0.9), 3)
    0.125
    """
    if not 0.5 < at_least <= 1:
        raise ValueError(f"the bound needs a share above 0.5, not {at_least}")
    return mean_size**2 / (population * (2 * at_least - 1))


def _by_stratum(members: set[tuple[Any, Hashable]]) -> dict[Any, int]:
    counts: dict[Any, int] = {}
    for stratum, _ in members:
        counts[stratum] = counts.get(stratum, 0) + 1
    return counts
