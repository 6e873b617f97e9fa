"""What is known of the mean of each of several sets of effects, over all examples and by class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.stats.effect_tests import cluster_error, cluster_interval, skewed
from lens_skills.stats.intervals import share_difference


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
        doubtful: Where the intervals are not to be trusted, because group means are too skewed;
            see `skewed`.
        exact: Whether they are exact intervals of shares; see `share_difference`.
    """

    mean: Float[Tensor, " set"]
    error: Float[Tensor, " set"]
    low: Float[Tensor, " set"]
    high: Float[Tensor, " set"]
    low90: Float[Tensor, " set"]
    high90: Float[Tensor, " set"]
    size: Float[Tensor, " set"]
    doubtful: Bool[Tensor, " set"]
    exact: bool = False


def estimate(
    values: Float[Tensor, "set example"],
    groups: Sequence[str],
    *,
    level: float = 0.95,
    shares: bool = False,
    n_draws: int = 2000,
    seed: int = 0,
) -> EffectEstimates:
    """Mean, error, intervals and standardised size of each set.

    Args:
        values: One number per example.
        groups: Each example's group.
        level: Of ``low`` and ``high``; ``low90`` and ``high90`` are always of 90 %.
        shares: The numbers are changes of a metric that is 0 or 1, from -1 to 1, whose intervals
            are those of `share_difference`.
        n_draws, seed: Of the bootstrap.

    >>> found = estimate(torch.zeros(1, 3), ["a", "b", "c"])
    >>> found.low.item(), found.size.item()
    (0.0, 0.0)
    """
    values = values.double()
    mean = values.mean(dim=1)
    if shares:
        low, high = share_difference(values, groups, level=level)
        low90, high90 = share_difference(values, groups, level=0.9)
    else:
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
        doubtful=torch.zeros(len(mean), dtype=torch.bool) if shares else skewed(values, groups),
        exact=shares,
    )


Classes = Mapping[str, Mapping[str, Bool[Tensor, " example"]]]
"""For each column, which examples have each of its values."""


def estimate_classes(
    values: Float[Tensor, "set example"],
    groups: Sequence[str],
    classes: Classes,
    *,
    shares: bool = False,
    n_draws: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, EffectEstimates]]:
    """The estimates within every class of every column.

    The intervals of a column hold together at 95 %: each is widened to 1 - 0.05 / classes.
    ``shares`` as in `estimate`.
    """
    names = list(groups)
    found: dict[str, dict[str, EffectEstimates]] = {}
    for column, members in classes.items():
        found[column] = {}
        for value, mask in members.items():
            inside = [names[place] for place in mask.nonzero()[:, 0].tolist()]
            found[column][value] = estimate(
                values[:, mask],
                inside,
                level=1 - 0.05 / len(members),
                shares=shares,
                n_draws=n_draws,
                seed=seed,
            )
    return found
