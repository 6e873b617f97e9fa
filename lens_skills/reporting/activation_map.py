"""One neuron's activation over two operands, and the feature that explains it drawn on top."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lens_skills.errors import LensSkillsError
from lens_skills.explanation import Explanation
from lens_skills.reporting.caption import count, file_name
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import BLACK, COLUMN, settle, sheet, style

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
