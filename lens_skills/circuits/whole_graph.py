"""The whole graph ranked edge by edge: the two areas that the circuit track of MIB compares.

`rank_edges` orders every edge by what a gradient expects of it, on one set of pairs; `graph_areas`
runs the strongest shares of them on another.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lens_skills.circuits.edge_attribution import TargetGradients, edges_into
from lens_skills.circuits.graph import Edge, Node
from lens_skills.circuits.paired_cache import PairedCache
from lens_skills.circuits.path_patching import clean_value
from lens_skills.circuits.run_circuit import CircuitRun, EdgeScheme, RandomCircuits
from lens_skills.circuits.targets import Target

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of all edges: the grid of MIB."""

GraphEdge = tuple[Node, Node, str]
"""Sender, receiver, channel, all positions together (nodes stand at -1): Q, K, V, in or answer."""


@dataclass(frozen=True)
class GraphAreas:
    """Faithfulness of the strongest shares of all edges, and the areas over them.

    Attributes:
        n_edges: Of the whole graph: an edge is the same at every position, and enters an MLP once.
            Under grouped-query attention keys and values are edges of the heads that share them.
        shares: Of all edges, `SHARES`.
        sizes: floor(share n_edges).
        faithfulness: At each size: (m(circuit) - m(corrupted)) / (m(clean) - m(corrupted)).
    """

    n_edges: int
    shares: tuple[float, ...]
    sizes: tuple[int, ...]
    faithfulness: tuple[float, ...]

    @property
    def cpr(self) -> float:
        """Circuit performance ratio: the integral of faithfulness over the share, .001 to 1.

        Trapezoids on a linear axis. Larger is better, and above 1 is possible.

        >>> GraphAreas(10, (0.5, 1.0), (5, 10), (0.6, 1.0)).cpr
        0.4
        """
        return _integral(self.shares, self.faithfulness)

    @property
    def cmd(self) -> float:
        """Circuit-model distance: the integral of |1 - faithfulness| likewise; 0 is best."""
        return _integral(self.shares, [abs(1 - value) for value in self.faithfulness])


def _integral(x: Sequence[float], y: Sequence[float]) -> float:
    heights = (np.asarray(y)[1:] + np.asarray(y)[:-1]) / 2
    return float((np.diff(x) * heights).sum())


def area(x: Sequence[float] | np.ndarray, y: Sequence[float]) -> float:
    """Mean of y over x by trapezoids; with a single x its y.

    >>> area([0, 1, 3], [0, 1, 1])
    0.8333333333333334
    """
    return float(y[0]) if len(x) == 1 else _integral(list(x), y) / float(x[-1] - x[0])


def graph_edges(graph: RandomCircuits, stop: int | None) -> list[GraphEdge]:
    """Every edge below block ``stop`` (None: and into the answer), positions together.

    Of a model with the shape of GPT-2 small, 32,491.
    """
    found: list[GraphEdge] = []
    n_layers = graph.adapter.n_layers
    for layer in range(n_layers if stop is None else stop):
        readers = [*graph.heads(layer, "-1"), (Node(layer, "mlp", None, "-1"), "in")]
        readers += graph.behind(layer, "-1") if stop is None else []
        found += [(sender, *reader) for reader in readers for sender in graph.senders(reader[0])]
    if stop is None:
        answer = Node(n_layers, "answer", None, "-1")
        found += [(sender, answer, "answer") for sender in graph.senders(answer)]
    return found


def rank_edges(
    caches: Sequence[PairedCache],
    target: Target,
    propose: Callable[[PairedCache, Target], TargetGradients],
) -> list[GraphEdge]:
    """All edges, the largest |Σ over examples and positions of the expected effect| first."""
    graph = RandomCircuits(caches[0].weights, reads_on=caches[0].reads_on)
    total: dict[GraphEdge, float] = defaultdict(float)
    edges = graph_edges(graph, target.stop)
    readers = dict.fromkeys((receiver, channel) for _, receiver, channel in edges)
    for cache in caches:
        here = []
        for receiver, channel in readers:
            answer = channel == "answer"
            channels = cache.weights.gates if channel == "in" else (channel,)
            columns = range(-1 if answer else -cache.n_columns, 0)
            here += [(_at(receiver, at), name) for at in columns for name in channels]
        sums = edges_into(cache, here, propose(cache, target), neurons=False)
        for (sender, receiver, channel), value in sums.one.items():
            name = "in" if receiver.kind == "mlp" else channel
            total[_at(sender, -1), _at(receiver, -1), name] += value
    return sorted(edges, key=lambda edge: -abs(total.get(edge, 0.0)))


def _at(node: Node, column: int) -> Node:
    return replace(node, position=str(column))


def graph_areas(
    caches: Sequence[PairedCache], target: Target, ranked: Sequence[GraphEdge]
) -> GraphAreas:
    """The strongest shares of all edges run alone; with all of them it is the clean prompt.

    Source: Mueller et al. 2025, MIB (arXiv 2504.13151), circuit track: its definition of CPR and
    CMD and its grid. Edges that no change reaches are inert, so pruning them changes nothing.

    Does not show: how good any circuit found is, but how good the ranking of all edges.
    """
    sizes = [int(share * len(ranked)) for share in SHARES]
    moved = torch.zeros(len(sizes), dtype=torch.float64)
    gap = 0.0
    for cache in caches:
        running = CircuitRun(cache, EdgeScheme())
        columns = [str(column) for column in range(-cache.n_columns, 0)]
        (empty,) = running.measure([[]], target).double()
        whole = clean_value(cache, target)[0].double().cpu()
        gap += float((whole - empty).sum())
        for place, size in enumerate(sizes):
            if size == len(ranked):
                moved[place] += (whole - empty).sum()
            elif size:
                edges = [one for edge in ranked[:size] for one in _everywhere(edge, columns)]
                (value,) = running.measure([edges], target).double()  # one by one: it is large
                moved[place] += (value - empty).sum()
    found = (moved / gap).tolist()
    return GraphAreas(len(ranked), SHARES, tuple(sizes), tuple(found))


def _everywhere(edge: GraphEdge, columns: Sequence[str]) -> list[Edge]:
    sender, receiver, channel = edge
    if channel == "answer":
        columns = ["-1"]
    return [
        Edge(replace(sender, position=at), replace(receiver, position=at), channel, "", 0.0)  # type: ignore[arg-type]
        for at in columns
    ]
