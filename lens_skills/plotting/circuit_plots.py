"""A circuit as a graph with an interval on every arrow, and how faithful it is by its size."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from lens_skills.circuits import Circuit, Edge, Node, Totals
from lens_skills.circuits.faithfulness import Curve, Faithfulness
from lens_skills.errors import LensSkillsError
from lens_skills.plotting.drawing import Drawing, finished
from lens_skills.plotting.label_placement import Arrow, GraphLayout, NodePlace, Point, lay_out
from lens_skills.plotting.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREY,
    ORANGE,
    PALE,
    SMALL,
    VERMILION,
    count,
    halo,
    joined,
    minus,
    sheet,
    signed,
    source,
    style,
    text_width,
    ticks_at,
)

FINE = SMALL - 1
LINE = 1.22 * FINE / 72  # inches from line to line of a label
HIGH = 0.19  # inches of a box
_WIDTH = 7.0  # inches: both columns of a paper
_FEWEST = 4.9  # inches, below which an interval stands under its number
_KEYWAY = 0.2  # inches under the boxes, for the positions
_THIN, _THICK = 0.5, 3.0  # points of an arrow
_PALE = "#BBBBBB"  # of one random circuit
_LIMIT = 2.5  # what overshoots further runs out of the panel, and the note says so


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


@dataclass(frozen=True)
class Unexplained:
    """What no tested edge accounts for, as a box of its own with an arrow in or out."""

    text: str
    row: int
    band: int
    node: int
    upstream: bool


@dataclass(frozen=True)
class Bundle:
    """The edges between the same two nodes: one arrow, a label for each channel."""

    edges: tuple[Edge, ...]
    labels: tuple[str, ...]

    @property
    def size(self) -> tuple[float, float]:
        """Inches that the labels take."""
        lines = [line for label in self.labels for line in label.split("\n")]
        return max(text_width(line, FINE) for line in lines) + 0.06, len(lines) * LINE + 0.03


@style()
def circuit_graph(
    circuit: Circuit, *, n: int = 15, exploratory: bool = False, width: float = _WIDTH
) -> Drawing:
    """Confirmed edges from the bottom layer up, positions from left to right.

    An arrow's number is what its target does when that edge alone carries what it carries on the
    corrupted prompt, with its 95 % interval; before it the channel it enters by. The arrow is as
    wide as the strongest of its channels, relative to the strongest edge on that target. Blue:
    the target falls, so the clean edge raises it; orange: it rises. Dotted: no edge, but the way
    inside a head from what it reads at one position to where it writes. Dashed: the share of the
    total that no tested edge explains, with its interval.

    Args:
        circuit: From `lens_skills.circuit`.
        n: At most so many edges, the strongest relative to their target's strongest; the note says
            how many are left out.
        exploratory: Stamp it.
        width: Inches.

    Frame: one row per edge drawn, as in ``circuit.frame()``.

    Raises:
        LensSkillsError: No edge was confirmed.
    """
    edges = _strongest(circuit, n)
    if not edges:
        raise LensSkillsError(
            f"no edge of {circuit.target} was confirmed ({len(circuit.edges)} were tested), so "
            "there is no graph to draw. circuit.frame() lists what was tested."
        )
    rows = graph_rows(edges, circuit.start)
    names = [f"answer: {circuit.metric}" if n.kind == "answer" else n.name for n in rows.nodes]
    bundles = _bundles(edges, stacked=width < _FEWEST)
    room = width - 0.1
    unknown = _unexplained(circuit, rows)
    layout = _layout(rows, [*names, *(one.text for one in unknown)], bundles, unknown, room)
    more = len(circuit.confirmed) - len(edges)
    size = count(circuit.n_examples, circuit.n_groups)
    figure = sheet(
        width,
        layout.height + _KEYWAY,
        title=f"Circuit of {circuit.target}",
        lines=[*map(_totals, circuit.totals), joined(*source(circuit.provenance), size)],
        note=f"{len(circuit.confirmed)} of {len(circuit.edges)} tested edges confirmed"
        + (f", the {len(edges)} strongest drawn ({more} more). " if more else ". ")
        + _random(circuit)
        + "Numbers: change of the target when the edge alone is corrupted, 95 % interval. Blue: "
        "it falls; orange: it rises. Width: its strongest channel. Outlined: the start.",
        exploratory=exploratory,
    )
    axis = figure.add_subplot()
    axis.set_axis_off()
    _exactly(figure, axis, layout.height + _KEYWAY, room)
    _positions(axis, rows, layout)
    _arrows(axis, bundles, rows, layout)
    _boxes(axis, rows, names, layout, circuit)
    _draw_unexplained(axis, unknown, layout)
    keys = {edge.key for edge in edges}
    drawn = [place for place, edge in enumerate(circuit.edges) if edge.key in keys]
    frame = circuit.frame().iloc[drawn].reset_index(drop=True)
    return finished(figure, frame, "circuit_graph", circuit.target)


def _draw_unexplained(axis: Axes, unknown: Sequence[Unexplained], layout: GraphLayout) -> None:
    first = len(layout.spots) - len(unknown)
    lines = layout.lines[len(layout.lines) - len(unknown) :]
    for one, (x, y), (start, end) in zip(unknown, layout.spots[first:], lines, strict=True):
        look = {"linewidth": 0.9, "linestyle": (0, (3, 2)), "gid": "unexplained"}
        _arrow(axis, start, end, "-|>", color=GREY, mutation_scale=5, zorder=1, **look)
        halo(
            axis.text(
                x, y, one.text, size=SMALL, color=GREY, style="italic", ha="center",
                va="center_baseline", zorder=6,
            )
        )  # fmt: skip


def _arrow(axis: Axes, start: Point, end: Point, head: str, **look: Any) -> None:
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle=head, shrinkA=0, shrinkB=0, **look))


def _strongest(circuit: Circuit, n: int) -> list[Edge]:
    """The strongest confirmed edges, each against the strongest on its target: units differ."""
    most = _most(circuit.confirmed)
    ordered = sorted(circuit.confirmed, key=lambda edge: -edge.strength / most[edge.target])
    kept = {edge.key for edge in ordered[:n]}
    return [edge for edge in circuit.confirmed if edge.key in kept]


def _most(edges: Iterable[Edge]) -> dict[str, float]:
    """The strength of the strongest edge on each target."""
    most: dict[str, float] = {}
    for edge in edges:
        most[edge.target] = max(most.get(edge.target, 1e-30), edge.strength)
    return most


def _exactly(figure: Figure, axis: Axes, height: float, room: float) -> None:
    """The panel in inches: one unit of data is one inch."""
    figure.draw_without_rendering()
    wide, high = figure.get_size_inches()
    engine = figure.get_layout_engine()
    assert engine is not None
    _, low, _, _ = engine.get()["rect"]
    figure.set_layout_engine("none")
    axis.set_position(((wide - room) / 2 / wide, low, room / wide, height / high))
    axis.set(xlim=(0, room), ylim=(-_KEYWAY, height - _KEYWAY))


def _totals(totals: Totals) -> str:
    return (
        f"{totals.part}: {totals.target} {signed(totals.clean, 2)} on clean prompts, "
        f"changed by {signed(totals.total, 2)} {totals.unit} when corrupted; "
        f"unexplained {_left(totals)}"
    )


def _left(totals: Totals) -> str:
    """The unexplained share, with its interval where it has one."""
    text = f"{totals.unexplained:.0%}"
    if totals.unexplained_low is not None and totals.unexplained_high is not None:
        text += f" [{totals.unexplained_low:.0%}, {totals.unexplained_high:.0%}]"
    return minus(text)


def _random(circuit: Circuit) -> str:
    if not circuit.random:
        return ""
    hits = sum(edge.confirmed for edge in circuit.random)
    return f"Of {len(circuit.random)} random edges {hits} would be. "


def _positions(axis: Axes, rows: GraphRows, layout: GraphLayout) -> None:
    for place, name in enumerate(rows.positions):
        left, right = layout.edges[place], layout.edges[place + 1]
        if place:
            axis.axvline(left, color=PALE, linewidth=0.8, zorder=0)
        shown = "position " * (place == 0) + minus(name)
        axis.text(
            (left + right) / 2, -_KEYWAY + 0.03, shown,
            size=SMALL, color=GREY, ha="center", va="bottom",
        )  # fmt: skip


def _arrows(axis: Axes, bundles: Sequence[Bundle], rows: GraphRows, layout: GraphLayout) -> None:
    for (start, end), (a, b) in zip(layout.lines[len(bundles) :], rows.inner, strict=False):
        gid = f"inner {rows.nodes[a]} {rows.nodes[b]}"
        look = {"linewidth": 0.8, "linestyle": (0, (1, 1.5)), "gid": gid}
        _arrow(axis, start, end, "-", color=GREY, zorder=1, **look)
    strongest = _most(edge for one in bundles for edge in one.edges)
    for one, (start, end), place in zip(bundles, layout.lines, layout.labels, strict=False):
        edge = one.edges[0]  # the strongest
        wide = _THIN + (_THICK - _THIN) * edge.strength / strongest[edge.target]
        look = {"linewidth": wide, "joinstyle": "miter", "gid": f"edge {edge}"}
        size = 4 + 2 * wide
        _arrow(axis, start, end, "-|>", color=_colour(edge), mutation_scale=size, zorder=2, **look)
        if place is not None:
            _write(axis, one, place)


def _colour(edge: Edge) -> str:
    return VERMILION if (edge.effect or 0.0) > 0 else BLUE


def _write(axis: Axes, one: Bundle, place: Point) -> None:
    """The labels, one below the other, on white."""
    x, y = place
    wide, high = one.size
    ground = {"facecolor": "white", "linewidth": 0, "zorder": 3}
    axis.add_patch(Rectangle((x - wide / 2, y - high / 2), wide, high, **ground))  # type: ignore[arg-type]
    top = y + high / 2 - 0.015
    for edge, label in zip(one.edges, one.labels, strict=True):
        for line in label.split("\n"):
            axis.text(
                x, top - LINE / 2, line, size=FINE, color=_colour(edge), ha="center",
                va="center", zorder=4,
            )  # fmt: skip
            top -= LINE


def _boxes(
    axis: Axes, rows: GraphRows, names: Sequence[str], layout: GraphLayout, circuit: Circuit
) -> None:
    start = set(circuit.start)
    for node, name, (x, y) in zip(rows.nodes, names, layout.spots, strict=False):
        wide = text_width(name, SMALL, "bold") + 0.08
        marked = node in start
        axis.add_patch(
            FancyBboxPatch(
                (x - wide / 2, y - HIGH / 2 + 0.02), wide, HIGH - 0.04,
                boxstyle="round,pad=0.02,rounding_size=0.04",
                facecolor="white" if node.kind != "answer" else PALE,
                edgecolor=ORANGE if marked else BLACK, linewidth=1.8 if marked else 0.6, zorder=5,
                gid=f"node {node}",
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


def _bundles(edges: Sequence[Edge], *, stacked: bool) -> list[Bundle]:
    """The edges by the nodes they join; ``stacked``: intervals stand under their numbers."""
    between: dict[tuple[Node, Node], list[Edge]] = {}
    for edge in edges:
        between.setdefault((edge.sender, edge.receiver), []).append(edge)
    return [
        Bundle(tuple(some), tuple(_label(edge, stacked=stacked) for edge in some))
        for some in between.values()
    ]


def _layout(
    rows: GraphRows,
    names: Sequence[str],
    bundles: Sequence[Bundle],
    unknown: Sequence[Unexplained],
    room: float,
) -> GraphLayout:
    """Where everything goes in ``room`` inches: nodes first, then what is unexplained."""
    lowest = min([0, *(one.row for one in unknown)])
    places = [*zip(rows.rows, rows.bands, strict=True), *((o.row, o.band) for o in unknown)]
    spots = [
        NodePlace(row - lowest, band, text_width(name, SMALL, "bold") + 0.12, HIGH)
        for (row, band), name in zip(places, names, strict=True)
    ]
    at = {node: place for place, node in enumerate(rows.nodes)}
    arrows = [
        Arrow(at[one.edges[0].sender], at[one.edges[0].receiver], *one.size) for one in bundles
    ]
    arrows += [Arrow(a, b) for a, b in rows.inner]
    for place, one in enumerate(unknown, len(rows.nodes)):
        arrows.append(Arrow(place, one.node) if one.upstream else Arrow(one.node, place))
    return lay_out(spots, arrows, width=room)


def _unexplained(circuit: Circuit, rows: GraphRows) -> list[Unexplained]:
    """A box below the start for what feeds it, and above it for what it feeds."""
    places = [place for place, node in enumerate(rows.nodes) if node in circuit.start]
    found = []
    for totals in circuit.totals:
        below = totals.part == "upstream"
        node = (min if below else max)(places, key=lambda k: rows.rows[k])
        text = f"unexplained {_left(totals)}"
        row = rows.rows[node] + (-1 if below else 1)
        found.append(Unexplained(text, row, rows.bands[node], node, below))
    return found


def _label(edge: Edge, *, stacked: bool) -> str:
    """``gate −0.42 [−0.50, −0.33]``, the interval on a line of its own where room is short."""
    channel = "" if edge.channel in ("answer", "in") else f"{edge.channel} "
    if edge.effect is None or edge.low is None or edge.high is None:
        return channel.strip()
    digits = 2 if abs(edge.effect) >= 0.095 else 3
    low, high = (signed(end, digits) for end in (edge.low, edge.high))
    gap = "\n" if stacked else " "
    return f"{channel}{signed(edge.effect, digits)}{gap}[{low}, {high}]"


@style()
def faithfulness(
    faithfulness: Faithfulness, *, exploratory: bool = False, width: float = COLUMN
) -> Drawing:
    """Faithfulness against the number of edges, one panel per part of the circuit.

    Band: 95 % interval. Grey: random circuits of equal size. Lines at 0 (no edge) and 1 (the
    whole model).

    Args:
        faithfulness: From `lens_skills.faithfulness`.
        exploratory: Stamp it.
        width: Inches.

    Frame: one row per part and size, as in ``faithfulness.frame()``.
    """
    curves = faithfulness.curves
    start = str(faithfulness.provenance.get("start", ""))
    size = count(faithfulness.n_examples, faithfulness.n_groups)
    beyond = any(
        not -_LIMIT + 1 <= end <= _LIMIT
        for curve in curves
        for share in curve.shares
        for end in (share.low, share.high)
    )
    figure = sheet(
        width,
        0.35 + 1.35 * len(curves),
        title=f"Circuit of {start or 'a target'} alone: faithfulness",
        lines=[
            *(_caption(curve) for curve in curves),
            joined(*source(faithfulness.provenance), size),
        ],
        note="Band: 95 % interval. 0: no edge; 1: the whole model."
        + (f" {len(curves[0].random)} random circuits of equal size." if curves[0].random else "")
        + (" What lies beyond the panel is in the table." if beyond else ""),
        exploratory=exploratory,
    )
    axes = np.atleast_1d(figure.subplots(len(curves), 1))
    for axis, curve in zip(axes, curves, strict=True):
        _panel(axis, curve)
    axes[-1].set_xlabel("edges, strongest first")
    figure.align_ylabels()
    return finished(figure, faithfulness.frame(), "faithfulness", *([start] if start else []))


def _caption(curve: Curve) -> str:
    size = curve.sizes[-1]
    edges = "1 edge" if size == 1 else f"{size} edges"
    against = "" if curve.p is None else f", p = {curve.p:.2g} against random"
    return f"{curve.part} ({curve.target}): {curve.last} with {edges}{against}"


def _panel(axis: Axes, curve: Curve) -> None:
    sizes = np.array(curve.sizes)
    value, low, high = (
        np.array([getattr(share, name) for share in curve.shares])
        for name in ("value", "low", "high")
    )
    for row in curve.random:
        axis.plot(sizes, row, color=_PALE, linewidth=0.5, marker=".", markersize=1.5, zorder=1)
    for level, line in ((0, (0, (1, 1.5))), (1, (0, (4, 2)))):
        axis.axhline(level, color=BLACK, linewidth=0.6, linestyle=line, zorder=0)
    if len(sizes) == 1:
        axis.errorbar(
            sizes, value, yerr=[value - low, high - value], color=BLUE, linewidth=0.9, capsize=2
        )
    axis.fill_between(sizes, low, high, color=BLUE, alpha=0.2, linewidth=0, zorder=2, gid="band")
    axis.plot(sizes, value, color=BLUE, marker="o", markersize=3, zorder=3, gid="circuit")
    axis.set_xscale("log")
    axis.set_xlim(0.88, max(sizes[-1] * 1.12, 2.2))
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if t <= max(sizes[-1], 2)]
    ticks_at(axis.xaxis, ticks)
    drawn = [*low, *high, *(number for row in curve.random for number in row), 0.0, 1.0]
    bottom, top = max(min(drawn), 1 - _LIMIT), min(max(drawn), _LIMIT)
    room = 0.06 * (top - bottom)
    axis.set_ylim(bottom - room, top + room)
    axis.set_ylabel("faithfulness")
    axis.annotate(
        curve.part, (1, 1), xycoords="axes fraction", xytext=(0, 1), textcoords="offset points",
        ha="right", va="bottom", size=SMALL, color=GREY,
    )  # fmt: skip
