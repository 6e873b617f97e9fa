"""The columns of a scoring pass: metrics, covariates, and the draws of its null hypotheses.

Every statistic of the pass is a product of these columns with the neurons, so that one matrix
product per batch is all the work, however many permutations are drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import Metric
from lens_skills.data import Example, field_of
from lens_skills.errors import LensSkillsError
from lens_skills.scoring.covariates import covariate_columns
from lens_skills.stats.multiple_testing import (
    Scheme,
    StoredDraws,
    choose_scheme,
    constant_in_groups,
    flip_factors,
    group_codes,
    sign_bits,
    signs,
    unpacked_signs,
)


@dataclass
class ColumnLayout:
    """Where each kind of column stands.

    Base columns come first: metrics, then covariates. Then, per metric known beforehand, its draws
    under the null; then, where a metric is computed by the pass itself, the flipped signs alone and
    times each such metric. For the control task, either one column per input type or, where there
    are very many types, signs per type and those times each metric. For the intervals, the *marks*
    (one column per group or, of many groups, signs per group), alone and times each metric.
    """

    metrics: tuple[str, ...]
    n_given: int
    n_draws: int
    permuted: tuple[str, ...]
    residuals_flipped: tuple[str, ...]
    flipped: tuple[str, ...]
    n_kinds: int
    n_kind_signs: int
    n_marks: int
    starts: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    n_columns: int = 0

    def __post_init__(self) -> None:
        self.n_columns = self.n_base
        for name in self.permuted:
            self._add(f"draws/{name}", self.n_draws)
        if self.flipped:
            self._add("signs", self.n_draws)
            for name in self.flipped:
                self._add(f"signs/{name}", self.n_draws)
        if self.n_kinds:
            self._add("kinds", self.n_kinds)
        if self.n_kind_signs:
            self._add("kind signs", self.n_kind_signs)
            for name in self.metrics:
                self._add(f"kind signs/{name}", self.n_kind_signs)
        if self.n_marks:
            self._add("marks", self.n_marks)
            for name in self.metrics:
                self._add(f"marks/{name}", self.n_marks)

    def _add(self, name: str, size: int) -> None:
        self.starts[name], self.sizes[name] = self.n_columns, size
        self.n_columns += size

    @property
    def n_base(self) -> int:
        return len(self.metrics) + self.n_given

    def block(self, name: str) -> slice:
        """The columns of one block."""
        return slice(self.starts[name], self.starts[name] + self.sizes[name])


class DesignMatrix:
    """Builds the columns of each batch of one pass.

    ``known`` are the values of metrics known beforehand, ``given`` the covariates to partial out,
    ``exchange`` a scheme for all metrics or ``"auto"``. With covariates every metric is known.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        known: Mapping[str, Float[Tensor, " row"]],
        examples: Sequence[Example],
        *,
        given: Sequence[str],
        exchange: str,
        n_draws: int,
        n_controls: int,
        seed: int,
        intervals: bool = True,
    ) -> None:
        self.examples, self.seed = examples, seed
        self.given = covariate_columns(examples, given)
        self.groups = field_of(examples, "group")
        self.kinds = field_of(examples, "kind")
        self.n_controls = n_controls
        self.partial = bool(self.given.shape[1])
        self.schemes: dict[str, str] = {}
        permuted: dict[str, StoredDraws] = {}
        self.residuals: dict[str, Float[Tensor, " row"]] = {}
        for metric in metrics:
            if metric.name not in known:
                assert not given, "covariates need every metric beforehand"
                self.schemes[metric.name] = "signs"
                continue
            residual = self.residual(known[metric.name])
            self.residuals[metric.name] = residual
            scheme = exchange
            if not metric.known:
                scheme = "signs"
            elif exchange == "auto":
                scheme = choose_scheme(residual, self.groups, self.kinds)
            self.schemes[metric.name] = scheme
            if n_draws:
                _check_between(scheme, residual, self.groups, metric.name)
            if n_draws and scheme != "signs" and scheme not in permuted:
                # One set of draws serves all metrics that trade alike.
                which: Scheme = scheme  # type: ignore[assignment]
                permuted[scheme] = StoredDraws(
                    self.groups, n_draws, which, seed=seed, kinds=self.kinds
                )
        self.permuted = permuted
        self.factors = flip_factors(self.groups, self.given)
        names = sorted(set(self.groups))
        self._group_codes = torch.from_numpy(group_codes(self.groups))
        self.no_control = control_refused(examples)
        self.kind_names = sorted(set(self.kinds))
        self.kind_codes = torch.from_numpy(group_codes(self.kinds))
        claimed = n_controls > 0 and not self.no_control
        by_draws = tuple(self.schemes) if n_draws else ()
        flips = [name for name in by_draws if self.schemes[name] == "signs"]
        many = len(self.kind_names) > _MOST_KINDS
        self.marks_by_group = len(names) <= N_MARKS
        self.layout = ColumnLayout(
            metrics=tuple(metric.name for metric in metrics),
            n_given=self.given.shape[1],
            n_draws=n_draws,
            permuted=tuple(n for n in by_draws if self.schemes[n] != "signs" or self.partial),
            residuals_flipped=tuple(flips) if self.partial else (),
            flipped=() if self.partial else tuple(flips),
            n_kinds=len(self.kind_names) if claimed and not many else 0,
            n_kind_signs=n_controls if claimed and many else 0,
            n_marks=min(len(names), N_MARKS) if intervals else 0,
        )

    def of(
        self, index: Int[Tensor, " batch"], values: Mapping[str, Float[Tensor, " batch"]]
    ) -> Float[Tensor, "batch column"]:
        """The columns of the examples at ``index``, whose metrics are ``values``."""
        layout, given = self.layout, self.given[index]

        def times(marks: Float[Tensor, "batch mark"], name: str) -> Float[Tensor, "batch mark"]:
            own = self.residuals[name][index] if self.partial else values[name].double()
            return marks * own[:, None]

        parts = [torch.stack([values[name] for name in layout.metrics], dim=1), given]
        coins = None
        if layout.n_draws and "signs" in self.schemes.values():
            groups = [self.groups[place] for place in index.tolist()]
            coins = signs(groups, layout.n_draws, seed=self.seed, purpose="null").double()
            coins = coins * self.factors[index][:, None]
        for name in layout.permuted:
            if self.schemes[name] == "signs":
                assert coins is not None
                parts.append(times(coins, name))
            else:
                parts.append(self.residuals[name][self.permuted[self.schemes[name]][index].long()])
        if layout.flipped:
            assert coins is not None
            parts += [coins, *(times(coins, name) for name in layout.flipped)]
        if layout.n_kinds:
            parts.append(one_hot_codes(self.kind_codes[index], layout.n_kinds))
        if layout.n_kind_signs:
            kinds = [self.kinds[place] for place in index.tolist()]
            turned = signs(kinds, layout.n_kind_signs, seed=self.seed, purpose="control").double()
            parts += [turned, *(times(turned, name) for name in layout.metrics)]
        if layout.n_marks:
            marks = self.marks(index)
            parts += [marks, *(times(marks, name) for name in layout.metrics)]
        return torch.cat([part.double() for part in parts], dim=1)

    def mark_sums(self, rows: Float[Tensor, " row"]) -> Float[Tensor, " mark"]:
        """The sum of some numbers, one per example, times each mark."""
        total = torch.zeros(self.layout.n_marks, dtype=torch.float64)
        for start in range(0, len(rows), _ROWS_TOGETHER):
            part = rows[start : start + _ROWS_TOGETHER]
            total += self.marks(torch.arange(start, start + len(part))).T @ part.double()
        return total

    def marks(self, index: Int[Tensor, " batch"]) -> Float[Tensor, "batch mark"]:
        """Which group each example is of: a column per group or, of many groups, random signs.

        The mean square over signs of a sum of group totals is the sum of their squares.
        """
        if self.marks_by_group:
            return one_hot_codes(self._group_codes[index], self.layout.n_marks)
        bits = self._mark_bits[self._group_codes[index].numpy()]
        return unpacked_signs(bits, self.layout.n_marks).double()

    @cached_property
    def _mark_bits(self) -> np.ndarray:
        """Of many groups, the signs of each: kept packed, in the order of their codes."""
        names = sorted(set(self.groups))
        return sign_bits(names, self.layout.n_marks, seed=self.seed, purpose="interval")

    def shrinkage(self, rows: Float[Tensor, " row"]) -> float:
        """How much too small a standard error from groups is, for a metric of these ``rows``.

        A group of n_g examples with a share M_g of the metric's sum of squares pulls mean and slope
        towards itself, so that its own residual is 1 - n_g / N - M_g of what it was. As each group
        counts for M_g n_g of the variance of neurons that are alike inside groups, this is one
        number for all neurons.
        """
        sizes = torch.bincount(self._group_codes).double()
        share = torch.zeros_like(sizes).index_add_(0, self._group_codes, rows.double().square())
        share /= share.sum()
        left = (1 - sizes / len(rows) - share).clamp(min=_LEAST_LEFT)
        part = share * sizes
        return float((part / left.square()).sum().div(part.sum()).sqrt())

    def centred(self, name: str, values: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """A metric without its mean or, with covariates, without what they explain."""
        if self.partial:
            return self.residuals[name]
        return values.double() - values.double().mean()

    def residual(self, values: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """What the covariates leave of a metric (Freedman & Lane 1983 permute this)."""
        design = torch.cat([torch.ones(len(values), 1, dtype=torch.float64), self.given], dim=1)
        # From the right: from the left it would be a matrix of examples by examples.
        fitted = design @ (torch.linalg.pinv(design) @ values.double())
        return values.double() - fitted


# Marks of so many examples are made at once.
_ROWS_TOGETHER = 1 << 13

# Standard errors come from so many random signs where there are more groups; they then have as
# many degrees of freedom.
N_MARKS = 32

# What is left of the residual of a group that holds nearly all of a metric.
_LEAST_LEFT = 0.1

# Of more input types than this the control task flips signs; of fewer it permutes the types.
_MOST_KINDS = 256

FEWEST_KINDS = 8
"""With fewer input types a random label per type is too often the label itself."""


def control_refused(examples: Sequence[Example]) -> str:
    """Why no control task can be drawn for these examples, in a sentence; empty where it can."""
    types, groups = field_of(examples, "kind"), field_of(examples, "group")
    kinds = set(types)
    if list(types) == list(groups) or len(kinds) == len(examples):
        return (
            "no input types declared: control task not drawn (kind= names what a prompt repeats, "
            "such as a noun)"
        )
    if len(kinds) < FEWEST_KINDS:
        return f"{len(kinds)} input types: control task not drawn ({FEWEST_KINDS} at least)"
    return ""


def one_hot_codes(codes: Int[Tensor, " row"], n: int) -> Float[Tensor, "row code"]:
    """A column per code, 1 where the row has it.

    >>> one_hot_codes(torch.tensor([1, 0]), 2).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    return torch.nn.functional.one_hot(codes.long(), n).double()


def _check_between(
    scheme: str, residual: Float[Tensor, " row"], groups: Sequence[str], name: str
) -> None:
    if scheme == "between" and not constant_in_groups(residual, groups):
        raise LensSkillsError(
            f"{name!r} varies inside groups, so whole groups cannot trade it. Use "
            "exchange='within' or exchange='signs'."
        )
