"""What knocking each suspect out does where its feature is present, and where it is not."""

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lens_skills.errors import LensSkillsError
from lens_skills.explanation import Shortcut, Shortcuts
from lens_skills.reporting.caption import file_name
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREY,
    PALE,
    SMALL,
    VERMILION,
    halo,
    settle,
    sheet,
    style,
    text_width,
)

_ROW = 0.42  # inches


@style()
def shortcut_effects(found: Shortcuts, *, width: float = COLUMN) -> Drawing:
    """Each neuron's knock-out: its effect with the feature and without, and their difference.

    Dots are mean effects on the examples with the neuron's surface feature (full) and without
    (hollow); the line below is the difference with its 95 % interval, over the band of differences
    that would not matter (δ). Of a neuron that no surface feature explains: its effect on all
    examples.

    Args:
        found: From `shortcuts`.
        width: Inches.

    Frame: one row per neuron, as in ``found.frame()``.

    Raises:
        LensSkillsError: No neuron was tried.
    """
    if not found.cases:
        raise LensSkillsError("no neuron to draw: none was tried. " + " ".join(found.notes[:1]))
    cases = found.cases
    about = found.provenance
    figure = sheet(
        width,
        _ROW * len(cases) + 0.75,
        title=f"Shortcuts behind {found.metric}: {len(found.confirmed)} of {len(cases)} neurons",
        lines=[
            " · ".join(str(about[name]) for name in ("model", "task") if name in about),
            found.do,
        ],
        note="Line: with the feature less without, with its 95 % interval (no feature: effect on "
        "all examples). Grey band: ± δ, what matched neurons reach in 95 %.",
    )
    axis = figure.add_subplot()
    for row, case in enumerate(cases):
        _row(axis, row, case)
    unit = f" ({found.unit})" if found.unit else ""
    axis.set_xlabel(f"change of {found.watched} when removed{unit}")
    axis.axvline(0, color=BLACK, linewidth=0.6, zorder=1)
    axis.set_yticks(range(len(cases)), [case.name for case in cases])
    axis.set_ylim(len(cases) - 0.45, -0.75)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axis.legend(
        handles=[
            Line2D([], [], marker="o", color=BLUE, linewidth=0, markersize=4, label="with it"),
            Line2D([], [], marker="o", color=BLUE, linewidth=0, markersize=4, mfc="white",
                   label="without"),
            Line2D([], [], color=BLACK, linewidth=1.2, marker="|", label="difference"),
        ],
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=3,
        borderaxespad=0.1,
    )  # fmt: skip
    settle(figure)
    return Drawing(figure, found.frame(), file_name("shortcut_effects", found.metric))


def _row(axis: Axes, row: int, case: Shortcut) -> None:
    shown = case.difference or case.effect
    band = {"color": PALE, "linewidth": 0, "zorder": 0}
    axis.fill_between([-shown.delta, shown.delta], row - 0.16, row + 0.3, **band)
    colour = VERMILION if case.word == "shortcut" else BLACK
    axis.plot([shown.low, shown.high], [row + 0.13] * 2, color=colour, linewidth=1.2, zorder=3)
    axis.plot([shown.value], [row + 0.13], "|", color=colour, markersize=6, zorder=3)
    if case.associated is not None and case.others is not None:
        axis.plot([case.associated], [row - 0.07], "o", color=BLUE, markersize=4, zorder=4)
        axis.plot([case.others], [row - 0.07], "o", color=BLUE, mfc="white", markersize=4, zorder=4)
    text = case.word if not case.feature else f"{case.condition}: {case.word}"
    while text_width(text, SMALL) > COLUMN - 0.75 and len(text) > 8:
        text = text[:-2].rstrip() + "…"
    label = axis.annotate(
        text,
        (0.0, row - 0.3),
        xycoords=("axes fraction", "data"),
        size=SMALL,
        color=GREY,
        va="center",
    )
    halo(label)
