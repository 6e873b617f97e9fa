"""`associate`: how well each feature explains each neuron, on examples it was not fitted on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.explanation.design import Design
from lens_skills.explanation.exchanging import SIGNS, Exchange
from lens_skills.explanation.fitting import Fit, predicted_square, standardised
from lens_skills.stats.corrections import false_discovery_q, family_p
from lens_skills.stats.information import (
    N_BINS,
    equal_width_codes,
    indicators,
    information_of_columns,
)

_TOGETHER = 128  # neurons measured at once
_ROUNDING = 1e-6  # nulls are computed in float32

Table = Float[Tensor, "neuron feature"]


@dataclass(frozen=True, eq=False)
class Association:
    """Every neuron against every feature, on the held-out half.

    Attributes:
        explained_fitted: Adjusted share of variance explained on the half the fit was made on:
            what features are ranked by.
        r: Correlation, on the other half, of the activation with what the feature predicts of it.
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
    r: Table
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


def associate(
    activations: Float[Tensor, "neuron row"],
    design: Design,
    groups: Sequence[str],
    halves: tuple[Int[Tensor, " fitted"], Int[Tensor, " held"]],
    *,
    k: int,
    n_permutations: int,
    seed: int = 0,
) -> Association:
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
    exchange = Exchange.of(here, names, n_permutations, seed=seed) if n_permutations else None
    parts = [
        _Part(activations[start : start + _TOGETHER], design.rows(fitted), here, halves, k)
        for start in range(0, len(activations), _TOGETHER)
    ]
    nulls = [part.nulls(exchange) for part in parts]
    single = torch.cat([null["single"] for null in nulls])
    q = single if exchange is None else false_discovery_q(single.flatten()).view_as(single)

    def joined(name: str) -> Table:
        return torch.cat([null[name] for null in nulls])

    return Association(
        explained_fitted=torch.cat([part.fit.explained for part in parts]),
        r=torch.cat([part.r for part in parts]),
        direction=torch.cat([part.direction for part in parts]),
        overlap_top=torch.cat([part.overlap(part.top) for part in parts]),
        overlap_bottom=torch.cat([part.overlap(part.bottom) for part in parts]),
        base=parts[0].base,
        information=torch.cat([part.information for part in parts]),
        p=joined("p"),
        q=q,
        p_top=joined("p_top"),
        p_bottom=joined("p_bottom"),
        p_information=joined("p_information"),
        schemes=() if exchange is None else exchange.schemes,
        k=k,
    )


class _Part:
    """Some of the neurons: what is observed, and the same under the null."""

    def __init__(
        self,
        activations: Float[Tensor, "neuron row"],
        fitted: Design,
        held: Design,
        halves: tuple[Tensor, Tensor],
        k: int,
    ) -> None:
        self.design, self.k = held, k
        self.fit = Fit.of(activations[:, halves[0]], fitted)
        values = activations[:, halves[1]]
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

    def nulls(self, exchange: Exchange | None) -> dict[str, Table]:
        """Family-wise p of everything, and the single p of r; NaN where there is no null."""
        if exchange is None:
            names = ("p", "single", "p_top", "p_bottom", "p_information")
            return dict.fromkeys(names, torch.full_like(self.r, torch.nan))
        return self._correlation_p(exchange) | self._count_p(exchange)

    def _correlation_p(self, exchange: Exchange) -> dict[str, Table]:
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

    def _count_p(self, exchange: Exchange) -> dict[str, Table]:
        """Of overlap and information, which count classes; max-T over each one's standard scores.

        An overlap's standard error is that of its base rate, information's that of its own null,
        the observation counted in, as it is one of the draws under the null.
        """
        sides = {"p_top": self.top.float(), "p_bottom": self.bottom.float()}
        spread = (self.base * (1 - self.base)).sqrt().float().clamp(min=1e-3)
        # The second class of a flag, which has two.
        place = (torch.tensor(self.design.n_classes).cumsum(0) - 1)[self.is_flag]
        largest: dict[str, list[Tensor]] = {name: [] for name in sides}
        null = [self.information.float()]
        for drawn in exchange.classes(self.design):
            null.append(information_of_columns(self.inside, drawn, self.design.n_classes).float())
            for name, side in sides.items() if len(place) else ():
                z = (side @ drawn[:, place] - self.base[self.is_flag]) / spread[self.is_flag]
                largest[name].append(z.amax(1))
        found = {name: torch.full_like(self.r, torch.nan) for name in sides}
        for name, side in sides.items() if len(place) else ():
            z = (self.overlap(side.double()) - self.base) / spread
            p = _family(z[:, self.is_flag], torch.stack(largest[name]).double())
            found[name][:, self.is_flag] = p
        draws = torch.stack(null)
        # What no draw changes cannot be tested: its distance from its own null is 0.
        scale = draws.std(0, correction=0).clamp(min=1e-5)
        scores = ((draws - draws.mean(0)) / scale).double()
        return found | {"p_information": _family(scores[0], scores[1:].amax(-1))}


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
    rows = [family_p(mine - _ROUNDING, largest[:, neuron]) for neuron, mine in enumerate(observed)]
    return torch.stack(rows)
