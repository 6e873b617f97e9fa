"""How every figure looks: styles, widths, colours, the sheet with its caption, legends, signs."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lens_skills.errors import LensSkillsError
from lens_skills.plotting.words import metric_words, position_words, shortened, site_words
from lens_skills.scoring import EXPLORATORY, Scores

About = Mapping[str, Any]
"""What a figure says beside its table: title, lines, note, exploratory, and what it needs else."""

MM = 1 / 25.4  # inches
COLUMN, PAGE = 85 * MM, 178 * MM  # inches: one column of a two-column paper, and both
STYLES = {
    "page": "title and caption in the picture",
    "paper": "the panels alone; title and caption are for the paper's own caption",
    "talk": "16:9, large type, the title alone",
}
_NARROWEST, _WIDEST = 40, 600  # millimetres
_SLIDE = 5.0  # inches of a slide, so that 8 points are read from the last row
_SLIDE_PIXELS = 1920
SIZE, SMALL = 8.0, 7.0  # points at printed size
COUNT_FLOOR = 0.6  # where a logarithmic axis of counts starts, so that a single one is seen

# One colour, one meaning, in every figure; no colour is written anywhere else. Each has a marker,
# a line or a fill of its own too, so that it is told apart in grey print.
BLACK, GREY, PALE = "#000000", "#666666", "#E3E3E3"
# Removing it lowers the metric, or raises it; each on its own sign; the rest hides it.
SUPPORTS, OPPOSES, MIXED, COMPENSATED = "#0072B2", "#D55E00", "#C53FC1", "#009E73"
DATA = "#424954"  # what is measured, where it is neither an effect nor a null
OTHERS = "#9A9A9A"  # what it stands among: other neurons, matched control sets
CHANCE = GREY  # dashed: what chance alone gives, and the threshold of the permutations
RANDOM = "#6F5A13"  # random directions, random neurons
CONTROL_TASK = "#159CEC"
DAMAGE = "#821D23"  # harm elsewhere
HATCH = "#C4C4C4"  # over a cell within its null
STAMP = "#A3004F"

# The permutation threshold: its colour, line and name in every figure.
DASHES = (0, (4, 2))
THRESHOLD = (CHANCE, DASHES, "permutation, 5 % family-wise")
RANDOM_DIRECTIONS = "random directions"
# What is known of a neuron: the more, the darker.
EVIDENCE = {
    "associated": "#958CC6",
    "beat the control task": "#7565B5",
    "basis-privileged": "#2B8A7E",
    "confirmed": "#4B2F94",
    "confirmed as predicted": "#A85C2C",
    "causal": "#1F0A4A",
}
# Seeds, methods, classes, kinds: colours without a meaning, each with a line and a marker.
SERIES: list[tuple[str, Any, str]] = [
    ("#117733", "-", "o"),
    ("#AA4499", (0, (5, 1.5)), "s"),
    ("#999933", (0, (1, 1.2)), "^"),
    ("#332288", (0, (5, 1.5, 1, 1.5)), "D"),
    ("#CC6677", (0, (3, 1)), "v"),
]


def _scale(name: str, *colours: str) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list(f"lens_skills_{name}", colours)


# Scales: a signed effect (below 0 the metric falls), a signed correlation, a signed activation,
# and a size from 0 on.
EFFECT_MAP = _scale("effect", "#00456C", SUPPORTS, "#FFFFFF", OPPOSES, "#7F3600")
R_MAP = _scale("r", "#40004B", "#9970AB", "#FFFFFF", "#5AAE61", "#00441B")
ACTIVATION_MAP = _scale("activation", "#5B3A29", "#B79C8A", "#FFFFFF", "#8B93A1", "#14181F")
SIZE_MAP = _scale("size", "#F7F7F7", "#A3A8B0", DATA, "#14181F")

_EDGE, _GAP = 0.05, 0.06  # inches of white around everything, and under the caption
_LONGEST = 600  # characters of a line of the caption in a picture
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


@dataclass(frozen=True)
class Look:
    """How a figure is drawn: its style, how wide it is, and its letter among the panels of a paper.

    Attributes:
        style: One of `STYLES`.
        width: Inches.
        panel: Such as ``"a"``; empty for none.
    """

    style: str = "page"
    width: float = COLUMN
    panel: str = ""

    @property
    def dots(self) -> float:
        """Per inch of a picture in pixels."""
        return _SLIDE_PIXELS / self.width if self.style == "talk" else 300


def make_look(style: str, width: str | float, panel: str = "") -> Look:
    """The look asked for; ``width`` is ``"column"``, ``"page"`` or millimetres.

    Raises:
        LensSkillsError: No such style or width.

    >>> round(make_look("paper", "column").width / MM)
    85
    """
    if style not in STYLES:
        every = ", ".join(f"{name!r} ({what})" for name, what in STYLES.items())
        raise LensSkillsError(f"no style {style!r}. Choose {every}.")
    if not isinstance(panel, str) or len(panel) > 3:
        raise LensSkillsError(f"panel= is a letter such as 'a', not {panel!r}.")
    if style == "talk":
        return Look(style, _SLIDE, panel)
    named = {"column": COLUMN, "page": PAGE}
    if isinstance(width, str) and width in named:
        return Look(style, named[width], panel)
    good = isinstance(width, int | float) and not isinstance(width, bool)
    if not good or not _NARROWEST <= float(width) <= _WIDEST:
        raise LensSkillsError(
            f"width= is 'column' (85 mm), 'page' (178 mm) or millimetres from {_NARROWEST} to "
            f"{_WIDEST}, not {width!r}."
        )
    return Look(style, round(float(width), 3) * MM, panel)


def series(place: int) -> tuple[str, Any, str]:
    """Colour, line and marker of the ``place``-th of several alike; they begin again after 5."""
    return SERIES[place % len(SERIES)]


def sheet(look: Look, height: float, about: About) -> Figure:
    """An empty figure with what its style shows of title, lines and note, and a stamp if it is due.

    The height is that of the panels, in inches; the text comes on top of it. In ``about``, the
    ``lines`` say what was measured on what, the note what a reader should not conclude, and
    ``exploratory`` that it is stamped.
    """
    exploratory = bool(about.get("exploratory"))
    texts = []
    if exploratory and look.style != "paper":
        texts.append((EXPLORATORY, SMALL, "bold", STAMP))
    if look.style != "paper" or look.panel:
        heading = "" if look.style == "paper" else about["title"]
        texts.append((joined_words(look.panel, heading), SIZE, "bold", BLACK))
    note = about.get("note", "") if look.style == "page" else ""
    if look.style == "page":
        texts += [(line, SMALL, "normal", GREY) for line in about.get("lines", ()) if line]
    width = look.width
    room = width - 2 * _EDGE
    above = [
        (row, size, weight, colour)
        for text, size, weight, colour in texts
        for row in wrap(text, room, size, weight)
    ]
    below = [(row, SMALL, "normal", GREY) for row in wrap(note, room, SMALL, "normal") if note]
    head = sum(size for _, size, _, _ in above) * _LEAD / 72 + _EDGE + _GAP * bool(above)
    foot = sum(size for _, size, _, _ in below) * _LEAD / 72 + _EDGE
    if look.style == "talk":
        height = max(height, width * 9 / 16 - head - foot)
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


def joined_words(*parts: str) -> str:
    """The words that are not empty, with two spaces between: a panel's letter and its title."""
    return "  ".join(part for part in parts if part)


def settle(figure: Figure) -> Figure:
    """Lays the panels out and leaves them there: each further draw would move them a little."""
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # not "none": that draws twice whenever the figure is saved
    for axes in figure.axes:
        # The solver's last digits differ from run to run, and an SVG names its clips by them.
        for which in ("original", "active"):
            place = axes.get_position(original=which == "original")
            left, low, width, height = (round(edge, 6) for edge in place.bounds)
            axes.set_position((left, low, width, height), which=which)
    return figure


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
    """Two lines: what was read and where; model, task, examples and groups."""
    size = count(scores.n_examples, scores.n_groups)
    named = [position_words(name) for name in scores.positions] if position is None else [position]
    where = [site_words(scores.site), *named]
    return [", ".join(where), joined(*source(scores.provenance), size)]


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
    '1,000 examples, 24 groups'
    """
    groups = "" if n_groups is None else f", {n_groups:,} groups"
    return f"{n_examples:,} example{'s' * (n_examples != 1)}{groups}"


def correlation(scores: Scores) -> str:
    """The name of r: Pearson's, or partial given covariates."""
    given = scores.provenance.get("given") or []
    return f"partial r given {', '.join(given)}" if given else "Pearson r"


def with_unit(metric: str, unit: str | None) -> str:
    """A metric's name with its unit, where it has one.

    >>> with_unit("logit_diff", "nats")
    'logit difference (nats)'
    """
    words = metric_words(metric)
    return f"{words} ({unit})" if unit and unit not in ("column", "0/1") else words


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
    """The text in lines no wider than ``room`` inches; a longer word is cut, a long text ended.

    >>> with style():
    ...     wrap("one two three", 0.5, 8, "normal")
    ['one two', 'three']
    """
    rows: list[str] = []
    for word in shortened(text, _LONGEST).split(" "):
        joined = f"{rows[-1]} {word}" if rows else word
        if rows and text_width(joined, size, weight) <= room:
            rows[-1] = joined
            continue
        while text_width(word, size, weight) > room and len(word) > 1:
            ends = range(2, min(len(word), 200))
            fits = 1 + bisect_right(
                ends, room, key=lambda end: text_width(word[:end], size, weight)
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
