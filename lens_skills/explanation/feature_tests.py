"""How well each feature explains each neuron, on examples it was not fitted on, with nulls.

`associate` fits every feature on one half of the examples (`Fit`) and tests it on the other
against permutations of its examples that respect groups (`FeaturePermutation`). How firm the order
of the features is says `first_in_resamples`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.explanation.feature_bank import FeatureMatrix
from lens_skills.stats.correlation import correlate
from lens_skills.stats.effect_tests import FEWEST_GROUPS
from lens_skills.stats.information import (
    N_BINS,
    equal_width_codes,
    indicators,
    information_of_columns,
)
from lens_skills.stats.multiple_testing import (
    block_draws,
    choose_scheme,
    false_discovery_q,
    group_codes,
    permutation_draws,
    rank_p,
    signs,
)

_TOGETHER = 128  # neurons measured at once
_ROUNDING = 1e-6  # nulls are computed in float32
RESAMPLES = 100
"""Draws of the groups that features are ranked on, for how firm the order is."""

SIGNS, WITHIN, BLOCKS = "signs", "within", "blocks"
Table = Float[Tensor, "neuron feature"]


@dataclass(frozen=True, eq=False)
class FeatureAssociation:
    """Every neuron against every feature, on the held-out half.

    Attributes:
        explained_fitted: Adjusted share of variance explained on the half the fit was made on:
            what features are ranked by.
        first: Share of resamples of that half's groups in which the feature explains most of all.
        r: Correlation, on the other half, of the activation with what the feature predicts of it.
        low, high: Its 95 % interval over groups (cluster-robust, on Fisher's z). NaN with fewer
            than `FEWEST_GROUPS` groups.
        direction: Sign of a flag's or a number's slope on the fitted half; 0 of a category.
        overlap_top, overlap_bottom: Share of the k most (least) activating examples that have a
            flag; NaN for other features.
        base: Share of all held-out examples that have it.
        information: Mutual information in bits.
        p: Family-wise over the features of a neuron (max-T), of r. NaN without a null.
        q: Benjamini–Hochberg over all neurons and features, of the single p of r.
        p_top, p_bottom, p_information: Family-wise over the features of a neuron, of the overlap
            (NaN but for flags) and of the information.
        schemes: How each feature was exchanged.
        k: How many examples the overlap looked at.
    """

    explained_fitted: Table
    first: Table
    r: Table
    low: Table
    high: Table
    direction: Table
    overlap_top: Table
    overlap_bottom: Table
    base: Float[Tensor, " feature"]
    information: Table
    p: Table
    q: Table
    p_top: Table
    p_bottom: Table
    p_information: Table
    schemes: tuple[str, ...]
    k: int

    @property
    def explained(self) -> Table:
        """Share of the held-out variance explained: r², and 0 where the sign is the wrong one."""
        return self.r.clamp(min=0) ** 2

    @property
    def explained_low(self) -> Table:
        """Lower end of the 95 % interval of the share explained."""
        return self.low.clamp(min=0) ** 2

    @property
    def explained_high(self) -> Table:
        """Upper end of the same interval."""
        return self.high.clamp(min=0) ** 2


@dataclass(frozen=True, eq=False)
class FeaturePermutation:
    """How each feature may be traded between examples under the null that it says nothing.

    A correlation trades freely where every example is its own group; between whole groups where a
    feature is constant in each and all are of one size; within groups where they all have the same
    mean; else each group's part is given a random sign (see `stats.permutation`; trading
    between groups of different size called something significant in a fifth of the runs).

    A count of classes cannot be given a sign: there groups of one size trade their examples whole,
    in the order they have (within groups where that is the feature's exchange). A feature that
    goes with the size of the groups cannot be told by that, and gets a p near 1.

    Attributes:
        schemes: Of each feature.
        draws: For every scheme that permutes, which row each row's value comes from.
        signed: The sign of each row in each draw.
    """

    schemes: tuple[str, ...]
    draws: dict[str, Int[Tensor, "row draw"]]
    signed: Int[Tensor, "row draw"]

    @classmethod
    def of(
        cls, design: FeatureMatrix, groups: Sequence[str], n_draws: int, *, seed: int
    ) -> "FeaturePermutation":
        """The exchange of a design's features, ``n_draws`` times."""
        schemes = []
        for feature in range(len(design.features)):
            found = {
                choose_scheme(design.columns[:, column], groups)
                for column in (design.owner == feature).nonzero()[:, 0].tolist()
            }
            schemes.append(str(found.pop()) if len(found) == 1 else SIGNS)
        draws = {BLOCKS: block_draws(groups, n_draws, seed=seed)}
        for scheme in ("free", WITHIN, "between"):
            if scheme in schemes:
                draws[scheme] = permutation_draws(groups, n_draws, scheme, seed=seed)
        signed = signs(groups, n_draws, seed=seed, purpose="explanation")
        return cls(tuple(schemes), draws, signed)

    @property
    def n_draws(self) -> int:
        """How many draws there are."""
        return self.signed.shape[1]

    @property
    def under_signs(self) -> Bool[Tensor, " feature"]:
        """Which features are given signs."""
        return torch.tensor([scheme == SIGNS for scheme in self.schemes])

    def columns(
        self, design: FeatureMatrix, columns: Float[Tensor, "row column"]
    ) -> Iterator[Float[Tensor, "row column"]]:
        """The columns as each draw trades them; those under signs are to be given centred."""
        schemes = [self.schemes[feature] for feature in design.owner.tolist()]
        return self._traded(columns, schemes)

    def classes(self, design: FeatureMatrix) -> Iterator[Float[Tensor, "row class"]]:
        """The 0/1 columns of all features' classes, as each draw trades them."""
        schemes = []
        for scheme, size in zip(self.schemes, design.n_classes, strict=True):
            schemes += [WITHIN if scheme == WITHIN else BLOCKS] * size
        return self._traded(design.classes, schemes)

    def _traded(
        self, columns: Float[Tensor, "row column"], schemes: Sequence[str]
    ) -> Iterator[Float[Tensor, "row column"]]:
        home = {
            scheme: torch.tensor([one == scheme for one in schemes])
            for scheme in dict.fromkeys(schemes)
        }
        parts = {scheme: columns[:, mine] for scheme, mine in home.items()}
        for draw in range(self.n_draws):
            out = torch.empty_like(columns)
            for scheme, mine in home.items():
                part = parts[scheme]
                if scheme == SIGNS:
                    out[:, mine] = part * self.signed[:, draw, None].to(part)
                else:
                    out[:, mine] = part[self.draws[scheme][:, draw].long()]
            yield out


@dataclass(frozen=True, eq=False)
class Fit:
    """A neuron's activation as a function of one feature, for every neuron and feature.

    Attributes:
        coefficients: Per column: of a flag and a number the sign of the slope, of a class how far
            its mean is from the mean of all (0 for one without examples).
        explained: Share of the variance explained, adjusted for the number of classes.
    """

    coefficients: Float[Tensor, "neuron column"]
    explained: Float[Tensor, "neuron feature"]

    @classmethod
    def of(cls, activations: Float[Tensor, "neuron row"], design: FeatureMatrix) -> "Fit":
        """The fit of a design on the same rows.

        A flag explains 1 - [(1 - q) Var(a | 0) + q Var(a | 1)] / Var(a), with q the share of 1s; a
        category the same over its classes; a number R² of the line. Adjusted, R² of K classes on n
        rows is 1 - (1 - R²)(n - 1) / (n - K).

        Source: Gurnee et al. 2024 (arXiv 2401.12181) for the flag.
        """
        columns = design.columns
        centred = activations - activations.mean(1, keepdim=True)
        cross = centred @ columns
        single = _single(design)
        count = columns.sum(0)
        offset = columns - columns.mean(0)
        adjusted = adjusted_share(
            design, cross, (offset**2).sum(0), count, (centred**2).sum(1), len(columns)
        )
        coefficients = torch.where(single, cross.sign(), cross * _inverse(count))
        return cls(coefficients, adjusted)

    def predictions(self, design: FeatureMatrix, neuron: int) -> Float[Tensor, "feature row"]:
        """What each feature predicts of one neuron's activation, up to a number added."""
        return design.per_feature(self.coefficients[neuron] * design.columns).T

    def agreement(
        self,
        centred: Float[Tensor, "neuron row"],
        design: FeatureMatrix,
        columns: Float[Tensor, "row column"],
        spread: Float[Tensor, "neuron feature"] | None = None,
    ) -> Float[Tensor, "neuron feature"]:
        """Pearson r of each neuron with what each feature predicts, on other rows.

        ``centred`` activations have length 1; ``spread`` is Σ prediction² where a feature's columns
        overlap (signed ones do). By default every row has one class.
        """
        weights = self.coefficients.to(columns)
        product = design.per_feature(weights * (centred.to(columns) @ columns))
        if spread is None:
            spread = design.per_feature(weights**2 * (columns**2).sum(0))
        mean = design.per_feature(weights * columns.sum(0))
        varies = spread.to(columns) - mean**2 / len(columns)
        return product * _inverse(varies.clamp(min=0), floor=1e-9).sqrt()


def adjusted_share(
    design: FeatureMatrix,
    cross: Float[Tensor, "*unit column"],
    square: Float[Tensor, "*#unit column"],
    count: Float[Tensor, "*#unit column"],
    variance: Float[Tensor, "*unit"],
    n_rows: Float[Tensor, "*#unit"] | int,
) -> Float[Tensor, "*unit feature"]:
    """Share of variance that each feature explains, adjusted; see `Fit.of`.

    Args:
        design: Whose columns they are.
        cross: Σ (a - mean) x of every column.
        square: Σ (x - mean)² of it.
        count: Σ x of it, the size of a class.
        variance: Σ (a - mean)².
        n_rows: How many rows were summed over.
    """
    single = _single(design)
    rows = torch.as_tensor(n_rows, dtype=torch.float64)[..., None]
    # Σ over classes n_c (mean_c - mean)² = Σ cross² / n_c; of one column cross² / Σ(x - x̄)².
    weight = torch.where(single, _inverse(square), _inverse(count))
    explained = design.per_feature(cross**2 * weight) * _inverse(variance)[..., None]
    freedom = design.per_feature(torch.where(single, 2.0, (count > 0).double()).double())
    return 1 - (1 - explained) * (rows - 1) / (rows - freedom).clamp(min=1)


def associate(
    activations: Float[Tensor, "neuron row"],
    design: FeatureMatrix,
    groups: Sequence[str],
    halves: tuple[Int[Tensor, " fitted"], Int[Tensor, " held"]],
    *,
    k: int,
    n_permutations: int,
    seed: int = 0,
) -> FeatureAssociation:
    """Variance explained, overlap with the top and bottom k, and information, each with its null.

    A feature's prediction (which side of a flag, the slope's sign, the mean of each class) is
    fitted on one half and held against the other: r² there is, for a flag, exactly
    1 - [(1 - q) Var(a | 0) + q Var(a | 1)] / Var(a), for a number R² of the line, and for a
    category what the means of the *other* half explain, so that many classes are no advantage.

    Sources: Gurnee et al. 2024 (arXiv 2401.12181) for the variance; Nikankin et al. 2024
    (arXiv 2410.21272) for the overlap; Westfall & Young 1993 for max-T.
    """
    fitted, held = halves
    names = [groups[int(place)] for place in held]
    here = design.rows(held)
    exchange = (
        FeaturePermutation.of(here, names, n_permutations, seed=seed) if n_permutations else None
    )
    parts = [
        _Part(activations[start : start + _TOGETHER], design.rows(fitted), here, halves, k)
        for start in range(0, len(activations), _TOGETHER)
    ]
    nulls = [part.nulls(exchange) for part in parts]
    p = {name: torch.cat([null[name] for null in nulls]) for name in nulls[0]}
    single = p.pop("single")
    ends = torch.cat([part.intervals(names) for part in parts], dim=1)
    q = single if exchange is None else false_discovery_q(single.flatten()).view_as(single)
    return FeatureAssociation(
        explained_fitted=torch.cat([part.fit.explained for part in parts]),
        first=first_in_resamples(
            activations[:, fitted],
            design.rows(fitted),
            [groups[int(place)] for place in fitted],
            seed=seed,
        ),
        low=ends[0],
        high=ends[1],
        r=torch.cat([part.r for part in parts]),
        direction=torch.cat([part.direction for part in parts]),
        overlap_top=torch.cat([part.overlap(part.top) for part in parts]),
        overlap_bottom=torch.cat([part.overlap(part.bottom) for part in parts]),
        base=parts[0].base,
        information=torch.cat([part.information for part in parts]),
        **p,
        q=q,
        schemes=() if exchange is None else exchange.schemes,
        k=k,
    )


def first_in_resamples(
    activations: Float[Tensor, "neuron row"],
    design: FeatureMatrix,
    groups: Sequence[str],
    *,
    n_draws: int = RESAMPLES,
    seed: int = 0,
) -> Table:
    """Share of draws of the groups, with replacement, in which each feature explains most.

    Near 1 the first place is firm; where it is shared by several, which of them stands first says
    little. Draws in which a neuron does not vary count for none.

    Source: bootstrap of ranks by cluster (Goldstein & Spiegelhalter 1996, of league tables).
    """
    codes = torch.from_numpy(group_codes(groups))
    n_groups = int(codes.max()) + 1
    random = np.random.default_rng(seed)
    drawn = random.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_draws)
    counts = torch.from_numpy(drawn).double()
    columns = (design.columns - design.columns.mean(0)).double()

    def total(values: Float[Tensor, "row *value"]) -> Float[Tensor, "draw *value"]:
        """The sum over the rows of each draw."""
        flat = values.double().reshape(len(values), -1)
        by_group = flat.new_zeros(n_groups, flat.shape[1]).index_add_(0, codes, flat)
        return (counts @ by_group).reshape(n_draws, *values.shape[1:])

    n_rows = total(torch.ones(len(codes)))
    count, offset, square = (
        total(part) for part in (design.columns.double(), columns, columns.square())
    )
    square = square - offset.square() / n_rows[:, None]
    won = []
    for values in activations - activations.mean(1, keepdim=True):
        mean = total(values) / n_rows
        cross = total(values[:, None] * columns) - mean[:, None] * offset
        variance = total(values.square()) - n_rows * mean.square()
        explained = adjusted_share(design, cross, square, count, variance, n_rows)
        best = explained.amax(1, keepdim=True)
        # Features that explain exactly as much (a and its copy) share the place.
        first = (explained >= best - _ROUNDING) & (best > 0)
        won.append((first / first.sum(1, keepdim=True).clamp(min=1)).mean(0))
    return torch.stack(won)


class _Part:
    """Some of the neurons: what is observed, and the same under the null."""

    def __init__(
        self,
        activations: Float[Tensor, "neuron row"],
        fitted: FeatureMatrix,
        held: FeatureMatrix,
        halves: tuple[Tensor, Tensor],
        k: int,
    ) -> None:
        self.design, self.k = held, k
        self.fit = Fit.of(activations[:, halves[0]], fitted)
        self.values = values = activations[:, halves[1]]
        self.unit = standardised(values)
        self.r = self.fit.agreement(self.unit, held, held.columns)
        self.inside = indicators(equal_width_codes(values, n_bins=N_BINS), N_BINS)
        self.information = information_of_columns(self.inside, held.classes, held.n_classes)
        self.top, self.bottom = highest(values, k), highest(-values, k)
        kinds = [feature.kind for feature in held.features]
        self.is_flag = torch.tensor([kind == "flag" for kind in kinds])
        # The column of each flag; of other features the first of theirs, which is not read.
        self.first = torch.searchsorted(held.owner, torch.arange(len(kinds)))
        base = held.columns[:, self.first].mean(0)
        self.base = torch.where(self.is_flag, base, torch.nan)
        slopes = self.fit.coefficients[:, self.first]
        single = torch.tensor([kind != "category" for kind in kinds])
        self.direction = torch.where(single, slopes, 0.0)

    def overlap(self, chosen: Float[Tensor, "neuron row"]) -> Table:
        """Share of the chosen examples that have each flag."""
        return torch.where(self.is_flag, chosen @ self.design.columns[:, self.first], torch.nan)

    def intervals(self, groups: Sequence[str]) -> Float[Tensor, "end neuron feature"]:
        """Lower and upper ends of r over groups; NaN with too few of them."""
        if len(set(groups)) < FEWEST_GROUPS:
            return torch.full((2, *self.r.shape), torch.nan, dtype=torch.float64)
        found = [
            correlate(self.fit.predictions(self.design, neuron), values, groups)
            for neuron, values in enumerate(self.values)
        ]
        return torch.stack([torch.stack([one.low, one.high]) for one in found], dim=1)

    def nulls(self, exchange: FeaturePermutation | None) -> dict[str, Table]:
        """Family-wise p of everything, and the single p of r; NaN where there is no null."""
        if exchange is None:
            names = ("p", "single", "p_top", "p_bottom", "p_information")
            return dict.fromkeys(names, torch.full_like(self.r, torch.nan))
        return self._correlation_p(exchange) | self._count_p(exchange)

    def _correlation_p(self, exchange: FeaturePermutation) -> dict[str, Table]:
        # float32 is exact enough for a draw, and the columns under signs are centred once.
        columns = self.design.columns.float()
        signed = torch.tensor([exchange.schemes[f] == SIGNS for f in self.design.owner.tolist()])
        columns = torch.where(signed, columns - columns.mean(0), columns)
        fixed = predicted_square(self.fit, self.design, columns) if signed.any() else None
        unit, weights = self.unit.float(), self.fit.coefficients.float()
        reached, largest = torch.zeros_like(self.r), []
        bar = self.r.float() - _ROUNDING
        for drawn in exchange.columns(self.design, columns):
            square = None
            if fixed is not None:
                plain = self.design.per_feature(weights**2 * (drawn**2).sum(0))
                square = torch.where(exchange.under_signs, fixed, plain)
            r = self.fit.agreement(unit, self.design, drawn, square)
            reached += r >= bar
            largest.append(r.amax(1))
        return {
            "p": _family(self.r, torch.stack(largest).double()),
            "single": (1 + reached) / (1 + exchange.n_draws),
        }

    def _count_p(self, exchange: FeaturePermutation) -> dict[str, Table]:
        """Of overlap and information, which count classes; max-T over each one's standard scores.

        An overlap's standard error is that of its base rate, information's that of its own null,
        the observation counted in, as it is one of the draws under the null.
        """
        ends = {"p_top": self.top.float(), "p_bottom": self.bottom.float()}
        spread = (self.base * (1 - self.base)).sqrt().float().clamp(min=1e-3)
        # The second class of a flag, which has two.
        place = (torch.tensor(self.design.n_classes).cumsum(0) - 1)[self.is_flag]
        largest: dict[str, list[Tensor]] = {name: [] for name in ends}
        null = [self.information.float()]
        for drawn in exchange.classes(self.design):
            null.append(information_of_columns(self.inside, drawn, self.design.n_classes).float())
            for name, chosen in ends.items() if len(place) else ():
                z = (chosen @ drawn[:, place] - self.base[self.is_flag]) / spread[self.is_flag]
                largest[name].append(z.amax(1))
        found = {name: torch.full_like(self.r, torch.nan) for name in ends}
        for name, chosen in ends.items() if len(place) else ():
            z = (self.overlap(chosen.double()) - self.base) / spread
            p = _family(z[:, self.is_flag], torch.stack(largest[name]).double())
            found[name][:, self.is_flag] = p
        draws = torch.stack(null)
        # What no draw changes cannot be tested: its distance from its own null is 0.
        scale = draws.std(0, correction=0).clamp(min=1e-5)
        scores = ((draws - draws.mean(0)) / scale).double()
        return found | {"p_information": _family(scores[0], scores[1:].amax(-1))}


def predicted_square(
    fit: Fit, design: FeatureMatrix, columns: Float[Tensor, "row column"]
) -> Float[Tensor, "neuron feature"]:
    """Σ over rows of the squared prediction, for centred columns that overlap within a feature."""
    weights = fit.coefficients.to(columns)
    total = weights.new_zeros(len(weights), len(design.features))
    for feature in design.owner.unique().tolist():
        mine = design.owner == feature
        part = columns[:, mine]
        gram = part.T @ part
        total[:, feature] = ((weights[:, mine] @ gram) * weights[:, mine]).sum(1)
    return total


def standardised(activations: Float[Tensor, "neuron row"]) -> Float[Tensor, "neuron row"]:
    """Rows less their mean, of length 1 (0 where they do not vary)."""
    centred = activations - activations.mean(1, keepdim=True)
    length = (centred**2).sum(1).sqrt()
    silent: Bool[Tensor, " neuron"] = length <= 1e-9 * activations.abs().amax(1)
    return centred * rearrange(torch.where(silent, 0.0, _inverse(length)), "neuron -> neuron 1")


def highest(values: Float[Tensor, "neuron row"], k: int) -> Float[Tensor, "neuron row"]:
    """Weights, of sum 1, of each neuron's k highest rows; equals at the edge share what is left.

    >>> highest(torch.tensor([[3.0, 1.0, 1.0, 0.0]]), 2).tolist()
    [[0.5, 0.25, 0.25, 0.0]]
    """
    edge = values.topk(k, dim=1).values[:, -1:]
    above, equal = values > edge, values == edge
    share = (k - above.sum(1, keepdim=True)) / equal.sum(1, keepdim=True)
    return (above + equal * share).to(values.dtype) / k


def _family(
    observed: Float[Tensor, "neuron feature"], largest: Float[Tensor, "draw neuron"]
) -> Float[Tensor, "neuron feature"]:
    """Each neuron's family-wise p: its observations among the largest of its draws."""
    rows = [rank_p(mine - _ROUNDING, largest[:, neuron]) for neuron, mine in enumerate(observed)]
    return torch.stack(rows)


def _single(design: FeatureMatrix) -> Bool[Tensor, " column"]:
    """Columns of flags and numbers, which stand alone."""
    alone = torch.tensor([feature.kind != "category" for feature in design.features])
    return alone[design.owner]


def _inverse(x: Float[Tensor, "*x"], *, floor: float = 1e-30) -> Float[Tensor, "*x"]:
    """1 / x, and 0 where x is 0."""
    return torch.where(x > floor, 1 / x.clamp(min=floor), 0.0)
