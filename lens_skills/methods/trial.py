"""`Trial`: the effects of single neurons beside those of other neurons of their layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.causal.ruling import ALPHA, OPPOSES, SUPPORTS
from lens_skills.errors import LensSkillsError
from lens_skills.stats.bootstrap import cluster_interval
from lens_skills.stats.corrections import false_discovery_q, rank_p

NO_HIT = "-"
"""The word of what is no hit: not beyond delta, or not beyond the controls."""

FEWEST_CONTROLS = 20


@dataclass(frozen=True, eq=False)
class Trial:
    """Mean effects with their intervals, and the word of each.

    Attributes:
        names: Of the neurons or directions.
        effect, low, high: Mean effect over the examples and its 95 % interval, edited minus clean.
        p, q: Rank of |effect| among the controls, and Benjamini–Hochberg over this list.
        words: ``"supports"`` or ``"opposes"`` for a hit, else ``"-"``.
    """

    names: tuple[str, ...]
    effect: Float[Tensor, " neuron"]
    low: Float[Tensor, " neuron"]
    high: Float[Tensor, " neuron"]
    p: Float[Tensor, " neuron"]
    q: Float[Tensor, " neuron"]
    words: tuple[str, ...]

    @property
    def hits(self) -> int:
        """How many have a causal effect."""
        return sum(word != NO_HIT for word in self.words)


def judge(
    names: Sequence[str],
    total: Float[Tensor, "neuron example"],
    groups: Sequence[str],
    controls: Float[Tensor, " control"],
    *,
    delta: float,
    removes: bool,
    n_draws: int = 2000,
    seed: int = 0,
) -> Trial:
    """The word of each neuron of one list.

    A *hit*: the 95 % interval of its mean effect (studentised cluster bootstrap) lies outside
    [-delta, delta], and |effect| is so rare among the controls that q <= 0.05 (Benjamini–Hochberg
    over this list only, so that no other list changes it). It *supports* where taking its work
    away lowers the metric.

    Args:
        names: Of the neurons.
        total: Their effects on every example.
        groups: Each example's group.
        controls: |mean effect| of each control.
        delta: The smallest effect that matters.
        removes: Whether the edit takes the neuron's work away.
        n_draws, seed: Of the bootstrap.
    """
    mean = total.double().mean(dim=1)
    low, high = cluster_interval(total.double(), groups, n_draws=n_draws, seed=seed)
    p = rank_p(mean.abs(), controls)
    q = false_discovery_q(p)
    words = []
    for place in range(len(names)):
        side = int(low[place] > delta) - int(high[place] < -delta)
        beyond = side != 0 and float(q[place]) <= ALPHA
        words.append((SUPPORTS if (side < 0) == removes else OPPOSES) if beyond else NO_HIT)
    return Trial(tuple(names), mean, low, high, p, q, tuple(words))


def draw_controls(
    tried: Int[Tensor, "neuron 2"], available: Int[Tensor, "unit 2"], n: int, *, seed: int
) -> Int[Tensor, "control 2"]:
    """Random neurons that are not tried, from the layers of those that are, as often as they are.

    For one tried neuron after another, in a random order and again from the first, another of its
    layer; fewer where the layers hold no more.

    Raises:
        LensSkillsError: Fewer than `FEWEST_CONTROLS` others.
    """
    random = np.random.default_rng(seed)
    taken = {tuple(row) for row in tried.tolist()}
    left: dict[int, list[tuple[int, int]]] = {}
    for layer, neuron in available.tolist():
        if (layer, neuron) not in taken:
            left.setdefault(layer, []).append((layer, neuron))
    for members in left.values():
        random.shuffle(members)
    order = random.permutation(tried[:, 0].numpy()).tolist()
    found: list[tuple[int, int]] = []
    while len(found) < n and any(left.get(layer) for layer in order):
        for layer in order:
            if left.get(layer) and len(found) < n:
                found.append(left[layer].pop())
    if len(found) < FEWEST_CONTROLS:
        raise LensSkillsError(
            f"{len(found)} other neurons are left in the layers of those on trial; "
            f"{FEWEST_CONTROLS} at least are needed to compare with. Try fewer: k=…"
        )
    return torch.tensor(found)


def threshold(controls: Float[Tensor, " control"]) -> float:
    """The 95th percentile of the controls' |mean effect|: the smallest effect that matters.

    Raises:
        LensSkillsError: It is 0: the edit changes nothing in 95 % of them.
    """
    delta = float(controls.double().quantile(0.95))
    if delta == 0:
        raise LensSkillsError(
            "δ would be 0: the edit changes nothing in 95 % of the other neurons. Declare it in "
            "the metric's unit: delta=…"
        )
    return delta
