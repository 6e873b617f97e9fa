"""The rotated basis: directions no better than any other, ranked and ablated like neurons."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import Metric, Position
from lens_skills.activations.forward import prepare
from lens_skills.activations.locations import Site
from lens_skills.activations.stream import batches
from lens_skills.data import Example
from lens_skills.interventions.baselines import Baseline, EditInput, measure_baseline
from lens_skills.interventions.batched_edits import EditStack, edited_places
from lens_skills.interventions.edits import Edit
from lens_skills.interventions.effect_engine import EffectEngine, SweepSpec
from lens_skills.interventions.formulas import Change
from lens_skills.models import ModelAdapter
from lens_skills.models.weights import OutputWeights

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
    batch_size: int,
) -> Float[Tensor, "k example"]:
    """The effect of ablating each direction v of a layer: a becomes a - (a·v - (its mean)·v) v.

    The whole layer is edited at once, exactly, through the engine of every other effect; with
    zero ablation the mean is left out.

    Args:
        adapter: The model.
        examples: The intervene split.
        directions: Layer and column of ``rotation``, whose columns are orthonormal.
        rotation: One matrix for all layers.
        do: ``ablate("mean", over=…)`` or ``ablate("zero")``.
        metric: What to watch.
        site: Of the neurons.
        position: Where to edit.
        batch_size: Examples whose clean pass is held at once.
    """
    assert do.kind in ABLATIONS, do.kind
    by_layer: dict[int, list[int]] = {}
    for place, layer in enumerate(directions[:, 0].tolist()):
        by_layer.setdefault(layer, []).append(place)
    encoded, plan = prepare(adapter, examples, [metric], False)
    change = _change(
        adapter, directions, by_layer, rotation, do, metric, site, position, batch_size
    )
    setting = SweepSpec(
        adapter=adapter,
        plan=plan,
        metric=metric,
        change=change,
        places=edited_places(adapter, encoded, position),
        spots=frozenset((layer, site) for layer in by_layer),
        ragged=position == "all",
        direct=False,
        rows=1,
        writes=OutputWeights(adapter),
    )
    width = len(rotation)
    total = torch.zeros(len(directions), len(examples), dtype=torch.float64)
    for batch in batches(encoded, plan, batch_size=batch_size, progress=False):
        engine = EffectEngine(setting, batch)
        columns = torch.tensor([item.index for item in batch])
        for layer, places in by_layer.items():
            whole = EditStack((0,), {(layer, site): torch.arange(width)[None]})
            for draw, place in enumerate(places):
                total[place, columns] = engine.measure(whole, draw)[0].double()
    return total


def _change(
    adapter: ModelAdapter,
    directions: Int[Tensor, "k 2"],
    by_layer: dict[int, list[int]],
    rotation: Float[Tensor, "width width"],
    do: Edit,
    metric: Metric,
    site: str,
    position: Position,
    batch_size: int,
) -> Change:
    baseline: Baseline | None = None
    if do.kind == "mean":
        baseline = measure_baseline(
            adapter,
            do.over,
            {site: sorted(by_layer)},
            position=position,
            answers=bool(metric.reads - {"logits"}),
        )

    def formula(spot: EditInput) -> Tensor:
        # The draw says which of the layer's directions: one layer is edited as a whole.
        column = int(directions[by_layer[spot.layer][spot.draw], 1])
        direction = rotation[:, column].to(spot.old)
        level: Any = 0.0
        if baseline is not None:
            mean = baseline.mean[spot.layer, spot.site].to(spot.old)
            level = mean @ direction
        return spot.old - ((spot.old @ direction) - level)[..., None] * direction

    name = replace(do).name
    return Change(f"{name}, of directions", 1, formula)
