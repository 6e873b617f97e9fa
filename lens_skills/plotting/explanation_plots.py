"""What neurons fire for: features against neurons, a map of two numbers, shortcuts ablated."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lens_skills.errors import LensSkillsError
from lens_skills.explanation import Explanation, Explanations, Shortcut, Shortcuts
from lens_skills.plotting.drawing import Drawing, finished
from lens_skills.plotting.heat_map import (
    HATCHED,
    colour_bar,
    heat_map,
    mark_cell,
    name_rows,
    round_limit,
)
from lens_skills.plotting.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREY,
    PALE,
    SMALL,
    VERMILION,
    count,
    halo,
    joined,
    legend_above,
    name_lines,
    sheet,
    source,
    style,
    text_width,
    widest,
)

_FEATURE_ROW, _SHORTCUT_ROW = 0.155, 0.42  # inches
_MOST, _BINS = 24, 18  # distinct values of an axis beyond which they are put into so many bins
_CLIPPED = 0.98  # of the cells are within the colours


@style()
def feature_matrix(
    explanations: Explanations, *, k: int = 24, n_neurons: int = 20, width: float = COLUMN
) -> Drawing:
    """Variance explained, held out, of every neuron by the features that explain any of them.

    Rows are the best features of each neuron in turn, those on the surface above those that define
    the task. Outlined: the neuron's best (ranked on the other half). Hatched: within the null
    (family-wise p > 0.05).

    Args:
        explanations: From `explain`.
        k: At most so many features.
        n_neurons: At most so many neurons, in the order they were named.
        width: Inches.

    Frame: one row per cell drawn, as in ``explanations.frame()``.

    Raises:
        LensSkillsError: No neuron that could be explained.
    """
    shown = [one for one in explanations.neurons if one.rows][:n_neurons]
    if not shown:
        raise LensSkillsError(
            "no neuron to draw: none was explained (they are never active on these examples)."
        )
    surface = {row["feature"]: row["surface"] for row in shown[0].rows}
    features = _features(shown, k)
    features.sort(key=lambda name: not surface[name])
    names = [one.name for one in shown]
    frame = explanations.frame().set_index(["feature", "name"])
    frame = frame.loc[[(feature, name) for feature in features for name in names]].reset_index()
    shape = len(features), len(shown)
    explained = frame["variance_explained"].to_numpy(float).reshape(shape)
    tested = frame["p"].notna().to_numpy().reshape(shape)
    beyond = (frame["p"].astype(float) <= 0.05).to_numpy().reshape(shape)
    figure = sheet(
        min(max(width, widest(features) + 0.9 + 0.12 * len(shown)), 2 * COLUMN),
        len(features) * _FEATURE_ROW + widest(names) + 0.25,
        title=f"What drives {len(shown)} of {len(explanations)} neurons"
        if len(shown) < len(explanations)
        else f"What drives {len(shown)} neuron{'s' * (len(shown) > 1)}",
        lines=[
            joined(*source(explanations.provenance)),
            f"{explanations.site} at {explanations.position} · measured on "
            f"{count(explanations.n_held, explanations.n_groups)}",
        ],
        note="Outlined: the neuron's best feature on the other half. "
        + ("Hatched: within the null." if tested.any() else "No null was drawn."),
    )
    axis = figure.add_subplot()
    limit = round_limit(explained)
    image = heat_map(axis, explained, features, names, colours="Blues", low=0, high=limit, turn=90)
    for column, one in enumerate(shown):
        best = one.best
        if best is not None and best["feature"] in features:
            row = features.index(best["feature"])
            mark_cell(axis, row, column, inset=0.04, edgecolor=BLACK, linewidth=1.0, zorder=3)
    for row, column in np.argwhere(tested & ~beyond).tolist():
        mark_cell(axis, row, column, inset=0.04, zorder=1.5, **HATCHED)
    n_surface = sum(surface[name] for name in features)
    if 0 < n_surface < len(features):
        axis.axhline(n_surface, color=BLACK, linewidth=0.9)
        name_rows(axis, "surface", 0, n_surface, len(shown), _FEATURE_ROW)
        n_task = len(features) - n_surface
        name_rows(axis, "task", n_surface, n_task, len(shown), _FEATURE_ROW)
    colour_bar(figure, image, axis, "variance explained", pad=0.1, ticks=[0, limit / 2, limit])
    return finished(figure, frame, "feature_matrix")


def _features(shown: Sequence[Explanation], k: int) -> list[str]:
    """The best of every neuron, then the second best of every one, until there are k."""
    found: dict[str, None] = {}
    for place in range(max(len(one.rows) for one in shown)):
        for one in shown:
            if len(found) < k and place < len(one.rows):
                found.setdefault(one.rows[place]["feature"])
    return list(found)


@style()
def activation_map(
    explanation: Explanation,
    x: str = "a",
    y: str = "b",
    *,
    feature: str | None = None,
    width: float = COLUMN,
) -> Drawing:
    """Mean activation of a neuron for every pair of two numbers, its best feature outlined.

    Numbers of more than 24 values are put into bins. Cells without an example are white; outlined
    ones are those where the feature holds for more than half of the examples.

    Args:
        explanation: ``explanations["L17N635"]``.
        x, y: Two number features of the bank, such as the operands.
        feature: The flag to outline; by default the flag that explains most.
        width: Inches.

    Frame: one row per cell with examples: x y activation n holds (the share that has the feature).

    Raises:
        LensSkillsError: No such number in the explanation, or no such flag.
    """
    row, name = _flag(explanation, feature), explanation.name
    columns = {axis: _numbers(explanation, axis) for axis in (x, y)}
    edges = {axis: _edges(values) for axis, values in columns.items()}
    places = {
        axis: np.clip(np.searchsorted(edges[axis], values, side="right") - 1, 0, None)
        for axis, values in columns.items()
    }
    values = explanation.values
    holds = np.array(values[row["feature"]], dtype=float) if row else np.zeros(len(values))
    examples = pd.DataFrame(
        {
            "row": places[y],
            "column": places[x],
            "activation": explanation.activation.numpy(),
            "holds": holds,
        }
    )
    cells = examples.groupby(["row", "column"], as_index=False).agg(
        activation=("activation", "mean"), n=("activation", "size"), holds=("holds", "mean")
    )
    shape = len(edges[y]) - 1, len(edges[x]) - 1
    grid, inside = np.full(shape, np.nan), np.zeros(shape)
    at = cells["row"].to_numpy(), cells["column"].to_numpy()
    grid[at], inside[at] = cells["activation"], cells["holds"]
    figure = sheet(
        width,
        0.82 * width,
        title=f"{name} over {x} and {y}" + (f": {row['feature']}" if row else ""),
        lines=[_explained(row, len(examples))],
        note="Mean over the examples of a cell; white: none."
        + (" Outlined: the feature holds." if row else ""),
    )
    axis = figure.add_subplot()
    # One cell far beyond all others would leave the rest without a colour.
    largest = float(np.nanmax(np.abs(grid)))
    limit = float(np.nanquantile(np.abs(grid), _CLIPPED)) or largest or 1.0
    # Around 0 where there are both signs; else over what there is, dark being far from 0.
    low, high, colours = -limit, limit, "RdBu_r"
    if np.nanmin(grid) > 0:
        low, high, colours = float(np.nanmin(grid)), limit, "Reds"
    elif np.nanmax(grid) < 0:
        low, high, colours = -limit, float(np.nanmax(grid)), "Blues_r"
    image = axis.pcolormesh(edges[x], edges[y], grid, cmap=colours, vmin=low, vmax=high)
    _outline(axis, edges[x], edges[y], inside > 0.5)
    for column, side in ((x, axis.xaxis), (y, axis.yaxis)):
        distinct = np.unique(columns[column])
        if len(distinct) <= _MOST:
            shown = distinct[:: max(1, -(-len(distinct) // 12))]
            side.set_ticks(shown, [f"{value:g}" for value in shown])
    axis.set(xlabel=x, ylabel=y)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    ends = (float(np.nanmin(grid)) < low, float(np.nanmax(grid)) > high)
    beyond = {(1, 1): "both", (1, 0): "min", (0, 1): "max"}.get(ends, "neither")
    colour_bar(figure, image, axis, f"activation of {name}", pad=0.02, extend=beyond)
    frame = cells.loc[:, ["activation", "n", "holds"]]
    for place, (column, index) in enumerate(((x, "column"), (y, "row"))):
        middle = (edges[column][1:] + edges[column][:-1]) / 2
        frame.insert(place, column, middle[cells[index]])
    return finished(figure, frame, "activation_map", name, x, y)


def _flag(explanation: Explanation, feature: str | None) -> Any:
    """The row of the flag to outline; None where there is none."""
    best = next((row for row in explanation.rows if row["kind"] == "flag"), None)
    if feature is None:
        return best
    row = explanation.feature(feature)
    if row["kind"] != "flag":
        raise LensSkillsError(
            f"{feature!r} is a {row['kind']}, which holds nowhere in particular. Name a flag, "
            f"such as {best['feature'] if best else 'none'!r}"
        )
    return row


def _numbers(explanation: Explanation, name: str) -> np.ndarray:
    known = [row["feature"] for row in explanation.rows if row["kind"] == "number"]
    values = explanation.values
    if name not in values or any(isinstance(value, str) for value in values[name]):
        raise LensSkillsError(
            f"{name!r} is no number that {explanation.name} was held against. There are: "
            f"{', '.join(known) or 'none'}. Add one: feature_bank(task, extra={{…}})."
        )
    return np.array(values[name], dtype=float)


def _edges(values: np.ndarray) -> np.ndarray:
    """Cell borders: half-way between the values, or equal-width bins where they are many."""
    distinct = np.unique(values)
    if len(distinct) > _MOST:
        return np.linspace(distinct[0], distinct[-1] * (1 + 1e-9) + 1e-9, _BINS + 1)
    if len(distinct) == 1:
        return np.array([distinct[0] - 0.5, distinct[0] + 0.5])
    middle = (distinct[1:] + distinct[:-1]) / 2
    first = distinct[0] - (middle[0] - distinct[0])
    last = distinct[-1] + (distinct[-1] - middle[-1])
    return np.concatenate([[first], middle, [last]])


def _outline(axis: Axes, x: np.ndarray, y: np.ndarray, inside: np.ndarray) -> None:
    """The border of the cells that are inside, once for each neighbouring pair that differs."""
    padded = np.pad(inside, 1)
    look: dict[str, Any] = {"color": BLACK, "linewidth": 1.1, "solid_capstyle": "projecting"}
    for row, column in zip(*np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1]), strict=True):
        axis.plot([x[column]] * 2, [y[row], y[row + 1]], **look)
    for row, column in zip(*np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1]), strict=True):
        axis.plot([x[column], x[column + 1]], [y[row]] * 2, **look)


def _explained(row: Any, n_examples: int) -> str:
    if row is None:
        return count(n_examples)
    told = f"explains {row['variance_explained']:.0%} of the variance held out"
    if row["p"] is not None:
        told += f" (p = {row['p']:.2g})"
    return f"{told} · {count(n_examples)}"


@style()
def shortcut_effects(shortcuts: Shortcuts, *, width: float = COLUMN) -> Drawing:
    """Ablating each neuron: the effect with the feature and without, and their difference.

    Dots are mean effects on the examples with the neuron's surface feature (full) and without
    (hollow); the line below is the difference with its 95 % interval, over the band of differences
    that would not matter (δ). Of a neuron that no surface feature explains: its effect on all
    examples.

    Args:
        shortcuts: From `lens_skills.shortcuts`.
        width: Inches.

    Frame: one row per neuron, as in ``shortcuts.frame()``.

    Raises:
        LensSkillsError: No neuron was tested.
    """
    neurons = shortcuts.neurons
    if not neurons:
        raise LensSkillsError(
            "no neuron to draw: none was tested. " + " ".join(shortcuts.notes[:1])
        )
    confirmed = f"{len(shortcuts.confirmed)} of {len(neurons)} neurons"
    figure = sheet(
        width,
        _SHORTCUT_ROW * len(neurons) + 0.75,
        title=f"Shortcuts behind {shortcuts.metric}: {confirmed}",
        lines=[joined(*source(shortcuts.provenance)), shortcuts.do],
        note="Line: with the feature less without, with its 95 % interval over groups (no feature: "
        "effect on all examples). Grey band: ± δ, the smallest effect that matters.",
    )
    axis = figure.add_subplot()
    for row, one in enumerate(neurons):
        _shortcut(axis, row, one)
    unit = f" ({shortcuts.unit})" if shortcuts.unit else ""
    axis.set_xlabel(f"change of {shortcuts.causal_metric} when ablated{unit}")
    axis.axvline(0, color=BLACK, linewidth=0.6, zorder=1)
    name_lines(axis, range(len(neurons)), [one.name for one in neurons])
    axis.set_ylim(len(neurons) - 0.45, -0.75)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    dot: dict[str, Any] = {"marker": "o", "color": BLUE, "linewidth": 0, "markersize": 4}
    handles = [
        Line2D([], [], **dot, label="with it"),
        Line2D([], [], **dot, mfc="white", label="without"),
        Line2D([], [], color=BLACK, linewidth=1.2, marker="|", label="difference"),
    ]
    legend_above(axis, 3, handles=handles)
    return finished(figure, shortcuts.frame(), "shortcut_effects", shortcuts.metric)


def _shortcut(axis: Axes, row: int, one: Shortcut) -> None:
    shown = one.difference or one.effect
    band = {"color": PALE, "linewidth": 0, "zorder": 0}
    axis.fill_between([-shown.delta, shown.delta], row - 0.16, row + 0.3, **band)
    colour = VERMILION if one.word == "shortcut" else BLACK
    axis.plot([shown.low, shown.high], [row + 0.13] * 2, color=colour, linewidth=1.2, zorder=3)
    axis.plot([shown.value], [row + 0.13], "|", color=colour, markersize=6, zorder=3)
    if one.effect_present is not None and one.effect_absent is not None:
        for effect, fill in ((one.effect_present, BLUE), (one.effect_absent, "white")):
            axis.plot([effect], [row - 0.07], "o", color=BLUE, mfc=fill, markersize=4, zorder=4)
    text = one.word if not one.feature else f"{one.condition}: {one.word}"
    while text_width(text, SMALL) > COLUMN - 0.75 and len(text) > 8:
        text = text[:-2].rstrip() + "…"
    halo(
        axis.annotate(
            text, (0.0, row - 0.3), xycoords=("axes fraction", "data"), size=SMALL, color=GREY,
            va="center",
        )
    )  # fmt: skip
