"""`RandomCircuits`: circuits of edges that could stand in the place of a circuit's own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lens_skills.circuits.graph import Edge, Node, senders_of
from lens_skills.models.weights import ModelWeights


class RandomCircuits:
    """All senders below a receiver and all receivers above a sender, in one column.

    The grain is that of the graph: tokens, heads, MLPs; a head's Q for itself, K and V shared by
    the query heads that read them; gate and up of an MLP apart.
    """

    def __init__(self, weights: ModelWeights) -> None:
        self.weights, self.adapter = weights, weights.adapter
        self._kept: dict[tuple[str, Node], list[Any]] = {}

    def senders(self, receiver: Node) -> list[Node]:
        """What writes before the receiver reads: see `senders_of`."""
        return senders_of(receiver, self.adapter.n_heads)

    def channels(self, sender: Node) -> list[tuple[Node, str]]:
        """Every channel that reads after the sender writes, in its column."""
        position, found = sender.position, list[tuple[Node, str]]()
        for layer in range(max(sender.layer, 0), self.adapter.n_layers):
            if layer > sender.layer:
                found += self.heads(layer, position)
            if layer > sender.layer or sender.kind == "head":
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

    def count(self, n_columns: int, *, stop: int | None = None) -> int:
        """How many edges the graph below block ``stop`` (None: and into the answer) has."""
        n_layers = self.adapter.n_layers if stop is None else stop
        per_layer = len(self.heads(0, "-1"))
        total = 0
        for layer in range(n_layers):
            below = 1 + layer * (self.adapter.n_heads + 1)
            total += per_layer * below
            total += len(self.weights.gates) * (below + self.adapter.n_heads)
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
