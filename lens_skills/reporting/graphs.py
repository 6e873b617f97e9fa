"""Circuits as the graphs that a report shows."""

from collections.abc import Container, Mapping
from typing import Any

from lens_skills.circuits import Circuit
from lens_skills.circuits.graph import Node
from lens_skills.reporting.document import Graph, GraphEdge, GraphNode
from lens_skills.results import file_name

SIGN = (
    "An effect is the target when this edge alone carries what it carries on the corrupted prompt, "
    "less the clean target. A negative one says that the clean edge raises the target."
)


def anchor_of(name: str, circuit: Circuit) -> str:
    """Its deep link; ``name`` tells it from other circuits of the same target."""
    own = file_name(circuit.target)
    return f"circuit-{own if own in file_name(name) or not name else f'{file_name(name)}-{own}'}"


def graph(
    circuit: Circuit, anchor: str, *, pages: Container[str], tokens: Mapping[str, str] | None = None
) -> Graph:
    """A circuit with every tested edge, its neurons linked to their pages where they have one."""
    nodes = {node for edge in circuit.edges for node in (edge.sender, edge.receiver)}
    nodes |= set(circuit.start)
    columns = sorted({node.column for node in nodes})
    shown = tuple(
        GraphNode(
            id=str(node),
            label=node.name,
            kind=node.kind,
            layer=node.layer,
            column=_column(node, tokens or {}),
            place=columns.index(node.column),
            start=node in circuit.start,
            neuron=node.name if node.kind == "neuron" and node.name in pages else "",
        )
        for node in sorted(nodes, key=lambda node: (node.layer, node.column, node.name))
    )
    edges = tuple(
        GraphEdge(
            sender=str(edge.sender),
            receiver=str(edge.receiver),
            channel=edge.channel,
            target=edge.target,
            verdict=edge.verdict or "",
            effect=edge.effect,
            low=edge.low,
            high=edge.high,
            share=edge.share,
            q=edge.q,
        )
        for edge in circuit.edges
        if edge.effect is not None
    )
    return Graph(
        anchor=anchor,
        title=f"What sets {circuit.target}, and through what it acts",
        nodes=shown,
        edges=edges,
        unit={totals.target: totals.unit for totals in circuit.totals},
        sign=SIGN,
        card=repr(circuit),
        caveats=circuit.notes,
    )


def _column(node: Node, tokens: Mapping[str, str]) -> str:
    """The position, with the token that stands there in the example that is shown."""
    token = tokens.get(node.position)
    return node.position if token is None else f"{node.position} {token!r}"


def example_tokens(circuit: Circuit) -> dict[str, str]:
    """By position, the tokens of the example pair that a circuit keeps; empty where none."""
    example: Any = circuit.provenance.get("example") or {}
    tokens = [str(token) for token in example.get("tokens", ())]
    return {str(place - len(tokens)): token for place, token in enumerate(tokens)}
