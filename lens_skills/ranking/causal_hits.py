"""Causal hits: neurons whose effect matters, and is rare among other neurons of their layers.

`ablation_effects` edits every neuron alone, and a fixed draw of each layer that one of them needs
to be compared with; `AblationEffects.tests` says which are hits. A neuron's word depends on its own
effect, on the draw of its layer (the seed) and on nothing else: not on the list that named it, nor
on what else is tried. `parse_roles` and `count_known` are about neurons that are known beforehand.
The rotated basis: directions no better than any other, ranked and ablated like neurons."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import Metric, Position
from lens_skills.activations.components import neuron_names, parse_components
from lens_skills.activations.forward import Encoded, prepare
from lens_skills.activations.locations import Site
from lens_skills.activations.stream import batches
from lens_skills.checkpoints import part
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.baselines import Change, EditInput, measure_baseline
from lens_skills.interventions.batched_edits import EditStack, edited_places
from lens_skills.interventions.control_neurons import FEW_OTHERS, FEWEST_CONTROLS
from lens_skills.interventions.edits import Edit
from lens_skills.interventions.effect_engine import EffectEngine, SweepSpec
from lens_skills.interventions.effects import Effects, measure_effects
from lens_skills.interventions.row_budget import RowBudget
from lens_skills.interventions.verdict import signed_word
from lens_skills.models import ModelAdapter
from lens_skills.models.weights import LayerSite, OutputWeights
from lens_skills.stats.effect_tests import (
    SMALLEST_SHARE,
    beyond,
    cluster_interval,
    smallest_effect,
)
from lens_skills.stats.multiple_testing import TIE, group_codes, rank_p
from lens_skills.stats.rotations import Rotation

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
    rotation: Rotation,
    do: Edit,
    *,
    metric: Metric,
    site: str,
    position: Position,
    scale: Mapping[int, Float[Tensor, " width"]] | None = None,
) -> Float[Tensor, "k example"]:
    """The effect of ablating each direction v of a layer of standardised units.

    With s the units' ``scale``, a / s becomes a / s - (a/s·v - (its mean)·v) v; with zero ablation
    the mean is left out. The whole layer is edited at once, exactly, through the engine of every
    other effect.

    ``directions`` are layers and directions of ``rotation``: orthonormal, and one for all layers.
    ``scale`` is by layer; None for units as they are.
    """
    assert do.kind in ABLATIONS, do.kind
    layers = sorted(set(directions[:, 0].tolist()))
    encoded, plan = prepare(adapter, examples, [metric])
    means: Mapping[LayerSite, Tensor] = {}
    if do.kind == "mean":
        answers = bool(metric.reads - {"logits"})
        sites = {site: layers}
        means = measure_baseline(adapter, do.over, sites, position=position, answers=answers).mean
    changes = [
        _ablation(
            do.name,
            rotation.direction(column),
            torch.ones(rotation.width) if scale is None else scale[layer],
            means.get((layer, site)),
        )
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
        rows=RowBudget(adapter, 1),
        writes=OutputWeights(adapter),
    )
    every = torch.arange(rotation.width)[None]
    total = torch.zeros(len(directions), len(examples), dtype=torch.float64)

    def measure(batch: Sequence[Encoded]) -> Float[Tensor, "direction example"]:
        engine, rows = EffectEngine(spec, batch), list[Tensor]()
        for place, layer in enumerate(directions[:, 0].tolist()):
            whole = EditStack((0,), {(layer, site): every})
            rows.append(engine.under(changes[place]).measure(whole, 0)[0].double())
        return torch.stack(rows)

    for batch in batches(encoded, plan, "rotated"):
        columns = torch.tensor([item.index for item in batch])
        total[:, columns] = part("rotated", partial(measure, batch)).cpu()
    return total


def _ablation(
    name: str,
    direction: Float[Tensor, " width"],
    scale: Float[Tensor, " width"],
    mean: Float[Tensor, "pos width"] | None,
) -> Change:
    """A layer's activation with its part along a direction set to the mean's (None: to 0)."""
    reads, writes = direction / scale, direction * scale

    def formula(spot: EditInput) -> Tensor:
        read = reads.to(spot.old)
        level: Tensor | float = 0.0 if mean is None else mean.to(spot.old) @ read
        return spot.old - ((spot.old @ read) - level)[..., None] * writes.to(spot.old)

    return Change(f"{name}, of directions", 1, formula)


NO_HIT = "-"
"""The verdict on what is no hit: not beyond δ, or not rare among the controls of its layer."""

LEVEL = 0.05
"""A hit's rank p among the random neurons of its layer, each neuron by itself.

A smaller level loses neurons to the draw: with 20 strong neurons in a layer of 1,536 and 200 drawn,
the 20th is a hit in 7 % of the draws at .005, 26 % at .01, 75 % at .02 and all at .05; random
neurons are hits in .14 % beyond those 20 (3.5 % where all effects are heavy-tailed).
"""


@dataclass(frozen=True, eq=False)
class LayerControls:
    """The random neurons of a layer that its effects are held against.

    Attributes:
        names: Of the neurons drawn: those of the layer, or of all layers where it is too small.
        total: Their effects on every example.
        delta: The smallest effect that counts in this layer.
    """

    names: tuple[str, ...]
    total: Float[Tensor, "control example"]
    delta: float

    def others(self, name: str) -> Float[Tensor, " other"]:
        """|mean effect| of all of them but the neuron of this name."""
        kept = [row for row, one in enumerate(self.names) if one != name]
        return self.total[kept].mean(dim=1).abs()


@dataclass(frozen=True, eq=False)
class EffectTests:
    """Mean effects with their intervals, and the verdict on each.

    Attributes:
        names: Of the neurons or directions.
        layers: Which layer each is of.
        effect, low, high: Mean effect over the examples and its 95 % interval (of each by itself;
            studentised cluster bootstrap), edited minus clean.
        delta: The smallest effect that counts in its layer.
        p: Rank of |effect| among random neurons of its layer, each by itself. NaN, and ``delta``
            the floor, where |effect| is below the floor: no hit, whatever the controls.
        kept: The share of resamples of the groups in which it is a hit.
        verdicts: ``"supports"`` or ``"opposes"`` for a hit, else ``"-"``.
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]
    effect: Float[Tensor, " neuron"]
    low: Float[Tensor, " neuron"]
    high: Float[Tensor, " neuron"]
    delta: Float[Tensor, " neuron"]
    p: Float[Tensor, " neuron"]
    kept: Float[Tensor, " neuron"]
    verdicts: tuple[str, ...]

    @property
    def hits(self) -> int:
        """How many have a causal effect."""
        return sum(verdict != NO_HIT for verdict in self.verdicts)

    @property
    def hit_names(self) -> tuple[str, ...]:
        """Which have a causal effect, by name."""
        return tuple(name for name, hit in zip(self.names, self.is_hit, strict=True) if hit)

    @property
    def is_hit(self) -> Bool[Tensor, " neuron"]:
        """Which have a causal effect."""
        return torch.tensor([verdict != NO_HIT for verdict in self.verdicts], dtype=torch.bool)


@dataclass(frozen=True, eq=False)
class AblationEffects:
    """The effects of neurons edited alone, and what they are compared with.

    Attributes:
        effects: Of each neuron that was asked for.
        controls: By layer, where some |effect| is beyond the floor: what it is held against.
        floor: No effect below it counts: the declared δ, or 1 % of the clean metric's |mean|.
        removes: Whether the edit takes a neuron's work away.
        seed: Of the bootstrap.
        tried: The (layer, index) rows of the effects.
    """

    effects: Effects
    controls: Mapping[int, LayerControls]
    floor: float
    removes: bool
    seed: int
    tried: Int[Tensor, "neuron 2"]

    def of(self, neurons: Int[Tensor, "k 2"], *, n_resamples: int = 1000) -> EffectTests:
        """The verdicts on neurons, all of them swept."""
        place = {tuple(row): number for number, row in enumerate(self.tried.tolist())}
        rows = [place[tuple(row)] for row in neurons.tolist()]
        names = [self.effects.names[row] for row in rows]
        total = self.effects.total[torch.tensor(rows, dtype=torch.long)]
        return self.tests(names, neurons[:, 0].tolist(), total, n_resamples=n_resamples)

    def tests(
        self,
        names: Sequence[str],
        layers: Sequence[int],
        total: Float[Tensor, "k example"],
        *,
        n_resamples: int = 1000,
    ) -> EffectTests:
        """The verdicts on anything whose effects are known, each by itself.

        A *hit*: the 95 % interval of its mean effect lies outside [-δ, δ], δ being its layer's,
        and |effect| has rank p <= `LEVEL` among random neurons of its layer. It *supports* where
        taking its work away lowers the metric.
        """
        groups, total = self.effects.groups, total.double()
        mean = total.mean(dim=1)
        low, high = mean, mean
        if names:
            low, high = cluster_interval(total, groups, seed=self.seed)
        p = torch.full_like(mean, torch.nan)
        delta = torch.full_like(mean, self.floor)
        verdicts = [NO_HIT] * len(names)
        for row in map(int, (mean.abs() > self.floor).nonzero()[:, 0]):
            controls = self.controls[layers[row]]
            delta[row] = controls.delta
            p[row] = rank_p(mean[row].abs(), controls.others(names[row]))
            sign = int(beyond(low[row], high[row], controls.delta))
            if sign != 0 and float(p[row]) <= LEVEL:
                verdicts[row] = signed_word(sign, self.removes)
        tests = EffectTests(
            tuple(names),
            tuple(layers),
            mean,
            low,
            high,
            delta,
            p,
            torch.zeros_like(mean),
            tuple(verdicts),
        )
        kept = self.resampled(tests, total, n_resamples).double().mean(dim=1)
        return replace(tests, kept=kept)

    def resampled(
        self,
        tests: EffectTests,
        total: Float[Tensor, "k example"],
        n_draws: int,
    ) -> Bool[Tensor, "k draw"]:
        """Which are hits when the groups are drawn anew, the same draws for all that is tried.

        In each draw the mean, its standard error and the controls' means are measured anew, and
        the interval is as many standard errors wide as on the whole sample; δ stays.
        """
        counts = self.draws(n_draws)
        mean, error = self._measured(total, counts)
        whole = self._measured(total, torch.ones_like(counts[:1]))[1][:, 0]
        steps = torch.where(whole > 0, whole, torch.inf)
        below, above = (tests.effect - tests.low) / steps, (tests.high - tests.effect) / steps
        low, high = mean - below[:, None] * error, mean + above[:, None] * error
        found = (low > tests.delta[:, None]) | (high < -tests.delta[:, None])
        ranked = ~tests.p.isnan()
        found &= ranked[:, None]
        for layer in {tests.layers[row] for row in ranked.nonzero()[:, 0].tolist()}:
            controls = self.controls[layer]
            among = self._measured(controls.total, counts)[0].abs()
            for row in ranked.nonzero()[:, 0].tolist():
                if tests.layers[row] != layer:
                    continue
                inside = tests.names[row] in controls.names
                n_others = len(among) - inside
                # With p = (1 + reached) / (1 + n) <= LEVEL; a member reaches itself.
                allowed = math.floor(LEVEL * (1 + n_others) + 1e-9) - 1 + inside
                reached = (among >= mean[row].abs() * (1 - TIE)).sum(dim=0)
                found[row] &= reached <= allowed
        return found

    def draws(self, n_draws: int) -> Float[Tensor, "draw group"]:
        """How often each group is in each resample; the same for the same seed."""
        n_groups = len(set(self.effects.groups))
        random = np.random.default_rng(self.seed + 1)
        drawn = random.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_draws)
        return torch.from_numpy(drawn).double()

    def _measured(
        self, total: Float[Tensor, "k example"], counts: Float[Tensor, "draw group"]
    ) -> tuple[Float[Tensor, "k draw"], Float[Tensor, "k draw"]]:
        """The mean of each draw and its cluster-robust standard error."""
        codes = torch.from_numpy(group_codes(self.effects.groups)).long()
        n_groups = counts.shape[1]
        size = torch.bincount(codes, minlength=n_groups).double()
        sums = torch.zeros(len(total), n_groups, dtype=torch.float64)
        sums.index_add_(1, codes, total.double())
        whole = counts @ size
        mean = sums @ counts.T / whole
        square = (
            sums.square() @ counts.T
            - 2 * mean * ((sums * size) @ counts.T)
            + mean.square() * (counts @ size.square())
        )
        scale = n_groups / max(n_groups - 1, 1)
        return mean, (scale * square.clamp(min=0)).sqrt() / whole

    def resampled_means(
        self, total: Float[Tensor, "k example"], n_draws: int
    ) -> Float[Tensor, "k draw"]:
        """The mean effects when the groups are drawn anew, as in `resampled`."""
        return self._measured(total, self.draws(n_draws))[0]


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
    n_controls: int | None,
    removes: bool,
    seed: int,
    others: tuple[Sequence[int], Float[Tensor, "k example"]] | None = None,
) -> AblationEffects:
    """Each neuron of ``tried`` edited alone, and the layers' random neurons where they are needed.

    Args:
        tried: The neurons asked about.
        everyone: Whom controls are drawn from.
        delta: The smallest effect that counts; None for each layer's own (`smallest_effect`).
        n_controls: How many are drawn of a layer; None for all of it.
        others: What else will be tested: the layers and effects of directions.
        adapter, examples, do, metric, at, position, removes, seed: As in `compare_methods`.

    Raises:
        LensSkillsError: Too few others to compare with, or no δ.
    """

    def measured(neurons: Int[Tensor, "neuron 2"]) -> Effects:
        components = parse_components(adapter, neurons, at=at)
        return measure_effects(
            adapter,
            examples,
            [(component,) for component in components],
            do,
            metric=metric,
            position=position,
            names=[component.name for component in components],
            seed=seed,
        )

    effects = measured(tried)
    clean = float(effects.clean.double().mean())
    floor = SMALLEST_SHARE * abs(clean) if delta is None else delta
    need = set(tried[effects.total.mean(dim=1).abs() > floor, 0].tolist())
    if others is not None:
        layers, total = others
        large = (total.mean(dim=1).abs() > floor).tolist()
        need |= {layer for layer, is_large in zip(layers, large, strict=True) if is_large}
    drawn = {layer: draw_of_layer(everyone, layer, n_controls, seed=seed) for layer in sorted(need)}
    known = dict(zip(effects.names, effects.total, strict=True))
    wanted = {tuple(row) for rows in drawn.values() for row in rows.tolist()}
    missing = sorted(wanted - {tuple(row) for row in tried.tolist()})
    if missing:
        more = measured(torch.tensor(missing))
        known |= dict(zip(more.names, more.total, strict=True))
    controls = {}
    for layer, rows in drawn.items():
        names = tuple(neuron_names(rows, at, {"d_head": adapter.d_head}))
        total = torch.stack([known[name] for name in names])
        own = smallest_effect(total, effects.groups, clean) if delta is None else delta
        controls[layer] = LayerControls(names, total, own)
    return AblationEffects(effects, controls, floor, removes, seed, tried)


def draw_of_layer(
    everyone: Int[Tensor, "unit 2"], layer: int, n: int | None, *, seed: int
) -> Int[Tensor, "control 2"]:
    """Random neurons of a layer: the same ones whoever asks; all of it for ``n=None``.

    Of all layers where this one has fewer than `FEW_OTHERS` beside any neuron.

    Raises:
        LensSkillsError: All layers together are too few, or ``n`` is.
    """
    pool = everyone[everyone[:, 0] == layer]
    keys = [seed, 1, layer]
    if len(pool) <= FEW_OTHERS:
        pool, keys = everyone, [seed, 0]
    n = len(pool) if n is None else n
    n_others = min(n, len(pool)) - 1
    if n_others < FEWEST_CONTROLS:
        raise LensSkillsError(
            f"{n_others} other neurons are there to compare with, but {FEWEST_CONTROLS} at least "
            f"are needed. Say controls(neurons={FEWEST_CONTROLS + 1}) or more, or read more layers."
        )
    order = np.random.default_rng(keys).permutation(len(pool))[:n]
    return pool[torch.from_numpy(order).sort().values]


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


def count_known(tests: EffectTests, roles: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """How many neurons of each role the list holds."""
    return {
        role: float(sum(name in set(names) for name in tests.names))
        for role, names in roles.items()
    }
