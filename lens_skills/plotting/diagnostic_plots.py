"""What selected neurons are: alike, enough of them to tell a label, or regulators of confidence."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter

from lens_skills.diagnostics import Redundancy, Regulators, SparseProbe
from lens_skills.diagnostics.regulators import NEITHER, REGULATOR, SKILL, WORDS
from lens_skills.errors import LensSkillsError
from lens_skills.plotting.drawing import Drawing, finished
from lens_skills.plotting.intervention_plots import VerdictStyle
from lens_skills.plotting.label_placement import name_points
from lens_skills.plotting.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    VERMILION,
    count,
    joined,
    legend_above,
    legend_from_edge,
    settle,
    sheet,
    source,
    style,
    ticks_at,
)

MOST = 120  # neurons beyond which their names are no longer read
_ROW = 0.135  # inches of a neuron
_CONTROL = (0, (5, 1.5, 1, 1.5))
_CLOUD, _LAYER = "#B5B5B5", "#7A7A7A"
_LOWEST = -8.0  # what is written into an exact null space has a variance of rounding
_LOOKS = {
    SKILL: VerdictStyle(BLUE, "o"),
    REGULATOR: VerdictStyle(VERMILION, "s"),
    NEITHER: VerdictStyle(BLACK, "x"),
}


@style()
def redundancy(redundancy: Redundancy, *, width: float = COLUMN) -> Drawing:
    """The average-linkage tree on 1 - |r| of the neurons, one row each, and where it is cut.

    Clusters of two or more stand on grey; the representative of each is in bold, and a neuron that
    goes against it carries a minus sign.

    Args:
        redundancy: From `lens_skills.diagnostics.redundancy`.
        width: Inches.

    Frame: one row per neuron from the top, as in ``redundancy.frame()``, with ``row``.

    Raises:
        LensSkillsError: More than `MOST` neurons.
    """
    # Imported here: SciPy's clustering takes a while to load.
    from scipy.cluster.hierarchy import dendrogram

    n = len(redundancy.neurons)
    if n > MOST:
        raise LensSkillsError(
            f"{n} neurons cannot be told apart in one tree. Draw up to {MOST}: the strongest, or "
            "the representatives."
        )
    drawn = dendrogram(redundancy.linkage.numpy(), no_plot=True, color_threshold=0)
    order = [int(place) for place in drawn["leaves"]]
    frame = redundancy.frame().iloc[order].reset_index(drop=True)
    frame.insert(0, "row", range(n))
    noun = "cluster" if len(redundancy) == 1 else "clusters"
    figure = sheet(
        width,
        n * _ROW + 0.45,
        title=f"{len(redundancy)} {noun} of {n} neurons",
        lines=[
            f"{redundancy.site} at {redundancy.position}",
            joined(*source(redundancy.provenance), count(redundancy.n_examples)),
        ],
        note="Bold: the representative. Minus: against it. Dashed: where the tree is cut. Alike on "
        "these examples, which does not prove that they do the same.",
    )
    axis = figure.add_subplot()
    for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        inside = max(y) <= redundancy.threshold
        # A leaf is ten wide, the first in the middle of its ten.
        axis.plot(
            y, np.array(x) / 10 - 0.5, color=BLUE if inside else BLACK, linewidth=1.1 if inside
            else 0.8, solid_joinstyle="miter",
        )  # fmt: skip
    axis.axvline(redundancy.threshold, color=GREY, linewidth=0.7, linestyle=(0, (3, 2)))
    _clusters(axis, frame, redundancy.threshold)
    _names(axis, frame)
    top = max(redundancy.threshold, float(redundancy.linkage[:, 2].max()))
    axis.set(xlim=(1.04 * top, 0), ylim=(n - 0.5, -0.5), xlabel="1 − |r|, average linkage")
    axis.spines[["left"]].set_visible(False)
    return finished(figure, frame, "redundancy")


def _clusters(axis: Axes, frame: pd.DataFrame, wide: float) -> None:
    """A grey ground under every cluster of two or more."""
    for _, rows in frame.groupby("cluster"):
        if len(rows) > 1:
            corner, high = (0, int(rows.loc[:, "row"].min()) - 0.42), len(rows) - 0.16
            axis.add_patch(Rectangle(corner, wide, high, facecolor=PALE, linewidth=0, zorder=0))


def _names(axis: Axes, frame: pd.DataFrame) -> None:
    texts = [
        f"{'−' if sign < 0 else ''}{name}"
        for name, sign in zip(frame["name"], frame["sign"], strict=True)
    ]
    axis.yaxis.tick_right()
    axis.set_yticks(frame["row"], texts)
    axis.tick_params(axis="y", length=0)
    for label, row in zip(axis.get_yticklabels(), frame.to_dict("records"), strict=True):
        if row["name"] == row["representative"]:
            label.set_fontweight("bold")
        if row["sign"] < 0:
            label.set_color(VERMILION)


@style()
def sparse_probe(probe: SparseProbe, *, width: float = COLUMN) -> Drawing:
    """Held-out balanced accuracy and description length of k-sparse probes, against k.

    Above: the best k neurons with their 95 % interval, k random neurons (mean; the thin lines are
    the smallest and largest of few draws, no interval), the control task's random labels, chance.
    Below: bits of the labels and bits to name the neurons; the ring is the shortest, which chooses
    k.

    Args:
        probe: From `lens_skills.diagnostics.sparse_probe`.
        width: Inches.

    Frame: as ``probe.frame()``, with ``chosen``.

    Does not show: that the model uses these neurons.
    """
    frame = probe.frame()
    frame["chosen"] = frame["k"] == probe.chosen
    size = f"{probe.n_train:,} to train, {probe.n_test:,} to test in {probe.n_groups:,} groups"
    figure = sheet(
        width,
        3.1,
        title=f"{probe.metric} · {probe.word}",
        lines=[
            f"{probe.site} at {probe.position} · {probe.n_candidates:,} candidates, "
            f"{probe.order_from}",
            joined(*source(probe.provenance), size),
        ],
        note="Band: 95 % over groups; thin lines: range of few random draws. The k is chosen by "
        "the shortest description of the training labels, not by the held-out accuracy.",
    )
    accuracy, bits = figure.subplots(2, 1, sharex=True, height_ratios=[1.5, 1])
    _accuracy(accuracy, frame)
    _description(bits, frame)
    ks = [int(k) for k in frame["k"]]
    bits.set_xscale("symlog", base=2, linthresh=1, linscale=0.6)
    ticks_at(bits.xaxis, ks)
    bits.set(xlabel="neurons k", xlim=(-0.3, 1.15 * max(ks)))
    return finished(figure, frame, "sparse_probe", probe.metric)


def _accuracy(axis: Axes, frame: pd.DataFrame) -> None:
    rows = frame.loc[frame["k"] > 0]
    k = rows["k"]
    axis.axhline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (1, 1)), label="chance")
    low, high = (rows[f"balanced_accuracy_{end}"] for end in ("low", "high"))
    axis.fill_between(k, low, high, color=BLUE, alpha=0.2, linewidth=0)
    axis.plot(
        k, rows["balanced_accuracy"], color=BLUE, marker="o", markersize=3.5, label="best k neurons"
    )
    axis.plot(
        k, rows["random"], color=ORANGE, marker="s", markersize=3, label="random neurons",
        linestyle=(0, (5, 1.5)),
    )  # fmt: skip
    axis.vlines(k, rows["random_low"], rows["random_high"], color=ORANGE, linewidth=0.8)
    axis.plot(
        k, rows["control"], color=GREEN, marker="^", markersize=3, label="control task",
        linestyle=_CONTROL,
    )  # fmt: skip
    least = min([0.5, *rows[["random_low", "control", "balanced_accuracy_low"]].min()])
    axis.set(ylabel="balanced accuracy", ylim=(least - 0.04, 1.04))
    legend_above(axis, handlelength=2.4)


def _description(axis: Axes, frame: pd.DataFrame) -> None:
    k = frame["k"].to_numpy()
    axis.plot(
        k, frame["description"], color=BLACK, marker="o", markersize=3, label="labels + neurons"
    )
    axis.plot(
        k, frame["bits"], color=GREY, linestyle=(0, (3, 1)), marker="s", markersize=2.5,
        label="labels",
    )  # fmt: skip
    best = frame.loc[frame["chosen"]]
    axis.scatter(
        best["k"], best["description"], s=52, facecolor="none", edgecolor=BLACK, clip_on=False
    )
    axis.set_ylabel("bits")
    axis.set_ylim(bottom=0, top=1.12 * float(frame.loc[:, "description"].max()))
    legend_above(axis, handlelength=2.4)


@style()
def confidence_regulation(
    regulators: Regulators, *, n_labels: int = 8, width: float = COLUMN
) -> Drawing:
    """‖w_out‖ against the log variance over the vocabulary of cos(w_out, W), every neuron grey.

    Entropy neurons stand apart at the lower right of their layer: they write much, and evenly to
    all tokens. Darker grey: neurons of the hits' layers. Colour and marker are the flag.

    Args:
        regulators: From `lens_skills.diagnostics.confidence_regulators`.
        n_labels: How many hits to name, as far as there is room.
        width: Inches.

    Frame: one row per neuron: ``what`` (neuron, neuron of a hit's layer, hit), ``layer``,
    ``name`` (of hits), ``norm``, ``log_variance`` (of an exact null space it is drawn at -8),
    ``word``.
    """
    frame = _regulator_points(regulators)
    model = regulators.provenance.get("model")
    figure = sheet(
        width,
        2.6,
        title="Writing much, and to no token in particular?",
        lines=[
            joined(model, f"{len(regulators.norms):,} neurons", f"hits on {regulators.metric}"),
            regulators.folded,
        ],
        note=f"The flag also asks for the null space (k = {regulators.k}), the final norm's "
        f"part of the effect, and {regulators.n_controls} random neurons per layer, on the task "
        "and on neutral text.",
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
    legend = legend_above(axis, left=-0.16, handles=handles, columnspacing=0.8, handlelength=1.0)
    settle(figure)
    legend_from_edge(axis, legend)
    shown = hits.head(n_labels)
    name_points(
        axis,
        shown["name"].tolist(),
        shown[["norm", "log_variance"]].to_numpy(float),
        marks=hits[["norm", "log_variance"]].to_numpy(float),
        bars=np.zeros((0, 3)),
    )
    return finished(figure, frame, "confidence_regulation")


def _regulator_points(regulators: Regulators) -> pd.DataFrame:
    here = set(regulators.neurons[:, 0].tolist())
    layers = regulators.layers.tolist()
    cloud = pd.DataFrame(
        {
            "what": ["of a hit's layer" if layer in here else "neuron" for layer in layers],
            "layer": layers,
            "name": "",
            "norm": regulators.norms.numpy(),
            "log_variance": regulators.log_variances.numpy(),
            "word": "",
        }
    )
    hits = regulators.frame().loc[:, ["layer", "name", "norm", "log_variance", "word"]]
    hits.insert(0, "what", "hit")
    frame = pd.concat([cloud, hits], ignore_index=True)
    frame["log_variance"] = np.maximum(frame["log_variance"], _LOWEST)
    return frame.loc[np.isfinite(frame["norm"]) & np.isfinite(frame["log_variance"])]


def _axes(axis: Axes, frame: pd.DataFrame) -> None:
    axis.set(xlabel="‖w_out‖", ylabel="variance of cos(w_out, W)")
    axis.set_xscale("log")
    norm, log_variance = frame.loc[:, "norm"], frame.loc[:, "log_variance"]
    low, high = norm.min(), norm.max()
    ticks_at(axis.xaxis, _ticks(low, high), "{:g}")
    axis.set_xlim(low / 1.08, high * 1.08)
    # The numbers are logarithms already; the ticks say what they are logarithms of.
    low, high = 10 ** log_variance.min(), 10 ** log_variance.max()
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
