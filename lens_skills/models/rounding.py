"""How far two ways to compute the same log-probabilities may be from one another."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference from the clean log-probabilities; half precision is given `ROUNDED`."""

ROUNDED = {torch.float16: 0.05, torch.bfloat16: 0.15}
"""Of half precision, the mean difference as a share of the log-probabilities' spread, up to 4 nats;
packed weights, which round what they multiply, and passes in bfloat16 are given bfloat16's."""


def distance(
    adapter: Any, found: Float[Tensor, "*some d_vocab"], wanted: Float[Tensor, "*row d_vocab"]
) -> tuple[float, float]:
    """How far log-probabilities are from those of another way to compute them, and how far may be.

    The largest difference in full precision, else the mean one: single values scatter there.
    """
    gap = (found - wanted).abs()
    rounded = adapter.packed or adapter.precision is not None
    if adapter.dtype in TOLERANCE and not rounded:
        return float(gap.amax()), TOLERANCE[adapter.dtype]
    share = ROUNDED[torch.bfloat16 if rounded else adapter.dtype]
    return float(gap.mean()), share * min(max(float(wanted.std(-1).mean()), 0.01), 4.0)
