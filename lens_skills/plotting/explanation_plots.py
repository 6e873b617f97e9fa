"""One neuron's activation over two operands, and the feature that explains it drawn on top.

Features in rows, neurons in columns: which feature explains how much of which neuron.

What knocking each suspect out does where its feature is present, and where it is not.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from lens_skills.errors import LensSkillsError
from lens_skills.explanation import Explanation, Explanations, Shortcut, Shortcuts
from lens_skills.plotting.drawing import Drawing
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
    settle,
    sheet,
    style,
    text_width,
)
from lens_skills.results import file_name

_MOST = 24  # distinct values of an axis beyond which they are put into bins


_BINS = 18


_CLIPPED = 0.98  # of the cells are within the colours


@style()
def activation_map(
    one: Explanation,
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
        one: ``why["L17N635"]``.
        x, y: Two number features of the bank, such as the operands.
        feature: The flag to outline; by default the flag that explains most.
        width: Inches.

    Frame: one row per cell with examples: x y activation n holds (the share that has the feature).

    Raises:
        LensSkillsError: No such number in the explanation, or no such flag.
    """
    row = _flag(one, feature)
    columns = {name: _numbers(one, name) for name in (x, y)}
    edges = {name: _edges(values) for name, values in columns.items()}
    holds = np.array(one.values[row["feature"]], dtype=float) if row else np.zeros(len(one.values))
    places = {
        name: np.clip(np.searchsorted(edges[name], values, side="right") - 1, 0, None)
        for name, values in columns.items()
    }
    cells = pd.DataFrame(
        {
            "row": places[y],
            "column": places[x],
            "activation": one.activation.numpy(),
            "holds": holds,
        }
    )
    found = cells.groupby(["row", "column"], as_index=False).agg(
        activation=("activation", "mean"), n=("activation", "size"), holds=("holds", "mean")
    )
    shape = len(edges[y]) - 1, len(edges[x]) - 1
    grid, inside = np.full(shape, np.nan), np.zeros(shape)
    at = found["row"].to_numpy(), found["column"].to_numpy()
    grid[at], inside[at] = found["activation"], found["holds"]
    figure = sheet(
        width,
        0.82 * width,
        title=f"{one.name} over {x} and {y}" + (f": {row['feature']}" if row else ""),
        lines=[_line(row, len(cells))],
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
    for name, side in ((x, axis.xaxis), (y, axis.yaxis)):
        values = np.unique(columns[name])
        if len(values) <= _MOST:
            shown = values[:: max(1, -(-len(values) // 12))]
            side.set_ticks(shown, [f"{value:g}" for value in shown])
    axis.set(xlabel=x, ylabel=y)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    sides = (float(np.nanmin(grid)) < low, float(np.nanmax(grid)) > high)
    beyond = {(1, 1): "both", (1, 0): "min", (0, 1): "max"}.get(sides, "neither")
    bar = figure.colorbar(image, ax=axis, aspect=30, pad=0.02, extend=beyond)
    bar.set_label(f"activation of {one.name}", labelpad=1)
    bar.outline.set_visible(False)
    settle(figure)
    frame = pd.DataFrame(
        {
            x: _middle(edges[x])[found["column"]],
            y: _middle(edges[y])[found["row"]],
            "activation": found["activation"],
            "n": found["n"],
            "holds": found["holds"],
        }
    )
    return Drawing(figure, frame, file_name("activation_map", one.name, x, y))


def _flag(one: Explanation, feature: str | None) -> Any:
    """The row of the flag to outline; None where there is none."""
    if feature is not None:
        row = one.feature(feature)
        if row["kind"] != "flag":
            raise LensSkillsError(
                f"{feature!r} is a {row['kind']}, which holds nowhere in particular. Name a flag, "
                f"such as {next((r['feature'] for r in one.rows if r['kind'] == 'flag'), 'none')!r}"
            )
        return row
    return next((row for row in one.rows if row["kind"] == "flag"), None)


def _numbers(one: Explanation, name: str) -> np.ndarray:
    kinds = {row["feature"]: row["kind"] for row in one.rows}
    known = [feature for feature, kind in kinds.items() if kind == "number"]
    if name not in one.values or any(isinstance(value, str) for value in one.values[name]):
        raise LensSkillsError(
            f"{name!r} is no number that {one.name} was held against. There are: "
            f"{', '.join(known) or 'none'}. Add one: feature_bank(task, extra={{…}})."
        )
    return np.array(one.values[name], dtype=float)


def _edges(values: np.ndarray) -> np.ndarray:
    """Cell borders: half-way between the values, or equal-width bins where they are many."""
    distinct = np.unique(values)
    if len(distinct) > _MOST:
        return np.linspace(distinct[0], distinct[-1] * (1 + 1e-9) + 1e-9, _BINS + 1)
    if len(distinct) == 1:
        return np.array([distinct[0] - 0.5, distinct[0] + 0.5])
    middle = (distinct[1:] + distinct[:-1]) / 2
    first, last = (
        distinct[0] - (middle[0] - distinct[0]),
        distinct[-1] + (distinct[-1] - middle[-1]),
    )
    return np.concatenate([[first], middle, [last]])


def _middle(edges: np.ndarray) -> np.ndarray:
    return (edges[1:] + edges[:-1]) / 2


def _outline(axis: Axes, x: np.ndarray, y: np.ndarray, inside: np.ndarray) -> None:
    """The border of the cells that are inside, once for each neighbouring pair that differs."""
    padded = np.pad(inside, 1)
    look: dict[str, Any] = {"color": BLACK, "linewidth": 1.1, "solid_capstyle": "projecting"}
    for row, column in zip(*np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1]), strict=True):
        axis.plot([x[column]] * 2, [y[row], y[row + 1]], **look)
    for row, column in zip(*np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1]), strict=True):
        axis.plot([x[column], x[column + 1]], [y[row]] * 2, **look)


def _line(row: Any, n_examples: int) -> str:
    if row is None:
        return count(n_examples)
    told = f"explains {row['variance_explained']:.0%} of the variance held out"
    if row["p"] is not None:
        told += f" (p = {row['p']:.2g})"
    return f"{told} · {count(n_examples)}"


_CELL = 0.155  # inches of a row


_WIDEST = 0.26  # and of a column, at most


@style()
def feature_matrix(
    why: Explanations, *, k: int = 24, n_neurons: int = 20, width: float = COLUMN
) -> Drawing:
    """Variance explained, held out, of every neuron by the features that explain any of them.

    Rows are the best features of each neuron in turn, those on the surface above those that define
    the task. Outlined: the neuron's best (ranked on the other half). Hatched: within the null
    (family-wise p > 0.05).

    Args:
        why: From `explain`.
        k: At most so many features.
        n_neurons: At most so many neurons, in the order they were named.
        width: Inches.

    Frame: one row per cell drawn, as in ``why.frame()``.

    Raises:
        LensSkillsError: No neuron that could be explained.
    """
    shown = [one for one in why.neurons if one.rows][:n_neurons]
    if not shown:
        raise LensSkillsError(
            "no neuron to draw: none was explained (they are never active on these examples)."
        )
    surface = {row["feature"]: row["surface"] for row in shown[0].rows}
    features = _features(shown, k)
    features.sort(key=lambda name: not surface[name])
    frame = why.frame().set_index(["feature", "name"])
    frame = frame.loc[[(name, one.name) for name in features for one in shown]].reset_index()
    shape = len(features), len(shown)
    explained = frame["variance_explained"].to_numpy(float).reshape(shape)
    tested = frame["p"].notna().to_numpy().reshape(shape)
    beyond = (frame["p"].astype(float) <= 0.05).to_numpy().reshape(shape)
    longest = max(text_width(name, SMALL) for name in features)
    tallest = max(text_width(one.name, SMALL) for one in shown)
    sheet_width = max(width, longest + 0.9 + 0.12 * len(shown))
    figure = sheet(
        min(sheet_width, 2 * COLUMN),
        len(features) * _CELL + tallest + 0.25,
        title=f"What drives {len(shown)} of {len(why)} neurons"
        if len(shown) < len(why)
        else f"What drives {len(shown)} neuron{'s' * (len(shown) > 1)}",
        lines=[
            " · ".join(
                str(part)
                for part in (why.provenance.get("model"), why.provenance.get("task"))
                if part
            ),
            f"{why.site} at {why.position} · measured on {count(why.n_held, why.n_groups)}",
        ],
        note="Outlined: the neuron's best feature. "
        + ("Hatched: within the permutation null." if tested.any() else "No null was drawn."),
    )
    axis = figure.add_subplot()
    limit = max(0.1, float(np.ceil(explained.max() * 10) / 10))
    image = axis.pcolormesh(
        explained, cmap="Blues", vmin=0, vmax=limit, edgecolors="white", linewidth=0.6
    )
    axis.invert_yaxis()
    axis.set_yticks(np.arange(len(features)) + 0.5, features)
    axis.set_xticks(np.arange(len(shown)) + 0.5, [one.name for one in shown], rotation=90)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    for column, one in enumerate(shown):
        best = one.best
        if best is not None and best["feature"] in features:
            _box(axis, features.index(best["feature"]), column, edgecolor=BLACK, linewidth=1.0)
    for row, column in np.argwhere(tested & ~beyond).tolist():
        _box(axis, row, column, hatch="//////", edgecolor="#C4C4C4", linewidth=0, zorder=1.5)
    n_surface = sum(surface[name] for name in features)
    if 0 < n_surface < len(features):
        axis.axhline(n_surface, color=BLACK, linewidth=0.9)
        for text, start, size in (
            ("surface", 0, n_surface),
            ("task", n_surface, len(features) - n_surface),
        ):
            _beside(axis, text, start, size, len(shown))
    bar = figure.colorbar(image, ax=axis, aspect=30, pad=0.1, ticks=[0, limit / 2, limit])
    bar.set_label("variance explained", labelpad=1)
    bar.outline.set_visible(False)
    settle(figure)
    return Drawing(figure, frame, "feature_matrix")


def _features(shown: Any, k: int) -> list[str]:
    """The best of every neuron, then the second best of every one, until there are k."""
    found: dict[str, None] = {}
    for place in range(max(len(one.rows) for one in shown)):
        for one in shown:
            if len(found) < k and place < len(one.rows):
                found.setdefault(one.rows[place]["feature"])
    return list(found)


def _box(axis: Axes, row: int, column: int, **look: Any) -> None:
    look = {"fill": False, "zorder": 3} | look
    axis.add_patch(Rectangle((column + 0.03, row + 0.05), 0.94, 0.9, **look))


def _beside(axis: Axes, text: str, start: int, size: int, n_columns: int) -> None:
    axis.plot(
        [n_columns + 0.15] * 2, [start + 0.1, start + size - 0.1], color=GREY, linewidth=0.8,
        clip_on=False,
    )  # fmt: skip
    upright = size * _CELL > text_width(text, SMALL) + 0.02
    axis.annotate(
        text if upright else text[:3] + ".",
        (n_columns + 0.15, start + size / 2),
        xytext=(3, 0),
        textcoords="offset points",
        rotation=90 if upright else 0,
        size=SMALL,
        color=GREY,
        va="center",
        annotation_clip=False,
    )
    axis.set_xlim(0, n_columns)


_ROW = 0.42  # inches


@style()
def shortcut_effects(found: Shortcuts, *, width: float = COLUMN) -> Drawing:
    """Ablating each neuron: the effect with the feature and without, and their difference.

    Dots are mean effects on the examples with the neuron's surface feature (full) and without
    (hollow); the line below is the difference with its 95 % interval, over the band of differences
    that would not matter (δ). Of a neuron that no surface feature explains: its effect on all
    examples.

    Args:
        found: From `shortcuts`.
        width: Inches.

    Frame: one row per neuron, as in ``found.frame()``.

    Raises:
        LensSkillsError: No neuron was tested.
    """
    if not found.neurons:
        raise LensSkillsError("no neuron to draw: none was tested. " + " ".join(found.notes[:1]))
    neurons = found.neurons
    about = found.provenance
    figure = sheet(
        width,
        _ROW * len(neurons) + 0.75,
        title=f"Shortcuts behind {found.metric}: {len(found.confirmed)} of {len(neurons)} neurons",
        lines=[
            " · ".join(str(about[name]) for name in ("model", "task") if name in about),
            found.do,
        ],
        note="Line: with the feature less without, with its 95 % interval (no feature: effect on "
        "all examples). Grey band: ± δ, what matched neurons reach in 95 %.",
    )
    axis = figure.add_subplot()
    for row, one in enumerate(neurons):
        _row(axis, row, one)
    unit = f" ({found.unit})" if found.unit else ""
    axis.set_xlabel(f"change of {found.causal_metric} when ablated{unit}")
    axis.axvline(0, color=BLACK, linewidth=0.6, zorder=1)
    axis.set_yticks(range(len(neurons)), [one.name for one in neurons])
    axis.set_ylim(len(neurons) - 0.45, -0.75)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axis.legend(
        handles=[
            Line2D([], [], marker="o", color=BLUE, linewidth=0, markersize=4, label="with it"),
            Line2D([], [], marker="o", color=BLUE, linewidth=0, markersize=4, mfc="white",
                   label="without"),
            Line2D([], [], color=BLACK, linewidth=1.2, marker="|", label="difference"),
        ],
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=3,
        borderaxespad=0.1,
    )  # fmt: skip
    settle(figure)
    return Drawing(figure, found.frame(), file_name("shortcut_effects", found.metric))


def _row(axis: Axes, row: int, one: Shortcut) -> None:
    shown = one.difference or one.effect
    band = {"color": PALE, "linewidth": 0, "zorder": 0}
    axis.fill_between([-shown.delta, shown.delta], row - 0.16, row + 0.3, **band)
    colour = VERMILION if one.word == "shortcut" else BLACK
    axis.plot([shown.low, shown.high], [row + 0.13] * 2, color=colour, linewidth=1.2, zorder=3)
    axis.plot([shown.value], [row + 0.13], "|", color=colour, markersize=6, zorder=3)
    if one.effect_present is not None and one.effect_absent is not None:
        axis.plot([one.effect_present], [row - 0.07], "o", color=BLUE, markersize=4, zorder=4)
        axis.plot(
            [one.effect_absent], [row - 0.07], "o", color=BLUE, mfc="white", markersize=4, zorder=4
        )
    text = one.word if not one.feature else f"{one.condition}: {one.word}"
    while text_width(text, SMALL) > COLUMN - 0.75 and len(text) > 8:
        text = text[:-2].rstrip() + "…"
    label = axis.annotate(
        text,
        (0.0, row - 0.3),
        xycoords=("axes fraction", "data"),
        size=SMALL,
        color=GREY,
        va="center",
    )
    halo(label)
