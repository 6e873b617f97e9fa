"""`weigh`: effects per example as edges with intervals, p-values and a decision."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.circuits.edge import Edge
from lens_skills.stats.bootstrap import cluster_error, cluster_interval
from lens_skills.stats.corrections import false_discovery_q

ALPHA = 0.05


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


def weigh(
    edges: Sequence[Edge],
    effects: Float[Tensor, "edge example"],
    groups: Sequence[str],
    total: float,
    *,
    n_draws: int = 2000,
    seed: int = 0,
) -> list[Edge]:
    """The edges with effect, share of the total (None where that is 0), interval and p."""
    if not edges:
        return []
    low, high = cluster_interval(effects, groups, n_draws=n_draws, seed=seed)
    p = cluster_p(effects, groups)
    return [
        replace(
            edge,
            effect=float(effects[k].mean()),
            share=float(effects[k].mean()) / total if total else None,
            low=float(low[k]),
            high=float(high[k]),
            p=float(p[k]),
        )
        for k, edge in enumerate(edges)
    ]


def decide(edges: Sequence[Edge], *, alpha: float = ALPHA) -> list[Edge]:
    """The edges with q over all of them, and whether each holds.

    Confirmed: q <= alpha and an interval that does not hold 0.
    """
    q = false_discovery_q(torch.tensor([float(edge.p or 0.0) for edge in edges]).double())
    return [
        replace(edge, q=float(q[k]), confirmed=float(q[k]) <= alpha and _away(edge))
        for k, edge in enumerate(edges)
    ]


def _away(edge: Edge) -> bool:
    assert edge.low is not None
    assert edge.high is not None
    return edge.low > 0 or edge.high < 0
