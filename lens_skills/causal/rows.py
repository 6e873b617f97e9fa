"""`Placement`: where each row of a stacked pass is edited."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Placement:
    """The rows of a stacked pass: which set each belongs to, and the columns it is edited at.

    Attributes:
        sets: The set of each row, as its place in the stack.
        examples: Its example, as its place in the examples that were bound.
        columns: Its edited columns; rows of fewer positions repeat one.
        valid: Which of them count. A column asked for twice counts once.
    """

    sets: Int[Tensor, " row"]
    examples: Int[Tensor, " row"]
    columns: Int[Tensor, "row pos"]
    valid: Bool[Tensor, "row pos"]

    @classmethod
    def of(
        cls, examples: Sequence[int], places: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> "Placement":
        """Rows of one set, from prompt tokens and the column at which each prompt begins."""
        widest = max(len(row) for row in places)
        columns = torch.zeros(len(places), widest, dtype=torch.long)
        valid = torch.zeros(len(places), widest, dtype=torch.bool)
        for row, (spots, start) in enumerate(zip(places, starts, strict=True)):
            columns[row] = start + spots[0]
            columns[row, : len(spots)] = torch.tensor(spots) + start
            valid[row, : len(spots)] = torch.tensor(
                [spot not in spots[:pos] for pos, spot in enumerate(spots)]
            )
        index = torch.tensor(list(examples))
        return cls(torch.zeros_like(index), index, columns, valid)

    def repeated(self, n_sets: int) -> "Placement":
        """The same rows for each of several sets, one set after another."""
        return Placement(
            torch.arange(n_sets).repeat_interleave(len(self.examples)),
            self.examples.repeat(n_sets),
            self.columns.repeat(n_sets, 1),
            self.valid.repeat(n_sets, 1),
        )

    def shifted(self, first: int) -> "Placement":
        """Columns counted from column ``first``."""
        return Placement(self.sets, self.examples, self.columns - first, self.valid)

    def to(self, device: Any) -> "Placement":
        """The same on another device."""
        parts = (self.sets, self.examples, self.columns, self.valid)
        return Placement(*(part.to(device) for part in parts))

    def read(
        self, flat: Float[Tensor, "row column width"], features: Int[Tensor, "row feature"]
    ) -> Float[Tensor, "row pos feature"]:
        """The features' values at the edited columns."""
        rows = torch.arange(len(flat), device=flat.device)[:, None, None]
        return flat[rows, self.columns[:, :, None], features[:, None, :]]
