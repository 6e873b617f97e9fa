"""`Candidate`: an edge with the effect a slope expects of it, before anything is patched."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills.circuits.node import Node
from lens_skills.circuits.paths import Path
from lens_skills.circuits.reading import Reader
from lens_skills.circuits.scene import Scene
from lens_skills.circuits.slopes import Slopes
from lens_skills.circuits.target import Target


@dataclass(frozen=True)
class Candidate:
    """A proposed edge.

    Attributes:
        path: Sender, receiver, channel.
        estimate: Expected effect, mean over examples, in the target's unit.
    """

    path: Path
    estimate: float


@dataclass(frozen=True, eq=False)
class Sums:
    """Expected effects summed over examples.

    Attributes:
        one: Of single edges.
        senders: Of edges from all neurons of a layer into one channel.
        receivers: Of edges from one sender into all neurons of a layer, through one channel.
    """

    one: dict[Path, float] = field(default_factory=dict)
    senders: dict[tuple[int, Node, str], Float[Tensor, " neuron"]] = field(default_factory=dict)
    receivers: dict[tuple[Node, int, str], Float[Tensor, " neuron"]] = field(default_factory=dict)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            _added(self.one, other.one),
            _added(self.senders, other.senders),
            _added(self.receivers, other.receivers),
        )

    def paths(self, n: int | None = None) -> dict[Path, float]:
        """Every edge that carries anything; of single neurons' edges the ``n`` largest at least."""
        found = dict(self.one)
        each = [*self.senders.values(), *self.receivers.values()]
        least = 0.0
        if n is not None and sum(map(len, each)) > n:
            # Millions of neurons' edges are not worth a name each before they are ranked.
            least = float(torch.cat(each).abs().topk(n).values[-1])
        for (layer, receiver, channel), values in self.senders.items():
            for index in (values.abs() >= least).nonzero()[:, 0].tolist():
                sender = Node(layer, "neuron", index, receiver.position)
                found[sender, receiver, channel] = float(values[index])
        for (sender, layer, channel), values in self.receivers.items():
            for index in (values.abs() >= least).nonzero()[:, 0].tolist():
                receiver = Node(layer, "neuron", index, sender.position)
                found[sender, receiver, channel] = float(values[index])
        return {path: value for path, value in found.items() if value != 0.0}


def _added(first: dict[Any, Any], second: dict[Any, Any]) -> dict[Any, Any]:
    return {key: first.get(key, 0.0) + second.get(key, 0.0) for key in {**first, **second}}


def channels_of(scene: Scene, node: Node) -> list[tuple[Node, str]]:
    """Through what a node reads: receivers and channels, in every column it can read from."""
    anatomy = scene.anatomy
    if node.kind == "answer":
        return [(node, "answer")]
    if node.kind in ("mlp", "neuron"):
        return [(node, channel) for channel in anatomy.gates]
    if node.kind != "head":
        return []
    index, group = node.index or 0, anatomy.group
    first = index // group * group
    found: list[tuple[Node, str]] = [(node, "Q")]
    for column in range(-scene.n_columns, node.column + 1):
        shared = Node(node.layer, "head", first, str(column), group)
        found += [(shared, "K"), (shared, "V")]
    return found


def slope_at(reader: Reader, slopes: Slopes) -> Float[Tensor, "example d_model"] | None:
    """The derivative by the residual stream a channel reads, its norm's scale held."""
    node, channel = reader.node, reader.channel
    if channel == "answer":
        return slopes.answer
    slope = slopes.by.get((node.layer, channel))
    if slope is None:
        return None
    width = reader.features if node.kind == "head" else reader.neurons
    return reader.pull(slope[:, reader.column, width])


def into(
    scene: Scene, receivers: Sequence[tuple[Node, str]], slopes: Slopes, *, neurons: bool = True
) -> Sums:
    """Σ over examples of what a slope expects of every edge into these channels.

    (A_corrupted - A_clean) · slope for heads, MLPs, their neurons and the embedded token below;
    for the norm's scale, the pre-activation's change by the scale alone times its slope.
    """
    found = Sums()
    for receiver, channel in receivers:
        reader = Reader(scene, receiver, channel)
        slope = slope_at(reader, slopes)
        if slope is None:
            continue
        values = _sent(reader, slope)
        values[Node(receiver.layer, "norm", None, receiver.position)] = _by_scale(reader, slopes)
        for sender, value in values.items():
            found.one[sender, receiver, channel] = float(value)
        for at in range(receiver.layer if neurons else 0):
            moved = scene.moved_post(at)[:, reader.column]
            each = moved * (slope @ scene.anatomy.mlp_out(at).mT)
            found.senders[at, receiver, channel] = each.double().sum(0).cpu()
    return found


def _sent(reader: Reader, slope: Float[Tensor, "example d_model"]) -> dict[Node, Tensor]:
    """Of every head, MLP and token below, its change times the slope, summed over examples."""
    scene, column = reader.scene, reader.column
    layer, position = reader.node.layer, reader.node.position
    token = Node(-1, "token", None, position)
    found = {token: (scene.moved(0)[:, column] * slope).sum()}
    for at in range(layer + 1 if reader.part == "mlp" else layer):
        heads = einsum(slope, scene.anatomy.head_out(at), "e d, h f d -> e h f")
        values = (heads * scene.moved_z(at)[:, column]).sum((0, 2))
        found |= {Node(at, "head", k, position): value for k, value in enumerate(values)}
    for at in range(layer):
        moved = scene.moved_mlp(at)[:, column]
        found[Node(at, "mlp", None, position)] = (moved * slope).sum()
    return found


def _by_scale(reader: Reader, slopes: Slopes) -> Tensor:
    node, channel = reader.node, reader.channel
    change = reader.change(Node(node.layer, "norm", None, node.position))
    if channel == "answer":
        # The slope is by the residual stream at a held scale: undo the gain, which is the same.
        assert slopes.answer is not None
        clean = reader.scene.frozen(node.layer, "final")
        gain = clean.gain[:, reader.column].to(change)
        return (change / gain * slopes.answer).sum()
    slope = slopes.by[node.layer, channel][:, reader.column]
    slope = slope[:, reader.features if node.kind == "head" else reader.neurons]
    return ((change @ reader.weight(channel)) * slope).sum()


def out_of(scene: Scene, start: Node, slopes: Slopes, *, neurons: bool = True) -> Sums:
    """Σ over examples of what a slope expects of every edge from the start to a later channel."""
    found = Sums()
    lens, position = scene.lens, start.position
    written, column = scene.written(start), scene.column(start)
    for layer in range(start.layer, lens.n_layers):
        for channel in ("Q", "K", "V", *scene.anatomy.gates):
            part = "attn" if channel in ("Q", "K", "V") else "mlp"
            if layer == start.layer and not (part == "mlp" and start.kind == "head"):
                continue
            slope = slopes.by.get((layer, channel))
            if slope is None:
                continue
            frozen = scene.frozen(layer, part)
            moved = frozen.at(column)(written)
            weight = scene.anatomy.reading(layer, channel)
            shift = einsum(moved, weight, "e d, head d f -> e head f")
            each = shift * rearrange(slope[:, column], "e (h f) -> e h f", h=len(weight))
            if part == "attn":
                group = 1 if channel == "Q" else scene.anatomy.group
                for index, value in enumerate(each.sum((0, 2))):
                    node = Node(layer, "head", index * group, position, group)
                    found.one[start, node, channel] = float(value)
                continue
            node = Node(layer, "mlp", None, position)
            found.one[start, node, channel] = float(each.sum())
            if neurons:
                found.receivers[start, layer, channel] = each.double().sum((0, 1)).cpu()
    if slopes.answer is not None and start.column == -1:
        node = Node(lens.n_layers, "answer", None, position)
        found.one[start, node, "answer"] = float((written * slopes.answer).sum())
    return found


def rank(sums: Sequence[Sums], n_examples: int, n: int | None) -> list[Candidate]:
    """The ``n`` edges (None: all) of largest |estimate| over all batches that carry anything."""
    total = Sums()
    for part in sums:
        total = total + part
    paths = total.paths(n)
    ordered = sorted(paths, key=lambda path: (-abs(paths[path]), *map(str, path)))
    return [Candidate(path, paths[path] / n_examples) for path in ordered[:n]]


def every_edge(
    scenes: Sequence[Scene], target: Target, slopes: Sequence[Slopes], *, neurons: bool = False
) -> list[Candidate]:
    """Every edge below a target with its expected effect, the largest first.

    Receivers are all heads and MLPs below the target, in every column, and what the target itself
    is read from.
    """
    lens, columns = scenes[0].lens, range(-min(scene.n_columns for scene in scenes), 0)
    last = Node(lens.n_layers, "answer", None, "-1")
    nodes = list(getattr(target, "nodes", (last,)))
    for layer in range(lens.n_layers if target.stop is None else target.stop):
        for column in map(str, columns):
            nodes += [Node(layer, "head", index, column) for index in range(lens.n_heads)]
            nodes.append(Node(layer, "mlp", None, column))
    channels = dict.fromkeys(pair for node in nodes for pair in channels_of(scenes[0], node))
    inside = [pair for pair in channels if pair[0].column in columns]
    sums = [
        into(s, inside, slope, neurons=neurons) for s, slope in zip(scenes, slopes, strict=True)
    ]
    return rank(sums, sum(len(scene) for scene in scenes), None)
