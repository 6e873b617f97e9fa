"""What ``--json`` prints: one object, with the name and the version of its format."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

VERSION = 1
"""Of the objects; a key that changes its meaning gets another number, one that is new does not."""

ROWS, ITEMS = 200, 100


def envelope(command: str, values: Mapping[str, Any]) -> str:
    """The text of one object: ``format``, ``version``, then the values."""
    whole = {"format": f"lens-skills/{command}", "version": VERSION, **values}
    return json.dumps(plain(whole), indent=1, allow_nan=False)


def result_values(result: Any) -> dict[str, Any]:
    """A result: its kind, its card, its short fields, its notes, and the first rows of its table.

    ``rows`` are the first 200 of ``n_rows``; the saved result has all.
    """
    values = {"kind": type(result).__name__, "card": repr(result).split("\n")}
    for item in fields(result):
        value = getattr(result, item.name)
        if _short(value):
            values[item.name] = plain(value)
        elif is_dataclass(value) and hasattr(value, "frame"):
            values[item.name] = result_values(value)  # a study's steps
    table = getattr(result, "evidence", None) or getattr(result, "frame", None)
    if table is not None:
        rows = table()
        values |= {"n_rows": len(rows), "rows": plain(rows.head(ROWS))}
    return values


def _short(value: Any) -> bool:
    if value is None or isinstance(value, str | int | float):
        return True
    if isinstance(value, Mapping):
        return len(value) <= ITEMS and all(map(_short, value.values()))
    return isinstance(value, list | tuple) and len(value) <= ITEMS and all(map(_short, value))


def plain(value: Any) -> Any:
    """A value as JSON knows it; a number that is not finite is null.

    >>> from pathlib import PurePosixPath
    >>> plain({"r": float("nan"), 1: PurePosixPath("a")})
    {'r': None, '1': 'a'}
    """
    if hasattr(value, "to_dict") and hasattr(value, "columns"):  # a table
        return [plain(row) for row in value.to_dict("records")]
    if hasattr(value, "tolist"):  # an array, or one number of it
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    return str(value)
