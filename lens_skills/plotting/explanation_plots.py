"""What neurons fire for: features against neurons, a map of two numbers, shortcuts ablated."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lens_skills.errors import LensSkillsError
from lens_skills.explanation import Explanation, Explanations, Shortcuts
from lens_skills.explanation.shortcut_report import SHORTCUT
from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.heat_map import (
    HATCHED,
    colour_bar,
    heat_map,
    mark_cell,
    name_rows,
    round_limit,
)
from lens_skills.plotting.style import (
    ACTIVATION_MAP,
    BLACK,
    COLUMN,
    DAMAGE,
    DATA,
    GREY,
    PALE,
    SIZE_MAP,
    SMALL,
    About,
    Look,
    count,
    halo,
    joined,
    legend_above,
    name_lines,
    settle,
    sheet,
    source,
    text_width,
    widest,
    with_unit,
)
from lens_skills.plotting.words import metric_words, place_words, shortened
from lens_skills.results import file_name

_FEATURE_ROW, _SHORTCUT_ROW = 0.155, 0.42  # inches
_LETTERS, _LABEL = 36, 52  # of a name, and of the label of an axis, at most
_SCALE = 1.2  # inches of the colour bar with its label, at least
_NEURON_COLUMN = 0.2  # inches at most
_MOST, _BINS = 24, 18  # distinct values of an axis beyond which they are put into so many bins
_CLIPPED = 0.98  # of the cells are within the colours


def feature_matrix(explanations: Explanations, *, k: int = 24, n_neurons: int = 20) -> Drawing:
    """Variance explained, held out, of every neuron by the features that explain any of them.

    Rows are the best features of each neuron in turn, those on the surface above those that define
    the task. Outlined: the neuron's best (ranked on the other half). Hatched: within the null
    (family-wise p > 0.05).

    Args:
        explanations: From `explain`.
        k: At most so many features.
        n_neurons: At most so many neurons, in the order they were named.

    Frame: one row per cell drawn, as in ``explanations.frame()``, and whether the feature is the
    neuron's ``best``.

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
    frame = explanations.frame().set_index(["feature", "name"])
    places = [(feature, one.name) for feature in features for one in shown]
    frame = frame.loc[places].reset_index()
    frame["p"] = frame["p"].astype(float)  # None where no null was drawn
    best = {one.name: row["feature"] for one in shown if (row := one.best) is not None}
    frame["best"] = frame["feature"] == frame["name"].map(best)
    n = len(shown)
    some = f"{n} of {len(explanations)}" if n < len(explanations) else str(n)
    size = count(explanations.n_held, explanations.n_groups)
    about = {
        "title": f"What drives {some} neuron{'s' * (some != '1')}",
        "lines": [
            place_words(explanations.site, explanations.position),
            joined(*source(explanations.provenance), f"measured on {size}"),
        ],
        "note": "Outlined: the neuron's best feature on the other half. "
        + ("Hatched: within the null." if frame["p"].notna().any() else "No null was drawn."),
    }
    drawing = Drawing("feature_matrix", frame, about, name="feature_matrix")
    letters = min(max(map(len, features)), _LETTERS)
    needed = 0.06 * letters + 0.12 * n + 0.9  # inches
    return drawing.styled(width="page") if needed > COLUMN else drawing


@draws("feature_matrix")
def _draw_features(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    features, names = (list(dict.fromkeys(frame[column])) for column in ("feature", "name"))
    cells = frame.to_dict("records")
    shape = len(features), len(names)
    explained = frame["variance_explained"].to_numpy(float).reshape(shape)
    row_height = max(_FEATURE_ROW, _SCALE / len(features))
    height = len(features) * row_height
    shown, columns = ([shortened(one, _LETTERS) for one in some] for some in (features, names))
    figure = sheet(look, height + widest(columns) + 0.25, about)
    axis = figure.add_subplot()
    limit = round_limit(explained)
    image = heat_map(axis, explained, shown, columns, colours=SIZE_MAP, low=0, high=limit, turn=90)
    if look.width - widest(shown) - 1 > _NEURON_COLUMN * len(names):
        axis.set_box_aspect(height / (_NEURON_COLUMN * len(names)))
        axis.set_anchor("W")
    for place, cell in enumerate(cells):
        row, column = divmod(place, len(names))
        if cell["p"] > 0.05:
            mark_cell(axis, row, column, inset=0.04, zorder=1.5, **HATCHED)
        if cell["best"]:
            mark_cell(axis, row, column, inset=0.04, edgecolor=BLACK, linewidth=1.0, zorder=3)
    n_surface = sum(cell["surface"] for cell in cells) // len(names)
    if 0 < n_surface < len(features):
        axis.axhline(n_surface, color=BLACK, linewidth=0.9)
        name_rows(axis, "surface", 0, n_surface, len(names), row_height)
        n_task = len(features) - n_surface
        name_rows(axis, "task", n_surface, n_task, len(names), row_height)
    colour_bar(figure, image, axis, "variance explained", pad=0.1, ticks=[0, limit / 2, limit])
    return settle(figure)


def _features(shown: Sequence[Explanation], k: int) -> list[str]:
    """The best of every neuron, then the second best of every one, until there are k."""
    found: dict[str, None] = {}
    for place in range(max(len(one.rows) for one in shown)):
        for one in shown:
            if len(found) < k and place < len(one.rows):
                found.setdefault(one.rows[place]["feature"])
    return list(found)


def activation_map(
    explanations: Explanations,
    neuron: str,
    x: str = "a",
    y: str = "b",
    *,
    feature: str | None = None,
) -> Drawing:
    """Mean activation of a neuron for every pair of two numbers, its best feature outlined.

    Numbers of more than 24 values are put into bins. Cells without an example are hatched;
    outlined ones are those where the feature holds for more than half of the examples.

    Args:
        explanations: From `explain`.
        neuron: The name of one of them, such as ``"L17N635"``.
        x, y: Two number features of the bank, such as the operands.
        feature: The flag to outline; by default the flag that explains most.

    Frame: one row per cell with examples: ``x`` and ``y`` (middle of the cell), ``activation``,
    ``n`` examples, ``holds`` (the share of them that has the feature).

    Raises:
        LensSkillsError: No such neuron or number in the explanations, or no such flag.
    """
    one = explanations[neuron]
    row = _flag(one, feature)
    columns = {"x": _numbers(one, x), "y": _numbers(one, y)}
    edges = {axis: _edges(values) for axis, values in columns.items()}
    holds = np.array(one.values[row["feature"]], float) if row else np.zeros(len(one.values))
    examples = pd.DataFrame({"activation": one.activation.numpy(), "holds": holds})
    for axis, values in columns.items():
        place = np.clip(np.searchsorted(edges[axis], values, side="right") - 1, 0, None)
        examples[axis] = _middles(edges[axis])[place]
    frame = examples.groupby(["y", "x"], as_index=False).agg(
        activation=("activation", "mean"), n=("activation", "size"), holds=("holds", "mean")
    )
    sizes = " to ".join(str(n) for n in sorted({*frame["n"].agg(["min", "max"])}))
    about = {
        "title": f"{neuron} over {x} and {y}" + (f": {row['feature']}" if row else ""),
        "lines": [
            joined(place_words(explanations.site, explanations.position), *_explained(row)),
            joined(*source(explanations.provenance), count(len(examples))),
        ],
        "note": f"Mean over the examples of a cell ({sizes}); hatched: none."
        + (" Outlined: the feature holds." if row else ""),
        "neuron": neuron,
        "x": x,
        "y": y,
        "edges": edges,
        "ticks": {axis: _values(values) for axis, values in columns.items()},
    }
    return Drawing(
        "activation_map",
        frame.reindex(columns=["x", "y", "activation", "n", "holds"]),
        about,
        name=file_name("activation_map", neuron, x, y),
    )


@draws("activation_map")
def _draw_map(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    edges = {axis: np.array(about["edges"][axis]) for axis in ("x", "y")}
    grid = np.full((len(edges["y"]) - 1, len(edges["x"]) - 1), np.nan)
    inside = np.zeros(grid.shape)
    at = tuple(np.searchsorted(edges[axis], frame[axis]) - 1 for axis in ("y", "x"))
    grid[at], inside[at] = frame["activation"], frame["holds"]
    figure = sheet(look, min(0.82 * look.width, 3.6), about)
    axis = figure.add_subplot()
    # One cell far beyond all others would leave the rest without a colour.
    lowest, highest = float(np.nanmin(grid)), float(np.nanmax(grid))
    limit = float(np.nanquantile(np.abs(grid), _CLIPPED)) or max(-lowest, highest) or 1.0
    # Around 0 where there are both signs; else from 0 on, so that dark is far from it.
    low, high, colours = -limit, limit, ACTIVATION_MAP
    if lowest >= 0:
        low, colours = 0.0, SIZE_MAP
    elif highest <= 0:
        high, colours = 0.0, SIZE_MAP.reversed()
    image = axis.pcolormesh(edges["x"], edges["y"], grid, cmap=colours, vmin=low, vmax=high)
    if np.isnan(grid).any():
        axis.patch.set(**HATCHED)
        handle = Patch(facecolor="white", label="no example", **HATCHED)
        legend_above(axis, handles=[handle])
    _outline(axis, edges["x"], edges["y"], inside > 0.5)
    for name, side in (("x", axis.xaxis), ("y", axis.yaxis)):
        if values := about["ticks"][name]:
            side.set_ticks(values, [f"{value:g}" for value in values])
    axis.set(**{f"{side}label": shortened(about[side], _LETTERS) for side in ("x", "y")})
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    beyond = {(1, 1): "both", (1, 0): "min", (0, 1): "max"}.get(
        (lowest < low, highest > high), "neither"
    )
    label = f"activation of {shortened(about['neuron'], _LETTERS)}"
    colour_bar(figure, image, axis, label, pad=0.02, extend=beyond)
    return settle(figure)


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
    middle = _middles(distinct)
    first = distinct[0] - (middle[0] - distinct[0])
    last = distinct[-1] + (distinct[-1] - middle[-1])
    return np.concatenate([[first], middle, [last]])


def _middles(edges: np.ndarray) -> np.ndarray:
    return (edges[1:] + edges[:-1]) / 2


def _values(values: np.ndarray) -> list[float]:
    """The values to write beside an axis; none where they are in bins."""
    distinct = np.unique(values)
    return distinct[:: max(1, -(-len(distinct) // 12))].tolist() if len(distinct) <= _MOST else []


def _outline(axis: Axes, x: np.ndarray, y: np.ndarray, inside: np.ndarray) -> None:
    """The border of the cells that are inside, once for each neighbouring pair that differs."""
    padded = np.pad(inside, 1)
    look: dict[str, Any] = {"color": BLACK, "linewidth": 1.1, "solid_capstyle": "projecting"}
    for row, column in zip(*np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1]), strict=True):
        axis.plot([x[column]] * 2, [y[row], y[row + 1]], **look)
    for row, column in zip(*np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1]), strict=True):
        axis.plot([x[column], x[column + 1]], [y[row]] * 2, **look)


def _explained(row: Any) -> list[str]:
    if row is None:
        return []
    told = f"the feature explains {row['variance_explained']:.0%} of the variance held out"
    if row["p"] is not None:
        told += f" (p = {row['p']:.2g})"
    return [told]


def shortcut_effects(shortcuts: Shortcuts) -> Drawing:
    """Ablating each neuron or set: the effect with the feature and without, and their difference.

    Dots are mean effects on the examples with the surface feature behind it (full) and without
    (hollow); the line below is the difference with its 95 % interval, over the band of differences
    that would not matter (δ). Of a neuron that no surface feature explains: its effect on all
    examples.

    Args:
        shortcuts: From `lens_skills.shortcuts`.

    Frame: one row per neuron, then per set, as in ``shortcuts.frame()``.

    Raises:
        LensSkillsError: No neuron was tested.
    """
    tried = shortcuts.tried
    if not tried:
        raise LensSkillsError(
            "no neuron to draw: none was tested. " + " ".join(shortcuts.notes[:1])
        )
    n = len(shortcuts.confirmed)
    size = count(len(shortcuts.example_ids), shortcuts.n_groups or None)
    about = {
        "title": f"{n} of {shortcuts.said} {'is a shortcut' if n == 1 else 'are shortcuts'} for "
        f"{metric_words(shortcuts.metric)}",
        "lines": [shortcuts.do, joined(*source(shortcuts.provenance), size)],
        "note": "Line: with the feature less without, with its 95 % interval over groups (no "
        "feature: effect on all examples). Grey band: ± δ, the smallest effect that matters.",
        "label": f"change of {with_unit(shortcuts.causal_metric, shortcuts.unit)} when ablated",
    }
    return Drawing(
        "shortcut_effects",
        shortcuts.frame(),
        about,
        name=file_name("shortcut_effects", shortcuts.metric),
    )


@draws("shortcut_effects")
def _draw_shortcuts(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    neurons = frame.to_dict("records")
    figure = sheet(look, _SHORTCUT_ROW * len(neurons) + 0.75, about)
    axis = figure.add_subplot()
    for row, one in enumerate(neurons):
        _shortcut(axis, row, one, look.width - 0.75)
    axis.set_xlabel(shortened(about["label"], _LABEL))
    axis.axvline(0, color=BLACK, linewidth=0.6, zorder=1)
    name_lines(axis, range(len(neurons)), [_tried(one) for one in neurons])
    axis.set_ylim(len(neurons) - 0.45, -0.75)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    dot: dict[str, Any] = {"marker": "o", "color": DATA, "linewidth": 0, "markersize": 4}
    handles = [
        Line2D([], [], **dot, label="with it"),
        Line2D([], [], **dot, mfc="white", label="without"),
        Line2D([], [], color=BLACK, linewidth=1.2, marker="|", label="difference"),
    ]
    if any(one["word"] == SHORTCUT for one in neurons):
        line: dict[str, Any] = {"color": DAMAGE, "linewidth": 1.8, "marker": "|"}
        handles.append(Line2D([], [], **line, label="of a shortcut"))
    legend_above(axis, 4, handles=handles, columnspacing=0.9)
    return settle(figure)


def _tried(one: Mapping[str, Any]) -> str:
    """A neuron's name; of a set how many it holds, since what they share stands above the line."""
    members = one.get("members")
    several = members.split() if isinstance(members, str) else []
    return f"{len(several)} neurons" if several else shortened(one["name"], _LETTERS)


def _shortcut(axis: Axes, row: int, one: dict[str, Any], room: float) -> None:
    which = "all_" if np.isnan(one.get("value", np.nan)) else ""
    value, low, high, delta = (one[f"{which}{end}"] for end in ("value", "low", "high", "delta"))
    band = {"color": PALE, "linewidth": 0, "zorder": 0}
    axis.fill_between([-delta, delta], row - 0.16, row + 0.3, **band)
    is_one = one["word"] == SHORTCUT
    ink: dict[str, Any] = {"color": DAMAGE if is_one else BLACK, "zorder": 3}
    axis.plot([low, high], [row + 0.13] * 2, linewidth=1.8 if is_one else 1.2, **ink)
    axis.plot([value], [row + 0.13], "|", markersize=6, **ink)
    for effect, fill in ((one["effect_present"], DATA), (one["effect_absent"], "white")):
        if not np.isnan(effect):
            axis.plot([effect], [row - 0.07], "o", color=DATA, mfc=fill, markersize=4, zorder=4)
    text = one["word"] if not one["feature"] else f"{one['condition']}: {one['word']}"
    text = shortened(text, _LABEL + _LETTERS)
    while text_width(text, SMALL) > room and len(text) > 8:
        text = text[:-2].rstrip() + "…"
    halo(
        axis.annotate(
            text, (0.0, row - 0.3), xycoords=("axes fraction", "data"), size=SMALL, color=GREY,
            va="center",
        )
    )  # fmt: skip
