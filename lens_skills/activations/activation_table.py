"""Activations on disk, our own or another program's: `ActivationTable`, which stands for a model.

`capture` writes one: a new metric on the same inputs then costs no forward pass. The format, for
whoever writes one with something else, is on ``docs/howto/shards.md``; this module reads the
manifest, `shard_files` the activations and `table_rows` the examples.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills import settings
from lens_skills.activations.forward import known_values
from lens_skills.activations.metrics import Metric, parse_metrics
from lens_skills.activations.shard_files import (
    DTYPES,
    WHOLE,
    InMemory,
    ShardFile,
    open_shard,
)
from lens_skills.activations.stream import Batch
from lens_skills.activations.table_rows import (
    TableRows,
    check_distinct,
    checked_columns,
    columns_of,
    joined_columns,
    read_columns,
    release,
)
from lens_skills.cards import card_lines
from lens_skills.contents import content
from lens_skills.data import Example, field_of
from lens_skills.errors import LensSkillsError
from lens_skills.file_names import inside, place_to_read
from lens_skills.progress import Progress
from lens_skills.results import undamaged

FORMAT = 2
MANIFEST = "manifest.json"

_NEEDED: dict[str, tuple[type, str]] = {
    "model": (str, "the model's name"),
    "site": (str, "the hook point within a block, such as 'mlp.hook_post'"),
    "layers": (list, "the numbers of the layers, ascending"),
    "positions": (list, "what was read of each prompt, such as ['last']"),
    "width": (int, "units in one layer"),
    "dtype": (str, "of the activations"),
    "shards": (list, "the files: [{'file': …, 'rows': how many, 'table': …}, …]"),
}
_ALIKE = ("model", "model_fingerprint", "weights", "prompt", "chat", "template", "site", "layers",
          "positions", "width", "dtype", "task")  # fmt: skip

# Rows are read so many at a time, or as many as make so many numbers.
_ROWS_TOGETHER, _NUMBERS_TOGETHER = 128, 1 << 24


@dataclass(frozen=True, eq=False)
class ActivationTable:
    """Activations of one site and some positions for a list of examples, on disk.

    `score`, `rank`, `explain`, `sparse_probe` and others take it in place of a model; a batch of it
    is in memory at a time. Metrics that read the model's output must have come with the rows;
    columns of the task and plain numbers can be new.

    Attributes:
        manifest: Where it came from: model, site, layers, positions, width, dtype.
        shards: Its files of activations.
        examples: Its rows as examples, with their labels, covariates and groups.
        folders: Where it lies.
    """

    manifest: dict[str, Any]
    shards: tuple[ShardFile, ...]
    examples: TableRows
    folders: tuple[Path, ...] = ()

    @classmethod
    def load(cls, *folders: str | Path) -> "ActivationTable":
        """The table in a folder, or in several whose shards fit each other.

        Raises:
            LensSkillsError: No table there, or one that was not finished; a shard that is missing,
                cut, or does not fit the manifest or the others (which, and why).
        """
        places = tuple(place_to_read(folder) for folder in folders)
        with undamaged(", ".join(map(str, places)), "table of activations"):
            table = cls._opened(places)
            release()  # what reading the columns took
            repr(table)  # all that its card needs is there
            return table

    @classmethod
    def _opened(cls, places: tuple[Path, ...]) -> "ActivationTable":
        if not places:
            raise LensSkillsError("no folder to open. Name one that holds a table of activations.")
        manifests = [read_manifest(place) for place in places]
        for place, about in zip(places[1:], manifests[1:], strict=True):
            _check_alike(manifests[0], about, f"{places[0]} and {place}")
        shards, columns, files = [], [], []
        for place, about in zip(places, manifests, strict=True):
            for entry in about["shards"]:
                path = inside(place, entry.get("file"), "a shard", MANIFEST)
                shard = open_shard(path, about, entry["rows"])
                rows = shard.columns
                if entry.get("table") is not None:
                    table = inside(place, entry["table"], "a table of rows", MANIFEST)
                    rows = _beside(rows, read_columns(table), path.name)
                columns.append(checked_columns(rows, shard.n_rows, path.name))
                shards.append(shard)
                files.append(path.name if len(places) == 1 else str(path))
        about = manifests[0]
        rows = TableRows(joined_columns(columns, files), about.get("task", "examples"))
        check_distinct(rows.ids, columns, files)
        shards = [replace(shard, columns=None) for shard in shards]
        table = cls(about, tuple(shards), rows, places)
        table._check_ends()
        return table

    @classmethod
    def of(
        cls,
        activations: Float[Tensor, "row *pos layer neuron"],
        examples: Sequence[Example],
        about: Mapping[str, Any],
        metrics: Mapping[str, Any] | None = None,
    ) -> "ActivationTable":
        """A table in memory; ``about`` are the manifest's entries but for width, dtype and shards.

        ``metrics`` are the model's, a number for each example by their names.
        """
        numbers = activations if activations.ndim == 4 else activations[:, None]
        manifest = {"chat": False, **about, "width": numbers.shape[-1], "dtype": "float32"}
        shard = ShardFile(Path("memory"), len(numbers), {WHOLE: InMemory(numbers)})
        return cls(manifest, (shard,), TableRows(columns_of(examples, metrics)))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it holds."""
        return tuple(self.manifest["layers"])

    @property
    def metrics(self) -> Mapping[str, np.ndarray]:
        """The numbers that came with the rows, by the metric's name."""
        return self.examples.metrics

    @property
    def about(self) -> dict[str, Any]:
        """Which model it is of, and where in it, as results keep it."""
        names = ("model", "site", "layers", "positions")
        about = {name: self.manifest[name] for name in names}
        known = {
            n: self.manifest.get(n) for n in ("model_fingerprint", "d_head", "dtype", "precision")
        }
        about |= {**known, "chat": self.manifest.get("chat", False)}
        about |= {k: v for k, v in self.manifest.items() if k in ("template", "prompt")}
        return about | {"weights": self.manifest.get("weights", known["model_fingerprint"])}

    @property
    def states(self) -> dict[str, str]:
        """Size and time of every shard: what a pass that is resumed must find unchanged."""
        return {
            f"shard {number} ({shard.path.name})": shard.state
            for number, shard in enumerate(self.shards, 1)
        }

    def __repr__(self) -> str:
        about, layers = self.manifest, list(self.layers)
        metrics = ", ".join(self.metrics) or "none"
        which = f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
        lines = [
            f"activations of {about['model']}: {about['site']} at "
            f"{', '.join(map(str, about['positions']))}, {which}, {len(self.examples):,} examples",
            f"metrics of the model's output beside them: {metrics}",
            f"{'on disk in ' if self.folders else ''}{self.called}; score takes it in place of a "
            "model",
        ]
        return "\n".join(line for text in lines for line in card_lines(text))

    def activations(self) -> Float[Tensor, "row *pos layer neuron"]:
        """All activations, in memory, as they were stored."""
        numbers = torch.cat([self._read(shard, np.arange(shard.n_rows)) for shard in self.shards])
        return numbers if numbers.shape[1] > 1 else numbers[:, 0]

    def _read(
        self, shard: ShardFile, places: np.ndarray, at: Sequence[int] | None = None
    ) -> Tensor:
        at = range(len(self.layers)) if at is None else at
        return shard.read(places, at, self.layers)

    def stream(
        self,
        examples: Sequence[Example],
        *,
        metrics: Any = (),
        layers: Sequence[int] | None = None,
        skip: int = 0,
        stop: int | None = None,
        progress: bool = True,
    ) -> Iterator[Batch]:
        """Batches like those of `stream`, read from disk in the order in which they lie there.

        Args:
            examples: Any of the examples the table was written for, in any order.
            metrics: As in `stream`; those of the model must have come with the rows.
            layers: Only these of the table's.
            skip: Batches to leave out at the start, which are not read.
            stop: The batch before which to stop; None: behind the last.
            progress: False for a loop within another one that is shown.
        """
        places = self.places(examples)
        values = self.values(examples, metrics)
        order = np.argsort(places, kind="stable")
        at = [self.layers.index(layer) for layer in (self.layers if layers is None else layers)]
        sizes = self.batch_sizes(len(order), len(at))
        starts = np.cumsum([0, *sizes])
        firsts = np.cumsum([0, *(shard.n_rows for shard in self.shards)])
        done = int(starts[min(skip, len(sizes))])
        with Progress(len(order), "read", "examples", done=done, shown=progress) as shown:
            for number in range(skip, len(sizes) if stop is None else stop):
                index = order[starts[number] : starts[number + 1]]
                yield Batch(
                    index=torch.from_numpy(index),
                    examples=_some(examples, index),
                    activations=self._rows(places[index], firsts, at),
                    mask=None,
                    metrics={name: numbers[index] for name, numbers in values.items()},
                )
                shown.update(len(index))

    def batch_sizes(self, n_examples: int, n_layers: int) -> list[int]:
        """How many examples each batch holds of a pass over so many, and so many layers."""
        n_numbers = len(self.manifest["positions"]) * n_layers * self.manifest["width"]
        size = max(1, min(_ROWS_TOGETHER, _NUMBERS_TOGETHER // n_numbers))
        size = settings.batch_size(size)
        whole, rest = divmod(n_examples, size)
        return [size] * whole + [rest] * (rest > 0)

    def to_send(self) -> "ActivationTable":
        """The same for another process: files by their full paths, nothing of them in memory."""
        return replace(self, shards=tuple(shard.to_send() for shard in self.shards))

    def check_unchanged(self) -> None:
        """Nothing; raises where a shard is not, as it was when it was opened, where this runs.

        Raises:
            LensSkillsError: No such file here, or one of another size or time.
        """
        for shard in self.shards:
            shard.check_unchanged()

    def _rows(
        self, places: np.ndarray, firsts: np.ndarray, at: Sequence[int]
    ) -> Float[Tensor, "row *pos layer neuron"]:
        """Some rows, whose places ascend, in single precision or more; none that is not finite."""
        home = np.searchsorted(firsts, places, side="right") - 1
        parts = []
        for number in np.unique(home).tolist():
            here = places[home == number] - firsts[number]
            part = self._read(self.shards[number], here, at)
            part = part if part.dtype == torch.float64 else part.float()
            # One sum finds nearly all that is wrong; a sum that is too large proves nothing.
            if not bool(part.sum().isfinite()):
                self._check_finite(part, self.shards[number], here, at)
            parts.append(part)
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        return found[:, 0] if found.shape[1] == 1 and not self._listed else found

    @property
    def _listed(self) -> bool:
        """Whether batches have an axis of positions."""
        return len(self.manifest["positions"]) > 1

    def _check_finite(
        self, part: Tensor, shard: ShardFile, rows: np.ndarray, at: Sequence[int]
    ) -> None:
        wrong = (~part.isfinite()).nonzero()
        if len(wrong):
            row, _, layer, unit = wrong[0].tolist()
            first = sum(one.n_rows for one in self.shards[: self.shards.index(shard)])
            raise LensSkillsError(
                f"the shard {shard.path}, row {rows[row]} (id "
                f"{self.examples.ids[first + int(rows[row])]!r}): layer {self.layers[at[layer]]}, "
                f"unit {unit} is {float(part[row, 0, layer, unit])}. Leave the row out, or write "
                "it anew (in bfloat16 or float32, if it was too large for float16)."
            )

    def _check_ends(self) -> None:
        """Refuses what is not finite in the first and the last row of every shard."""
        at = range(len(self.layers))
        for shard in self.shards:
            rows = np.unique([0, shard.n_rows - 1])
            self._check_finite(self._read(shard, rows), shard, rows, at)

    def places(self, examples: Sequence[Example]) -> np.ndarray:
        """The rows of these examples.

        Raises:
            LensSkillsError: Some are not there.
        """
        if examples is self.examples:
            return np.arange(len(examples))
        known = {name: place for place, name in enumerate(self.examples.ids)}
        ids = field_of(examples, "id")
        missing = [name for name in ids if name not in known]
        if missing:
            raise LensSkillsError(
                f"{len(missing)} examples are not in the table {self.called} (first: "
                f"{missing[0]!r}). Capture them, or score the model itself."
            )
        return np.fromiter(map(known.__getitem__, ids), dtype=np.int64, count=len(ids))

    @property
    def called(self) -> str:
        """Where it lies, in words."""
        return ", ".join(map(str, self.folders)) or "in memory"

    def values(self, examples: Sequence[Example], metrics: Any) -> dict[str, Float[Tensor, " row"]]:
        """Metrics of the examples: columns of theirs, or numbers that came with the rows.

        Raises:
            LensSkillsError: A metric of the model that did not come with them.
        """
        wanted = parse_metrics(self.named(metrics), examples)
        found = dict(known_values(wanted, examples))
        places = None
        for metric in wanted:
            if metric.known:
                continue
            if metric.name not in self.metrics:
                stored = ", ".join(self.metrics) or "none"
                raise LensSkillsError(
                    f"{metric.name!r} reads the model's output, which this table does not hold "
                    f"(stored metrics: {stored}). Name it in ls.capture(…, metrics=[…]), or write "
                    "it with the rows."
                )
            places = self.places(examples) if places is None else places
            found[metric.name] = torch.from_numpy(self.metrics[metric.name][places])
        return {metric.name: found[metric.name] for metric in wanted}

    def named(self, metrics: Any) -> Any:
        """The metrics as they were asked for; names of numbers that came with the rows as these.

        >>> table = ActivationTable.of(
        ...     torch.zeros(1, 1, 1), [Example("a", "x")], {"layers": [0]}, {"tone": [2.0]}
        ... )
        >>> table.named("tone").name
        'tone'
        """
        if isinstance(metrics, str) and metrics in self.metrics:
            try:
                return parse_metrics(metrics)[0]
            except LensSkillsError:  # no metric of this package's
                return Metric(metrics, _not_here, frozenset({"stored"}))
        if isinstance(metrics, Mapping):
            return {name: self.named(metric) for name, metric in metrics.items()}
        if isinstance(metrics, list | tuple):
            return [self.named(metric) for metric in metrics]
        return metrics


@content.register
def _(table: ActivationTable) -> Any:
    """What a pass over a table depends on: what it says of itself, and every shard as it is."""
    return {"kind": "ActivationTable", "manifest": content(table.manifest), **table.states}


def _some(examples: Sequence[Example], index: np.ndarray) -> Sequence[Example]:
    first, last = int(index[0]), int(index[-1])
    if isinstance(examples, TableRows) and last - first == len(index) - 1:
        return examples[first : last + 1]  # which makes none unless it is asked for
    return tuple(examples[int(place)] for place in index)


def _not_here(readout: Any, examples: Sequence[Any]) -> Tensor:
    raise LensSkillsError("this metric came with the rows of a table; no model computes it.")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a table, checked.

    Raises:
        LensSkillsError: None there, of another format, or one that lacks something.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LensSkillsError(
            f"no activation table in {folder}. Write one with ls.capture(model, task, path), or "
            f"give the folder that holds {MANIFEST}."
        ) from error
    manifest = manifest if isinstance(manifest, dict) else {}
    found = manifest.get("format")
    if found != FORMAT:
        newer = type(found) is int and found > FORMAT
        anew = "Write it anew with ls.capture, or as the page on shards says."
        raise LensSkillsError(
            f"the table {folder} has format {found!r:.40}, this version reads {FORMAT}. "
            f"{'Update lens-skills, which then reads it.' if newer else anew}"
        )

    def wrong(name: str, what: str) -> LensSkillsError:
        shown = f"{manifest[name]!r:.60}" if name in manifest else "missing"
        return LensSkillsError(f"the manifest of {folder}: {name!r} is {shown}; it is {what}.")

    for name, (kind, what) in _NEEDED.items():
        value = manifest.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or not value:
            raise wrong(name, what)
    layers = manifest["layers"]
    if any(type(layer) is not int or layer < 0 for layer in layers) or layers != sorted({*layers}):
        raise wrong("layers", _NEEDED["layers"][1])
    if manifest["width"] < 1:
        raise wrong("width", _NEEDED["width"][1])
    if manifest["dtype"] not in DTYPES:
        raise wrong("dtype", f"one of {', '.join(DTYPES)}")
    manifest["positions"] = [str(label) for label in manifest["positions"]]
    if not isinstance(manifest.setdefault("chat", False), bool | str):
        raise wrong("chat", "true, false or a system prompt")
    for entry in manifest["shards"]:
        rows = entry.get("rows") if isinstance(entry, dict) else None
        if type(rows) is not int or rows < 1:
            raise LensSkillsError(
                f"the manifest of {folder} has the shard {entry!r:.100}: each is {{'file': …, "
                "'rows': 1 or more}, and 'table': … where its rows stand in a file beside it."
            )
    return manifest


def _check_alike(one: Mapping[str, Any], other: Mapping[str, Any], which: str) -> None:
    for name in _ALIKE:
        if one.get(name) != other.get(name):
            raise LensSkillsError(
                f"the shards of {which} do not fit each other: {name} is {one.get(name)!r:.80} and "
                f"{other.get(name)!r:.80}. Open them apart."
            )


def _beside(own: Any, table: Any, file: str) -> Any:
    """The columns that stand in a shard together with those of its table."""
    if own is None:
        return table
    for name in own.column_names:
        if name in table.column_names:
            raise LensSkillsError(
                f"the shard {file} holds the column {name!r}, and so does its table. Keep one."
            )
        if len(own) != len(table):
            raise LensSkillsError(
                f"the shard {file} has {len(own)} rows and its table {len(table)}. Write one row "
                "for each."
            )
        table = table.append_column(name, own[name])
    return table
