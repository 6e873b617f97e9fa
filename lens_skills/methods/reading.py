"""`Reader`: the pass over a split, with what the gate did beside what the neuron did."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import (
    DEFAULT_SITE,
    ActivationTable,
    Position,
    find_site,
    parse_position,
    soft_position,
)
from lens_skills.activations.forward import forward_batch
from lens_skills.activations.gathering import Rows
from lens_skills.activations.plan import prepare
from lens_skills.activations.positions import token_places
from lens_skills.activations.sites import Site
from lens_skills.activations.stream import batches
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import Lens, SoftPrompt, prompted

GATE = "mlp.hook_pre"
"""What goes into the activation function: a gated MLP's gate, a plain one's pre-activation."""


@dataclass(frozen=True, eq=False)
class Read:
    """Some examples, their neurons, and what went into their activation function.

    Attributes:
        index: Places of the examples.
        units: Activations, one row per example.
        gate: The gates' pre-activations, or None where they were not asked for.
    """

    index: Int[Tensor, " batch"]
    units: Float[Tensor, "batch unit"]
    gate: Float[Tensor, "batch unit"] | None


class Reader:
    """One split at one site and position, read as often as there are groups of layers.

    Attributes:
        lens: The model; None for a table.
        site: The site and its layers.
        position: One position: a token, a span, or tokens pooled.
        width: Units per layer.
        chat: Whether prompts go through the chat template.
    """

    def __init__(
        self,
        model: Any,
        examples: Sequence[Example],
        *,
        at: str = DEFAULT_SITE,
        position: Position | None = None,
        layers: Any = None,
        prompt: SoftPrompt | None = None,
        batch_size: int = 32,
        chat: bool = False,
        progress: bool | None = None,
    ) -> None:
        self.examples, self.batch_size, self.progress = examples, batch_size, progress
        self.chat = chat
        self.table = model if isinstance(model, ActivationTable) else None
        if self.table is not None:
            self.lens: Lens | None = None
            self.position: Position = "last" if position is None else position
            self.site = _table_site(self.table, at, self.position, layers)
            self.width = int(self.table.activations().shape[-1])
            return
        self.lens = prompted(model, prompt)
        if position is None:
            position = "last"  # with a soft prompt, its last vector
        self.position = soft_position(self.lens, position)
        self.reading = parse_position(self.position)
        if self.reading.several or self.reading.ragged:
            raise LensSkillsError(
                f"neurons are ranked by one number per example, but position {position!r} is "
                "several. Name one: 'last', an index, span('text'), or 'mean' and 'max' over all."
            )
        self.site = find_site(self.lens, at, layers)
        self.encoded, self.plan = prepare(self.lens, examples, (), chat)
        spots = self.reading.spots
        self.places = [[token_places(self.lens, e, spot) for spot in spots] for e in self.encoded]
        self.width = next(self.read(self.site.layers[:1], few=1)).units.shape[1]

    @property
    def label(self) -> str:
        """The position in words."""
        return parse_position(self.position).labels[0]

    @property
    def gated(self) -> bool:
        """Whether the gate's own sign can be read here."""
        lens = self.lens
        return lens is not None and lens.gated and self.site.name == DEFAULT_SITE

    def read(
        self, layers: Sequence[int], *, gate: bool = False, few: int | None = None
    ) -> Iterator[Read]:
        """Batches of some layers' units, from one forward pass each.

        Args:
            layers: Which.
            gate: Whether to read the gates too, in the same pass.
            few: Stop after so many examples.
        """
        if self.table is not None:
            yield from self._from_table(self.table, layers)
            return
        encoded = self.encoded if few is None else self.encoded[:few]
        quiet = False if few is not None else self.progress
        for batch in batches(encoded, self.plan, self.batch_size, 0, quiet, "read"):
            places = [self.places[item.index] for item in batch]
            sites = [Site(name, tuple(layers)) for name in (self.site.name, GATE)[: 1 + gate]]
            rows = [Rows(site, self.reading, places, batch, self.plan) for site in sites]
            readers = {name: reader for part in rows for name, reader in part.readers().items()}
            forward_batch(self.lens, batch, self.plan, (), {}, readers)
            units = [
                rearrange(part.result()[0], "batch layer unit -> batch (layer unit)")
                for part in rows
            ]
            index = torch.tensor([item.index for item in batch])
            yield Read(index, units[0].cpu(), units[1].cpu() if gate else None)

    def _from_table(self, table: ActivationTable, layers: Sequence[int]) -> Iterator[Read]:
        chosen = [table.layers.index(layer) for layer in layers]
        for batch in table.stream(self.examples):
            acts = batch.activations[:, chosen]
            yield Read(batch.index, rearrange(acts, "batch layer unit -> batch (layer unit)"), None)


def _table_site(table: ActivationTable, at: str, position: Position, layers: Any) -> Site:
    about = table.manifest
    asked = {"site": at, "positions": list(parse_position(position).labels)}
    for name, value in asked.items():
        if about[name] != value:
            raise LensSkillsError(
                f"the table {table.path} holds {name} {about[name]}, not {value}."
            )
    if layers is not None:
        raise LensSkillsError("a table is ranked with all the layers it holds: leave layers=.")
    return Site(at, table.layers)
