"""`table` and `pairs`: a Task from any table of prompts, or of prompts and their corrupted twins.

A table is a file, a DataFrame or a data set; texts are left as they were written.
"""

import csv
import io
import json
import math
import string
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lens_skills.data import Example, Value
from lens_skills.errors import LensSkillsError, did_you_mean
from lens_skills.tasks.task import Task, Texts

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


def read_frame(source: Any, numbers: Collection[str]) -> tuple[pd.DataFrame, str]:
    """The rows as a DataFrame, and a name for them; of a CSV only ``numbers`` may become numbers.

    >>> read_frame([{"text": "07"}], ())[0]["text"].tolist()
    ['07']
    """
    if isinstance(source, pd.DataFrame):
        return source, "table"
    if isinstance(source, str | Path):
        return _read(Path(source), numbers), Path(source).stem
    if hasattr(source, "to_pandas"):  # a Hugging Face Dataset, without importing that library
        return source.to_pandas(), "table"
    if isinstance(source, Sequence) and all(isinstance(row, Mapping) for row in source):
        return pd.DataFrame(list(source), dtype=object), "table"
    splits = ""
    if isinstance(source, Mapping):  # a DatasetDict
        splits = f" with the keys {sorted(map(str, source))}: pass one of its splits"
    raise LensSkillsError(
        f"a table is a {', '.join(SUFFIXES)} file, a DataFrame, a Hugging Face Dataset or a list "
        f"of dicts, not a {type(source).__name__}{splits}."
    )


def read_text(path: Path) -> str:
    """The text of a file as it was written, line ends within quotes included.

    Raises:
        LensSkillsError: It cannot be read as UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise LensSkillsError(f"cannot read {str(path)!r}: {error}.") from error


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The line each row of a CSV file begins on, and its cells; empty lines left out.

    Raises:
        LensSkillsError: It cannot be read, or its quotes do not match (with the line).
    """
    # Not by lines: a quoted cell may hold line ends, and these are part of its text.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    begins = 1
    try:
        for cells in reader:
            if cells:
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise LensSkillsError(
            f"{path}, line {begins}: {error}. A double quote inside a quoted text is written twice."
        ) from error


def template_slots(template: str, otherwise: str) -> list[str]:
    """The names in braces.

    Raises:
        LensSkillsError: What ``otherwise`` says, where braces do not match.

    >>> template_slots("{a} and {b}", "no template")
    ['a', 'b']
    """
    try:
        pieces = string.Formatter().parse(template)
        return [name for _, name, _, _ in pieces if name is not None]
    except ValueError as error:
        raise LensSkillsError(f"{otherwise}: {error}.") from None


def _read(path: Path, numbers: Collection[str]) -> pd.DataFrame:
    if path.suffix not in SUFFIXES:
        raise LensSkillsError(
            f"cannot read {str(path)!r}: its ending is none of {', '.join(SUFFIXES)}."
        )
    if not path.is_file():
        raise LensSkillsError(f"no file {str(path)!r}.")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix in (".csv", ".tsv"):
            return _read_separated(path, "," if path.suffix == ".csv" else "\t", numbers)
        lines = path.suffix == ".jsonl"
        return pd.DataFrame(_records(path.read_text(encoding="utf-8"), lines), dtype=object)
    except (ValueError, OSError) as error:  # what pandas, json and pyarrow raise are ValueErrors
        raise LensSkillsError(f"cannot read {str(path)!r}: {error}") from error


def _read_separated(path: Path, separator: str, numbers: Collection[str]) -> pd.DataFrame:
    # Texts stay as written: pandas would read the answer "07" as 7 and "None" or "NA" as missing.
    # Only labels and covariates may become numbers; an empty cell is missing.
    names = pd.read_csv(path, sep=separator, nrows=0, encoding="utf-8").columns
    types: dict[Hashable, Any] = {column: str for column in names if column not in numbers}
    return pd.read_csv(
        path,
        sep=separator,
        dtype=types,
        keep_default_na=False,
        na_values=[""],
        encoding="utf-8",
    )


def _records(text: str, lines: bool) -> list[Any]:
    """The objects of a JSON Lines or JSON text, with the line or the item that is not one."""
    if lines:
        records = []
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                try:
                    records.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number} is not JSON ({error})") from error
    else:
        records = json.loads(text)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError("it is not a list of objects, one per example")
    return records


def table(
    path_or_frame: Any,
    *,
    prompt: str,
    answer: str | None = None,
    foil: str | None = None,
    options: str | Sequence[str] | None = None,
    corrupted: str | None = None,
    labels: str | Sequence[str] = (),
    covariates: str | Sequence[str] = (),
    group: str | None = None,
    kind: str | None = None,
    id: str | None = None,
    name: str | None = None,
    paraphrases: Mapping[str, str | tuple[str, str]] | None = None,
) -> Task:
    """A Task with one example per row of a table.

    Each text is a column's name or a template over columns: ``answer="word"`` or
    ``answer=" {word}"``. The answer is used exactly as given: most tokenizers join a space to the
    word after it, so a prompt that ends in a word takes answers that begin with a space. Whole
    numbers become texts without a point, an empty cell in a text means there is none.

    Args:
        path_or_frame: A .csv, .tsv, .jsonl, .json (a list of objects) or .parquet file, a
            DataFrame, a Hugging Face ``datasets.Dataset`` or a list of dicts.
        prompt: Column or template, e.g. "{premise} Question: {hypothesis}".
        answer, foil, corrupted: Columns or templates, all optional.
        options: The column that holds each row's list of options (as JSON in a text cell), or the
            options of every row themselves, as texts or templates: (" yes", " no").
        labels, covariates: Columns; numpy numbers become Python numbers.
        group: Column of examples never to be separated; None keeps identical prompts together.
        kind: Column of input types for the control task.
        id: Column of unique names; None numbers the rows from 0.
        name: The task's name; None takes the file's.
        paraphrases: Other wordings of the prompts by name, each a column or template; with
            ``corrupted``, two of them: of the prompt and of its twin. See `Task.paraphrases`.

    Raises:
        LensSkillsError: unreadable table, a column that is not there (with the nearest name),
            a missing prompt, label or covariate (with its row).

    >>> rows = [{"text": "The key", "verb": "is"}, {"text": "The keys", "verb": "are"}]
    >>> task = table(rows, prompt="text", answer=" {verb}", options=(" is", " are"))
    >>> task[1].answer, task[1].options
    (' are', (' is', ' are'))
    """
    labels = (labels,) if isinstance(labels, str) else tuple(labels)
    covariates = (covariates,) if isinstance(covariates, str) else tuple(covariates)
    frame, found_name = read_frame(path_or_frame, {*labels, *covariates})
    if not len(frame):
        raise LensSkillsError(f"the table {found_name!r} has no rows. Give at least one.")
    texts = {
        field: _texts(frame, source, field)
        for field, source in (
            ("prompt", prompt), ("answer", answer), ("foil", foil), ("corrupted", corrupted),
            ("group", group), ("kind", kind), ("id", id),
        )
        if source is not None
    }  # fmt: skip
    for field in ("prompt", "group", "kind", "id"):
        if None in texts.get(field, ()):
            raise LensSkillsError(
                f"row {texts[field].index(None)} of {found_name!r} has no {field}. "
                "Fill it or drop the row."
            )
    label_rows = _values(frame, labels, "label", found_name)
    covariate_rows = _values(frame, covariates, "covariate", found_name)
    option_rows = _options(frame, options, found_name)
    twins: dict[tuple[str | None, ...], str] = {}
    examples = []
    for row in range(len(frame)):
        fields: dict[str, Any] = {field: values[row] for field, values in texts.items()}
        fields.setdefault("id", str(row))
        # A prompt seen in two splits would leak, and so would a pair and its mirror image.
        texts_of_row = {fields["prompt"], fields.get("corrupted") or fields["prompt"]}
        fields.setdefault("group", twins.setdefault(tuple(sorted(texts_of_row)), fields["id"]))
        examples.append(
            Example(
                **fields,
                options=option_rows[row],
                labels=label_rows[row],
                covariates=covariate_rows[row],
            )
        )
    ids = [example.id for example in examples]
    wordings = {
        wording: dict(zip(ids, _wording(frame, texts, wording, corrupted is not None), strict=True))
        for wording, texts in (paraphrases or {}).items()
    }
    return Task(name or found_name, examples, wordings=wordings)


def _wording(
    frame: pd.DataFrame, texts: str | tuple[str, str], name: str, twins: bool
) -> list[Texts]:
    """One wording of every row's prompt, and of its twin where there are twins."""
    sources = (texts,) if isinstance(texts, str) else tuple(texts)
    if len(sources) != 1 + twins:
        raise LensSkillsError(
            f"the wording {name!r} is {texts!r}: give one template for the prompts"
            + (" and one for their corrupted twins." if twins else ", as there are no twins.")
        )
    prompts, *others = [_texts(frame, source, f"the wording {name!r}") for source in sources]
    if None in prompts:
        raise LensSkillsError(f"row {prompts.index(None)} has no text for the wording {name!r}.")
    twin_texts = others[0] if twins else [None] * len(prompts)
    return [(text or "", twin) for text, twin in zip(prompts, twin_texts, strict=True)]


def _column(frame: pd.DataFrame, name: str, role: str) -> list[Any]:
    if name not in frame.columns:
        names = [str(column) for column in frame.columns]
        raise LensSkillsError(
            f"no column {name!r} for {role}.{did_you_mean(name, names)} "
            f"The table has: {', '.join(names)}."
        )
    return frame[name].tolist()


def _texts(frame: pd.DataFrame, source: str, role: str) -> list[str | None]:
    """One text per row from a column or a template; None where a cell is missing."""
    if source in frame.columns:
        return [_text(value) for value in _column(frame, source, role)]
    names = template_slots(source, f"{role}={source!r} is no column and no template")
    if not names:
        _column(frame, source, role)  # raises, naming the nearest column
    cells = {name: [_text(value) for value in _column(frame, name, role)] for name in names}
    parsed = list(string.Formatter().parse(source))

    def fill(row: int) -> str | None:
        pieces = [(text, cells[name][row] if name else "") for text, name, _, _ in parsed]
        if any(cell is None for _, cell in pieces):
            return None
        return "".join(f"{text}{cell}" for text, cell in pieces)

    return [fill(row) for row in range(len(frame))]


def _text(value: Any) -> str | None:
    """A cell as text; None if it is missing. 7.0 is "7": a gap turns a column into floats."""
    value = _plain(value)
    if value is None:
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _plain(value: Any) -> Any:
    """A cell as plain Python, with None for any of the ways to say missing."""
    if isinstance(value, np.generic):
        value = value.item()
    missing = value is None or value is pd.NaT or value is pd.NA
    return None if missing or (isinstance(value, float) and math.isnan(value)) else value


def _values(
    frame: pd.DataFrame, names: Sequence[str], role: str, table: str
) -> list[dict[str, Value]]:
    """The labels or covariates of each row, none of them missing."""
    cells = {name: [_plain(value) for value in _column(frame, name, role)] for name in names}
    for name, values in cells.items():
        if None in values:
            raise LensSkillsError(
                f"the {role} {name!r} is missing in {values.count(None)} of {len(values)} rows of "
                f"{table!r}, first in row {values.index(None)}. Fill it or drop those rows."
            )
    return [{name: values[row] for name, values in cells.items()} for row in range(len(frame))]


def _options(
    frame: pd.DataFrame, options: str | Sequence[str] | None, table: str
) -> list[tuple[str, ...]]:
    """The options of each row: from a column of lists, or the same for all."""
    if options is None:
        return [()] * len(frame)
    if not isinstance(options, str):
        columns = [
            _texts(frame, option, "options") if "{" in option else [option] * len(frame)
            for option in options
        ]
        return [
            tuple(text for text in row if text is not None) for row in zip(*columns, strict=True)
        ]
    rows = []
    for row, cell in enumerate(_column(frame, options, "options")):
        if isinstance(cell, str):
            try:
                cell = json.loads(cell)
            except json.JSONDecodeError:
                cell = None
        if not isinstance(cell, list | tuple | np.ndarray):
            raise LensSkillsError(
                f"row {row} of {table!r}: the options in column {options!r} are no list. Give "
                "lists (as JSON in a text file), or the options themselves: options=(' a', ' b')."
            )
        rows.append(tuple(text for value in cell if (text := _text(value)) is not None))
    return rows


def pairs(
    frame: Any,
    *,
    clean: str,
    corrupted: str | None = None,
    answer: str | None = None,
    foil: str | None = None,
    group: str | None = None,
    labels: str | Sequence[str] = (),
    covariates: str | Sequence[str] = (),
    kind: str | None = None,
    name: str = "pairs",
    paraphrases: Mapping[str, str | tuple[str, str]] | None = None,
) -> Task:
    """A Task of contrast pairs: the clean prompt asks for the answer, the corrupted for the foil.

    Each argument names a column (texts may be templates, as in ``table``). Without ``group``, a
    pair and its mirror image (clean and corrupted exchanged) stay together in splits.

    Args:
        frame: A DataFrame, or anything else ``table`` reads.
        clean: Column of the prompts.
        corrupted: Column of the twins, best of the same length in tokens, so they can be patched.
        answer: Column of right continuations of the clean prompt, leading space included.
        foil: Column of right continuations of the corrupted prompt.
        group: Column of examples never to be separated.
        labels: Columns to look for in neurons.
        covariates: Columns that could explain a neuron away.
        kind: Column of input types for the control task.
        name: The task's name.
        paraphrases: Other wordings by name: of the clean prompt and of its corrupted twin.

    Raises:
        LensSkillsError: as ``table`` does.

    >>> task = pairs([{"a": "The key", "b": "The keys", "yes": " is", "no": " are"}],
    ...              clean="a", corrupted="b", answer="yes", foil="no")
    >>> task[0].corrupted, task[0].foil
    ('The keys', ' are')
    """
    return table(
        frame,
        prompt=clean,
        corrupted=corrupted,
        answer=answer,
        foil=foil,
        group=group,
        labels=labels,
        covariates=covariates,
        kind=kind,
        name=name,
        paraphrases=paraphrases,
    )
