"""The activations of a few neurons: one number per example, or one per token of some examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import Position, parse_position, stream
from lens_skills.causal import Unit
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import Lens

SOFT = "⟨soft⟩"
"""What is shown for a vector of a soft prompt."""


@dataclass(frozen=True)
class Excerpt:
    """An example as one neuron reads it.

    Attributes:
        id, prompt: Of the example.
        activation: At the position that was explained.
        tokens: The prompt's tokens as texts, without the beginning-of-sequence token.
        values: The neuron's activation at each.
    """

    id: str
    prompt: str
    activation: float
    tokens: tuple[str, ...]
    values: tuple[float, ...]

    def __repr__(self) -> str:
        return f"{self.activation:+.2f}  {self.prompt!r}"


def read_neurons(
    lens: Lens,
    examples: Sequence[Example],
    units: Sequence[Unit],
    *,
    position: Position,
    **how: Any,
) -> Float[Tensor, "neuron row"]:
    """Each neuron's activation at the position, in the order of the examples."""
    reading = parse_position(position)
    if reading.several or reading.ragged:
        raise LensSkillsError(
            f"position {position!r} gives several numbers per example, and one is explained at a "
            "time. Choose 'last', an index, span('text'), 'mean' or 'max'."
        )
    layers = sorted({unit.layer for unit in units})
    values = torch.zeros(len(units), len(examples), dtype=torch.float64)
    layer, feature = _places(units, layers)
    for batch in stream(lens, examples, at=units[0].site, position=position, layers=layers, **how):
        values[:, batch.index] = batch.activations[:, layer, feature].double().T.cpu()
    return values


def read_tokens(
    lens: Lens,
    examples: Sequence[Example],
    units: Sequence[Unit],
    wanted: Sequence[Sequence[int]],
    activations: Float[Tensor, "neuron row"],
    **how: Any,
) -> list[tuple[Excerpt, ...]]:
    """For every neuron the wanted examples, by place, with its activation at every token."""
    chosen = sorted({place for places in wanted for place in places})
    if not chosen:
        return [() for _ in units]
    some = [examples[place] for place in chosen]
    layers = sorted({unit.layer for unit in units})
    layer, feature = _places(units, layers)
    tokens: dict[int, tuple[str, ...]] = {}
    values: dict[int, Tensor] = {}
    for batch in stream(lens, some, at=units[0].site, position="all", layers=layers, **how):
        assert batch.mask is not None
        for row, index in enumerate(batch.index.tolist()):
            encoded: Any = batch.examples[row]
            own = encoded.prompt_tokens[1 if encoded.has_bos else 0 :].tolist()
            tokens[chosen[index]] = tuple(
                SOFT if token >= lens.d_vocab else lens.decode(token) for token in own
            )
            here = batch.activations[row, batch.mask[row]]
            values[chosen[index]] = here[:, layer, feature].T.cpu()
    return [
        tuple(
            Excerpt(
                examples[place].id,
                examples[place].prompt,
                float(activations[number, place]),
                tokens[place],
                tuple(values[place][number].tolist()),
            )
            for place in places
        )
        for number, places in enumerate(wanted)
    ]


def _places(units: Sequence[Unit], layers: list[int]) -> tuple[Tensor, Tensor]:
    layer = torch.tensor([layers.index(unit.layer) for unit in units])
    return layer, torch.tensor([unit.start for unit in units])
