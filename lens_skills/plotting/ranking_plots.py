"""Methods side by side: whose neurons have an effect, and how much their rankings agree."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from lens_skills.errors import LensSkillsError
from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.style import (
    BLACK,
    DATA,
    GREY,
    OPPOSES,
    PALE,
    R_MAP,
    RANDOM,
    SIZE_MAP,
    SMALL,
    SUPPORTS,
    About,
    Look,
    count,
    joined,
    legend_above,
    legend_from_edge,
    minus,
    settle,
    sheet,
    source,
    widest,
)
from lens_skills.plotting.words import metric_words, place_words
from lens_skills.ranking.method_comparison import BASELINES, MethodComparison
from lens_skills.results import file_name

_ROW = 0.215  # inches of a method
_BESIDE = 4.9  # inches, below which the panels stand one under the other
_LEAST = 0.62  # inches the axis and the legend of the shares take
_METHODS = {
    "pearson": "Pearson r",
    "smd": "class means (SMD)",
    "f": "F statistic",
    "information": "mutual information",
    "auroc": "AUROC",
    "l1": "L1 probe",
    "probeless": "Probeless",
    "lape": "LAPE",
    "taylor": "Taylor (act. × grad.)",
    "cett": "CETT of own answers",
    "h_neurons": "H-neurons (L1 on CETT)",
    "integrated_gradients": "integrated gradients",
    "random": "random neurons",
}


def method_words(row: str) -> str:
    """What a row of methods is called in a figure.

    >>> method_words("pearson = f"), method_words("gradient")
    ('Pearson r = F statistic', 'gradient')
    """
    return " = ".join(_METHODS.get(name, name) for name in row.split(" = "))


def method_comparison(comparison: MethodComparison) -> Drawing:
    """Each method's share of neurons with a causal effect, and the agreement of every two methods.

    Left: of the k strongest neurons, the share whose removal lowers the metric (supports) and
    raises it (opposes), with the 95 % interval of both together over neurons and groups; the band
    is that of random neurons. Methods that rank alike are one row. Right, in hundredths: above the
    diagonal the rank correlation over all neurons, below it the overlap of the k strongest.

    Args:
        comparison: From `compare_methods`.

    Frame: one row per method, as in ``comparison.frame()``.
    """
    frame = comparison.frame()
    methods = [name for name in frame["method"] if name not in BASELINES]
    order = [comparison.methods.index(name) for name in methods]
    tried = count(comparison.n_examples, comparison.n_groups)
    causal, metric = metric_words(comparison.causal_metric), metric_words(comparison.metric)
    about = {
        "title": f"{metric}: whose neurons have an effect on {causal}?",
        "lines": [
            joined(
                place_words(comparison.site, comparison.position),
                *source(comparison.provenance),
                f"ranked on {comparison.n_explore:,} examples",
                f"tried on {tried}",
            ),
            comparison.do,
        ],
        "note": _note(comparison),
        "exploratory": comparison.exploratory,
        "k": comparison.k,
        "band": comparison["random"].interval,
        "methods": methods,
        "spearman": comparison.spearman.numpy()[np.ix_(order, order)],
        "jaccard": comparison.jaccard.numpy()[np.ix_(order, order)],
    }
    name = file_name("method_comparison", comparison.metric)
    return Drawing("method_comparison", frame, about, name)


def _note(comparison: MethodComparison) -> str:
    rule = comparison.rule().replace("<=", "≤")
    words = [f"{rule[0].upper()}{rule[1:]}. Lines: 95 % intervals of the share."]
    if comparison.left_out:
        left_out = ", ".join(map(method_words, comparison.left_out))
        words.append(f"Left out: {left_out}.")
    return " ".join(words)


@draws("method_comparison", width="page")
def _draw_method_comparison(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    names = [method_words(name) for name in frame["method"]]
    matrix = bool(about.get("spearman"))
    beside = look.width >= _BESIDE or not matrix
    tallest = widest(map(method_words, about["methods"])) if matrix else 0.0
    below = _ROW * sum(name in BASELINES for name in frame["method"])
    high = _ROW * len(names) + _LEAST
    if beside:
        figure = sheet(look, high + max(0.0, tallest - below - 0.3), about)
        if matrix:
            left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.0, 1.3])
        else:
            left = figure.add_subplot()
    else:
        under = _ROW * len(about["methods"]) + tallest + 0.55
        figure = sheet(look, high + under, about)
        left, right = figure.subplots(2, 1, height_ratios=[high, under])
    legend = _shares(left, frame, about)
    name_methods(left, names, frame["method"])
    if matrix:
        n_rows = len(names) if beside else len(about["methods"])
        _agreement(right, about, n_rows, " · " if look.width > 6 else "\n")
        right.tick_params(labelleft=not beside)
        if not beside:
            right.set_yticks(np.arange(len(about["methods"])), names[: len(about["methods"])])
    settle(figure)
    legend_from_edge(left, legend)
    return figure


def name_methods(axis: Axes, names: Sequence[str], methods: Iterable[str]) -> None:
    """The names of the rows, and a line above those that any method must beat."""
    axis.set_yticks(np.arange(len(names)), names)
    axis.set_ylim(len(names) - 0.45, -0.55)
    axis.tick_params(axis="y", length=0)
    first = next((k for k, name in enumerate(methods) if name in BASELINES), len(names))
    axis.axhline(first - 0.5, color=GREY, linewidth=0.5)


def _shares(axis: Axes, frame: pd.DataFrame, about: About) -> Legend:
    rows = np.arange(len(frame))
    tried = frame["n"].clip(lower=1)
    supports, opposes = frame["supports"] / tried, frame["opposes"] / tried
    axis.axvspan(*about["band"], color=PALE, linewidth=0, zorder=0, gid="random")
    axis.barh(rows, supports, height=0.62, color=SUPPORTS, label="supports", zorder=2)
    axis.barh(
        rows, opposes, left=supports, height=0.62, color=OPPOSES, label="opposes", zorder=2,
        hatch="////", edgecolor="white", linewidth=0,
    )  # fmt: skip
    _intervals(axis, frame, rows)
    for row, entry in enumerate(frame.to_dict("records")):
        axis.text(
            1.03, row, f"{entry['hits']} of {entry['n']}", transform=axis.get_yaxis_transform(),
            size=SMALL, va="center_baseline",
        )  # fmt: skip
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axis.set_xlabel(f"of the {about['k']} strongest with a causal effect")
    handles = [*axis.get_legend_handles_labels()[0], Patch(color=PALE, label="random neurons")]
    return legend_above(axis, 3, left=-0.03, handles=handles, columnspacing=0.8)


def _intervals(axis: Axes, frame: pd.DataFrame, rows: np.ndarray) -> None:
    ends = [frame["share"] - frame["low"], frame["high"] - frame["share"]]
    axis.errorbar(
        frame["share"], rows, xerr=np.clip(ends, 0, None), fmt="none", ecolor=BLACK,
        elinewidth=0.9, capsize=1.8, capthick=0.9, zorder=3,
    )  # fmt: skip


def _agreement(axis: Axes, about: About, n_rows: int, gap: str) -> None:
    """Two triangles, each with its own scale of colours, and their numbers in hundredths."""
    n = len(about["methods"])
    row, column = np.indices((n, n))
    parts = {
        "spearman": (column > row, R_MAP, -1.0),
        "jaccard": (column < row, SIZE_MAP, 0.0),
    }
    for name, (mine, colours, low) in parts.items():
        values = np.where(mine, np.array(about[name], dtype=float), np.nan)
        axis.pcolormesh(
            np.arange(n + 1) - 0.5, np.arange(n + 1) - 0.5, np.ma.masked_invalid(values),
            cmap=colours, vmin=low, vmax=1, edgecolors="white", linewidth=0.6, zorder=1, gid=name,
        )  # fmt: skip
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                _write(axis, i, j, value, colours((value - low) / (1 - low)))
    axis.set_xlim(-0.5, n - 0.5)
    axis.set_ylim(n_rows - 0.45, -0.55)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xticks(np.arange(n), list(map(method_words, about["methods"])), rotation=90)
    for label in axis.get_xticklabels():
        # The labels belong to the matrix, not to the rows below it.
        label.set_y(1 - n / n_rows)
    axis.set_title(
        f"× 100{gap}above: rank correlation{gap}below: overlap of the top {about['k']}",
        size=SMALL, loc="left", pad=4,
    )  # fmt: skip


def hundredths(value: float) -> str:
    """A share or a correlation in hundredths, with a true minus.

    >>> hundredths(0.786), hundredths(-0.001)
    ('79', '0')
    """
    return minus(f"{round(100 * value):d}")


def _write(axis: Axes, row: int, column: int, value: float, ground: Sequence[float]) -> None:
    """The number in black or white, whichever is read on this ground."""
    light = 0.299 * ground[0] + 0.587 * ground[1] + 0.114 * ground[2]
    axis.text(
        column, row, hundredths(value), size=SMALL - 0.5, ha="center", va="center_baseline",
        color=BLACK if light > 0.5 else "white", zorder=2,
    )  # fmt: skip


def leaderboard(
    board: pd.DataFrame, tasks: Mapping[str, str], *, k: int, note: str = ""
) -> Drawing:
    """Every method's share of causal neurons over several tasks, and its share on each of them.

    Left: the share with its 95 % interval; the band is that of random neurons. Right: per task, in
    per cent.

    Args:
        board: One row per method, best first, those to beat last (``"random"`` is one of them):
            method n hits share low high, and the share on each task.
        tasks: What each column of a task is called.
        k: How many neurons each method named on each task.
        note: What the interval is over.

    Frame: the board.

    Raises:
        LensSkillsError: A column is missing, or no row ``"random"``.
    """
    needed = ["method", "n", "hits", "share", "low", "high", *tasks]
    missing = [name for name in needed if name not in board]
    if missing or "random" not in list(board["method"]):
        what = f"no column {missing[0]!r}" if missing else "no row of method 'random'"
        raise LensSkillsError(f"{what} in this board. It needs: {', '.join(needed)}.")
    about = {
        "title": "Whose neurons have a causal effect?",
        "lines": [f"{len(tasks)} tasks, the {k} strongest neurons of each method on each"],
        "note": f"{note} Band: random neurons.".strip(),
        "tasks": dict(tasks),
    }
    return Drawing("leaderboard", board, about, "leaderboard")


@draws("leaderboard", width="page")
def _draw_leaderboard(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    names = [method_words(name) for name in frame["method"]]
    tasks: Mapping[str, str] = about["tasks"]
    tallest = widest(tasks.values())
    high = _ROW * len(names)
    beside = look.width >= _BESIDE
    if beside:
        figure = sheet(look, high + 0.25 + max(tallest, _LEAST - 0.2), about)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.5, 1])
    else:
        heights = [high + _LEAST - 0.2, high + 0.25 + tallest]
        figure = sheet(look, sum(heights), about)
        left, right = figure.subplots(2, 1, height_ratios=heights)
        name_methods(right, names, frame["method"])
    rows = np.arange(len(frame))
    random = frame[frame["method"] == "random"].iloc[0]
    left.axvspan(random["low"], random["high"], color=PALE, linewidth=0)
    colours = [RANDOM if name in BASELINES else DATA for name in frame["method"]]
    left.barh(rows, frame["share"], height=0.55, color=colours, alpha=0.65, zorder=2)
    _intervals(left, frame, rows)
    for row, entry in enumerate(frame.to_dict("records")):
        left.text(
            1.03, row, f"{entry['hits']} of {entry['n']}", size=SMALL, va="center_baseline",
            transform=left.get_yaxis_transform(),
        )  # fmt: skip
    left.set_xlim(0, max(0.1, np.ceil(10 * frame["high"].max()) / 10))
    left.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    left.set_xlabel(about.get("axis", "all tasks: neurons with a causal effect"))
    shares = frame[list(tasks)].to_numpy(float)
    n, ends = len(tasks), np.arange(len(names) + 1) - 0.5
    right.pcolormesh(
        np.arange(n + 1) - 0.5, ends, np.ma.masked_invalid(shares), cmap=SIZE_MAP, vmin=0, vmax=1,
        edgecolors="white", linewidth=0.6, zorder=1,
    )  # fmt: skip
    for (row, column), value in np.ndenumerate(shares):
        if np.isfinite(value):  # else the method could not rank there
            _write(right, row, column, value, SIZE_MAP(value))
    right.set_xticks(np.arange(n), list(tasks.values()), rotation=90)
    right.tick_params(length=0, labelleft=not beside)
    right.spines[:].set_visible(False)
    right.set_title(about.get("columns", "on each task, in %"), size=SMALL, loc="left", pad=4)
    name_methods(left, names, frame["method"])
    return settle(figure)
