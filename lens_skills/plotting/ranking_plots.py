"""Methods side by side: whose neurons have an effect, and how much their rankings agree."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lens_skills.plotting.drawing import Drawing, finished
from lens_skills.plotting.heat_map import colour_bar
from lens_skills.plotting.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREY,
    ORANGE,
    PALE,
    SMALL,
    count,
    joined,
    legend_above,
    sheet,
    signed,
    style,
    widest,
)
from lens_skills.ranking.method_comparison import BASELINES, MethodComparison

_ROW = 0.235  # inches of a method


@style()
def method_comparison(comparison: MethodComparison, *, width: float = 2 * COLUMN) -> Drawing:
    """Each method's share of neurons with a causal effect, and the agreement of every two methods.

    Left: of the k strongest neurons, the share whose removal lowers the metric (supports) and
    raises it (opposes), with the 95 % interval of both together over neurons and groups; the band
    is that of random neurons. Methods that rank alike are one row. Right: above the diagonal the
    rank correlation over all neurons, below it the overlap of the k strongest.

    Args:
        comparison: From `compare_methods`.
        width: Inches.

    Frame: one row per method, as in ``comparison.frame()``.
    """
    frame = comparison.frame()
    names = frame["method"].tolist()
    methods = [name for name in names if name not in BASELINES]
    below = _ROW * (len(names) - len(methods))
    tried = count(comparison.n_examples, comparison.n_groups)
    figure = sheet(
        width,
        _ROW * len(names) + max(widest(methods) - below, 0) + 0.75,
        title=f"{comparison.metric}: whose neurons have an effect on {comparison.causal_metric}?",
        lines=[
            joined(
                comparison.provenance.get("model"),
                f"{comparison.site} at {comparison.position}",
                f"ranked on {comparison.n_explore:,} examples",
                f"tried on {tried}",
            ),
            comparison.do,
        ],
        note=_note(comparison),
        exploratory=comparison.exploratory,
    )
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.0, 1.25])
    _shares(left, frame, comparison)
    _agreement(right, comparison, methods)
    left.set_yticks(np.arange(len(names)), names)
    left.set_ylim(len(names) - 0.45, -0.55)
    left.tick_params(axis="y", length=0)
    return finished(figure, frame, "method_comparison", comparison.metric)


def _note(comparison: MethodComparison) -> str:
    rule = comparison.rule()
    words = [f"{rule[0].upper()}{rule[1:]}. Band: random neurons."]
    if comparison.left_out:
        words.append(f"Left out: {', '.join(comparison.left_out)}.")
    return " ".join(words)


def _shares(axis: Axes, frame: pd.DataFrame, comparison: MethodComparison) -> None:
    rows = np.arange(len(frame))
    tried = frame["n"].clip(lower=1)
    supports, opposes = frame["supports"] / tried, frame["opposes"] / tried
    random = comparison["random"].interval
    axis.axvspan(*random, color=PALE, linewidth=0, zorder=0, gid="random")
    axis.barh(rows, supports, height=0.62, color=BLUE, label="supports", zorder=2)
    axis.barh(
        rows, opposes, left=supports, height=0.62, color=ORANGE, label="opposes", zorder=2,
        hatch="////", edgecolor="white", linewidth=0,
    )  # fmt: skip
    ends = [frame["share"] - frame["low"], frame["high"] - frame["share"]]
    axis.errorbar(
        frame["share"], rows, xerr=np.clip(ends, 0, None), fmt="none", ecolor=BLACK,
        elinewidth=0.9, capsize=1.8, capthick=0.9, zorder=3,
    )  # fmt: skip
    for row, entry in enumerate(frame.to_dict("records")):
        axis.text(
            1.03, row, f"{entry['hits']} of {entry['n']}", transform=axis.get_yaxis_transform(),
            size=SMALL, va="center_baseline",
        )  # fmt: skip
    first = next((k for k, name in enumerate(frame["method"]) if name in BASELINES), len(frame))
    axis.axhline(first - 0.5, color=GREY, linewidth=0.5)
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axis.set_xlabel(f"of the {comparison.k} strongest with a causal effect")
    legend_above(axis, left=-0.03)


def _agreement(axis: Axes, comparison: MethodComparison, methods: list[str]) -> None:
    order = [comparison.methods.index(name) for name in methods]
    n = len(order)
    ranks = comparison.spearman.numpy()[np.ix_(order, order)]
    overlap = comparison.jaccard.numpy()[np.ix_(order, order)]
    row, column = np.indices((n, n))
    shown = np.where(column > row, ranks, overlap)
    shown[np.arange(n), np.arange(n)] = np.nan
    image = axis.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", zorder=1)
    for (i, j), value in np.ndenumerate(shown):
        if np.isfinite(value):
            axis.text(
                j, i, signed(value, plus=False), size=SMALL - 1.8, ha="center",
                va="center_baseline", color="white" if abs(value) > 0.62 else BLACK, zorder=2,
            )  # fmt: skip
    axis.set_xticks(np.arange(n), methods, rotation=90)
    axis.set_xlim(-0.5, n - 0.5)
    axis.tick_params(length=0, labelleft=False)
    axis.spines[:].set_visible(False)
    # The labels belong to the matrix, not to the rows below it.
    axis.xaxis.set_ticks_position("none")
    for label in axis.get_xticklabels():
        label.set_y(1 - n / len(comparison.rows))
    axis.set_title(
        f"above: rank correlation · below: overlap of top {comparison.k}",
        size=SMALL,
        loc="left",
        pad=4,
    )
    figure = axis.get_figure()
    assert isinstance(figure, Figure)
    colour_bar(figure, image, axis, aspect=28, pad=0.02, ticks=[-1, 0, 1])
