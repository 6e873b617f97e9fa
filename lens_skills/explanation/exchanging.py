"""`Exchange`: a bank's features with their examples traded, draw by draw, respecting groups."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.explanation.design import Design
from lens_skills.stats.exchange import choose_scheme, group_codes, permutation_draws, signs

SIGNS, WITHIN, BLOCKS = "signs", "within", "blocks"


@dataclass(frozen=True, eq=False)
class Exchange:
    """How each feature may be traded between examples under the null that it says nothing.

    A correlation trades freely where every example is its own group; between whole groups where a
    feature is constant in each and all are of one size; within groups where they all have the same
    mean; else each group's part is given a random sign (see `lens_skills.stats.exchange`; trading
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
    def of(cls, design: Design, groups: Sequence[str], n_draws: int, *, seed: int) -> "Exchange":
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
        self, design: Design, columns: Float[Tensor, "row column"]
    ) -> Iterator[Float[Tensor, "row column"]]:
        """The columns as each draw trades them; those under signs are to be given centred."""
        schemes = [self.schemes[feature] for feature in design.owner.tolist()]
        return self._traded(columns, schemes)

    def classes(self, design: Design) -> Iterator[Float[Tensor, "row class"]]:
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


def block_draws(groups: Sequence[str], n_draws: int, *, seed: int) -> Int[Tensor, "row draw"]:
    """For each draw, which row every row's value comes from when groups of one size trade places.

    The first example of a group goes to the place of another's first, and so on.

    >>> draws = block_draws(["a", "a", "b", "b", "c"], 20, seed=0)
    >>> sorted({tuple(draw) for draw in draws.T.tolist()})
    [(0, 1, 2, 3, 4), (2, 3, 0, 1, 4)]
    """
    codes = group_codes(groups)
    sizes = np.bincount(codes)
    rows = np.argsort(codes, kind="stable")
    starts = np.cumsum(sizes) - sizes
    random = np.random.default_rng(seed)
    draws = np.empty((len(codes), n_draws), dtype=np.int32)
    for size in np.unique(sizes):
        blocks = rows[starts[sizes == size][:, None] + np.arange(size)]
        for draw in range(n_draws):
            draws[blocks, draw] = blocks[random.permutation(len(blocks))]
    return torch.from_numpy(draws)
