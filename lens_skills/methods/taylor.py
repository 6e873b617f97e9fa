"""Taylor attribution: how much setting a neuron to zero would move the metric, to first order."""

from jaxtyping import Float
from torch import Tensor

from lens_skills.methods.method import ANY, Method
from lens_skills.methods.slopes import Slopes


def taylor(slopes: Slopes) -> Float[Tensor, " unit"]:
    """Mean over the examples of |a · ∂m/∂a|, in the metric's unit.

    Does not show: an effect. Saturated neurons, and those that others replace, are misjudged.
    """
    return slopes.taylor


TAYLOR = Method(
    name="taylor",
    of=taylor,
    about="mean |activation times gradient of the model's metric|",
    source="arXiv 2407.06488",
    takes=ANY,
    reads="gradient",
    unit="the metric's",
)
