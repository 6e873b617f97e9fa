"""Random: what any method must beat."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.methods.method import ANY, Method


@dataclass(frozen=True)
class Blank:
    """How many units there are, and a seed: all that chance needs to know."""

    n_units: int
    seed: int


def random_order(blank: Blank) -> Float[Tensor, " unit"]:
    """A number in (0, 1] per unit, the same for the same seed."""
    generator = torch.Generator().manual_seed(blank.seed)
    return 1 - torch.rand(blank.n_units, generator=generator, dtype=torch.float64)


RANDOM = Method(
    name="random",
    of=random_order,
    about="a random number",
    source="the base rate",
    takes=ANY,
    reads="nothing",
    unit="",
)
