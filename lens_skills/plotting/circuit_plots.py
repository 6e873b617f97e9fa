"""A circuit as a graph of its strongest edges, numbered, with the table of their effects."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from lens_skills.circuits import Circuit, Edge, Node, Totals
from lens_skills.errors import LensSkillsError
from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.label_placement import Arrow, GraphLayout, NodePlace, Point, lay_out
from lens_skills.plotting.style import (
    BLACK,
    GREY,
    OPPOSES,
    PALE,
    SMALL,
    SUPPORTS,
    About,
    Look,
    count,
    joined,
    minus,
    sheet,
    signed,
    source,
    text_width,
)
from lens_skills.plotting.words import metric_words
from lens_skills.results import file_name

FINE = SMALL - 1
HIGH = 0.19  # inches of a box
_BESIDE = 5.5  # inches, below which the table stands under the graph
_KEYWAY = 0.2  # inches under the boxes, for the positions
_LEGEND = 0.22  # inches above them
_LINE = 0.135  # inches of a row of the table
_THIN, _THICK = 0.6, 2.6  # points of an arrow
_GAP = 0.09  # inches between the columns of the table
_NAME = re.compile(r"L(\d+)(?:H(\d+)(?:-(\d+))?|N(\d+)|(MLP|norm))")
_ABOVE = 1_000_000  # the answer's layer
_DOTTED = (0, (1, 1.5))
_KINDS = {
    "raises": ("raises its target", SUPPORTS),
    "lowers": ("lowers it", OPPOSES),
}


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


def circuit_graph(circuit: Circuit, *, n: int = 15, exploratory: bool = False) -> Drawing:
    """Confirmed edges from the bottom layer up, positions from left to right, and their table.

    An arrow is one edge, with its number in the table and the channel it enters by; it is as wide
    as it is strong among the edges on its target. With a point: the clean edge raises its target,
    which falls when the edge alone carries what it carries on the corrupted prompt. With a bar: it
    lowers it. Dotted: no edge, but the way inside a head or MLP from what it reads to what it
    writes.

    Args:
        circuit: From `lens_skills.circuit`.
        n: At most so many edges, the strongest relative to their target's strongest; the note says
            how many are left out.
        exploratory: Stamp it.

    Frame: one row per edge drawn, as in ``circuit.frame()``, with its ``number`` in the picture.

    Raises:
        LensSkillsError: No edge was confirmed.
    """
    edges = _strongest(circuit, n)
    if not edges:
        raise LensSkillsError(
            f"no edge of {circuit.target} was confirmed ({len(circuit.edges)} were tested), so "
            "there is no graph to draw. circuit.frame() lists what was tested."
        )
    targets = [totals.target for totals in circuit.totals]
    edges.sort(key=lambda e: (targets.index(e.target) if e.target in targets else 9, -e.strength))
    frame = pd.DataFrame([edge.row() for edge in edges])
    frame.insert(0, "number", range(1, len(edges) + 1))
    size = count(circuit.n_examples, circuit.n_groups)
    about = {
        "title": f"Circuit of {metric_words(circuit.target)}",
        "lines": [joined(*source(circuit.provenance), size)],
        "note": _note(circuit, edges),
        "exploratory": exploratory,
        "start": [str(node) for node in circuit.start],
        "metric": circuit.metric,
        "targets": {
            one.target: _totals(one, metric_words(circuit.target)) for one in circuit.totals
        },
    }
    return Drawing("circuit_graph", frame, about, file_name("circuit_graph", circuit.target))


def _strongest(circuit: Circuit, n: int) -> list[Edge]:
    """The strongest confirmed edges, each against the strongest on its target: units differ."""
    most = _most(circuit.confirmed)
    ordered = sorted(circuit.confirmed, key=lambda edge: -edge.strength / most[edge.target])
    return ordered[:n]


def _most(edges: Iterable[Edge]) -> dict[str, float]:
    """The strength of the strongest edge on each target."""
    most: dict[str, float] = {}
    for edge in edges:
        most[edge.target] = max(most.get(edge.target, 1e-30), edge.strength)
    return most


def _totals(totals: Totals, start: str) -> dict[str, str]:
    """What stands above and below the edges on one target."""
    left = f"{totals.unexplained:.0%}"
    if totals.unexplained_low is not None and totals.unexplained_high is not None:
        left += f" [{totals.unexplained_low:.0%}, {totals.unexplained_high:.0%}]"
    interval = ""
    if totals.low is not None and totals.high is not None:
        interval = f" [{signed(totals.low)}, {signed(totals.high)}]"
    return {
        "what": "all its input" if totals.part == "upstream" else start,
        "unit": totals.unit,
        "clean": signed(totals.clean),
        "total": f"{signed(totals.total)}{interval}",
        "left": "in no tested edge",
        "unexplained": minus(left),
    }


def _note(circuit: Circuit, edges: Sequence[Edge]) -> str:
    parts = [f"{len(circuit.confirmed):,} of {len(circuit.edges):,} tested edges confirmed"]
    if len(circuit.confirmed) > len(edges):
        parts[0] += f", the {len(edges)} strongest drawn"
    if circuit.random:
        hits = sum(edge.confirmed for edge in circuit.random)
        parts.append(f"Of {len(circuit.random):,} random edges {hits:,} would be")
    parts.append(
        "Effect: change of the target when the edge alone carries what it carries on the corrupted "
        "prompt, with its 95 % interval. Width: strength among the edges on the same target"
    )
    nodes = {node for edge in edges for node in (edge.sender, edge.receiver)}
    for node in sorted((node for node in nodes if node.width > 1), key=str)[:1]:
        last = (node.index or 0) + node.width - 1
        parts.append(f"{_shown(node)}: heads {node.index} to {last}, which share one key and value")
    return ". ".join(parts) + "."


def _shown(node: Node, metric: str = "") -> str:
    """A node's name in the picture: ``L5H3–5`` for heads that share a key and value."""
    if node.kind == "answer":
        return f"answer: {metric_words(metric)}" if metric else "answer"
    return node.name.replace("-", "–").replace("norm", " norm")


@draws("circuit_graph", width="page")
def _draw_circuit_graph(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    edges = [_edge(row) for row in frame.to_dict("records")]
    start = [_node(*name.split("@")) for name in about["start"]]
    rows = graph_rows(edges, start)
    names = [_shown(node, about["metric"]) for node in rows.nodes]
    numbers = frame["number"].tolist()
    slide = look.style == "talk"  # where nobody reads a table: the effects stand at the arrows
    table = [] if slide else _table(edges, numbers, about)
    columns = _column_widths(table)
    inner = look.width - 0.1
    beside = look.width >= _BESIDE or slide
    room = inner - (columns[-1] + 0.2 if beside and table else 0)
    labels = [
        _at_arrow(None if slide else number, edge)
        for number, edge in zip(numbers, edges, strict=True)
    ]
    layout = _layout(rows, names, edges, labels, room)
    top, below = layout.height + _LEGEND, _LINE * len(table)
    graph = top + _KEYWAY
    high = max(graph, below) if beside else graph + below + 0.1
    figure = sheet(look, high, about)
    axis = figure.add_subplot()
    axis.set_axis_off()
    _exactly(figure, axis, high, inner)
    axis.set(xlim=(0, inner), ylim=(top - high, top))
    _legend(axis, top, edges, bool(rows.inner))
    _positions(axis, rows, layout)
    _arrows(axis, edges, labels, rows, layout)
    _boxes(axis, rows, names, layout, start)
    _write_table(axis, table, columns, (room + 0.2, top) if beside else (0.0, -_KEYWAY - 0.1))
    return figure


def _node(name: str, position: str) -> Node:
    """The node of a name such as ``L5H3-5``; the answer stands above every layer."""
    found = _NAME.fullmatch(name)
    if found is None:
        token = name == "token"
        return Node(-1 if token else _ABOVE, "token" if token else "answer", None, position)
    layer, head, last, neuron, other = found.groups()
    if head:
        width = int(last) - int(head) + 1 if last else 1
        return Node(int(layer), "head", int(head), position, width)
    if neuron:
        return Node(int(layer), "neuron", int(neuron), position)
    return Node(int(layer), "mlp" if other == "MLP" else "norm", None, position)


def _edge(row: Mapping[Any, Any]) -> Edge:
    """The edge of a row: its ends are at one position."""
    sender, receiver = (
        _node(str(row[end]), str(row["position"])) for end in ("sender", "receiver")
    )
    effect, low, high = (_number(row[name]) for name in ("effect", "low", "high"))
    target = str(row["target"])
    return Edge(sender, receiver, row["channel"], target, 0.0, effect=effect, low=low, high=high)


def _number(value: Any) -> float | None:
    return None if value != value else float(value)


def _at_arrow(number: int | None, edge: Edge) -> str:
    """The channel where there is a choice, after the number or before the effect."""
    channel, effect, _ = _cells(edge)
    return f"{channel} {effect}".strip() if number is None else f"{number} {channel}".strip()


def _exactly(figure: Figure, axis: Axes, height: float, room: float) -> None:
    """The panel in inches: one unit of data is one inch."""
    figure.draw_without_rendering()
    wide, high = figure.get_size_inches()
    engine = figure.get_layout_engine()
    assert engine is not None
    _, low, _, share = engine.get()["rect"]
    figure.set_layout_engine("none")
    low += share - height / high
    axis.set_position(((wide - room) / 2 / wide, low, room / wide, height / high))


def _legend(axis: Axes, top: float, edges: Sequence[Edge], inner: bool) -> None:
    """One line above the graph: what the heads of arrows and the dots say."""
    x, y = 0.0, top - 0.07
    for kind, (words, colour) in _KINDS.items():
        if not any(_kind(edge) == kind for edge in edges):
            continue
        _arrow(axis, (x, y), (x + 0.25, y), kind, linewidth=1.4, color=colour)
        x = _say(axis, x + 0.3, y, words)
    if inner:
        axis.plot([x, x + 0.25], [y, y], color=GREY, linewidth=0.8, linestyle=_DOTTED)
        _say(axis, x + 0.3, y, "within one head or MLP")


def _say(axis: Axes, x: float, y: float, words: str) -> float:
    axis.text(x, y, words, size=FINE, va="center_baseline")
    return x + text_width(words, FINE) + 0.15


def _positions(axis: Axes, rows: GraphRows, layout: GraphLayout) -> None:
    for place, name in enumerate(rows.positions):
        left, right = layout.edges[place], layout.edges[place + 1]
        if place:
            axis.plot([left] * 2, [-_KEYWAY, layout.height], color=PALE, linewidth=0.8, zorder=0)
        shown = "position " * (place == 0) + minus(name)
        axis.text(
            (left + right) / 2, -_KEYWAY + 0.03, shown,
            size=SMALL, color=GREY, ha="center", va="bottom",
        )  # fmt: skip


def _kind(edge: Edge) -> str:
    return "lowers" if (edge.effect or 0.0) > 0 else "raises"


def _arrow(
    axis: Axes, start: Point, end: Point, kind: str, *, linewidth: float, **look: Any
) -> None:
    """A point for what raises, a bar for what lowers: told without colour too."""
    size = 4 + 2 * linewidth
    bar = f"]-[,widthA=0,lengthA=0,widthB={size * 0.05:.3f},lengthB=0"
    head = "-|>" if kind == "raises" else bar
    axis.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle=head, shrinkA=0, shrinkB=0 if kind == "raises" else 2,
            joinstyle="miter", zorder=2, mutation_scale=size, linewidth=linewidth, **look,
        )
    )  # fmt: skip


def _arrows(
    axis: Axes,
    edges: Sequence[Edge],
    labels: Sequence[str],
    rows: GraphRows,
    layout: GraphLayout,
) -> None:
    for (start, end), (a, b) in zip(layout.lines[len(edges) :], rows.inner, strict=True):
        axis.plot(
            *zip(start, end, strict=True), color=GREY, linewidth=0.8, linestyle=_DOTTED, zorder=1,
            gid=f"inner {rows.nodes[a]} {rows.nodes[b]}",
        )  # fmt: skip
    strongest = _most(edges)
    lines = layout.lines[: len(edges)]
    places = layout.labels[: len(edges)]
    for edge, label, (start, end), place in zip(edges, labels, lines, places, strict=True):
        wide = _THIN + (_THICK - _THIN) * edge.strength / strongest[edge.target]
        colour = _KINDS[_kind(edge)][1]
        _arrow(axis, start, end, _kind(edge), linewidth=wide, color=colour, gid=f"edge {edge}")
        assert place is not None
        axis.text(
            *place, label, size=FINE, color=colour, weight="bold", ha="center",
            va="center_baseline", zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
        )  # fmt: skip


def _boxes(
    axis: Axes, rows: GraphRows, names: Sequence[str], layout: GraphLayout, start: Sequence[Node]
) -> None:
    for node, name, (x, y) in zip(rows.nodes, names, layout.spots, strict=True):
        wide = text_width(name, SMALL, "bold") + 0.08
        marked = node in start
        axis.add_patch(
            FancyBboxPatch(
                (x - wide / 2, y - HIGH / 2 + 0.02), wide, HIGH - 0.04,
                boxstyle="round,pad=0.02,rounding_size=0.04",
                facecolor="white" if node.kind != "answer" else PALE,
                edgecolor=BLACK, linewidth=1.6 if marked else 0.5, zorder=5, gid=f"node {node}",
            )
        )  # fmt: skip
        axis.text(
            x, y, name, size=SMALL, weight="bold" if marked else "normal",
            ha="center", va="center_baseline", zorder=6,
        )  # fmt: skip


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


def _layout(
    rows: GraphRows,
    names: Sequence[str],
    edges: Sequence[Edge],
    labels: Sequence[str],
    room: float,
) -> GraphLayout:
    """Where everything goes in ``room`` inches."""
    spots = tuple(
        NodePlace(row, band, text_width(name, SMALL, "bold") + 0.12, HIGH)
        for row, band, name in zip(rows.rows, rows.bands, names, strict=True)
    )
    at = {node: place for place, node in enumerate(rows.nodes)}
    arrows = [
        Arrow(at[edge.sender], at[edge.receiver], text_width(label, FINE, "bold") + 0.03, 0.1)
        for edge, label in zip(edges, labels, strict=True)
    ]
    return lay_out(spots, (*arrows, *(Arrow(a, b) for a, b in rows.inner)), width=room)


Row = tuple[str, tuple[str, ...]]  # the kind of a line of the table, and its cells


def _table(edges: Sequence[Edge], numbers: Sequence[int], about: About) -> list[Row]:
    """The lines of the table: for each target what it is, its edges, and what they leave over."""
    usual = {name.split("@")[1] for name in about["start"]}
    lines: list[Row] = []
    last = None
    for number, edge in zip(numbers, edges, strict=True):
        totals = about["targets"].get(edge.target)
        if edge.target != last:
            lines += _ending(about["targets"].get(last))
            unit = f" ({totals['unit']})" if totals else ""
            lines.append(("head", (f"change of {metric_words(edge.target)}{unit}",)))
            last = edge.target
        at = edge.receiver.position
        where = f" at {minus(at)}" if at not in usual else ""
        ends = f"{_shown(edge.sender)} → {_shown(edge.receiver)}"
        lines.append((_kind(edge), (f"{number}", ends + where, *_cells(edge))))
    return [*lines, *_ending(about["targets"].get(last))]


def _cells(edge: Edge) -> tuple[str, str, str]:
    channel = "" if edge.channel in ("answer", "in") else edge.channel
    if edge.effect is None:
        return channel, "", ""
    digits = 2 if abs(edge.effect) >= 0.095 else 3
    if edge.low is None or edge.high is None:
        return channel, signed(edge.effect, digits), ""
    low, high = (signed(end, digits) for end in (edge.low, edge.high))
    return channel, signed(edge.effect, digits), f"[{low}, {high}]"


def _ending(totals: Mapping[str, str] | None) -> list[Row]:
    if not totals:
        return []
    return [
        ("foot", (f"{totals['what']} corrupted: {totals['total']}, from {totals['clean']}",)),
        ("foot", (f"{totals['left']}: {totals['unexplained']} of it",)),
        ("", ()),
    ]


def _column_widths(table: Sequence[Row]) -> list[float]:
    """Where each column ends: names to the left, numbers to the right; last, the whole."""
    if not table:
        return [0.0] * 6
    rows = [cells for _, cells in table if len(cells) > 1]
    widths = [max(text_width(row[k], FINE) for row in rows) for k in range(5)]
    ends = [sum(widths[: k + 1]) + k * _GAP for k in range(5)]
    single = max(text_width(cells[0], FINE, "bold") for _, cells in table if len(cells) == 1)
    return [*ends, max(ends[-1], single)]


def _write_table(axis: Axes, table: Sequence[Row], ends: Sequence[float], at: Point) -> None:
    left, y = at
    starts = [0.0, *(end + _GAP for end in ends[:4])]
    for kind, cells in table:
        y -= _LINE
        look: dict[str, Any] = {"size": FINE, "va": "baseline"}
        if kind == "head":
            axis.text(left, y, cells[0], weight="bold", **look)
            axis.plot([left, left + ends[-1]], [y - 0.03] * 2, color=BLACK, linewidth=0.5)
        elif kind == "foot":
            axis.text(left, y, cells[0], color=GREY, **look)
        for place, cell in enumerate(cells if len(cells) > 1 else ()):
            right = place in (0, 3, 4)
            colour = _KINDS[kind][1] if place in (0, 3) else BLACK
            axis.text(
                left + (ends[place] if right else starts[place]), y, cell,
                ha="right" if right else "left", color=colour,
                weight="bold" if place == 0 else "normal", **look,
            )  # fmt: skip
