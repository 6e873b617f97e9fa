"""`relevance_slopes`: slopes of the model with patterns, scales and gates held as they are."""

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from lens_skills.circuits.anatomy import Anatomy
from lens_skills.circuits.scene import Scene
from lens_skills.circuits.slopes import Slopes
from lens_skills.circuits.target import Answer, Target, features, hook_of

_SMALL = 1e-6  # a pre-activation so near 0 stands for its limit there


def relevance_slopes(scene: Scene, target: Target) -> Slopes:
    """The derivative of the target in a linear model that agrees with this one on each prompt.

    On the clean prompt, attention patterns and norm scales are held; a neuron act(gate) · up is
    replaced by its line through 0, half of it through each factor,
    act(gate) up = ½ [act(gate) up / gate] · gate + ½ [act(gate)] · up
    (ungated: [act(in) / in] · in). So nothing flows through Q, K or a norm's scale: such edges
    get no estimate here, and are never proposed. This is the propagation of relevance with its
    value and product rules, without a stabiliser.

    Source: the rules of Achtibat et al. 2024 (AttnLRP, arXiv 2402.05602), with
    attention patterns held instead of propagated through.
    """
    anatomy, n_layers = scene.anatomy, scene.lens.n_layers
    stop = n_layers if target.stop is None else target.stop
    patterns = _patterns(scene, stop)
    found = Slopes(answer=None)
    slope = torch.zeros_like(scene.clean.entering[0])
    if isinstance(target, Answer):
        answer = target.slope(scene, scene.clean.entering[-1][:, -1])
        found = Slopes(answer=answer)
        slope[:, -1] = answer
    for layer in reversed(range(stop)):
        post = slope @ anatomy.mlp_out(layer).mT + _seed(scene, target, layer, "neuron")
        pre = anatomy.neurons(layer, scene.clean.middle[layer])
        back = torch.zeros_like(slope)
        for channel, share in _shares(anatomy, pre).items():
            found.by[layer, channel] = post * share
            back = back + found.by[layer, channel] @ anatomy.reading(layer, channel)[0].mT
        slope = slope + scene.frozen(layer, "mlp").back(back)
        z = einsum(slope, anatomy.head_out(layer), "e c d, h f d -> e c h f")
        z = z + _heads(_seed(scene, target, layer, "head"), scene.lens.n_heads)
        values = einsum(patterns[layer], z, "e h query key, e query h f -> e key h f")
        values = reduce(values, "e key (kv group) f -> e key kv f", "sum", group=anatomy.group)
        found.by[layer, "V"] = rearrange(values, "e key kv f -> e key (kv f)")
        back = einsum(values, anatomy.reading(layer, "V"), "e c kv f, kv d f -> e c d")
        slope = slope + scene.frozen(layer, "attn").back(back)
    return found


def _shares(anatomy: Anatomy, pre: dict[str, Tensor]) -> dict[str, Tensor]:
    """What each pre-activation is multiplied by so that all together give the activation."""
    first = pre["gate" if "gate" in pre else "in"]
    safe = torch.where(first.abs() < _SMALL, _SMALL, first)
    line = anatomy.act(safe) / safe
    if "gate" not in pre:
        return {"in": line}
    return {"gate": 0.5 * line * pre["up"], "up": 0.5 * anatomy.act(first)}


def _patterns(scene: Scene, stop: int) -> list[Float[Tensor, "example head query key"]]:
    """Who looks at whom on the clean prompt, among the columns that can change."""
    seen: dict[int, Tensor] = {}

    def keeper(layer: int):
        def keep(activation: Tensor) -> Tensor:
            seen[layer] = activation[..., -scene.n_columns :].clone()
            return activation

        return keep

    editors = {f"blocks.{layer}.attn.hook_pattern": keeper(layer) for layer in range(stop)}
    suffix = scene.clean.suffix
    suffix.run(suffix.clean(0, 1), 0, stop=stop, editors=editors)
    return [seen[layer] for layer in range(stop)]


def _seed(scene: Scene, target: Target, layer: int, kind: str) -> Tensor:
    """The target's derivative by the activations it is read from."""
    lens = scene.lens
    width = lens.n_heads * lens.d_head if kind == "head" else lens.d_mlp
    entering = scene.clean.entering[0]
    seed = entering.new_zeros(*entering.shape[:2], width)
    if isinstance(target, Answer):
        return seed
    sign = target.sign(scene).to(seed)
    for node, weight in zip(target.nodes, target.weights, strict=True):
        if hook_of(node) in target.reads and (node.layer, node.kind) == (layer, kind):
            place = features(node, len(weight))
            seed[:, scene.column(node), place] += sign[:, None] * weight.to(seed)
    return seed


def _heads(values: Tensor, n_heads: int) -> Tensor:
    return rearrange(values, "e c (h f) -> e c h f", h=n_heads)
