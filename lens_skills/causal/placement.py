"""`editing_of`: an edit placed at each example's own prompt tokens, whatever the padding."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_skills.activations import Position
from lens_skills.activations.encoding import Encoded
from lens_skills.activations.positions import token_places
from lens_skills.activations.readout import Editing
from lens_skills.causal.baseline import edited_positions
from lens_skills.causal.edits import Change
from lens_skills.causal.units import Unit
from lens_skills.errors import LensSkillsError
from lens_skills.models import Editor, Lens

Put = Callable[
    [Tensor, Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"], Int[Tensor, " batch"], int],
    Tensor,
]
"""From an activation, the padded columns to edit, which of them count, the examples and the draw:
the edited activation, a new tensor of the same shape."""


def editing_of(
    change: Change,
    units: Sequence[Unit],
    places: Mapping[int, Sequence[int]],
    *,
    draw: int = 0,
) -> Editing:
    """What `forward_batch` needs to edit every pass of a metric at the prompts' own tokens.

    Args:
        change: The bound edit.
        units: The set that is edited, the same for all examples; none changes nothing.
        places: For each example (its place in the examples that were bound) the prompt tokens to
            edit, counted from the prompt's start; see `edited_places`.
        draw: Which random draw.
    """
    puts = puts_of(change, units)

    def editing(batch: Sequence[Encoded], starts: Sequence[int]) -> Mapping[str, Editor]:
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

        def editor(put: Put) -> Editor:
            return lambda activation: put(activation, columns, valid, examples, draw)

        return {name: editor(put) for name, put in puts.items()}

    return editing


def edited_places(
    lens: Lens, encoded: Iterable[Encoded], position: Position
) -> dict[int, list[int]]:
    """The prompt tokens each example is edited at, by its place; for `editing_of`.

    ``"all"`` are the prompt's tokens without the beginning-of-sequence one. What follows the
    prompt (the answer that a metric scores) is never edited.
    """
    spots = edited_positions(position).spots
    return {
        item.index: [place for spot in spots for place in token_places(lens, item, spot)]
        for item in encoded
    }


def puts_of(change: Change, units: Sequence[Unit]) -> dict[str, Put]:
    """For each hook point the units stand in, what edits its activation out of place."""
    grouped: dict[str, list[Unit]] = {}
    for unit in units:
        grouped.setdefault(unit.hook_name, []).append(unit)
    return {name: _put(change, found) for name, found in grouped.items()}


def _put(change: Change, units: Sequence[Unit]) -> Put:
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
