"""`whole_gradients`: gradients through the whole model, where its last columns cannot run alone."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lens_skills.activations import Metric
from lens_skills.activations.encoding import Encoded
from lens_skills.activations.forward import forward_batch
from lens_skills.activations.plan import Plan
from lens_skills.activations.sites import Site
from lens_skills.causal.gradients import Gradient
from lens_skills.causal.rows import Placement
from lens_skills.causal.stack import Spot
from lens_skills.errors import LensSkillsError
from lens_skills.models import Editor, Lens


def whole_gradients(
    lens: Lens,
    batch: Sequence[Encoded],
    plan: Plan,
    metric: Metric,
    places: Mapping[int, Sequence[int]],
    site: Site,
) -> dict[Spot, Gradient]:
    """What `activations_and_gradients` gives, from passes whose graph holds every token.

    Several times slower and larger. Needed where the suffix of a batch does not repeat the whole
    pass closely enough, as may happen to single batches by rounding alone.

    Raises:
        LensSkillsError: The metric has no gradient.
    """
    names = [site.hook_name(layer) for layer in site.layers]
    row_of = {item.index: row for row, item in enumerate(batch)}
    passes: list[tuple[dict[str, Tensor], Placement, Tensor]] = []

    def editing(part: Sequence[Encoded], starts: Sequence[int]) -> Mapping[str, Editor]:
        seen: dict[str, Tensor] = {}
        index = [item.index for item in part]
        at = Placement.of(index, [places[item] for item in index], starts)
        passes.append((seen, at, torch.tensor([row_of[item] for item in index])))

        def keeper(name: str) -> Callable[[Tensor], Tensor]:
            def keep(activation: Tensor) -> Tensor:
                # Where no weight asks for gradients, the graph begins here.
                kept = activation if activation.requires_grad else activation.requires_grad_()
                seen[name] = kept
                return kept

            return keep

        return {name: keeper(name) for name in names}

    followed: Any = copy.copy(lens)
    followed.differentiable = True
    with torch.enable_grad():
        values = forward_batch(followed, batch, plan, [metric], {}, {}, editing)[metric.name]
        if not values.requires_grad:
            raise LensSkillsError(
                f"the metric {metric.name!r} has no gradient. Choose logit_diff() or "
                "confidence('answer'), or a method that reads activations."
            )
        inputs = [seen[name] for seen, _, _ in passes for name in names]
        slopes = iter(torch.autograd.grad(values.sum(), inputs, allow_unused=True))
    found: dict[Spot, Gradient] = {}
    for seen, at, rows in passes:
        for layer, name in zip(site.layers, names, strict=True):
            slope = next(slopes)
            old = _taken(seen[name].detach(), at)
            here = torch.zeros_like(old) if slope is None else _taken(slope, at)
            here = here * at.valid[:, :, None].to(here)
            before = found.get((layer, site.name))
            if before is None:  # the first pass holds the whole batch, in its order
                found[layer, site.name] = Gradient(old, here, at.examples)
            else:
                total = before.slope.index_add(0, rows.to(here.device), here)
                found[layer, site.name] = Gradient(before.old, total, before.examples)
    return found


def _taken(activation: Tensor, at: Placement) -> Tensor:
    """The edited columns of each row, ``row pos feature``."""
    flat = activation.flatten(2)
    rows = torch.arange(len(flat), device=flat.device)[:, None]
    return flat[rows, at.columns.to(flat.device)]
