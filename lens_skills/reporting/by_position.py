"""Where a metric is read: the largest |r| in every layer at every position."""

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from lens_skills.reporting.caption import LATE_LAYERS, caption, correlation, file_name
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import BLACK, COLUMN, SMALL, settle, sheet, style, text_width
from lens_skills.scoring import MetricScores

_MOST = 14  # letters of a position's name


@style()
def correlation_by_position(found: MetricScores, *, width: float = COLUMN) -> Drawing:
    """Largest |r| of each layer's neurons at each position, as a map of layers and positions.

    Outlined cells hold a neuron beyond the permutation threshold, which counts all neurons and all
    positions as one family; the threshold is the line on the colour bar.

    Args:
        found: One metric's scores: ``scores["name"]``; best of several positions.
        width: Inches.

    Frame: one row per cell: layer position strongest neuron r threshold beyond n_beyond (None,
    False and 0 where no null was drawn).

    Does not show: where a skill is computed. Late layers write the answer itself.
    """
    scores, bar = found.scores, found.thresholds.permutation
    frame = _frame(found)
    layers, positions = frame["layer"].unique(), list(scores.positions)
    shown = [name if len(name) <= _MOST else name[: _MOST - 1] + "…" for name in positions]
    tall = max(1.2, min(4.5, 0.085 * len(layers) + 0.3))
    room = (width - 1.1) / len(positions)
    upright = max(text_width(name, SMALL) for name in shown) <= 0.95 * room
    below = 0.25 if upright else max(text_width(name, SMALL) for name in shown) + 0.15
    figure = sheet(
        width,
        tall + below + 0.25,
        title=f"{found.metric} by layer and position",
        lines=caption(scores, f"{len(positions)} positions"),
        note=(
            "Outlined: beyond the permutation null over all of them (5 % family-wise). "
            + LATE_LAYERS
        )
        if bar is not None
        else f"No null was drawn. {LATE_LAYERS}",
        exploratory=scores.exploratory,
    )
    axis = figure.add_subplot()
    values = frame["strongest"].to_numpy().reshape(len(layers), len(positions))
    most = max(0.1, float(np.ceil(max(values.max(), bar or 0) * 10) / 10))
    image = axis.pcolormesh(
        values, cmap="cividis", vmin=0, vmax=most, edgecolors="white", linewidth=0.3
    )
    for row, column in zip(*np.nonzero(_grid(frame, values.shape)), strict=True):
        axis.add_patch(
            Rectangle(
                (column + 0.06, row + 0.06), 0.88, 0.88, fill=False, edgecolor="#D55E00", lw=0.8
            )
        )
    axis.set_xticks(np.arange(len(positions)) + 0.5, shown, rotation=0 if upright else 90)
    step = max(1, len(layers) // 10)
    axis.set_yticks(np.arange(0, len(layers), step) + 0.5, [str(n) for n in layers[::step]])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set(xlabel="position", ylabel="layer")
    side = figure.colorbar(image, ax=axis, pad=0.03, aspect=25)
    side.set_label(f"largest |{correlation(scores)}|", labelpad=2)
    side.ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
    side.outline.set_visible(False)
    if bar is not None:
        side.ax.axhline(bar, color="white", linewidth=2.2)
        side.ax.axhline(bar, color=BLACK, linewidth=1.0)
    settle(figure)
    return Drawing(figure, frame, file_name("correlation_by_position", found.metric))


def _grid(frame: pd.DataFrame, shape: tuple[int, ...]) -> np.ndarray:
    return frame["beyond"].to_numpy(bool).reshape(shape)


def _frame(found: MetricScores) -> pd.DataFrame:
    scores, bar = found.scores, found.thresholds.permutation
    r, varies = found.r.numpy(), ~scores.excluded.numpy()
    layer, neuron = scores.layer.numpy(), scores.neuron.numpy()
    rows = []
    for here in np.unique(layer):
        inside = np.flatnonzero((layer == here) & varies)
        for place, position in enumerate(scores.positions):
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
