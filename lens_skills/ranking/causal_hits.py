"""Causal hits: neurons whose effect is large, and rare among other neurons of their layers.

`ablation_effects` edits every neuron alone, in one sweep, and random others of the same layers
beside them; `effect_tests` says which effects of a list are hits. `parse_roles` and `count_known`
are about neurons that are known beforehand. The rotated basis: directions no better than any other,
ranked and ablated like neurons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import Metric, Position
from lens_skills.activations.components import neuron_names, parse_components
from lens_skills.activations.forward import prepare
from lens_skills.activations.locations import Site
from lens_skills.activations.stream import batches
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.baselines import Change, EditInput, measure_baseline
from lens_skills.interventions.batched_edits import EditStack, edited_places
from lens_skills.interventions.control_neurons import draw_controls
from lens_skills.interventions.edits import Edit
from lens_skills.interventions.effect_engine import EffectEngine, SweepSpec
from lens_skills.interventions.effects import Effects, measure_effects
from lens_skills.interventions.verdict import ALPHA, signed_word
from lens_skills.models import ModelAdapter
from lens_skills.models.weights import LayerSite, OutputWeights
from lens_skills.stats.effect_tests import beyond, cluster_interval, delta_from_controls
from lens_skills.stats.multiple_testing import false_discovery_q, rank_p

ABLATIONS = ("mean", "zero")
"""The edits that mean something for a direction."""


def strongest_directions(
    explained: Float[Tensor, " unit"], site: Site, width: int, k: int
) -> Int[Tensor, "k2 2"]:
    """The k directions the target explains best, as (layer, column of the rotation)."""
    order = explained.argsort(descending=True, stable=True)[:k]
    layers = torch.tensor(site.layers)
    return torch.stack([layers[order // width], order % width], dim=1)


def direction_effects(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    directions: Int[Tensor, "k 2"],
    rotation: Float[Tensor, "width width"],
    do: Edit,
    *,
    metric: Metric,
    site: str,
    position: Position,
) -> Float[Tensor, "k example"]:
    """The effect of ablating each direction v of a layer: a becomes a - (a·v - (its mean)·v) v.

    The whole layer is edited at once, exactly, through the engine of every other effect; with
    zero ablation the mean is left out.

    ``directions`` are layers and columns of ``rotation``: orthonormal, and one for all layers.
    """
    assert do.kind in ABLATIONS, do.kind
    layers = sorted(set(directions[:, 0].tolist()))
    encoded, plan = prepare(adapter, examples, [metric], False)
    means: Mapping[LayerSite, Tensor] = {}
    if do.kind == "mean":
        answers = bool(metric.reads - {"logits"})
        sites = {site: layers}
        means = measure_baseline(adapter, do.over, sites, position=position, answers=answers).mean
    changes = [
        _ablation(do.name, rotation[:, column], means.get((layer, site)))
        for layer, column in directions.tolist()
    ]
    spec = SweepSpec(
        adapter=adapter,
        plan=plan,
        metric=metric,
        change=changes[0],
        places=edited_places(adapter, encoded, position),
        spots=frozenset((layer, site) for layer in layers),
        ragged=position == "all",
        direct=False,
        rows=1,
        writes=OutputWeights(adapter),
    )
    every = torch.arange(len(rotation))[None]
    total = torch.zeros(len(directions), len(examples), dtype=torch.float64)
    for batch in batches(encoded, plan, "rotated"):
        engine = EffectEngine(spec, batch)
        columns = torch.tensor([item.index for item in batch])
        for place, layer in enumerate(directions[:, 0].tolist()):
            whole = EditStack((0,), {(layer, site): every})
            total[place, columns] = engine.under(changes[place]).measure(whole, 0)[0].double()
    return total


def _ablation(
    name: str, direction: Float[Tensor, " width"], mean: Float[Tensor, "pos width"] | None
) -> Change:
    """A layer's activation with its part along a direction set to the mean's (None: to 0)."""

    def formula(spot: EditInput) -> Tensor:
        along = direction.to(spot.old)
        level: Tensor | float = 0.0 if mean is None else mean.to(spot.old) @ along
        return spot.old - ((spot.old @ along) - level)[..., None] * along

    return Change(f"{name}, of directions", 1, formula)


NO_HIT = "-"
"""The verdict on what is no hit: not beyond delta, or not rare among the controls."""


@dataclass(frozen=True, eq=False)
class EffectTests:
    """Mean effects with their intervals, and the verdict on each.

    Attributes:
        names: Of the neurons or directions.
        effect, low, high: Mean effect over the examples and its 95 % interval, edited minus clean.
        p, q: Rank of |effect| among the controls, and Benjamini–Hochberg over this list.
        verdicts: ``"supports"`` or ``"opposes"`` for a hit, else ``"-"``.
    """

    names: tuple[str, ...]
    effect: Float[Tensor, " neuron"]
    low: Float[Tensor, " neuron"]
    high: Float[Tensor, " neuron"]
    p: Float[Tensor, " neuron"]
    q: Float[Tensor, " neuron"]
    verdicts: tuple[str, ...]

    @property
    def hits(self) -> int:
        """How many have a causal effect."""
        return sum(verdict != NO_HIT for verdict in self.verdicts)


def effect_tests(
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
    """The verdict on each neuron of one list, given its effects on every example.

    A *hit*: the 95 % interval of its mean effect (studentised cluster bootstrap) lies outside
    [-delta, delta], and |effect| is so rare among the controls' that q <= 0.05 (Benjamini–Hochberg
    over this list only, so that no other list changes it). It *supports* where taking its work
    away lowers the metric (``removes``: whether the edit takes it away).
    """
    mean = total.double().mean(dim=1)
    low, high = cluster_interval(total.double(), groups, n_draws=n_draws, seed=seed)
    p = rank_p(mean.abs(), controls)
    q = false_discovery_q(p)
    verdicts = []
    for place in range(len(names)):
        sign = int(beyond(low[place], high[place], delta))
        hit = sign != 0 and float(q[place]) <= ALPHA
        verdicts.append(signed_word(sign, removes) if hit else NO_HIT)
    return EffectTests(tuple(names), mean, low, high, p, q, tuple(verdicts))


@dataclass(frozen=True, eq=False)
class AblationEffects:
    """The effects of neurons edited alone, and what they are compared with.

    Attributes:
        effects: Of each neuron.
        controls: |mean effect| of random other neurons of the same layers.
        delta: The smallest effect that counts.
        removes: Whether the edit takes a neuron's work away.
        seed: Of the bootstrap.
    """

    effects: Effects
    controls: Float[Tensor, " control"]
    delta: float
    removes: bool
    seed: int

    def of(self, neurons: Int[Tensor, "k 2"]) -> EffectTests:
        """The verdicts on one list of neurons, all of them swept."""
        place = {name: row for row, name in enumerate(self.effects.names)}
        names = neuron_names(neurons)
        return self.tests(names, self.effects.total[[place[name] for name in names]])

    def tests(self, names: Sequence[str], total: Float[Tensor, "k example"]) -> EffectTests:
        """The verdicts on one list of anything whose effects are known."""
        fixed = {"delta": self.delta, "removes": self.removes, "seed": self.seed}
        return effect_tests(names, total, self.effects.groups, self.controls, **fixed)


def ablation_effects(
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
) -> AblationEffects:
    """Each neuron of ``tried`` edited alone, and at most ``n_controls`` others of their layers.

    Without ``delta`` the smallest effect that counts is the controls' 95th percentile.
    """
    controls = draw_controls(tried, everyone, n_controls, seed=seed)
    components = parse_components(adapter, torch.cat([tried, controls]), at=at)
    effects = measure_effects(
        adapter,
        examples,
        [(component,) for component in components],
        do,
        metric=metric,
        position=position,
        names=[component.name for component in components],
        seed=seed,
    )
    among = effects.total[len(tried) :].mean(dim=1).abs()
    smallest = delta_from_controls(among) if delta is None else delta
    return AblationEffects(effects, among, smallest, removes, seed)


def parse_roles(truth: Any) -> dict[str, tuple[str, ...]]:
    """Names by role, the skill first; a bare sequence of names is the skill's.

    Raises:
        LensSkillsError: A role without a neuron.

    >>> parse_roles(["L1N2"])
    {'skill': ('L1N2',)}
    """
    if not isinstance(truth, Mapping):
        truth = {"skill": truth}
    found = {role: tuple(names) for role, names in truth.items()}
    empty = [role for role, names in found.items() if not names]
    if empty:
        raise LensSkillsError(f"truth names no neuron as {empty[0]!r}. Leave the role out.")
    return found


def count_known(
    lists: Sequence[EffectTests], roles: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """How many neurons of each role the lists hold."""
    named = [name for tests in lists for name in tests.names]
    return {role: float(sum(name in set(names) for name in named)) for role, names in roles.items()}
