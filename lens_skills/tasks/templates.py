"""Templates over the columns of a table, and cells as the text they are written as."""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lens_skills.errors import LensSkillsError, did_you_mean
from lens_skills.tasks.table_files import Columns

_SLOT = re.compile(r"^(?P<column>[^\[\]]*)(?P<path>(\[[^\[\]]+\])*)$")
_CONVERSIONS = {"r": repr, "s": str, "a": ascii}
_WHOLE = re.compile(r"[-+]?(0|[1-9]\d*)", re.ASCII)
_DECIMAL = re.compile(r"[-+]?(0|[1-9]\d*)?(\.\d*)?([eE][-+]?\d+)?", re.ASCII)
_LONGEST = 15  # digits that a number of the machine holds exactly; longer ones are names


class Slot(NamedTuple):
    """A piece of a template: its text, then a column, the way into its cells, and a format."""

    text: str
    column: str | None
    path: tuple[str, ...]
    spec: str
    conversion: str | None


def template_slots(template: str, otherwise: str) -> list[str]:
    """The names in braces.

    Raises:
        LensSkillsError: What ``otherwise`` says, where braces do not match or a format is none of
            texts.

    >>> template_slots("{a} and {b}", "no template")
    ['a', 'b']
    """
    try:
        pieces = list(string.Formatter().parse(template))
        for _, name, spec, conversion in pieces:
            if name is not None and spec:
                format("", spec)
            if conversion and conversion not in _CONVERSIONS:
                raise ValueError(f"!{conversion} is none of !r, !s, !a")
        return [name for _, name, _, _ in pieces if name is not None]
    except (ValueError, OverflowError, MemoryError) as error:
        raise LensSkillsError(f"{otherwise}: {error}.") from None


def column(table: Columns, name: str, role: str) -> list[Any]:
    """The cells of a column.

    Raises:
        LensSkillsError: There is none, with the nearest name.
    """
    if name not in table.cells:
        names = list(table.cells)
        header = (
            ""
            if table.typed
            else " Where the first line is a row already, name its columns: header=[…]."
        )
        raise LensSkillsError(
            f"no column {name!r} for {role}.{did_you_mean(name, names)} "
            f"The table has: {', '.join(names)}.{header}"
        )
    return table.cells[name]


def cells_of(table: Columns, source: str, role: str) -> list[Any] | None:
    """The cells of a column, or what one slot alone names in them; None for other templates."""
    if source in table.cells:
        return table.cells[source]
    slots = _slots(table, source, role)
    if len(slots) != 1 or slots[0].text or slots[0].spec or slots[0].conversion:
        return None
    return [_at(table, slots[0], row, role) for row in range(table.n_rows)]


def texts_of(table: Columns, source: str, role: str) -> list[str | None]:
    """One text per row from a column or a template; None where a cell is missing."""
    if source in table.cells:
        return [_text(value, table, row, source) for row, value in enumerate(table.cells[source])]
    slots = _slots(table, source, role)

    def fill(row: int) -> str | None:
        pieces = []
        for slot in slots:
            pieces.append(slot.text)
            if slot.column is None:
                continue
            value = plain(_at(table, slot, row, role))
            if value is None:
                return None
            pieces.append(_formatted(value, slot, table, row))
        return "".join(pieces)

    return [fill(row) for row in range(table.n_rows)]


def plain(value: Any) -> Any:
    """A cell as plain Python, with None for any of the ways to say missing.

    >>> plain(np.float64("nan")) is None
    True
    """
    if isinstance(value, np.generic):
        value = value.item()
    missing = value is None or value is pd.NaT or value is pd.NA
    return None if missing or (isinstance(value, float) and value != value) else value


def text_of(value: Any) -> str | None:
    """A cell as text; None where it is missing, or is no text, number or date.

    7.0 is "7": a gap turns a column into floats.

    >>> text_of(7.0), text_of(["a"])
    ('7', None)
    """
    value = plain(value)
    if value is None or isinstance(value, _NO_TEXT):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


_NO_TEXT = (list, tuple, set, frozenset, dict, Mapping, np.ndarray, bytes, bytearray, memoryview)


def number_of(text: str) -> int | float | None:
    """The number that a text writes; None for none, and for one that would lose a sign of it.

    "007" and numbers of more than 15 digits are names.

    >>> number_of("12"), number_of("1e-3"), number_of("007"), number_of("NA")
    (12, 0.001, None, None)
    """
    bare = text.strip()
    if not any(sign.isdigit() for sign in bare) or len(bare) > 40:
        return None
    if _WHOLE.fullmatch(bare):
        return int(bare) if len(bare.lstrip("+-")) <= _LONGEST else None
    if not _DECIMAL.fullmatch(bare):
        return None
    try:
        found = float(bare)
    except ValueError:
        return None
    return found if abs(found) < float("inf") else None


def typed(cells: Sequence[str | None]) -> list[Any]:
    """The cells of a text file as numbers, or as true and false, where every one of them is.

    >>> typed(["1", "2.5"]), typed(["007", "12"]), typed(["True", "False"])
    ([1.0, 2.5], ['007', '12'], [True, False])
    """
    texts = [cell for cell in cells if cell is not None]
    for true, false in (("True", "False"), ("true", "false"), ("TRUE", "FALSE")):
        if texts and set(texts) <= {true, false}:
            return [None if cell is None else cell == true for cell in cells]
    found = [None if cell is None else number_of(cell) for cell in cells]
    if None in [n for n, cell in zip(found, cells, strict=True) if cell is not None]:
        return list(cells)
    if any(isinstance(number, float) for number in found):  # as a column of a DataFrame
        return [None if number is None else float(number) for number in found]
    return found


def _slots(table: Columns, source: str, role: str) -> list[Slot]:
    otherwise = f"{role}={source!r} is no column and no template"
    try:
        pieces = list(string.Formatter().parse(source))
    except ValueError as error:
        raise LensSkillsError(f"{otherwise}: {error}.") from None
    slots = []
    for text, name, spec, conversion in pieces:
        path: tuple[str, ...] = ()
        if name is not None and name not in table.cells:
            match = _SLOT.fullmatch(name)
            if match is not None and match["path"]:
                name, path = match["column"], tuple(match["path"][1:-1].split("]["))
            column(table, name, role)
        if conversion and conversion not in _CONVERSIONS:
            raise LensSkillsError(f"{otherwise}: !{conversion} is none of !r, !s, !a.")
        if spec and "{" in spec:
            raise LensSkillsError(f"{otherwise}: a format of braces within braces is not read.")
        slots.append(Slot(text, name, path, spec or "", conversion))
    if not any(slot.column is not None for slot in slots):
        column(table, source, role)  # raises, naming the nearest column
    return slots


def _at(table: Columns, slot: Slot, row: int, role: str) -> Any:
    """The value that a slot names in a row."""
    assert slot.column is not None
    value = table.cells[slot.column][row]
    for key in slot.path:
        if plain_missing(value):
            return None
        try:
            if isinstance(value, Mapping):
                value = value[key]
            elif isinstance(value, list | tuple | np.ndarray):
                value = value[int(key)]
            else:
                raise TypeError
        except (KeyError, IndexError, ValueError, TypeError):
            raise LensSkillsError(
                f"row {row} of {table.name!r}: {role} asks for [{key}] of {slot.column!r}, which "
                f"is {str(value)[:80]!r} there."
            ) from None
    return value


def plain_missing(value: Any) -> bool:
    """Whether a cell is one of the ways to say missing."""
    return not isinstance(value, _NO_TEXT) and plain(value) is None


def _text(value: Any, table: Columns, row: int, name: str) -> str | None:
    if isinstance(value, _NO_TEXT):
        what = {dict: "an object", bytes: "bytes"}.get(type(value), "a list")
        way = "decode them" if isinstance(value, bytes) else f"write one, {{{name}[0]}}, or join it"
        if isinstance(value, Mapping):
            way = f"write one of its values, {{{name}[{next(iter(value), 'key')}]}}"
        raise LensSkillsError(
            f"row {row} of {table.name!r}: {name!r} is {what} and no text: {str(value)[:60]}. "
            f"In a template {way} first."
        )
    try:
        return text_of(value)
    except ValueError as error:  # a whole number of thousands of digits
        raise LensSkillsError(f"row {row} of {table.name!r}, {name!r}: {error}.") from None


def _formatted(value: Any, slot: Slot, table: Columns, row: int) -> str:
    text = _text(value, table, row, slot.column or "") or ""
    if slot.conversion:
        text = value = _CONVERSIONS[slot.conversion](value)
    if not slot.spec:
        return text
    tries = [value, number_of(text), int(float(text)) if text_is_whole(text) else None]
    for each in tries:
        try:
            if each is not None:
                return format(each, slot.spec)
        except (ValueError, TypeError, OverflowError, MemoryError):
            continue
    raise LensSkillsError(
        f"row {row} of {table.name!r}: {text[:60]!r} in {slot.column!r} cannot be written as "
        f"{{{slot.column}:{slot.spec}}}."
    )


def text_is_whole(text: str) -> bool:
    """Whether a text writes a whole number, of at most 15 digits."""
    number = number_of(text)
    return number is not None and float(number).is_integer()
