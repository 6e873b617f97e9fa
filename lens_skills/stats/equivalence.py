"""No effect larger than δ: two one-sided tests, and how many examples an answer would take."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def equivalent(
    low: Float[Tensor, "*set"], high: Float[Tensor, "*set"], delta: float
) -> Bool[Tensor, "*set"]:
    """Whether the 90 % interval [low, high] lies inside [-delta, delta].

    Two one-sided tests at 5 %: both "effect <= -delta" and "effect >= delta" are rejected.

    Source: Schuirmann 1987.

    >>> equivalent(torch.tensor([-0.1, -0.1]), torch.tensor([0.1, 0.3]), 0.2).tolist()
    [True, False]
    """
    return (low >= -delta) & (high <= delta)


def examples_needed(
    mean: float, error: float, delta: float, n_examples: int, *, power: float = 0.8
) -> int | None:
    """How many examples would settle an undecided effect, should its mean and spread stay.

    The standard error shrinks with the root of the number of examples. Beyond delta, its 95 %
    interval must clear delta: n (z_0.975 + z_power)² se² / (|mean| - delta)². Within delta, both
    one-sided tests must reject, the two misses sharing 1 - power: n (z_0.95 + z_(1+power)/2)² se² /
    (delta - |mean|)². None where no number would do: the effect is as large as delta to rounding,
    or its error is unknown.

    Source: Schuirmann 1987; normal approximation.

    >>> examples_needed(0.3, 0.1, 0.1, 100)
    197
    """
    gap = abs(abs(mean) - delta)
    if not math.isfinite(error) or gap <= 1e-9 * delta:
        return None
    beyond = abs(mean) > delta
    z = (
        _quantile(0.975) + _quantile(power)
        if beyond
        else _quantile(0.95) + _quantile((1 + power) / 2)
    )
    return max(math.ceil(n_examples * (z * error / gap) ** 2), n_examples + 1)


def _quantile(share: float) -> float:
    return float(torch.special.ndtri(torch.tensor(share, dtype=torch.float64)))
