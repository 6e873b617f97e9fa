"""The options of each row of a table, and which of them its answer names."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lens_skills.errors import LensSkillsError
from lens_skills.tasks.table_files import Columns
from lens_skills.tasks.templates import (
    cells_of,
    column,
    number_of,
    plain,
    plain_missing,
    text_of,
    texts_of,
)

_READ = ("name", "text", "class", "letter", "index", "number")
WAYS = ("text", "letter", "index", "number")
_TRUTH = {True: ("true", "yes"), False: ("false", "no")}


@dataclass(frozen=True)
class Choices:
    """The options of each row.

    Attributes:
        texts: Of each row its options.
        names: Of each row what answers call its options (ARC's labels, the keys of a dict), or
            None where they have no names.
        right: Of each row which option is the answer, once that is known.
    """

    texts: list[tuple[str, ...]]
    names: list[tuple[str, ...]] | None
    right: list[int | None]
    by_name: bool = False
    """Whether answers can be nothing but these names, as where a dict says what each is called."""


def read_options(table: Columns, options: str | Sequence[str] | Mapping[Any, str]) -> Choices:
    """The options of each row: from a column, or the same for all; ``options`` as in `table`."""
    none: list[int | None] = [None] * table.n_rows
    if isinstance(options, Mapping):
        keys = tuple(text_of(key) or "" for key in options)
        return Choices(_of_all(table, tuple(options.values())), [keys] * table.n_rows, none, True)
    if not isinstance(options, str):
        return Choices(_of_all(table, tuple(options)), None, none)
    cells = cells_of(table, options, "options")
    if cells is None:
        cells = column(table, options, "options")
    texts, names = [], []
    for row, cell in enumerate(cells):
        found = _of_cell(cell)
        if found is None:
            raise LensSkillsError(
                f"row {row} of {table.name!r}: the options in column {options!r} are no list of "
                f"texts: {str(cell)[:60]!r}. Give lists (as JSON in a text file), or the options "
                "themselves: options=(' a', ' b')."
            )
        texts.append(found[0])
        names.append(found[1])
    known = [each for each in names if each is not None]
    return Choices(texts, known if len(known) == len(names) else None, none)


def choose(table: Columns, choices: Choices, answer: str, by: str | None) -> list[int | None]:
    """Which option the answer of each row names; None where there is no answer.

    Args:
        table: The rows.
        choices: Their options.
        answer: The column of answers, or a template.
        by: As ``answer_by`` of `table`.

    Raises:
        LensSkillsError: An answer that names none, or answers that can be read in two ways.
    """
    if by is not None and by not in WAYS:
        raise LensSkillsError(f"answer_by={by!r}: it is one of {', '.join(map(repr, WAYS))}.")
    cells = cells_of(table, answer, "answer")
    written = cells is None  # a template of several parts writes the option itself
    if cells is None:
        cells = texts_of(table, answer, "answer")
    values = [None if plain_missing(cell) else cell for cell in cells]
    classes = table.classes.get(answer)
    read = {
        way: [
            None if value is None else _place(way, value, row, choices, classes)
            for row, value in enumerate(values)
        ]
        for way in (("name",) if choices.by_name else _READ)
    }
    fits = {
        way: places
        for way, places in read.items()
        if all(
            (place is None) == (value is None) for place, value in zip(places, values, strict=True)
        )
    }
    if by is not None and not choices.by_name:
        if by not in fits:
            raise _names_none(table, choices, values, read[by], f"its {by}")
        return fits[by]
    # What the table says itself goes before what may be counted.
    texts = written or (table.typed and all(isinstance(v, str) for v in values if v is not None))
    for way, says in (("name", True), ("text", texts or classes is not None), ("class", True)):
        if says and way in fits:
            return fits[way]
    if not fits:
        best = max(read.values(), key=lambda places: sum(place is not None for place in places))
        raise _names_none(table, choices, values, best, "its text, name, letter or number")
    ways = list(fits)
    for way in ways[1:]:
        for row, (one, other) in enumerate(zip(fits[ways[0]], fits[way], strict=True)):
            if one is not None and other is not None and one != other:
                texts, says = choices.texts[row], [_SAID.get(each, each) for each in (ways[0], way)]
                raise LensSkillsError(
                    f"row {row} of {table.name!r}: the answer {values[row]!r} is {texts[one]!r} by "
                    f"its {says[0]}, and {texts[other]!r} by its {says[1]}; both fit every row. "
                    f"Say which: answer_by={ways[0]!r} or {way!r}."
                )
    return fits[ways[0]]


_SAID = {"index": "index (from 0)", "number": "number (from 1)"}


def _names_none(
    table: Columns,
    choices: Choices,
    values: Sequence[Any],
    places: Sequence[int | None],
    ways: str,
) -> LensSkillsError:
    row = next(
        r for r, (v, place) in enumerate(zip(values, places, strict=True))
        if v is not None and place is None
    )  # fmt: skip
    truth = ""
    if isinstance(plain(values[row]), bool):
        truth = " Of true and false say which is which: options={True: ' yes', False: ' no'}."
    names = f" (called {', '.join(choices.names[row])})" if choices.names else ""
    return LensSkillsError(
        f"row {row} of {table.name!r}: the answer {str(values[row])[:60]!r} is not among the "
        f"options {list(choices.texts[row])}{names}, by {ways}. Options contain the answer; a row "
        f"without one has an empty cell.{truth}"
    )


def _place(
    way: str, value: Any, row: int, choices: Choices, classes: tuple[str, ...] | None
) -> int | None:
    """Which option of a row a value names, read in one way; None where it names none."""
    options = choices.texts[row]
    value = plain(value)
    text = text_of(value)
    if text is None:
        return None
    if way == "name":
        names = choices.names[row] if choices.names else ()
        for known, wanted in ((names, text), ([name.lower() for name in names], text.lower())):
            if wanted in known:
                return known.index(wanted)
        return None
    if way == "text":
        if text in options:
            return options.index(text)
        bare = [option.strip() for option in options]
        if isinstance(value, bool):
            bare, wanted = [option.lower() for option in bare], _TRUTH[value]
        else:
            wanted = (text.strip(),)
        found = [place for place, option in enumerate(bare) if option in wanted]
        return found[0] if len(found) == 1 else None
    if way == "class":
        same = classes is not None and len(classes) == len(options) and text in classes
        return classes.index(text) if same and classes is not None else None
    if way == "letter":
        bare = text.strip().rstrip(".)").lstrip("(").upper()
        place = ord(bare) - ord("A") if len(bare) == 1 else -1
    else:
        number = None if isinstance(value, bool) else number_of(text)
        place = int(number) - (way == "number") if isinstance(number, int) else -1
    return place if 0 <= place < len(options) else None


def _of_all(table: Columns, options: Sequence[str]) -> list[tuple[str, ...]]:
    """The same options in every row, or templates over its columns."""
    if wrong := [option for option in options if not isinstance(option, str)]:
        raise LensSkillsError(f"options={options!r}: {wrong[0]!r} is no text.")
    columns = [
        texts_of(table, option, "options") if "{" in option else [option] * table.n_rows
        for option in options
    ]
    rows = []
    for row, texts in enumerate(zip(*columns, strict=True)):
        found = _without_gaps(texts)
        if found is None:
            raise LensSkillsError(
                f"row {row} of {table.name!r}: an option is missing before others: {list(texts)}. "
                "Which one an index names is then not known; fill it or drop the row."
            )
        rows.append(found)
    return rows or [()] * table.n_rows


def _of_cell(cell: Any) -> tuple[tuple[str, ...], tuple[str, ...] | None] | None:
    """The texts of a cell of options and their names, if it has any; None where it holds none."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return None
    if isinstance(cell, Mapping):
        if "text" in cell and "label" in cell:  # ARC, CommonsenseQA, OpenBookQA on the hub
            texts, names = _texts(cell["text"]), _texts(cell["label"])
        else:  # {"A": …, "B": …}
            texts, names = _texts(list(cell.values())), tuple(map(str, cell))
        same = texts is not None and names is not None and len(texts) == len(names)
        return (texts, names) if same and texts is not None else None
    if isinstance(cell, list | tuple) and cell and all(isinstance(part, Mapping) for part in cell):
        if all("text" in part and "label" in part for part in cell):
            return _of_cell({key: [part[key] for part in cell] for key in ("text", "label")})
        return None
    texts = _texts(cell)
    return None if texts is None else (texts, None)


def _texts(cell: Any) -> tuple[str, ...] | None:
    if not isinstance(cell, list | tuple | np.ndarray) or (
        isinstance(cell, np.ndarray) and not cell.ndim
    ):
        return None
    texts = [(value, text_of(value)) for value in cell]
    if any(text is None and not plain_missing(value) for value, text in texts):
        return None
    return _without_gaps([text for _, text in texts])


def _without_gaps(texts: Sequence[str | None]) -> tuple[str, ...] | None:
    """The texts without missing ones at their end; None where one is missing before that."""
    kept = list(texts)
    while kept and kept[-1] is None:
        kept.pop()
    found = tuple(text for text in kept if text is not None)
    return found if len(found) == len(kept) else None
