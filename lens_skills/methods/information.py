"""Mutual information of a neuron's activation, in bins, with the classes."""

from jaxtyping import Float
from torch import Tensor

from lens_skills.methods.method import CLASSES, Method
from lens_skills.methods.values import Values
from lens_skills.stats.information import binned_information

N_BINS = 10


def information(values: Values) -> Float[Tensor, " unit"]:
    """I(bin of x; class) in bits, from counts in `N_BINS` equal-width bins of each neuron's range.

    Counts overstate it, by about (bins - 1)(classes - 1) / (2 n ln 2) bits: compare neurons, not
    splits of different size.
    """
    rows = values.activations.double().T.contiguous()
    return binned_information(rows, values.target.codes, n_bins=N_BINS)


INFORMATION = Method(
    name="information",
    of=information,
    about=f"mutual information of the activation in {N_BINS} bins with the class",
    source="Shannon 1948; of neurons: arXiv 2305.01610",
    takes=CLASSES,
    reads="values",
    unit="bits",
)
