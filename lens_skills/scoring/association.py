"""From the sums of a pass to correlations: of metrics, of their null draws, of rotated units."""

from dataclasses import dataclass
from functools import cached_property

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.scoring.columns import Layout
from lens_skills.stats.moments import Moments
from lens_skills.stats.rotation import rotate

# A unit whose standard deviation is below this share of its mean is constant to float32 rounding.
_CONSTANT = 1e-6
# The same against the typical size (median root mean square) of the units computed with it, whose
# rounding it shares. Measured on SmolLM2: rounding moved constant neurons by up to 8e-5 of that,
# while the least a varying neuron varied by was 13e-5.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Association:
    """Partial correlations, given the covariates, out of the moments of one pass.

    With r(c, x | Z) = (S_cx - S_cZ S_ZZ⁻¹ S_Zx) / sqrt(S_cc|Z S_xx|Z), S being centred sums.
    Without covariates this is Pearson's r. ``floor`` is the standard deviation that rounding alone
    may give each unit.
    """

    moments: Moments
    layout: Layout
    floor: Float[Tensor, " unit"] | None = None

    @property
    def given(self) -> slice:
        return slice(len(self.layout.metrics), self.layout.n_base)

    @cached_property
    def slopes(self) -> Float[Tensor, "given column"]:
        """Slopes of every column on the covariates."""
        within = self.moments.gram[self.given, self.given]
        return torch.linalg.solve(within, self.moments.gram[:, self.given].T)

    @cached_property
    def unit_square(self) -> Float[Tensor, " unit"]:
        """What the covariates leave of each unit's sum of squares."""
        return self._left(self.moments.square, self.moments.cross[self.given])

    def _left(
        self, square: Float[Tensor, " unit"], cross: Float[Tensor, "given unit"]
    ) -> Float[Tensor, " unit"]:
        if cross.shape[0] == 0:
            return square
        within = self.moments.gram[self.given, self.given]
        explained = einsum(
            cross, torch.linalg.solve(within, cross), "given unit, given unit -> unit"
        )
        return (square - explained).clamp(min=0)

    @cached_property
    def constant(self) -> Bool[Tensor, " unit"]:
        """Units that do not vary, or not beyond what the covariates explain."""
        spread = (self.moments.square / self.moments.weight).sqrt()
        flat = spread <= _CONSTANT * self.moments.unit_mean.abs()
        if self.floor is not None:
            flat = flat | (spread <= self.floor)
        return flat | (self.unit_square <= 1e-9 * self.moments.square)

    def metric_square(self, place: int) -> float:
        """What the covariates leave of a metric's sum of squares."""
        return float(self.column_square(slice(place, place + 1))[0])

    def column_square(self, which: slice) -> Float[Tensor, " column"]:
        square = self.moments.column_square[which]
        if self.layout.n_given == 0:
            return square
        across = self.moments.gram[which, self.given]
        slopes = self.slopes[:, which]
        return (square - einsum(across, slopes, "column given, given column -> column")).clamp(
            min=0
        )

    def numerators(
        self, which: slice, cross: Float[Tensor, "any unit"] | None = None
    ) -> Float[Tensor, "column unit"]:
        """S_cx given the covariates, for some columns (``cross``: in another basis of units)."""
        cross = self.moments.cross if cross is None else cross
        if self.layout.n_given == 0:
            return cross[which]
        return cross[which] - self.slopes[:, which].T @ cross[self.given]

    @cached_property
    def unit_scale(self) -> Float[Tensor, " unit"]:
        """1 / sqrt(S_xx|Z) of each unit; 0 where it is constant, so that its r is 0."""
        return _inverse_root(self.unit_square, self.constant)

    def correlations(self, which: slice) -> Float[Tensor, "column unit"]:
        """r of some columns with every unit; 0 where the unit or the column is constant."""
        square = self.column_square(which)
        scale = _inverse_root(square, square <= 0)
        return self._scaled(self.numerators(which), rearrange(scale, "column -> column 1"))

    def _scaled(
        self, numerators: Float[Tensor, "column unit"], scale: Float[Tensor, "#column 1"] | float
    ) -> Float[Tensor, "column unit"]:
        # A hundred draws of all neurons are 37 MB: as few passes over them as can be.
        return (numerators * self.unit_scale).mul_(scale)

    def null(self, name: str) -> Float[Tensor, "draw unit"]:
        """r of a metric with every unit, in each draw of its null hypothesis."""
        place = self.layout.metrics.index(name)
        if name in self.layout.flipped:
            return self._signed_null(name, place)
        return self.correlations(self.layout.draws(f"draws/{name}"))

    def _signed_null(self, name: str, place: int) -> Float[Tensor, "draw unit"]:
        """Sign flips of a metric, its mean and covariates taken out when the pass is over.

        With e = m - m̄ - β'(Z - Z̄), the column ε e is the sum ε m - m̄ ε - Σ β_j (ε Z_j - Z̄_j ε),
        so its sums follow from those of ε, ε m and ε Z.
        """
        layout, moments = self.layout, self.moments
        mean = moments.column_mean
        plain = layout.draws("signs")
        slopes = self.slopes[:, place]

        def combine(sums: Tensor) -> Tensor:
            signs = sums[plain]
            total = torch.sub(sums[layout.draws(f"signs/{name}")], signs, alpha=float(mean[place]))
            for given in range(layout.n_given):
                centre = mean[self.given][given]
                part = torch.sub(
                    sums[layout.draws(f"signs/given{given}")], signs, alpha=float(centre)
                )
                total.sub_(part, alpha=float(slopes[given]))
            return total

        numerators = combine(moments.cross)
        if layout.n_given:
            across = combine(moments.gram[:, self.given])
            within = moments.gram[self.given, self.given]
            numerators = numerators - across @ torch.linalg.solve(within, moments.cross[self.given])
        return numerators.mul_(self.unit_scale).mul_(self._sign_scale(place))

    def _sign_scale(self, place: int) -> float:
        """1 / sqrt(S_mm|Z) of a metric whose contributions are flipped group by group.

        Taking the means out binds the groups' contributions to each other, which flips undo: the
        draws are narrower than r itself by (G - 1) / G in square. With 20 groups a family-wise 5 %
        was 6.6 % without the factor, and is 4.4 % with it (the CR1 factor of clustered errors,
        Cameron & Miller 2015, section III.C).
        """
        n_groups = self.layout.n_groups
        return (n_groups / max(n_groups - 1, 1) / self.metric_square(place)) ** 0.5

    def rotated(
        self, place: int, rotation: Float[Tensor, "width width"], which: int
    ) -> Float[Tensor, " unit"]:
        """r of a metric with every direction of a rotated basis."""
        base = slice(0, self.layout.n_base)
        cross = rotate(self.moments.cross[base].float(), rotation).double()
        square = self._left(self.moments.rotated_square[which], cross[self.given])
        numerators = self.numerators(slice(place, place + 1), cross)[0]
        r = numerators * _inverse_root(square, square <= 0) * self.metric_square(place) ** -0.5
        return r.clamp(-1, 1)


def _inverse_root(
    square: Float[Tensor, "*shape"], constant: Bool[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    return torch.where(constant, 0.0, square.clamp(min=1e-300).rsqrt())
