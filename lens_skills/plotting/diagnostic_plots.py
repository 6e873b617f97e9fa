"""What selected neurons are: alike, enough of them to tell a label, or regulators of confidence."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from lens_skills.diagnostics import Memorisation, MinimalSet, Redundancy, Regulators, SparseProbe
from lens_skills.diagnostics.regulators import FAR, NEITHER, REGULATOR, SKILL, WORDS
from lens_skills.errors import LensSkillsError
from lens_skills.plotting.drawing import MANY, Drawing, draws
from lens_skills.plotting.label_placement import name_points
from lens_skills.plotting.style import (
    BLACK,
    CHANCE,
    CONTROL_TASK,
    DASHES,
    DATA,
    GREY,
    OTHERS,
    PALE,
    RANDOM,
    SMALL,
    About,
    Look,
    count,
    halo,
    inches,
    joined,
    legend_above,
    legend_from_edge,
    series,
    settle,
    sheet,
    source,
    spread,
    ticks_at,
)
from lens_skills.plotting.words import metric_words, place_words
from lens_skills.results import file_name

MOST = 120  # neurons beyond which their names are no longer read
_ROW = 0.135  # inches of a neuron
_DOTS = (180, 120)  # cells over the panel: dots of one cell cover one another
_OUTER = f"{100 * (1 - FAR):.0f} %"
_LOWEST = -8.0  # what is written into an exact null space has a variance of rounding
_KINDS = {SKILL: series(0), REGULATOR: series(1), NEITHER: (BLACK, "-", "x")}
_CLOUD, _BESIDE, _CORNER = "neuron", "of a hit's layer", "border"


def redundancy(redundancy: Redundancy) -> Drawing:
    """The average-linkage tree on 1 - |r| of the neurons, one row each, and where it is cut.

    Clusters of two or more stand on grey; the representative of each is in bold, and a neuron that
    goes against it carries a minus sign.

    Args:
        redundancy: From `lens_skills.diagnostics.redundancy`.

    Frame: one row per neuron from the top, as in ``redundancy.frame()``, with ``row``. The tree
    (SciPy's linkage) stands in ``about``.

    Raises:
        LensSkillsError: More than `MOST` neurons.
    """
    n = len(redundancy.neurons)
    if n > MOST:
        raise LensSkillsError(
            f"{n} neurons cannot be told apart in one tree. Draw up to {MOST}: the strongest, or "
            "the representatives."
        )
    order = [int(place) for place in _tree(redundancy.linkage.numpy())["leaves"]]
    frame = redundancy.frame().iloc[order].reset_index(drop=True)
    frame.insert(0, "row", range(n))
    noun = "cluster" if len(redundancy) == 1 else "clusters"
    about = {
        "title": f"{len(redundancy)} {noun} of {n} neurons",
        "lines": [
            place_words(redundancy.site, redundancy.position),
            joined(*source(redundancy.provenance), count(redundancy.n_examples)),
        ],
        "note": "Bold: the representative. Minus: against it. Dashed: where the tree is cut; on "
        "grey: a cluster. Alike on these examples, which does not prove that they do the same.",
        "linkage": redundancy.linkage,
        "threshold": redundancy.threshold,
    }
    return Drawing("redundancy", frame, about, name="redundancy")


def memorisation(memorisation: Memorisation, *, n_labels: int = 8) -> Drawing:
    """Entropy against mutual information of each neuron, beside random neurons and random sets.

    Neurons of few values that the set shares stand at the upper left, those of many values of
    their own at the lower right.

    Args:
        memorisation: From `lens_skills.diagnostics.memorisation`.
        n_labels: How many neurons to name, those that show a pattern by themselves first.

    Frame: one row per mark: ``what`` (neuron, random neuron, random set, the set), ``name``,
    ``entropy``, ``information``, ``kind`` (of a neuron: shortcut, example or "", by q <= 0.05).
    """
    neurons = memorisation.frame()
    neurons["kind"] = ""
    p = pd.Series(1.0, index=neurons.index)
    if len(memorisation.controls):
        p = neurons[[f"{kind}_p" for kind in ("shortcut", "example")]].min(axis=1)
        for kind in ("shortcut", "example"):
            neurons.loc[neurons[f"{kind}_q"] <= 0.05, "kind"] = kind
    neurons = neurons.iloc[p.argsort(kind="stable")].assign(what="neuron")
    sets = pd.DataFrame(
        {
            "what": "random set",
            "entropy": memorisation.random_entropy.numpy(),
            "information": memorisation.random_information.numpy(),
        }
    )
    whole = pd.DataFrame(
        {
            "what": ["the set"],
            "entropy": [memorisation.entropy],
            "information": [memorisation.information],
        }
    )
    parts = [neurons, memorisation.controls.assign(what="random neuron"), sets, whole]
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True)
    frame = frame.reindex(columns=["what", "name", "entropy", "information", "kind"])
    about = {
        "title": f"{len(neurons)} neurons: {memorisation.word}",
        "lines": [joined(*source(memorisation.provenance), count(memorisation.n_examples))],
        "note": "Upper left: few values, shared with the set; lower right: many, its own. A kind "
        "is told at q ≤ 0.05 among random neurons of the layer. No proof that anything is "
        "memorised.",
        "n_bins": memorisation.n_bins,
        "n_labels": n_labels,
    }
    return Drawing("memorisation", frame, about, name="memorisation")


_MEMORY = {
    "": (DATA, "o", "neuron of the set"),
    "shortcut": (series(0)[0], "^", "few values, shared"),
    "example": (series(1)[0], "s", "many values, its own"),
}


@draws("memorisation")
def _draw_memorisation(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    figure = sheet(look, 2.7, about)
    axis = figure.add_subplot()
    dot: dict[str, Any] = {"linestyle": "none", "clip_on": False}
    neurons = frame.loc[frame["what"] == "neuron"]
    for what, colour, marker, size in (
        ("random neuron", PALE, "o", 2.4),
        ("random set", RANDOM, "x", 4.0),
    ):
        rows = frame.loc[frame["what"] == what]
        if len(rows):
            axis.plot(rows["entropy"], rows["information"], color=colour, marker=marker,
                      markersize=size, label=what, **dot)  # fmt: skip
    for kind, (colour, marker, words) in _MEMORY.items():
        rows = neurons.loc[neurons["kind"].fillna("") == kind]
        if len(rows):
            axis.plot(rows["entropy"], rows["information"], color=colour, marker=marker,
                      markersize=3.6, label=f"{words} ({len(rows)})", zorder=3, **dot)  # fmt: skip
    whole = frame.loc[frame["what"] == "the set"]
    axis.plot(whole["entropy"], whole["information"], color=BLACK, marker="P", markersize=6,
              label="mean of the set", zorder=4, **dot)  # fmt: skip
    axis.set(xlabel=f"entropy (bits, {about['n_bins']} bins)", ylabel="mutual information (nats)")
    axis.margins(0.06)
    legend = legend_above(axis, left=-0.16, columnspacing=0.8, handlelength=1.2)
    settle(figure)
    legend_from_edge(axis, legend)
    shown = neurons.head(int(about["n_labels"]))
    name_points(
        axis,
        shown["name"].tolist(),
        shown[["entropy", "information"]].to_numpy(float),
        marks=frame[["entropy", "information"]].to_numpy(float),
        bars=np.zeros((0, 3)),
    )
    return figure


def _tree(linkage: np.ndarray) -> dict[str, Any]:
    # Imported here: SciPy's clustering takes a while to load.
    from scipy.cluster.hierarchy import dendrogram

    return dict(dendrogram(linkage, no_plot=True, color_threshold=0))


@draws("redundancy")
def _draw_tree(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    linkage, threshold, n = np.array(about["linkage"]), about["threshold"], len(frame)
    tree = _tree(linkage)
    figure = sheet(look, n * _ROW + 0.45, about)
    axis = figure.add_subplot()
    for x, y in zip(tree["icoord"], tree["dcoord"], strict=True):
        # A leaf is ten wide, the first in the middle of its ten.
        wide = 1.3 if max(y) <= threshold else 0.7
        axis.plot(y, np.array(x) / 10 - 0.5, color=DATA, linewidth=wide, solid_joinstyle="miter")
    axis.axvline(threshold, color=GREY, linewidth=0.7, linestyle=DASHES)
    _clusters(axis, frame, threshold)
    _names(axis, frame)
    top = max(threshold, float(linkage[:, 2].max()))
    axis.set(xlim=(1.04 * top, 0), ylim=(n - 0.5, -0.5), xlabel="1 − |r|, average linkage")
    axis.spines[["left"]].set_visible(False)
    return settle(figure)


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


def sparse_probe(probe: SparseProbe) -> Drawing:
    """Held-out balanced accuracy and description length of k-sparse probes, against k.

    Above: the best k neurons with their 95 % interval, k random neurons (mean; the thin lines are
    the smallest and largest of few draws, no interval), the control task's random labels, chance.
    Below: bits of the labels and bits to name the neurons; the ring is the shortest, which chooses
    k.

    Args:
        probe: From `lens_skills.diagnostics.sparse_probe`.

    Frame: as ``probe.frame()``, with ``chosen``.

    Does not show: that the model uses these neurons.
    """
    frame = probe.frame()
    frame["chosen"] = frame["k"] == probe.chosen
    size = f"{probe.n_train:,} to train, {probe.n_test:,} to test in {probe.n_groups:,} groups"
    about = {
        "title": f"{metric_words(probe.metric)} · {probe.word}",
        "lines": [
            f"{place_words(probe.site, probe.position)} · {probe.n_candidates:,} candidates, "
            f"{probe.order_from}",
            joined(*source(probe.provenance), size),
        ],
        "note": "Band: 95 % over groups; thin lines: range of few random draws. The k is chosen by "
        "the shortest description of the training labels, not by the held-out accuracy.",
    }
    return Drawing("sparse_probe", frame, about, name=file_name("sparse_probe", probe.metric))


@draws("sparse_probe")
def _draw_probe(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    figure = sheet(look, 3.1, about)
    accuracy, bits = figure.subplots(2, 1, sharex=True, height_ratios=[1.5, 1])
    _accuracy(accuracy, frame)
    _description(bits, frame)
    ks = [int(k) for k in frame["k"]]
    bits.set_xscale("symlog", base=2, linthresh=1, linscale=0.6)
    ticks_at(bits.xaxis, ks)
    bits.set(xlabel="neurons k", xlim=(-0.3, 1.15 * max(ks)))
    return settle(figure)


def _accuracy(axis: Axes, frame: pd.DataFrame) -> None:
    rows = frame.loc[frame["k"] > 0]
    k = rows["k"]
    axis.axhline(0.5, color=CHANCE, linewidth=0.8, linestyle=DASHES, label="chance")
    low, high = (rows[f"balanced_accuracy_{end}"] for end in ("low", "high"))
    axis.fill_between(k, low, high, color=DATA, alpha=0.2, linewidth=0)
    for column, words, colour, line, marker in (
        ("balanced_accuracy", "best k neurons", DATA, "-", "o"),
        ("random", "random neurons", RANDOM, (0, (5, 1.5)), "s"),
        ("control", "control task", CONTROL_TASK, (0, (5, 1.5, 1, 1.5)), "^"),
    ):
        axis.plot(k, rows[column], color=colour, linestyle=line, marker=marker, markersize=3.2,
                  label=words)  # fmt: skip
    axis.vlines(k, rows["random_low"], rows["random_high"], color=RANDOM, linewidth=0.8)
    ends = rows[["random_low", "control", "balanced_accuracy_low"]]
    least = min([0.5, *ends.min()])
    axis.set(ylabel="balanced accuracy", ylim=(least - 0.04, 1.04))
    legend_above(axis, handlelength=2.4)


def _description(axis: Axes, frame: pd.DataFrame) -> None:
    k = frame["k"].to_numpy()
    axis.plot(
        k, frame["description"], color=BLACK, marker="o", markersize=3, label="labels + neurons"
    )
    axis.plot(
        k, frame["bits"], color=GREY, linestyle=(0, (3, 1)), marker="D", markersize=2.2,
        label="labels",
    )  # fmt: skip
    best = frame.loc[frame["chosen"]]
    axis.scatter(
        best["k"], best["description"], s=52, facecolor="none", edgecolor=BLACK, clip_on=False
    )
    axis.set_ylabel("bits")
    axis.set_ylim(bottom=0, top=1.12 * float(frame.loc[:, "description"].max()))
    legend_above(axis, handlelength=2.4)


def confidence_regulation(regulators: Regulators, *, n_labels: int = 8) -> Drawing:
    """‖w_out‖ against the log variance over the vocabulary of cos(w_out, W), every neuron grey.

    Entropy neurons stand apart at the lower right of their layer: they write much, and evenly to
    all tokens. The corner of each hit's layer is drawn: beyond it lie, on either side, the outer
    5 % of that layer's neurons, which is what the flag asks for. Darker grey: neurons of the hits'
    layers. Colour and marker are the flag.

    Args:
        regulators: From `lens_skills.diagnostics.confidence_regulators`.
        n_labels: How many hits to name, as far as there is room.

    Frame: one row per dot: ``what`` (neuron, of a hit's layer, hit, border), ``layer``, ``name``
    (of hits), ``norm``, ``log_variance`` (of an exact null space it is drawn at -8), ``word``,
    ``n``: the neurons that the dot stands for. In a model of more than 2,000 neurons those whose
    dots would cover one another are one. A border holds the percentiles of one layer.
    """
    words = regulators.table["word"].value_counts().to_dict()
    about = {
        "title": "Writing much, and to no token in particular?",
        "lines": [
            joined(*source(regulators.provenance), f"hits on {metric_words(regulators.metric)}"),
            joined(f"{len(regulators.norms):,} neurons", regulators.folded),
        ],
        "note": f"Corners: beyond them, the outer {_OUTER} of a hit's layer by norm and by "
        "variance. The flag also asks for the null space "
        f"(k = {regulators.k}), the final norm's part of the effect, and "
        f"{regulators.n_controls} random neurons per layer, on the task and on neutral text.",
        "counts": {word: words[word] for word in WORDS if word in words},
        "n_labels": n_labels,
    }
    frame = regulator_dots(regulators)
    return Drawing("confidence_regulation", frame, about, name="confidence_regulation")


def regulator_dots(regulators: Regulators) -> pd.DataFrame:
    """The rows of `confidence_regulation`."""
    here = set(regulators.neurons[:, 0].tolist())
    cloud = pd.DataFrame(
        {
            "layer": regulators.layers.tolist(),
            "norm": regulators.norms.numpy(),
            "log_variance": np.maximum(regulators.log_variances.numpy(), _LOWEST),
        }
    )
    borders = cloud.loc[cloud["layer"].isin(sorted(here))].groupby("layer", as_index=False)
    borders = borders.agg(
        norm=("norm", lambda values: values.quantile(FAR)),
        log_variance=("log_variance", lambda values: values.quantile(1 - FAR)),
    )
    cloud["what"] = [_BESIDE if layer in here else _CLOUD for layer in cloud["layer"]]
    hits = regulators.frame().loc[:, ["layer", "name", "norm", "log_variance", "word"]]
    hits["log_variance"] = hits["log_variance"].clip(lower=_LOWEST)
    parts = [_thinned(cloud), borders.assign(what=_CORNER), hits.assign(what="hit", n=1)]
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True)
    frame = frame.reindex(columns=["what", "layer", "name", "norm", "log_variance", "word", "n"])
    return frame.loc[np.isfinite(frame["norm"]) & np.isfinite(frame["log_variance"])]


def _thinned(cloud: pd.DataFrame) -> pd.DataFrame:
    """One neuron of each cell that a dot covers, and how many there are."""
    if len(cloud) <= MANY:
        return cloud.assign(n=1)
    cells = ["what"]
    for name, values, steps in zip(
        ("across", "up"), (np.log(cloud["norm"]), cloud["log_variance"]), _DOTS, strict=True
    ):
        finite = values[np.isfinite(values)]
        step = (finite.max() - finite.min()) / steps or 1.0
        cloud = cloud.assign(**{name: ((values - finite.min()) / step).round()})
        cells.append(name)
    several = cloud.groupby(cells, sort=False)
    return several.head(1).assign(n=several["norm"].transform("size")).drop(columns=cells[1:])


@draws("confidence_regulation")
def _draw_regulators(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    figure = sheet(look, 2.6, about)
    axis = figure.add_subplot()
    for what, colour, size in ((_CLOUD, PALE, 1.2), (_BESIDE, OTHERS, 1.6)):
        rows = frame.loc[frame["what"] == what]
        axis.scatter(
            rows["norm"], rows["log_variance"], s=size, color=colour, linewidth=0, rasterized=True
        )
    hits = frame.loc[frame["what"] == "hit"]
    for word, (colour, _, marker) in _KINDS.items():
        rows = hits.loc[hits["word"] == word]
        axis.plot(
            rows["norm"], rows["log_variance"], linestyle="none", zorder=4, marker=marker,
            color=colour, markersize=5,
        )  # fmt: skip
    _axes(axis, frame)
    handles = [
        Line2D([], [], linestyle="none", marker=_KINDS[word][2], color=_KINDS[word][0],
               markersize=5, label=f"{word} ({n})")
        for word, n in about["counts"].items()
    ]  # fmt: skip
    corners = frame.loc[frame["what"] == _CORNER]
    for colour, words in ((OTHERS, "neurons beside them"), (PALE, "other layers")):
        dot: dict[str, Any] = {"marker": "o", "color": colour, "markersize": 2.5}
        handles.append(Line2D([], [], linestyle="none", label=words, **dot))
    if len(corners):
        line: dict[str, Any] = {"color": GREY, "linestyle": DASHES, "linewidth": 0.8}
        handles.append(Line2D([], [], label=f"outer {_OUTER} of a layer", **line))
    legend = legend_above(axis, left=-0.16, handles=handles, columnspacing=0.8, handlelength=1.4)
    settle(figure)
    legend_from_edge(axis, legend)
    _corners(axis, corners)
    shown = hits.head(int(about["n_labels"]))
    name_points(
        axis,
        shown["name"].tolist(),
        shown[["norm", "log_variance"]].to_numpy(float),
        marks=hits[["norm", "log_variance"]].to_numpy(float),
        bars=np.zeros((0, 3)),
    )
    return figure


def _corners(axis: Axes, corners: pd.DataFrame) -> None:
    """The lower right of each layer, with the layer's name at the right end."""
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    ink: dict[str, Any] = {"color": GREY, "linestyle": DASHES, "linewidth": 0.8, "zorder": 3}
    for norm, height in zip(corners["norm"], corners["log_variance"], strict=True):
        axis.plot([right, norm, norm], [height, height, bottom], **ink)
    axis.set(xlim=(left, right), ylim=(bottom, top))
    gap = (SMALL + 1) / 72 * (top - bottom) / inches(axis)[1]
    heights = spread(corners["log_variance"].tolist(), gap, bottom, top - gap)
    for layer, height in zip(corners["layer"], heights, strict=True):
        halo(
            axis.annotate(
                f"L{int(layer)}", (1, height), xycoords=("axes fraction", "data"), ha="right",
                xytext=(-1, 2), textcoords="offset points", size=SMALL, color=GREY, zorder=3,
            )
        )  # fmt: skip


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


def minimal_set(found: MinimalSet) -> Drawing:
    """Held-out accuracy against the number of neurons, and the minimal share of each layer.

    Above: k neurons ranked on the training split with their 95 % interval, k random representatives
    (mean; the thin lines are the smallest and largest draw), all neurons (dashed) and chance; the
    ring is the k that cross-validation chose. Below, where layers were asked: the k of each layer
    as a share of its neurons, with the interval of the choice; hollow where the layer's set is not
    beyond chance.

    Args:
        found: From `lens_skills.diagnostics.minimal_set`.

    Frame: one row per point: ``what`` (curve, layer), ``k``, ``layer``, ``accuracy``, ``low``,
    ``high``, ``random`` with ``_low`` and ``_high``, ``all``, ``chosen``, ``share`` with its ends.

    Does not show: that the model uses these neurons.
    """
    whole = found.frame()
    curve, layers = found.curve.copy(), whole.iloc[1:].copy()
    curve["what"], layers["what"] = "curve", "layer"
    curve["all"], curve["chosen"] = whole["all"].iloc[0], curve["k"] == found.k
    layers["layer"] = [int(name.removeprefix("layer ")) for name in layers["scope"]]
    layers["chosen"] = layers["low"] > found.chance
    columns = ["what", "k", "layer", "accuracy", "low", "high", "random", "random_low",
               "random_high", "all", "chosen", "share", "share_low", "share_high"]  # fmt: skip
    parts = [part.reindex(columns=columns) for part in (curve, layers) if len(part)]
    frame = pd.concat([part.dropna(axis=1, how="all") for part in parts], ignore_index=True)
    frame = frame.reindex(columns=columns)
    row = whole.iloc[0]
    size = f"{found.n_train:,} to train, {found.n_test:,} to test in {found.n_groups:,} groups"
    about = {
        "title": f"{metric_words(found.metric)} · k = {found.k:,} of {row['n_neurons']:,} neurons",
        "lines": [
            f"{place_words(found.site, found.position)} · ranked by "
            f"{found.method.replace('_', ' ')}, margin {found.margin:g}",
            joined(*source(found.provenance), size),
        ],
        "note": "Band: 95 % over groups; thin lines: range of the random draws. k is chosen by "
        "cross-validation on the training split (ring). Bars: how the choice varies over groups; "
        "hollow: not beyond chance.",
        "chance": found.chance,
    }
    return Drawing("minimal_set", frame, about, name=file_name("minimal_set", found.metric))


@draws("minimal_set")
def _draw_minimal(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    curve, layers = (frame.loc[frame["what"] == what] for what in ("curve", "layer"))
    figure = sheet(look, 4.2 if len(layers) else 2.6, about)
    axes = figure.subplots(2 if len(layers) else 1, 1, squeeze=False)[:, 0]
    _ranked_and_random(axes[0], curve, float(about["chance"]))
    if len(layers):
        _layer_shares(axes[1], layers)
    return settle(figure)


def _ranked_and_random(axis: Axes, rows: pd.DataFrame, chance: float) -> None:
    k = rows["k"].astype(float)
    axis.axhline(chance, color=CHANCE, linewidth=0.8, linestyle=DASHES, label="chance")
    axis.axhline(float(rows["all"].iloc[0]), color=GREY, linewidth=1.1, label="all")
    axis.fill_between(k, rows["low"], rows["high"], color=DATA, alpha=0.2, linewidth=0)
    axis.plot(k, rows["accuracy"], color=DATA, marker="o", markersize=3.2, label="ranked")
    axis.plot(k, rows["random"], color=RANDOM, linestyle=(0, (5, 1.5)), marker="s", markersize=3,
              label="random")  # fmt: skip
    axis.vlines(k, rows["random_low"], rows["random_high"], color=RANDOM, linewidth=0.8)
    best = rows.loc[rows["chosen"].astype(bool)]
    axis.scatter(best["k"].astype(float), best["accuracy"], s=52, facecolor="none",
                 edgecolor=BLACK, zorder=4, clip_on=False)  # fmt: skip
    axis.set_xscale("log", base=2)
    most = int(k.to_numpy().max())
    step = 3 if most > 256 else 2
    ticks_at(axis.xaxis, [2**power for power in range(0, most.bit_length(), step)])
    least = min(chance, float(rows[["random_low", "low"]].min().min()))
    axis.set(xlabel="neurons k", ylabel="balanced accuracy", ylim=(max(least - 0.05, 0), 1.04))
    legend_above(axis, handlelength=2.4)


def _layer_shares(axis: Axes, rows: pd.DataFrame) -> None:
    share, low, high = (100 * rows[f"share{end}"].astype(float) for end in ("", "_low", "_high"))
    layer = rows["layer"].astype(float)
    axis.vlines(layer, low, high, color=DATA, linewidth=1)
    told = rows["chosen"].astype(bool).to_numpy()
    for kept, face in ((told, DATA), (~told, "white")):
        axis.scatter(layer[kept], share[kept], s=16, facecolor=face, edgecolor=DATA, zorder=3)
    axis.set_yscale("log")
    least, most = float(np.nanmin(low)), float(np.nanmax(high))
    steps = [one * 10.0**power for power in range(-3, 3) for one in (1, 3)]
    inside = [step for step in steps if least / 2 <= step <= most * 2]
    ticks_at(axis.yaxis, inside, "{:g}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axis.set(xlabel="layer", ylabel="minimal share\nof the layer (%)")
