"""`Slopes`: the metric's derivative by every neuron, from one pass with gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import Metric, Position
from lens_skills.activations.plan import prepare
from lens_skills.activations.sites import Site
from lens_skills.activations.stream import batches
from lens_skills.causal.gradients import activations_and_gradients
from lens_skills.causal.placement import edited_places
from lens_skills.example import Example
from lens_skills.methods.whole_pass import whole_gradients
from lens_skills.models import Lens
from lens_skills.models.suffix import CannotResume


@dataclass(frozen=True, eq=False)
class Slopes:
    """What gradients say of every unit, averaged over the examples.

    Attributes:
        taylor: Mean of |a · ∂m/∂a|, in the metric's unit.
        slope: Mean of ∂m/∂a, signed, in the metric's unit per unit of activation.
        metric: What was differentiated.
    """

    taylor: Float[Tensor, " unit"]
    slope: Float[Tensor, " unit"]
    metric: str


def slopes_of(
    lens: Lens,
    examples: Sequence[Example],
    metric: Metric,
    site: Site,
    *,
    position: Position,
    batch_size: int,
    progress: bool | None,
) -> Slopes:
    """The slopes of a site's units at a position, from one forward and one backward pass each.

    Only the last columns are differentiated where that gives the same numbers, else whole passes.

    Raises:
        LensSkillsError: A metric without a gradient, or a position that pools tokens.
    """
    encoded, plan = prepare(lens, examples, [metric], False)
    places = edited_places(lens, encoded, position)
    taylor: dict[int, Tensor] = {}
    slope: dict[int, Tensor] = {}
    for batch in batches(encoded, plan, batch_size, 0, progress, "gradients"):
        sites = {site.name: site.layers}
        try:
            found = activations_and_gradients(lens, batch, plan, metric, places, sites)
        except CannotResume:
            found = whole_gradients(lens, batch, plan, metric, places, site)
        for (layer, _), part in found.items():
            each = (part.old.double() * part.slope.double()).sum(1).abs().sum(0).cpu()
            raw = part.slope.double().sum(1).sum(0).cpu()
            taylor[layer] = taylor[layer] + each if layer in taylor else each
            slope[layer] = slope[layer] + raw if layer in slope else raw
    return Slopes(
        _flat(taylor, site, len(examples)), _flat(slope, site, len(examples)), metric.name
    )


def _flat(by_layer: dict[int, Tensor], site: Site, n: int) -> Float[Tensor, " unit"]:
    stacked = torch.stack([by_layer[layer] for layer in site.layers]) / n
    return rearrange(stacked, "layer unit -> (layer unit)")
