"""A circuit as a picture: who writes to whom, with an error bar on every arrow."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from lens_skills.circuits import Account, Circuit, Edge, Node
from lens_skills.errors import LensSkillsError
from lens_skills.reporting.caption import count, file_name
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.graph_layout import Layout
from lens_skills.reporting.graph_parts import (
    FINE,
    HIGH,
    LINE,
    Bundle,
    Unexplained,
    bundles_of,
    layout_of,
    percent,
    signed,
    unexplained_of,
)
from lens_skills.reporting.graph_rows import GraphRows, graph_rows
from lens_skills.reporting.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    PALE,
    SMALL,
    VERMILION,
    sheet,
    style,
    text_width,
)

_WIDTH = 7.0  # inches: both columns of a paper
_KEYWAY = 0.2  # inches under the boxes, for the positions
_THIN, _THICK = 0.5, 3.0  # points
_FEWEST = 4.9  # inches, below which an interval stands under its number


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
    total that no confirmed edge explains.

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
    names = [_name(node, circuit) for node in rows.nodes]
    bundles = bundles_of(edges, stacked=width < _FEWEST)
    room = width - 0.1
    unknown = unexplained_of(circuit, rows)
    layout = layout_of(rows, [*names, *(one.text for one in unknown)], bundles, unknown, room)
    more = len(circuit.confirmed) - len(edges)
    figure = sheet(
        width,
        layout.height + _KEYWAY,
        title=f"Circuit of {circuit.target}",
        lines=[*(_account(account) for account in circuit.accounts), *_source(circuit)],
        note=f"{len(circuit.confirmed)} of {len(circuit.edges)} tested edges confirmed"
        + (f", the {len(edges)} strongest drawn ({more} more). " if more else ". ")
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
    return Drawing(figure, frame, file_name("circuit_graph", circuit.target))


def _draw_unexplained(axis: Axes, unknown: Sequence[Unexplained], layout: Layout) -> None:
    first = len(layout.spots) - len(unknown)
    lines = layout.lines[len(layout.lines) - len(unknown) :]
    for one, (x, y), (start, end) in zip(unknown, layout.spots[first:], lines, strict=True):
        axis.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-|>", mutation_scale=5, color=GREY, linewidth=0.9,
                linestyle=(0, (3, 2)), shrinkA=0, shrinkB=0, zorder=1, gid="unexplained",
            )
        )  # fmt: skip
        axis.text(
            x, y, one.text, size=SMALL, color=GREY, style="italic", ha="center",
            va="center_baseline", zorder=6,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip


def _strongest(circuit: Circuit, n: int) -> list[Edge]:
    """The strongest confirmed edges, each against the strongest on its target: units differ."""
    most: dict[str, float] = {}
    for edge in circuit.confirmed:
        most[edge.target] = max(most.get(edge.target, 1e-30), edge.strength)
    ordered = sorted(circuit.confirmed, key=lambda edge: -edge.strength / most[edge.target])
    kept = {edge.key for edge in ordered[:n]}
    return [edge for edge in circuit.confirmed if edge.key in kept]


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


def _name(node: Node, circuit: Circuit) -> str:
    if node.kind == "answer":
        return f"answer: {circuit.metric}"
    return node.name


def _account(account: Account) -> str:
    return (
        f"{account.part}: {account.target} {signed(account.clean, 2)} on clean prompts, "
        f"changed by {signed(account.total, 2)} {account.unit} when corrupted; "
        f"unexplained {percent(account.unexplained)}"
    )


def _source(circuit: Circuit) -> list[str]:
    known = [str(circuit.provenance[k]) for k in ("model", "task") if circuit.provenance.get(k)]
    return [" · ".join([*known, count(circuit.n_examples, circuit.n_groups)])]


def _positions(axis: Axes, rows: GraphRows, layout: Layout) -> None:
    for place, name in enumerate(rows.positions):
        left, right = layout.edges[place], layout.edges[place + 1]
        if place:
            axis.axvline(left, color=PALE, linewidth=0.8, zorder=0)
        shown = "position " * (place == 0) + name.replace("-", "\N{MINUS SIGN}")
        axis.text(
            (left + right) / 2, -_KEYWAY + 0.03, shown,
            size=SMALL, color=GREY, ha="center", va="bottom",
        )  # fmt: skip


def _arrows(axis: Axes, bundles: Sequence[Bundle], rows: GraphRows, layout: Layout) -> None:
    for (start, end), (a, b) in zip(layout.lines[len(bundles) :], rows.inner, strict=False):
        axis.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-", color=GREY, linewidth=0.8, linestyle=(0, (1, 1.5)),
                shrinkA=0, shrinkB=0, zorder=1, gid=f"inner {rows.nodes[a]} {rows.nodes[b]}",
            )
        )  # fmt: skip
    strongest: dict[str, float] = {}
    for edge in (edge for one in bundles for edge in one.edges):
        strongest[edge.target] = max(strongest.get(edge.target, 1e-30), edge.strength)
    for one, (start, end), place in zip(bundles, layout.lines, layout.labels, strict=False):
        edge = one.edges[0]  # the strongest
        wide = _THIN + (_THICK - _THIN) * edge.strength / strongest[edge.target]
        axis.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-|>", mutation_scale=4 + 2 * wide, color=_colour(edge),
                linewidth=wide, shrinkA=0, shrinkB=0, zorder=2, joinstyle="miter",
                gid=f"edge {edge}",
            )
        )  # fmt: skip
        if place is not None:
            _write(axis, one, place)


def _colour(edge: Edge) -> str:
    return VERMILION if (edge.effect or 0.0) > 0 else BLUE


def _write(axis: Axes, one: Bundle, place: tuple[float, float]) -> None:
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
    axis: Axes, rows: GraphRows, names: Sequence[str], layout: Layout, circuit: Circuit
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
