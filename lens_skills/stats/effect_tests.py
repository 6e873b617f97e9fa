"""Means of grouped examples with intervals, and THE rule that turns them into words.

The studentised cluster bootstrap of means and ratios, and what it cannot be trusted with; then
beyond δ, equivalent, opposed; δ from controls; the cluster t test."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.stats.multiple_testing import group_codes

FEW_GROUPS = 30
"""Below this many (effective) groups an interval covers less than it says."""

FEWEST_GROUPS = 8
"""The one floor of every verb: with fewer groups no interval, p or q of an effect means anything.

A sign flip of 8 groups has 128 arrangements on either side; of 5, with 16, none can be p <= 0.05
family-wise, and a cluster-robust error of so few is mostly its own noise."""

# Numbers that agree to this share of their size differ by rounding only.
_ROUNDING = 1e-12

_CHUNK = 1_000_000  # draws times sets held at once


def effective_groups(groups: Sequence[str]) -> float:
    """How many equal groups say as much as these: G* = (Σ n_g)² / Σ n_g², from 1 to G.

    Args:
        groups: Each example's group.

    Source: Carter, Schnepel & Steigerwald 2017, for clusters whose examples are fully alike (the
    worst case, which needs no estimate of how alike they are).

    >>> effective_groups(["a", "a", "b", "b"]), round(effective_groups(["a"] * 9 + ["b"]), 2)
    (2.0, 1.22)
    """
    if len(groups) == 0:
        return 0.0
    sizes = np.bincount(group_codes(groups)).astype(float)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def check_groups(groups: Sequence[str], what: str, *, instead: str = "") -> None:
    """Refuses fewer than `FEWEST_GROUPS` groups.

    Args:
        groups: Each example's group.
        what: What was asked for, such as ``"a verdict"``.
        instead: What can be said all the same; a sentence.

    Raises:
        LensSkillsError: Too few groups: how many there are and how many are needed.
    """
    n_groups = len(set(groups))
    if n_groups < FEWEST_GROUPS:
        raise LensSkillsError(
            f"{len(groups):,} examples in {n_groups} group{'s' if n_groups != 1 else ''}: {what} "
            f"needs {FEWEST_GROUPS} groups at least, since examples of one group are not "
            "independent and an interval of so few groups means nothing. Give examples of more "
            f"groups{'.' if not instead else '. ' + instead}"
        )


@dataclass(frozen=True)
class ClusteredRatio:
    """Ratios of sums over groups, Σ_g s_g / Σ_g n_g, with cluster-robust standard errors.

    A mean is the ratio whose denominator counts examples.

    Attributes:
        value: The ratio of each set.
        error: Its standard error, sqrt((G - 1) / G Σ_g (residual_g / (N - n_g))²) with N = Σ n_g:
            exactly the jackknife that leaves out one group after another (CV3), which a large
            group does not shrink; infinite with one group.
        residual: s_g - value n_g, which sums to 0 over the groups.
        size: n_g.
        effective: Effective number of groups, N² / Σ n_g²; see `effective_groups`.

    Source: MacKinnon, Nielsen & Webb 2023 (CV3); it equals the usual cluster-robust error where
    groups are of one size.
    """

    value: Float[Tensor, " set"]
    error: Float[Tensor, " set"]
    residual: Float[Tensor, "set group"]
    size: Float[Tensor, "set group"]
    effective: Float[Tensor, " set"]

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
        square = reduce((residual * _inflation(size, whole)) ** 2, "set group -> set", "sum")
        square = torch.where(square.sqrt() <= _ROUNDING * scale, 0.0, square)
        error = ((n_groups - 1) / n_groups * square).sqrt() / whole.abs()
        if n_groups == 1:
            error = torch.full_like(error, torch.inf)
        effective = whole**2 / reduce(size**2, "set group -> set", "sum")
        return cls(value, error, residual, size, effective)

    def interval(
        self, *, level: float, n_draws: int, seed: int
    ) -> tuple[Float[Tensor, " set"], Float[Tensor, " set"]]:
        """Lower and upper end of the interval; see `cluster_interval`."""
        n_sets, n_groups = self.residual.shape
        if n_groups == 1:
            raise LensSkillsError(
                "all examples are of one group, so nothing is known of how much another would "
                "differ: no interval. Give examples of more groups, or declare groups in the task."
            )
        random = np.random.default_rng(seed)
        drawn = random.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_draws)
        counts = torch.from_numpy(drawn).double()
        webb = torch.from_numpy(random.choice(_WEBB, size=(n_draws, n_groups)))
        # Order statistics, not interpolated: a draw whose variance is 0 has an infinite t.
        place = max(int((n_draws + 1) * (1 - level) / 2 + 1e-9), 1) - 1
        alike = bool((self.size == self.size[:1]).all())
        # Sets of one denominator share the draws' factors; others are drawn one by one.
        step = max(_CHUNK // n_draws, 1) if alike else 1
        ends = [
            self._ends(slice(at, at + step), counts, webb, place) for at in range(0, n_sets, step)
        ]
        low_t, high_t = (torch.cat(parts) for parts in zip(*ends, strict=True))
        reach = _student_reach(self.effective, level)
        low_t, high_t = torch.minimum(low_t, -reach), torch.maximum(high_t, reach)
        certain = self.error == 0
        low = torch.where(certain, self.value, self.value - high_t * self.error)
        high = torch.where(certain, self.value, self.value - low_t * self.error)
        return low, high

    def _ends(
        self,
        which: slice,
        counts: Float[Tensor, "draw group"],
        webb: Float[Tensor, "draw group"],
        place: int,
    ) -> tuple[Float[Tensor, " set"], Float[Tensor, " set"]]:
        """The lower and upper quantile of the bootstrap t = (drawn ratio - ratio) / its error."""
        residual, size = self.residual[which], self.size[which]
        n_groups = counts.shape[1]
        whole = counts @ size[0]
        weight = counts * _inflation(size[0], whole) ** 2

        def drawn(numbers: Float[Tensor, "set group"]) -> Float[Tensor, "draw set"]:
            return einsum(weight, numbers, "draw group, set group -> draw set")

        whole = rearrange(whole, "draw -> draw 1")
        shift = einsum(counts, residual, "draw group, set group -> draw set") / whole
        square = drawn(residual**2) - 2 * shift * drawn(residual * size) + shift**2 * drawn(size**2)
        error = ((n_groups - 1) / n_groups * square.clamp(min=0)).sqrt() / whole.abs()
        scale = self.error[which]
        flat = error <= 1e-7 * scale  # the same group drawn again and again: rounding is left
        t = torch.where(flat, torch.sign(shift) * torch.inf, shift / error)
        t = torch.where(flat & (shift.abs() <= 1e-7 * scale), 0.0, t)
        ordered = t.sort(dim=0).values
        low, high = ordered[place].clone(), ordered[-1 - place].clone()
        for endless in (~(low.isfinite() & high.isfinite()) & (scale > 0)).nonzero()[:, 0].tolist():
            low[endless], high[endless] = _wild(residual[endless], size[0], webb, place)
        return low, high


_WEBB = np.array([-(1.5**0.5), -1.0, -(0.5**0.5), 0.5**0.5, 1.0, 1.5**0.5])


def _wild(
    residual: Float[Tensor, " group"],
    size: Float[Tensor, " group"],
    webb: Float[Tensor, "draw group"],
    place: int,
) -> tuple[float, float]:
    """Quantiles of the t of the wild cluster bootstrap, whose variance is never 0.

    Each group's residual is multiplied by one of Webb's six numbers instead of being drawn or not.
    """
    whole = size.sum()
    factor = _inflation(size, whole)
    given = webb * (residual * factor)
    shift = reduce(given, "draw group -> draw", "sum") / whole
    left = (given - rearrange(shift, "draw -> draw 1") * size) * factor
    error = ((len(size) - 1) / len(size) * left.square().sum(1)).sqrt() / whole.abs()
    ordered = (shift / error.clamp(min=1e-300)).sort().values
    return float(ordered[place]), float(ordered[-1 - place])


def _inflation(size: Tensor, whole: Tensor) -> Tensor:
    """1 / (1 - n_g / N): what of a group's own part the common mean takes away, given back."""
    left = 1 - size / rearrange(whole, "... -> ... 1")
    return 1 / torch.where(left.abs() < 1e-3, 1e-3, left)


def _student_reach(effective: Float[Tensor, " set"], level: float) -> Float[Tensor, " set"]:
    """The quantile of Student's t with the effective number of groups less 1 as its degrees."""
    from scipy.stats import t as student

    freedom = (effective - 1).clamp(min=1).numpy()
    return torch.from_numpy(np.atleast_1d(student.ppf((1 + level) / 2, freedom)))


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
    own standard error (see `ClusteredRatio`), and [mean - t_high se, mean - t_low se] is the
    interval; never narrower than Student's t with the effective number of groups less 1 as its
    degrees. Where so many draws do not vary at all that an end would be infinite (few groups
    react), t is drawn by the wild cluster bootstrap with Webb's weights. Ends are finite. Values
    that do not vary give [mean, mean], which says nothing of what rare examples would do.

    Args:
        values: One number per example; several sets share the draws.
        groups: Each example's group.
        level: Coverage, 0.95 for a 95 % interval.
        n_draws: Bootstrap draws.
        seed: Of the draws.

    Raises:
        LensSkillsError: A single group.

    Source: Hall 1988 (bootstrap t); Cameron, Gelbach & Miller 2008, section III.B (by cluster);
    Carter, Schnepel & Steigerwald 2017 (degrees); Webb 2023 (weights).
    Assumes: independent groups, `FEWEST_GROUPS` or more. Simulated coverage of 95 % for normal
    numbers: 0.95 to 0.97 at 8 to 60 groups, of one size or very uneven. Means of very skewed
    numbers are covered less often, which `skewed` tells.

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


SKEWED = 0.35
"""Group means of a larger |L-skewness| than this (for many groups) make an interval doubtful."""


def skewed(values: Float[Tensor, "set example"], groups: Sequence[str]) -> Bool[Tensor, " set"]:
    """Where the means of the groups are so skewed that no interval of their mean can be trusted.

    |L-skewness| of the group means (0 for symmetric numbers, 1/3 for exponential ones, at most 1)
    beyond `SKEWED` · (1 - 3 / groups): samples of few groups show less of the skewness there is.

    By simulation at 8 to 60 groups: of log-normal means (spread 1.5, whose intervals cover .85 in
    uneven groups) 89 % are called skewed at 8 groups, 94 % at 16 and 98 % at 30; of normal ones
    29 %, 2 % and none. What covers the truth or is called skewed is .96 or more of all, .90 of
    log-normal means in 8 equal groups.

    Source: Hosking 1990 (L-moments).

    >>> skewed(torch.tensor([[0.0] * 9 + [1.0]]), [str(k) for k in range(10)]).item()
    True
    """
    codes = torch.from_numpy(group_codes(groups))
    n_groups = int(codes.max()) + 1
    if n_groups < 3:
        return torch.zeros(len(values), dtype=torch.bool)
    sizes = torch.bincount(codes).double()
    ordered = (_by_group(values.double(), codes, n_groups) / sizes).sort(dim=1).values
    place = torch.arange(n_groups, dtype=torch.float64)
    first = place / (n_groups - 1)
    second = first * (place - 1) / (n_groups - 2)
    mean, one, two = (
        (ordered * weight).mean(dim=1) for weight in (torch.ones_like(first), first, second)
    )
    spread, skew = 2 * one - mean, 6 * two - 6 * one + mean
    varies = spread > _ROUNDING * ordered.abs().max(dim=1).values
    ratio = torch.where(varies, skew / torch.where(varies, spread, 1.0), 0.0)
    return ratio.abs() > SKEWED * (1 - 3 / n_groups)


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
    """Two-sided p of each mean being 0: t = mean / cluster-robust error, G* - 1 degrees.

    G* is the number of `effective_groups` (the number of groups where all are of one size) and the
    error the jackknife's (see `ClusteredRatio`). Numbers that do not vary give 0 or, if they are 0,
    1; a single group gives 1. Simulated size at 5 %, 8 to 30 uneven groups: .03 to .06 for normal
    numbers; .26 for log-normal ones (spread 1.5), where `skewed` warns.

    Source: Cameron, Gelbach & Miller 2008; Carter, Schnepel & Steigerwald 2017.

    >>> cluster_p(torch.tensor([[1.0, -1.0, 1.0, -1.0]]), ["a", "b", "c", "d"]).item()
    1.0
    """
    from scipy.stats import t as student

    mean, error = values.double().mean(1), cluster_error(values, groups)
    ratio = torch.where(mean == 0, 0.0, mean.abs() / error)
    n_groups = len(set(groups))
    if n_groups < 2:
        return torch.ones_like(mean)
    freedom = max(effective_groups(groups) - 1, 1.0)
    return torch.from_numpy(2 * student.sf(ratio.numpy(), freedom)).reshape(mean.shape)


Ends = Float[Tensor, "*set"] | float
"""The lower or upper ends of intervals, or one of them."""


def delta_from_controls(
    effects: Float[Tensor, " control"],
    errors: Float[Tensor, " control"] | None = None,
    *,
    at_least: float = 0.0,
) -> float:
    """The smallest effect that matters: the 95th percentile of the controls' |mean effect|.

    Args:
        effects: Mean effect of each control.
        errors: Their standard errors. Where given, what sampling adds to the percentile is taken
            out: δ² = percentile² - 1.96² median error². By simulation over normal and heavy-tailed
            effects, with errors of a quarter to twice their spread, it stays within .94 and 1.02
            of the percentile of the true effects (uncorrected 1.0 to 2.2).
        at_least: A floor, in the same unit.

    Raises:
        LensSkillsError: It is 0: the edit changes nothing in 95 % of them, and there is no floor.
    """
    delta = float(effects.abs().double().quantile(0.95))
    if errors is not None:
        noise = float(errors.double().square().median())
        delta = math.sqrt(max(delta**2 - _quantile(0.975) ** 2 * noise, 0.0))
    delta = max(delta, at_least)
    if delta == 0:
        raise LensSkillsError(
            "δ would be 0: the edit changes nothing in 95 % of the other neurons (or nothing that "
            "could be told from sampling noise). Declare it in the metric's unit: delta=…"
        )
    return delta


SMALLEST_SHARE = 0.01
"""Of the clean metric: no effect below it matters, unless δ is declared."""


def smallest_effect(
    controls: Float[Tensor, "control example"], groups: Sequence[str], clean_mean: float
) -> float:
    """δ: what the controls reach, less the noise of measuring it, at least 1 % of the metric.

    Args:
        controls: Effect of each control on each example.
        groups: Each example's group.
        clean_mean: Of the metric without an edit; see `SMALLEST_SHARE`.

    Raises:
        LensSkillsError: Both are 0; see `delta_from_controls`.
    """
    controls = controls.double()
    return delta_from_controls(
        controls.mean(dim=1),
        cluster_error(controls, groups),
        at_least=SMALLEST_SHARE * abs(clean_mean),
    )


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


def resolvable_delta(errors: Float[Tensor, " control"]) -> float:
    """The smallest δ within which an effect of 0 with such an error is found four times in five.

    (z_0.95 + z_0.9) · median error: both one-sided tests at 5 % must reject.

    Source: Schuirmann 1987; normal approximation.

    >>> round(resolvable_delta(torch.tensor([0.1, 0.1, 9.0])), 3)
    0.293
    """
    return (_quantile(0.95) + _quantile(0.9)) * float(errors.double().median())


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
