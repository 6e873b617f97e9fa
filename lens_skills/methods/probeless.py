"""Probeless: how far apart a neuron's class means are, without any probe."""

from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.methods.method import CLASSES, Method
from lens_skills.methods.sums import Sums


def probeless(sums: Sums) -> Float[Tensor, " unit"]:
    """Σ over pairs of classes of |x̄_z - x̄_z'|, in units of the activation (not standardised)."""
    means = sums.class_mean
    pairs = [(means[a] - means[b]).abs() for a, b in combinations(range(len(means)), 2)]
    return torch.stack(pairs).sum(0)


PROBELESS = Method(
    name="probeless",
    of=probeless,
    about="sum over pairs of classes of the distance of the class means",
    source="arXiv 2305.00875 (NeuroX)",
    takes=CLASSES,
    reads="sums",
    unit="activation",
)
