"""Intervals of correlations and of shares, and what chance alone reaches."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.stats.effect_tests import cluster_error


def chance_max_r(n_units: int, n_examples: int) -> float:
    """About the largest |r| that chance alone reaches among so many units.

    sqrt(2 ln(2 M) / N), the extreme of M independent normal correlations.
    Does not show: what correlated units or grouped examples reach; a null does.

    >>> round(chance_max_r(46_080, 1_000), 2)
    0.15
    """
    return min(1.0, math.sqrt(2 * math.log(2 * n_units) / n_examples))


def wilson_interval(rate: float, n: float, *, level: float = 0.95) -> tuple[float, float]:
    """Lower and upper end of the interval of a share of ``n`` independent successes.

    Source: Wilson 1927.

    >>> low, high = wilson_interval(0.5, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def logit_interval(
    value: float, error: float, n_groups: int, *, level: float = 0.95
) -> tuple[float, float]:
    """Lower and upper end of the interval of a number within [0, 1] with this standard error.

    logit v ± t error / (v (1 - v)), with Student's t of ``n_groups`` - 1 degrees of freedom; of a
    number with two sides, such as an AUROC, ``n_groups`` is that of the side with fewer. At 0 and
    1, where the error says nothing, the exact interval of as many hits as groups stands in. NaN for
    fewer than two groups.

    v ± t error would cover .80 to .94 where v is near 1 (simulated: AUROC, F1 and balanced
    accuracy of .89 to .99, 30 to 150 groups); this covers .92 to .99.

    Source: on the logit scale, Qin & Hotilovac 2008; the exact one, Clopper & Pearson 1934.
    Assumes: independent groups, 30 or more.

    >>> low, high = logit_interval(0.95, 0.03, 60)
    >>> round(low, 3), round(high, 3)
    (0.843, 0.985)
    """
    # Imported here: SciPy's statistics take a second to load and --help must not wait for them.
    from scipy.stats import t as student

    if n_groups < 2:
        return math.nan, math.nan
    if value in (0.0, 1.0):
        exact = ((1 - level) / 2) ** (1 / n_groups)
        return (exact, 1.0) if value else (0.0, 1 - exact)
    half = float(student.ppf((1 + level) / 2, n_groups - 1)) * error / (value * (1 - value))
    centre = math.log(value / (1 - value))
    low, high = (1 / (1 + math.exp(-min(max(end, -700.0), 700.0))) for end in
                 (centre - half, centre + half))  # fmt: skip
    return low, high


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


def share_difference(
    changes: Float[Tensor, "set example"], groups: Sequence[str], *, level: float = 0.95
) -> tuple[Float[Tensor, " set"], Float[Tensor, " set"]]:
    """Lower and upper end of the interval of a mean change of something that is 0 or 1.

    The mean is the share of examples that rise, p, less the share that fall, q. Each has its exact
    interval (`share_interval`), [L, U]; that of p - q is
    p - q - sqrt((p - L_p)² + (U_q - q)²) to p - q + sqrt((U_p - p)² + (q - L_q)²). Where nothing
    changed in any of G groups the ends are ± (1 - 0.025^(1/G)), 0.21 at 16 groups and 0.06 at 60,
    and not ± 0: what was never seen may still happen in so large a share.

    Args:
        changes: Edited minus clean, from -1 to 1 (fractions where draws were averaged).
        groups: Each example's group.
        level: Coverage, 0.95 for a 95 % interval.

    Source: Clopper & Pearson 1934 for the shares; Zou & Donner 2008 for their difference (which
    takes them as independent; simulated coverage .95 to 1 at 16 to 100 groups). Conservative.
    Assumes: independent groups.

    >>> low, high = share_difference(torch.zeros(1, 16), [str(k) for k in range(16)])
    >>> round(low.item(), 3), round(high.item(), 3)
    (-0.206, 0.206)
    """
    rises, falls = changes.double().clamp(min=0), (-changes.double()).clamp(min=0)
    (rise_low, rise_high), (fall_low, fall_high) = (
        share_interval(part, groups, level=level) for part in (rises, falls)
    )
    rise, fall = rises.mean(-1), falls.mean(-1)
    low = rise - fall - torch.hypot(rise - rise_low, fall_high - fall)
    high = rise - fall + torch.hypot(rise_high - rise, fall - fall_low)
    return low.clamp(min=-1.0), high.clamp(max=1.0)
