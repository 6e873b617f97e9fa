"""Shares of hits with intervals, and the paired differences of methods.

Two methods are tried on the same examples and name some of the same neurons, so their shares are
not independent. An interval here is over neurons like those named and over groups of examples: the
variance between neurons, and beside it what the resampled groups move in common
(`common_covariance`). `difference_interval` is of one method against another on one task;
`differences_over_tasks` is over several.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.stats.intervals import wilson_interval

Z = 1.959963984540054
"""Of a 95 % interval."""


def common_covariance(
    lists: Sequence[Sequence[str]],
    hits: Mapping[str, Bool[Tensor, " draw"]],
    size: Sequence[int] | None = None,
) -> Float[Tensor, "list other"]:
    """The covariance of the lists' shares that the resampled groups give them in common.

    Over the draws, the covariance of the shares less what each neuron does by itself,
    Σ_i w_i v_i var(hit_i) over the neurons both name: that part is counted with the neurons.

    Args:
        lists: The names in each list.
        hits: Of each neuron, whether it is a hit in each resample of the groups.
        size: What each list's count is divided by; default its length.
    """
    names = sorted({name for names in lists for name in names})
    place = {name: row for row, name in enumerate(names)}
    weights = torch.zeros(len(lists), len(names), dtype=torch.float64)
    for row, members in enumerate(lists):
        n = len(members) if size is None else size[row]
        for name in members:
            weights[row, place[name]] += 1 / max(n, 1)
    if not names:
        return torch.zeros(len(lists), len(lists), dtype=torch.float64)
    drawn = torch.stack([hits[name] for name in names]).double()
    centred = drawn - drawn.mean(dim=1, keepdim=True)
    shares = weights @ centred
    alone = centred.square().mean(dim=1)
    return shares @ shares.T / drawn.shape[1] - (weights * alone) @ weights.T


def share_of_hits(hits: int, n: int, common: float = 0.0) -> tuple[float, float]:
    """The 95 % interval of a share of hits, over neurons and groups.

    Wilson's for n* neurons, n* = n v / (v + common): v = p (1 - p) / n with p = (hits + 1) / (n +
    2), the variance between neurons, and ``common`` that of the groups (negative counts as 0).

    Args:
        hits, n: How many of how many.
        common: The share's own entry in `common_covariance`.

    >>> low, high = share_of_hits(0, 20)
    >>> (low, round(high, 2)), share_of_hits(0, 0)
    ((0.0, 0.16), (0.0, 1.0))
    """
    if n == 0:
        return 0.0, 1.0
    p = (hits + 1) / (n + 2)
    between = p * (1 - p) / n
    return wilson_interval(hits / n, max(n * between / (between + max(common, 0.0)), 1.0))


def difference_interval(
    first: Mapping[str, bool], second: Mapping[str, bool], common: float = 0.0
) -> tuple[float, float, float]:
    """The difference of two lists' shares of hits, first minus second, and its 95 % interval.

    Neurons that both name, in lists as long, cancel. The others count as a sample of what either
    method names beside the other: a hit and a miss are added to either side and the variances
    added, with that of the groups in common.

    Args:
        first, second: Whether each neuron of the list is a hit.
        common: What the groups do to the difference: c_11 + c_22 - 2 c_12 of `common_covariance`
            (negative counts as 0).

    Source: Agresti & Caffo 2000, for the neurons; the variance over groups is added.
    Does not show: what other lists would be named on other examples of the split ranked on.

    >>> difference_interval({"L0N1": True}, {"L0N1": True})
    (0.0, 0.0, 0.0)
    """
    if not first or not second:
        return math.nan, math.nan, math.nan
    value = sum(first.values()) / len(first) - sum(second.values()) / len(second)
    both = [name for name in first if name in second]
    parts = (
        ([hit for name, hit in first.items() if name not in second], 1 / len(first)),
        ([hit for name, hit in second.items() if name not in first], -1 / len(second)),
        ([first[name] for name in both], 1 / len(first) - 1 / len(second)),
    )
    centre = variance = 0.0
    for members, weight in parts:
        n = len(members)
        p = (sum(members) + 1) / (n + 2)
        centre += weight * n * p
        variance += (weight * n) ** 2 * p * (1 - p) / (n + 2)
    half = Z * math.sqrt(variance + max(common, 0.0))
    low, high = max(centre - half, -1.0), min(centre + half, 1.0)
    return value, min(low, value), max(high, value)
