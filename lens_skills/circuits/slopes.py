"""`Slopes`: how fast a target changes with every pre-activation, by gradients or relevance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.circuits.scene import Scene
from lens_skills.circuits.target import Answer, Target
from lens_skills.errors import LensSkillsError

HOOKS = {
    "Q": "attn.hook_q",
    "K": "attn.hook_k",
    "V": "attn.hook_v",
    "gate": "mlp.hook_pre",
    "in": "mlp.hook_pre",
    "up": "mlp.hook_pre_linear",
}
POINTS = 5
"""Points between the clean and the corrupted prompt for the integrated form."""


@dataclass(frozen=True, eq=False)
class Slopes:
    """The derivative of the target by each channel's pre-activations.

    Attributes:
        by: Per layer and channel, all heads' features side by side; what is not in it is 0.
        answer: By the residual stream the final norm reads, for a metric.
    """

    by: dict[tuple[int, str], Float[Tensor, "example column feature"]] = field(default_factory=dict)
    answer: Float[Tensor, "example d_model"] | None = None


def gradient_slopes(scene: Scene, target: Target, *, points: Sequence[float] = (0.0,)) -> Slopes:
    """The mean derivative at some points between the clean (0) and the corrupted prompt (1).

    The input embeddings are interpolated, embedding = clean + point (corrupted - clean). One point
    at 0 is attribution patching, several are its integrated form.

    Source: Syed et al. 2023 (arXiv 2310.10348), edge attribution patching; Hanna et al. 2024
    (arXiv 2403.17806), with integrated gradients over the inputs.
    """
    stop = scene.lens.n_layers if target.stop is None else target.stop
    channels = ("Q", "K", "V", *scene.anatomy.gates)
    names = {
        f"blocks.{layer}.{HOOKS[channel]}": (layer, channel)
        for layer in range(stop)
        for channel in channels
    }
    total: dict[tuple[int, str], Tensor] = {}
    answer: Tensor | None = None
    for point in points:
        seen, value, last = _pass(scene, target, list(names), point)
        found = torch.autograd.grad(value.sum(), list(seen.values()), allow_unused=True)
        for name, slope in zip(seen, found, strict=True):
            if slope is not None:
                key, part = names[name], slope.flatten(2) / len(points)
                total[key] = total[key] + part if key in total else part
        if isinstance(target, Answer):
            part = target.slope(scene, last) / len(points)
            answer = part if answer is None else answer + part
    return Slopes(total, answer)


def _pass(
    scene: Scene, target: Target, names: Sequence[str], point: float
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A pass that keeps its graph: pre-activations, target, and what left the last block."""
    seen: dict[str, Tensor] = {}
    read: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[[Tensor], Tensor]:
        def keep(activation: Tensor) -> Tensor:
            seen[name] = activation
            return activation

        return keep

    def reader(name: str, column: int) -> Callable[[Tensor], Tensor]:
        def keep(activation: Tensor) -> Tensor:
            read[name] = activation.flatten(2)[None, :, column]
            return activation

        return keep

    editors = {name: keeper(name) for name in names}
    editors |= {n: reader(n, scene.column(node)) for n, node in target.reads.items()}
    suffix = scene.clean.suffix
    with torch.enable_grad(), suffix.differentiable():
        residual = scene.clean.entering[0] + point * scene.moved(0)
        residual = residual.detach()[None].clone().requires_grad_()
        out = suffix.run(residual, 0, stop=target.stop, editors=editors)
        value = target.of(scene, read, out)
    if not value.requires_grad:
        raise LensSkillsError(
            f"{target.name} has no gradient to propose edges with. Choose logit_diff() or "
            "confidence('answer')."
        )
    return seen, value, out[0, :, -1].detach()


def integrated_points(n: int = POINTS) -> tuple[float, ...]:
    """The middles of ``n`` equal steps from the clean to the corrupted prompt.

    >>> integrated_points(2)
    (0.25, 0.75)
    """
    return tuple((k + 0.5) / n for k in range(n))
