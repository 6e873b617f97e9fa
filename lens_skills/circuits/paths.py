"""`path_effects`: one edge at a time carries what it carries on the corrupted prompt."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills.circuits.node import Node
from lens_skills.circuits.reading import Reader
from lens_skills.circuits.scene import Scene
from lens_skills.circuits.target import Answer, Target, clean_seen
from lens_skills.models import Editor

Path = tuple[Node, Node, str]
"""Sender, receiver, channel."""
ROWS = 2048
"""Columns of all sets and examples that run at once."""


def path_effects(
    scene: Scene, target: Target, paths: Sequence[Path], *, rows: int = ROWS
) -> Float[Tensor, "path example"]:
    """The target when only this edge carries its corrupted value, minus the clean target.

    The sender's contribution to what the channel reads is replaced by its contribution on the
    corrupted prompt, x' = x + (A_corrupted - A_clean); the receiver is computed anew from it with
    all its other channels clean, and whatever follows the receiver runs freely. The norm as a
    sender: the channel is read with the corrupted prompt's scale.

    Source: Goldowsky-Dill et al. 2023 (arXiv 2304.05969), path patching; edges as in
    Conmy et al. 2023 (arXiv 2304.14997).
    """
    effects = torch.zeros(len(paths), len(scene), dtype=torch.float64)
    made = {(node, channel): Reader(scene, node, channel) for _, node, channel in paths}
    readers = [made[node, channel] for _, node, channel in paths]
    waiting: dict[int, list[int]] = defaultdict(list)
    for place, ((sender, receiver, _), reader) in enumerate(zip(paths, readers, strict=True)):
        if receiver.kind == "answer" and sender.kind == "norm":
            assert isinstance(target, Answer)
            effects[place] = target.at_scale(scene, reader.normal + reader.change(sender))
        elif receiver.kind == "answer":
            waiting[scene.lens.n_layers].append(place)
        elif receiver.kind == "neuron" and receiver in getattr(target, "nodes", ()):
            effects[place] = _at_target(scene, target, reader, sender)
        else:
            waiting[receiver.layer + (0 if receiver.kind == "head" else 1)].append(place)
    n_sets = max(1, rows // (len(scene) * scene.n_columns))
    for layer, places in sorted(waiting.items()):
        for first in range(0, len(places), n_sets):
            some = places[first : first + n_sets]
            found = _run(scene, target, layer, [(paths[k][0], readers[k]) for k in some])
            effects[some] = found.cpu()
    return effects


def _at_target(
    scene: Scene, target: Any, reader: Reader, sender: Node
) -> Float[Tensor, " example"]:
    """The effect on a neuron that is itself the target: nothing has to run."""
    place = target.nodes.index(reader.node)
    moved = reader.moved(reader.change(sender))[:, 0].double().cpu()
    return moved * float(target.weights[place]) * target.sign(scene)


def _run(
    scene: Scene, target: Target, layer: int, sets: Sequence[tuple[Node, Reader]]
) -> Float[Tensor, "set example"]:
    residual = scene.clean.suffix.clean(layer, len(sets)).clone()
    edits: dict[str, list[tuple[int, int, slice, Tensor]]] = defaultdict(list)
    for place, (sender, reader) in enumerate(sets):
        if reader.node.kind == "answer":
            residual[place, :, reader.column] += scene.written(sender)
            continue
        moved = reader.moved(reader.change(sender))
        if reader.hook is None:
            residual[place, :, reader.column] += reader.writes(moved)
        else:
            new = reader.clean + moved
            edits[reader.hook].append((place, reader.column, reader.features, new))
    editors = {name: edit_features(parts, len(scene)) for name, parts in edits.items()}
    return measure(scene, target, residual, layer, editors) - clean_value(scene, target)


def edit_features(parts: Sequence[tuple[int, int, slice, Tensor]], n_examples: int) -> Editor:
    def edit(activation: Tensor) -> Tensor:
        flat = activation.flatten(2).clone()
        for place, column, features, new in parts:
            rows = slice(place * n_examples, (place + 1) * n_examples)
            flat[rows, column, features] = new.to(flat)
        return flat.view_as(activation)

    return edit


def measure(
    scene: Scene,
    target: Target,
    residual: Float[Tensor, "set example column d_model"],
    layer: int,
    editors: Mapping[str, Editor],
) -> Float[Tensor, "set example"]:
    """The target of a run from a block on; of what lies below it, the clean values."""
    n_sets, suffix = len(residual), scene.clean.suffix
    seen = {k: v.expand(n_sets, -1, -1) for k, v in clean_seen(scene, target).items()}
    if target.stop is not None and layer >= target.stop:
        return target.of(scene, seen, None)

    def keeper(name: str, column: int) -> Callable[[Tensor], Tensor]:
        def keep(activation: Tensor) -> Tensor:
            values = activation.flatten(2)[:, column]
            seen[name] = rearrange(values, "(set example) f -> set example f", set=n_sets)
            return activation

        return keep

    reading = {
        name: keeper(name, scene.column(node))
        for name, node in target.reads.items()
        if node.layer >= layer
    }
    both = {name: _both(editors[name], reading[name]) for name in editors.keys() & reading.keys()}
    out = suffix.run(residual, layer, stop=target.stop, editors={**editors, **reading, **both})
    return target.of(scene, seen, out)


def _both(first: Editor, then: Editor) -> Editor:
    return lambda activation: then(first(activation))


def clean_value(scene: Scene, target: Target) -> Float[Tensor, "1 example"]:
    """The target of the unpatched clean prompts."""
    return target.of(scene, clean_seen(scene, target), scene.clean.entering[-1][None])
