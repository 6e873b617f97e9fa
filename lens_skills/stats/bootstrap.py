"""How far a mean, or a ratio of means, over grouped examples may be from the truth.

The studentised cluster bootstrap, and the cluster-robust standard error that it is measured in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.stats.permutation import group_codes

FEW_GROUPS = 30
"""Below this many groups an interval covers less than it says."""

# Numbers that agree to this share of their size differ by rounding only.
_ROUNDING = 1e-12

_CHUNK = 1_000_000  # draws times sets held at once


@dataclass(frozen=True)
class ClusteredRatio:
    """Ratios of sums over groups, Σ_g s_g / Σ_g n_g, with cluster-robust standard errors.

    A mean is the ratio whose denominator counts examples.

    Attributes:
        value: The ratio of each set.
        error: Its standard error, sqrt(G / (G - 1) Σ_g (s_g - value n_g)²) / |Σ_g n_g|; infinite
            with one group.
        residual: s_g - value n_g, which sums to 0 over the groups.
        size: n_g.
    """

    value: Float[Tensor, " set"]
    error: Float[Tensor, " set"]
    residual: Float[Tensor, "set group"]
    size: Float[Tensor, "set group"]

    @classmethod
    def of(
        cls,
        numerator: Float[Tensor, "set example"],
        denominator: Float[Tensor, "set example"],
        groups: Sequence[str],
    ) -> "ClusteredRatio":
        """The ratios of per-example numbers that share the groups of their examples.

        >>> ratio = ClusteredRatio.of(torch.tensor([[1.0, 3.0]]), torch.ones(1, 2), ["a", "b"])
        >>> ratio.value.tolist(), ratio.error.tolist()
        ([2.0], [1.0])
        """
        codes = torch.from_numpy(group_codes(groups))
        n_groups = int(codes.max()) + 1
        total, size = (
            _by_group(part.double(), codes, n_groups) for part in (numerator, denominator)
        )
        whole = reduce(size, "set group -> set", "sum")
        value = reduce(total, "set group -> set", "sum") / whole
        residual = total - rearrange(value, "set -> set 1") * size
        scale = reduce(total.abs(), "set group -> set", "max")
        square = reduce(residual**2, "set group -> set", "sum")
        square = torch.where(square.sqrt() <= _ROUNDING * scale, 0.0, square)
        error = (n_groups / max(n_groups - 1, 1) * square).sqrt() / whole.abs()
        if n_groups == 1:
            error = torch.full_like(error, torch.inf)
        return cls(value, error, residual, size)

    def interval(
        self, *, level: float, n_draws: int, seed: int
    ) -> tuple[Float[Tensor, " set"], Float[Tensor, " set"]]:
        """Lower and upper end of the studentised bootstrap interval; see `cluster_interval`."""
        n_sets, n_groups = self.residual.shape
        if n_groups == 1:
            return torch.full_like(self.value, -torch.inf), torch.full_like(self.value, torch.inf)
        random = np.random.default_rng(seed)
        drawn = random.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_draws)
        counts = torch.from_numpy(drawn).double()
        # Order statistics, not interpolated: a draw whose variance is 0 has an infinite t.
        place = max(int((n_draws + 1) * (1 - level) / 2 + 1e-9), 1) - 1
        step = max(_CHUNK // n_draws, 1)
        ends = [self._ends(slice(at, at + step), counts, place) for at in range(0, n_sets, step)]
        low_t, high_t = (torch.cat(parts) for parts in zip(*ends, strict=True))
        certain = self.error == 0
        low = torch.where(certain, self.value, self.value - high_t * self.error)
        high = torch.where(certain, self.value, self.value - low_t * self.error)
        return low, high

    def _ends(
        self, which: slice, counts: Float[Tensor, "draw group"], place: int
    ) -> tuple[Float[Tensor, " set"], Float[Tensor, " set"]]:
        """The lower and upper quantile of the bootstrap t = (drawn ratio - ratio) / its error."""
        residual, size = self.residual[which], self.size[which]

        def drawn(numbers: Float[Tensor, "set group"]) -> Float[Tensor, "draw set"]:
            return einsum(counts, numbers, "draw group, set group -> draw set")

        whole = drawn(size)
        shift = drawn(residual) / whole
        square = drawn(residual**2) - 2 * shift * drawn(residual * size) + shift**2 * drawn(size**2)
        n_groups = counts.shape[1]
        error = (n_groups / (n_groups - 1) * square.clamp(min=0)).sqrt() / whole.abs()
        scale = self.error[which]
        flat = error <= 1e-7 * scale  # the same group drawn again and again: rounding is left
        t = torch.where(flat, torch.sign(shift) * torch.inf, shift / error)
        t = torch.where(flat & (shift.abs() <= 1e-7 * scale), 0.0, t)
        ordered = t.sort(dim=0).values
        return ordered[place], ordered[-1 - place]


def cluster_interval(
    values: Float[Tensor, "*set example"],
    groups: Sequence[str],
    *,
    level: float = 0.95,
    n_draws: int = 2000,
    seed: int = 0,
) -> tuple[Float[Tensor, "*set"], Float[Tensor, "*set"]]:
    """Lower and upper end of the interval of a mean whose examples come in groups.

    Studentised cluster bootstrap: groups are drawn with replacement, every draw is measured in its
    own standard error, and [mean - t_high se, mean - t_low se] is the interval. Values that do not
    vary give [mean, mean]; a single group gives (-inf, inf).

    Args:
        values: One number per example; several sets share the draws.
        groups: Each example's group.
        level: Coverage, 0.95 for a 95 % interval.
        n_draws: Bootstrap draws.
        seed: Of the draws.

    Source: Hall 1988 (bootstrap t); Cameron, Gelbach & Miller 2008, section III.B (by cluster).
    Assumes: independent groups, `FEW_GROUPS` or more. Means of very skewed numbers are covered
    less often than ``level`` (``benchmarks/planted.py`` prints by how much).

    >>> low, high = cluster_interval(torch.zeros(4), ["a", "a", "b", "c"])
    >>> low.item(), high.item()
    (0.0, 0.0)
    """
    flat = values.reshape(-1, values.shape[-1])
    low, high = ratio_interval(
        flat, torch.ones_like(flat), groups, level=level, n_draws=n_draws, seed=seed
    )
    return low.reshape(values.shape[:-1]), high.reshape(values.shape[:-1])


def ratio_interval(
    numerator: Float[Tensor, "set example"],
    denominator: Float[Tensor, "set example"],
    groups: Sequence[str],
    *,
    level: float = 0.95,
    n_draws: int = 2000,
    seed: int = 0,
) -> tuple[Float[Tensor, " set"], Float[Tensor, " set"]]:
    """Lower and upper end of the interval of a ratio of two means over the same examples.

    As `cluster_interval`, with the linearised standard error of a ratio.

    Assumes: a denominator whose own interval is away from 0; else a ratio means nothing.

    >>> ratio_interval(torch.ones(1, 3), 2 * torch.ones(1, 3), ["a", "b", "c"])[0].item()
    0.5
    """
    ratio = ClusteredRatio.of(numerator, denominator, groups)
    return ratio.interval(level=level, n_draws=n_draws, seed=seed)


def cluster_error(
    values: Float[Tensor, "*set example"], groups: Sequence[str]
) -> Float[Tensor, "*set"]:
    """The cluster-robust standard error of each mean.

    >>> cluster_error(torch.tensor([1.0, 3.0]), ["a", "b"]).item()
    1.0
    """
    flat = values.reshape(-1, values.shape[-1])
    return ClusteredRatio.of(flat, torch.ones_like(flat), groups).error.reshape(values.shape[:-1])


def _by_group(
    values: Float[Tensor, "set example"], codes: Int[Tensor, " example"], n_groups: int
) -> Float[Tensor, "set group"]:
    total = torch.zeros(values.shape[0], n_groups, dtype=torch.float64)
    return total.index_add_(1, codes, values)
