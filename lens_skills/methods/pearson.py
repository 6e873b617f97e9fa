"""Pearson's r of each neuron's activation with the metric."""

from jaxtyping import Float
from torch import Tensor

from lens_skills.methods.method import NUMBERS, Method
from lens_skills.methods.sums import Sums


def pearson(sums: Sums) -> Float[Tensor, " unit"]:
    """r = Σ (x - x̄)(y - ȳ) / sqrt(Σ (x - x̄)² Σ (y - ȳ)²), in [-1, 1]; what `score` reports."""
    return (sums.cross / (sums.square * sums.target_square).sqrt()).clamp(-1, 1)


PEARSON = Method(
    name="pearson",
    of=pearson,
    about="correlation of the activation with the metric",
    source="Pearson 1895; of neurons and the model's own confidence: arXiv 2511.21610",
    takes=NUMBERS,
    reads="sums",
    unit="r",
    signed=True,
)
