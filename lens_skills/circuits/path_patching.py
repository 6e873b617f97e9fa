"""Exact path patching: edges carry what they carry on the corrupted prompt.

`path_effects` patches one edge at a time, `whole_input` and `whole_output` all edges into or out of
a node together. `ReceiverInput` is one channel of one receiver: what it reads, and what a change of
that does to it.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills.checkpoints import part
from lens_skills.circuits.graph import Node
from lens_skills.circuits.paired_cache import PairedCache
from lens_skills.circuits.targets import AnswerTarget, Target, clean_seen, features, hook_of
from lens_skills.models import EditHook, keep_activation
from lens_skills.progress import Progress


@dataclass(frozen=True, eq=False)
class ReceiverInput:
    """A channel of a head, an MLP, a neuron or the answer, in its column.

    Attributes:
        cache: The pairs it is read on.
        node: The receiver.
        channel: ``"Q"``, ``"K"``, ``"V"``, ``"gate"``, ``"up"``, ``"in"`` or ``"answer"``.
    """

    cache: PairedCache
    node: Node
    channel: str

    @cached_property
    def column(self) -> int:
        """Where it stands in the cache."""
        return self.cache.column(self.node)

    @property
    def part(self) -> str:
        """Behind which norm it reads: ``"attn"``, ``"mlp"`` or ``"final"``."""
        if self.of_heads:
            return "attn"
        return "final" if self.node.kind == "answer" else "mlp"

    @property
    def of_heads(self) -> bool:
        """Whether an attention reads it: the prompt's, or that of an answer's later tokens."""
        return self.channel in ("Q", "K", "V")

    @cached_property
    def residual(self) -> Float[Tensor, "example d_model"]:
        """The clean residual stream it reads."""
        return self.cache.read(self.node.layer, self.part, "clean")[:, self.column]

    @cached_property
    def normal(self) -> Float[Tensor, "example d_model"]:
        """The same after the norm."""
        return self._norm(self.residual)

    def _norm(self, residual: Float[Tensor, "example d_model"]) -> Tensor:
        return self.cache.norm(self.node.layer, self.part)(residual[:, None])[:, 0]

    @property
    def hook(self) -> str | None:
        """The hook point where a head's new pre-activation is put (None: it is computed here)."""
        if not self.of_heads:
            return None
        return f"blocks.{self.node.layer}.attn.hook_{self.channel.lower()}"

    @cached_property
    def heads(self) -> slice:
        """Which heads of the weights it is: one for Q, the shared one for K and V."""
        if not self.of_heads:
            return slice(0, 1)
        index = self.node.index or 0
        first = index if self.channel == "Q" else index // self.cache.weights.group
        return slice(first, first + 1)

    @property
    def features(self) -> slice:
        """Its features at the hook point, flattened."""
        width = self.cache.adapter.d_head
        return slice(self.heads.start * width, self.heads.stop * width)

    def weight(self, channel: str) -> Float[Tensor, "d_model feature"]:
        """What its pre-activations are made with; one column of an MLP's for a neuron."""
        weight = self.cache.weights.reading(self.node.layer, channel)[self.heads][0]
        return weight[:, self.neurons]

    @property
    def neurons(self) -> slice:
        """Which neurons of the MLP it is, or all features of a head."""
        if self.node.kind != "neuron":
            return slice(None)
        index = self.node.index or 0
        return slice(index, index + 1)

    @cached_property
    def clean(self) -> Float[Tensor, "example feature"]:
        """The clean pre-activation of a head's channel."""
        return self._pre(self.channel)

    def _pre(self, channel: str) -> Tensor:
        offset = self.cache.weights.offset(self.node.layer, channel)[self.heads][0]
        return self.normal @ self.weight(channel) + offset[self.neurons]

    @cached_property
    def pre(self) -> Mapping[str, Float[Tensor, "example feature"]]:
        """The clean pre-activations of an MLP or neuron."""
        return {channel: self._pre(channel) for channel in self.cache.weights.gates}

    def change(self, sender: Node) -> Float[Tensor, "example d_model"]:
        """What the norm gives when the sender carries its corrupted value, minus what it gives.

        For the norm's own scale as the sender: this residual stream at the corrupted scale.
        """
        if sender.kind == "norm":
            clean, corrupted = (
                self.cache.frozen(self.node.layer, self.part, prompt)
                for prompt in ("clean", "corrupted")
            )
            moved = corrupted(self._everywhere) - clean(self._everywhere)
            return moved[:, self.column].to(self.residual)
        return self._norm(self.residual + self.cache.written(sender)) - self.normal

    @property
    def _everywhere(self) -> Tensor:
        return self.cache.read(self.node.layer, self.part, "clean")

    def moved(self, change: Float[Tensor, "example d_model"]) -> Float[Tensor, "example feature"]:
        """What such a change does: to a head's pre-activation, or to the neurons' activations."""
        shift = change @ self.weight(self.channel)
        if self.of_heads:
            return shift
        weights, pre = self.cache.weights, self.pre
        new = {**pre, self.channel: pre[self.channel] + shift}
        return weights.activation(new) - weights.activation(pre)

    def writes(self, moved: Float[Tensor, "example feature"]) -> Float[Tensor, "example d_model"]:
        """What changed neurons add to the residual stream, the rest of their MLP clean."""
        cache, layer = self.cache, self.node.layer
        change = moved @ cache.weights.mlp_out(layer)[self.neurons]
        return cache.passed(cache.clean, layer, "mlp", change, self.column)

    def pull(self, gradient: Float[Tensor, "example feature"]) -> Float[Tensor, "example d_model"]:
        """A derivative by its pre-activation as one by what it reads, at the norm's clean scale."""
        frozen = self.cache.frozen(self.node.layer, self.part)
        back = einsum(gradient, self.weight(self.channel), "e f, d f -> e d")
        return frozen.at(self.column).back(back)


Path = tuple[Node, Node, str]
"""Sender, receiver, channel."""


ROWS = 2048
"""Columns of all sets and examples that run at once."""


def path_effects(
    cache: PairedCache, target: Target, paths: Sequence[Path], *, rows: int = ROWS
) -> Float[Tensor, "path example"]:
    """The target when only this edge carries its corrupted value, minus the clean target.

    The sender's contribution to what the channel reads is replaced by its contribution on the
    corrupted prompt, x' = x + (A_corrupted - A_clean); the receiver is computed anew from it with
    all its other channels clean, and whatever follows the receiver runs freely. The norm as a
    sender: the channel is read with the corrupted prompt's scale. A norm after the sender's or the
    receiver's sublayer is computed anew, from the one activation that changed and the clean rest.
    An answer's later tokens are given; a key or value that they alone read is an edge into the
    answer, and they run freely whenever what they read has changed.

    Source: Goldowsky-Dill et al. 2023 (arXiv 2304.05969), path patching; edges as in
    Conmy et al. 2023 (arXiv 2304.14997).
    """
    effects = torch.zeros(len(paths), len(cache), dtype=torch.float64)
    made = {(node, channel): ReceiverInput(cache, node, channel) for _, node, channel in paths}
    readers = [made[node, channel] for _, node, channel in paths]
    waiting: dict[int, list[int]] = defaultdict(list)
    for place, ((sender, receiver, _), reader) in enumerate(zip(paths, readers, strict=True)):
        if reader.channel == "answer" and sender.kind == "norm":
            assert isinstance(target, AnswerTarget)
            effects[place] = target.at_scale(cache, reader.normal + reader.change(sender))
        elif reader.channel == "answer":
            waiting[cache.adapter.n_layers].append(place)
        elif receiver.kind == "neuron" and receiver in getattr(target, "nodes", ()):
            effects[place] = _at_target(cache, target, reader, sender)
        else:
            waiting[receiver.layer + (0 if reader.of_heads else 1)].append(place)
    n_sets = max(1, rows // (len(cache) * cache.clean.suffix.n_columns))
    with Progress(sum(map(len, waiting.values())), "patch paths", "paths") as bar:
        for layer, places in sorted(waiting.items()):
            for first in range(0, len(places), n_sets):
                some = places[first : first + n_sets]
                chosen = [(paths[k][0], readers[k]) for k in some]
                effects[some] = part("paths", partial(_run_on, cache, target, layer, chosen))
                bar.update(len(some))
    return effects


def _at_target(
    cache: PairedCache, target: Any, reader: ReceiverInput, sender: Node
) -> Float[Tensor, " example"]:
    """The effect on a neuron that is itself the target: nothing has to run."""
    place = target.nodes.index(reader.node)
    moved = reader.moved(reader.change(sender))[:, 0].double().cpu()
    return moved * float(target.weights[place]) * target.sign(cache)


def _run_on(
    cache: PairedCache, target: Target, layer: int, sets: Sequence[tuple[Node, ReceiverInput]]
) -> Float[Tensor, "set example"]:
    return _run(cache, target, layer, sets).cpu()


def _run(
    cache: PairedCache, target: Target, layer: int, sets: Sequence[tuple[Node, ReceiverInput]]
) -> Float[Tensor, "set example"]:
    residual = cache.clean.suffix.clean(layer, len(sets)).clone()
    edits: dict[str, list[tuple[int, int, slice, Tensor]]] = defaultdict(list)
    for place, (sender, reader) in enumerate(sets):
        if reader.channel == "answer":
            residual[place, :, reader.column] += cache.written(sender)
            continue
        moved = reader.moved(reader.change(sender))
        if reader.hook is None:
            residual[place, :, reader.column] += reader.writes(moved)
        else:
            new = reader.clean + moved
            edits[reader.hook].append((place, reader.column, reader.features, new))
    editors = {name: edit_features(parts, len(cache)) for name, parts in edits.items()}
    if cache.reads_on and edits and target.stop is None:
        # Keys and values have two readers: the prompt, and the tokens behind it.
        suffix, n = cache.clean.suffix, cache.n_columns
        residual = suffix.run(residual, layer, stop=layer + 1, editors=editors)
        layer, editors = layer + 1, {}
        for place, (_, reader) in enumerate(sets):
            held = slice(n) if reader.node.kind == "answer" else slice(n, None)
            if reader.of_heads:
                residual[place, :, held] = suffix.entering[layer][:, held]
    return measure(cache, target, residual, layer, editors) - clean_value(cache, target)


def edit_features(parts: Sequence[tuple[int, int, slice, Tensor]], n_examples: int) -> EditHook:
    def edit(activation: Tensor) -> Tensor:
        flat = activation.flatten(2).clone()
        for place, column, width, new in parts:
            rows = slice(place * n_examples, (place + 1) * n_examples)
            flat[rows, column, width] = new.to(flat)
        return flat.view_as(activation)

    return edit


def measure(
    cache: PairedCache,
    target: Target,
    residual: Float[Tensor, "set example column d_model"],
    layer: int,
    editors: Mapping[str, EditHook],
) -> Float[Tensor, "set example"]:
    """The target of a run from a block on; of what lies below it, the clean values."""
    n_sets, suffix = len(residual), cache.clean.suffix
    seen = {k: v.expand(n_sets, -1, -1) for k, v in clean_seen(cache, target).items()}
    if target.stop is not None and layer >= target.stop:
        return target.of(cache, seen, None)

    def at(column: int) -> Callable[[Tensor], Tensor]:
        return lambda activation: rearrange(
            activation.flatten(2)[:, column], "(set example) f -> set example f", set=n_sets
        )

    reading = {
        name: keep_activation(seen, name, at(cache.column(node)))
        for name, node in target.reads.items()
        if node.layer >= layer
    }
    both = {name: _both(editors[name], reading[name]) for name in editors.keys() & reading.keys()}
    out = suffix.run(residual, layer, stop=target.stop, editors={**editors, **reading, **both})
    return target.of(cache, seen, out)


def _both(first: EditHook, then: EditHook) -> EditHook:
    return lambda activation: then(first(activation))


def clean_value(cache: PairedCache, target: Target) -> Float[Tensor, "1 example"]:
    """The target of the unpatched clean prompts."""
    return target.of(cache, clean_seen(cache, target), cache.clean.leaving)


def whole_input(cache: PairedCache, target: Target) -> Float[Tensor, " example"]:
    """The target when all that feeds it is corrupted, minus the clean target."""
    if isinstance(target, AnswerTarget):
        there = target.of(cache, {}, cache.corrupted.leaving)
    else:
        there = target.of(cache, corrupted_seen(cache, target.nodes), None)
    return (there - clean_value(cache, target))[0].cpu()


def corrupted_seen(
    cache: PairedCache, nodes: Sequence[Node]
) -> dict[str, Float[Tensor, "1 example width"]]:
    """What these nodes' hook points hold on the corrupted prompts."""
    found = {}
    for node in nodes:
        column = cache.column(node)
        if node.kind == "head":
            values = cache.corrupted.z[node.layer].flatten(2)
        else:
            values = cache.post(node.layer) + cache.moved_post(node.layer)
        found[hook_of(node)] = values[None, :, column]
    return found


def whole_output(
    cache: PairedCache, target: AnswerTarget, nodes: Sequence[Node]
) -> Float[Tensor, " example"]:
    """The target when these nodes hold their corrupted activations, minus the clean target."""
    there = corrupted_seen(cache, nodes)
    parts: dict[str, list[tuple[int, int, slice, Tensor]]] = defaultdict(list)
    for node in nodes:
        width = cache.adapter.d_head if node.kind == "head" else 1
        place = features(node, width)
        new = there[hook_of(node)][0][:, place]
        parts[hook_of(node)].append((0, cache.column(node), place, new))
    editors = {name: edit_features(some, len(cache)) for name, some in parts.items()}
    layer = min(node.layer for node in nodes)
    found = measure(cache, target, cache.clean.suffix.clean(layer, 1), layer, editors)
    return (found - clean_value(cache, target))[0].cpu()


def together(parts: Sequence[Tensor]) -> Tensor:
    """Batches of examples as one tensor, the examples last."""
    return torch.cat([part.double().cpu() for part in parts], dim=-1)
