"""Which of the strongest neurons go with which metric."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from lens_skills.errors import LensSkillsError
from lens_skills.reporting.caption import caption, correlation, file_name
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import COLUMN, GREY, SMALL, settle, sheet, style, text_width
from lens_skills.scoring import Scores, parse_neurons

_CELL = 0.155  # inches of a row
_SHORT = 16  # letters of a position beside a neuron; the table has all of them


@style()
def metric_heatmap(
    scores: Scores,
    *,
    k: int = 20,
    by: str | None = None,
    neurons: Any = None,
    width: float = COLUMN,
) -> Drawing:
    """Signed r of the k strongest neurons with every metric, as a table of colours.

    Cells within a metric's permutation threshold are hatched and their number is grey. With
    several positions a neuron stands at the one where its |r| with ``by`` is largest.

    Args:
        scores: Of any number of metrics.
        k: How many neurons.
        by: The metric that ranks them; the first where none is named.
        neurons: These instead, in this order: rows, names or a `Selection`.
        width: Inches.

    Frame: one row per cell: name layer neuron position metric r threshold beyond (None and False
    where no null was drawn).

    Raises:
        LensSkillsError: No such metric, or a neuron that was not scored.
    """
    by = scores.metrics[0] if by is None else by
    ranking = scores[by]
    rows = ranking.top(k) if neurons is None else parse_neurons(neurons)
    frame = _frame(scores, _units(scores, rows.tolist()), by)
    n_columns = len(scores.metrics)
    names = frame["row"].tolist()[::n_columns]
    n_rows = len(names)
    tallest = max(text_width(metric, SMALL) for metric in scores.metrics)
    widest = max(text_width(name, SMALL) for name in names)
    room = (width - widest - 0.8) / n_columns  # inches of a cell; 0.8 for the colour bar
    upright = tallest <= room * 0.95

    ranked = f"the {n_rows} strongest by {by}" if neurons is None else f"{n_rows} neurons"
    figure = sheet(
        width,
        max(0.9, n_rows * _CELL) + 0.2 + (0.15 if upright else 0.72 * tallest + 0.1),
        title=f"r with each metric: {ranked}",
        lines=caption(scores),
        note="Hatched: within the permutation null (5 % family-wise)."
        if any(bars.permutation is not None for bars in scores.thresholds.values())
        else "No null was drawn: a description, not a test.",
        exploratory=scores.exploratory,
    )
    axis = figure.add_subplot()
    r = frame["r"].to_numpy().reshape(n_rows, n_columns)
    limit = max(0.1, float(np.ceil(np.abs(r).max() * 10) / 10))
    image = axis.pcolormesh(
        r, cmap="RdBu_r", vmin=-limit, vmax=limit, edgecolors="white", linewidth=0.6
    )
    axis.invert_yaxis()
    axis.set_yticks(np.arange(n_rows) + 0.5, names)
    axis.set_xticks(
        np.arange(n_columns) + 0.5,
        list(scores.metrics),
        rotation=0 if upright else 45,
        ha="center" if upright else "right",
        rotation_mode="anchor",
    )
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    beyond = frame["beyond"].to_numpy(bool).reshape(n_rows, n_columns)
    tested = frame["threshold"].notna().to_numpy().reshape(n_rows, n_columns)
    with_numbers = room > text_width("+0.00", SMALL)
    _cells(axis, r, beyond | ~tested, limit, with_numbers=with_numbers)
    bar = figure.colorbar(image, ax=axis, aspect=30, pad=0.02, ticks=[-limit, 0, limit])
    bar.set_label(correlation(scores), labelpad=1)
    bar.outline.set_visible(False)
    settle(figure)
    return Drawing(figure, frame.drop(columns="row"), file_name("metric_heatmap", by))


def _units(scores: Scores, rows: Sequence[Sequence[int]]) -> list[int]:
    pairs = [(layer, neuron) for layer, neuron in rows]
    missing = [pair for pair in pairs if pair not in scores.places]
    if missing:
        layer, neuron = missing[0]
        raise LensSkillsError(
            f"L{layer}N{neuron} was not scored here. Name neurons among these "
            f"{scores.n_units:,}, e.g. scores[metric].top(20)."
        )
    if not pairs:
        raise LensSkillsError("no neurons to draw. Pass k > 0, or neurons that were scored.")
    return [scores.places[pair] for pair in pairs]


def _frame(scores: Scores, units: list[int], by: str) -> pd.DataFrame:
    strongest = scores[by].r[:, units].abs().argmax(dim=0).tolist()
    cells: list[dict[str, Any]] = []
    for unit, place in zip(units, strongest, strict=True):
        layer, neuron = int(scores.layer[unit]), int(scores.neuron[unit])
        name, position = f"L{layer}N{neuron}", scores.positions[place]
        for column, metric in enumerate(scores.metrics):
            bar = scores.thresholds[metric].permutation
            r = float(scores.r[column, place, unit])
            cells.append(
                {
                    "row": name if len(scores.positions) == 1 else f"{name} {_shortened(position)}",
                    "name": name,
                    "layer": layer,
                    "neuron": neuron,
                    "position": position,
                    "metric": metric,
                    "r": r,
                    "threshold": bar,
                    "beyond": bar is not None and abs(r) > bar,
                }
            )
    return pd.DataFrame(cells)


def _cells(
    axis: Axes, r: np.ndarray, plain: np.ndarray, limit: float, *, with_numbers: bool
) -> None:
    for (row, column), value in np.ndenumerate(r):
        if not plain[row, column]:
            axis.add_patch(
                Rectangle(
                    (column, row),
                    1,
                    1,
                    fill=False,
                    hatch="//////",
                    edgecolor="#C4C4C4",
                    linewidth=0,
                )
            )
        if with_numbers:
            colour = "white" if abs(value) > 0.62 * limit else "black"
            axis.text(
                column + 0.5,
                row + 0.52,
                _signed(value),
                size=SMALL - 0.5,
                color=colour if plain[row, column] else GREY,
                ha="center",
                va="center",
            )


def _signed(value: float) -> str:
    """Two decimals with a sign, but no sign on 0.00."""
    text = f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if text.endswith("0.00") else text


def _shortened(position: str) -> str:
    return position if len(position) <= _SHORT else position[: _SHORT - 1] + "…"
