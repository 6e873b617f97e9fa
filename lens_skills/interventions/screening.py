"""`Screening`: which units a sweep measured because gradients chose them, and which were drawn.

`LeftOut` is what the drawn ones say of those that nobody measured.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.cards import card_lines
from lens_skills.errors import LensSkillsError
from lens_skills.stats.correlation import spearman
from lens_skills.stats.finite_sample import count_interval, total_from_sample

LEAST_DRAWN = 30
"""At least so many units are drawn, where so many are left out."""

MOST_K = 100
"""The largest effects that a screening is held to find, where nothing else is asked."""


@dataclass(frozen=True)
class LeftOut:
    """What a random exact sample says of the units that a screening left out.

    An effect is the mean over examples here, and its size the magnitude of that.

    Attributes:
        k: The threshold is the ``k``-th largest effect of those that gradients chose.
        threshold: Its size, in the metric's unit.
        n_units: How many units were left out, the drawn ones among them.
        n_drawn: How many of them were drawn and measured.
        n_beyond: How many drawn ones are beyond the threshold.
        beyond, beyond_low, beyond_high: How many left out are, by estimate, with its exact 95 %
            interval.
        largest: The largest size among the drawn; NaN where none was drawn.
        total, total_low, total_high: Σ size over all left out, with its approximate 95 % interval.
        measured_total: Σ size over those that gradients chose.
        agreement: Spearman's correlation of predicted and measured effects among the drawn.
        error: Mean of \\|predicted - measured effect\\| among the drawn, in the metric's unit.
        recall: The share of the drawn tenth with the largest effects that is also among the tenth
            with the largest predictions.
    """

    k: int
    threshold: float
    n_units: int
    n_drawn: int
    n_beyond: int
    beyond: float
    beyond_low: int
    beyond_high: int
    largest: float
    total: float
    total_low: float
    total_high: float
    measured_total: float
    agreement: float
    error: float
    recall: float

    def lines(self, unit: str) -> list[str]:
        """For a card."""
        if not self.n_units:
            return ["  Nothing was left out."]
        if not self.n_drawn:
            text = f"of the {self.n_units:,} left out none was drawn, so nothing is known of them"
            return card_lines(text, indent=2)
        unit = f" {unit}" if unit else ""
        found = (
            f"beyond {self.threshold:.2g}{unit}, number {self.k:,} of the chosen by size, are "
            f"{self.n_beyond:,} of {self.n_drawn:,} drawn, so {self.beyond:,.0f} "
            f"[{self.beyond_low:,}, {self.beyond_high:,}] of the {self.n_units:,} left out (95 %)"
        )
        rest = (
            f"Σ |effect| of those left out {self.total:.2g} [{self.total_low:.2g}, "
            f"{self.total_high:.2g}], of those chosen {self.measured_total:.2g}; the largest drawn "
            f"{self.largest:.2g}"
        )
        good = (
            f"the prediction's error among the drawn: {self.error:.2g}{unit} on average, rank "
            f"agreement {self.agreement:.2f}, {self.recall:.0%} of their largest tenth"
        )
        return [line for text in (found, rest, good) for line in card_lines(text, indent=2)]


@dataclass(frozen=True, eq=False)
class Screening:
    """What gradients expected of every unit, and which of them were measured.

    Attributes:
        names: All units that were asked for.
        predicted: The first-order effect of the edit, the mean over examples, signed and in the
            metric's unit; an estimate. NaN where the gradient is not finite.
        taylor: Mean \\|Σ a · ∂m/∂a\\|; see `Prescreen`.
        chosen: Which were measured because one of the two is large.
        drawn: Which were measured as a random sample of the others.
        share: The share of all units that gradients chose.
        seed: Of the sample.
    """

    names: tuple[str, ...]
    predicted: Float[Tensor, " unit"]
    taylor: Float[Tensor, " unit"]
    chosen: Bool[Tensor, " unit"]
    drawn: Bool[Tensor, " unit"]
    share: float
    seed: int

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        predicted: Float[Tensor, " unit"],
        taylor: Float[Tensor, " unit"],
        *,
        share: float,
        drawn: float,
        seed: int,
    ) -> "Screening":
        """Chooses the units that stand highest in either ranking, and draws from the others.

        The chosen are the union of the two rankings' equally long tops; ``drawn`` is the sample's
        share of all units, at least `LEAST_DRAWN` of them.

        Raises:
            LensSkillsError: A share that is not between 0 and 1.
        """
        for name, value, least in (("screen", share, 0.0), ("drawn", drawn, -1e-9)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not least < value <= 1:
                raise LensSkillsError(
                    f"{name} is a share of the units, between 0 and 1, not {value!r}: 0.07 are "
                    "seven in a hundred."
                )
        n = len(names)
        # What is not finite stands first: nothing is known of it.
        sizes = [size.abs().nan_to_num(math.inf) for size in (predicted, taylor)]
        places = torch.stack([_places(size) for size in sizes]).amin(0)
        chosen = torch.zeros(n, dtype=torch.bool)
        chosen[places.argsort(stable=True)[: math.ceil(share * n)]] = True
        rest = (~chosen).nonzero()[:, 0]
        size = max(math.ceil(drawn * n), LEAST_DRAWN) if drawn > 0 else 0
        order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
        sample = torch.zeros(n, dtype=torch.bool)
        sample[rest[order[:size]]] = True
        return cls(names, predicted, taylor, chosen, sample, float(share), seed)

    @property
    def measured(self) -> Bool[Tensor, " unit"]:
        """Which were measured."""
        return self.chosen | self.drawn

    @property
    def known(self) -> list[str]:
        """What is known of each unit: ``"exact"``, ``"predicted"`` or ``"unknown"``."""
        finite = self.predicted.isfinite()
        return [
            "exact" if measured else "predicted" if there else "unknown"
            for measured, there in zip(self.measured.tolist(), finite.tolist(), strict=True)
        ]

    def left_out(self, effects: Float[Tensor, " measured"], k: int | None = None) -> LeftOut:
        """What the drawn units say of those left out.

        Args:
            effects: Mean effects of the measured units, in order.
            k: Which of the chosen ones' largest effects is the threshold; of fewer, the smallest.
                None: the 100th, or the last of the largest tenth where that comes first.

        Raises:
            LensSkillsError: ``k`` below 1.
        """
        if k is None:
            k = min(MOST_K, max(1, math.ceil(int(self.chosen.sum()) / 10)))
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise LensSkillsError(f"k must be a whole number from 1 on, not {k!r}.")
        every = torch.full((len(self.names),), math.nan, dtype=torch.float64)
        every[self.measured] = effects.double()
        best = every[self.chosen].abs().sort(descending=True).values
        k = min(k, max(1, len(best)))
        threshold = float(best[k - 1]) if len(best) else 0.0
        drawn, guess = every[self.drawn], self.predicted.double().nan_to_num(0.0, 0.0, 0.0)
        n, left = len(drawn), ~self.chosen
        beyond, n_left = int((drawn.abs() > threshold).sum()), int(left.sum())
        total = total_from_sample(
            drawn.abs(), guess[self.drawn].abs(), float(guess[left].abs().sum()), n_left
        )
        low, high = count_interval(beyond, n, n_left)
        here = guess[self.drawn]
        tenth = max(1, n // 10)
        top = [set(x.abs().argsort(descending=True)[:tenth].tolist()) for x in (here, drawn)]
        return LeftOut(
            k=k,
            threshold=threshold,
            n_units=n_left,
            n_drawn=n,
            n_beyond=beyond,
            beyond=n_left * beyond / n if n else math.nan,
            beyond_low=low,
            beyond_high=high,
            largest=float(drawn.abs().max()) if n else math.nan,
            total=total[0],
            total_low=total[1],
            total_high=total[2],
            measured_total=float(best.sum()),
            agreement=_agreement(here, drawn),
            error=float((here - drawn).abs().mean()) if n else math.nan,
            recall=len(top[0] & top[1]) / tenth if n else math.nan,
        )


def _places(size: Float[Tensor, " unit"]) -> Tensor:
    """The place of each in the ranking by size, from 0 on."""
    order = size.argsort(descending=True, stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    return places


def _agreement(predicted: Float[Tensor, " drawn"], measured: Float[Tensor, " drawn"]) -> float:
    """Spearman's correlation; NaN where one of the two does not vary."""
    if predicted.unique().numel() < 2 or measured.unique().numel() < 2:
        return math.nan
    return float(spearman(torch.stack([predicted, measured]))[0, 1])
