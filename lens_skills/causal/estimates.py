"""`Estimates`: mean effects with their intervals, over grouped examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.stats.bootstrap import cluster_error, cluster_interval


@dataclass(frozen=True, eq=False)
class Estimates:
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
) -> Estimates:
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
    return Estimates(
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
) -> dict[str, dict[str, Estimates]]:
    """The estimates within every class of every column.

    The intervals of a column hold together at 95 %: each is widened to 1 - 0.05 / classes.
    """
    names = list(groups)
    found: dict[str, dict[str, Estimates]] = {}
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
