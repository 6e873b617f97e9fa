"""Running sums of units against columns: the one statistic a pass over the data keeps.

A *unit* is anything measured on every example and too numerous to store (a neuron at a position).
A *column* is one number per example (a metric, a permuted metric, a covariate, a random sign).
Everything the toolkit reports about a pass is a function of the centred sums kept here; those of
the units are also kept in a randomly rotated basis of the standardised units (`Rotation`).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.stats.rotations import Rotation

# Rows are multiplied this many at a time, or as soon as they hold so many numbers and a quarter of
# the memory of the sums: every product reads and writes all sums, which for one batch of 32 costs
# more than the arithmetic.
_ROWS_TOGETHER, _NUMBERS_TOGETHER = 128, 1 << 23

# The first rows give the scale of each unit, and of fewer than these it would be a guess.
_FIRST_ROWS = 32

# A unit's scale is at least this share of its layer's median: a constant one is not blown up.
_LEAST_SCALE = 0.01

# Units summed together: at 128 float64 rows this is 3 MB, about one core's cache.
_BLOCK = 3072


@dataclass(frozen=True)
class Moments:
    """Centred second moments of units and columns over the rows seen so far (float64).

    Rows may carry a weight: an example read at T tokens counts as T rows that share its columns.

    Attributes:
        weight: Sum of the row weights (the number of rows where all weights are 1).
        column_mean: Weighted mean of each column.
        unit_mean: Weighted mean of each unit.
        gram: Σ w (c - c̄)(b - b̄) for every column c and each of the first columns b, the *base*
            (metrics and covariates; permuted columns are never multiplied with each other).
        column_square: Σ w (c - c̄)² for every column.
        cross: Σ w (c - c̄)(x - x̄) for every column and unit.
        square: Σ w (x - x̄)² for every unit.
        rotated_square: Of the units over their ``scale``, in a rotated basis; a row per rotation.
        scale: About the standard deviation of each unit (of the first rows): what it is divided by
            before it is rotated, so that no loud unit decides what a direction is. None without
            rotations.
        origin: About the mean of each unit (of the first rows).
        squares: Σ w c (x - origin)² for each of the columns asked for (not centred).
    """

    weight: float
    column_mean: Float[Tensor, " column"]
    unit_mean: Float[Tensor, " unit"]
    gram: Float[Tensor, "column base"]
    column_square: Float[Tensor, " column"]
    cross: Float[Tensor, "column unit"]
    square: Float[Tensor, " unit"]
    rotated_square: Float[Tensor, "rotation unit"]
    scale: Float[Tensor, " unit"] | None = None
    origin: Float[Tensor, " unit"] | None = None
    squares: Float[Tensor, "squared unit"] | None = None

    @classmethod
    def of(
        cls, columns: Float[Tensor, "row column"], units: Float[Tensor, "row unit"]
    ) -> "Moments":
        """The moments of one batch of rows, each of weight 1.

        >>> Moments.of(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [3.0]])).cross.item()
        1.0
        """
        running = RunningMoments(columns.shape[1], units.shape[1])
        running.absorb(columns, units)
        return running.freeze()

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets of rows together.

        Source: Chan, Golub & LeVeque (1983), pairwise update of centred sums.
        """
        weight = self.weight + other.weight
        share = other.weight / weight if weight else 0.0
        column_step = other.column_mean - self.column_mean
        unit_step = other.unit_mean - self.unit_mean
        scale = self.weight * share
        # Rotated centred sums need the rotated step, which only the pass knows how to make;
        # so a rotation is carried by RunningMoments and merged there.
        assert self.rotated_square.shape[0] == other.rotated_square.shape[0] == 0
        squares = None
        if self.squares is not None:
            assert other.squares is not None
            assert self.origin is not None
            assert other.origin is not None
            assert self.origin.equal(other.origin), "squares about two origins: see at_origin"
            squares = self.squares + other.squares
        return Moments(
            weight=weight,
            column_mean=self.column_mean + share * column_step,
            unit_mean=self.unit_mean + share * unit_step,
            gram=self.gram
            + other.gram
            + scale * torch.outer(column_step, column_step[: self.gram.shape[1]]),
            column_square=self.column_square + other.column_square + scale * column_step**2,
            cross=self.cross + other.cross + scale * torch.outer(column_step, unit_step),
            square=self.square + other.square + scale * unit_step**2,
            rotated_square=self.rotated_square,
            origin=self.origin,
            squares=squares,
        )

    def to(self, device: torch.device | str) -> "Moments":
        """The same on another device."""
        parts = {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **{name: x.to(device) for name, x in parts.items()})

    def at_origin(self, origin: Float[Tensor, " unit"], squared: slice) -> "Moments":
        """The same sums with the squares about another origin; ``squared`` are their columns.

        Σ w c (x - o')² = Σ w c (x - o)² + 2 s Σ w c (x - o) + s² Σ w c, with s = o - o'.
        """
        assert self.origin is not None
        assert self.squares is not None
        step = self.origin - origin
        total = rearrange(self.weight * self.column_mean[squared], "column -> column 1")
        first = self.cross[squared] + total * (self.unit_mean - self.origin)
        squares = self.squares + step * (2 * first + step * total)
        return replace(self, origin=origin, squares=squares)


class RunningMoments:
    """`Moments` that grow in place: a whole-model pass holds one copy of its sums, not three.

    The shift between the running mean and a batch's mean enters as one extra row of the batch,
    sqrt(n_a n_b / n) (mean_b - mean_a), which makes Chan's update part of the same products.
    """

    def __init__(
        self,
        n_columns: int,
        n_units: int,
        *,
        n_base: int | None = None,
        rotations: list[Rotation] | None = None,
        squared: slice | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """``squared`` are the columns to multiply with the squares of the units, too.

        Raises:
            LensSkillsError: More draws than the memory holds sums for.
        """

        def zeros(*shape: int) -> Tensor:
            try:
                return torch.zeros(*shape, dtype=torch.float64, device=device)
            except RuntimeError as error:
                size = 8 * math.prod(shape) / 1e9
                raise LensSkillsError(
                    f"the sums of {n_columns:,} columns (metrics and their draws) with {n_units:,} "
                    f"units need {size:,.0f} GB. Ask for fewer draws (n_permutations=, n_controls=)"
                    " or fewer layers=."
                ) from error

        self.rotations = rotations or []
        self.weight = 0.0
        self.column_mean, self.unit_mean = zeros(n_columns), zeros(n_units)
        self.n_base = n_columns if n_base is None else n_base
        self.gram, self.cross = zeros(n_columns, self.n_base), zeros(n_columns, n_units)
        self.column_square = zeros(n_columns)
        self.square, self.rotated_square = zeros(n_units), zeros(len(self.rotations), n_units)
        self.squared = squared
        n_squared = 0 if squared is None else squared.stop - squared.start
        self.squares = zeros(n_squared, n_units)
        self.origin: Tensor | None = None
        self.scale: Tensor | None = None
        # Rows absorbed but not yet summed: their weights, columns and units.
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._buffers: list[Tensor] = []

    def absorb(
        self,
        columns: Float[Tensor, "row column"],
        units: Float[Tensor, "row unit"],
        *,
        weights: Float[Tensor, " row"] | None = None,
        residuals: Float[Tensor, "token unit"] | None = None,
    ) -> None:
        """Add a batch of rows (which wait until there are enough of them to multiply well).

        Args:
            columns: One row of columns per example.
            units: The units of each example; where an example stands for several tokens, their
                mean.
            weights: How many tokens each row stands for (default 1).
            residuals: What those means leave out: every token minus its example's mean.
        """
        weights = torch.ones(len(units)) if weights is None else weights
        # Its own device and type: the first rows of a resumed pass come from a file.
        self.waiting.append((weights.to(self.square), columns.to(self.square.device), units))
        if residuals is not None:
            if self.origin is None and self.rotations:
                self.settle()  # residuals are rotated too, and need the scale
            for block in self._blocks():
                self._add_squares(residuals[:, block], block)
        n_rows = sum(len(rows) for rows, _, _ in self.waiting)
        held = sum(rows.element_size() * rows.numel() for _, _, rows in self.waiting)
        sums = self.cross.element_size() * self.cross.numel()
        many = n_rows * len(self.square) >= _NUMBERS_TOGETHER and 4 * held >= sums
        if n_rows >= _ROWS_TOGETHER or (
            many and (self.origin is not None or n_rows >= _FIRST_ROWS)
        ):
            self.settle()

    def settle(self) -> None:
        """Bring the sums up to date with every row absorbed."""
        if not self.waiting:
            return
        weights, columns, units = zip(*self.waiting, strict=True)
        self.waiting = []
        weight = torch.cat(weights)
        before, total = self.weight, float(weight.sum())
        self.weight += total

        # Of rows that all count once, to multiply by 1 would be a pass for nothing.
        root = None if bool((weight == 1).all()) else rearrange(weight.sqrt(), "row -> row 1")

        def centre(
            parts: Iterable[Tensor], mean: Tensor, into: int
        ) -> tuple[Float[Tensor, "row any"], Float[Tensor, " any"]]:
            """All parts centred, the shift of the mean as the last row, and the mean of these.

            Moves the mean of all.
            """
            parts = list(parts)
            rows = self._buffer(into, len(weight) + 1, parts[0].shape[1])
            start = 0
            for part in parts:  # converted as it is copied
                rows[start : start + len(part)] = part
                start += len(part)
            here = weight @ rows[:-1] / total
            shift = here - mean
            rows[:-1] -= here
            if root is not None:
                rows[:-1] *= root
            rows[-1] = (before * total / self.weight) ** 0.5 * shift
            mean += total / self.weight * shift
            return rows, here

        centred, _ = centre(columns, self.column_mean, 0)
        self.gram.addmm_(centred.T, centred[:, : self.n_base])
        self.column_square += centred.square().sum(0)
        first = self.origin is None
        if first:
            self.origin, self.scale = torch.zeros_like(self.square), torch.ones_like(self.square)
        assert self.origin is not None
        assert self.scale is not None
        marks = None
        if self.squared is not None:
            marks = torch.cat([part[:, self.squared].to(weight) for part in columns])
        for block in self._blocks():
            rows, here = centre((part[:, block] for part in units), self.unit_mean[block], 1)
            if first:
                self.origin[block] = here
                self.scale[block] = self._first_scale(rows[:-1].square().sum(0) / total)
            self.cross[:, block].addmm_(centred.T, rows)
            self._add_squares(rows, block)
            if marks is not None:
                offset = here - self.origin[block]
                offset = offset if root is None else root * offset
                moved = torch.add(rows[:-1], offset, out=self._buffer(2, *rows[:-1].shape))
                self.squares[:, block].addmm_(marks.T, moved.square_())

    def merge(self, part: Moments) -> None:
        """Add the sums of other rows, about the same origin and on the same scale.

        Source: Chan, Golub & LeVeque (1983), pairwise update of centred sums.
        """
        self.settle()
        part = part.to(self.square.device)
        if not part.weight:
            return
        weight = self.weight + part.weight
        share = part.weight / weight
        column_step, unit_step = (
            part.column_mean - self.column_mean,
            part.unit_mean - self.unit_mean,
        )
        scale = self.weight * share
        self.gram += part.gram + scale * torch.outer(column_step, column_step[: self.n_base])
        self.column_square += part.column_square + scale * column_step**2
        self.cross += part.cross + scale * torch.outer(column_step, unit_step)
        self.square += part.square + scale * unit_step**2
        if self.rotations:
            assert self.scale is not None
            assert part.scale is not None
            assert self.scale.equal(part.scale), "squares in rotated bases of two scales"
            turned = (unit_step / self.scale)[None]
            for total, own, rotation in zip(
                self.rotated_square, part.rotated_square, self.rotations, strict=True
            ):
                total += own + scale * rotation.turn(turned)[0] ** 2
        if self.squared is not None:
            assert self.origin is not None
            assert part.origin is not None
            assert self.origin.equal(part.origin), "squares about two origins: see at_origin"
            assert part.squares is not None
            self.squares += part.squares
        self.column_mean += share * column_step
        self.unit_mean += share * unit_step
        self.weight = weight

    def _first_scale(self, variance: Float[Tensor, " unit"]) -> Float[Tensor, " unit"]:
        """The standard deviations, none far below its layer's median; 1 without rotations."""
        if not self.rotations:
            return torch.ones_like(variance)
        scale = rearrange(
            variance.sqrt(), "(layer width) -> layer width", width=self.rotations[0].width
        )
        median = scale.median(dim=1, keepdim=True).values
        least = torch.where(median > 0, _LEAST_SCALE * median, 1.0)
        return rearrange(torch.maximum(scale, least), "layer width -> (layer width)")

    def _blocks(self) -> list[slice]:
        """Units that are worked on together: whole layers, few enough to stay in the cache."""
        width = self.rotations[0].width if self.rotations else 1
        size = width * max(1, _BLOCK // width)
        return [slice(start, start + size) for start in range(0, len(self.square), size)]

    def _add_squares(self, rows: Float[Tensor, "row unit"], block: slice) -> None:
        if self.rotations:
            assert self.scale is not None
            scaled = (rows / self.scale[block]).float()
            for total, rotation in zip(self.rotated_square[:, block], self.rotations, strict=True):
                total += rotation.turn(scaled).square().sum(0, dtype=torch.float64)
        rows = rows.to(self.square)
        self.square[block] += torch.square(rows, out=self._buffer(2, *rows.shape)).sum(0)

    def _buffer(self, which: int, *shape: int) -> Tensor:
        """Memory that is used again: what is given back between blocks costs more than the sums."""
        size = math.prod(shape)
        while len(self._buffers) <= which:
            self._buffers.append(self.square.new_empty(0))
        if len(self._buffers[which]) < size:
            self._buffers[which] = self.square.new_empty(size)
        return self._buffers[which][:size].view(shape)

    def freeze(self) -> Moments:
        """The sums as a value (shares the tensors: stop absorbing after this)."""
        self.settle()
        return Moments(
            weight=self.weight,
            column_mean=self.column_mean,
            unit_mean=self.unit_mean,
            gram=self.gram,
            column_square=self.column_square,
            cross=self.cross,
            square=self.square,
            rotated_square=self.rotated_square,
            scale=self.scale if self.rotations else None,
            origin=self.origin,
            squares=None if self.squared is None else self.squares,
        )
