"""What a random sample, drawn without replacement, says of the population it was drawn from."""

import math
from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor


def count_interval(found: int, drawn: int, total: int, *, level: float = 0.95) -> tuple[int, int]:
    """How many of a population have a property that ``found`` of ``drawn`` at random have.

    The counts K that a hypergeometric test keeps: those under which neither so few nor so many
    are drawn in less than (1 - level) / 2 of the samples. At least those that were found.

    Args:
        found: Of the sample, 0 to ``drawn``.
        drawn: The sample's size, 0 to ``total``; of none nothing is known.
        total: The population's size, the sample in it.
        level: Coverage, 0.95 for a 95 % interval. Exact, so conservative.

    Source: Wright 1991, Exact Confidence Bounds when Sampling from Small Finite Universes.
    Assumes: a simple random sample without replacement, and a property fixed before it was drawn.

    >>> count_interval(0, 500, 42_000), count_interval(3, 3, 3)
    ((0, 306), (3, 3))
    """
    # Imported here: SciPy's statistics take a second to load and --help must not wait for them.
    from scipy.stats import hypergeom

    tail, most = (1 - level) / 2, total - (drawn - found)
    low = _first(found, most, lambda k: hypergeom.sf(found - 1, total, k, drawn) > tail)
    high = _first(low, most, lambda k: hypergeom.cdf(found, total, k + 1, drawn) <= tail)
    return low, high


def _first(low: int, high: int, holds: Callable[[int], Any]) -> int:
    """The first number that holds; all after it do, and ``high`` is taken to."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def total_from_sample(
    values: Float[Tensor, " drawn"],
    guesses: Float[Tensor, " drawn"],
    guessed_total: float,
    total: int,
    *,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """The sum of a number over a population, from a sample of it and a guess for everyone.

    Σ guesses + N · mean(value - guess); its interval from Student's t and the finite population's
    standard error. The better the guesses, the narrower.

    Args:
        values: Of those drawn.
        guesses: Theirs.
        guessed_total: The sum of everyone's guess.
        total: The population's size.
        level: Coverage, 0.95 for a 95 % interval.

    Returns:
        The estimate and the ends of its interval; NaN ends where fewer than two were drawn.

    Source: Cochran 1977, section 7.2 (the difference estimator). Simulated coverage with 900 of
    40,000 drawn .94 to .96; with 100 drawn .95 to .97, .88 where tails are as heavy as those of a
    log-normal of sd 1.5 times Student's t of 3.
    Assumes: a simple random sample without replacement.

    >>> import torch
    >>> total_from_sample(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 3.0]), 10.0, 5)
    (10.0, 10.0, 10.0)
    """
    from scipy.stats import t

    n, errors = len(values), values.double() - guesses.double()
    if n == 0:
        return math.nan, math.nan, math.nan
    estimate = guessed_total + total * float(errors.mean())
    if n == 1:
        return estimate, math.nan, math.nan
    spread = float(errors.std()) * math.sqrt((1 - n / total) / n)
    half = float(t.ppf((1 + level) / 2, n - 1)) * total * spread
    return estimate, estimate - half, estimate + half


def student_interval(
    values: Float[Tensor, "*set draw"], *, level: float = 0.95
) -> tuple[Float[Tensor, "*set"], Float[Tensor, "*set"], Float[Tensor, "*set"]]:
    """The mean of a few independent numbers, and the ends of Student's interval of it.

    Args:
        values: One number per draw, such as per seed.
        level: Coverage, 0.95 for a 95 % interval.

    Returns:
        Mean, low and high; NaN ends of a single draw.

    Source: Student 1908.
    Assumes: independent draws of about normal numbers; five of them cannot show that they are.

    >>> import torch
    >>> [round(float(end), 3) for end in student_interval(torch.tensor([1.0, 2.0, 3.0]))]
    [2.0, -0.484, 4.484]
    """
    from scipy.stats import t

    values, n = values.double(), values.shape[-1]
    mean = values.mean(-1)
    if n < 2:
        return mean, mean + math.nan, mean + math.nan
    half = float(t.ppf((1 + level) / 2, n - 1)) * values.std(-1) / math.sqrt(n)
    return mean, mean - half, mean + half
