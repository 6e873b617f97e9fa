"""The neuron's empirical gradient: which way the metric goes when the neuron fires more."""

from jaxtyping import Float
from torch import Tensor

from lens_skills.methods.method import ANY, Method
from lens_skills.methods.slopes import Slopes


def gradient(slopes: Slopes) -> Float[Tensor, " unit"]:
    """Mean over the examples of ∂m/∂a, signed, in the metric's unit per unit of activation.

    A neuron that hardly moves may have a large one: it says what the metric would do, not what
    the neuron does.
    """
    return slopes.slope


GRADIENT = Method(
    name="gradient",
    of=gradient,
    about="mean gradient of the model's metric by the activation",
    source="arXiv 2412.18053 (estimated by one backward pass)",
    takes=ANY,
    reads="gradient",
    unit="the metric's per activation",
    signed=True,
)
