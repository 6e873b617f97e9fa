"""`Condition`: when a feature counts as present, so that examples fall into two parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.explanation.feature import Feature


@dataclass(frozen=True)
class Condition:
    """A yes-or-no reading of a feature.

    Attributes:
        words: "an operand is 5", "b is 4.5 or more", "the last word is 'cat'".
        holds: Of one example.
    """

    words: str
    holds: Callable[[Any], bool]

    def of(self, examples: Sequence[Any]) -> Bool[Tensor, " example"]:
        """Whether it holds for each example."""
        return torch.tensor([self.holds(example) for example in examples])


def condition_of(
    feature: Feature, examples: Sequence[Any], activation: Float[Tensor, " row"]
) -> Condition:
    """The condition under which a neuron stands out.

    A flag itself; a number beyond its median, on the side where the neuron is higher; of a
    category the class whose mean activation is farthest from that of all, weighed by its size.

    >>> from lens_skills.explanation.feature import Feature
    >>> number = Feature("n", "number", lambda example: example)
    >>> condition_of(number, [1, 2, 3, 4], torch.tensor([4.0, 3.0, 1.0, 1.0])).words
    'n is below 2.5'
    """
    read = feature.read
    if feature.kind == "flag":
        return Condition(feature.name, lambda example: bool(read(example)))
    values = [read(example) for example in examples]
    if feature.kind == "number":
        numbers = np.array(values, dtype=float)
        middle = float(np.median(numbers))
        if middle == numbers.min():  # more than half are the smallest value
            middle = float(np.unique(numbers)[1])
        slope = float(np.cov(numbers, activation.numpy())[0, 1])
        if slope >= 0:
            return Condition(
                f"{feature.name} is {middle:g} or more", lambda e: float(read(e) or 0) >= middle
            )
        return Condition(
            f"{feature.name} is below {middle:g}", lambda e: float(read(e) or 0) < middle
        )
    mean = float(activation.mean())

    def distance(value: Any) -> float:
        mine = activation[torch.tensor([other == value for other in values])]
        return len(mine) * (float(mine.mean()) - mean) ** 2

    chosen = max(dict.fromkeys(values), key=distance)
    name = feature.name.removesuffix(", each value")
    return Condition(f"{name} is {chosen}", lambda example: read(example) == chosen)
