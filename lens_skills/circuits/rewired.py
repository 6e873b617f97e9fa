"""`Rewired`: channels that read a stream of their own, and what a block makes of them."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills.circuits.node import Node
from lens_skills.circuits.scene import Scene, Side


@dataclass(frozen=True, eq=False)
class Rewired:
    """One channel of some receivers of a block, each in one set.

    Attributes:
        places: The set and the receiver.
        streams: The residual stream each of them reads, in its column.
    """

    places: list[tuple[int, Node]]
    streams: Float[Tensor, "entry example d_model"]


def changed_heads(
    scene: Scene,
    side: Side,
    layer: int,
    shared: Float[Tensor, "#set example column d_model"],
    rewired: Mapping[str, Rewired],
    *,
    n_sets: int,
) -> Float[Tensor, "set example column head d_head"]:
    """What the heads of a block read, ``z``.

    Args:
        scene: The pairs.
        side: Whose keys and values stand in the columns before.
        layer: The block.
        shared: The stream that all other channels read.
        rewired: Per ``"Q"``, ``"K"``, ``"V"``.
        n_sets: How many versions there are.
    """
    anatomy = scene.anatomy
    norm = anatomy.norm(layer, "attn")
    normal = norm(shared)
    inputs: dict[str, Tensor] = {}
    for channel in "QKV":
        value = anatomy.preactivation(layer, channel, normal)
        inputs[channel] = value.expand(n_sets, *value.shape[1:]).clone()
        if channel not in rewired:
            continue
        entry = rewired[channel]
        group = 1 if channel == "Q" else anatomy.group
        heads = [int(node.index or 0) // group for _, node in entry.places]
        weight = anatomy.reading(layer, channel)[heads]
        bias = anatomy.offset(layer, channel)[heads]
        new = einsum(norm(entry.streams), weight, "n e d, n d f -> n e f") + bias[:, None]
        for (which, node), head, row in zip(entry.places, heads, new, strict=True):
            inputs[channel][which, :, scene.column(node), head] = row
    return attend(scene, side, layer, inputs)


class _ReadEnough(Exception):
    """The heads have been read; the rest of the block is not needed."""


def attend(
    scene: Scene,
    side: Side,
    layer: int,
    inputs: Mapping[str, Float[Tensor, "set example column head f"]],
) -> Float[Tensor, "set example column head d_head"]:
    """What heads read with these queries, keys and values, by the block's own attention."""
    n_sets, suffix = inputs["Q"].shape[0], side.suffix
    seen: list[Tensor] = []

    def put(value: Tensor) -> Any:
        rows = rearrange(value, "s e c head f -> (s e) c head f")
        return lambda activation: rows.reshape(activation.shape)

    def read(activation: Tensor) -> Tensor:
        seen.append(activation)
        raise _ReadEnough

    name = f"blocks.{layer}.attn.hook_"
    editors = {name + channel.lower(): put(value) for channel, value in inputs.items()}
    with suppress(_ReadEnough):
        residual = suffix.clean(layer, n_sets)
        suffix.run(residual, layer, stop=layer + 1, editors=editors | {f"{name}z": read})
    shape = {"s": n_sets, "head": scene.lens.n_heads}
    return rearrange(seen[0].flatten(2), "(s e) c (head f) -> s e c head f", **shape)


def changed_neurons(
    scene: Scene,
    layer: int,
    shared: Mapping[str, Float[Tensor, "#set example column d_mlp"]],
    rewired: Mapping[str, Rewired],
    *,
    n_sets: int,
) -> Float[Tensor, "set example column d_mlp"]:
    """The activations of a block's neurons.

    Args:
        scene: The pairs.
        layer: The block.
        shared: Per gate, pre-activations from the stream that all other channels read.
        rewired: Per gate; a whole MLP, or a single neuron whose stream then counts for it.
        n_sets: How many versions there are.
    """
    anatomy = scene.anatomy
    norm = anatomy.norm(layer, "mlp")
    pre: dict[str, Tensor] = {}
    for gate in anatomy.gates:
        if gate not in rewired:
            pre[gate] = shared[gate]
            continue
        values = shared[gate]
        values = values.expand(n_sets, *values.shape[1:]).clone()
        entry = rewired[gate]
        normal = norm(entry.streams)
        weight, bias = anatomy.reading(layer, gate)[0], anatomy.offset(layer, gate)[0]
        # Whole MLPs first: the stream of a single neuron holds what reaches its MLP, too.
        order = sorted(range(len(normal)), key=lambda k: entry.places[k][1].kind == "neuron")
        for k in order:
            which, node = entry.places[k]
            at = slice(None) if node.kind == "mlp" else slice(node.index, int(node.index or 0) + 1)
            values[which, :, scene.column(node), at] = normal[k] @ weight[:, at] + bias[at]
        pre[gate] = values
    post = anatomy.activation(pre)
    return post.expand(n_sets, *post.shape[1:]).clone()
