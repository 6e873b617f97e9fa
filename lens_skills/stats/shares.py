"""`share_interval`: the interval of a share of examples that come in groups."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.stats.bootstrap import cluster_error


def share_interval(
    values: Float[Tensor, "*set example"], groups: Sequence[str], *, level: float = 0.95
) -> tuple[Float[Tensor, "*set"], Float[Tensor, "*set"]]:
    """Lower and upper end of the interval of a share, both within [0, 1].

    Clopper and Pearson's exact interval for x = n* p hits in n* tries, where n* is the effective
    number of independent examples: p (1 - p) over the square of the cluster-robust standard error,
    at most the number of examples; where none (or all) hit, the number of groups, since nothing is
    known of how alike a group's examples are. A bootstrap cannot do this: a share of one in forty
    is often not drawn at all.

    Args:
        values: 0 or 1 per example.
        groups: Each example's group.
        level: Coverage, 0.95 for a 95 % interval.

    Source: Korn & Graubard 1998 (exact intervals with an effective sample size, without their
    correction of the degrees of freedom). Conservative, as exact intervals are.
    Assumes: independent groups.

    >>> low, high = share_interval(torch.zeros(30), [str(k) for k in range(30)])
    >>> low.item(), round(high.item(), 3)
    (0.0, 0.116)
    """
    # Imported here: SciPy's statistics take a second to load and --help must not wait for them.
    from scipy.stats import beta

    share = values.double().mean(-1)
    n, n_groups = values.shape[-1], len(set(groups))
    error = cluster_error(values.double(), groups)
    spread = share * (1 - share)
    effective = (spread / error.square().clamp(min=1e-30)).clamp(min=1.0, max=float(n))
    effective = torch.where(spread > 0, effective, float(n_groups))
    hits, tail = (share * effective).numpy(), (1 - level) / 2
    misses = effective.numpy() - hits
    low = torch.as_tensor(beta.ppf(tail, hits, misses + 1)).nan_to_num(0.0)
    high = torch.as_tensor(beta.ppf(1 - tail, hits + 1, misses)).nan_to_num(1.0)
    return torch.where(share == 0, 0.0, low), torch.where(share == 1, 1.0, high)
