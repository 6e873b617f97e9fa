"""Shares of hits with intervals, and the paired differences of methods.

Two methods are tried on the same examples and name some of the same neurons, so their shares are
not independent. An interval here is over neurons like those named and over groups of examples: the
variance between neurons, and beside it what the resampled groups move in common
(`common_variance`). `difference_interval` is of one method against another on one task,
`differences_over_tasks` over several tasks, with a sign test.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.stats.intervals import wilson_interval

if TYPE_CHECKING:
    from lens_skills.ranking.method_comparison import MethodComparison

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


def sign_test(differences: Sequence[float]) -> float:
    """Two-sided exact p of as many differences above 0 as below it; those of 0 say nothing.

    Source: Arbuthnot 1710; Dixon & Mood 1946.

    >>> sign_test([0.1, 0.2, 0.1, 0.3, 0.2, 0.1]), sign_test([0.0])
    (0.03125, 1.0)
    """
    from scipy.stats import binomtest

    above = sum(value > 0 for value in differences)
    n = above + sum(value < 0 for value in differences)
    return float(binomtest(above, n).pvalue) if n else 1.0


def differences_over_tasks(
    comparisons: Mapping[str, "MethodComparison"], *, first: str | None = None
) -> pd.DataFrame:
    """Every two methods over several tasks: the mean difference of their shares, and a sign test.

    One row per pair: method other n_tasks wins losses ties p difference low high. ``wins`` are
    the tasks where ``method`` has the larger share of hits; ``p`` is the exact two-sided sign test
    (of this pair by itself); the 95 % interval of the mean difference is Student's over the tasks,
    each task counted once; NaN with one task.

    Args:
        comparisons: Of one kind, by task.
        first: Only the pairs of this method with each other one.

    Raises:
        LensSkillsError: No comparison, or no task with the method ``first``.

    Does not show: more than the tasks are a sample of. Under 6 tasks no p is below 0.05.
    """
    from scipy.stats import t as student

    if not comparisons:
        raise LensSkillsError("no comparison to count over: the mapping is empty.")
    names = list(dict.fromkeys(name for each in comparisons.values() for name in each.all_methods))
    if first is not None and first not in names:
        raise LensSkillsError(f"no method {first!r} here. There are: {', '.join(names)}.")
    rows = []
    for place, method in enumerate(names):
        others = names[place + 1 :] if first is None else [n for n in names if n != first]
        if first is not None and method != first:
            continue
        for other in others:
            found = np.array([
                each[method].share - each[other].share
                for each in comparisons.values()
                if {method, other} <= set(each.all_methods)
            ])  # fmt: skip
            n = len(found)
            if n == 0:
                continue
            half = math.nan
            if n > 1:
                half = float(student.ppf(0.975, n - 1)) * float(found.std(ddof=1)) / math.sqrt(n)
            mean = float(found.mean())
            rows.append(
                {
                    "method": method,
                    "other": other,
                    "n_tasks": n,
                    "wins": int((found > 0).sum()),
                    "losses": int((found < 0).sum()),
                    "ties": int((found == 0).sum()),
                    "p": sign_test(found.tolist()),
                    "difference": mean,
                    "low": mean - half,
                    "high": mean + half,
                }
            )
    return pd.DataFrame(rows)
