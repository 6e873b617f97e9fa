"""`graph_parts`: what a circuit's graph is made of, before anything is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

from lens_skills.circuits import Circuit, Edge, Node
from lens_skills.reporting.graph_layout import Arrow, Layout, Spot, lay_out
from lens_skills.reporting.graph_rows import GraphRows
from lens_skills.reporting.style import SMALL, text_width

HIGH = 0.19  # inches, of a box
FINE = SMALL - 1
LINE = 1.22 * FINE / 72  # inches from line to line of a label


@dataclass(frozen=True)
class Unexplained:
    """What no confirmed edge accounts for, as a box of its own with an arrow in or out."""

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


def bundles_of(edges: Sequence[Edge], *, stacked: bool) -> list[Bundle]:
    """The edges by the nodes they join; ``stacked``: intervals stand under their numbers."""
    between: dict[tuple[Node, Node], list[Edge]] = {}
    for edge in edges:
        between.setdefault((edge.sender, edge.receiver), []).append(edge)
    return [
        Bundle(tuple(some), tuple(_label(edge, stacked=stacked) for edge in some))
        for some in between.values()
    ]


def layout_of(
    rows: GraphRows,
    names: Sequence[str],
    bundles: Sequence[Bundle],
    unknown: Sequence[Unexplained],
    room: float,
) -> Layout:
    """Where everything goes in ``room`` inches: nodes first, then what is unexplained."""
    lowest = min([0, *(one.row for one in unknown)])
    places = [*zip(rows.rows, rows.bands, strict=True), *((o.row, o.band) for o in unknown)]
    spots = [
        Spot(row - lowest, band, text_width(name, SMALL, "bold") + 0.12, HIGH)
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


def unexplained_of(circuit: Circuit, rows: GraphRows) -> list[Unexplained]:
    """A box below the start for what feeds it, and above it for what it feeds."""
    places = [place for place, node in enumerate(rows.nodes) if node in circuit.start]
    found = []
    for account in circuit.accounts:
        below = account.part == "upstream"
        node = (
            min(places, key=lambda k: rows.rows[k])
            if below
            else max(places, key=lambda k: rows.rows[k])
        )
        text = f"unexplained {percent(account.unexplained)}"
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


def signed(value: float, digits: int) -> str:
    """``+0.42`` or, with a true minus, ``−0.42``."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    """``8%``, with a true minus."""
    return f"{share:.0%}".replace("-", "\N{MINUS SIGN}")
