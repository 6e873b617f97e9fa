"""How neurons go with a metric: r against its nulls, by layer and position, and what is left.

Every figure of one metric's scores.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lens_skills.plotting.drawing import Drawing, bin_rows, draws
from lens_skills.plotting.heat_map import HATCHED, colour_bar, heat_map, mark_cell, round_limit
from lens_skills.plotting.style import (
    BLACK,
    COUNT_FLOOR,
    DATA,
    EVIDENCE,
    GREY,
    LATE_LAYERS,
    OTHERS,
    PALE,
    RANDOM,
    RANDOM_DIRECTIONS,
    SIZE_MAP,
    SMALL,
    THRESHOLD,
    About,
    Look,
    caption,
    correlation,
    count_axis,
    halo,
    inches,
    legend_above,
    places,
    settle,
    sheet,
    spread,
    text_width,
    widest,
)
from lens_skills.plotting.words import metric_words, position_words
from lens_skills.results import file_name
from lens_skills.scoring import MetricScores, Scores
from lens_skills.scoring.scores import one_metric

_LINE = 0.125  # inches of a label
_LETTERS = 14  # of a position's name


def r_distribution(
    scores: MetricScores | Scores, *, position: str | None = None, n_labels: int = 3
) -> Drawing:
    """Histogram of r over all neurons (counts on a log axis), with what chance makes of it.

    Grey band: |r| within the family-wise 5 % permutation threshold. Outline: the r of random
    directions of the same layers, their activations standardised (mean over rotations). The
    strongest neurons carry their names.

    Args:
        scores: Of one metric: ``scores["name"]``.
        position: Only this one; by default all positions are pooled, as they are one family.
        n_labels: How many of the strongest neurons to name.

    Frame: ``what`` (neurons, random directions, threshold, neuron), name, position; for a bin
    its ends ``low`` and ``high`` and its count as ``value``; for a threshold ±``value`` drawn at
    low and high; for a neuron its r as ``value``.

    Raises:
        LensSkillsError: Scores of several metrics, or no such position.

    Does not show: that a neuron beyond a line matters to the model.
    """
    scores = one_metric(scores)
    whole, metric = scores.scores, scores.metric
    chosen = places(whole, position)
    r = scores.r[chosen][:, ~whole.excluded].numpy()
    turned = _rotated(scores, chosen)
    bar = scores.threshold
    most = max(np.abs(r).max(initial=0.05), bar or 0)
    if turned is not None:
        most = max(most, np.abs(turned).max(initial=0))
    tenths = min(10, math.ceil(most * 10 + 0.2))
    limit, step = tenths / 10, 0.02 if tenths > 5 else 0.01
    edges = np.linspace(-limit, limit, round(2 * limit / step) + 1)
    rows = bin_rows("neurons", edges, np.histogram(r, edges)[0])
    if turned is not None:
        mean = np.histogram(turned, edges)[0] / len(turned)
        rows += bin_rows(RANDOM_DIRECTIONS, edges, mean)
    if bar is not None:
        ends = {"low": -bar, "high": bar, "value": bar}
        rows.append({"what": "threshold", "name": "permutation", **ends})
    rows += _strongest(scores, chosen, n_labels)
    frame = pd.DataFrame(rows, columns=["what", "name", "position", "low", "high", "value"])
    about = {
        "title": f"{r.size:,} correlations with {metric_words(metric)}",
        "lines": caption(whole, position),
        "note": "" if bar is not None else "No null was drawn: a description, not a test.",
        "exploratory": whole.exploratory,
        "x": f"{correlation(whole)} with {metric_words(metric)}",
        "step": step,
        "positions": len(chosen),
    }
    return Drawing("r_distribution", frame, about, file_name("r_distribution", metric))


@draws("r_distribution")
def _draw_r_distribution(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    figure = sheet(look, 2.15, about)
    axis = figure.add_subplot()
    counted = frame.loc[frame["what"] == "neurons"]
    edges = [*counted["low"], *counted["high"].iloc[-1:]]
    _histograms(axis, frame, edges)
    axis.set(xlim=(edges[0], edges[-1]), xlabel=about["x"])
    axis.set_ylabel(f"neurons per {about['step']} of r")
    settle(figure)  # labels are placed in inches from here on
    for bar in frame.loc[frame["what"] == "threshold", "value"]:
        _threshold(axis, bar)
    _names(axis, frame, with_position=about["positions"] > 1)
    return figure


def _rotated(scores: MetricScores, chosen: list[int]) -> Float[np.ndarray, "rotation flat"] | None:
    turned = scores.scores.rotated_r.get(scores.metric)
    if turned is None:
        return None
    # Flat over positions, then units, as the pass lays them out.
    by_position = turned.reshape(len(turned), len(scores.scores.positions), -1)
    return by_position[:, chosen].reshape(len(turned), -1).numpy()


def _strongest(scores: MetricScores, chosen: list[int], n: int) -> list[dict[str, object]]:
    whole = scores.scores
    r = scores.r[chosen].masked_fill(whole.excluded, 0)
    best = r.abs().max(dim=0)
    order = best.values.argsort(descending=True, stable=True)[:n]
    order = order[~whole.excluded[order]]
    names = whole.components(order).names
    rows = []
    for name, unit in zip(names, order.tolist(), strict=True):
        place = int(best.indices[unit])
        rows.append(
            {
                "what": "neuron",
                "name": name,
                "position": whole.positions[chosen[place]],
                "value": float(r[place, unit]),
            }
        )
    return rows


def _histograms(axis: Axes, frame: pd.DataFrame, edges: Sequence[float]) -> None:
    tallest = 1.0
    looks = {
        "neurons": {"fill": True, "color": DATA, "alpha": 0.75, "label": "neurons"},
        RANDOM_DIRECTIONS: {"color": RANDOM, "linewidth": 0.9, "label": RANDOM_DIRECTIONS},
    }
    for what, look in looks.items():
        counts = frame.loc[frame["what"] == what, "value"].to_numpy(float)
        if len(counts):
            tallest = max(tallest, counts.max())
            axis.stairs(np.maximum(counts, COUNT_FLOOR), edges, baseline=COUNT_FLOOR, **look)
    count_axis(axis, "y", tallest)
    # The upper third is left to the labels.
    axis.set_ylim(COUNT_FLOOR, COUNT_FLOOR * (1.5 * tallest / COUNT_FLOOR) ** (1 / 0.68))
    axis.legend(loc="upper left")


def _threshold(axis: Axes, bar: float) -> None:
    """Lines at ±bar; the right one ends below its label."""
    wide, high = inches(axis)
    free = _free(axis) / high
    colour, dashes, words = THRESHOLD
    axis.axvspan(-bar, bar, ymax=free, color=PALE, zorder=0, linewidth=0)
    for side in (-bar, bar):
        axis.axvline(side, ymax=free, color=colour, linestyle=dashes, linewidth=0.9)
    label = axis.text(
        bar, free + 0.01, f"{words}: {bar:.2f}", transform=axis.get_xaxis_transform(),
        color=colour, size=SMALL, ha="left", va="bottom",
    )  # fmt: skip
    per_inch = (axis.get_xlim()[1] - axis.get_xlim()[0]) / wide
    room = axis.get_xlim()[1] - text_width(label.get_text(), SMALL) * per_inch
    label.set_x(min(bar, room))
    halo(label).set_in_layout(False)


def _names(axis: Axes, frame: pd.DataFrame, *, with_position: bool) -> None:
    """Names above the strongest neurons' bins, moved apart where they would touch."""
    named = frame.loc[frame["what"] == "neuron"]
    counted = frame[frame["what"] == "neurons"]
    left, right = axis.get_xlim()
    inch = (right - left) / inches(axis)[0]
    placed = spread(named["value"].tolist(), _LINE * inch, left + 0.06 * inch, right - 0.06 * inch)
    for row, x in zip(named.to_dict("records"), placed, strict=True):
        value, name = row["value"], row["name"]
        inside = (counted["low"] <= value) & (value <= counted["high"])
        top = max(float(counted.loc[inside, "value"].max()), 1.0)
        full = f"{name} {row['position']}"
        # The name stands above all bars it would cover, not only those of its own bin.
        reach = 0.09 * inch
        under = (counted["low"] <= x + reach) & (x - reach <= counted["high"])
        start = _height(axis, max(top, float(counted.loc[under, "value"].max()))) + 0.12
        fits = with_position and start + text_width(full, SMALL) < _free(axis)
        words = full if fits else name
        start = min(start, _free(axis) - text_width(words, SMALL) - 0.03)
        label = axis.annotate(
            words,
            xy=(value, top),
            xytext=(x, start / inches(axis)[1]),
            textcoords=axis.get_xaxis_transform(),
            size=SMALL,
            rotation=90,
            ha="center",
            va="bottom",
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0.5},
        )
        halo(label).set_in_layout(False)


def _height(axis: Axes, count: float) -> float:
    """Inches from the foot of the panel to a count."""
    low, high = axis.get_ylim()
    return inches(axis)[1] * math.log(count / low) / math.log(high / low)


def _free(axis: Axes) -> float:
    """Inches from the foot of the panel up to the legend and the label of the line."""
    return inches(axis)[1] - 3 * _LINE


def layer_profile(scores: MetricScores | Scores, *, position: str | None = None) -> Drawing:
    """Largest |r| and 99th percentile of |r| in each layer, and how many neurons are associated.

    Beside the neurons' largest |r| stands that of as many random directions of the same layer (its
    activations standardised): where the two agree, the metric is written in that layer but not in
    single neurons.

    Args:
        scores: Of one metric: ``scores["name"]``.
        position: Only this one; by default each neuron counts with its strongest position.

    Frame: one row per layer: layer, neurons (how many vary), largest, percentile_99,
    random_largest, counts of the associated, of those of them that beat the control task, and of
    those that are basis-privileged; the permutation threshold is repeated as ``threshold``.

    Raises:
        LensSkillsError: Scores of several metrics, or no such position.

    Does not show: where a skill is computed. Late layers write the answer itself, so r rises
    there for any metric that the answer decides.
    """
    scores = one_metric(scores)
    whole, bar = scores.scores, scores.threshold
    about = {
        "title": f"{metric_words(scores.metric)} by layer",
        "lines": caption(whole, position),
        "note": LATE_LAYERS if bar is not None else f"{LATE_LAYERS} No null was drawn.",
        "exploratory": whole.exploratory,
        "y": "|r|" if correlation(whole) == "Pearson r" else "|partial r|",
    }
    frame = _layers(scores, places(whole, position), bar)
    return Drawing("layer_profile", frame, about, file_name("layer_profile", scores.metric))


@draws("layer_profile")
def _draw_layer_profile(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    steps = [step for step in EVIDENCE if step in frame]
    figure = sheet(look, 3.1 if steps else 1.95, about)
    axes = figure.subplots(
        2 if steps else 1, 1, sharex=True, squeeze=False, height_ratios=[1.7, 1] if steps else [1]
    )[:, 0]
    _strength(axes[0], frame)
    axes[0].set_ylabel(about["y"])
    if steps:
        _counts(axes[1], frame, steps)
    axes[-1].set_xlabel("layer")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes[-1].set_xlim(frame["layer"].min() - 0.7, frame["layer"].max() + 0.7)
    return settle(figure)


def _layers(scores: MetricScores, chosen: list[int], bar: float | None) -> pd.DataFrame:
    whole = scores.scores
    strength = scores.r[chosen].abs().amax(dim=0).numpy()
    masks = scores.passing()
    if masks and scores.q_basis is not None:
        masks["basis-privileged"] = scores.associated & scores.basis_privileged
    passed = {step: mask[chosen].any(dim=0).numpy() for step, mask in masks.items()}
    turned = _rotated(scores, chosen)
    layer, keep = whole.layer.numpy(), ~whole.excluded.numpy()
    if turned is not None:
        turned = np.abs(turned).reshape(-1, len(layer)).max(axis=0)
    rows: list[dict[str, Any]] = []
    for here in np.unique(layer):
        inside = (layer == here) & keep
        row: dict[str, Any] = {"layer": int(here), "neurons": int(inside.sum())}
        row["largest"] = float(strength[inside].max(initial=0))
        row["percentile_99"] = float(np.percentile(strength[inside], 99)) if inside.any() else 0.0
        if turned is not None:
            row["random_largest"] = float(turned[layer == here].max())
        row |= {step: int(mask[inside].sum()) for step, mask in passed.items()}
        row["threshold"] = bar
        rows.append(row)
    return pd.DataFrame(rows)


def _strength(axis: Axes, frame: pd.DataFrame) -> None:
    """Draws |r| by layer with the threshold."""
    looks = {
        "largest": {"color": DATA, "marker": "o", "label": "neurons: largest"},
        "percentile_99": {"color": OTHERS, "linestyle": "-", "label": "neurons: 99th percentile"},
        "random_largest": {
            "color": RANDOM,
            "marker": "s",
            "markerfacecolor": "white",
            "markeredgewidth": 0.7,
            "linewidth": 0.7,
            "label": "random: largest",
        },
    }
    for column, look in looks.items():
        if column in frame:
            axis.plot(frame["layer"], frame[column], markersize=2.6, clip_on=False, **look)
    bars = frame["threshold"].to_numpy(float)
    known = bool(np.isfinite(bars).any())
    most = max(float(frame.loc[:, column].max()) for column in looks if column in frame)
    axis.set_ylim(0, min(1.0, 1.08 * max(most, bars[0] if known else 0) + 0.01))
    if known:
        colour, dashes, _ = THRESHOLD
        axis.axhspan(0, bars[0], color=PALE, zorder=0, linewidth=0)
        axis.axhline(
            bars[0], color=colour, linestyle=dashes, linewidth=0.8, zorder=1,
            label="permutation, 5 %",
        )  # fmt: skip
    legend_above(axis)


def _counts(axis: Axes, frame: pd.DataFrame, steps: list[str]) -> None:
    most = int(frame[steps].to_numpy().max())
    # The others are among the associated, so the bars stand one in another, narrower each time.
    for place, step in enumerate(steps):
        axis.bar(
            frame["layer"], frame[step].to_numpy(float), width=0.84 - 0.22 * place,
            color=EVIDENCE[step], label=step,
        )  # fmt: skip
    axis.set_ylim(0, max(1.2, 1.15 * most))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    if most == 0:
        axis.text(
            0.5, 0.5, "no neuron is associated", transform=axis.transAxes, size=SMALL, color=GREY,
            ha="center", va="center",
        )  # fmt: skip
    axis.set_ylabel("neurons")
    legend_above(axis, handlelength=0.8)


def correlation_by_position(scores: MetricScores | Scores) -> Drawing:
    """Largest |r| of each layer's neurons at each position, as a map of layers and positions.

    Cells without a neuron beyond the permutation threshold are hatched; the threshold counts all
    neurons and all positions as one family, and is the line on the colour bar.

    Args:
        scores: Of one metric, ``scores["name"]``; best of several positions.

    Frame: one row per cell: layer position strongest neuron r threshold beyond n_beyond (NaN,
    False and 0 where no null was drawn).

    Raises:
        LensSkillsError: Scores of several metrics.

    Does not show: where a skill is computed. Late layers write the answer itself.
    """
    scores = one_metric(scores)
    whole, bar = scores.scores, scores.threshold
    where = "1 position" if len(whole.positions) == 1 else f"{len(whole.positions)} positions"
    about = {
        "title": f"{metric_words(scores.metric)} by layer and position",
        "lines": caption(whole, where),
        "note": f"No null was drawn. {LATE_LAYERS}"
        if bar is None
        else "Hatched: no neuron is beyond the family-wise permutation null of them all, the line "
        f"on the scale. {LATE_LAYERS}",
        "exploratory": whole.exploratory,
        "scale": f"largest |{correlation(whole)}|",
    }
    name = file_name("correlation_by_position", scores.metric)
    return Drawing("correlation_by_position", _positions(scores), about, name)


@draws("correlation_by_position")
def _draw_correlation_by_position(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    layers, positions = frame["layer"].unique(), frame["position"].unique()
    numbered = all(position_words(name).startswith("token ") for name in positions)
    shown = [position_words(name) for name in positions]
    if numbered:  # the axis says that they are tokens
        shown = [name.removeprefix("token ") for name in shown]
    shown = [name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…" for name in shown]
    upright = widest(shown) <= 0.95 * (look.width - 1.1) / len(positions)
    rows = max(1.2, min(4.5, 0.085 * len(layers) + 0.3))
    figure = sheet(look, rows + (0.5 if upright else widest(shown) + 0.4), about)
    axis = figure.add_subplot()
    values = frame["strongest"].to_numpy().reshape(len(layers), len(positions))
    bar = frame["threshold"].iloc[0]
    least = np.nanmin(np.append(values, bar))
    step = max(1, len(layers) // 10)
    image = heat_map(
        axis,
        values,
        [str(layer) if row % step == 0 else "" for row, layer in enumerate(layers)],
        shown,
        colours=SIZE_MAP,
        low=0 if least < 0.5 * values.max() else math.floor(10 * least) / 10,
        high=round_limit(np.append(values, bar)),
        turn=0 if upright else 90,
        gap=0.3,
    )
    axis.invert_yaxis()  # the first layer is at the bottom
    within = ~frame["beyond"].to_numpy(bool).reshape(values.shape)
    for row, column in np.argwhere(within & np.isfinite(bar)).tolist():
        mark_cell(axis, row, column, **HATCHED)
    axis.set(xlabel="token" if numbered else "position", ylabel="layer")
    side = colour_bar(figure, image, axis, about["scale"], labelpad=2, aspect=25, pad=0.03)
    side.ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    if np.isfinite(bar):
        side.ax.axhline(bar, color="white", linewidth=2.2)
        side.ax.axhline(bar, color=BLACK, linewidth=1.0)
    return settle(figure)


def _positions(scores: MetricScores) -> pd.DataFrame:
    whole, bar = scores.scores, scores.threshold
    r, varies = scores.r.numpy(), ~whole.excluded.numpy()
    layer, neuron = whole.layer.numpy(), whole.neuron.numpy()
    rows = []
    for here in np.unique(layer):
        inside = np.flatnonzero((layer == here) & varies)
        for place, position in enumerate(whole.positions):
            values = r[place, inside]
            best = int(np.abs(values).argmax()) if len(inside) else -1
            strongest = abs(float(values[best])) if len(inside) else 0.0
            rows.append(
                {
                    "layer": int(here),
                    "position": position,
                    "strongest": strongest,
                    "neuron": int(neuron[inside[best]]) if len(inside) else -1,
                    "r": float(values[best]) if len(inside) else 0.0,
                    "threshold": bar,
                    "beyond": bar is not None and strongest > bar,
                    "n_beyond": 0 if bar is None else int((np.abs(values) > bar).sum()),
                }
            )
    return pd.DataFrame(rows)
