"""`whole_input`, `whole_output`: what all edges into or out of something do together."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.circuits.node import Node
from lens_skills.circuits.paths import clean_value, edit_features, measure
from lens_skills.circuits.scene import Scene
from lens_skills.circuits.target import Answer, Target, features, hook_of


def whole_input(scene: Scene, target: Target) -> Float[Tensor, " example"]:
    """The target when all that feeds it is corrupted, minus the clean target."""
    if isinstance(target, Answer):
        there = target.of(scene, {}, scene.corrupted.entering[-1][None])
    else:
        there = target.of(scene, corrupted_seen(scene, target.nodes), None)
    return (there - clean_value(scene, target))[0].cpu()


def corrupted_seen(
    scene: Scene, nodes: Sequence[Node]
) -> dict[str, Float[Tensor, "1 example width"]]:
    """What these nodes' hook points hold on the corrupted prompts."""
    found = {}
    for node in nodes:
        column = scene.column(node)
        if node.kind == "head":
            values = scene.corrupted.z[node.layer].flatten(2)
        else:
            values = scene.post(node.layer) + scene.moved_post(node.layer)
        found[hook_of(node)] = values[None, :, column]
    return found


def whole_output(scene: Scene, target: Answer, nodes: Sequence[Node]) -> Float[Tensor, " example"]:
    """The target when these nodes hold their corrupted activations, minus the clean target."""
    there = corrupted_seen(scene, nodes)
    parts: dict[str, list[tuple[int, int, slice, Tensor]]] = defaultdict(list)
    for node in nodes:
        width = scene.lens.d_head if node.kind == "head" else 1
        place = features(node, width)
        new = there[hook_of(node)][0][:, place]
        parts[hook_of(node)].append((0, scene.column(node), place, new))
    editors = {name: edit_features(some, len(scene)) for name, some in parts.items()}
    layer = min(node.layer for node in nodes)
    found = measure(scene, target, scene.clean.suffix.clean(layer, 1), layer, editors)
    return (found - clean_value(scene, target))[0].cpu()


def together(parts: Sequence[Tensor]) -> Tensor:
    """Batches of examples as one tensor, the examples last."""
    return torch.cat([part.double().cpu() for part in parts], dim=-1)
