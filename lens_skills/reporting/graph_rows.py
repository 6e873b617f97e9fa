"""`graph_rows`: the boxes of a circuit's graph, row by row and position by position."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lens_skills.circuits import Edge, Node


@dataclass(frozen=True)
class GraphRows:
    """The nodes of some edges, and which row and band each stands in.

    Attributes:
        nodes: From the bottom up.
        rows: Of each node: heads of a layer below its MLP and neurons, layers without nodes
            left out.
        bands: Of each node: positions from left to right.
        positions: Their names.
        inner: Pairs of nodes that are two ends of one thing: the keys a head reads at another
            position and where it writes; a neuron and its MLP.
    """

    nodes: tuple[Node, ...]
    rows: tuple[int, ...]
    bands: tuple[int, ...]
    positions: tuple[str, ...]
    inner: tuple[tuple[int, int], ...]


def graph_rows(edges: Sequence[Edge], start: Iterable[Node]) -> GraphRows:
    """The rows and bands of the nodes that edges join, and of the start."""
    found = {node for edge in edges for node in (edge.sender, edge.receiver)} | set(start)
    nodes = sorted(found, key=lambda node: (_level(node), node.column, node.index or 0, node.width))
    levels = sorted({_level(node) for node in nodes})
    columns = sorted({node.column for node in nodes})
    senders, receivers = {e.sender for e in edges}, {e.receiver for e in edges}
    inner = [
        (nodes.index(a), nodes.index(b))
        for a in nodes
        for b in nodes
        if a != b and a in receivers and b in senders and _same(a, b)
    ]
    return GraphRows(
        tuple(nodes),
        tuple(levels.index(_level(node)) for node in nodes),
        tuple(columns.index(node.column) for node in nodes),
        tuple(str(column) for column in columns),
        tuple(inner),
    )


def _level(node: Node) -> tuple[int, int]:
    """Layer, and what comes first in it: what a head reads, heads, then MLPs."""
    if node.kind in ("mlp", "neuron"):
        return node.layer, 3
    if node.kind == "head":
        return node.layer, 2 if node.width == 1 else 1
    return node.layer, 0


def _same(reads: Node, writes: Node) -> bool:
    if reads.layer != writes.layer:
        return False
    if reads.kind == writes.kind == "head":
        first = reads.index or 0
        return first <= (writes.index or 0) < first + reads.width and reads.column <= writes.column
    return reads.position == writes.position and {reads.kind, writes.kind} == {"mlp", "neuron"}
