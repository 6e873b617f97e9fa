"""`Overlap`: how many units two sets share, against sets drawn at random."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.causal.units import Unit
from lens_skills.stats.sharing import shared_by_chance

Kind = tuple[int, str, int]  # layer, site and size: units of one kind may stand for one another


@dataclass(frozen=True, eq=False)
class Overlap:
    """What every pair of sets shares, and what random sets of the same counts per layer would.

    Attributes:
        shared: How many units are in both.
        jaccard: Those over the units in either, 0 to 1; 0 where both are empty.
        chance: The jaccard expected of random sets.
        p: Chance that random sets share as many or more.
    """

    shared: Int[Tensor, "skill other"]
    jaccard: Float[Tensor, "skill other"]
    chance: Float[Tensor, "skill other"]
    p: Float[Tensor, "skill other"]


def overlap_of(sets: Sequence[Sequence[Unit]], population: Callable[[Kind], int]) -> Overlap:
    """The overlap of every pair of sets.

    By chance, set A draws a_l of the n_l units of layer l and set B b_l of them, without
    replacement and independently: layer l shares Hypergeometric(n_l, a_l, b_l) units, and all
    layers the sum of those, whose exact distribution gives ``chance`` and ``p``.

    Args:
        sets: The units of each skill.
        population: How many units of a kind the model has.

    >>> one, other = (Unit(f"L0N{i}", 0, "mlp.hook_post", i, i + 1) for i in (0, 1))
    >>> overlap_of([[one], [one, other]], lambda kind: 4).jaccard[0].tolist()
    [1.0, 0.5]
    """
    counted = [Counter((unit.layer, unit.site, unit.stop - unit.start) for unit in s) for s in sets]
    names = [{(unit.hook_name, unit.start, unit.stop) for unit in units} for units in sets]
    members = {kind: population(kind) for counts in counted for kind in counts}
    size = len(sets)
    shared = torch.zeros(size, size, dtype=torch.long)
    jaccard, chance, p = (torch.zeros(size, size, dtype=torch.float64) for _ in range(3))
    for i in range(size):
        for j in range(size):
            both = len(names[i] & names[j])
            shares = shared_by_chance(counted[i], counted[j], members)
            either = len(names[i]) + len(names[j]) - np.arange(len(shares))
            shared[i, j] = both
            jaccard[i, j] = both / max(len(names[i] | names[j]), 1)
            chance[i, j] = float((shares * np.arange(len(shares)) / np.maximum(either, 1)).sum())
            p[i, j] = min(1.0, float(shares[both:].sum()))
    return Overlap(shared, jaccard, chance, p)
