"""How much of the answer a model's strongest neurons carry alone, by how many of them are kept."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.ranking_plots import method_words
from lens_skills.plotting.style import (
    BLACK,
    CHANCE,
    DASHES,
    OTHERS,
    RANDOM,
    SERIES,
    SMALL,
    About,
    Look,
    legend_above,
    legend_from_edge,
    settle,
    sheet,
)

_MORE: list[tuple[str, Any, str]] = [(BLACK, "-", "P"), (OTHERS, "-", "X")]
_ROLES = {"faithfulness": "kept alone", "completeness": "replaced alone"}
_NARROW = 4.9  # inches
_LOW, _HIGH = -0.6, 1.6  # what runs further out is cut off, which the caption says


def neuron_circuits(frame: pd.DataFrame, *, about: str = "", reached: float = 0.9) -> Drawing:
    """Faithfulness and completeness against the number of neurons kept, a panel per task and both.

    Bands: 95 % interval; of random neurons the range of the draws. Dashed lines: none of the
    neurons (0), the whole model (1); dotted: ``reached``.

    Args:
        frame: One row per point: ``task``, ``what`` (faithfulness or completeness), ``method``
            (``random`` for random neurons), ``size``, ``value``, ``low``, ``high``.
        about: What it was measured on.
        reached: The share that is asked of a circuit.

    Frame: as it was given.
    """
    whats = list(dict.fromkeys(frame["what"]))
    note = "Bands: 95 % interval; random neurons: range of the draws. 0: all neurons replaced."
    values = frame["value"].to_numpy(float)
    beyond = int(((values < _LOW) | (values > _HIGH)).sum())
    if beyond:
        note += f" {beyond} points lie beyond the panels."
    drawn = {
        "title": "How many neurons carry the answer?",
        "lines": [about],
        "note": note,
        "reached": reached if "faithfulness" in whats else None,
    }
    return Drawing("neuron_circuits", frame.reset_index(drop=True), drawn, "neuron_circuits")


@draws("neuron_circuits", width="page")
def _draw_circuits(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    tasks = list(dict.fromkeys(frame["task"]))
    whats = list(dict.fromkeys(frame["what"]))
    methods = [name for name in dict.fromkeys(frame["method"]) if name != "random"]
    figure = sheet(look, 0.7 + 1.75 * len(whats), about)
    values = frame["value"].to_numpy(float)
    low = -0.25 if np.nanmin(values) > -0.2 else _LOW
    high = 1.25 if np.nanmax(values) < 1.2 else _HIGH
    axes = figure.subplots(len(whats), len(tasks), sharey=True, sharex="col", squeeze=False)
    for row, what in enumerate(whats):
        for column, task in enumerate(tasks):
            axis = axes[row, column]
            here = frame.loc[(frame["task"] == task) & (frame["what"] == what)]
            axis.set_ylim(low, high)
            _panel(axis, here, methods, about.get("reached") if what == "faithfulness" else None)
            axis.annotate(
                str(task), (0.02, 0.97), xycoords="axes fraction", va="top", color=BLACK, size=SMALL
            )
            if row == len(whats) - 1:
                axis.set_xlabel("neurons")
            if column == 0:
                axis.set_ylabel(f"{what}\n({_ROLES.get(str(what), 'neurons')})")
    n_columns = 4 if figure.get_size_inches()[0] > _NARROW else 2
    lines = math.ceil((len(methods) + 1) / n_columns)
    # The legend is wider than a panel: only its height is left room for.
    axes[0, 0].set_title("\n".join([" "] * lines), size=SMALL)
    legend = legend_above(axes[0, 0], n_columns)
    legend.set_in_layout(False)
    figure.align_ylabels()
    settle(figure)
    legend_from_edge(axes[0, 0], legend)
    return figure


def _panel(axis: Axes, rows: pd.DataFrame, methods: list[str], reached: float | None) -> None:
    for level in (0, 1):
        axis.axhline(level, color=CHANCE, linewidth=0.7, linestyle=DASHES, zorder=0)
    if reached is not None:
        axis.axhline(reached, color=CHANCE, linewidth=0.7, linestyle=":", zorder=0)
    names = [*methods, "random"]
    for place, name in enumerate(names):
        mine = rows.loc[rows["method"] == name].sort_values("size")
        if mine.empty:
            continue
        colour, line, marker = [*SERIES, *_MORE][place % (len(SERIES) + len(_MORE))]
        if name == "random":
            colour, line, marker = RANDOM, "-", "s"
        size, value, low, high = (
            mine[column].to_numpy(float) for column in ("size", "value", "low", "high")
        )
        axis.fill_between(size, low, high, color=colour, alpha=0.1, linewidth=0, gid="band")
        axis.plot(
            size, value, color=colour, linestyle=line, marker=marker, markersize=2.5,
            linewidth=0.9, label="random neurons" if name == "random" else method_words(name),
            gid=name,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.xaxis.set_major_formatter(FuncFormatter(_count))
    axis.yaxis.set_major_locator(MultipleLocator(0.5))


def _count(value: float, _: object) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
