"""Activations at the edited positions and the metric's gradient by them, for one batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import Metric
from lens_skills.activations.encoding import Encoded
from lens_skills.activations.forward import forward_batch
from lens_skills.activations.plan import Plan
from lens_skills.causal.edits import Change
from lens_skills.causal.resumed import Suffixes
from lens_skills.causal.rows import Placement
from lens_skills.causal.stack import Spot
from lens_skills.errors import LensSkillsError
from lens_skills.models import Reader
from lens_skills.models.lens import rows_at


@dataclass(frozen=True, eq=False)
class Gradient:
    """One hook point of a batch.

    Attributes:
        old: Activations at the edited positions.
        slope: The metric's derivative by each, 0 at positions that do not count.
        examples: Which example each row is.
    """

    old: Float[Tensor, "example pos feature"]
    slope: Float[Tensor, "example pos feature"]
    examples: Int[Tensor, " example"]

    def new(
        self, change: Change, layer: int, site: str, draw: int
    ) -> Float[Tensor, "example pos feature"]:
        """What an edit of every feature puts in place."""
        features = torch.arange(self.old.shape[-1], device=self.old.device)
        index = features.expand(len(self.old), -1)
        return change.new(layer, site, self.old, index, self.examples, draw)

    def summed(
        self,
        by: Float[Tensor, "example pos feature"],
        start: Int[Tensor, " unit"],
        stop: Int[Tensor, " unit"],
    ) -> Float[Tensor, "unit example"]:
        """Σ by · slope over the features of each unit and all positions (float64)."""
        each = (by.double() * self.slope.double()).sum(1).cpu()
        if bool((stop - start == 1).all()):
            return each[:, start].T
        ends = torch.cat([torch.zeros(len(each), 1, dtype=each.dtype), each.cumsum(1)], dim=1)
        return (ends[:, stop] - ends[:, start]).T


class Differentiated:
    """What `forward_batch` takes for a model: the last columns, with the graph of each pass kept.

    The prefix is left out of it: no earlier column depends on what is edited.
    """

    def __init__(self, suffixes: Suffixes, names: Sequence[str]) -> None:
        self.suffixes, self.names = suffixes, names
        lens = suffixes.lens
        self.pad_id, self.device, self.decode = lens.pad_id, lens.device, lens.decode
        self.passes: list[tuple[dict[str, Tensor], Placement]] = []

    def forward(
        self,
        tokens: Int[Tensor, "row pos"],
        mask: Bool[Tensor, "row pos"],
        *,
        readers: Mapping[str, Reader],
        logits_at: Int[Tensor, "row k"],
        editors: Mapping[str, Any],
    ) -> Float[Tensor, "row k d_vocab"]:
        """Logits at the given positions, as a function of every activation on the way."""
        if len(tokens) != len(self.suffixes.batch):
            raise LensSkillsError(
                "no gradient: the metric reads answer options of several tokens. Use sweep."
            )
        suffix = self.suffixes.of(tokens, mask, readers)
        seen: dict[str, Tensor] = {}

        def keeper(name: str) -> Callable[[Tensor], Tensor]:
            def keep(activation: Tensor) -> Tensor:
                seen[name] = activation
                return activation

            return keep

        with suffix.differentiable():
            residual = suffix.clean(0, 1).clone().requires_grad_()
            out = suffix.run(residual, 0, editors={name: keeper(name) for name in self.names})
            rows = rearrange(out, "1 example column d -> example column d")
            logits = suffix.logits(rows_at(rows, logits_at - suffix.start))
        self.passes.append((seen, self.suffixes.placement(mask).shifted(suffix.start)))
        return logits


def activations_and_gradients(
    lens: Any,
    batch: Sequence[Encoded],
    plan: Plan,
    metric: Metric,
    places: Mapping[int, Sequence[int]],
    sites: Mapping[str, Sequence[int]],
) -> dict[Spot, Gradient]:
    """Each hook point's activations and gradients at the edited positions.

    A metric that takes several passes (a foil of several tokens) is differentiated through all.

    Raises:
        CannotResume: See `lens_skills.models.suffix.prefill`.
        LensSkillsError: The metric has no gradient.
    """
    names = {
        f"blocks.{layer}.{site}": (layer, site)
        for site, layers in sites.items()
        for layer in layers
    }
    model = Differentiated(Suffixes(lens, batch, places), list(names))
    with torch.enable_grad():
        values = forward_batch(model, batch, plan, [metric], {}, {})[metric.name]
        if not values.requires_grad:
            raise LensSkillsError(
                f"the metric {metric.name!r} has no gradient. Choose logit_diff() or "
                "confidence('answer'), or sweep."
            )
        wanted = [(name, seen[name], at) for seen, at in model.passes for name in names]
        inputs = [activation for _, activation, _ in wanted]
        slopes = torch.autograd.grad(values.sum(), inputs, allow_unused=True)
    found: dict[Spot, Gradient] = {}
    for (name, activation, at), slope in zip(wanted, slopes, strict=True):
        at = at.to(activation.device)
        rows = torch.arange(len(batch), device=activation.device)[:, None]
        old = activation.detach().flatten(2)[rows, at.columns]
        here = torch.zeros_like(old)
        if slope is not None:
            here = slope.flatten(2)[rows, at.columns] * at.valid[:, :, None]
        before = found.get(names[name])
        found[names[name]] = Gradient(
            old=old if before is None else before.old,
            slope=here if before is None else before.slope + here,
            examples=at.examples,
        )
    return found
