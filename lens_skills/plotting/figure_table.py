"""The table of a figure as files: numbers as CSV, everything else as JSON, equal when read back."""

import io
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype

from lens_skills.errors import LensSkillsError

# What a column holds: text ("" where missing), numbers (NaN), whole numbers or flags (None).
TEXT, NUMBER, WHOLE, FLAG = "text", "number", "whole", "flag"
_KINDS = {
    "string": TEXT,
    "categorical": TEXT,
    "empty": NUMBER,
    "floating": NUMBER,
    "mixed-integer-float": NUMBER,
    "integer": WHOLE,
    "boolean": FLAG,
}
_FLAGS = {"True": True, "False": False, "": None}


def columns_of(frame: pd.DataFrame) -> dict[str, str]:
    """What each column holds.

    >>> columns_of(pd.DataFrame({"name": ["a"], "r": [0.5], "n": [3], "passed": [True]}))
    {'name': 'text', 'r': 'number', 'n': 'whole', 'passed': 'flag'}
    """
    kinds = {}
    for name, column in frame.items():
        kind = _KINDS.get(infer_dtype(column, skipna=True), TEXT)
        kinds[str(name)] = NUMBER if kind == WHOLE and column.isna().any() else kind
    return kinds


def plain_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as it comes back from its CSV: rows by number, one type a column.

    >>> plain_table(pd.DataFrame({"name": ["a", None], "n": [1, None]})).to_dict("list")
    {'name': ['a', ''], 'n': [1.0, nan]}
    """
    kinds = columns_of(frame)
    return pd.DataFrame(
        {
            name: _column([*frame.iloc[:, place]], kinds[name])
            for place, name in enumerate(map(str, frame.columns))
        },
        index=range(len(frame)),
    )


def _column(values: list[Any], kind: str) -> pd.Series:
    if kind == NUMBER:
        return pd.Series([math.nan if pd.isna(v) else float(v) for v in values], dtype=np.float64)
    if kind == WHOLE:
        return pd.Series(values, dtype=np.int64)
    gaps = [bool(pd.isna(v)) for v in values]
    if kind == FLAG:
        flags = [None if gap else bool(v) for v, gap in zip(values, gaps, strict=True)]
        return pd.Series(flags, dtype=object if any(gaps) else bool)
    texts = ["" if gap else str(v) for v, gap in zip(values, gaps, strict=True)]
    return pd.Series(texts, dtype=object)


def write_table(frame: pd.DataFrame) -> bytes:
    """The table as CSV; every number has all its digits."""
    return frame.to_csv(index=False, lineterminator="\n").encode(errors="backslashreplace")


def read_table(content: bytes, columns: Mapping[str, str]) -> pd.DataFrame:
    """The table that `write_table` wrote, to the last bit.

    Raises:
        LensSkillsError: Other columns, or a value that is not of its column's kind.
    """
    frame = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    if list(frame) != list(columns):
        raise LensSkillsError(
            f"the table holds the columns {', '.join(frame)}, not {', '.join(columns)}."
        )
    return pd.DataFrame(
        {name: _read(name, frame[name].tolist(), kind) for name, kind in columns.items()},
        index=range(len(frame)),
    )


def _read(name: str, texts: list[str], kind: str) -> pd.Series:
    try:
        if kind == NUMBER:
            return _column([float(text) if text else math.nan for text in texts], kind)
        if kind == WHOLE:
            return _column([int(text) for text in texts], kind)
        return _column([_FLAGS[text] for text in texts] if kind == FLAG else texts, kind)
    except (ValueError, KeyError) as error:
        raise LensSkillsError(
            f"the column {name!r} holds a value that is no {kind}: {error}."
        ) from error


def plain_json(value: Any) -> Any:
    """The value as it comes back from JSON; a number that is not finite is None.

    >>> plain_json({"ends": (1, float("inf")), 2: np.float64(0.5)})
    {'ends': [1, None], '2': 0.5}
    """
    return json.loads(json.dumps(_plain(value)))


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # an array or a tensor, or one number of it
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
