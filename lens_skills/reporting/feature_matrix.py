"""Features in rows, neurons in columns: which feature explains how much of which neuron."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from lens_skills.errors import LensSkillsError
from lens_skills.explanation import Explanations
from lens_skills.reporting.caption import count
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import (
    BLACK,
    COLUMN,
    GREY,
    SMALL,
    settle,
    sheet,
    style,
    text_width,
)

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
