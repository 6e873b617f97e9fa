"""`PaperTable`: a table in print, texts alone: numbers rounded beside their intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from unicodedata import category

import numpy as np

from lens_skills.errors import LensSkillsError

# Control characters and halves of characters end a word, marks of direction are left out.
_OF_CATEGORY = {"Cc": " ", "Cs": " ", "Zl": " ", "Zp": " ", "Cf": ""}
_JOINERS = "\u200c\u200d"  # of letters and emoji
ENDS = ("low", "high")
BY_GROUP = "In brackets: 95 % intervals, by group."
NOTHING = "\N{EN DASH}"
"""In the place of a number that was not measured."""


@dataclass(frozen=True)
class PaperColumn:
    """A column of a table in print.

    Attributes:
        head: With the unit.
        key: Of the rows.
        kind: ``"text"``; ``"number"``; ``"share"``, 0 to 1 and printed in per cent; ``"count"``;
            ``"p"``, of a p or q, with two digits.
        ends: The keys of the ends of its interval.
        signed: Whether numbers above 0 have a plus.
    """

    head: str
    key: str
    kind: Literal["text", "number", "share", "count", "p"] = "text"
    ends: tuple[str, str] | None = None
    signed: bool = False


Parts = tuple[str, list[PaperColumn], Any, str]
"""Of a table: caption, columns, rows (a frame or dicts), and what the rows are, in which order."""


@dataclass(frozen=True)
class PaperTable:
    """A table in print: a caption, the heads of the columns and the rows, all of them texts.

    Attributes:
        caption: Sentences.
        heads: One per column.
        numeric: Which columns are numbers, set to the right.
        rows: As many texts each as there are columns.
    """

    caption: str
    heads: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]


def set_rows(
    caption: str,
    columns: Sequence[PaperColumn],
    rows: Sequence[Mapping[str, Any]],
    *,
    most: int,
    of: str,
    n: int | None = None,
) -> PaperTable:
    """The first rows as texts; how many there are stands in the caption where some are left out.

    Args:
        caption: Sentences.
        columns: What to print.
        rows: From a frame.
        most: How many rows at most.
        of: What the rows are, and their order: ``"associated neurons, best grade first"``.
        n: How many rows there are; default those given.

    Raises:
        LensSkillsError: ``most`` below 1.
    """
    if most < 1:
        raise LensSkillsError(f"most= is how many rows to print, 1 or more, not {most}.")
    n = len(rows) if n is None else n
    if n > most:
        caption = f"{caption} The first {most:,} of {n:,} {of}."
    elif not n:
        caption = f"{caption} There are none: no {of}."
    shown = list(rows[:most])
    texts = [_texts(column, shown) for column in columns]
    return PaperTable(
        caption=printable(caption),
        heads=tuple(printable(column.head) for column in columns),
        numeric=tuple(column.kind != "text" for column in columns),
        rows=tuple(zip(*texts, strict=True)),
    )


def _texts(column: PaperColumn, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cells of a column, all with the same number of decimals."""
    if column.kind == "text":
        return [printable(row.get(column.key)) for row in rows]
    if column.kind == "p":
        return [chance(_number(row.get(column.key))) for row in rows]
    scale = 100 if column.kind == "share" else 1
    values = [scale * _number(row.get(column.key)) for row in rows]
    ends = [[scale * _number(row.get(key)) for key in column.ends or ()] for row in rows]
    digits = 0
    if column.kind != "count":
        halves = [(high - low) / 2 for low, high in filter(None, ends)]
        digits = decimals(halves or values)
        digits = max(digits - 2, 0) if column.kind == "share" else digits
    cells = []
    for value, both in zip(values, ends, strict=True):
        text = rounded(value, digits, signed=column.signed)
        if both and not any(map(math.isnan, both)):
            low, high = (rounded(end, digits, signed=column.signed) for end in both)
            text += f" [{low}, {high}]"
        cells.append(text)
    return cells


def printable(value: Any) -> str:
    """A text in one line, without what cannot be printed or turns the writing direction.

    >>> printable("a\\nb\\u202ec"), printable(None), printable(True)
    ('a bc', '–', 'yes')
    """
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if value is None or value != value:
        return NOTHING
    kept = [c if c in _JOINERS else _OF_CATEGORY.get(category(c), c) for c in str(value)]
    return " ".join("".join(kept).split()) or NOTHING


def _number(value: Any) -> float:
    return math.nan if value is None or isinstance(value, str) else float(value)


def decimals(sizes: Sequence[float]) -> int:
    """Decimals that show numbers of these sizes (half-widths of intervals, where there are some).

    >>> decimals([0.04]), decimals([0.3]), decimals([4.0]), decimals([70.0]), decimals([0.0006])
    (2, 2, 1, 0, 4)
    """
    known = sorted(abs(size) for size in sizes if math.isfinite(size) and size)
    if not known:
        return 2
    typical = known[len(known) // 2]
    if typical >= 1:
        return 1 if typical < 10 else 0
    return min(max(-math.floor(math.log10(typical)), 2), 6)


def rounded(value: float, digits: int, *, signed: bool = False) -> str:
    """A number with a true minus, without a sign where it rounds to 0.

    >>> rounded(-0.351, 2), rounded(0.2, 1, signed=True), rounded(-0.001, 2), rounded(1234.5, 0)
    ('\N{MINUS SIGN}0.35', '+0.2', '0.00', '1,234')
    """
    if not math.isfinite(value):
        return NOTHING if math.isnan(value) else ("∞" if value > 0 else "\N{MINUS SIGN}∞")
    text = f"{value:{'+' if signed else ''},.{digits}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def chance(value: float) -> str:
    """A p or q with two digits.

    >>> chance(0.0077), chance(0.05), chance(9e-5), chance(1.0)
    ('0.0077', '0.05', '9×10⁻⁵', '1')
    """
    if math.isnan(value):
        return NOTHING
    if value == 0 or value >= 1e-4:
        return f"{value:.2g}"
    digits, _, power = f"{value:.2g}".partition("e")
    return f"{digits}×10{str(int(power)).translate(_RAISED)}"


def about(result: Any, *, at: bool = True, on: bool = True) -> str:
    """Model and task, where it was read, on how much: ``(M, agreement; mlp.hook_post at last; …)``.

    What is not known is left out.
    """
    known: Mapping[str, Any] = getattr(result, "provenance", None) or {}
    parts = [", ".join(str(known[key]) for key in ("model", "task") if known.get(key))]
    site, position = getattr(result, "site", ""), getattr(result, "position", "")
    if not isinstance(position, str):
        position = ", ".join(getattr(result, "positions", ()))
    if at and site:
        parts.append(f"{site} at {position}" if position else site)
    if on:
        parts.append(size_of(result))
    said = "; ".join(part for part in parts if part)
    return f" ({said})" if said else ""


def size_of(result: Any) -> str:
    """``384 examples in 32 groups``; "" where a result does not say."""
    n, groups = getattr(result, "n_examples", None), getattr(result, "n_groups", None)
    if not isinstance(n, int):
        return ""
    return f"{n:,} examples" + (f" in {groups:,} groups" if isinstance(groups, int) else "")


def with_unit(head: str, unit: str, *, interval: bool = True) -> str:
    """``effect (nats) [95 %]``."""
    return head + (f" ({unit})" if unit else "") + " [95 %]" * interval
