"""A number with its interval for several things, under two or three conditions each."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lens_skills.errors import LensSkillsError
from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.style import (
    BLACK,
    SERIES,
    About,
    Look,
    legend_above,
    settle,
    sheet,
)

_COLUMNS = ("label", "what", "value", "low", "high")
_ROW = 0.24  # inches
_MOST = 3  # conditions


def paired_intervals(
    frame: pd.DataFrame,
    *,
    title: str,
    axis: str,
    lines: tuple[str, ...] = (),
    note: str = "",
    reference: float | None = None,
) -> Drawing:
    """Dots with 95 % intervals, one row per thing and one colour per condition.

    Args:
        frame: One row per thing and condition: ``label``, ``what``, ``value``, ``low``, ``high``
            (equal to the value where there is no interval).
        title: What is compared.
        axis: What the numbers are, with their unit.
        lines: Of the caption: model, examples.
        note: What the intervals are over.
        reference: A value to draw a line at, such as what chance gives.

    Frame: as it was given.

    Raises:
        LensSkillsError: A column is missing, or more than three conditions.
    """
    missing = [name for name in _COLUMNS if name not in frame]
    if missing or frame.empty:
        what = f"no column {missing[0]!r}" if missing else "no row"
        raise LensSkillsError(f"{what} in this table. It needs: {', '.join(_COLUMNS)}.")
    kinds = list(dict.fromkeys(frame["what"]))
    if len(kinds) > _MOST:
        raise LensSkillsError(f"{len(kinds)} conditions are too many to tell apart (3 at most).")
    about = {"title": title, "lines": list(lines), "note": note, "axis": axis}
    about |= {} if reference is None else {"reference": reference}
    return Drawing("paired_intervals", frame.reset_index(drop=True), about, "paired_intervals")


@draws("paired_intervals")
def _draw_paired(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    labels = list(dict.fromkeys(frame["label"]))
    kinds = list(dict.fromkeys(frame["what"]))
    figure = sheet(look, _ROW * len(labels) + 0.75, about)
    axis = figure.subplots()
    for place, kind in enumerate(kinds):
        part = frame[frame["what"] == kind]
        rows = np.array([labels.index(label) for label in part["label"]])
        rows = rows + 0.22 * (place - (len(kinds) - 1) / 2)
        colour, _, marker = SERIES[place]
        axis.hlines(rows, part["low"], part["high"], color=colour, linewidth=1)
        axis.plot(
            part["value"], rows, color=colour, marker=marker, markersize=3.6,
            linestyle="none", label=kind, gid=f"condition_{place}", clip_on=False,
        )  # fmt: skip
    if "reference" in about:
        axis.axvline(about["reference"], color=BLACK, linewidth=0.5, linestyle=(0, (1, 2)))
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set_xlabel(about["axis"])
    legend_above(axis, handlelength=1.2)
    return settle(figure)
