"""Tables of colours: named rows and columns, cells with a frame, a hatch or a number, a bar."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Real
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lens_skills.plotting.style import BLACK, EFFECT_MAP, GREY, HATCH, SMALL, text_width

# A cell within its null.
HATCHED: dict[str, Any] = {"hatch": "//////", "edgecolor": HATCH, "linewidth": 0}


def heat_map(
    axis: Axes,
    values: Real[np.ndarray, "row column"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    colours: Colormap = EFFECT_MAP,
    low: float | None = None,
    high: float,
    turn: float = 0,
    gap: float = 0.6,
) -> QuadMesh:
    """The values as a table of colours, the first row on top; cell (0, 0) goes from 0 to 1.

    Colours run from ``low`` (-high where none is given) to ``high``. Columns' names are turned by
    ``turn`` degrees, and between cells are ``gap`` points of white.
    """
    low = -high if low is None else low
    image = axis.pcolormesh(
        values, cmap=colours, vmin=low, vmax=high, edgecolors="white", linewidth=gap
    )
    axis.invert_yaxis()
    axis.set_yticks(np.arange(len(rows)) + 0.5, rows)
    # A name that leans ends below its column.
    leaning: dict[str, Any] = {"ha": "right", "rotation_mode": "anchor"} if turn % 90 else {}
    axis.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=turn, **leaning)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return image


def round_limit(values: Real[np.ndarray, "..."]) -> float:
    """The largest finite size among the values, rounded up to tenths; 0.1 at least.

    >>> round_limit(np.array([0.31, -0.42, np.nan]))
    0.5
    """
    most = float(np.abs(values[np.isfinite(values)]).max(initial=0))
    return max(0.1, float(np.ceil(most * 10) / 10))


def colour_bar(
    figure: Figure,
    image: Any,
    axes: Any,
    label: str = "",
    *,
    labelpad: float = 1,
    aspect: float = 30,
    **options: Any,
) -> Any:
    """The scale of the colours beside the panels, without a frame."""
    bar = figure.colorbar(image, ax=axes, aspect=aspect, **options)
    bar.set_label(label, labelpad=labelpad)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return bar


def mark_cell(axis: Axes, row: int, column: int, *, inset: float = 0.0, **look: Any) -> None:
    """A frame or a hatch on a cell, ``inset`` of its width within its borders."""
    side = 1 - 2 * inset
    look = {"fill": False} | look
    axis.add_patch(Rectangle((column + inset, row + inset), side, side, **look))


def write_cell(
    axis: Axes, row: int, column: int, text: str, image: Any, value: float, **look: Any
) -> None:
    """Text in the middle of a cell of `heat_map`'s image: black or white, whichever is plainer.

    By the relative luminance of the cell's colour; at 0.18 both have the same contrast (WCAG 2).
    """
    red, green, blue, opaque = image.to_rgba(value)
    luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    look = {"color": "white" if opaque and luminance < 0.18 else BLACK} | look
    axis.text(column + 0.5, row + 0.52, text, size=SMALL - 0.5, ha="center", va="center", **look)


def name_rows(
    axis: Axes, name: str, first: int, size: int, n_columns: int, row_height: float
) -> None:
    """A name with a line for ``size`` rows that stand together, at the right of the table.

    It is written upright, or cut short where rows of that height (inches) leave no room.
    """
    x = n_columns + 0.12
    axis.plot([x, x], [first + 0.12, first + size - 0.12], color=GREY, clip_on=False, linewidth=0.8)
    fits = size * row_height > text_width(name, SMALL) + 0.02
    axis.annotate(
        name if fits else name[:3] + ".", (x, first + size / 2), xytext=(3, 0),
        textcoords="offset points", rotation=90 if fits else 0, size=SMALL, color=GREY,
        va="center", annotation_clip=False,
    )  # fmt: skip
    axis.set_xlim(0, n_columns)
