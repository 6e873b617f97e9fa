"""`capture`: activations of a model written to a folder, here or by the workers of a cluster.

Divided, each worker writes files of its own into the folder that becomes the table: a shard of the
table for each shard of the pass, whole or not at all, whose rows lie in the order of the batches.
"""

import json
import os
import platform
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills import engines
from lens_skills.activations.activation_reader import ActivationReader
from lens_skills.activations.activation_table import FORMAT, MANIFEST, ActivationTable
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
from lens_skills.activations.stream import stream
from lens_skills.activations.table_rows import columns_of
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.file_names import place_to_write
from lens_skills.models import Chat, ModelAdapter, with_soft_prompt
from lens_skills.models.identity import identity
from lens_skills.results import work_folder

_ARRAY, _ROWS = "activations.npy", "rows.parquet"


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
    once it is whole; an interrupted capture leaves nothing. Under ``config(engine="ray")`` workers
    write the shards of the table themselves, to a folder that all machines see: the same numbers,
    in rows that lie in the order of the batches.

    Raises:
        LensSkillsError: A folder that exists or cannot be written, or that a worker's machine does
            not see; values too large for float16.
    """
    folder = place_to_write(path)
    if folder.exists():
        raise LensSkillsError(f"{folder} exists already. Remove it or choose another path.")
    adapter = with_soft_prompt(model, None, chat)
    position = soft_position(adapter, position)
    reading = parse_position(position)
    if reading.ragged:
        raise LensSkillsError("position 'all' keeps every token and cannot be tabled; use 'mean'.")
    wanted = parse_metrics(metrics, examples)
    site = find_site(adapter, at, layers)
    asked = {"at": at, "position": position, "layers": layers, "metrics": wanted}
    engine = engines.chosen(adapter)
    with work_folder(folder) as work, engines.ended_by_interrupt(engine):
        if engine is not None:
            _write_divided(engine, work, adapter, site, reading, examples, asked, dtype)
        else:
            stored = {metric.name: np.zeros(len(examples)) for metric in wanted}
            table: np.ndarray | None = None
            for batch in stream(adapter, examples, **asked):
                numbers = _narrow(batch.activations, dtype)
                if table is None:
                    table = _begun(work / _ARRAY, len(examples), numbers)
                table[batch.index.numpy()] = numbers
                for name, values in batch.metrics.items():
                    stored[name][batch.index.numpy()] = values.numpy()
            assert isinstance(table, np.memmap)
            table.flush()
            _write_beside(work, adapter, site, reading, examples, stored, table)
    return ActivationTable.load(folder)


def write_table(
    folder: Path,
    adapter: ModelAdapter,
    site: Site,
    reading: PositionSpec,
    examples: Sequence[Example],
    activations: np.ndarray,
) -> ActivationTable:
    """A table of activations that were read already, without metrics."""
    with work_folder(folder) as work:
        np.save(work / _ARRAY, activations)
        _write_beside(work, adapter, site, reading, examples, {}, activations)
    return ActivationTable.load(folder)


@dataclass(frozen=True)
class _Written:
    """A shard of the table, as a worker wrote it."""

    file: str
    places: Int[Tensor, " row"]
    metrics: dict[str, Float[Tensor, " row"]]
    width: int


@dataclass(frozen=True)
class _Writing:
    """The shards of a table; each worker writes its own into ``folder``."""

    folder: Path
    recipe: dict[str, Any]
    dtype: str

    def open(self, adapter: ModelAdapter) -> ActivationReader:
        if not self.folder.is_dir():
            raise LensSkillsError(
                f"{self.folder.parent} is another folder on {platform.node()}: under engine='ray' "
                "capture writes where all machines see it. Choose a path on a disk that they "
                "share, or say ls.config(engine='local')."
            )
        return ActivationReader(adapter, **self.recipe)

    def run(self, opened: ActivationReader, shard: range, tick: engines.Tick) -> _Written:
        n_rows = sum(opened.sizes()[shard.start : shard.stop])
        file = f"activations-{shard.start:08}.npy"
        work = self.folder / f".{file}-{uuid.uuid4().hex}"
        table: Any = None
        places, done = torch.zeros(n_rows, dtype=torch.long), 0
        metrics = {m.name: torch.zeros(n_rows, dtype=torch.float64) for m in opened.metrics}
        for batch in opened.batches(skip=shard.start, stop=shard.stop, progress=False):
            numbers = _narrow(batch.activations, self.dtype)
            if table is None:
                table = _begun(work, n_rows, numbers)
            here = slice(done, done + len(batch.index))
            table[here], places[here] = numbers, batch.index
            for name, values in batch.metrics.items():
                metrics[name][here] = values.double()
            done = here.stop
            tick(len(batch.index))
        table.flush()
        os.replace(work, self.folder / file)
        return _Written(file, places, metrics, table.shape[-1])


def _write_divided(
    engine: engines.Engine,
    work: Path,
    adapter: ModelAdapter,
    site: Site,
    reading: PositionSpec,
    examples: Sequence[Example],
    asked: dict[str, Any],
    dtype: str,
) -> None:
    """The table's shards, written by the workers; its rows and its manifest."""
    import pyarrow.parquet as parquet

    reader = ActivationReader(adapter, examples, **asked)
    sizes = reader.sizes()
    shards = engines.cut(range(len(sizes)), engine.n_shards())
    found = engine.run(
        adapter, _Writing(work.absolute(), reader.recipe(), dtype), shards,
        [sum(sizes[shard.start : shard.stop]) for shard in shards],
        verb="capture", unit="examples",
    )  # fmt: skip
    parts = [each.part for each in engines.in_order(found)]
    stored = {metric.name: np.zeros(len(examples)) for metric in reader.metrics}
    for part in parts:
        if not (work / part.file).exists():
            raise LensSkillsError(
                f"{part.file} was written on another machine, and is not in {work.parent} here: "
                "choose a path on a disk that all machines share, or say "
                "ls.config(engine='local')."
            )
        for name, values in part.metrics.items():
            stored[name][part.places.numpy()] = values.numpy()
    for left in work.glob(".*"):  # of workers that died
        left.unlink()
    columns, entries = _columns(examples, stored), []
    for part in parts:
        rows = part.file.replace("activations", "rows").replace(".npy", ".parquet")
        parquet.write_table(columns.take(part.places.numpy()), work / rows)
        entries.append({"file": part.file, "rows": len(part.places), "table": rows})
    _write_manifest(work, adapter, site, reading, examples, parts[0].width, dtype, entries)


def _begun(path: Path, n_rows: int, numbers: np.ndarray) -> np.ndarray:
    """An array on disk with a row for each example, shaped like those of a batch."""
    shape = (n_rows, *numbers.shape[1:])
    return np.lib.format.open_memmap(path, mode="w+", dtype=numbers.dtype, shape=shape)


def _columns(examples: Sequence[Example], metrics: Mapping[str, np.ndarray]) -> Any:
    # A column of the task that was asked for as a metric stands among the columns already.
    beside = {n: v for n, v in metrics.items() if not n.startswith(("label:", "covariate:"))}
    return columns_of(examples, beside)


def _write_beside(
    work: Path,
    adapter: ModelAdapter,
    site: Site,
    reading: PositionSpec,
    examples: Sequence[Example],
    metrics: Mapping[str, np.ndarray],
    activations: np.ndarray,
) -> None:
    """The rows and the manifest of a table, beside its activations."""
    import pyarrow.parquet as parquet

    parquet.write_table(_columns(examples, metrics), work / _ROWS)
    shards = [{"file": _ARRAY, "rows": len(examples), "table": _ROWS}]
    width, dtype = activations.shape[-1], activations.dtype.name
    _write_manifest(work, adapter, site, reading, examples, width, dtype, shards)


def _write_manifest(
    work: Path,
    adapter: ModelAdapter,
    site: Site,
    reading: PositionSpec,
    examples: Sequence[Example],
    width: int,
    dtype: str,
    shards: Sequence[dict[str, Any]],
) -> None:
    manifest = {
        "format": FORMAT,
        **identity(adapter),
        "gated": adapter.gated and site.name == DEFAULT_SITE,
        "task": getattr(examples, "name", "examples"),
        "site": site.name,
        "layers": list(site.layers),
        "positions": list(reading.labels),
        "width": width,
        "dtype": dtype,
        "shards": list(shards),
    }
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _narrow(activations: Float[Tensor, "..."], dtype: str) -> np.ndarray:
    numbers = activations.cpu().numpy()
    largest = float(np.abs(numbers).max(initial=0.0))
    # As a Python number: NumPy would first cast ``largest`` to float16, where it is infinite.
    if dtype == "float16" and largest > float(np.finfo(np.float16).max):
        raise LensSkillsError(
            f"an activation of {largest:.3g} does not fit float16. Use dtype='float32'."
        )
    return numbers.astype(dtype)
