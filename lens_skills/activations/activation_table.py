"""A disk-backed table of activations: a new metric on the same inputs costs no forward pass."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills import settings
from lens_skills.activations.forward import known_values
from lens_skills.activations.locations import (
    DEFAULT_SITE,
    Position,
    PositionSpec,
    Site,
    find_site,
    parse_position,
    soft_position,
)
from lens_skills.activations.metrics import parse_metrics
from lens_skills.activations.stream import Batch, stream
from lens_skills.cards import card_lines
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, ModelAdapter, with_soft_prompt
from lens_skills.models.identity import identity
from lens_skills.results import undamaged, work_folder

_FORMAT = 1
ARRAY, MANIFEST = "activations.npy", "manifest.json"


@dataclass(frozen=True)
class ActivationTable:
    """Activations of one site and position for a fixed list of examples, on disk.

    `score` takes it in place of a model. Metrics that read the model's output must have been
    given to `capture`; columns of the task and plain numbers can be new.

    Attributes:
        path: Its folder.
        layers: The layers it holds.
        manifest: Where it came from: model, site, position, example ids.
    """

    path: Path
    layers: tuple[int, ...]
    manifest: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> "ActivationTable":
        """The table in a folder that `capture` wrote.

        Raises:
            LensSkillsError: No table there, or one that was not finished.
        """
        folder = Path(path)
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise LensSkillsError(
                f"no activation table in {folder}. Write one with ls.capture(model, task, path)."
            ) from error
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            manifest = manifest if isinstance(manifest, dict) else {}
            raise LensSkillsError(
                f"the table {folder} has format {manifest.get('format')}, this version reads "
                f"{_FORMAT}. Write it anew with ls.capture."
            )
        with undamaged(folder, "table of activations"):
            layers = tuple(int(layer) for layer in manifest["layers"])
            table = cls(folder, layers, manifest)
            repr(table)  # all that its card needs is there
            return table

    def __repr__(self) -> str:
        about, layers = self.manifest, list(self.layers)
        n, metrics = len(about["example_ids"]), ", ".join(about["metrics"]) or "none"
        which = f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
        lines = [
            f"activations of {about.get('model', 'a model')}: {about['site']} at "
            f"{', '.join(about['positions'])}, {which}, {n:,} examples",
            f"metrics of the model's output beside them: {metrics}",
            f"on disk in {self.path}; score takes it in place of a model",
        ]
        return "\n".join(line for text in lines for line in card_lines(text))

    def activations(self) -> np.ndarray:
        """All activations, memory-mapped: ``example (pos) layer neuron``."""
        try:
            return np.load(self.path / ARRAY, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise LensSkillsError(f"the table {self.path} is damaged: {error}.") from error

    def stream(self, examples: Sequence[Example], *, metrics: Any = ()) -> Iterator[Batch]:
        """Batches like those of `stream`, read from disk.

        ``examples`` may be any part of the examples the table was written for.
        """
        batch_size = settings.batch_size()
        places = self._places(examples)
        wanted = parse_metrics(metrics, examples)
        known = known_values(wanted, examples)
        for metric in wanted:
            if not metric.known and metric.name not in self.manifest["metrics"]:
                stored = ", ".join(self.manifest["metrics"]) or "none"
                raise LensSkillsError(
                    f"{metric.name!r} reads the model's output, which this table does not hold "
                    f"(stored metrics: {stored}). Name it in ls.capture(…, metrics=[…])."
                )
        table = self.activations()
        stored = {name: np.asarray(v) for name, v in self.manifest["metrics"].items()}
        for start in range(0, len(examples), batch_size):
            part = places[start : start + batch_size]
            values = {
                metric.name: known[metric.name][start : start + batch_size]
                if metric.known
                else torch.from_numpy(stored[metric.name][part]).double()
                for metric in wanted
            }
            yield Batch(
                index=torch.arange(start, start + len(part)),
                examples=tuple(examples[start : start + batch_size]),
                activations=torch.from_numpy(np.asarray(table[part], dtype=np.float32)),
                mask=None,
                metrics=values,
            )

    def _places(self, examples: Sequence[Example]) -> np.ndarray:
        known = {name: place for place, name in enumerate(self.manifest["example_ids"])}
        missing = [example.id for example in examples if example.id not in known]
        if missing:
            raise LensSkillsError(
                f"{len(missing)} examples are not in the table {self.path} (first: "
                f"{missing[0]!r}). Capture them, or score the model itself."
            )
        return np.array([known[example.id] for example in examples])


def capture(
    model: Any,
    examples: Sequence[Example],
    path: str | Path,
    *,
    at: str = DEFAULT_SITE,
    position: Position = "last",
    layers: int | Iterable[int] | None = None,
    metrics: Any = (),
    dtype: Literal["float16", "float32"] = "float16",
    chat: Chat = False,
) -> ActivationTable:
    """Activations of the examples written to a folder, for scoring without the model.

    Float16 of 2,000 examples of SmolLM2's 46,080 neurons takes 184 MB. The folder appears only
    once it is whole; an interrupted capture leaves nothing.

    Raises:
        LensSkillsError: A folder that exists or cannot be written; values too large for float16.
    """
    folder = Path(path)
    if folder.exists():
        raise LensSkillsError(f"{folder} exists already. Remove it or choose another path.")
    adapter = with_soft_prompt(model, None, chat)
    position = soft_position(adapter, position)
    reading = parse_position(position)
    if reading.ragged:
        raise LensSkillsError("position 'all' keeps every token and cannot be tabled; use 'mean'.")
    wanted = parse_metrics(metrics, examples)
    site = find_site(adapter, at, layers)
    with work_folder(folder) as work:
        stored = {metric.name: np.zeros(len(examples)) for metric in wanted}
        table: np.ndarray | None = None
        for batch in stream(
            adapter,
            examples,
            at=at,
            position=position,
            layers=layers,
            metrics=wanted,
        ):
            numbers = _narrow(batch.activations, dtype)
            if table is None:
                shape = (len(examples), *numbers.shape[1:])
                table = np.lib.format.open_memmap(work / ARRAY, mode="w+", dtype=dtype, shape=shape)
            table[batch.index.numpy()] = numbers
            for name, values in batch.metrics.items():
                stored[name][batch.index.numpy()] = values.numpy()
        assert isinstance(table, np.memmap)
        table.flush()
        about = manifest_of(adapter, site, reading, examples)
        about["metrics"] = {name: values.tolist() for name, values in stored.items()}
        (work / MANIFEST).write_text(json.dumps(about))
    return ActivationTable.load(folder)


def manifest_of(
    adapter: ModelAdapter,
    site: Site,
    reading: PositionSpec,
    examples: Sequence[Example],
) -> dict[str, Any]:
    """Where a table's numbers come from; without metrics."""
    return {
        "format": _FORMAT,
        **identity(adapter),
        "site": site.name,
        "layers": list(site.layers),
        "positions": list(reading.labels),
        "example_ids": [example.id for example in examples],
        "metrics": {},
    }


def _narrow(activations: Float[Tensor, "..."], dtype: str) -> np.ndarray:
    numbers = activations.cpu().numpy()
    largest = float(np.abs(numbers).max(initial=0.0))
    # As a Python number: NumPy would first cast ``largest`` to float16, where it is infinite.
    if dtype == "float16" and largest > float(np.finfo(np.float16).max):
        raise LensSkillsError(
            f"an activation of {largest:.3g} does not fit float16. Use dtype='float32'."
        )
    return numbers.astype(dtype)
