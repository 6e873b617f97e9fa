"""Edge attribution: the effect that a gradient expects of every edge, before any is patched.

`TargetGradients` say how fast a target changes with every pre-activation: `target_gradients` by
differentiating the model (at the clean prompt, or on the way to the corrupted one),
`relevance_gradients` with patterns, scales and gates held. `edges_into` and `edges_out_of` multiply
them with what nodes send.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from lens_skills.circuits.graph import Node
from lens_skills.circuits.paired_cache import PairedCache
from lens_skills.circuits.path_patching import Path, ReceiverInput
from lens_skills.circuits.targets import AnswerTarget, Target, features, hook_of
from lens_skills.errors import LensSkillsError
from lens_skills.models import keep_activation
from lens_skills.models.sublayers import ModelWeights

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
class TargetGradients:
    """The derivative of the target by each channel's pre-activations.

    Attributes:
        by: Per layer and channel, all heads' features side by side; what is not in it is 0.
        behind: The same of what an answer's later tokens read; ``by`` is of the prompt's alone.
        answer: By the residual stream the final norm reads, for a metric.
        neurons: By each neuron's activation, per layer; of `relevance_gradients` alone.
    """

    by: dict[tuple[int, str], Float[Tensor, "example column feature"]] = field(default_factory=dict)
    behind: dict[tuple[int, str], Float[Tensor, "example column read"]] = field(
        default_factory=dict
    )
    answer: Float[Tensor, "example d_model"] | None = None
    neurons: dict[int, Float[Tensor, "example column d_mlp"]] = field(default_factory=dict)


def target_gradients(
    cache: PairedCache, target: Target, *, points: Sequence[float] = (0.0,)
) -> TargetGradients:
    """The mean derivative at some points between the clean (0) and the corrupted prompt (1).

    The input embeddings are interpolated, embedding = clean + point (corrupted - clean). One point
    at 0 is attribution patching, several are its integrated form.

    Source: Syed et al. 2023 (arXiv 2310.10348), edge attribution patching; Hanna et al. 2024
    (arXiv 2403.17806), with integrated gradients over the inputs.
    """
    stop = cache.adapter.n_layers if target.stop is None else target.stop
    channels = ("Q", "K", "V", *cache.weights.gates)
    names = {
        f"blocks.{layer}.{HOOKS[channel]}": (layer, channel)
        for layer in range(stop)
        for channel in channels
    }
    total: dict[tuple[int, str], Tensor] = {}
    behind: dict[tuple[int, str], Tensor] = {}
    answer: Tensor | None = None
    reads_on = isinstance(target, AnswerTarget) and cache.reads_on
    for point in points:
        for into in (total, behind) if reads_on else (total,):
            seen, value, out = _pass(cache, target, list(names), point, held=into is behind)
            found = torch.autograd.grad(value.sum(), list(seen.values()), allow_unused=True)
            for name, gradient in zip(seen, found, strict=True):
                if gradient is not None:
                    part = gradient[:, : cache.n_columns].flatten(2) / len(points)
                    into[names[name]] = into.get(names[name], 0.0) + part
        if isinstance(target, AnswerTarget):
            part = target.gradient(cache, out) / len(points)
            answer = part if answer is None else answer + part
    behind = {key: part for key, part in behind.items() if key[1] in ("K", "V")}
    by = {key: part - behind[key] if key in behind else part for key, part in total.items()}
    return TargetGradients(by, behind, answer)


def _pass(
    cache: PairedCache, target: Target, names: Sequence[str], point: float, *, held: bool
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A pass that keeps its graph: pre-activations, target, and what left the last block.

    ``held``: what blocks add in the prompt's columns is no part of the graph, so that only what
    later tokens of the answer read of them is.
    """
    seen: dict[str, Tensor] = {}
    read: dict[str, Tensor] = {}

    def at(column: int) -> Callable[[Tensor], Tensor]:
        return lambda activation: activation.flatten(2)[None, :, column]

    editors = {name: keep_activation(seen, name) for name in names}
    for name, node in target.reads.items():
        editors[name] = keep_activation(read, name, at(cache.column(node)))
    suffix, n = cache.clean.suffix, cache.n_columns

    def hold(activation: Tensor) -> Tensor:
        return torch.cat([activation[:, :n].detach().requires_grad_(), activation[:, n:]], dim=1)

    if held:
        layers = range(cache.adapter.n_layers)
        editors |= {f"blocks.{layer}.hook_resid_post": hold for layer in layers}
    with torch.enable_grad(), suffix.differentiable():
        there = cache.corrupted.suffix.entering[0]
        residual = suffix.entering[0] + point * (there - suffix.entering[0])
        residual = residual.detach()[None].clone().requires_grad_()
        out = suffix.run(residual, 0, stop=target.stop, editors=editors)
        value = target.of(cache, read, out)
    if not value.requires_grad:
        raise LensSkillsError(
            f"{target.name} has no gradient to propose edges with. Choose logit_diff() or "
            "confidence('answer')."
        )
    return seen, value, out.detach()


def integrated_points(n: int = POINTS) -> tuple[float, ...]:
    """The middles of ``n`` equal steps from the clean to the corrupted prompt.

    >>> integrated_points(2)
    (0.25, 0.75)
    """
    return tuple((k + 0.5) / n for k in range(n))


@dataclass(frozen=True, eq=False)
class EdgeSums:
    """Expected effects summed over examples.

    Attributes:
        one: Of single edges.
        senders: Of edges from all neurons of a layer into one channel.
        receivers: Of edges from one sender into all neurons of a layer, through one channel.
    """

    one: dict[Path, float] = field(default_factory=dict)
    senders: dict[tuple[int, Node, str], Float[Tensor, " neuron"]] = field(default_factory=dict)
    receivers: dict[tuple[Node, int, str], Float[Tensor, " neuron"]] = field(default_factory=dict)

    def __add__(self, other: "EdgeSums") -> "EdgeSums":
        return EdgeSums(
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


def channels_of(cache: PairedCache, node: Node) -> list[tuple[Node, str]]:
    """Through what a node reads: receivers and channels, in every column it can read from."""
    weights = cache.weights
    if node.kind == "answer":
        return [(node, "answer"), *read_behind(cache, range(-cache.n_columns, 0))]
    if node.kind in ("mlp", "neuron"):
        return [(node, channel) for channel in weights.gates]
    if node.kind != "head":
        return []
    index, group = node.index or 0, weights.group
    first = index // group * group
    found: list[tuple[Node, str]] = [(node, "Q")]
    for column in range(-cache.n_columns, node.column + 1):
        shared = Node(node.layer, "head", first, str(column), group)
        found += [(shared, "K"), (shared, "V")]
    return found


def read_behind(cache: PairedCache, columns: Iterable[int]) -> list[tuple[Node, str]]:
    """Every key and value of these columns, as an answer's later tokens read them, if there are."""
    adapter, group = cache.adapter, cache.weights.group
    if not cache.reads_on:
        return []
    return [
        (Node(layer, "answer", first, str(column), group), channel)
        for layer in range(adapter.n_layers)
        for first in range(0, adapter.n_heads, group)
        for column in columns
        for channel in ("K", "V")
    ]


def gradient_at(
    reader: ReceiverInput, gradients: TargetGradients
) -> Float[Tensor, "example d_model"] | None:
    """The derivative by the residual stream a channel reads, its norm's scale held."""
    if reader.channel == "answer":
        return gradients.answer
    gradient = _of(reader, gradients)
    if gradient is None:
        return None
    width = reader.features if reader.of_heads else reader.neurons
    return reader.pull(gradient[:, reader.column, width])


def _of(reader: ReceiverInput, gradients: TargetGradients) -> Tensor | None:
    found = gradients.behind if reader.node.kind == "answer" else gradients.by
    return found.get((reader.node.layer, reader.channel))


def edges_into(
    cache: PairedCache,
    receivers: Sequence[tuple[Node, str]],
    gradients: TargetGradients,
    *,
    neurons: bool = True,
) -> EdgeSums:
    """Σ over examples of what a gradient expects of every edge into these channels.

    (A_corrupted - A_clean) · gradient for heads, MLPs, their neurons and the embedded token below;
    for the norm's scale, the pre-activation's change by the scale alone times its gradient. A norm
    after a sublayer counts with its derivative at the clean prompt, its scale's included.
    """
    found = EdgeSums()
    for receiver, channel in receivers:
        reader = ReceiverInput(cache, receiver, channel)
        gradient = gradient_at(reader, gradients)
        if gradient is None:
            continue
        values = _sent(reader, gradient)
        values[Node(receiver.layer, "norm", None, receiver.position)] = _by_scale(reader, gradients)
        for sender, value in values.items():
            found.one[sender, receiver, channel] = float(value)
        for at in range(receiver.layer if neurons else 0):
            moved = cache.moved_post(at)[:, reader.column]
            each = moved * (
                _before_norm(reader, at, "mlp", gradient) @ cache.weights.mlp_out(at).mT
            )
            found.senders[at, receiver, channel] = each.double().sum(0).cpu()
    return found


def _sent(reader: ReceiverInput, gradient: Float[Tensor, "example d_model"]) -> dict[Node, Tensor]:
    """Of every head, MLP and token below, its change times the gradient, summed over examples."""
    cache, column = reader.cache, reader.column
    layer, position = reader.node.layer, reader.node.position
    token = Node(-1, "token", None, position)
    found = {token: (cache.moved(0)[:, column] * gradient).sum()}
    own = reader.part == "mlp" and not cache.weights.parallel
    for at in range(layer + own):
        slope = _before_norm(reader, at, "attn", gradient)
        heads = einsum(slope, cache.weights.head_out(at), "e d, h f d -> e h f")
        values = (heads * cache.moved_z(at)[:, column]).sum((0, 2))
        found |= {Node(at, "head", k, position): value for k, value in enumerate(values)}
    for at in range(layer):
        moved = cache.moved_mlp(at)[:, column]
        found[Node(at, "mlp", None, position)] = (moved * gradient).sum()
    return found


def _before_norm(
    reader: ReceiverInput, layer: int, part: str, gradient: Float[Tensor, "example d_model"]
) -> Float[Tensor, "example d_model"]:
    """A derivative by what a sublayer adds in the reader's column as one by its clean output."""
    cache, weights = reader.cache, reader.cache.weights
    if weights.sublayer(part).after is None:
        return weights.pulled(layer, part, gradient, gradient)
    output = cache.raw(cache.clean, layer, part)[:, reader.column]
    return weights.pulled(layer, part, output, gradient)


def _by_scale(reader: ReceiverInput, gradients: TargetGradients) -> Tensor:
    node, channel = reader.node, reader.channel
    change = reader.change(Node(node.layer, "norm", None, node.position))
    if channel == "answer":
        # The gradient is by the residual stream at a held scale: undo the gain, which is the same.
        assert gradients.answer is not None
        clean = reader.cache.frozen(node.layer, "final")
        gain = clean.gain[:, reader.column].to(change)
        return (change / gain * gradients.answer).sum()
    whole = _of(reader, gradients)
    assert whole is not None
    gradient = whole[:, reader.column, reader.features if reader.of_heads else reader.neurons]
    return ((change @ reader.weight(channel)) * gradient).sum()


def edges_out_of(
    cache: PairedCache, start: Node, gradients: TargetGradients, *, neurons: bool = True
) -> EdgeSums:
    """Σ over examples of what a gradient expects of every edge from the start to later channels."""
    found = EdgeSums()
    adapter, position = cache.adapter, start.position
    written, column = cache.written(start), cache.column(start)
    of_each = [
        *((key, "head", gradient) for key, gradient in gradients.by.items()),
        *((key, "answer", gradient) for key, gradient in gradients.behind.items()),
    ]
    order = ("Q", "K", "V", *cache.weights.gates)
    of_each.sort(key=lambda one: (one[0][0], order.index(one[0][1])))
    for (layer, channel), kind, gradient in of_each:
        if layer >= start.layer:
            part = "attn" if channel in ("Q", "K", "V") else "mlp"
            own = part == "mlp" and start.kind == "head" and not cache.weights.parallel
            if layer == start.layer and not own:
                continue
            frozen = cache.frozen(layer, part)
            moved = frozen.at(column)(written)
            weight = cache.weights.reading(layer, channel)
            shift = einsum(moved, weight, "e d, head d f -> e head f")
            each = shift * rearrange(gradient[:, column], "e (h f) -> e h f", h=len(weight))
            if part == "attn":
                group = 1 if channel == "Q" else cache.weights.group
                for index, value in enumerate(each.sum((0, 2))):
                    node = Node(layer, kind, index * group, position, group)  # type: ignore[arg-type]
                    found.one[start, node, channel] = float(value)
                continue
            node = Node(layer, "mlp", None, position)
            found.one[start, node, channel] = float(each.sum())
            if neurons:
                found.receivers[start, layer, channel] = each.double().sum((0, 1)).cpu()
    if gradients.answer is not None and start.column == -1:
        node = Node(adapter.n_layers, "answer", None, position)
        found.one[start, node, "answer"] = float((written * gradients.answer).sum())
    return found


def strongest_edges(sums: Sequence[EdgeSums], n_examples: int, n: int) -> dict[Path, float]:
    """The ``n`` edges of largest |estimate| over all batches, each with its mean over examples."""
    total = EdgeSums()
    for part in sums:
        total = total + part
    paths = total.paths(n)
    ordered = sorted(paths, key=lambda path: (-abs(paths[path]), *map(str, path)))
    return {path: paths[path] / n_examples for path in ordered[:n]}


_SMALL = 1e-6  # a pre-activation so near 0 stands for its limit there


def relevance_gradients(cache: PairedCache, target: Target) -> TargetGradients:
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
    weights, n_layers = cache.weights, cache.adapter.n_layers
    stop = n_layers if target.stop is None else target.stop
    patterns = _patterns(cache, stop)
    found = TargetGradients(answer=None)
    gradient = torch.zeros_like(cache.clean.entering[0])
    if isinstance(target, AnswerTarget):
        if cache.reads_on:
            raise LensSkillsError(
                "relevance is propagated from answers of one token, and these have several, or the "
                "metric reads what follows them. Choose proposals='attribution' or 'integrated'."
            )
        answer = target.gradient(cache, cache.clean.leaving)
        found = TargetGradients(answer=answer)
        gradient[:, -1] = answer
    for layer in reversed(range(stop)):

        def before(part: str, slope: Tensor, at: int = layer) -> Tensor:
            if weights.sublayer(part).after is None:
                return weights.pulled(at, part, slope, slope)
            return weights.pulled(at, part, cache.raw(cache.clean, at, part), slope, held=True)

        post = before("mlp", gradient) @ weights.mlp_out(layer).mT
        post = post + _seed(cache, target, layer, "neuron")
        found.neurons[layer] = post
        pre = weights.neurons(layer, cache.clean.middle[layer])
        back = torch.zeros_like(gradient)
        for channel, share in _shares(weights, pre).items():
            found.by[layer, channel] = post * share
            back = back + found.by[layer, channel] @ weights.reading(layer, channel)[0].mT
        read = cache.frozen(layer, "mlp").back(back)
        written = before("attn", gradient if weights.parallel else gradient + read)
        z = einsum(written, weights.head_out(layer), "e c d, h f d -> e c h f")
        z = z + _heads(_seed(cache, target, layer, "head"), cache.adapter.n_heads)
        values = einsum(patterns[layer], z, "e h query key, e query h f -> e key h f")
        values = reduce(values, "e key (kv group) f -> e key kv f", "sum", group=weights.group)
        found.by[layer, "V"] = rearrange(values, "e key kv f -> e key (kv f)")
        back = einsum(values, weights.reading(layer, "V"), "e c kv f, kv d f -> e c d")
        gradient = gradient + read + cache.frozen(layer, "attn").back(back)
    return found


def _shares(weights: ModelWeights, pre: dict[str, Tensor]) -> dict[str, Tensor]:
    """What each pre-activation is multiplied by so that all together give the activation."""
    first = pre["gate" if "gate" in pre else "in"]
    safe = torch.where(first.abs() < _SMALL, _SMALL, first)
    line = weights.act(safe) / safe
    if "gate" not in pre:
        return {"in": line}
    return {"gate": 0.5 * line * pre["up"], "up": 0.5 * weights.act(first)}


def _patterns(cache: PairedCache, stop: int) -> list[Float[Tensor, "example head query key"]]:
    """Who looks at whom on the clean prompt, among the columns that can change."""
    seen: dict[int, Tensor] = {}

    def own(activation: Tensor) -> Tensor:
        return activation[..., -cache.n_columns :].clone()

    editors = {
        f"blocks.{layer}.attn.hook_pattern": keep_activation(seen, layer, own)
        for layer in range(stop)
    }
    suffix = cache.clean.suffix
    suffix.run(suffix.clean(0, 1), 0, stop=stop, editors=editors)
    return [seen[layer] for layer in range(stop)]


def _seed(cache: PairedCache, target: Target, layer: int, kind: str) -> Tensor:
    """The target's derivative by the activations it is read from."""
    adapter = cache.adapter
    width = adapter.n_heads * adapter.d_head if kind == "head" else adapter.d_mlp
    entering = cache.clean.entering[0]
    seed = entering.new_zeros(*entering.shape[:2], width)
    if isinstance(target, AnswerTarget):
        return seed
    sign = target.sign(cache).to(seed)
    for node, weight in zip(target.nodes, target.weights, strict=True):
        if hook_of(node) in target.reads and (node.layer, node.kind) == (layer, kind):
            place = features(node, len(weight))
            seed[:, cache.column(node), place] += sign[:, None] * weight.to(seed)
    return seed


def _heads(values: Tensor, n_heads: int) -> Tensor:
    return rearrange(values, "e c (h f) -> e c h f", h=n_heads)
