"""`Stack`: sets of units of one shape, edited side by side in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_skills.causal.edits import Change
from lens_skills.causal.rows import Placement
from lens_skills.causal.units import Unit
from lens_skills.errors import LensSkillsError
from lens_skills.models import Editor

Spot = tuple[int, str]  # layer and site


@dataclass(frozen=True, eq=False)
class Stack:
    """Sets that touch the same hook points with equally many features.

    Attributes:
        places: Which of all sets they are.
        features: For each (layer, site), which features each set edits.
    """

    places: tuple[int, ...]
    features: dict[Spot, Int[Tensor, "set feature"]]

    @property
    def bottom(self) -> int:
        """The lowest layer they touch."""
        return min(layer for layer, _ in self.features)

    def part(self, start: int, stop: int) -> "Stack":
        """Some of its sets."""
        features = {spot: rows[start:stop] for spot, rows in self.features.items()}
        return Stack(self.places[start:stop], features)


def stack_sets(sets: Sequence[tuple[Unit, ...]]) -> list[Stack]:
    """All sets that hold a unit, grouped by shape, from the lowest layer up.

    A feature in two units of a set (a neuron and a slice that holds it) is edited once.

    >>> unit = Unit("L1N2", 1, "mlp.hook_post", 2, 3)
    >>> [stack.places for stack in stack_sets([(unit,), (), (unit,)])]
    [(0, 2)]
    """
    grouped: dict[tuple[tuple[int, str, int], ...], list[int]] = {}
    found: list[dict[Spot, list[int]]] = []
    for place, units in enumerate(sets):
        features: dict[Spot, set[int]] = {}
        for unit in units:
            chosen = features.setdefault((unit.layer, unit.site), set())
            chosen.update(range(unit.start, unit.stop))
        found.append({spot: sorted(features[spot]) for spot in sorted(features)})
        shape = tuple((*spot, len(rows)) for spot, rows in found[-1].items())
        if shape:
            grouped.setdefault(shape, []).append(place)
    stacks = []
    for shape in sorted(grouped):
        places = grouped[shape]
        stacked = {
            (layer, site): torch.tensor([found[place][layer, site] for place in places])
            for layer, site, _ in shape
        }
        stacks.append(Stack(tuple(places), stacked))
    return stacks


def stack_editors(
    change: Change, stack: Stack, at: Placement, draw: int
) -> tuple[dict[str, Editor], Bool[Tensor, " row"]]:
    """What edits each hook point, and which rows it changed at all (filled in on the way)."""
    moved = torch.zeros(len(at.examples), dtype=torch.bool)

    def editor(spot: Spot, chosen: Int[Tensor, "set feature"]) -> Editor:
        def edit(activation: Tensor) -> Tensor:
            flat = activation.flatten(2)
            check_width(spot, chosen, flat.shape[-1])
            here = at.to(flat.device)
            features = chosen.to(flat.device)[here.sets]
            old = here.read(flat, features)
            new = change.new(*spot, old, features, at.examples, draw)
            row, pos = here.valid.nonzero(as_tuple=True)
            moved.logical_or_(((new != old) & here.valid[:, :, None]).flatten(1).any(1).cpu())
            edited = flat.clone()
            # Only columns that count are written: padding repeats a column that may count.
            edited[row[:, None], here.columns[row, pos][:, None], features[row]] = new[row, pos]
            return edited.reshape(activation.shape)

        return edit

    editors = {
        f"blocks.{layer}.{site}": editor((layer, site), chosen)
        for (layer, site), chosen in stack.features.items()
    }
    return editors, moved


def check_width(spot: Spot, features: Tensor, width: int) -> None:
    """Nothing; raises where a feature is not at the site."""
    if int(features.max()) >= width:
        raise LensSkillsError(
            f"{spot[1]!r} of layer {spot[0]} has {width} features, but feature "
            f"{int(features.max())} was to be edited."
        )
