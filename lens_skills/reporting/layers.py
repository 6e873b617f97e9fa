"""How strongly each layer's neurons go with a metric, and whether any other basis would do."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lens_skills.reporting.caption import (
    LATE_LAYERS,
    bars,
    caption,
    correlation,
    file_name,
    places,
)
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import (
    BLUE,
    COLUMN,
    GATE_COLOURS,
    GREY,
    NULLS,
    PALE,
    SKY,
    SMALL,
    VERMILION,
    count_axis,
    inches,
    settle,
    sheet,
    spread,
    style,
)
from lens_skills.scoring import MetricScores

_FLOOR = 0.6


@style()
def layer_profile(
    found: MetricScores, *, position: str | None = None, width: float = COLUMN
) -> Drawing:
    """Largest |r| and 99th percentile of |r| in each layer, and how many neurons pass each gate.

    Beside the neurons' largest |r| stands that of a randomly rotated basis of the same layer: where
    the two agree, the metric is written in that layer but not in single neurons.

    Args:
        found: One metric's scores: ``scores["name"]``.
        position: Only this one; by default each neuron counts with its strongest position.
        width: Inches.

    Frame: one row per layer: layer, neurons (how many vary), largest, percentile_99,
    rotated_largest, and a count per gate (each gate needs the one before); the thresholds are
    repeated as columns ``bar_<null>``.

    Does not show: where a skill is computed. Late layers write the answer itself, so r rises
    there for any metric that the answer decides.
    """
    chosen = places(found.scores, position)
    lines = bars(found)
    frame = _frame(found, chosen, lines)
    gates = [gate for gate in GATE_COLOURS if gate in frame]

    figure = sheet(
        width,
        3.1 if gates else 1.95,
        title=f"{found.metric} by layer",
        lines=caption(found.scores, position),
        note=LATE_LAYERS if lines else f"{LATE_LAYERS} No null was drawn.",
        exploratory=found.scores.exploratory,
    )
    axes = figure.subplots(
        2 if gates else 1, 1, sharex=True, squeeze=False, height_ratios=[1.7, 1] if gates else [1]
    )[:, 0]
    labels = _strength(axes[0], frame, lines)
    axes[0].set_ylabel("|r|" if correlation(found.scores) == "Pearson r" else "|partial r|")
    if gates:
        _counts(axes[1], frame, gates)
    axes[-1].set_xlabel("layer")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes[-1].set_xlim(frame["layer"].min() - 0.7, frame["layer"].max() + 0.7)
    settle(figure)
    _apart(axes[0], labels, list(lines.values()))
    return Drawing(figure, frame, file_name("layer_profile", found.metric))


def _frame(found: MetricScores, chosen: list[int], lines: dict[str, float]) -> pd.DataFrame:
    scores = found.scores
    strength = found.r[chosen].abs().amax(dim=0).numpy()
    passed = {gate: mask[chosen].any(dim=0).numpy() for gate, mask in found.passing().items()}
    turned = scores.rotated_r.get(found.metric)
    if turned is not None:
        by_position = turned.reshape(len(turned), len(scores.positions), -1)[:, chosen]
        turned = by_position.abs().amax(dim=(0, 1)).numpy()
    layer, keep = scores.layer.numpy(), ~scores.excluded.numpy()
    rows: list[dict[str, Any]] = []
    for here in np.unique(layer):
        inside = (layer == here) & keep
        row: dict[str, Any] = {"layer": int(here), "neurons": int(inside.sum())}
        row["largest"] = float(strength[inside].max(initial=0))
        row["percentile_99"] = float(np.percentile(strength[inside], 99)) if inside.any() else 0.0
        if turned is not None:
            row["rotated_largest"] = float(turned[layer == here].max())
        row |= {gate: int(mask[inside].sum()) for gate, mask in passed.items()}
        row |= {f"bar_{name}": bar for name, bar in lines.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def _strength(axis: Axes, frame: pd.DataFrame, lines: dict[str, float]) -> list[Any]:
    looks = {
        "largest": {"color": BLUE, "marker": "o", "label": "neurons: largest"},
        "percentile_99": {"color": SKY, "linestyle": "-", "label": "neurons: 99th percentile"},
        "rotated_largest": {
            "color": VERMILION,
            "marker": "s",
            "markerfacecolor": "white",
            "markeredgewidth": 0.7,
            "linewidth": 0.7,
            "label": "rotated basis: largest",
        },
    }
    for column, look in looks.items():
        if column in frame:
            axis.plot(frame["layer"], frame[column], markersize=2.6, **look)
    most = max([frame[c].max() for c in looks if c in frame] + list(lines.values()))
    axis.set_ylim(0, min(1.0, 1.08 * most + 0.01))
    axis.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.1, labelspacing=0.2
    )
    if "permutation" in lines:
        axis.axhspan(0, lines["permutation"], color=PALE, zorder=0, linewidth=0)
    labels = []
    for name, bar in lines.items():
        colour, dashes, words = NULLS[name]
        axis.axhline(bar, color=colour, linestyle=dashes, linewidth=0.8, zorder=1)
        labels.append(
            axis.annotate(
                words,
                xy=(1, bar),
                xytext=(1.02, bar),
                xycoords=("axes fraction", "data"),
                size=SMALL,
                color=colour,
                va="center",
            )
        )
    return labels


def _apart(axis: Axes, labels: list[Any], wanted: list[float]) -> None:
    """Moves the names at the right edge up or down until they no longer touch."""
    low, high = axis.get_ylim()
    gap = 0.125 / inches(axis)[1] * (high - low)
    for label, y in zip(labels, spread(wanted, gap, low, high), strict=True):
        label.set_position((1.02, y))


def _counts(axis: Axes, frame: pd.DataFrame, gates: list[str]) -> None:
    most = int(frame[gates].to_numpy().max())
    count_axis(axis, "y", most)
    # Each gate's neurons are among the gate's before, so the bars stand one in another, narrower
    # each time: a gate that stops none is seen too.
    for place, gate in enumerate(gates):
        counts = frame[gate].to_numpy(float)
        axis.bar(
            frame["layer"],
            np.maximum(counts - _FLOOR, 0),
            bottom=_FLOOR,
            width=0.84 - 0.22 * place,
            color=GATE_COLOURS[gate],
            label=gate,
        )
    axis.set_ylim(_FLOOR, max(2.0, 1.3 * most))
    if most == 0:
        axis.text(
            0.5,
            0.5,
            "no neuron passes a gate",
            transform=axis.transAxes,
            size=SMALL,
            color=GREY,
            ha="center",
            va="center",
        )
    axis.set_ylabel("neurons")
    axis.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=2,
        borderaxespad=0.1,
        labelspacing=0.2,
        handlelength=0.8,
    )
