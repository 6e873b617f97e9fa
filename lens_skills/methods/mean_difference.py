"""The difference of the class means in standard deviations."""

from jaxtyping import Float
from torch import Tensor

from lens_skills.methods.method import TWO, Method
from lens_skills.methods.sums import Sums


def mean_difference(sums: Sums) -> Float[Tensor, " unit"]:
    """Cohen's d = (x̄_1 - x̄_0) / s, with s² = Σ_c Σ (x - x̄_c)² / (n - 2)."""
    low, high = sums.class_mean
    return (high - low) / (sums.within / (sums.n_rows - 2)).sqrt()


SMD = Method(
    name="smd",
    of=mean_difference,
    about="difference of the class means over the pooled standard deviation",
    source="Cohen 1988; of neurons: arXiv 2305.01610 (mean difference)",
    takes=TWO,
    reads="sums",
    unit="standard deviations",
    signed=True,
)
