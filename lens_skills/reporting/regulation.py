"""Where hits on confidence stand among all neurons: long writes that no token notices."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lens_skills.diagnosis import Regulators
from lens_skills.diagnosis.flags import NEITHER, REGULATOR, SKILL, WORDS
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.naming import name_points
from lens_skills.reporting.style import (
    BLACK,
    BLUE,
    COLUMN,
    VERMILION,
    settle,
    sheet,
    style,
)
from lens_skills.reporting.verdicts import Look

_CLOUD, _LAYER = "#B5B5B5", "#7A7A7A"
_LOOKS = {SKILL: Look(BLUE, "o"), REGULATOR: Look(VERMILION, "s"), NEITHER: Look(BLACK, "x")}
_LOWEST = -8.0  # what is written into an exact null space has a variance of rounding


@style()
def confidence_regulation(
    found: Regulators, *, n_labels: int = 8, width: float = COLUMN
) -> Drawing:
    """‖w_out‖ against the log variance over the vocabulary of cos(w_out, W), every neuron grey.

    Entropy neurons stand apart at the lower right of their layer: they write much, and evenly to
    all tokens. Darker grey: neurons of the hits' layers. Colour and marker are the flag.

    Args:
        found: From `lens_skills.diagnosis.regulators`.
        n_labels: How many hits to name, as far as there is room.
        width: Inches.

    Frame: one row per neuron: ``what`` (neuron, neuron of a hit's layer, hit), ``layer``,
    ``name`` (of hits), ``norm``, ``log_variance`` (of an exact null space it is drawn at -8),
    ``word``.
    """
    frame = _frame(found)
    about = found.provenance
    figure = sheet(
        width,
        2.6,
        title="Writing much, and to no token in particular?",
        lines=[
            f"{about.get('model', '')} · {len(found.norms):,} neurons · hits on {found.metric}",
            found.folded,
        ],
        note=f"The flag also asks for the null space (k = {found.k}), the final norm's part "
        f"of the effect, and {found.n_controls} random neurons per layer, on the task and on "
        "neutral text.",
    )
    axis = figure.add_subplot()
    for what, colour, size in (("neuron", _CLOUD, 1.2), ("of a hit's layer", _LAYER, 1.6)):
        rows = frame.loc[frame["what"] == what]
        axis.scatter(
            rows["norm"], rows["log_variance"], s=size, color=colour, linewidth=0, rasterized=True
        )
    hits = frame.loc[frame["what"] == "hit"]
    for word in WORDS:
        rows = hits.loc[hits["word"] == word]
        axis.plot(
            rows["norm"], rows["log_variance"], linestyle="none", zorder=4, **_LOOKS[word].mark(5)
        )
    _axes(axis, frame)
    counts = pd.Series(hits["word"]).value_counts()
    handles = [_LOOKS[w].line(f"{w} ({counts[w]})") for w in WORDS if w in counts]
    for colour, words in ((_LAYER, "neurons beside them"), (_CLOUD, "other layers")):
        look = {"marker": ".", "color": colour, "markersize": 4}
        handles.append(Line2D([], [], linestyle="none", label=words, **look))
    legend = axis.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.16, 1.0), ncols=2,
        borderaxespad=0.1, labelspacing=0.2, columnspacing=0.8, handlelength=1.0,
    )  # fmt: skip
    settle(figure)
    # From the left edge of the figure, so that long entries have its whole width.
    place = axis.get_position()
    legend.set_bbox_to_anchor((-place.x0 / place.width, 1.0), transform=axis.transAxes)
    shown = hits.head(n_labels)
    name_points(
        axis,
        shown["name"].tolist(),
        shown[["norm", "log_variance"]].to_numpy(float),
        marks=hits[["norm", "log_variance"]].to_numpy(float),
        bars=np.zeros((0, 3)),
    )
    return Drawing(figure, frame, "confidence_regulation")


def _frame(found: Regulators) -> pd.DataFrame:
    here = set(found.neurons[:, 0].tolist())
    layers = found.layers.tolist()
    cloud = pd.DataFrame(
        {
            "what": ["of a hit's layer" if layer in here else "neuron" for layer in layers],
            "layer": layers,
            "name": "",
            "norm": found.norms.numpy(),
            "log_variance": found.log_variances.numpy(),
            "word": "",
        }
    )
    hits = found.frame().loc[:, ["layer", "name", "norm", "log_variance", "word"]]
    hits.insert(0, "what", "hit")
    frame = pd.concat([cloud, hits], ignore_index=True)
    frame["log_variance"] = np.maximum(frame["log_variance"], _LOWEST)
    return frame.loc[np.isfinite(frame["norm"]) & np.isfinite(frame["log_variance"])]


def _axes(axis: Axes, frame: pd.DataFrame) -> None:
    axis.set(xlabel="‖w_out‖", ylabel="variance of cos(w_out, W)")
    axis.set_xscale("log")
    low, high = frame["norm"].min(), frame["norm"].max()
    axis.xaxis.set_major_locator(FixedLocator(_ticks(low, high)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(low / 1.08, high * 1.08)
    # The numbers are logarithms already; the ticks say what they are logarithms of.
    low, high = 10 ** frame["log_variance"].min(), 10 ** frame["log_variance"].max()
    axis.yaxis.set_major_locator(FixedLocator([math.log10(value) for value in _ticks(low, high)]))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{10**value:.2g}"))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between the ends: the closest set of which there are not too many."""
    inside: list[float] = []
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1,)):
        steps = [digit * 10.0**power for power in range(-9, 5) for digit in digits]
        inside = [step for step in steps if low / 1.05 <= step <= high * 1.05]
        if len(inside) <= 7:
            break
    return inside
