"""`Design`: a bank's features on some examples as columns of numbers, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.explanation.feature import Feature
from lens_skills.stats.information import N_BINS, equal_width_codes


@dataclass(frozen=True, eq=False)
class Design:
    """Features as columns: one of a flag or a number, one per class of a category.

    Attributes:
        features: Whose columns stand side by side, in this order.
        columns: Their numbers.
        owner: The feature of each column.
        classes: Every feature as 0/1 columns of its classes (a flag has two, a number as many as
            there are bins), for counting.
        n_classes: How many of those each feature has.
        levels: The classes of each feature in words; of a flag and a number, none.
    """

    features: tuple[Feature, ...]
    columns: Float[Tensor, "row column"]
    owner: Int[Tensor, " column"]
    classes: Float[Tensor, "row class"]
    n_classes: list[int]
    levels: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, features: Sequence[Feature], values: pd.DataFrame) -> "Design":
        """The design of features whose values, none missing, stand in the table."""
        columns: list[np.ndarray] = []
        owner: list[int] = []
        classes: list[Tensor] = []
        sizes: list[int] = []
        levels: list[tuple[Any, ...]] = []
        for place, feature in enumerate(features):
            found = values[feature.name].tolist()
            if feature.kind == "category":
                distinct = sorted(set(found), key=lambda value: (isinstance(value, str), value))
                code = {value: number for number, value in enumerate(distinct)}
                codes = torch.tensor([code[value] for value in found])
                mine = np.eye(len(distinct))[codes.numpy()]
                levels.append(tuple(distinct))
            else:
                mine = np.array(found, dtype=float)[:, None]
                numbers = torch.from_numpy(mine[:, 0])
                binary = feature.kind == "flag"
                codes = numbers.long() if binary else equal_width_codes(numbers, n_bins=N_BINS)
                levels.append(())
            n_classes = int(codes.max()) + 1
            columns.append(mine)
            owner += [place] * mine.shape[1]
            classes.append(torch.nn.functional.one_hot(codes, n_classes))
            sizes.append(n_classes)
        return cls(
            tuple(features),
            torch.from_numpy(np.concatenate(columns, axis=1)),
            torch.tensor(owner),
            torch.cat(classes, dim=1).float(),
            sizes,
            tuple(levels),
        )

    def rows(self, where: Int[Tensor, " part"]) -> "Design":
        """The same features on some of the rows."""
        return Design(
            self.features,
            self.columns[where],
            self.owner,
            self.classes[where],
            self.n_classes,
            self.levels,
        )

    def per_feature(self, columns: Float[Tensor, "*unit column"]) -> Float[Tensor, "*unit feature"]:
        """Sums over the columns of each feature."""
        total = columns.new_zeros(*columns.shape[:-1], len(self.features))
        return total.index_add_(-1, self.owner, columns)
