"""Which concept of a feature bank a neuron goes with: soft-WPMI and binned information, with nulls.

A concept is something that holds for an example or not: a flag of the bank and its opposite, a
class of a category, a number above or at most its median.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.explanation.feature_bank import FeatureBank, FeatureMatrix
from lens_skills.explanation.feature_tests import FeaturePermutation
from lens_skills.explanation.features import Feature
from lens_skills.stats.information import (
    N_BINS,
    equal_width_codes,
    indicators,
    information_of_columns,
)
from lens_skills.stats.multiple_testing import rank_p

FEWEST = 5
"""Examples that a concept holds for, and does not hold for, at least."""

SURE = 0.95
"""How likely a concept is taken to be where the bank says that it holds; 1 less that where not."""

FIRST, LAST = 0.998, 0.97  # weights of the most active example and of the k-th


@dataclass(frozen=True, eq=False)
class Concepts:
    """What can be said of some examples, yes or no.

    Attributes:
        design: Each concept as a flag; its two classes are "not" and "holds".
        names: Of each class in order: "not the result is odd", "the result is odd", …
        feature: The feature of the bank that each class comes from.
        left_out: What was not taken, and why.
    """

    design: FeatureMatrix
    names: tuple[str, ...]
    feature: tuple[str, ...]
    left_out: dict[str, str]

    @classmethod
    def of(cls, bank: FeatureBank, examples: Sequence[Example]) -> "Concepts":
        """The concepts of a bank on these examples; of those that say the same the first is kept.

        Raises:
            LensSkillsError: A bank without features, or none that tells these examples apart.
        """
        if len(bank) == 0:
            raise LensSkillsError(
                "the bank holds no features, so there is no concept to match. Give "
                "ls.feature_bank(task), with extra= for your own."
            )
        values = bank.values(examples)
        flags: dict[str, tuple[np.ndarray, str, str, str]] = {}
        left_out: dict[str, str] = {}
        seen: dict[bytes, str] = {}
        for feature in bank:
            column: Any = values[feature.name]
            if n_missing := int(column.isna().sum()):
                left_out[feature.name] = f"it has no value for {n_missing} examples"
                continue
            for yes, no, holds in _readings(feature, column):
                size = int(holds.sum())
                # A concept and its opposite tell the same examples apart.
                key = np.packbits(holds == holds[0]).tobytes()
                if min(size, len(holds) - size) < FEWEST:
                    left_out[yes] = f"it holds for {size} of {len(holds)} examples"
                elif key in seen:
                    left_out[yes] = f"it says the same as {seen[key]!r} here"
                else:
                    seen[key] = yes
                    flags[yes] = (holds, yes, no, feature.name)
        if not flags:
            raise LensSkillsError(
                f"none of the bank's {len(bank)} features tells these {len(values)} examples apart "
                f"with {FEWEST} or more on either side: "
                + "; ".join(f"{name!r}: {why}" for name, why in list(left_out.items())[:3])
                + ". Give more examples, or features of your own (feature_bank(extra=…))."
            )
        made = [Feature(name, "flag", lambda example: None) for name in flags]
        table = pd.DataFrame({name: found[0].astype(int) for name, found in flags.items()})
        return cls(
            FeatureMatrix.of(made, table),
            tuple(name for _, yes, no, _ in flags.values() for name in (no, yes)),
            tuple(name for *_, name in flags.values() for _ in range(2)),
            left_out,
        )

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, where: Int[Tensor, " part"]) -> "Concepts":
        """The same on some of the examples."""
        return replace(self, design=self.design.rows(where))


def _readings(feature: Feature, column: pd.Series) -> list[tuple[str, str, np.ndarray]]:
    """Each concept of a feature: its name, that of its opposite, and where it holds."""
    name = feature.name
    if feature.kind == "flag":
        return [(name, f"not {name}", column.to_numpy().astype(bool))]
    if feature.kind == "number":
        numbers = column.to_numpy().astype(float)
        middle = float(np.median(numbers))
        return [(f"{name} > {middle:g}", f"{name} ≤ {middle:g}", numbers > middle)]
    return [
        (f"{name} = {value}", f"{name} ≠ {value}", (column == value).to_numpy())
        for value in dict.fromkeys(column)
    ]


def soft_wpmi(
    values: Float[Tensor, "neuron row"], classes: Float[Tensor, "row concept"], k: int
) -> Float[Tensor, "neuron concept"]:
    """How much likelier a concept is on a neuron's k most active examples than on all, in nats.

    (1 / k) Σ_x log(1 + w_x (P_xt - 1)) - log p_t over the k examples with the largest activation:
    w_x falls from 0.998 at the first to 0.97 at the k-th, P_xt is 0.95 where concept t holds and
    0.05 where not, p_t the mean of P_xt over all examples.

    Source: soft-WPMI, Oikarinen & Weng 2023 (arXiv 2204.10965), there with P from an image-text
    model and p_t over neurons; the mean over examples, instead of their sum, is ours.

    >>> holds = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    >>> soft_wpmi(torch.tensor([[5.0, 4.0, 1.0, 0.0]]), holds, 2).round(decimals=2).tolist()
    [[-2.06, 0.64]]
    """
    classes = classes.double()
    likely = SURE * classes + (1 - SURE) * (1 - classes)
    weight = torch.linspace(FIRST, LAST, k, dtype=torch.float64)
    yes, no = torch.log(1 + weight * (SURE - 1)), torch.log(1 - weight * SURE)
    first = values.topk(k, dim=1).indices
    gain = torch.zeros(values.shape, dtype=torch.float64)
    gain.scatter_(1, first, ((yes - no) / k).expand(len(values), k))
    return float(no.mean()) + gain @ classes - likely.mean(0).log()


@dataclass(frozen=True, eq=False)
class ConceptMatch:
    """The best concept of each neuron by one measure.

    Attributes:
        place: Its place among the concepts' names.
        value: The measure there.
        p: Family-wise over all neurons and concepts (max-T), by permutation within groups.
    """

    place: Int[Tensor, " neuron"]
    value: Float[Tensor, " neuron"]
    p: Float[Tensor, " neuron"]


def match_concepts(
    values: Float[Tensor, "neuron row"],
    concepts: Concepts,
    groups: Sequence[str],
    *,
    k: int,
    n_permutations: int,
    seed: int = 0,
) -> dict[str, ConceptMatch]:
    """The best concept of each neuron by soft-WPMI and by binned mutual information.

    Activations are cut into 8 bins of equal width for the information, which a concept and its
    opposite share: matched is the one on which the neuron is more active. Under the null concepts
    are traded between examples as their groups allow (`FeaturePermutation`), all together, and the
    largest value of all neurons and concepts in each draw is what a match must exceed.

    Returns:
        By ``"wpmi"`` and ``"information"``.

    Assumes: groups that can be exchanged. Does not show: that a concept is the only one; those that
    go together with it say nearly as much.
    """
    if not 1 <= k <= values.shape[1]:
        raise LensSkillsError(f"k={k}: of {values.shape[1]} examples, 1 or more are the strongest.")
    # In any order but the task's own, which equal activations would be told apart by.
    order = torch.randperm(values.shape[1], generator=torch.Generator().manual_seed(seed))
    values, concepts = values[:, order], concepts.rows(order)
    names = [groups[int(place)] for place in order]
    inside = indicators(equal_width_codes(values), N_BINS)

    def measured(classes: Tensor) -> dict[str, Tensor]:
        shared = information_of_columns(inside, classes, concepts.design.n_classes)
        return {
            "wpmi": soft_wpmi(values, classes, k),
            "information": shared.repeat_interleave(2, dim=1),
        }

    scores = measured(concepts.design.classes)
    pairs = _class_means(values, concepts.design.classes).view(len(values), -1, 2)
    more = (pairs == pairs.amax(2, keepdim=True)).flatten(1)
    places = {
        "wpmi": scores["wpmi"].argmax(1),
        "information": torch.where(more, scores["information"], -torch.inf).argmax(1),
    }
    exchange = FeaturePermutation.of(concepts.design, names, n_permutations, seed=seed)
    null: dict[str, list[float]] = {name: [] for name in scores}
    for traded in exchange.classes(concepts.design):
        for name, drawn in measured(traded).items():
            null[name].append(float(drawn.max()))
    found = {}
    for name, place in places.items():
        value = scores[name].gather(1, place[:, None])[:, 0]
        largest = torch.tensor(null[name], dtype=torch.float64)
        found[name] = ConceptMatch(place, value, rank_p(value, largest))
    return found


def _class_means(
    values: Float[Tensor, "neuron row"], classes: Float[Tensor, "row concept"]
) -> Float[Tensor, "neuron concept"]:
    sizes = classes.double().sum(0)
    return values.double() @ classes.double() / sizes.clamp(min=1)
