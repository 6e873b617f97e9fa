"""Tables as columns of cells: files, DataFrames, data sets and lists of dicts, all alike.

Cells are kept as they were written. Every row of a text file is counted against its lines.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from lens_skills.errors import LensSkillsError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
PACKED = ".gz"

# What a file begins with that is no UTF-8 text, and what to do about it.
_BEGINS = {
    b"\xff\xfe": "it is UTF-16. Save it as UTF-8",
    b"\xfe\xff": "it is UTF-16. Save it as UTF-8",
    b"PK\x03\x04": "it is a zip archive, as .xlsx and .ods files are. Save the sheet as CSV, or "
    "unpack it",
    b"\x1f\x8b": "it is compressed. Call it .gz after its own ending (.csv.gz)",
    b"PAR1": "it is a Parquet file. Call it .parquet",
}
Lines = list[tuple[int, list[str]]]
"""Rows of cells, each with the number of the line it begins on."""


@dataclass(frozen=True)
class Columns:
    """The cells of a table by column, as many in each.

    Attributes:
        cells: By the column's name.
        name: The table's: its file's, or "table".
        n_rows: How many.
        classes: The names of the classes of a column of class ids (a ClassLabel); its cells are
            these names.
        typed: False where every cell is a text, because the file knows nothing else.
    """

    cells: Mapping[str, list[Any]]
    name: str
    n_rows: int
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    typed: bool = True


def read_columns(
    source: Any, *, header: Sequence[str] | None = None, quotes: bool | None = None
) -> Columns:
    """The columns of any table; ``header`` and ``quotes`` as `table` takes them.

    >>> read_columns([{"text": "07"}, {"text": None, "n": 1}]).cells
    {'text': ['07', None], 'n': [None, 1]}
    """
    if isinstance(source, str | Path):
        return _of_file(Path(source), header, quotes)
    if header is not None or quotes is not None:
        raise LensSkillsError("header= and quotes= are for .csv and .tsv files.")
    if isinstance(source, pd.DataFrame):
        names = [str(name) for name in source.columns]
        _check_names(names, "the DataFrame")
        cells = {name: source.iloc[:, place].tolist() for place, name in enumerate(names)}
        return Columns(cells, "table", len(source))
    if hasattr(source, "features") and hasattr(source, "num_rows"):  # a Hugging Face Dataset
        plain = source.with_format(None) if hasattr(source, "with_format") else source
        features = dict(source.features or {})
        classes = {name: _names(getattr(kind, "names", None)) for name, kind in features.items()}
        return _named_classes(dict(plain.to_dict()), "table", len(plain), classes)
    once = hasattr(source, "features") and hasattr(source, "take")  # an IterableDataset
    if hasattr(source, "to_pandas") and not once:
        return read_columns(source.to_pandas())
    if isinstance(source, Sequence) and all(isinstance(row, Mapping) for row in source):
        return _of_records(source, "table")
    more = ""
    if isinstance(source, Mapping):  # a DatasetDict
        more = f" with the keys {sorted(map(str, source))}: pass one of its splits"
    elif once:
        more = ", which is read once: pass list(data.take(1000))"
    raise LensSkillsError(
        f"a table is a {', '.join(SUFFIXES)} file, a DataFrame, a Hugging Face Dataset or a list "
        f"of dicts, not a {type(source).__name__}{more}."
    )


def file_kind(path: Path) -> str:
    """The ending that says what a file holds, in small letters: that before ``.gz``, if packed.

    >>> file_kind(Path("a.CSV")), file_kind(Path("b.jsonl.gz"))
    ('.csv', '.jsonl')
    """
    return (path.with_suffix("") if path.suffix.lower() == PACKED else path).suffix.lower()


def read_text(path: Path) -> str:
    """The text of a file as it was written, line ends within quotes included.

    Raises:
        LensSkillsError: It cannot be read as UTF-8, with the byte where it fails.
    """
    try:
        if path.is_dir():
            raise LensSkillsError(f"cannot read {str(path)!r}: it is a folder. Name a file in it.")
        data = path.read_bytes()
        if path.suffix.lower() == PACKED:
            data = gzip.decompress(data)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error
        raise LensSkillsError(f"cannot read {str(path)!r}: {reason}.") from error
    for begins, what in _BEGINS.items():
        if data.startswith(begins):
            raise LensSkillsError(f"cannot read {str(path)!r}: {what}.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start
        raise LensSkillsError(
            f"cannot read {str(path)!r}: byte {at} (line {data.count(10, 0, at) + 1}) is "
            f"0x{data[at]:02x}, which is no UTF-8. Save it as UTF-8; if it is Latin-1: "
            "path.write_text(path.read_text('latin-1'), 'utf-8')."
        ) from error
    if "\0" in text:
        raise LensSkillsError(
            f"cannot read {str(path)!r}: byte {data.index(0)} is 0, which no text file holds. "
            "Save it as UTF-8 text."
        )
    return text


def text_lines(text: str) -> list[str]:
    """The lines of a text: only the line ends of files divide it, not U+2028 or U+0085."""
    return re.split(r"\r\n|\r|\n", text)


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is none, is nested too deeply, or an object holds a key twice.

    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ...
    ValueError: the key 'a' stands twice in one object
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json_lines(path: Path, text: str | None = None) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with its line; empty lines left out.

    Raises:
        LensSkillsError: A line that is no JSON object.
    """
    found = []
    for number, line in enumerate(text_lines(read_text(path) if text is None else text), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise LensSkillsError(
                f"{str(path)!r}, line {number} is not JSON ({error}): {line[:60]!r}."
            ) from error
        if not isinstance(row, dict):
            hint = " A file that is one list is called .json." if isinstance(row, list) else ""
            raise LensSkillsError(
                f"{str(path)!r}, line {number} is no JSON object: {line[:60]!r}.{hint}"
            )
        found.append((number, row))
    return found


def read_separated(
    path: Path, *, header: Sequence[str] | None = None, quotes: bool | None = None
) -> tuple[list[str], Lines]:
    """The names of the columns of a CSV or TSV file, and its rows; empty lines left out.

    A CSV follows RFC 4180: a text in double quotes may hold separators, line ends and quotes
    written twice. TSV files of texts are often written without such quoting: where only one
    reading makes every row as long as the header, it is that one. What can be read both ways is
    refused. A separator at the end of every row makes no column.

    Raises:
        LensSkillsError: It cannot be read, has no header, repeats a name, or a row has more or
            fewer cells (with its line).
    """
    if isinstance(header, str):
        raise LensSkillsError(f"header={header!r}: give the names of the columns as a list.")
    text = read_text(path)
    first = next((line for line in text_lines(text) if line.strip()), "")
    if not first:
        raise LensSkillsError(f"cannot read {str(path)!r}: the file is empty.")
    tabs = file_kind(path) in (".tsv", ".txt")
    separator = "\t" if tabs else next((mark for mark in ",;\t" if mark in first), ",")
    plain = _fitted([*enumerate(_split_lines(text, separator), start=1)], header)
    chosen: tuple[list[str], Lines] | str
    if '"' not in text or quotes is False:
        chosen = plain
    else:
        chosen = quoted = _quoted(text, separator, header)
        if quotes is None and not isinstance(plain, str):
            chosen = _choose(plain, quoted, tabs)
    if isinstance(chosen, str):
        raise LensSkillsError(f"{str(path)!r}, {chosen}")
    names = [name or f"Unnamed: {place}" for place, name in enumerate(chosen[0])]
    _check_names(names, f"{str(path)!r}, line 1:")
    return names, chosen[1]


def _of_file(path: Path, header: Sequence[str] | None, quotes: bool | None) -> Columns:
    kind, name = file_kind(path), path.name.split(".")[0] or path.name
    if kind not in SUFFIXES or (kind == ".parquet" and path.suffix.lower() == PACKED):
        raise LensSkillsError(
            f"cannot read {str(path)!r}: its ending is none of {', '.join(SUFFIXES)} (texts also "
            f"with {PACKED} after it). Save a sheet as CSV; unpack an archive."
        )
    if kind in (".csv", ".tsv"):
        names, rows = read_separated(path, header=header, quotes=quotes)
        cells: dict[str, list[Any]] = {
            each: [row[place] or None for _, row in rows] for place, each in enumerate(names)
        }
        return Columns(cells, name, len(rows), typed=False)
    if header is not None or quotes is not None:
        raise LensSkillsError(f"header= and quotes= are for .csv and .tsv files, not {path.name}.")
    if kind == ".parquet":
        return _of_parquet(path, name)
    if kind == ".jsonl":
        return _of_records([row for _, row in read_json_lines(path)], name)
    text = read_text(path)
    try:
        data = parse_json(text)
    except ValueError as error:
        if "Extra data" not in str(error):
            raise LensSkillsError(f"cannot read {str(path)!r} as JSON: {error}.") from error
        data = [row for _, row in read_json_lines(path, text)]  # JSON Lines under another name
    return _of_json(path, name, data)


def _of_json(path: Path, name: str, data: Any) -> Columns:
    if isinstance(data, list) and all(isinstance(row, dict) for row in data):
        return _of_records(data, name)
    if isinstance(data, dict) and data:
        # As pandas writes a table by default: per column its cells by row.
        columns = list(data.values())
        if all(isinstance(column, dict) and [*column] == [*columns[0]] for column in columns):
            cells = {key: list(column.values()) for key, column in data.items()}
            return Columns(cells, name, len(columns[0]))
        if all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns) and not any(
            isinstance(cell, dict) for cell in columns[0]
        ):
            return Columns(data, name, len(columns[0]))
        lists = [key for key, value in data.items() if isinstance(value, list)]
        inside = f" It is an object; save its list {lists[0]!r} as a file." if lists else ""
    else:
        inside = ""
    raise LensSkillsError(
        f"cannot read {str(path)!r}: it is not a list of objects, one per example.{inside}"
    )


def _of_parquet(path: Path, name: str) -> Columns:
    import pyarrow.parquet as parquet

    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "there is no such file"
        raise LensSkillsError(f"cannot read {str(path)!r}: {what}.")
    try:
        found = parquet.read_table(str(path))
        cells = {
            key: found.column(place).to_pylist() for place, key in enumerate(found.column_names)
        }
        written = parse_json(((found.schema.metadata or {}).get(b"huggingface") or b"{}").decode())
    except Exception as error:  # whatever a damaged file makes pyarrow raise
        raise LensSkillsError(f"cannot read {str(path)!r} as Parquet: {error}") from error
    _check_names(found.column_names, f"{str(path)!r}:")
    info = written.get("info") if isinstance(written, dict) else None
    features = info.get("features") if isinstance(info, dict) else None
    classes = {
        key: _names(kind.get("names"))
        for key, kind in (features if isinstance(features, dict) else {}).items()
        if isinstance(kind, dict) and key in cells
    }
    return _named_classes(cells, name, found.num_rows, classes)


def _of_records(rows: Iterable[Mapping[Any, Any]], name: str) -> Columns:
    rows = list(rows)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    _check_names([str(key) for key in keys], f"the table {name!r}:")
    return Columns({str(key): [row.get(key) for row in rows] for key in keys}, name, len(rows))


def _named_classes(
    cells: dict[str, list[Any]], name: str, n_rows: int, classes: Mapping[str, tuple[str, ...]]
) -> Columns:
    """Class ids as the names of their classes; -1 is none, as in the hub's unlabelled splits."""
    known = {key: names for key, names in classes.items() if names}
    for key, names in known.items():
        for row, value in enumerate(cells[key]):
            if isinstance(value, int) and not -1 <= value < len(names):
                raise LensSkillsError(
                    f"row {row} of {name!r}: {key!r} is {value}, which is none of its "
                    f"{len(names)} classes {', '.join(names[:5])}."
                )
        cells[key] = [
            (None if value == -1 else names[value]) if isinstance(value, int) else value
            for value in cells[key]
        ]
    return Columns(cells, name, n_rows, known)


def _names(names: Any) -> tuple[str, ...]:
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _check_names(names: Sequence[str], where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise LensSkillsError(
            f"{where} {names.count(twice[0])} columns are called {twice[0]!r}. Give each its own "
            "name."
        )


def _split_lines(text: str, separator: str) -> list[list[str]]:
    return [line.split(separator) if line else [] for line in text_lines(text)]


def _quoted(
    text: str, separator: str, header: Sequence[str] | None
) -> tuple[list[str], Lines] | str:
    """The rows by RFC 4180, or what speaks against it."""
    before = csv.field_size_limit(len(text) + 1)
    rows: Lines = []
    begins = 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for cells in reader:
            rows.append((begins, cells))
            begins = reader.line_num + 1
    except csv.Error as error:
        return (
            f"line {begins}: {error}. A double quote inside a quoted text is written twice; where "
            "quotes are part of the texts and enclose none, say quotes=False."
        )
    finally:
        csv.field_size_limit(before)
    return _fitted(rows, header)


def _fitted(rows: Lines, header: Sequence[str] | None) -> tuple[list[str], Lines] | str:
    """Names and rows of one length, or the first row that has another."""
    # A lone "" is a row whose cell is missing; a line of white space is none.
    filled = [
        row for row in rows if row[1] and (len(row[1]) > 1 or row[1] == [""] or row[1][0].strip())
    ]
    at = 1
    if header is None:
        if not filled:
            return "line 1: no names of columns, and no rows."
        (at, names), filled = filled[0], filled[1:]
        names = list(names)
    else:
        names = [str(name) for name in header]
        if filled and filled[0][1] == names:
            return (
                f"line {filled[0][0]} holds the names in header= already. Leave header= out: the "
                "first line names the columns."
            )
    if len(names) > 1 and not names[-1] and all(not cells[-1] for _, cells in filled):
        names = names[:-1]
    width = len(names)
    if filled and all(len(cells) == width + 1 and not cells[-1] for _, cells in filled):
        filled = [(line, cells[:-1]) for line, cells in filled]
    for line, cells in filled:
        if len(cells) != width:
            of = "header= has" if header is not None else f"line {at} has"
            many = f"{len(cells)} cell{'s' * (len(cells) != 1)}"
            return (
                f"line {line}: {many}, where {of} {width} columns: "
                f"{' | '.join(cells)[:60]!r}. A cell that holds the separator stands in double "
                "quotes."
            )
    return names, filled


def _choose(
    plain: tuple[list[str], Lines], quoted: tuple[list[str], Lines] | str, tabs: bool
) -> tuple[list[str], Lines] | str:
    """Of a file that can be read without quoting, the reading that it was written in."""
    if isinstance(quoted, str):
        return plain if tabs else quoted
    say = "Say quotes=False where they are part of the texts, quotes=True where they enclose them."
    if len(plain[1]) != len(quoted[1]):
        if tabs and len(plain[0]) > 1:
            return plain  # line by line every row fits: no cell goes over several lines by chance
        return (
            f"lines 1 to {plain[1][-1][0]}: double quotes make {len(quoted[1])} rows of "
            f"{len(plain[1])} lines, and both fit. {say}"
        )
    if plain == quoted or not tabs or plain[0] != quoted[0]:
        return quoted
    cells = [
        (line, cell)
        for (line, ours), (_, theirs) in zip(plain[1], quoted[1], strict=True)
        for cell, other in zip(ours, theirs, strict=True)
        if cell != other
    ]
    if any('""' in cell[1:-1] for _, cell in cells):
        return quoted
    line, cell = cells[0]
    return (
        f"line {line}: the cell {cell[:60]!r} stands in double quotes that it does not need. {say}"
    )
