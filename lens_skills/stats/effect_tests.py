"""Whether an effect matters: mean effects with intervals, and the one rule they are held against.

`estimate` gives means with cluster-bootstrap intervals; `delta_from_controls` the smallest effect
that matters; `beyond`, `equivalent` and `opposed` say where an interval lies with respect to it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.stats.bootstrap import cluster_error, cluster_interval


@dataclass(frozen=True, eq=False)
class EffectEstimates:
    """What is known of the mean of each of several sets of per-example numbers.

    Attributes:
        mean: Over examples.
        error: Its cluster-robust standard error.
        low, high: Ends of the studentised cluster-bootstrap interval, 95 % unless asked otherwise.
        low90, high90: Of the 90 % interval, which the test of equivalence reads.
        size: Standardised: the mean over the standard deviation of the examples (0 where the mean
            is 0).
    """

    mean: Float[Tensor, " set"]
    error: Float[Tensor, " set"]
    low: Float[Tensor, " set"]
    high: Float[Tensor, " set"]
    low90: Float[Tensor, " set"]
    high90: Float[Tensor, " set"]
    size: Float[Tensor, " set"]


def estimate(
    values: Float[Tensor, "set example"],
    groups: Sequence[str],
    *,
    level: float = 0.95,
    n_draws: int = 2000,
    seed: int = 0,
) -> EffectEstimates:
    """Mean, error, intervals and standardised size of each set.

    >>> found = estimate(torch.zeros(1, 3), ["a", "b", "c"])
    >>> found.low.item(), found.size.item()
    (0.0, 0.0)
    """
    values = values.double()
    mean = values.mean(dim=1)
    low, high = cluster_interval(values, groups, level=level, n_draws=n_draws, seed=seed)
    low90, high90 = cluster_interval(values, groups, level=0.9, n_draws=n_draws, seed=seed)
    spread = values.std(dim=1, correction=0)
    return EffectEstimates(
        mean=mean,
        error=cluster_error(values, groups),
        low=low,
        high=high,
        low90=low90,
        high90=high90,
        size=torch.where(mean == 0, 0.0, mean / spread),
    )


Classes = Mapping[str, Mapping[str, Bool[Tensor, " example"]]]
"""For each column, which examples have each of its values."""


def estimate_classes(
    values: Float[Tensor, "set example"],
    groups: Sequence[str],
    classes: Classes,
    *,
    n_draws: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, EffectEstimates]]:
    """The estimates within every class of every column.

    The intervals of a column hold together at 95 %: each is widened to 1 - 0.05 / classes.
    """
    names = list(groups)
    found: dict[str, dict[str, EffectEstimates]] = {}
    for column, members in classes.items():
        found[column] = {}
        for value, mask in members.items():
            inside = [names[place] for place in mask.nonzero()[:, 0].tolist()]
            found[column][value] = estimate(
                values[:, mask], inside, level=1 - 0.05 / len(members), n_draws=n_draws, seed=seed
            )
    return found


def opposition(
    values: Float[Tensor, "set example"], members: Mapping[str, Bool[Tensor, " example"]]
) -> Float[Tensor, " set"]:
    """How far a set's class means lie on both sides of 0: min(largest, -smallest), at least 0.

    >>> first = torch.tensor([True, False])
    >>> opposition(torch.tensor([[2.0, -1.0], [2.0, 1.0]]), {"a": first, "b": ~first}).tolist()
    [1.0, 0.0]
    """
    means = torch.stack([values[:, mask].double().mean(dim=1) for mask in members.values()])
    return torch.minimum(means.max(dim=0).values, -means.min(dim=0).values).clamp(min=0)


def cluster_p(values: Float[Tensor, "set example"], groups: Sequence[str]) -> Float[Tensor, " set"]:
    """Two-sided p of each mean being 0: t = mean / cluster-robust error, groups - 1 degrees.

    Numbers that do not vary give 0 or, if they are 0, 1; a single group gives 1.

    Source: Cameron, Gelbach & Miller 2008 (cluster-robust error, Student's t with G - 1).

    >>> cluster_p(torch.tensor([[1.0, -1.0, 1.0, -1.0]]), ["a", "b", "c", "d"]).item()
    1.0
    """
    from scipy.stats import t as student

    mean, error = values.double().mean(1), cluster_error(values, groups)
    ratio = torch.where(mean == 0, 0.0, mean.abs() / error)
    n_groups = len(set(groups))
    if n_groups < 2:
        return torch.ones_like(mean)
    return torch.from_numpy(2 * student.sf(ratio.numpy(), n_groups - 1)).reshape(mean.shape)


Ends = Float[Tensor, "*set"] | float
"""The lower or upper ends of intervals, or one of them."""


def delta_from_controls(effects: Float[Tensor, " control"]) -> float:
    """The smallest effect that matters: the 95th percentile of the controls' |mean effect|.

    Raises:
        LensSkillsError: It is 0: the edit changes nothing in 95 % of them.
    """
    delta = float(effects.abs().double().quantile(0.95))
    if delta == 0:
        raise LensSkillsError(
            "δ would be 0: the edit changes nothing in 95 % of the other neurons. Declare it in "
            "the metric's unit: delta=…"
        )
    return delta


def beyond(low: Ends, high: Ends, delta: float) -> Any:
    """-1 or 1 where the whole interval [low, high] is below -delta or above delta, else 0.

    >>> beyond(0.3, 0.4, 0.2), beyond(-0.4, -0.3, 0.2), beyond(0.1, 0.4, 0.2)
    (1, -1, 0)
    """
    return (low > delta) * 1 - (high < -delta) * 1


def equivalent(low: Ends, high: Ends, delta: float) -> Any:
    """Whether the 90 % interval [low, high] lies inside [-delta, delta].

    Two one-sided tests at 5 %: both "effect <= -delta" and "effect >= delta" are rejected.

    Source: Schuirmann 1987.

    >>> equivalent(torch.tensor([-0.1, -0.1]), torch.tensor([0.1, 0.3]), 0.2).tolist()
    [True, False]
    """
    return (low >= -delta) & (high <= delta)


def opposed(sides: Iterable[int]) -> bool:
    """Whether some intervals lie beyond delta on one side and some on the other; see `beyond`."""
    return {-1, 1} <= set(sides)


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
