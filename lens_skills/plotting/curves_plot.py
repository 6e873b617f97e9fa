"""A number against another, several curves in several panels, as benchmarks hand them over."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lens_skills.errors import LensSkillsError
from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.style import (
    BLACK,
    CHANCE,
    DASHES,
    SMALL,
    About,
    Look,
    inches,
    legend_above,
    series,
    settle,
    sheet,
    ticks_at,
)

MOST_SERIES = 6
_NARROW = 4.0  # inches: below it a legend has two entries in a row
PER_ROW = 3
_COLUMNS = ("panel", "series", "x", "value", "low", "high")
_SIXTH = (BLACK, (0, (5, 1.5, 1, 1.5, 1, 1.5)), "P")


def number_curves(
    frame: pd.DataFrame,
    *,
    title: str,
    x: str,
    y: str,
    lines: tuple[str, ...] = (),
    note: str = "",
    log: bool = False,
    level: float | None = None,
    x_names: dict[float, str] | None = None,
) -> Drawing:
    """Curves of a number against a size, a layer or a share, one panel for each of what differs.

    Args:
        frame: One row per point: ``panel``, ``series``, ``x``, ``value`` and its interval, ``low``
            and ``high`` (a band; NaN where there is none). `MOST_SERIES` series at most.
        title: What is asked.
        x, y: What the axes measure, with units.
        lines: Of the caption: model, examples, groups.
        note: What a reader should not conclude.
        log: Whether x is on a logarithmic axis, whose ticks are the values there are.
        level: A value to draw across, such as chance or that of the whole model.
        x_names: What values of x are called on the axis: ``{46080: "all"}``.

    Frame: as it was given.

    Raises:
        LensSkillsError: A column is missing, nothing to draw, more series than can be told apart.
    """
    missing = [name for name in _COLUMNS if name not in frame]
    named = list(dict.fromkeys(frame["series"])) if "series" in frame else []
    if missing or not 1 <= len(named) <= MOST_SERIES:
        what = f"lacks {', '.join(missing)}" if missing else f"has {len(named)} series"
        raise LensSkillsError(
            f"the frame {what}: curves take the columns {', '.join(_COLUMNS)} and 1 to "
            f"{MOST_SERIES} series."
        )
    about = {
        "title": title,
        "lines": list(lines),
        "note": note,
        "x": x,
        "y": y,
        "log": log,
        "level": level,
        "x_names": {f"{value:g}": name for value, name in (x_names or {}).items()},
    }
    return Drawing("number_curves", frame.reset_index(drop=True), about, "number_curves")


@draws("number_curves", width="page")
def _draw_curves(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    panels = list(dict.fromkeys(frame["panel"]))
    named = list(dict.fromkeys(frame["series"]))
    n_columns = min(PER_ROW, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    figure = sheet(look, 0.5 + (2.1 if n_rows == 1 else 1.7) * n_rows, about)
    axes = np.atleast_1d(figure.subplots(n_rows, n_columns, sharex=True, sharey=True)).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        rows = frame.loc[frame["panel"] == panel]
        if about["level"] is not None:
            axis.axhline(about["level"], color=CHANCE, linewidth=0.8, linestyle=DASHES)
        for place, name in enumerate(named):
            _curve(axis, rows.loc[rows["series"] == name].sort_values("x"), place, str(name))
        axis.set_title(str(panel), loc="left", size=SMALL)
        axis.set_xlabel(about["x"])
        _ticks(axis, sorted(set(frame["x"])), about)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for place, axis in enumerate(axes):
        axis.label_outer()
        if place % n_columns == 0:
            axis.set_ylabel(about["y"])
        if place < n_columns and place + n_columns >= len(panels) and n_rows > 1:
            axis.xaxis.set_tick_params(labelbottom=True)
            axis.set_xlabel(about["x"])
    # The legend is wider than a panel: only its height is left room for, above the panel's name.
    n_across = len(named) if figure.get_size_inches()[0] > _NARROW else 2
    lines = math.ceil(len(named) / n_across)
    axes[0].set_title("\n".join([" "] * lines + [str(panels[0])]), loc="left", size=SMALL)
    legend = legend_above(axes[0], n_across, handlelength=2.4)
    legend.set_in_layout(False)
    figure.align_ylabels()
    settle(figure)
    axes[0].set_title(str(panels[0]), loc="left", size=SMALL)
    place = axes[0].get_position()
    above = 1 + 1.8 * SMALL / 72 / inches(axes[0])[1]
    legend.set_bbox_to_anchor((-place.x0 / place.width, above), transform=axes[0].transAxes)
    return figure


def _curve(axis: Axes, rows: pd.DataFrame, place: int, name: str) -> None:
    colour, line, marker = series(place) if place < MOST_SERIES - 1 else _SIXTH
    banded = rows.loc[rows["low"].notna() & rows["high"].notna()]
    if len(banded):
        axis.fill_between(
            banded["x"], banded["low"], banded["high"], color=colour, alpha=0.16, linewidth=0
        )
    axis.plot(
        rows["x"], rows["value"], color=colour, linestyle=line, marker=marker, markersize=2.8,
        linewidth=1, label=name, gid=name,
    )  # fmt: skip


def _ticks(axis: Axes, values: list[float], about: About) -> None:
    if not about["log"]:
        return
    axis.set_xscale("log")
    axis.minorticks_off()
    ticks_at(axis.xaxis, values, "{:g}")
    names = [about["x_names"].get(f"{value:g}", f"{value:g}") for value in values]
    axis.set_xticks(values, names)
