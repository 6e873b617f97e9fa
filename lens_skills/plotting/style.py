"""How every figure looks: paper widths, colours, the sheet with its caption, legends, signs."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lens_skills.errors import LensSkillsError
from lens_skills.scoring import EXPLORATORY, Scores

COLUMN = 3.4  # inches: one column of a two-column paper
SIZE, SMALL = 8.0, 7.0  # points at printed size
COUNT_FLOOR = 0.6  # where a logarithmic axis of counts starts, so that a single one is seen

# Okabe and Ito's palette (2008), told apart with any colour vision.
BLACK, GREY, PALE = "#000000", "#666666", "#E3E3E3"
BLUE, SKY, GREEN = "#0072B2", "#56B4E9", "#009E73"
ORANGE, VERMILION = "#E69F00", "#D55E00"
STAMP = "#A3004F"

# The permutation threshold: its colour, line and name in every figure.
THRESHOLD = (GREY, (0, (4, 2)), "permutation, 5 % family-wise")
RANDOM_DIRECTIONS = "random directions"
# What is known of a neuron keeps its colour in every figure.
EVIDENCE = {
    "associated": "#999999",
    "beat the control task": GREEN,
    "basis-privileged": VERMILION,
    "confirmed": BLUE,
    "causal": BLACK,
}

_EDGE, _GAP = 0.05, 0.06  # inches of white around everything, and under the caption
_LEAD = 1.3  # line height over text size

_LOOK = {
    "font.size": SIZE,
    "axes.labelsize": SIZE,
    "axes.titlesize": SIZE,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
    "legend.labelspacing": 0.2,
    "legend.borderaxespad": 0.1,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.0,
    "hatch.linewidth": 0.4,
    # A name such as "p($)" is text, not mathematics.
    "text.parse_math": False,
    # PDF keeps its text (journals ask for TrueType); SVG looks the same without our font.
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "lens_skills",
}

LATE_LAYERS = (
    "Late layers write the answer itself: a large r there may be the answer, not the skill."
)


@contextmanager
def style() -> Iterator[None]:
    """Our look over Matplotlib's defaults, put back afterwards; also a decorator.

    >>> import matplotlib
    >>> before = matplotlib.rcParams["axes.labelsize"]
    >>> with style():
    ...     matplotlib.rcParams["axes.labelsize"]
    8.0
    >>> matplotlib.rcParams["axes.labelsize"] == before
    True
    """
    with matplotlib.style.context(["default", _LOOK]):
        yield


def sheet(
    width: float,
    height: float,
    *,
    title: str,
    lines: Sequence[str] = (),
    note: str = "",
    exploratory: bool = False,
) -> Figure:
    """An empty figure with its caption above, a note below, and a stamp where it is exploratory.

    The height is that of the panels, in inches; the text comes on top of it. The ``lines`` say
    what was measured on what, the note what a reader should not conclude.
    """
    texts = [(title, SIZE, "bold", BLACK)] + [
        (line, SMALL, "normal", GREY) for line in lines if line
    ]
    if exploratory:
        texts.insert(0, (EXPLORATORY, SMALL, "bold", STAMP))
    room = width - 2 * _EDGE
    above = [
        (row, size, weight, colour)
        for text, size, weight, colour in texts
        for row in wrap(text, room, size, weight)
    ]
    below = [(row, SMALL, "normal", GREY) for row in wrap(note, room, SMALL, "normal") if note]
    head = sum(size for _, size, _, _ in above) * _LEAD / 72 + _EDGE + _GAP
    foot = sum(size for _, size, _, _ in below) * _LEAD / 72 + _EDGE
    total = head + height + foot
    figure = Figure(
        figsize=(width, total),
        layout=ConstrainedLayoutEngine(
            rect=(0, foot / total, 1, height / total), w_pad=_EDGE, h_pad=_EDGE / 2
        ),
    )
    for rows, top in ((above, total - _EDGE), (below, foot)):
        for text, size, weight, colour in rows:
            top -= size * _LEAD / 72
            figure.text(
                _EDGE / width, top / total, text, size=size, weight=weight, color=colour,
                va="baseline",
            )  # fmt: skip
    if exploratory:
        # Over the panels too, so that it stays when the caption is cropped.
        figure.text(
            0.5, (foot + height / 2) / total, "EXPLORATORY", size=min(34.0, 7.8 * width),
            weight="bold", color=STAMP, alpha=0.13, rotation=25, ha="center", va="center",
            gid="exploratory",
        )  # fmt: skip
    return figure


def settle(figure: Figure) -> None:
    """Lays the panels out and leaves them there: each further draw would move them a little."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        # The solver's last digits differ from run to run, and an SVG names its clips by them.
        for which in ("original", "active"):
            place = axes.get_position(original=which == "original")
            left, low, width, height = (round(edge, 6) for edge in place.bounds)
            axes.set_position((left, low, width, height), which=which)


def legend_above(axis: Axes, n_columns: int = 2, *, left: float = -0.02, **options: Any) -> Legend:
    """A legend on the upper edge of the panel, from ``left`` of its width on."""
    return axis.legend(loc="lower left", bbox_to_anchor=(left, 1.0), ncols=n_columns, **options)


def legend_from_edge(axis: Axes, legend: Legend) -> None:
    """Lets the legend start at the left edge of the figure, so that long entries have room."""
    place = axis.get_position()
    legend.set_bbox_to_anchor((-place.x0 / place.width, 1.0), transform=axis.transAxes)


def places(scores: Scores, position: str | None) -> list[int]:
    """Indices of the positions to draw: one, or all of them where none is named."""
    if position is None:
        return list(range(len(scores.positions)))
    if position not in scores.positions:
        raise LensSkillsError(
            f"no position {position!r} in these scores. They hold: {', '.join(scores.positions)}."
        )
    return [scores.positions.index(position)]


def caption(scores: Scores, position: str | None = None) -> list[str]:
    """Two lines: site and position; model, task, examples and groups."""
    where = ", ".join(scores.positions) if position is None else position
    size = count(scores.n_examples, scores.n_groups)
    return [f"{scores.site} at {where}", joined(*source(scores.provenance), size)]


def source(provenance: Mapping[str, Any]) -> list[str]:
    """Model and task, as far as they are known."""
    return [str(provenance[key]) for key in ("model", "task") if provenance.get(key)]


def joined(*parts: object) -> str:
    """The parts of a line that are not empty, with dots between them.

    >>> joined("tiny", "", "ioi")
    'tiny · ioi'
    """
    return " · ".join(str(part) for part in parts if part)


def count(n_examples: int, n_groups: int | None = None) -> str:
    """How many examples, and in how many groups where that is known.

    >>> count(1000, 24)
    '1,000 examples in 24 groups'
    """
    groups = "" if n_groups is None else f" in {n_groups:,} groups"
    return f"{n_examples:,} examples{groups}"


def correlation(scores: Scores) -> str:
    """The name of r: Pearson's, or partial given covariates."""
    given = scores.provenance.get("given") or []
    return f"partial r given {', '.join(given)}" if given else "Pearson r"


def with_unit(metric: str, unit: str | None) -> str:
    """A metric's name with its unit, where it has one.

    >>> with_unit("logit_diff", "nats")
    'logit_diff (nats)'
    """
    return f"{metric} ({unit})" if unit and unit not in ("column", "0/1") else metric


def signed(value: float, digits: int = 2, *, plus: bool = True) -> str:
    """A number with a true minus, and without a sign where it rounds to 0.

    >>> signed(0.421), signed(-0.5, 1), signed(-0.001)
    ('+0.42', '\N{MINUS SIGN}0.5', '0.00')
    """
    text = f"{value:+.{digits}f}"
    if not text.strip("+-0."):
        return text[1:]
    return minus(text if plus else text.removeprefix("+"))


def minus(text: str) -> str:
    """The text with true minus signs instead of hyphens."""
    return text.replace("-", "\N{MINUS SIGN}")


def wrap(text: str, room: float, size: float, weight: str) -> list[str]:
    """The text in lines no wider than ``room`` inches; a longer word is cut.

    >>> with style():
    ...     wrap("one two three", 0.5, 8, "normal")
    ['one two', 'three']
    """
    rows: list[str] = []
    for word in text.split(" "):
        joined = f"{rows[-1]} {word}" if rows else word
        if rows and text_width(joined, size, weight) <= room:
            rows[-1] = joined
            continue
        while text_width(word, size, weight) > room and len(word) > 1:
            fits = next(
                n
                for n in range(len(word) - 1, 0, -1)
                if n == 1 or text_width(word[:n], size, weight) <= room
            )
            rows.append(word[:fits])
            word = word[fits:]
        rows.append(word)
    # A separator belongs to the line it ends, not to the next.
    return [row.removeprefix("· ") for row in rows]


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Inches a line of text takes in the font of the current style."""
    font = FontProperties(size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def widest(texts: Iterable[str], size: float = SMALL) -> float:
    """Inches that the longest of some texts takes."""
    return max(text_width(text, size) for text in texts)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones, at least ``gap`` apart, in the same order, within the ends.

    >>> spread([5.0, 1.0, 5.2], 1.0, 0.0, 6.0)
    [5.0, 1.0, 6.0]
    """
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    placed = list(wanted)
    floor = low
    for place in order:
        placed[place] = floor = max(placed[place], floor)
        floor += gap
    ceiling = high
    for place in reversed(order):
        placed[place] = ceiling = min(placed[place], ceiling)
        ceiling -= gap
    return placed


def count_axis(axis: Axes, which: str, most: float) -> None:
    """Makes an axis logarithmic, with whole counts such as 10,000 at its ticks, up to ``most``."""
    axis.set(**{f"{which}scale": "log"})
    side = axis.xaxis if which == "x" else axis.yaxis
    decades = int(math.log10(max(1.0, most)))
    step = 1 if decades < 4 or which == "y" else 2  # wide numbers beside each other
    ticks_at(side, [10.0**n for n in range(0, decades + 1, step)])


def ticks_at(side: Axis, places: Sequence[float], text: str = "{:,.0f}") -> None:
    """Ticks at these places and no others, also where the axis is logarithmic."""
    side.set_major_locator(FixedLocator(places))
    side.set_major_formatter(FuncFormatter(lambda value, _: text.format(value)))
    side.set_minor_locator(NullLocator())


def name_lines(axis: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Names at the left of a chart of lines one below the other, which needs no axis there."""
    axis.set_yticks(places, names)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)


def inches(axis: Axes) -> tuple[float, float]:
    """Width and height of the panel, once the figure was laid out."""
    box, figure = axis.get_window_extent(), axis.get_figure()
    assert figure is not None
    return box.width / figure.dpi, box.height / figure.dpi


def halo(text: Text) -> Text:
    """The text on a thin white ground, so that a line behind it stays off."""
    text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
    return text
