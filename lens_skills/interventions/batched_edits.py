"""`editing_of`: an edit placed at each example's own prompt tokens, whatever the padding.

`Stack`: sets of units of one shape, edited side by side in one pass.

`Placement`: where each row of a stacked pass is edited.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import Position
from lens_skills.activations.components import Component
from lens_skills.activations.forward import MakeEditHooks
from lens_skills.activations.locations import edited_positions, token_places
from lens_skills.activations.tokenization import Encoded
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.formulas import Change
from lens_skills.models import EditHook, ModelAdapter
from lens_skills.models.weights import LayerSite

Put = Callable[
    [Tensor, Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"], Int[Tensor, " batch"], int],
    Tensor,
]
"""From an activation, the padded columns to edit, which of them count, the examples and the draw:
the edited activation, a new tensor of the same shape."""


def editing_of(
    change: Change,
    units: Sequence[Component],
    places: Mapping[int, Sequence[int]],
    *,
    draw: int = 0,
) -> MakeEditHooks:
    """What `forward_batch` needs to edit every pass of a metric at the prompts' own tokens.

    Args:
        change: The bound edit.
        units: The set that is edited, the same for all examples; none changes nothing.
        places: For each example (its place in the examples that were bound) the prompt tokens to
            edit, counted from the prompt's start; see `edited_places`.
        draw: Which random draw.
    """
    puts = puts_of(change, units)

    def editing(batch: Sequence[Encoded], starts: Sequence[int]) -> Mapping[str, EditHook]:
        spots = [
            [start + place for place in places[item.index]]
            for item, start in zip(batch, starts, strict=True)
        ]
        widest = max(len(row) for row in spots)
        columns = torch.zeros(len(spots), widest, dtype=torch.long)
        valid = torch.zeros(len(spots), widest, dtype=torch.bool)
        for row, found in enumerate(spots):
            columns[row, : len(found)] = torch.tensor(found, dtype=torch.long)
            valid[row, : len(found)] = True
        examples = torch.tensor([item.index for item in batch])

        def editor(put: Put) -> EditHook:
            return lambda activation: put(activation, columns, valid, examples, draw)

        return {name: editor(put) for name, put in puts.items()}

    return editing


def edited_places(
    adapter: ModelAdapter, encoded: Iterable[Encoded], position: Position
) -> dict[int, list[int]]:
    """The prompt tokens each example is edited at, by its place; for `editing_of`.

    ``"all"`` are the prompt's tokens without the beginning-of-sequence one. What follows the
    prompt (the answer that a metric scores) is never edited.
    """
    spots = edited_positions(position).spots
    return {
        item.index: [place for spot in spots for place in token_places(adapter, item, spot)]
        for item in encoded
    }


def puts_of(change: Change, units: Sequence[Component]) -> dict[str, Put]:
    """For each hook point the units stand in, what edits its activation out of place."""
    grouped: dict[str, list[Component]] = {}
    for unit in units:
        grouped.setdefault(unit.hook_name, []).append(unit)
    return {name: _put(change, found) for name, found in grouped.items()}


def _put(change: Change, units: Sequence[Component]) -> Put:
    layer, site = units[0].layer, units[0].site
    # A feature in two units (a neuron and a slice that holds it) is edited once.
    features = torch.cat([unit.features for unit in units]).unique()

    def put(activation: Tensor, columns: Any, valid: Any, examples: Any, draw: int) -> Tensor:
        flat = activation.flatten(2)
        if int(features[-1]) >= flat.shape[-1]:
            raise LensSkillsError(
                f"{site!r} of layer {layer} has {flat.shape[-1]} features, but feature "
                f"{int(features[-1])} was to be edited."
            )
        here = features.to(flat.device)
        columns, valid = columns.to(flat.device), valid.to(flat.device)
        rows = torch.arange(len(flat), device=flat.device)
        old = flat[rows[:, None, None], columns[:, :, None], here]
        new = change.new(layer, site, old, here.expand(len(flat), -1), examples, draw)
        edited = flat.clone()
        # Only columns that count are written: padding repeats a column that may count.
        row, spot = valid.nonzero(as_tuple=True)
        edited[row[:, None], columns[row, spot][:, None], here] = new[row, spot]
        return edited.reshape(activation.shape)

    return put


@dataclass(frozen=True, eq=False)
class EditRows:
    """The rows of a stacked pass: which set each belongs to, and the columns it is edited at.

    Attributes:
        sets: The set of each row, as its place in the stack.
        examples: Its example, as its place in the examples that were bound.
        columns: Its edited columns; rows of fewer positions repeat one.
        valid: Which of them count. A column asked for twice counts once.
    """

    sets: Int[Tensor, " row"]
    examples: Int[Tensor, " row"]
    columns: Int[Tensor, "row pos"]
    valid: Bool[Tensor, "row pos"]

    @classmethod
    def of(
        cls, examples: Sequence[int], places: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> "EditRows":
        """Rows of one set, from prompt tokens and the column at which each prompt begins."""
        widest = max(len(row) for row in places)
        columns = torch.zeros(len(places), widest, dtype=torch.long)
        valid = torch.zeros(len(places), widest, dtype=torch.bool)
        for row, (spots, start) in enumerate(zip(places, starts, strict=True)):
            columns[row] = start + spots[0]
            columns[row, : len(spots)] = torch.tensor(spots) + start
            valid[row, : len(spots)] = torch.tensor(
                [spot not in spots[:pos] for pos, spot in enumerate(spots)]
            )
        index = torch.tensor(list(examples))
        return cls(torch.zeros_like(index), index, columns, valid)

    def repeated(self, n_sets: int) -> "EditRows":
        """The same rows for each of several sets, one set after another."""
        return EditRows(
            torch.arange(n_sets).repeat_interleave(len(self.examples)),
            self.examples.repeat(n_sets),
            self.columns.repeat(n_sets, 1),
            self.valid.repeat(n_sets, 1),
        )

    def shifted(self, first: int) -> "EditRows":
        """Columns counted from column ``first``."""
        return EditRows(self.sets, self.examples, self.columns - first, self.valid)

    def to(self, device: Any) -> "EditRows":
        """The same on another device."""
        parts = (self.sets, self.examples, self.columns, self.valid)
        return EditRows(*(part.to(device) for part in parts))

    def read(
        self, flat: Float[Tensor, "row column width"], features: Int[Tensor, "row feature"]
    ) -> Float[Tensor, "row pos feature"]:
        """The features' values at the edited columns."""
        rows = torch.arange(len(flat), device=flat.device)[:, None, None]
        return flat[rows, self.columns[:, :, None], features[:, None, :]]


@dataclass(frozen=True, eq=False)
class EditStack:
    """Sets that touch the same hook points with equally many features.

    Attributes:
        places: Which of all sets they are.
        features: For each (layer, site), which features each set edits.
    """

    places: tuple[int, ...]
    features: dict[LayerSite, Int[Tensor, "set feature"]]

    @property
    def bottom(self) -> int:
        """The lowest layer they touch."""
        return min(layer for layer, _ in self.features)

    def part(self, start: int, stop: int) -> "EditStack":
        """Some of its sets."""
        features = {spot: rows[start:stop] for spot, rows in self.features.items()}
        return EditStack(self.places[start:stop], features)


def stack_sets(sets: Sequence[tuple[Component, ...]]) -> list[EditStack]:
    """All sets that hold a unit, grouped by shape, from the lowest layer up.

    A feature in two units of a set (a neuron and a slice that holds it) is edited once.

    >>> unit = Unit("L1N2", 1, "mlp.hook_post", 2, 3)
    >>> [stack.places for stack in stack_sets([(unit,), (), (unit,)])]
    [(0, 2)]
    """
    grouped: dict[tuple[tuple[int, str, int], ...], list[int]] = {}
    found: list[dict[LayerSite, list[int]]] = []
    for place, units in enumerate(sets):
        features: dict[LayerSite, set[int]] = {}
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
        stacks.append(EditStack(tuple(places), stacked))
    return stacks


def stack_editors(
    change: Change, stack: EditStack, at: EditRows, draw: int
) -> tuple[dict[str, EditHook], Bool[Tensor, " row"]]:
    """What edits each hook point, and which rows it changed at all (filled in on the way)."""
    moved = torch.zeros(len(at.examples), dtype=torch.bool)

    def editor(spot: LayerSite, chosen: Int[Tensor, "set feature"]) -> EditHook:
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


def check_width(spot: LayerSite, features: Tensor, width: int) -> None:
    """Nothing; raises where a feature is not at the site."""
    if int(features.max()) >= width:
        raise LensSkillsError(
            f"{spot[1]!r} of layer {spot[0]} has {width} features, but feature "
            f"{int(features.max())} was to be edited."
        )
