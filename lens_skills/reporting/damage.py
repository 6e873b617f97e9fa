"""What the neurons of each skill do to every skill."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from lens_skills.causal.matrix import DamageMatrix
from lens_skills.reporting.caption import file_name, with_unit
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import BLACK, COLUMN, SMALL, settle, sheet, style, text_width

_CELL, _LOW = 0.26, 0.16  # inches of a row, at most and at least
_PAIRS = 3  # overlaps in the note


@style()
def damage_matrix(
    matrix: DamageMatrix, *, exploratory: bool = False, width: float = COLUMN
) -> Drawing:
    """What editing each skill's neurons (rows) does to each task (columns), as a table of colours.

    Numbers are effects in the metric's unit, with a star where the 95 % interval leaves out 0. The
    colour is the effect over the standard deviation of the task's clean metric, so that tasks can
    be compared: red is damage. The skill's own task is outlined.

    Args:
        matrix: From `lens_skills.causal.damage.damage_matrix`.
        exploratory: Stamp it.
        width: Inches.

    Frame: one row per cell: skill task own effect low high damage star.
    """
    frame = matrix.frame()
    frame["star"] = (frame["low"] > 0) | (frame["high"] < 0)
    n = len(matrix.skills)
    rows = [f"{s} ({k:,})" for s, k in zip(matrix.skills, matrix.n_units, strict=True)]
    columns = [f"{s} ({k:,})" for s, k in zip(matrix.skills, matrix.n_examples, strict=True)]
    widest = max(text_width(name, SMALL) for name in rows)
    tallest = max(text_width(name, SMALL) for name in columns)
    room = (width - widest - 1.0) / n  # inches of a cell; 1.0 for the colour bar and the label
    flat = tallest <= room * 0.95
    tall = max(0.9, n * min(_CELL, max(_LOW, room)))  # inches of all rows
    figure = sheet(
        width,
        tall + 0.4 + (0.15 if flat else tallest + 0.1),
        title=f"Effect on {with_unit(matrix.metric, matrix.unit)} of each skill's neurons",
        lines=_lines(matrix),
        note=_note(matrix),
        exploratory=exploratory,
    )
    axis = figure.add_subplot()
    colour = -matrix.damage.numpy()
    limit = _limit(colour)
    image = axis.pcolormesh(
        np.nan_to_num(colour),
        cmap="RdBu",
        vmin=-limit,
        vmax=limit,
        edgecolors="white",
        linewidth=0.6,
    )
    axis.invert_yaxis()
    axis.set_yticks(np.arange(n) + 0.5, rows)
    axis.set_xticks(
        np.arange(n) + 0.5,
        columns,
        rotation=0 if flat else 90,
    )
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set(xlabel="task (examples)", ylabel="edited set (units)")
    _cells(axis, frame, np.abs(colour) > 0.62 * limit, room)
    bar = figure.colorbar(image, ax=axis, aspect=tall / 0.1, pad=0.03, ticks=[-limit, 0, limit])
    bar.set_label("effect (std)", labelpad=2)
    bar.outline.set_visible(False)
    settle(figure)
    return Drawing(figure, frame, file_name("damage_matrix", matrix.metric))


def _limit(colour: np.ndarray) -> float:
    most = float(np.abs(colour[np.isfinite(colour)]).max(initial=0))
    return max(0.1, float(np.ceil(most * 10) / 10))


def _lines(matrix: DamageMatrix) -> list[str]:
    shown = list(dict.fromkeys(matrix.do))
    model = str(matrix.provenance["model"]) if "model" in matrix.provenance else ""
    what = shown[0] if len(shown) == 1 else f"{shown[0]} and alike"
    return [
        " · ".join(part for part in (model, f"{matrix.site} at {matrix.position}") if part),
        what,
        f"diagonal dominance {matrix.dominance:+.2g} std · p = {matrix.p:.2g} over "
        f"{matrix.n_relabelings:,} relabelings (none can be below {1 / matrix.n_relabelings:.2g})",
    ]


def _note(matrix: DamageMatrix) -> str:
    shared = [row for row in matrix.overlaps().to_dict("records") if row["shared"] > 0]
    words = [
        f"{row['shared']} by {row['skill']} and {row['other']} (p = {row['p']:.2g})"
        for row in shared[:_PAIRS]
    ]
    more = f"; and {len(shared) - _PAIRS} more pairs" if len(shared) > _PAIRS else ""
    return (
        "*: the 95 % interval leaves out 0. Outlined: a skill's own task. Colour: effect over the "
        "std of the task's clean metric."
        + (f" Units shared: {'; '.join(words)}{more}." if words else "")
    )


def _cells(axis: Axes, frame: pd.DataFrame, dark: np.ndarray, room: float) -> None:
    n = len(dark)
    texts = [
        _signed(effect) + "*" * star
        for effect, star in zip(frame["effect"], frame["star"], strict=True)
    ]
    # Without room for the number the star stays: it is what colour cannot say.
    fits = max(text_width(text, SMALL - 0.5) for text in texts) < 0.96 * room
    for place, (text, star) in enumerate(zip(texts, frame["star"], strict=True)):
        row, column = divmod(place, n)
        axis.text(
            column + 0.5,
            row + 0.52,
            text if fits else "*" * star,
            size=SMALL - 0.5,
            color="white" if dark[row, column] else BLACK,
            ha="center",
            va="center",
        )
        if row == column:
            axis.add_patch(
                Rectangle(
                    (column, row),
                    1,
                    1,
                    fill=False,
                    edgecolor=BLACK,
                    linewidth=1.3,
                    clip_on=False,
                    zorder=3,
                )
            )


def _signed(value: float) -> str:
    """Three digits with a sign, but none on 0."""
    text = f"{value:+.2f}" if abs(value) < 100 else f"{value:+.3g}"
    text = text.replace("-", "\N{MINUS SIGN}")
    return text[1:] if not text.strip("+\N{MINUS SIGN}0.") else text
