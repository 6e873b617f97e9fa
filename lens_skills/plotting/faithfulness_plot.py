"""How much of what the model does a circuit does by itself, by how many edges it has."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lens_skills.circuits.faithfulness import Curve, Faithfulness
from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.style import (
    BLACK,
    CHANCE,
    DASHES,
    DATA,
    GREY,
    RANDOM,
    SMALL,
    About,
    Look,
    count,
    joined,
    legend_above,
    settle,
    sheet,
    source,
    ticks_at,
)
from lens_skills.plotting.words import metric_words
from lens_skills.results import file_name

_LIMIT = 2.5  # what overshoots further runs out of the panel, and an arrow says so
_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def faithfulness(faithfulness: Faithfulness, *, exploratory: bool = False) -> Drawing:
    """Faithfulness against the number of edges, one panel per part of the circuit.

    Band: 95 % interval. Thin: random circuits of equal size. Lines at 0 (no edge) and 1 (the
    whole model).

    Args:
        faithfulness: From `lens_skills.faithfulness`.
        exploratory: Stamp it.

    Frame: one row per part and size, as in ``faithfulness.frame()`` (``what``: circuit), then one
    per random circuit, part and size (``what``: random 1, random 2, …).
    """
    curves = faithfulness.curves
    start = str(faithfulness.provenance.get("start", ""))
    size = count(faithfulness.n_examples, faithfulness.n_groups)
    frame = faithfulness.frame()
    frame.insert(0, "what", "circuit")
    rows = [
        {
            "what": f"random {k}",
            "part": curve.part,
            "target": curve.target,
            "n_edges": edges,
            "faithfulness": value,
        }
        for curve in curves
        for k, drawn in enumerate(curve.random, 1)
        for edges, value in zip(curve.sizes, drawn, strict=True)
    ]
    note = "Band: 95 % interval. 0: no edge; 1: the whole model."
    if curves[0].random:
        note += f" Thin: {len(curves[0].random)} random circuits of equal size."
    about = {
        "title": f"How faithful is the circuit of {start or 'the target'}, alone?",
        "lines": [
            *(_caption(curve) for curve in curves),
            joined(*source(faithfulness.provenance), size),
        ],
        "note": note,
        "exploratory": exploratory,
    }
    frame = pd.concat([frame, pd.DataFrame(rows, columns=frame.columns)]) if rows else frame
    name = file_name("faithfulness", *([start] if start else []))
    return Drawing("faithfulness", frame.reset_index(drop=True), about, name)


def _caption(curve: Curve) -> str:
    size = curve.sizes[-1]
    edges = "1 edge" if size == 1 else f"{size} edges"
    against = "" if curve.p is None else f", p = {curve.p:.2g} against random"
    target = metric_words(curve.target)
    return f"{curve.part}, to {target}: {curve.last} with {edges}{against}"


@draws("faithfulness")
def _draw_faithfulness(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    parts = list(dict.fromkeys(frame["part"]))
    figure = sheet(look, 0.5 + 1.35 * len(parts), about)
    axes = np.atleast_1d(figure.subplots(len(parts), 1))
    for axis, part in zip(axes, parts, strict=True):
        _panel(axis, frame.loc[frame["part"] == part])
    legend_above(axes[0], 2)
    axes[-1].set_xlabel("edges, strongest first")
    figure.align_ylabels()
    return settle(figure)


def _panel(axis: Axes, rows: pd.DataFrame) -> None:
    mine = rows.loc[rows["what"] == "circuit"]
    sizes, value, low, high = (
        mine[name].to_numpy(float) for name in ("n_edges", "faithfulness", "low", "high")
    )
    label = "random circuits"
    for _, drawn in rows[rows["what"] != "circuit"].groupby("what", sort=False):
        axis.plot(
            drawn["n_edges"], drawn["faithfulness"], color=RANDOM, alpha=0.6, linewidth=0.5,
            marker="s", markersize=1.5, zorder=1, gid="random", label=label,
        )  # fmt: skip
        label = "_"
    for level, words in ((0, "no edge"), (1, "whole\nmodel")):
        axis.axhline(level, color=CHANCE, linewidth=0.7, linestyle=DASHES, zorder=0)
        axis.annotate(
            words, (1, level), xycoords=("axes fraction", "data"), xytext=(2, 0),
            textcoords="offset points", va="center", size=SMALL, color=GREY,
        )  # fmt: skip
    if len(sizes) == 1:
        axis.errorbar(
            sizes, value, yerr=[value - low, high - value], color=DATA, linewidth=0.9, capsize=2
        )
    axis.fill_between(sizes, low, high, color=DATA, alpha=0.2, linewidth=0, zorder=2, gid="band")
    axis.plot(sizes, value, color=DATA, marker="o", markersize=3, zorder=3, gid="circuit",
              label="the circuit")  # fmt: skip
    axis.set_xscale("log")
    axis.set_xlim(0.88, max(sizes[-1] * 1.12, 2.2))
    ticks_at(axis.xaxis, [tick for tick in _TICKS if tick <= max(sizes[-1], 2)])
    drawn = np.concatenate([low, high, rows.loc[:, "faithfulness"].to_numpy(float), [0.0, 1.0]])
    bottom, top = max(np.nanmin(drawn), 1 - _LIMIT), min(np.nanmax(drawn), _LIMIT)
    room = 0.06 * (top - bottom)
    axis.set_ylim(bottom - room, top + room)
    _beyond(axis, sizes, value, bottom, top)
    part = rows["part"].iloc[0]
    axis.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axis.set_ylabel(f"faithfulness\n({part})")


def _beyond(axis: Axes, sizes: np.ndarray, value: np.ndarray, bottom: float, top: float) -> None:
    """A triangle at the edge for each point that is outside, with its number."""
    for size, number in zip(sizes, value, strict=True):
        if bottom <= number <= top:
            continue
        up = number > top
        axis.plot([size], [top if up else bottom], marker="^" if up else "v", color=BLACK,
                  markersize=4, clip_on=False, zorder=5)  # fmt: skip
        axis.annotate(
            f"{number:.1f}", (size, top if up else bottom), xytext=(3, 0), size=SMALL - 1,
            textcoords="offset points", va="center",
        )  # fmt: skip
