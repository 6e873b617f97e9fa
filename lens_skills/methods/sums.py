"""`Sums`: what one streamed pass adds up, enough for every method that needs no stored values."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.methods.target import Target
from lens_skills.scoring.association import ROUNDING
from lens_skills.stats.moments import Moments

_CONSTANT = 1e-6  # of its mean: a neuron that varies less is constant to float32 rounding


@dataclass(frozen=True, eq=False)
class Sums:
    """Means, squares and products of every unit with the target, by class.

    Attributes:
        target: What is ranked by.
        mean: Of each unit.
        square: Σ (x - x̄)² of each unit.
        cross: Σ (y - ȳ)(x - x̄) with the target's numbers.
        class_cross: Σ (1_c - share_c)(x - x̄) with the membership of each class.
        target_square: Σ (y - ȳ)².
        size: Examples of each class.
        n_rows: Examples.
        fired: How often the gate of each unit was open, by class; None where it was not read.
        width: Units of one layer, which stand together.
    """

    target: Target
    mean: Float[Tensor, " unit"]
    square: Float[Tensor, " unit"]
    cross: Float[Tensor, " unit"]
    class_cross: Float[Tensor, "category unit"]
    target_square: float
    size: Float[Tensor, " category"]
    n_rows: int
    fired: Float[Tensor, "category unit"] | None
    width: int

    @classmethod
    def of(
        cls,
        target: Target,
        moments: Moments,
        fired: Float[Tensor, "category unit"] | None,
        width: int,
    ) -> "Sums":
        """The sums of a finished pass whose columns were the target and its classes."""
        return cls(
            target=target,
            mean=moments.unit_mean.cpu(),
            square=moments.square.cpu(),
            cross=moments.cross[0].cpu(),
            class_cross=moments.cross[1:].cpu(),
            target_square=float(moments.column_square[0]),
            size=target.membership.sum(0),
            n_rows=len(target.values),
            fired=fired,
            width=width,
        )

    @property
    def class_mean(self) -> Float[Tensor, "category unit"]:
        """Mean activation in each class: x̄ + Σ (1_c - share_c)(x - x̄) / n_c."""
        return self.mean + self.class_cross / rearrange(self.size, "category -> category 1")

    @property
    def between(self) -> Float[Tensor, " unit"]:
        """Σ_c n_c (x̄_c - x̄)²: what the classes explain of each unit's square."""
        return (self.class_cross**2 / rearrange(self.size, "category -> category 1")).sum(0)

    @property
    def within(self) -> Float[Tensor, " unit"]:
        """What the classes leave of it."""
        return (self.square - self.between).clamp(min=0)

    @property
    def constant(self) -> Bool[Tensor, " unit"]:
        """Units that do not vary beyond rounding; no method ranks them."""
        spread = (self.square / self.n_rows).sqrt()
        size = (self.square / self.n_rows + self.mean**2).sqrt()
        layers = rearrange(size, "(layer unit) -> layer unit", unit=self.width)
        floor = ROUNDING * layers.median(dim=1, keepdim=True).values.expand_as(layers)
        flat = spread <= rearrange(floor, "layer unit -> (layer unit)")
        return flat | (spread <= _CONSTANT * self.mean.abs())


def joined(parts: list[Sums]) -> Sums:
    """The sums of several groups of layers, read one after another, as one."""
    fired = [part.fired for part in parts if part.fired is not None]
    first = parts[0]
    return Sums(
        target=first.target,
        mean=torch.cat([part.mean for part in parts]),
        square=torch.cat([part.square for part in parts]),
        cross=torch.cat([part.cross for part in parts]),
        class_cross=torch.cat([part.class_cross for part in parts], dim=1),
        target_square=first.target_square,
        size=first.size,
        n_rows=first.n_rows,
        fired=torch.cat(fired, dim=1) if fired else None,
        width=first.width,
    )
