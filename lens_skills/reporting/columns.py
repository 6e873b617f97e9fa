"""`Column`: one number per example, as a figure takes it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Real
from torch import Tensor

from lens_skills.errors import LensSkillsError

# Lengths are compared by hand, so that the message says which is short.
Column = (
    Real[Tensor, " _"]
    | Bool[Tensor, " _"]
    | Real[np.ndarray, " _"]
    | Bool[np.ndarray, " _"]
    | Sequence[float]
)


def finite(column: Column, what: str) -> np.ndarray:
    """A column as float64.

    Raises:
        LensSkillsError: A value that is not finite (whose).
    """
    found = numbers(column)
    if not np.isfinite(found).all():
        place = int(np.flatnonzero(~np.isfinite(found))[0])
        raise LensSkillsError(f"the {what} of example {place} is {found[place]}, not a number.")
    return found


def numbers(column: Column) -> np.ndarray:
    """A column as float64, whatever its values."""
    plain = column.detach().cpu().numpy() if isinstance(column, Tensor) else column
    return np.asarray(plain, dtype=np.float64)
