"""`Excerpt`: an example as one neuron reads it, with its activation at every token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations.components import Component
from lens_skills.activations.locations import Position, parse_position, token_places
from lens_skills.activations.stream import stream
from lens_skills.cards import showing
from lens_skills.data import Example
from lens_skills.models import ModelAdapter

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
        read: The place of that position among the tokens; None where it is of several tokens, or
            of the one left out.
    """

    id: str
    prompt: str
    activation: float
    tokens: tuple[str, ...]
    values: tuple[float, ...]
    read: int | None = None

    def _repr_html_(self) -> str:
        return str(showing("notebook_view").html(self))

    def __repr__(self) -> str:
        return f"{self.activation:+.2f}  {self.prompt!r}"


def excerpts_without_tokens(
    examples: Sequence[Example],
    wanted: Sequence[Sequence[int]],
    activations: Float[Tensor, "neuron row"],
) -> list[tuple[Excerpt, ...]]:
    """For every neuron the wanted examples, by place, of a table, which holds no tokens."""
    found = []
    for number, places in enumerate(wanted):
        some = [(examples[place], float(activations[number, place])) for place in places]
        found.append(tuple(Excerpt(one.id, one.prompt, value, (), ()) for one, value in some))
    return found


def read_tokens(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    units: Sequence[Component],
    wanted: Sequence[Sequence[int]],
    activations: Float[Tensor, "neuron row"],
    position: Position,
) -> list[tuple[Excerpt, ...]]:
    """For every neuron the wanted examples, by place, with its activation at every token.

    ``position`` is where ``activations`` were read.
    """
    chosen = sorted({place for places in wanted for place in places})
    if not chosen:
        return [() for _ in units]
    some = [examples[place] for place in chosen]
    layers = sorted({unit.layer for unit in units})
    layer = torch.tensor([layers.index(unit.layer) for unit in units])
    feature = torch.tensor([unit.start for unit in units])
    tokens: dict[int, tuple[str, ...]] = {}
    values: dict[int, Tensor] = {}
    reads: dict[int, int | None] = {}
    spec = parse_position(position)
    for batch in stream(adapter, some, at=units[0].site, position="all", layers=layers):
        assert batch.mask is not None
        for row, index in enumerate(batch.index.tolist()):
            encoded: Any = batch.examples[row]
            first = 1 if encoded.has_bos else 0
            own = encoded.prompt_tokens[first:].tolist()
            read = None if spec.pool else token_places(adapter, encoded, spec.spots[0])[0] - first
            reads[chosen[index]] = None if read is not None and read < 0 else read
            tokens[chosen[index]] = tuple(
                SOFT if token >= adapter.d_vocab else adapter.decode(token) for token in own
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
                reads[place],
            )
            for place in places
        )
        for number, places in enumerate(wanted)
    ]
