"""The examples of a table of activations: their columns on disk, and `TableRows`, the examples.

Columns are kept as columns: a hundred thousand examples take tens of megabytes, not hundreds.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from lens_skills.data import Example, ExampleColumns, Field, Value
from lens_skills.errors import LensSkillsError

TEXTS = ("prompt", "answer", "foil", "corrupted")
_KEPT = ("id", "group", "kind", *TEXTS, "options")
_PARTS = {"label:": "labels", "covariate:": "covariates"}
SUFFIXES = (".csv", ".jsonl", ".parquet")
_TOGETHER = 1024  # examples made at once


class TableRows(ExampleColumns):
    """The examples of a table, made one at a time from its columns.

    Attributes:
        name: Of the task they are of, as results name it.
        ids: Of the examples.
        metrics: The numbers that came with the rows, by the metric's name.
        has_text: Whether prompts came with them.
    """

    def __init__(self, columns: Any, name: str = "examples") -> None:
        """``columns`` is a pyarrow table as `read_columns` makes it, already checked."""
        self.name, self.split_name, self.recipe = name, "all", "all"
        names = columns.column_names
        self.ids = _shared(columns["id"])
        self.groups = _shared(columns["group"], self.ids) if "group" in names else self.ids
        self.kinds = _shared(columns["kind"], self.groups) if "kind" in names else self.groups
        self.texts = {name: columns[name] for name in (*TEXTS, "options") if name in names}
        self.has_text = "prompt" in names
        self.parts: dict[str, dict[str, Any]] = {"labels": {}, "covariates": {}}
        self.metrics: dict[str, np.ndarray] = {}
        for column in names:
            start, _, rest = column.partition(":")
            part = _PARTS.get(f"{start}:")
            if part:
                self.parts[part][rest] = _values(columns[column])
            elif column not in _KEPT:
                self.metrics[column] = np.asarray(columns[column]).astype(np.float64)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "TableRows": ...
    def __getitem__(self, index: Any) -> Any:
        """An example, or some of the rows."""
        if not isinstance(index, slice):
            place = range(len(self))[index]
            return next(self.made(place, place + 1))
        start, stop, step = index.indices(len(self))
        found = copy.copy(self)
        found.ids, found.groups, found.kinds = (
            rows[index] for rows in (self.ids, self.groups, self.kinds)
        )
        found.metrics = {name: values[index] for name, values in self.metrics.items()}
        found.parts = {
            part: {name: column[index] for name, column in columns.items()}
            for part, columns in self.parts.items()
        }
        rows = np.arange(start, stop, step)
        found.texts = {
            name: column.slice(start, len(rows)) if step == 1 else column.take(rows)
            for name, column in self.texts.items()
        }
        found.split_name = f"rows {start + 1} to {stop}"
        found.recipe = f"{self.recipe}[{start}:{stop}{'' if step == 1 else f':{step}'}]"
        return found

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), _TOGETHER):
            yield from self.made(start, min(start + _TOGETHER, len(self)))

    def __repr__(self) -> str:
        labels = ", ".join(self.parts["labels"]) or "none"
        return (
            f"{len(self):,} examples of a table of activations, labels {labels}, metrics "
            f"{', '.join(self.metrics) or 'none'}, {'with' if self.has_text else 'without'} text"
        )

    def field(self, name: Field) -> list[str]:
        """Ids, prompts, groups or kinds of the rows."""
        if name == "prompt":
            if not self.has_text:
                return [""] * len(self)
            return [text or "" for text in self.texts["prompt"].to_pylist()]
        return {"id": self.ids, "group": self.groups, "kind": self.kinds}[name]

    def cells(self, name: str, part: str) -> list[Value | None] | None:
        """A column of the labels or covariates; None where there is none called so."""
        column = self.parts[part].get(name)
        return None if column is None else _plain(column)

    def made(self, start: int, stop: int) -> Iterator[Example]:
        """The examples from one place to another."""
        texts = {k: v.slice(start, stop - start).to_pylist() for k, v in self.texts.items()}
        parts = {
            part: {name: _plain(column[start:stop]) for name, column in columns.items()}
            for part, columns in self.parts.items()
        }
        for place in range(stop - start):
            given: dict[str, Any] = {name: cells[place] or None for name, cells in texts.items()}
            given["prompt"] = given.get("prompt") or ""
            given["options"] = tuple(given.get("options") or ())
            for part, columns in parts.items():
                given[part] = {
                    name: column[place]
                    for name, column in columns.items()
                    if column[place] is not None
                }
            row = start + place
            yield Example(id=self.ids[row], group=self.groups[row], kind=self.kinds[row], **given)


def _shared(column: Any, instead: Sequence[str] | None = None) -> list[str]:
    """Texts, each distinct one once in memory; ``instead`` where one is missing or empty."""
    found, once = [], {}
    for chunk in column.chunks:
        for value in chunk.to_pylist():
            found.append(once.setdefault(value, value) if instead is not None else value)
    return found if instead is None else [value or instead[row] for row, value in enumerate(found)]


def _values(column: Any) -> Any:
    """Numbers as an array; texts, and columns with gaps, as a list."""
    import pyarrow.types as types

    if column.null_count == 0 and not types.is_string(column.type):
        return column.to_numpy()
    if types.is_string(column.type):
        encoded = column.combine_chunks().dictionary_encode()
        names = [*(name or None for name in encoded.dictionary.to_pylist()), None]
        return [names[code] for code in encoded.indices.fill_null(-1).to_pylist()]
    return column.to_pylist()


def _plain(values: Any) -> list[Any]:
    return values.tolist() if isinstance(values, np.ndarray) else values


def columns_of(examples: Iterable[Example], metrics: Mapping[str, Any] | None = None) -> Any:
    """The examples, and metrics of them, as a table of columns to write."""
    import pyarrow

    examples = list(examples)
    names = {
        part: dict.fromkeys(name for one in examples for name in getattr(one, kind))
        for part, kind in _PARTS.items()
    }
    columns: dict[str, Any] = {"id": [one.id for one in examples]}
    columns |= {name: [getattr(one, name) for one in examples] for name in ("group", "kind")}
    columns |= {name: [getattr(one, name) for one in examples] for name in TEXTS}
    columns["options"] = [list(one.options) for one in examples]
    for name in ("answer", "foil", "corrupted", "options"):
        if not any(columns[name]):
            del columns[name]
    for part, kind in _PARTS.items():
        for name in names[part]:
            found = [getattr(one, kind).get(name) for one in examples]
            kinds = {type(value) for value in found if value is not None}
            if len(kinds) > 1:  # a column of a file has one type
                number = float if str not in kinds else str
                found = [None if value is None else number(value) for value in found]
            columns[f"{part}{name}"] = found
    arrays = {name: pyarrow.array(column) for name, column in columns.items()}
    for name, values in (metrics or {}).items():
        if name in _KEPT:
            raise LensSkillsError(
                f"a metric cannot be called {name!r} in a table: that is what the examples' own "
                "columns are called. Name it otherwise: metrics={'mine': …}."
            )
        arrays[name] = pyarrow.array(np.asarray(values, dtype=np.float64))
    return pyarrow.table(arrays)


def read_columns(path: Path) -> Any:
    """The columns of a table of rows: a CSV, JSON lines or Parquet file.

    Raises:
        LensSkillsError: No such file, one of another kind, or one that cannot be read.
    """
    import pyarrow
    import pyarrow.csv as csv
    import pyarrow.parquet as parquet

    try:
        if path.suffix == ".csv":
            as_text = {name: pyarrow.string() for name in ("id", "group", "kind", *TEXTS)}
            options = csv.ConvertOptions(column_types=as_text, strings_can_be_null=False)
            cells = csv.ParseOptions(newlines_in_values=True)
            return csv.read_csv(path, convert_options=options, parse_options=cells)
        if path.suffix == ".jsonl":
            return _read_lines(path)
        if path.suffix == ".parquet":
            return parquet.read_table(path)
    except FileNotFoundError as error:
        raise LensSkillsError(
            f"the table of rows {path} is not there, but the manifest names it. Copy it into the "
            "folder."
        ) from error
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise LensSkillsError(f"the table of rows {path} cannot be read: {error}.") from error
    raise LensSkillsError(
        f"the table of rows {path.name} is no {', '.join(SUFFIXES)} file. Write it as one of these."
    )


def _read_lines(path: Path) -> Any:
    import pyarrow
    import pyarrow.json as lines

    reading = lines.ReadOptions(block_size=16 << 20)
    # What is a text is said, or one that looks like a date would be read as one.
    texts = pyarrow.schema([(name, pyarrow.string()) for name in ("id", "group", "kind", *TEXTS)])
    try:
        said = lines.ParseOptions(explicit_schema=texts, newlines_in_values=True)
        found = lines.read_json(path, reading, said)
    except pyarrow.ArrowInvalid:  # ids that are numbers
        found = lines.read_json(path, reading, lines.ParseOptions(newlines_in_values=True))
    none = [n for n in texts.names if n in found.column_names and found[n].null_count == len(found)]
    return found.drop_columns(none)


def checked_columns(columns: Any, n_rows: int, file: str) -> Any:
    """The columns of one shard's rows, in the types that are kept.

    Raises:
        LensSkillsError: Another number of rows than activations, no ids, a metric that is no
            finite number (of which row).
    """
    import pyarrow
    import pyarrow.compute as compute
    import pyarrow.types as types

    if columns is None or "id" not in columns.column_names:
        raise LensSkillsError(
            f"the rows of the shard {file} have no column 'id'. Give every row a name of its own, "
            "in the shard (Parquet; safetensors: whole numbers) or in a table beside it "
            '("table" in the manifest).'
        )
    if len(columns) != n_rows:
        raise LensSkillsError(
            f"the shard {file} has {len(columns)} rows of columns for {n_rows} rows of "
            "activations. Write one for each."
        )
    made = {}
    for name in columns.column_names:
        column = columns[name]
        if types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if types.is_large_string(column.type):
            column = column.cast(pyarrow.string())
        if name in ("id", "group", "kind", *TEXTS):
            column = column.cast(pyarrow.string())
        elif name == "options":
            column = column.cast(pyarrow.list_(pyarrow.string()))
        elif not (
            types.is_null(column.type)
            or types.is_integer(column.type)
            or types.is_floating(column.type)
            or types.is_boolean(column.type)
            or (types.is_string(column.type) and name.startswith(tuple(_PARTS)))
        ):
            raise LensSkillsError(
                f"the shard {file}: the column {name!r} is {column.type}. A metric is a number; "
                "labels and covariates, numbers or texts, are called 'label:…' and 'covariate:…'; "
                f"texts are {', '.join(_KEPT)}."
            )
        if types.is_float16(column.type):
            column = column.cast(pyarrow.float32())
        if types.is_integer(column.type):
            column = column.cast(pyarrow.int64())
        made[name] = column
    ids = made["id"]
    row = next((row for row, value in enumerate(ids.to_pylist()) if not value), None)
    if row is not None:
        raise LensSkillsError(f"the shard {file}: row {row} has no id. Give it one.")
    for name, column in made.items():
        if name in _KEPT or types.is_string(column.type):
            continue
        missing = 0.0 if name.startswith(tuple(_PARTS)) else np.nan  # of a label a row may lack
        numbers = compute.fill_null(column.cast(pyarrow.float64()), missing).to_numpy()
        wrong = np.flatnonzero(~np.isfinite(numbers))
        if len(wrong):
            row = int(wrong[0])
            raise LensSkillsError(
                f"the shard {file}: {name!r} of row {row} (id {ids[row].as_py()!r}) is no finite "
                "number. Leave the row out, or give it a value."
            )
    return pyarrow.table(made)


def release() -> None:
    """Hands memory back that was taken to read columns and is free again."""
    import pyarrow

    pyarrow.default_memory_pool().release_unused()


def joined_columns(tables: Sequence[Any], files: Sequence[str]) -> Any:
    """The columns of all shards one below the other.

    Raises:
        LensSkillsError: A column that a shard lacks, one of another type, ids that repeat.
    """
    import pyarrow

    first = set(tables[0].column_names)
    for table, file in zip(tables, files, strict=True):
        differ = sorted(first ^ set(table.column_names))
        if differ:
            lacks, has = (file, files[0]) if differ[0] in first else (files[0], file)
            raise LensSkillsError(
                f"the shards do not fit each other: {lacks} lacks the column {differ[0]!r}, which "
                f"{has} has. Write the same columns for every shard."
            )
        for name in first:
            kinds = [str(part.schema.field(name).type) for part in (tables[0], table)]
            if kinds[0] != kinds[1] and "string" in kinds:
                raise LensSkillsError(
                    f"the shards do not fit each other: the column {name!r} is {kinds[0]} in "
                    f"{files[0]} and {kinds[1]} in {file}. Write one type."
                )
    return pyarrow.concat_tables(tables, promote_options="permissive")


def check_distinct(ids: Sequence[str], tables: Sequence[Any], files: Sequence[str]) -> None:
    """Nothing; raises where two rows have one id.

    Raises:
        LensSkillsError: Which id, in which shards.
    """
    if len(set(ids)) == len(ids):
        return
    seen: dict[str, str] = {}
    for table, file in zip(tables, files, strict=True):
        for name in table["id"].to_pylist():
            if name in seen:
                where = f"in {file}" if seen[name] == file else f"in {seen[name]} and in {file}"
                raise LensSkillsError(
                    f"the id {name!r} names two rows, {where}. Give every row its own."
                )
            seen[name] = file
