"""The rotated basis: directions no better than any other, ranked and ablated like neurons."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import Metric, Position
from lens_skills.activations.forward import prepare
from lens_skills.activations.locations import Site
from lens_skills.activations.stream import batches
from lens_skills.data import Example
from lens_skills.interventions.baselines import Change, EditInput, measure_baseline
from lens_skills.interventions.batched_edits import EditStack, edited_places
from lens_skills.interventions.edits import Edit
from lens_skills.interventions.effect_engine import EffectEngine, SweepSpec
from lens_skills.models import ModelAdapter
from lens_skills.models.weights import LayerSite, OutputWeights

ABLATIONS = ("mean", "zero")
"""The edits that mean something for a direction."""


def strongest_directions(
    explained: Float[Tensor, " unit"], site: Site, width: int, k: int
) -> Int[Tensor, "k2 2"]:
    """The k directions the target explains best, as (layer, column of the rotation)."""
    order = explained.argsort(descending=True, stable=True)[:k]
    layers = torch.tensor(site.layers)
    return torch.stack([layers[order // width], order % width], dim=1)


def direction_effects(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    directions: Int[Tensor, "k 2"],
    rotation: Float[Tensor, "width width"],
    do: Edit,
    *,
    metric: Metric,
    site: str,
    position: Position,
) -> Float[Tensor, "k example"]:
    """The effect of ablating each direction v of a layer: a becomes a - (a·v - (its mean)·v) v.

    The whole layer is edited at once, exactly, through the engine of every other effect; with
    zero ablation the mean is left out.

    ``directions`` are layers and columns of ``rotation``: orthonormal, and one for all layers.
    """
    assert do.kind in ABLATIONS, do.kind
    layers = sorted(set(directions[:, 0].tolist()))
    encoded, plan = prepare(adapter, examples, [metric], False)
    means: Mapping[LayerSite, Tensor] = {}
    if do.kind == "mean":
        answers = bool(metric.reads - {"logits"})
        sites = {site: layers}
        means = measure_baseline(adapter, do.over, sites, position=position, answers=answers).mean
    changes = [
        _ablation(do.name, rotation[:, column], means.get((layer, site)))
        for layer, column in directions.tolist()
    ]
    spec = SweepSpec(
        adapter=adapter,
        plan=plan,
        metric=metric,
        change=changes[0],
        places=edited_places(adapter, encoded, position),
        spots=frozenset((layer, site) for layer in layers),
        ragged=position == "all",
        direct=False,
        rows=1,
        writes=OutputWeights(adapter),
    )
    every = torch.arange(len(rotation))[None]
    total = torch.zeros(len(directions), len(examples), dtype=torch.float64)
    for batch in batches(encoded, plan, "rotated"):
        engine = EffectEngine(spec, batch)
        columns = torch.tensor([item.index for item in batch])
        for place, layer in enumerate(directions[:, 0].tolist()):
            whole = EditStack((0,), {(layer, site): every})
            total[place, columns] = engine.under(changes[place]).measure(whole, 0)[0].double()
    return total


def _ablation(
    name: str, direction: Float[Tensor, " width"], mean: Float[Tensor, "pos width"] | None
) -> Change:
    """A layer's activation with its part along a direction set to the mean's (None: to 0)."""

    def formula(spot: EditInput) -> Tensor:
        along = direction.to(spot.old)
        level: Tensor | float = 0.0 if mean is None else mean.to(spot.old) @ along
        return spot.old - ((spot.old @ along) - level)[..., None] * along

    return Change(f"{name}, of directions", 1, formula)
