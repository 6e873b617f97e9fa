"""A pre-activation's change as a sum over all that write to what it reads."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.circuits.graph import Node, senders_of
from lens_skills.circuits.paired_cache import PairedCache
from lens_skills.circuits.path_patching import ReceiverInput, path_effects
from lens_skills.circuits.targets import ActivationTarget
from lens_skills.stats.correlation import rank_agreement

Parts = dict[Node, Float[Tensor, " example"]]


def decompose(cache: PairedCache, receiver: Node, channel: str) -> tuple[Parts, Tensor]:
    """Each sender's part in a neuron's pre-activation change, and the change itself.

    With w the channel's weights, g the norm's, s its scale (both prompts told apart by an index),
    and x = Σ_A A what it reads:
    w·g (x_corrupted / s_corrupted - x_clean / s_clean)
    = Σ_A w·g (A_corrupted - A_clean) / s_clean + w·g x_corrupted (1 / s_corrupted - 1 / s_clean).
    The last term is the part of the scale, the sender of kind ``"norm"``. (A LayerNorm removes
    the mean of x first, which is linear.) Biases are the same on both prompts and have no part.

    Where a norm follows the attention, a head's A is its share of what the attention adds, the
    scale of that norm as it is on each prompt (`PairedCache.share`); so shares add up, and what
    the scale does to the attention's bias is counted with the part of the scale.
    """
    reader = ReceiverInput(cache, receiver, channel)
    column = reader.column
    clean, corrupted = (
        cache.frozen(receiver.layer, reader.part, prompt) for prompt in ("clean", "corrupted")
    )
    weight = reader.weight(channel)[:, 0].double()
    frozen = clean.at(column)
    parts = {
        sender: frozen(cache.share(sender)).double() @ weight for sender in _below(cache, receiver)
    }
    there = cache.read(receiver.layer, reader.part, "corrupted")
    scale = (corrupted(there) - clean(there))[:, column].double() @ weight
    for layer in range(receiver.layer + (0 if cache.weights.parallel else 1)):
        bias = cache.bias_share(layer, column)
        if isinstance(bias, Tensor):
            scale = scale + frozen(bias).double() @ weight
    parts[Node(receiver.layer, "norm", None, receiver.position)] = scale
    norm = cache.norm(receiver.layer, reader.part)
    here = cache.read(receiver.layer, reader.part, "clean")
    whole = (norm(there) - norm(here))[:, column].double() @ weight
    return parts, whole


def upstream_frame(
    caches: Sequence[PairedCache], target: ActivationTarget
) -> tuple[pd.DataFrame, dict[str, float]]:
    """The decomposition of every neuron of a target, and how well it ranks the exact effects.

    One row per neuron, channel and sender: ``part``, the mean change of the pre-activation that
    is the sender's (with the example's sign); ``estimate``, that part times the activation's
    derivative by this pre-activation on the clean prompt; ``effect``, exact path patching of this
    edge on the target. Rows of kind ``"sum"`` and ``"change"`` hold the sum of the parts and the
    change of the pre-activation itself. The agreement is Spearman's, per neuron, of ``estimate``
    with ``effect`` over all senders and channels.
    """
    tables: list[pd.DataFrame] = []
    agreement: dict[str, float] = {}
    for node, weight in zip(target.nodes, target.weights, strict=True):
        channels = [_rows(caches, target, node, c, float(weight)) for c in caches[0].weights.gates]
        table = pd.concat(channels, ignore_index=True)
        sent = table[table["effect"].notna() & (table["part"] != 0.0)]
        if len(sent) > 2:
            estimate, effect = (
                torch.tensor(sent[name].tolist()).double() for name in ("estimate", "effect")
            )
            agreement[node.name] = rank_agreement(estimate, effect)
        tables.append(table)
    return pd.concat(tables, ignore_index=True), agreement


def _rows(
    caches: Sequence[PairedCache], target: ActivationTarget, node: Node, channel: str, weight: float
) -> pd.DataFrame:
    below = _below(caches[0], node)
    senders = [*below, Node(node.layer, "norm", None, node.position)]
    part, estimate, effect, whole = [], [], [], []
    for cache in caches:
        sign = target.sign(cache)
        found, change = decompose(cache, node, channel)
        each = torch.stack([found[sender].cpu() for sender in senders])
        gradient = _derivative(cache, ReceiverInput(cache, node, channel), channel)
        part.append(each * sign)
        estimate.append(each * gradient * sign * weight)
        effect.append(path_effects(cache, target, [(s, node, channel) for s in senders]))
        whole.append(change.cpu() * sign)
    means = [torch.cat(values, dim=1).mean(1) for values in (part, estimate, effect)]
    table = pd.DataFrame(
        {
            "neuron": node.name,
            "channel": channel,
            "sender": [sender.name for sender in senders],
            "kind": [sender.kind for sender in senders],
            "layer": [sender.layer for sender in senders],
            "part": means[0].numpy(),
            "estimate": means[1].numpy(),
            "effect": means[2].numpy(),
        }
    )
    ends = pd.DataFrame(
        {
            "neuron": node.name,
            "channel": channel,
            "sender": ["sum of parts", "whole change"],
            "kind": ["sum", "change"],
            "layer": node.layer,
            "part": [float(means[0].sum()), float(torch.cat(whole).mean())],
            "estimate": float("nan"),
            "effect": float("nan"),
        }
    )
    return pd.concat([table, ends], ignore_index=True)


def _derivative(
    cache: PairedCache, reader: ReceiverInput, channel: str
) -> Float[Tensor, " example"]:
    """Of the neuron's activation by one of its pre-activations, on the clean prompts."""
    with torch.enable_grad():
        pre = {c: value.detach().double() for c, value in reader.pre.items()}
        leaf = pre[channel].requires_grad_()
        value = cache.weights.activation({**pre, channel: leaf})
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return gradient[:, 0].cpu()


def _below(cache: PairedCache, receiver: Node) -> list[Node]:
    return senders_of(receiver, cache.adapter.n_heads, parallel=cache.weights.parallel)
