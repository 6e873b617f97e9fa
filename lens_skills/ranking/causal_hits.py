"""`Hearing`: one sweep over all neurons on trial and the controls beside them.

`Trial`: the effects of single neurons beside those of other neurons of their layers.

Neurons that are known beforehand: how many of each role a method found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import Metric, Position
from lens_skills.activations.components import parse_components
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.control_neurons import draw_controls
from lens_skills.interventions.edits import Edit
from lens_skills.interventions.effects import Effects, measure_effects
from lens_skills.interventions.verdict import ALPHA, signed_word
from lens_skills.models import ModelAdapter
from lens_skills.stats.bootstrap import cluster_interval
from lens_skills.stats.effect_tests import beyond, delta_from_controls
from lens_skills.stats.multiple_testing import false_discovery_q, rank_p

NO_HIT = "-"
"""The word of what is no hit: not beyond delta, or not beyond the controls."""


@dataclass(frozen=True, eq=False)
class EffectTests:
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
) -> EffectTests:
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
        side = int(beyond(low[place], high[place], delta))
        hit = side != 0 and float(q[place]) <= ALPHA
        words.append(signed_word(side, removes) if hit else NO_HIT)
    return EffectTests(tuple(names), mean, low, high, p, q, tuple(words))


@dataclass(frozen=True, eq=False)
class AblationEffects:
    """The effects of the neurons on trial, and what is held against them.

    Attributes:
        effects: Of each neuron on trial alone.
        controls: |mean effect| of random other neurons of the same layers.
        delta: The smallest effect that counts.
        declared: Whether the user chose it.
        removes: Whether the edit takes a neuron's work away.
        seed: Of the bootstrap.
    """

    effects: Effects
    controls: Float[Tensor, " control"]
    delta: float
    declared: bool
    removes: bool
    seed: int

    def of(self, neurons: Int[Tensor, "k 2"]) -> EffectTests:
        """The words of one list of neurons, all of them swept."""
        place = {name: row for row, name in enumerate(self.effects.names)}
        names = [f"L{layer}N{neuron}" for layer, neuron in neurons.tolist()]
        return self.judge(names, self.effects.total[[place[name] for name in names]])

    def judge(self, names: Sequence[str], total: Float[Tensor, "k example"]) -> EffectTests:
        """The words of one list of anything whose effects are known."""
        return judge(
            names,
            total,
            self.effects.groups,
            self.controls,
            delta=self.delta,
            removes=self.removes,
            seed=self.seed,
        )


def hear(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    tried: Int[Tensor, "neuron 2"],
    everyone: Int[Tensor, "unit 2"],
    do: Edit,
    *,
    metric: Metric,
    at: str,
    position: Position,
    delta: float | None,
    n_controls: int,
    removes: bool,
    seed: int,
    batch_size: int,
    progress: bool | None,
) -> AblationEffects:
    """The hearing of some neurons: each edited alone, and random others of their layers.

    Args:
        adapter: The model.
        examples: The intervene split.
        tried: (layer, neuron) of all on trial, each once.
        everyone: Of all there are.
        do: The edit.
        metric: What it may change.
        at, position: Where.
        delta: The smallest effect that counts (None: the controls' 95th percentile).
        n_controls: How many controls, at most.
        removes: Whether the edit takes a neuron's work away.
        seed, batch_size, progress: As in `sweep`.
    """
    controls = draw_controls(tried, everyone, n_controls, seed=seed)
    units = parse_components(adapter, torch.cat([tried, controls]), at=at)
    effects = measure_effects(
        adapter,
        examples,
        [(unit,) for unit in units],
        do,
        metric=metric,
        position=position,
        names=[unit.name for unit in units],
        seed=seed,
    )
    among = effects.total[len(tried) :].mean(dim=1).abs()
    return AblationEffects(
        effects=effects,
        controls=among,
        delta=delta_from_controls(among) if delta is None else delta,
        declared=delta is not None,
        removes=removes,
        seed=seed,
    )


def parse_roles(truth: Any) -> dict[str, tuple[str, ...]]:
    """Names by role, the skill first; a bare sequence of names is the skill's.

    Raises:
        LensSkillsError: A role without a neuron.

    >>> parse_roles(["L1N2"])
    {'skill': ('L1N2',)}
    """
    if truth is None:
        return {}
    if not isinstance(truth, Mapping):
        truth = {"skill": truth}
    found = {role: tuple(names) for role, names in truth.items()}
    empty = [role for role, names in found.items() if not names]
    if empty:
        raise LensSkillsError(f"truth names no neuron as {empty[0]!r}. Leave the role out.")
    return found


def known_among(
    trials: Sequence[EffectTests], roles: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """How many neurons of each role the lists hold."""
    named = [name for trial in trials for name in trial.names]
    return {role: float(sum(name in set(names) for name in named)) for role, names in roles.items()}
