"""The F statistic of a neuron's activation over the classes."""

from jaxtyping import Float
from torch import Tensor

from lens_skills.methods.method import CLASSES, Method
from lens_skills.methods.sums import Sums


def f_statistic(sums: Sums) -> Float[Tensor, " unit"]:
    """F = (Σ_c n_c (x̄_c - x̄)² / (K - 1)) / (Σ_c Σ (x - x̄_c)² / (n - K)), 0 and above."""
    n_classes = len(sums.size)
    between = sums.between / (n_classes - 1)
    return between / (sums.within / (sums.n_rows - n_classes))


F = Method(
    name="f",
    of=f_statistic,
    about="variance between the classes over the variance within them",
    source="Fisher 1925 (analysis of variance); of neurons: arXiv 2305.01610",
    takes=CLASSES,
    reads="sums",
    unit="F",
)
