"""Rank p-values, family-wise thresholds and false discovery rates."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError

# A draw that repeats the observed arrangement (likely where groups are few) gives the observed
# statistic but for its last bits; within this share of it, it counts as equal.
TIE = 1e-9


def family_threshold(null_max: Float[Tensor, " draw"], *, alpha: float = 0.05) -> float:
    """The value a statistic must *exceed* for a family-wise p of at most ``alpha``.

    ``null_max`` holds the largest statistic of the whole family in each draw (max-T).
    Source: Westfall & Young 1993; p = (1 + #{null >= t}) / (1 + n), Phipson & Smyth 2010.

    Raises:
        LensSkillsError: Where ``n`` draws cannot reach ``alpha`` at all.

    >>> round(family_threshold(torch.arange(100.0)), 3)
    95.0
    """
    n_draws = len(null_max)
    # k draws may reach the threshold while (1 + k) / (1 + n) <= alpha.
    allowed = int(np.floor(alpha * (1 + n_draws) + 1e-9)) - 1
    if allowed < 0:
        raise LensSkillsError(
            f"{n_draws} draws cannot give p <= {alpha:g}: the smallest p is 1/{1 + n_draws}. "
            f"Ask for at least {int(np.ceil(1 / alpha)) - 1} draws."
        )
    bar = float(null_max.sort(descending=True).values[allowed])
    return bar + TIE * abs(bar)


def rank_p(
    statistic: Float[Tensor, "*shape"], null: Float[Tensor, " draw"]
) -> Float[Tensor, "*shape"]:
    """p of each statistic among the draws: (1 + #{null >= t}) / (1 + n).

    Where the draws are the largest of a whole family (max-T), it is family-wise.

    >>> rank_p(torch.tensor([9.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])).tolist()
    [0.25, 0.75]
    """
    ordered = null.sort().values.double()
    reached = statistic.double() - TIE * statistic.double().abs()
    below = torch.searchsorted(ordered, reached.contiguous(), right=False)
    return (1 + len(ordered) - below).double() / (1 + len(ordered))


def pooled_p(
    strength: Float[Tensor, " unit"], null: Float[Tensor, "draw unit"], *, n_left_out: int = 0
) -> Float[Tensor, " unit"]:
    """Rank p of each |r| among the draws of all units together, to a millionth in r.

    Counted in bins 2⁻²⁰ wide, which is exact up to the ties in one bin (counted as larger) and
    many times faster than sorting millions of draws.

    Args:
        strength: |r| of each unit, in [0, 1].
        null: |r| in each draw, in [0, 1].
        n_left_out: Units to leave out of the count, whose draws are all 0.

    Assumes: units alike enough to share one null distribution.

    >>> pooled_p(torch.tensor([0.5]), torch.tensor([[0.1], [0.6], [0.7]])).item()
    0.75
    """
    n_bins = 1 << 20
    counts = torch.bincount((null * n_bins).int().flatten(), minlength=n_bins + 1)
    counts[0] -= n_left_out * len(null)
    at_least = counts.flip(0).cumsum(0).flip(0)
    place = (strength * n_bins).long().clamp(max=n_bins)
    return (1 + at_least[place]).double() / (1 + at_least[0])


def false_discovery_q(p: Float[Tensor, " test"]) -> Float[Tensor, " test"]:
    """Benjamini–Hochberg adjusted p-values (SciPy's).

    Source: Benjamini & Hochberg 1995. Assumes independent or positively dependent tests.

    >>> [round(q, 3) for q in false_discovery_q(torch.tensor([0.01, 0.02, 0.9])).tolist()]
    [0.03, 0.03, 0.9]
    """
    # Imported here: SciPy's statistics take a second to load and --help must not wait for them.
    from scipy.stats import false_discovery_control

    if p.numel() == 0:
        return p
    return torch.from_numpy(false_discovery_control(p.double().numpy()))
