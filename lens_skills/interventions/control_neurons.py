"""Who a neuron is compared with: others like it, and of its layer, that were not chosen.

`controls` says how many a verdict takes. `drawn_units` hold the single neurons of a verdict,
`matched_sets` its sets and `important` where its stricter ones are drawn from; `nearest` are the
most alike; `random_neurons` and `with_layer_controls` are drawn at random.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import Position
from lens_skills.activations.activation_reader import read_batches
from lens_skills.activations.components import MLP, Component, unit_name
from lens_skills.checkpoints import part
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import ModelAdapter

FEATURES = ("mean |a|", "std", "‖W_out‖")
_WRITTEN = ("mlp.hook_post", "mlp.hook_pre", "mlp.hook_pre_linear")
DRAWN = (32, 128, 512)
"""A control is the nearest of so many units drawn at random from the candidate's layer: of more
where the sets do not match otherwise."""
BALANCED = 0.25
"""Sets whose standardised mean difference is larger, in one of the features, do not match."""
FEW_OTHERS = 100
"""With fewer others of its kind in its layer, a unit is compared with those of all layers."""
FEWEST_CONTROLS = 20
"""Fewer cannot give p <= 0.05, nor a 95th percentile."""


@dataclass(frozen=True)
class Controls:
    """What the effects of a verdict are compared with; see `controls`."""

    sets: int = 200
    important: int | None = None
    neurons: int | None = 400

    def __post_init__(self) -> None:
        for name, fewest in (("sets", 0), ("important", 0), ("neurons", 1)):
            value = getattr(self, name)
            if value is None and name != "sets":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < fewest:
                raise LensSkillsError(
                    f"controls({name}={value!r}): {name} must be a whole number from {fewest} on"
                    f"{'' if name == 'sets' else ', or None'}."
                )

    @property
    def n_important(self) -> int:
        """How many sets are drawn among the important neurons."""
        return self.sets // 4 if self.important is None else self.important


DEFAULT_CONTROLS = Controls()


def controls(sets: int = 200, important: int | None = None, neurons: int | None = 400) -> Controls:
    """What the effects of a verdict are compared with: ``verify(…, controls=controls(sets=50))``.

    Args:
        sets: Random sets that match the neurons in number per layer, mean |a|, std and ‖W_out‖;
            for all of them edited together. 0 for none.
        important: Random sets among the neurons of largest effect; None for a quarter of ``sets``.
        neurons: Single neurons per layer that each neuron is compared with, drawn whatever is on
            trial; None for all. With k neurons and n of these, one neuron alone can pass only
            where 1 / (1 + n) <= 0.05 / k.

    Raises:
        LensSkillsError: A number that is not whole, or too small.

    >>> controls(sets=50).n_important
    12
    """
    return Controls(sets, important, neurons)


@dataclass(frozen=True, eq=False)
class ComponentTable:
    """Every unit of some kinds in every layer, with what it does on some examples.

    Attributes:
        units: The units; those of one kind and layer stand together.
        kind: Which units are alike (site and width), as a code.
        stratum: Which are alike and in one layer, as a code.
        raw: `FEATURES` of each unit: mean |activation| and its standard deviation at the
            positions, and the norm of what it writes per unit of activation (MLP neurons, features
            of a dictionary; 1 for other units, whose norm is not asked for).
        scaled: Their logarithms in standard deviations of the stratum.
        unmatchable: Units with a feature of exactly 0 (it writes nothing, or never fires), which
            no other unit can match; there the smallest positive value stands in.
    """

    units: tuple[Component, ...]
    kind: Int[Tensor, " unit"]
    stratum: Int[Tensor, " unit"]
    raw: Float[Tensor, "unit feature"]
    scaled: Float[Tensor, "unit feature"]
    unmatchable: Bool[Tensor, " unit"]

    @classmethod
    def of(
        cls,
        units: Sequence[Component],
        kind: Int[Tensor, " unit"],
        stratum: Int[Tensor, " unit"],
        raw: Float[Tensor, "unit feature"],
    ) -> "ComponentTable":
        """The table with its features on the scale they are matched on."""
        scaled = torch.zeros_like(raw)
        for code in stratum.unique().tolist():
            inside = stratum == code
            part = raw[inside]
            floor = torch.where(part > 0, part, torch.inf).min(dim=0).values
            logs = torch.where(part > 0, part, torch.where(floor.isfinite(), floor, 1.0)).log()
            spread = logs.std(dim=0, correction=0)
            scaled[inside] = (logs - logs.mean(dim=0)) / torch.where(spread > 0, spread, 1.0)
        return cls(tuple(units), kind, stratum, raw, scaled, (raw == 0).any(dim=1))

    def places(self, units: Sequence[Component]) -> Int[Tensor, " k"]:
        """Where some units stand in the table."""
        index = {_key(unit): place for place, unit in enumerate(self.units)}
        return torch.tensor([index[_key(unit)] for unit in units], dtype=torch.long)


def component_table(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    candidates: Sequence[Component],
    *,
    position: Position = "last",
) -> ComponentTable:
    """All units of the candidates' kinds, measured on the examples at the positions.

    One forward pass per kind (neurons of a site, heads, whole MLPs).
    """
    kinds = list(dict.fromkeys((unit.site, unit.stop - unit.start) for unit in candidates))
    units: list[Component] = []
    kind, stratum, raw = [], [], []
    for code, (site, width) in enumerate(kinds):
        read = partial(_moments, adapter, examples, site, width, position)
        level, spread = part("levels", read)
        layers, n_units = adapter.layers_with(site), level.shape[1]
        name = partial(_name, site, width, adapter.d_head)
        units += [
            Component(name(layer, i), layer, site, i * width, (i + 1) * width)
            for layer in layers
            for i in range(n_units)
        ]
        norm = torch.ones_like(level)
        if held := adapter.dictionaries_at(site):
            norm = torch.stack([held[at].W_dec.double().norm(dim=1).cpu() for at in layers])
        elif site in _WRITTEN and not adapter.packed:
            norm = torch.stack([adapter.weight_out(at).double().norm(dim=1).cpu() for at in layers])
        raw.append(rearrange([level, spread, norm], "feature layer unit -> (layer unit) feature"))
        kind.append(torch.full((len(layers) * n_units,), code))
        stratum.append(code * adapter.n_layers + torch.tensor(layers).repeat_interleave(n_units))
    return ComponentTable.of(units, torch.cat(kind), torch.cat(stratum), torch.cat(raw))


def _moments(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    site: str,
    width: int,
    position: Position,
) -> tuple[Float[Tensor, "layer unit"], Float[Tensor, "layer unit"]]:
    """Mean |a| and standard deviation of each unit, over examples, positions and its features."""
    level = total = square = torch.zeros(1, dtype=torch.float64)
    count = 0
    layers = adapter.layers_with(site)
    for _, values, mask in read_batches(
        adapter, examples, site, layers, position=position, answers=None
    ):
        rows = rearrange(values.double(), "batch pos layer feature -> (batch pos) layer feature")
        if mask is not None:
            rows = rows[rearrange(mask, "batch pos -> (batch pos)")]
        level = level + reduce(rows.abs(), "row layer feature -> layer feature", "sum")
        total = total + reduce(rows, "row layer feature -> layer feature", "sum")
        square = square + reduce(rows**2, "row layer feature -> layer feature", "sum")
        count += len(rows)
    variance = (square / count - (total / count) ** 2).clamp(min=0)
    pattern = "layer (unit width) -> layer unit"
    return (
        reduce(level / count, pattern, "mean", width=width),
        reduce(variance, pattern, "mean", width=width).sqrt(),
    )


def _name(site: str, width: int, d_head: int, layer: int, index: int) -> str:
    if width == 1:
        return unit_name(layer, index, site, d_head)
    return f"L{layer}MLP" if site == MLP else f"L{layer}H{index}"


def _key(unit: Component) -> tuple[int, str, int, int]:
    return unit.layer, unit.site, unit.start, unit.stop


def homes(table: ComponentTable) -> Int[Tensor, " unit"]:
    """Which units are compared with one another, as a code: those of a kind and layer.

    Of a kind of which a layer holds no more than `FEW_OTHERS` (heads, whole MLPs, tiny models),
    those of all layers. It depends on the model alone and not on what is on trial.
    """
    found = 1 + table.stratum
    for kind in table.kind.unique().tolist():
        alike = table.kind == kind
        if min(table.stratum[alike].unique(return_counts=True)[1].tolist()) <= FEW_OTHERS:
            found[alike] = -1 - kind
    return found


def across_layers(candidates: Sequence[Component], table: ComponentTable) -> bool:
    """Whether all candidates are compared with units of all layers; see `homes`."""
    return bool((homes(table)[table.places(candidates)] < 0).all())


def drawn_units(
    candidates: Sequence[Component],
    table: ComponentTable,
    *,
    n: int | None = 400,
    seed: int = 0,
) -> Int[Tensor, " drawn"]:
    """Places of the units each candidate's home is known by: all of it, or a random ``n``.

    The draw of a home is that of the seed and the home, whatever is on trial: candidates may be
    among them, and are no controls.
    """
    codes = homes(table)
    chosen = []
    for code in codes[table.places(candidates)].unique().tolist():
        members = (codes == code).nonzero()[:, 0].numpy()
        if n is not None and len(members) > n:
            key = zlib.crc32(repr(_key(table.units[int(members[0])])).encode())
            random = np.random.default_rng([seed, key])
            members = np.sort(random.permutation(members)[:n])
        chosen.append(torch.from_numpy(members))
    return torch.cat(chosen)


@dataclass(frozen=True, eq=False)
class ControlSets:
    """Random sets with as many units per layer as the candidates, matched one to one.

    Attributes:
        sets: The control sets; in each, the i-th unit stands for the i-th candidate.
        match: One row per feature: the candidates' mean, the controls' mean, and their
            standardised mean difference (``smd``, in standard deviations of the log feature within
            a layer; 0 is a perfect match, beyond ± 0.25 the sets are *not matched*).
        unmatchable: Names of candidates with a feature of exactly 0, which nothing can match.

    Source: Stuart 2010, section 4.1 (0.25).
    """

    sets: tuple[tuple[Component, ...], ...]
    match: tuple[dict[str, float | str], ...]
    unmatchable: tuple[str, ...]

    @property
    def worst(self) -> float:
        """The largest |standardised mean difference|."""
        return max((abs(float(row["smd"])) for row in self.match), default=0.0)


def matched_sets(
    candidates: Sequence[Component],
    table: ComponentTable,
    *,
    n_sets: int = 200,
    among: Bool[Tensor, " unit"] | None = None,
    drawn: Sequence[int] = DRAWN,
    seed: int = 0,
) -> ControlSets:
    """Random sets that match the candidates in number per layer and in `FEATURES`.

    For each candidate, some units of its kind and layer are drawn without replacement, none of
    them a candidate or already in the set, and the nearest in the scaled features is taken: the
    more are drawn, the closer the match and the more alike the sets. The first number in ``drawn``
    whose sets match (|smd| <= `BALANCED`) is kept, else the best; of a small layer no more than a
    quarter at first, and half after. Only units ``among`` some (the *important* ones) may be
    controls.

    Raises:
        LensSkillsError: A layer holds fewer other units than it has candidates: says which.

    Source: nearest-neighbour matching within strata, Stuart 2010, sections 3.1 and 4.1.
    """
    places = table.places(candidates)
    free = _others(places, table.stratum, among)
    home = table.stratum[places].tolist()
    for stratum in sorted(set(home)):
        members = [unit for unit, at in zip(candidates, home, strict=True) if at == stratum]
        if len(free[stratum]) < len(members):
            kind = "units" if among is None else "important units"
            raise LensSkillsError(
                f"no control set is possible in layer {members[0].layer}: {len(members)} of its "
                f"units at {members[0].site} are candidates and {len(free[stratum])} other {kind} "
                "are left. Verify fewer units of that layer, or each alone (controls(sets=0))."
            )
    best: ControlSets | None = None
    for attempt, most in enumerate(drawn):
        chosen = _drawn_sets(
            places,
            free,
            home,
            table,
            n_sets,
            most,
            2 if attempt else 4,
            np.random.default_rng(seed),
        )
        found = ControlSets(
            sets=tuple(tuple(table.units[at] for at in row) for row in chosen.tolist()),
            match=_match(places, torch.from_numpy(chosen), table),
            unmatchable=tuple(
                unit.name
                for unit, at in zip(candidates, places, strict=True)
                if table.unmatchable[at]
            ),
        )
        if best is None or found.worst < best.worst:
            best = found
        if best.worst <= BALANCED:
            break
    assert best is not None, "drawn is empty"
    return best


def _drawn_sets(
    places: Int[Tensor, " k"],
    free: dict[int, np.ndarray],
    home: Sequence[int],
    table: ComponentTable,
    n_sets: int,
    drawn: int,
    part: int,
    random: np.random.Generator,
) -> np.ndarray:
    """The places of each set's units: the nearest of ``drawn``, or of a ``part``-th of the rest."""
    scaled = table.scaled.numpy()
    chosen = np.zeros((n_sets, len(places)), dtype=np.int64)
    for row in chosen:
        left = {stratum: members.copy() for stratum, members in free.items()}
        for which in random.permutation(len(places)):
            pool = left[home[which]]
            # Of few units the nearest would be the same in every set.
            n_drawn = max(min(drawn, len(pool) // part), 1)
            some = random.choice(len(pool), size=n_drawn, replace=False)
            far = ((scaled[pool[some]] - scaled[places[which]]) ** 2).sum(1)
            taken = some[far.argmin()]
            row[which] = pool[taken]
            left[home[which]] = np.delete(pool, taken)
    return chosen


def important(
    candidates: Sequence[Component],
    table: ComponentTable,
    strength: Float[Tensor, " unit"],
    *,
    share: float = 0.1,
) -> Bool[Tensor, " unit"]:
    """The units of largest strength in each of the candidates' layers: the stricter controls.

    The top ``share`` of the units whose strength is known (not NaN), and at least three for each
    candidate of the layer.
    """
    places = table.places(candidates)
    chosen = torch.zeros(len(table.units), dtype=torch.bool)
    for stratum, members in _others(places, table.stratum, ~strength.isnan()).items():
        n_candidates = int((table.stratum[places] == stratum).sum())
        n_top = max(round(share * len(members)), 3 * n_candidates)
        order = strength[torch.from_numpy(members)].argsort(descending=True, stable=True)
        chosen[torch.from_numpy(members)[order[:n_top]]] = True
    return chosen


def nearest(
    units: Sequence[Component],
    table: ComponentTable,
    n_controls: int | None,
    among: Bool[Tensor, " unit"] | None = None,
) -> list[list[Component]]:
    """For each unit those most like it in mean |a|, std and ‖W_out‖, none of them one of these.

    Of its layer, or of all layers where its own has fewer than ``n_controls`` others; None for
    all of its layer. Only units ``among`` some, where that is given.
    """
    places = table.places(units)
    free = torch.ones(len(table.units), dtype=torch.bool) if among is None else among.clone()
    free[places] = False
    found = []
    for place in places.tolist():
        pool = free & (table.stratum == table.stratum[place])
        if n_controls is not None and int(pool.sum()) < n_controls:
            pool = free & (table.kind == table.kind[place])
        others = pool.nonzero()[:, 0]
        far = (table.scaled[others] - table.scaled[place]).square().sum(1)
        chosen = others[far.argsort(stable=True)[:n_controls]]
        found.append([table.units[other] for other in chosen.tolist()])
    return found


def random_neurons(
    neurons: Int[Tensor, "neuron 2"], count: int, *, width: int, seed: int
) -> Int[Tensor, "count 2"]:
    """Other neurons of the same layers of ``width``, in the proportion in which they are given.

    Raises:
        LensSkillsError: The layers hold too few others.
    """
    generator = torch.Generator().manual_seed(seed)
    taken: dict[int, set[int]] = {}
    for layer, index in neurons.tolist():
        taken.setdefault(layer, set()).add(index)
    pools = {}
    for layer, own in taken.items():
        order = torch.randperm(width, generator=generator).tolist()
        pools[layer] = [index for index in order if index not in own]
    order = torch.randperm(len(neurons), generator=generator)
    chosen: list[tuple[int, int]] = []
    while len(chosen) < count and any(pools.values()):
        layer = int(neurons[order[len(chosen) % len(order)], 0])
        if not pools[layer]:
            layer = max(pools, key=lambda one: len(pools[one]))
        chosen.append((layer, pools[layer].pop()))
    if len(chosen) < count:
        raise LensSkillsError(
            f"{count} random neurons were asked for, but the layers of these {len(neurons)} "
            f"hold only {len(chosen)} others. Ask for fewer."
        )
    return torch.tensor(chosen)


def with_layer_controls(
    neurons: Int[Tensor, "neuron 2"], n_controls: int, *, width: int, seed: int
) -> Int[Tensor, "several 2"]:
    """The neurons, then ``n_controls`` random others of each of their layers; see `random_neurons`.

    Raises:
        LensSkillsError: Too few controls for p <= 0.05; a layer that holds too few others.
    """
    if n_controls < FEWEST_CONTROLS - 1:
        raise LensSkillsError(
            f"n_controls={n_controls}: p = 0.05 takes {FEWEST_CONTROLS - 1} or more."
        )
    parts = [neurons]
    for layer in neurons[:, 0].unique().tolist():
        rows = neurons[neurons[:, 0] == layer]
        parts.append(random_neurons(rows, n_controls, width=width, seed=seed))
    return torch.cat(parts)


def _others(
    places: Int[Tensor, " k"],
    codes: Int[Tensor, " unit"],
    among: Bool[Tensor, " unit"] | None = None,
) -> dict[int, np.ndarray]:
    """Per code of the candidates, such as their stratum, the places of the units that are none."""
    allowed = torch.ones(len(codes), dtype=torch.bool) if among is None else among.clone()
    allowed[places] = False
    return {
        code: (allowed & (codes == code)).nonzero()[:, 0].numpy()
        for code in codes[places].unique().tolist()
    }


def _match(
    places: Int[Tensor, " k"], chosen: Int[Tensor, "set k"], table: ComponentTable
) -> tuple[dict[str, float | str], ...]:
    if chosen.numel() == 0:
        return ()
    rows = []
    for place, feature in enumerate(FEATURES):
        smd = table.scaled[places, place].mean() - table.scaled[chosen, place].mean()
        rows.append(
            {
                "feature": feature,
                "candidates": float(table.raw[places, place].mean()),
                "controls": float(table.raw[chosen, place].mean()),
                "smd": float(smd),
            }
        )
    return tuple(rows)
