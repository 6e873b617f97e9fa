"""`Source`: a model or a table, as a supplier of batches of one site and position."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from lens_skills.activations import (
    ActivationTable,
    Batch,
    Metric,
    Position,
    find_site,
    parse_position,
    soft_position,
    stream,
)
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import SoftPrompt, as_lens
from lens_skills.models.fingerprint import identity


class Source:
    """A model or a table, as a supplier of batches of one site and position."""

    def __init__(
        self,
        model: Any,
        examples: Sequence[Example],
        metrics: Sequence[Metric],
        at: str,
        position: Position | None,
        layers: int | Iterable[int] | None,
        batch_size: int,
        chat: bool,
        progress: bool | None,
    ) -> None:
        self.table = model if isinstance(model, ActivationTable) else None
        self.examples, self.metrics = examples, metrics
        self.batch_size, self.chat, self.progress = batch_size, chat, progress
        self.device: torch.device | str = "cpu"
        self.soft: SoftPrompt | None = None
        if self.table is not None:
            self._read_table(self.table, at, position or "last", layers)
            return
        lens = as_lens(model)
        position = soft_position(lens, position)
        found = find_site(lens, at, layers)
        reading = parse_position(position)
        self.lens, self.position, self.soft = lens, position, lens.soft
        self.site, self.layers, self.labels = found.name, found.layers, reading.labels
        self.ragged = reading.ragged
        # MPS has no float64; the sums then live on the CPU.
        self.device = "cpu" if lens.device.type == "mps" else lens.device
        self.about = {
            **identity(lens),
            "implementation": lens.implementation,
            "dtype": str(lens.dtype),
            "site": found.name,
            "layers": list(found.layers),
            "positions": list(reading.labels),
            "chat": chat,
        }
        self.width = _width(lens, examples[0], found.name, found.layers[0], chat)

    def _read_table(
        self,
        table: ActivationTable,
        at: str,
        position: Position,
        layers: int | Iterable[int] | None,
    ) -> None:
        about = table.manifest
        asked = {"site": at, "positions": list(parse_position(position).labels)}
        for name, value in asked.items():
            if about[name] != value:
                raise LensSkillsError(
                    f"the table {table.path} holds {name} {about[name]}, not {value}."
                )
        if layers is not None:
            raise LensSkillsError("a table is scored with all the layers it holds: leave layers=.")
        self.site, self.layers, self.labels = at, table.layers, tuple(about["positions"])
        self.ragged = False
        self.width = table.activations().shape[-1]
        self.about = {
            name: about[name]
            for name in ("model", "model_fingerprint", "site", "layers", "positions", "chat")
        }
        self.about["weights"] = about.get("weights", about["model_fingerprint"])

    def batches(self, skip: int) -> Iterator[Batch]:
        """The pass's batches from batch ``skip`` on."""
        if self.table is not None:
            found = self.table.stream(
                self.examples, metrics=self.metrics, batch_size=self.batch_size
            )
            return (batch for place, batch in enumerate(found) if place >= skip)
        return stream(
            self.lens,
            self.examples,
            at=self.site,
            position=self.position,
            layers=self.layers,
            metrics=self.metrics,
            batch_size=self.batch_size,
            chat=self.chat,
            skip=skip,
            progress=self.progress,
        )


def _width(lens: Any, example: Example, site: str, layer: int, chat: bool) -> int:
    """How many neurons the site has, seen on one example."""
    bare = Example(id=example.id, prompt=example.prompt)
    only = {"at": site, "position": "last", "layers": layer, "chat": chat, "progress": False}
    batch = next(stream(lens, [bare], **only))
    return batch.activations.shape[-1]
