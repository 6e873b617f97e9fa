"""`Values`: the stored activations of one layer, for methods that no sum can serve."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.methods.target import Target


@dataclass(frozen=True, eq=False)
class Values:
    """One layer's activations on every example.

    Attributes:
        activations: As the model gave them.
        target: What is ranked by.
        groups: Each example's group: halves that are held against each other share none.
        constant: Units that do not vary.
        seed: Of random halves and of a solver's order.
    """

    activations: Float[Tensor, "row unit"]
    target: Target
    groups: Sequence[str]
    constant: Bool[Tensor, " unit"]
    seed: int
