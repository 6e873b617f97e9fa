"""`Branches`: tokens read behind the rows of a batch, beside what stands there; `Layout`.

A row is a prompt and one continuation. Other continuations are columns of their own, which take
the places of the row's columns (their positions, their masks) and see what leads to them.
"""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Branches:
    """Tokens that continue rows of a batch another way; rows with fewer repeat a harmless one.

    Attributes:
        tokens: What is read.
        places: The row's column whose place each takes: that many tokens lead to it.
        joins: The row's last column that it sees.
        sees: Which branches lead to it, itself among them.
        real: False where a row has fewer.
    """

    tokens: Int[Tensor, "example branch"]
    places: Int[Tensor, "example branch"]
    joins: Int[Tensor, "example branch"]
    sees: Bool[Tensor, "example branch branch"]
    real: Bool[Tensor, "example branch"]

    @property
    def n(self) -> int:
        """Columns for each row."""
        return self.tokens.shape[1]

    @property
    def last(self) -> Int[Tensor, " example"]:
        """The branch of each row to which most tokens lead (a harmless one where there is none)."""
        return self.places.masked_fill(~self.real, -1).argmax(1)

    def to(self, device: torch.device) -> "Branches":
        """The same on another device."""
        parts = (self.tokens, self.places, self.joins, self.sees, self.real)
        return Branches(*(part.to(device) for part in parts))

    def path(self, row: int, branch: int) -> tuple[int, list[int]]:
        """The row's last column that leads to a branch, and the branches from there on to it."""
        leads = self.sees[row, branch].nonzero()[:, 0]
        order = self.places[row, leads].argsort(stable=True)
        return int(self.joins[row, branch]), leads[order].tolist()


@dataclass(frozen=True, eq=False)
class Layout:
    """The columns that run again, for one set; the row's columns before ``start`` are kept.

    Attributes:
        start: The first column of the row that runs again (the row's width: none does).
        width: Of the row.
        places: The row's column whose place each column takes.
        before: Which kept columns it may see, as far as its place may.
        own: Which columns of this layout likewise. None: all, as in a row without branches.
    """

    start: int
    width: int
    places: Int[Tensor, "example column"]
    before: Bool[Tensor, "example column kept"] | None = None
    own: Bool[Tensor, "example column key"] | None = None

    @classmethod
    def of(
        cls,
        n_examples: int,
        start: int,
        width: int,
        branches: Branches | None,
        device: torch.device,
    ) -> "Layout":
        """The row's columns from ``start`` on, then its branches."""
        row = repeat(torch.arange(start, width, device=device), "c -> e c", e=n_examples)
        if branches is None:
            return cls(start, width, row)
        n_row = width - start
        joins = branches.joins[..., None]
        before = torch.ones(n_examples, n_row + branches.n, start, device=device).bool()
        before[:, n_row:] = torch.arange(start, device=device) <= joins
        own = torch.zeros(n_examples, n_row + branches.n, n_row + branches.n, device=device).bool()
        own[:, :n_row, :n_row] = True
        own[:, n_row:, :n_row] = row[:, None] <= joins
        own[:, n_row:, n_row:] = branches.sees
        return cls(start, width, torch.cat([row, branches.places], dim=1), before, own)

    @property
    def n_columns(self) -> int:
        """Columns of one set."""
        return self.places.shape[1]

    @property
    def first(self) -> int:
        """The lowest place taken."""
        return int(self.places.min()) if self.places.numel() else self.width

    def taken(self, values: Tensor, dim: int, first: int = 0) -> Tensor:
        """What the places hold of a tensor ``[#example, ...]`` over columns from ``first`` on."""
        if self.own is None:
            return values.narrow(dim, self.start - first, self.width - self.start)
        shape = [len(self.places), *values.shape[1:]]
        index_shape = [1] * values.ndim
        index_shape[0], index_shape[dim] = self.places.shape
        shape[dim] = self.n_columns
        index = (self.places - first).view(index_shape).expand(shape)
        return values.expand(len(self.places), *values.shape[1:]).gather(dim, index)

    def tree(
        self, allowed: Bool[Tensor, "#example #head column pos"], n_sets: int
    ) -> Bool[Tensor, "#example #head branch key"]:
        """Who may look at whom among ``n_sets`` sets, from who may at the places of the row."""
        before = allowed[..., : self.start]
        if self.own is None or self.before is None:
            own = allowed[..., self.start :]
        else:
            before = before & self.before[:, None]
            index = repeat(self.places, "e k -> e h c k", h=allowed.shape[1], c=self.n_columns)
            allowed = allowed.expand(len(self.places), *allowed.shape[1:])
            own = allowed.gather(-1, index) & self.own[:, None]
        before = repeat(before, "e h c k -> e h (s c) k", s=n_sets)
        same = torch.eye(n_sets, dtype=torch.bool, device=own.device)
        sets = rearrange(same, "s t -> 1 1 s 1 t 1") & rearrange(own, "e h c k -> e h 1 c 1 k")
        return torch.cat([before, rearrange(sets, "e h s c t k -> e h (s c) (t k)")], dim=-1)
