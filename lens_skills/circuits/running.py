"""`Running`: circuits alone, several side by side: every other edge stays on the ground prompt.

A channel reads x = x_ground + Σ_A (A_now - A_ground) over its parents A in the circuit, and every
norm, attention pattern and activation is computed anew from what is read. Nothing is linearised.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import einsum, repeat
from jaxtyping import Float
from torch import Tensor

from lens_skills.circuits.edge import Edge
from lens_skills.circuits.node import Node
from lens_skills.circuits.regime import Parents, Regime, parents_of
from lens_skills.circuits.rewired import Rewired, changed_heads, changed_neurons
from lens_skills.circuits.scene import Scene, Side
from lens_skills.circuits.target import Target


@dataclass(eq=False)
class _Now:
    """What has been computed on the way up; a layer that is not there is as on the ground prompt.

    Attributes:
        parents: Of each set.
        drift: What free nodes have added to the residual stream; None where none are free.
    """

    parents: list[Parents]
    z: dict[int, Float[Tensor, "set example column head d_head"]] = field(default_factory=dict)
    post: dict[int, Float[Tensor, "set example column d_mlp"]] = field(default_factory=dict)
    drift: Float[Tensor, "set example column d_model"] | None = None


class Running:
    """Circuits of one regime on one batch of pairs.

    Source: edges outside the circuit carry the other prompt's values, as in Conmy et al. 2023
    (arXiv 2304.14997) and Hanna et al. 2024 (arXiv 2403.17806).
    """

    def __init__(self, scene: Scene, regime: Regime) -> None:
        self.scene, self.regime, self.anatomy = scene, regime, scene.anatomy
        sides: dict[str, Side] = {"clean": scene.clean, "corrupted": scene.corrupted}
        self.ground = sides.pop(regime.ground)
        (self.other,) = sides.values()
        self._written: dict[Node, Tensor] = {}

    @torch.no_grad()
    def measure(
        self, circuits: Sequence[Iterable[Edge]], target: Target
    ) -> Float[Tensor, "set example"]:
        """The target of each set of edges."""
        now = _Now([parents_of(edges) for edges in circuits])
        lens, n_sets = self.scene.lens, len(circuits)
        if self.regime.free:
            now.drift = self._entering(n_sets)
        for layer in range(lens.n_layers if target.stop is None else target.stop):
            self._heads(layer, now)
            self._mlp(layer, now)
        seen = {name: self._seen(now, node) for name, node in target.reads.items()}
        out = None if target.stop is not None else self._final(now)[:, :, None]
        return target.of(self.scene, seen, out).cpu()

    # What nodes send.

    def _post(self, layer: int, *, other: bool = False) -> Float[Tensor, "example column d_mlp"]:
        """The neurons' activations on the ground prompt, or on the other."""
        post, clean = self.scene.post(layer), self.regime.ground == "clean"
        return post if clean != other else post + self.scene.moved_post(layer)

    def _embedded(self) -> Float[Tensor, "example column d_model"]:
        """What the input tokens change."""
        change = self.other.entering[0] - self.ground.entering[0]
        return change if self.regime.tokens else torch.zeros_like(change)

    def _sent(self, now: _Now, which: int, node: Node) -> Float[Tensor, "example d_model"] | None:
        """What a node writes now minus what it writes on the ground prompt; None: nothing."""
        column, layer = self.scene.column(node), node.layer
        if node.kind == "token":
            return self._embedded()[:, column] if self.regime.tokens else None
        if node in self.regime.sources:  # the same in every set
            if node not in self._written:
                written = self.scene.written(node)
                self._written[node] = written if self.regime.ground == "clean" else -written
            return self._written[node]
        if node.kind == "head":
            if layer not in now.z:
                return None
            heads = slice(int(node.index or 0), int(node.index or 0) + node.width)
            moved = now.z[layer][which, :, column, heads] - self.ground.z[layer][:, column, heads]
            weight = self.anatomy.head_out(layer)[heads]
            return einsum(moved, weight, "e head f, head f d -> e d")
        if layer not in now.post:
            return None
        moved = now.post[layer][which, :, column] - self._post(layer)[:, column]
        weight = self.anatomy.mlp_out(layer)
        if node.kind == "neuron":
            return moved[:, [int(node.index or 0)]] * weight[int(node.index or 0)]
        return moved @ weight

    def _given(self, kind: str, layer: int) -> list[Node]:
        """The sources whose activations themselves count, since others are free to read them."""
        return self.regime.sources_at(kind, layer) if self.regime.free else []

    def _change(
        self, now: _Now, which: int, senders: Iterable[Node]
    ) -> Float[Tensor, "example d_model"] | None:
        """What named edges change together; a neuron beside its own MLP counts once."""
        distinct = list(dict.fromkeys(senders))
        whole = {(node.layer, node.position) for node in distinct if node.kind == "mlp"}
        total = None
        for node in distinct:
            if node.kind == "neuron" and (node.layer, node.position) in whole:
                continue
            part = self._sent(now, which, node)
            if part is not None:
                total = part if total is None else total + part
        return None if total is None else (-total if self.regime.removed else total)

    # What blocks make of it.

    def _entering(self, n_sets: int) -> Float[Tensor, "set example column d_model"]:
        """What free tokens change in the stream that enters the first block."""
        change = self._embedded().clone()
        for node in self.regime.ruled_at("token", -1):
            change[:, self.scene.column(node)] = 0
        return repeat(change, "e c d -> s e c d", s=n_sets).clone()

    def _stream(self, ground: Tensor, now: _Now) -> Float[Tensor, "set example column d_model"]:
        """What channels without named edges read (one set where it is the same for all)."""
        return ground[None] if now.drift is None else ground + now.drift

    def _rewired(
        self, layer: int, kinds: Sequence[str], now: _Now, stream: Tensor
    ) -> dict[str, Rewired]:
        """The channels of a block into which named edges carry something."""
        found: dict[str, tuple[list[tuple[int, Node]], list[Tensor]]] = {}
        for which, parents in enumerate(now.parents):
            receivers = {n for n, _ in parents if n.layer == layer and n.kind in kinds}
            for node in sorted(receivers):
                for channel in "QKV" if node.kind == "head" else self.anatomy.gates:
                    senders = _senders(parents, node, channel)
                    change = self._change(now, which, senders)
                    if change is not None:
                        row = stream[which if len(stream) > 1 else 0, :, self.scene.column(node)]
                        places, streams = found.setdefault(channel, ([], []))
                        places.append((which, node))
                        streams.append(row + change)
        return {name: Rewired(places, torch.stack(s)) for name, (places, s) in found.items()}

    def _heads(self, layer: int, now: _Now) -> None:
        scene, n_sets = self.scene, len(now.parents)
        stream = self._stream(self.ground.entering[layer], now)
        rewired = self._rewired(layer, ("head",), now, stream)
        ground = self.ground.z[layer]
        if rewired or _drifts(now):
            now.z[layer] = changed_heads(scene, self.ground, layer, stream, rewired, n_sets=n_sets)
        for node in self._given("head", layer):
            z = now.z.setdefault(layer, ground.expand(n_sets, *ground.shape).clone())
            at = scene.column(node), node.index
            z[:, :, at[0], at[1]] = self.other.z[layer][:, at[0], at[1]]
        if now.drift is not None and layer in now.z:
            moved = now.z[layer] - ground
            for node in self.regime.ruled_at("head", layer):
                moved[:, :, scene.column(node), node.index] = 0
            weight = self.anatomy.head_out(layer)
            now.drift = now.drift + einsum(moved, weight, "s e c head f, head f d -> s e c d")

    def _mlp(self, layer: int, now: _Now) -> None:
        scene, n_sets = self.scene, len(now.parents)
        stream = self._stream(self.ground.middle[layer], now)
        rewired = self._rewired(layer, ("mlp", "neuron"), now, stream)
        if rewired or _drifts(now):
            shared = self.anatomy.neurons(layer, stream)
            now.post[layer] = changed_neurons(scene, layer, shared, rewired, n_sets=n_sets)
        for node in self._given("neuron", layer):
            ground = self._post(layer)
            post = now.post.setdefault(layer, ground.expand(n_sets, *ground.shape).clone())
            at = scene.column(node), node.index
            post[:, :, at[0], at[1]] = self._post(layer, other=True)[:, at[0], at[1]]
        if now.drift is not None and layer in now.post:
            moved = now.post[layer] - self._post(layer)
            for node in [n for k in ("mlp", "neuron") for n in self.regime.ruled_at(k, layer)]:
                at = slice(None) if node.kind == "mlp" else node.index
                moved[:, :, scene.column(node), at] = 0
            now.drift = now.drift + moved @ self.anatomy.mlp_out(layer)

    # Where it ends.

    def _final(self, now: _Now) -> Float[Tensor, "set example d_model"]:
        """The residual stream that the final norm reads at the last column."""
        stream = self._stream(self.ground.entering[-1], now)[:, :, -1]
        rows = []
        for which, parents in enumerate(now.parents):
            senders = [
                n for (node, _), own in parents.items() if node.kind == "answer" for n in own
            ]
            row, change = stream[which if len(stream) > 1 else 0], self._change(now, which, senders)
            rows.append(row if change is None else row + change)
        return torch.stack(rows)

    def _seen(self, now: _Now, node: Node) -> Float[Tensor, "set example width"]:
        """All activations of a target's hook point, in its column."""
        head, layer = node.kind == "head", node.layer
        ground = self.ground.z[layer] if head else self._post(layer)
        found: Any = (now.z if head else now.post).get(layer)
        if found is None:
            found = ground.expand(len(now.parents), *ground.shape)
        return found[:, :, self.scene.column(node)].flatten(2)


def _senders(parents: Parents, node: Node, channel: str) -> tuple[Node, ...]:
    """Who sends into one channel; what reaches a whole MLP reaches each of its neurons."""
    found = (*parents.get((node, channel), ()), *parents.get((node, "in"), ()))
    if node.kind == "neuron":
        mlp = Node(node.layer, "mlp", None, node.position)
        found += (*parents.get((mlp, channel), ()), *parents.get((mlp, "in"), ()))
    return found


def _drifts(now: _Now) -> bool:
    return now.drift is not None and bool(now.drift.any())
