"""Columns of a task: the text fields every example has, and values as an array."""

from typing import Any

import numpy as np

FIELDS = ("id", "prompt", "answer", "foil", "corrupted", "group", "kind")


def column_array(values: list[Any]) -> np.ndarray:
    """Numbers as a numeric array, anything else as objects (texts keep their type)."""
    if all(isinstance(value, int | float) for value in values):
        return np.array(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
