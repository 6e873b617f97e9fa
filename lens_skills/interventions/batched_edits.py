"""Where a bound edit acts: rows of a batch x columns x sets of neurons, whatever the padding.

`EditRows` says which columns of which rows are edited, `EditStack` which features of which sets;
`stack_editors` puts both to work, for one set (`editing_of`, hooks) as for many side by side.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import Position
from lens_skills.activations.components import Component
from lens_skills.activations.forward import Encoded, MakeEditHooks
from lens_skills.activations.locations import edited_positions, token_places
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.baselines import Change
from lens_skills.models import EditHook, ModelAdapter
from lens_skills.models.weights import LayerSite


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
        cls,
        batch: Sequence[Encoded],
        places: Mapping[int, Sequence[int]],
        starts: Sequence[int],
    ) -> "EditRows":
        """Rows of one set, from prompt tokens and the column at which each prompt begins."""
        index = [item.index for item in batch]
        widest = max(len(places[item]) for item in index)
        columns = torch.zeros(len(index), widest, dtype=torch.long)
        valid = torch.zeros(len(index), widest, dtype=torch.bool)
        for row, (item, start) in enumerate(zip(index, starts, strict=True)):
            spots = places[item]
            columns[row] = start + spots[0]
            columns[row, : len(spots)] = torch.tensor(spots) + start
            valid[row, : len(spots)] = torch.tensor(
                [spot not in spots[:pos] for pos, spot in enumerate(spots)]
            )
        examples = torch.tensor(index)
        return cls(torch.zeros_like(examples), examples, columns, valid)

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

    def taken(
        self, activation: Float[Tensor, "row column *width"]
    ) -> Float[Tensor, "row pos feature"]:
        """A hook point's values at the edited columns."""
        flat = activation.flatten(2)
        rows = torch.arange(len(flat), device=flat.device)[:, None]
        return flat[rows, self.columns.to(flat.device)]

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

    >>> unit = Component("L1N2", 1, "mlp.hook_post", 2, 3)
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


def edit_activation(
    change: Change,
    spot: LayerSite,
    features: Int[Tensor, "set feature"],
    activation: Float[Tensor, "row column *width"],
    at: EditRows,
    draw: int,
) -> tuple[Float[Tensor, "row column *width"], Bool[Tensor, " row"]]:
    """A hook point's activation, edited out of place, and which rows changed at all."""
    flat = activation.flatten(2)
    check_width(spot, features, flat.shape[-1])
    here = at.to(flat.device)
    chosen = features.to(flat.device)[here.sets]
    old = here.read(flat, chosen)
    new = change.new(*spot, old, chosen, at.examples, draw)
    moved = ((new != old) & here.valid[:, :, None]).flatten(1).any(1)
    edited = flat.clone()
    # Only columns that count are written: padding repeats a column that may count.
    row, pos = here.valid.nonzero(as_tuple=True)
    edited[row[:, None], here.columns[row, pos][:, None], chosen[row]] = new[row, pos]
    return edited.reshape(activation.shape), moved


def stack_editors(
    change: Change, stack: EditStack, at: EditRows, draw: int
) -> tuple[dict[str, EditHook], Bool[Tensor, " row"]]:
    """What edits each hook point, and which rows it changed at all (filled in on the way)."""
    moved = torch.zeros(len(at.examples), dtype=torch.bool)

    def editor(spot: LayerSite, features: Int[Tensor, "set feature"]) -> EditHook:
        def edit(activation: Tensor) -> Tensor:
            edited, changed = edit_activation(change, spot, features, activation, at, draw)
            moved.logical_or_(changed.cpu())
            return edited

        return edit

    editors = {
        f"blocks.{layer}.{site}": editor((layer, site), features)
        for (layer, site), features in stack.features.items()
    }
    return editors, moved


def editing_of(
    change: Change,
    units: Sequence[Component],
    places: Mapping[int, Sequence[int]],
    *,
    draw: int = 0,
) -> MakeEditHooks:
    """What `forward_batch` needs to edit every pass of a metric at the prompts' own tokens.

    The units are one set, the same for all examples; none changes nothing. ``places`` are the
    prompt tokens to edit of each example; see `edited_places`.
    """
    stacks = stack_sets([tuple(units)])

    def editing(batch: Sequence[Encoded], starts: Sequence[int]) -> Mapping[str, EditHook]:
        at = EditRows.of(batch, places, starts)
        return stack_editors(change, stacks[0], at, draw)[0] if stacks else {}

    return editing


def edited_places(
    adapter: ModelAdapter, encoded: Iterable[Encoded], position: Position
) -> dict[int, list[int]]:
    """The prompt tokens each example is edited at, by its place; for `editing_of`.

    ``"all"`` are the prompt's tokens without the beginning-of-sequence one. What follows the
    prompt (the answer that a metric scores) is never edited.
    """
    spots = edited_positions(position).spots
    # Examples that are edited at the same places share their list.
    once: dict[tuple[int, ...], list[int]] = {}
    found = {}
    for item in encoded:
        places = [place for spot in spots for place in token_places(adapter, item, spot)]
        found[item.index] = once.setdefault(tuple(places), places)
    return found


def check_width(spot: LayerSite, features: Tensor, width: int) -> None:
    """Nothing; raises where a feature is not at the site."""
    if int(features.max()) >= width:
        raise LensSkillsError(
            f"{spot[1]!r} of layer {spot[0]} has {width} features, but feature "
            f"{int(features.max())} was to be edited."
        )
