"""`CircuitRun`: circuits alone, several at once: every other edge stays on the base prompt.

A channel reads x = x_base + Σ_A (A_now - A_base) over its parents A in the circuit, and every
norm, attention pattern and activation is computed anew from what is read. Nothing is linearised.
`EdgeScheme` says what holds for the edges that a circuit does not name, and `ChangedInputs` are the
channels that read a stream of their own. `RandomCircuits` draws what could stand in a circuit's
place.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from lens_skills.circuits.graph import Edge, Node, senders_of
from lens_skills.circuits.paired_cache import CachedRun, PairedCache
from lens_skills.circuits.targets import Target
from lens_skills.models import EditHook
from lens_skills.models.sublayers import ModelWeights

Parents = Mapping[tuple[Node, str], tuple[Node, ...]]
"""Who sends into each channel of each receiver."""


@dataclass(frozen=True)
class EdgeScheme:
    """Which prompt the model is on, where the other one comes in, and how far it reaches.

    Attributes:
        base: The prompt that everything carries unless something is changed.
        tokens: Whether the input tokens are those of the other prompt.
        sources: Nodes that carry what they have on the other prompt, whatever reaches them.
        restricted: Nodes that send along the named edges only; None: all nodes. What any other
            node sends is free and reaches every channel.
        removed: The named edges are *left out*, all others are there; nothing is then restricted.
    """

    base: Literal["clean", "corrupted"] = "corrupted"
    tokens: bool = True
    sources: frozenset[Node] = frozenset()
    restricted: frozenset[Node] | None = None
    removed: bool = False

    @property
    def free(self) -> bool:
        """Whether anything reaches further than the edges that are named."""
        return self.removed or self.restricted is not None

    def restricted_at(self, kind: str, layer: int) -> list[Node]:
        """The nodes of one kind and layer that send along named edges only, where others do not."""
        return [n for n in self.restricted or () if (n.kind, n.layer) == (kind, layer)]

    def sources_at(self, kind: str, layer: int) -> list[Node]:
        """The sources of one kind and layer."""
        return [node for node in self.sources if (node.kind, node.layer) == (kind, layer)]


def parents_of(edges: Iterable[Edge]) -> Parents:
    """The senders of every channel; edges of a norm's scale cannot be run and are left out."""
    found: dict[tuple[Node, str], tuple[Node, ...]] = {}
    for edge in edges:
        if edge.channel != "scale" and edge.sender.kind != "norm":
            key = (edge.receiver, edge.channel)
            found[key] = (*found.get(key, ()), edge.sender)
    return found


@dataclass(frozen=True, eq=False)
class ChangedInputs:
    """One channel of some receivers of a block, each in one set.

    Attributes:
        places: The set and the receiver.
        streams: The residual stream each of them reads, in its column.
    """

    places: list[tuple[int, Node]]
    streams: Float[Tensor, "entry example d_model"]


def changed_heads(
    cache: PairedCache,
    run: CachedRun,
    layer: int,
    shared: Float[Tensor, "#set example column d_model"],
    changed: Mapping[str, ChangedInputs],
    *,
    n_sets: int,
) -> Float[Tensor, "set example column head d_head"]:
    """What the heads of a block read, ``z``.

    Keys and values of the columns before are those of ``run``; channels that are not in ``changed``
    (per ``"Q"``, ``"K"``, ``"V"``) read ``shared``.
    """
    inputs = changed_inputs(cache, layer, shared, changed, "QKV", n_sets=n_sets)
    return attend(cache, run, layer, inputs)


def changed_inputs(
    cache: PairedCache,
    layer: int,
    shared: Float[Tensor, "#set example column d_model"],
    changed: Mapping[str, ChangedInputs],
    channels: str,
    *,
    n_sets: int,
) -> dict[str, Float[Tensor, "set example column head f"]]:
    """Queries, keys or values of a block: of ``shared``, but where a channel is ``changed``."""
    weights = cache.weights
    norm = weights.norm(layer, "attn")
    normal = norm(shared)
    inputs: dict[str, Tensor] = {}
    for channel in channels:
        value = weights.preactivation(layer, channel, normal)
        inputs[channel] = value.expand(n_sets, *value.shape[1:]).clone()
        if channel not in changed:
            continue
        entry = changed[channel]
        group = 1 if channel == "Q" else weights.group
        heads = [int(node.index or 0) // group for _, node in entry.places]
        weight = weights.reading(layer, channel)[heads]
        bias = weights.offset(layer, channel)[heads]
        new = einsum(norm(entry.streams), weight, "n e d, n d f -> n e f") + bias[:, None]
        for (which, node), head, row in zip(entry.places, heads, new, strict=True):
            inputs[channel][which, :, cache.column(node), head] = row
    return inputs


class _ReadEnough(Exception):
    """The heads have been read; the rest of the block is not needed."""


def attend(
    cache: PairedCache,
    run: CachedRun,
    layer: int,
    inputs: Mapping[str, Float[Tensor, "set example column head f"]],
) -> Float[Tensor, "set example column head d_head"]:
    """What heads read with these queries, keys and values, by the block's own attention."""
    n_sets, suffix = inputs["Q"].shape[0], run.suffix
    seen: list[Tensor] = []

    def read(activation: Tensor) -> Tensor:
        seen.append(activation)
        raise _ReadEnough

    name, editors = f"blocks.{layer}.attn.hook_", put_inputs(layer, inputs)
    with suppress(_ReadEnough):
        residual = suffix.clean(layer, n_sets)
        suffix.run(residual, layer, stop=layer + 1, editors=editors | {f"{name}z": read})
    shape = {"s": n_sets, "head": cache.adapter.n_heads}
    z = seen[0][:, : cache.n_columns].flatten(2)
    return rearrange(z, "(s e) c (head f) -> s e c head f", **shape)


def put_inputs(
    layer: int, inputs: Mapping[str, Float[Tensor, "set example column head f"]]
) -> dict[str, EditHook]:
    """What puts queries, keys or values into the prompt's columns of a block."""

    def put(value: Tensor) -> EditHook:
        rows = rearrange(value, "s e c head f -> (s e) c head f")

        def edit(activation: Tensor) -> Tensor:
            n = rows.shape[1]
            new = rows.reshape(len(rows), n, *activation.shape[2:])
            return torch.cat([new.to(activation), activation[:, n:]], dim=1)

        return edit

    name = f"blocks.{layer}.attn.hook_"
    return {name + channel.lower(): put(value) for channel, value in inputs.items()}


def changed_neurons(
    cache: PairedCache,
    layer: int,
    shared: Mapping[str, Float[Tensor, "#set example column d_mlp"]],
    changed: Mapping[str, ChangedInputs],
    *,
    n_sets: int,
) -> Float[Tensor, "set example column d_mlp"]:
    """The activations of a block's neurons.

    ``shared`` are pre-activations per gate, and so are ``changed``: of a whole MLP, or of a single
    neuron whose stream then counts for it.
    """
    weights = cache.weights
    norm = weights.norm(layer, "mlp")
    pre: dict[str, Tensor] = {}
    for gate in weights.gates:
        if gate not in changed:
            pre[gate] = shared[gate]
            continue
        values = shared[gate]
        values = values.expand(n_sets, *values.shape[1:]).clone()
        entry = changed[gate]
        normal = norm(entry.streams)
        weight, bias = weights.reading(layer, gate)[0], weights.offset(layer, gate)[0]
        # Whole MLPs first: the stream of a single neuron holds what reaches its MLP, too.
        order = sorted(range(len(normal)), key=lambda k: entry.places[k][1].kind == "neuron")
        for k in order:
            which, node = entry.places[k]
            at = slice(None) if node.kind == "mlp" else slice(node.index, int(node.index or 0) + 1)
            values[which, :, cache.column(node), at] = normal[k] @ weight[:, at] + bias[at]
        pre[gate] = values
    post = weights.activation(pre)
    return post.expand(n_sets, *post.shape[1:]).clone()


@dataclass(eq=False)
class _State:
    """What has been computed on the way up; a layer that is not there is as on the base prompt.

    Attributes:
        parents: Of each set.
        drift: What free nodes have added to the residual stream; None where none are free.
        sent: The change of each set's nodes' outputs, once it is known (no block below changes
            again).
        free: Per layer and sublayer, what the free nodes change of its output.
        behind: What enters the next block in the columns of the answer's later tokens; None while
            it is the base prompt's.
    """

    parents: list[Parents]
    z: dict[int, Float[Tensor, "set example column head d_head"]] = field(default_factory=dict)
    post: dict[int, Float[Tensor, "set example column d_mlp"]] = field(default_factory=dict)
    drift: Float[Tensor, "set example column d_model"] | None = None
    sent: dict[tuple[int, Node], Tensor | None] = field(default_factory=dict)
    free: dict[tuple[int, str], Float[Tensor, "set example column d_model"]] = field(
        default_factory=dict
    )
    behind: Float[Tensor, "set example column d_model"] | None = None


class CircuitRun:
    """Circuits of one scheme on one batch of pairs.

    Source: edges outside the circuit carry the other prompt's values, as in Conmy et al. 2023
    (arXiv 2304.14997) and Hanna et al. 2024 (arXiv 2403.17806).
    """

    def __init__(self, cache: PairedCache, scheme: EdgeScheme) -> None:
        self.cache, self.scheme, self.weights = cache, scheme, cache.weights
        self.base, self.other = cache.clean, cache.corrupted
        if scheme.base == "corrupted":
            self.base, self.other = self.other, self.base
        self._written: dict[Node, Tensor] = {}

    @torch.no_grad()
    def measure(
        self, circuits: Sequence[Iterable[Edge]], target: Target
    ) -> Float[Tensor, "set example"]:
        """The target of each set of edges."""
        now = _State([parents_of(edges) for edges in circuits])
        adapter, n_sets = self.cache.adapter, len(circuits)
        if self.scheme.free:
            now.drift = self._entering(n_sets)
        for layer in range(adapter.n_layers if target.stop is None else target.stop):
            drift = now.drift  # what a parallel block's MLP reads is without its heads
            if self.cache.reads_on and target.stop is None:
                self._behind(layer, now)
            self._heads(layer, now)
            self._mlp(layer, now, drift if self.weights.parallel else now.drift)
        seen = {name: self._seen(now, node) for name, node in target.reads.items()}
        out = None if target.stop is not None else self._final(now)
        return target.of(self.cache, seen, out).cpu()

    # What nodes send.

    def _post(self, layer: int, *, other: bool = False) -> Float[Tensor, "example column d_mlp"]:
        """The neurons' activations on the base prompt, or on the other."""
        post, clean = self.cache.post(layer), self.scheme.base == "clean"
        return post if clean != other else post + self.cache.moved_post(layer)

    def _embedded(self) -> Float[Tensor, "example column d_model"]:
        """What the input tokens change."""
        change = self.other.entering[0] - self.base.entering[0]
        return change if self.scheme.tokens else torch.zeros_like(change)

    def _sent(self, now: _State, which: int, node: Node) -> Float[Tensor, "example d_model"] | None:
        """What a node's output is now minus what it is on the base prompt; None: no change.

        Before any norm after its sublayer.
        """
        column, layer = self.cache.column(node), node.layer
        if node.kind == "token":
            return self._embedded()[:, column] if self.scheme.tokens else None
        if node in self.scheme.sources:  # the same in every set
            if node not in self._written:
                written = self.cache.output(node)
                self._written[node] = written if self.scheme.base == "clean" else -written
            return self._written[node]
        if node.kind == "head":
            if layer not in now.z:
                return None
            heads = slice(int(node.index or 0), int(node.index or 0) + node.width)
            moved = now.z[layer][which, :, column, heads] - self.base.z[layer][:, column, heads]
            weight = self.weights.head_out(layer)[heads]
            return einsum(moved, weight, "e head f, head f d -> e d")
        if layer not in now.post:
            return None
        moved = now.post[layer][which, :, column] - self._post(layer)[:, column]
        weight = self.weights.mlp_out(layer)
        if node.kind == "neuron":
            return moved[:, [int(node.index or 0)]] * weight[int(node.index or 0)]
        return moved @ weight

    def _given(self, kind: str, layer: int) -> list[Node]:
        """The sources whose activations themselves count, since others are free to read them."""
        return self.scheme.sources_at(kind, layer) if self.scheme.free else []

    def _change(
        self, now: _State, which: int, senders: Iterable[Node]
    ) -> Float[Tensor, "example d_model"] | None:
        """What named edges change together; a neuron beside its own MLP counts once.

        Heads of one block, or neurons of one MLP, pass the norm after it together.
        """
        distinct = list(dict.fromkeys(senders))
        whole = {(node.layer, node.position) for node in distinct if node.kind == "mlp"}
        outputs: dict[tuple[int, str, int], Tensor] = {}
        for node in distinct:
            if node.kind == "neuron" and (node.layer, node.position) in whole:
                continue
            if (which, node) not in now.sent:
                now.sent[which, node] = self._sent(now, which, node)
            part = now.sent[which, node]
            if part is not None:
                name = {"token": "token", "head": "attn"}.get(node.kind, "mlp")
                place = node.layer, name, self.cache.column(node)
                outputs[place] = outputs[place] + part if place in outputs else part
        total = None
        for (layer, name, column), output in outputs.items():
            change = -output if self.scheme.removed else output
            if name != "token":
                free = now.free.get((layer, name))
                beside = 0.0 if free is None else free[which, :, column]
                change = self.cache.passed(self.base, layer, name, change, column, beside=beside)
            total = change if total is None else total + change
        return total

    # What blocks make of it.

    def _entering(self, n_sets: int) -> Float[Tensor, "set example column d_model"]:
        """What free tokens change in the stream that enters the first block."""
        change = self._embedded().clone()
        for node in self.scheme.restricted_at("token", -1):
            change[:, self.cache.column(node)] = 0
        return repeat(change, "e c d -> s e c d", s=n_sets).clone()

    def _stream(
        self, base: Tensor, drift: Tensor | None
    ) -> Float[Tensor, "set example column d_model"]:
        """What channels without named edges read (one set where it is the same for all)."""
        return base[None] if drift is None else base + drift

    def _drift_on(self, now: _State, layer: int, part: str, output: Tensor) -> None:
        """Let what free nodes change of a sublayer's output reach all that follows."""
        now.free[layer, part] = output
        added = self.cache.passed(self.base, layer, part, output, slice(None))
        now.drift = added if now.drift is None else now.drift + added

    def _changed(
        self, layer: int, kinds: Sequence[str], now: _State, stream: Tensor
    ) -> dict[str, ChangedInputs]:
        """The channels of a block into which named edges carry something."""
        found: dict[str, tuple[list[tuple[int, Node]], list[Tensor]]] = {}
        for which, parents in enumerate(now.parents):
            receivers = {n for n, _ in parents if n.layer == layer and n.kind in kinds}
            for node in sorted(receivers):
                own = self.weights.gates if node.kind in ("mlp", "neuron") else "QKV"
                for channel in own:
                    senders = _senders(parents, node, channel)
                    change = self._change(now, which, senders)
                    if change is not None:
                        row = stream[which if len(stream) > 1 else 0, :, self.cache.column(node)]
                        places, streams = found.setdefault(channel, ([], []))
                        places.append((which, node))
                        streams.append(row + change)
        return {name: ChangedInputs(places, torch.stack(s)) for name, (places, s) in found.items()}

    def _heads(self, layer: int, now: _State) -> None:
        cache, n_sets = self.cache, len(now.parents)
        stream = self._stream(self.base.entering[layer], now.drift)
        changed = self._changed(layer, ("head",), now, stream)
        base = self.base.z[layer]
        if changed or _drifts(now.drift):
            now.z[layer] = changed_heads(cache, self.base, layer, stream, changed, n_sets=n_sets)
        for node in self._given("head", layer):
            z = now.z.setdefault(layer, base.expand(n_sets, *base.shape).clone())
            at = cache.column(node), node.index
            z[:, :, at[0], at[1]] = self.other.z[layer][:, at[0], at[1]]
        if now.drift is not None and layer in now.z:
            moved = now.z[layer] - base
            for node in self.scheme.restricted_at("head", layer):
                moved[:, :, cache.column(node), node.index] = 0
            weight = self.weights.head_out(layer)
            output = einsum(moved, weight, "s e c head f, head f d -> s e c d")
            self._drift_on(now, layer, "attn", output)

    def _mlp(self, layer: int, now: _State, drift: Tensor | None) -> None:
        cache, n_sets = self.cache, len(now.parents)
        stream = self._stream(self.base.middle[layer], drift)
        changed = self._changed(layer, ("mlp", "neuron"), now, stream)
        if changed or _drifts(drift):
            shared = self.weights.neurons(layer, stream)
            now.post[layer] = changed_neurons(cache, layer, shared, changed, n_sets=n_sets)
        for node in self._given("neuron", layer):
            base = self._post(layer)
            post = now.post.setdefault(layer, base.expand(n_sets, *base.shape).clone())
            at = cache.column(node), node.index
            post[:, :, at[0], at[1]] = self._post(layer, other=True)[:, at[0], at[1]]
        if now.drift is not None and layer in now.post:
            moved = now.post[layer] - self._post(layer)
            for node in [n for k in ("mlp", "neuron") for n in self.scheme.restricted_at(k, layer)]:
                at = slice(None) if node.kind == "mlp" else node.index
                moved[:, :, cache.column(node), at] = 0
            self._drift_on(now, layer, "mlp", moved @ self.weights.mlp_out(layer))

    # Where it ends.

    def _behind(self, layer: int, now: _State) -> None:
        """One block of the answer's later tokens, which read the prompt's keys and values."""
        cache, n_sets, n = self.cache, len(now.parents), self.cache.n_columns
        stream = self._stream(self.base.entering[layer], now.drift)
        changed = self._changed(layer, ("answer",), now, stream)
        if now.behind is None:
            if not changed and not _drifts(now.drift):
                return  # the base prompt's own so far
            now.behind = self.base.suffix.clean(layer, n_sets)[:, :, n:]
        inputs = changed_inputs(cache, layer, stream, changed, "KV", n_sets=n_sets)
        residual = self.base.suffix.clean(layer, n_sets).clone()
        residual[:, :, n:] = now.behind
        editors = put_inputs(layer, inputs)
        out = self.base.suffix.run(residual, layer, stop=layer + 1, editors=editors)
        now.behind = out[:, :, n:]

    def _final(self, now: _State) -> Float[Tensor, "set example column d_model"]:
        """What leaves the last block: as the final norm reads it after the prompt, and behind it.

        The prompt's other columns are not read any more and stay as on the base prompt.
        """
        at, n_sets = self.cache.n_columns - 1, len(now.parents)
        out = self.base.leaving.repeat(n_sets, 1, 1, 1)
        out[:, :, at] = self._last(now)
        if now.behind is not None:
            out[:, :, at + 1 :] = now.behind
        return out

    def _last(self, now: _State) -> Float[Tensor, "set example d_model"]:
        """The residual stream that the final norm reads at the prompt's last token."""
        stream = self._stream(self.base.entering[-1], now.drift)[:, :, -1]
        rows = []
        for which, parents in enumerate(now.parents):
            senders = [
                n for (_, channel), own in parents.items() if channel == "answer" for n in own
            ]
            row, change = stream[which if len(stream) > 1 else 0], self._change(now, which, senders)
            rows.append(row if change is None else row + change)
        return torch.stack(rows)

    def _seen(self, now: _State, node: Node) -> Float[Tensor, "set example width"]:
        """All activations of a target's hook point, in its column."""
        head, layer = node.kind == "head", node.layer
        base = self.base.z[layer] if head else self._post(layer)
        found: Any = (now.z if head else now.post).get(layer)
        if found is None:
            found = base.expand(len(now.parents), *base.shape)
        return found[:, :, self.cache.column(node)].flatten(2)


def _senders(parents: Parents, node: Node, channel: str) -> tuple[Node, ...]:
    """Who sends into one channel; what reaches a whole MLP reaches each of its neurons."""
    found = (*parents.get((node, channel), ()), *parents.get((node, "in"), ()))
    if node.kind == "neuron":
        mlp = Node(node.layer, "mlp", None, node.position)
        found += (*parents.get((mlp, channel), ()), *parents.get((mlp, "in"), ()))
    return found


def _drifts(drift: Tensor | None) -> bool:
    return drift is not None and bool(drift.any())


class RandomCircuits:
    """All senders below a receiver and all receivers above a sender, in one column.

    The grain is that of the graph: tokens, heads, MLPs; a head's Q for itself, K and V shared by
    the query heads that read them; gate and up of an MLP apart. With ``reads_on``, keys and values
    are also read by the later tokens of an answer.
    """

    def __init__(self, weights: ModelWeights, *, reads_on: bool = False) -> None:
        self.weights, self.adapter, self.reads_on = weights, weights.adapter, reads_on
        self._kept: dict[tuple[str, Node], list[Any]] = {}

    def senders(self, receiver: Node) -> list[Node]:
        """What writes before the receiver reads: see `senders_of`."""
        return senders_of(receiver, self.adapter.n_heads, parallel=self.weights.parallel)

    def channels(self, sender: Node) -> list[tuple[Node, str]]:
        """Every channel that reads after the sender writes, in its column."""
        position, found = sender.position, list[tuple[Node, str]]()
        for layer in range(max(sender.layer, 0), self.adapter.n_layers):
            if layer > sender.layer:
                found += [*self.heads(layer, position), *self.behind(layer, position)]
            if layer > sender.layer or (sender.kind == "head" and not self.weights.parallel):
                mlp = Node(layer, "mlp", None, position)
                found += [(mlp, gate) for gate in self.weights.gates]
        if position == "-1":
            found.append((Node(self.adapter.n_layers, "answer", None, position), "answer"))
        return found

    def heads(self, layer: int, position: str) -> list[tuple[Node, str]]:
        """Every channel of a block's heads."""
        group = self.weights.group
        found = [(Node(layer, "head", h, position), "Q") for h in range(self.adapter.n_heads)]
        for first in range(0, self.adapter.n_heads, group):
            shared = Node(layer, "head", first, position, group)
            found += [(shared, "K"), (shared, "V")]
        return found

    def behind(self, layer: int, position: str) -> list[tuple[Node, str]]:
        """Every key and value of a block as an answer's later tokens read them, if there are."""
        if not self.reads_on:
            return []
        return [
            (replace(node, kind="answer"), channel)
            for node, channel in self.heads(layer, position)
            if channel != "Q"
        ]

    def count(self, n_columns: int, *, stop: int | None = None) -> int:
        """How many edges the graph below block ``stop`` (None: and into the answer) has."""
        n_layers = self.adapter.n_layers if stop is None else stop
        per_layer = len(self.heads(0, "-1"))
        if stop is None:
            per_layer += len(self.behind(0, "-1"))
        total = 0
        for layer in range(n_layers):
            below = 1 + layer * (self.adapter.n_heads + 1)
            total += per_layer * below
            own = 0 if self.weights.parallel else self.adapter.n_heads
            total += len(self.weights.gates) * (below + own)
        last = 1 + n_layers * (self.adapter.n_heads + 1) if stop is None else 0
        return total * n_columns + last

    def draw(
        self, edges: Sequence[Edge], random: np.random.Generator, *, upstream: bool
    ) -> list[Edge]:
        """As many other edges: the same receivers from random senders (upstream), or the reverse.

        A neuron is replaced by another of its layer, anything else by any token, head or MLP that
        could stand there. None is of the circuit, and none comes twice.
        """
        taken = {edge.key for edge in edges}
        drawn: list[Edge] = []
        for edge in edges:
            choices = self._choices(edge, upstream=upstream)
            free = [one for one in choices if one not in taken]
            if not free:  # everything that could stand here is in the circuit already
                free = [edge.key]
            sender, receiver, channel = free[int(random.integers(len(free)))]
            taken.add((sender, receiver, channel))
            other = {"sender": sender, "receiver": receiver, "channel": channel}
            drawn.append(replace(edge, **other))  # type: ignore[arg-type]
        return drawn

    def _choices(self, edge: Edge, *, upstream: bool) -> list[tuple[Node, Node, str]]:
        varied = edge.sender if upstream else edge.receiver
        if varied.kind == "neuron":
            layer = [replace(varied, index=k) for k in range(self.adapter.d_mlp)]
            if upstream:
                return [(node, edge.receiver, edge.channel) for node in layer]
            return [(edge.sender, node, edge.channel) for node in layer]
        if upstream:
            known = self._known(edge.receiver, self.senders)
            return [(node, edge.receiver, edge.channel) for node in known]
        known = self._known(edge.sender, self.channels)
        return [(edge.sender, node, channel) for node, channel in known]

    def _known(self, node: Node, find: Callable[[Node], list[Any]]) -> list[Any]:
        key = find.__name__, node
        if key not in self._kept:
            self._kept[key] = find(node)
        return self._kept[key]
