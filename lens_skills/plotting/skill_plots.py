"""Several metrics or skills at once: which neurons they share, and what those do.

Neurons in rows and metrics or skills in columns, and the damage of each skill's neurons to every
skill.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lens_skills.activations.components import parse_neurons, unit_name
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.damage_matrix import DamageMatrix
from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.heat_map import (
    HATCHED,
    colour_bar,
    heat_map,
    mark_cell,
    name_rows,
    round_limit,
    write_cell,
)
from lens_skills.plotting.style import (
    BLACK,
    CHANCE,
    DAMAGE,
    DASHES,
    EFFECT_MAP,
    R_MAP,
    SMALL,
    About,
    Look,
    caption,
    correlation,
    count,
    joined,
    legend_above,
    minus,
    settle,
    sheet,
    signed,
    source,
    text_width,
    widest,
    with_unit,
)
from lens_skills.plotting.words import metric_words, place_words, site_words
from lens_skills.results import file_name
from lens_skills.scoring import Scores, SkillMatrix

_LETTERS = 16  # of a position beside a neuron; the table has all of them
_PAIRS = 3  # overlaps in the note of a damage matrix
# Inches of a row: of metrics, of skills, and of a damage matrix at least and at most.
_METRIC_ROW, _SKILL_ROW, _DAMAGE_ROW = 0.155, 0.145, (0.16, 0.26)


def metric_heatmap(
    scores: Scores, *, k: int = 20, by: str | None = None, neurons: Any = None
) -> Drawing:
    """Signed r of the k strongest neurons with every metric, as a table of colours.

    Cells within a metric's permutation threshold are hatched, the numbers beyond it bold. With
    several positions a neuron stands at the one where its |r| with ``by`` is largest.

    Args:
        scores: Of any number of metrics.
        k: How many neurons.
        by: The metric that ranks them; the first where none is named.
        neurons: These instead, in this order: rows, names or a `Selection`.

    Frame: one row per cell: name layer neuron position metric r threshold beyond (NaN and False
    where no null was drawn).

    Raises:
        LensSkillsError: No such metric, or a neuron that was not scored.
    """
    by = scores.metrics[0] if by is None else by
    ranking = scores[by]
    d_head = scores.provenance.get("d_head")
    rows = ranking.top(k).rows if neurons is None else parse_neurons(neurons, scores.site, d_head)
    frame = _metric_cells(scores, _units(scores, rows.tolist()), by)
    n_rows = len(frame) // len(scores.metrics)
    strongest = f"the {n_rows} strongest by {metric_words(by)}"
    ranked = strongest if neurons is None else f"{n_rows} neurons"
    about = {
        "title": f"r with each metric: {ranked}",
        "lines": caption(scores),
        "note": "Hatched: within the permutation null (5 % family-wise). Bold: beyond it."
        if any(bar is not None for bar in scores.thresholds.values())
        else "No null was drawn: a description, not a test.",
        "exploratory": scores.exploratory,
        "with_positions": len(scores.positions) > 1,
        "scale": correlation(scores),
    }
    return Drawing("metric_heatmap", frame, about, file_name("metric_heatmap", by))


@draws("metric_heatmap")
def _draw_metric_heatmap(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    metrics = list(dict.fromkeys(frame["metric"]))
    cells = frame.iloc[:: len(metrics)]
    names = [
        f"{name} {_short(position)}" if about["with_positions"] else name
        for name, position in zip(cells["name"], cells["position"], strict=True)
    ]
    columns = [metric_words(name) for name in metrics]
    tallest = widest(columns)
    # Inches of a cell; 0.8 for the colour bar.
    room = (look.width - widest(names) - 0.8) / len(metrics)
    upright = tallest <= room * 0.95
    figure = sheet(
        look,
        max(0.9, len(names) * _METRIC_ROW) + 0.2 + (0.15 if upright else 0.72 * tallest + 0.1),
        about,
    )
    axis = figure.add_subplot()
    r = frame["r"].to_numpy(float).reshape(len(names), len(metrics))
    limit = round_limit(r)
    turn = 0 if upright else 45
    image = heat_map(axis, r, names, columns, colours=R_MAP, high=limit, turn=turn)
    plain = (frame["beyond"] | frame["threshold"].isna()).to_numpy(bool).reshape(r.shape)
    with_numbers = room > text_width("+0.00", SMALL, "bold")
    for (row, column), value in np.ndenumerate(r):
        if not plain[row, column]:
            mark_cell(axis, row, column, **HATCHED)
        if with_numbers:
            weight = "bold" if frame["beyond"].iloc[row * len(metrics) + column] else "normal"
            write_cell(axis, row, column, signed(value), image, value, weight=weight)
    colour_bar(figure, image, axis, about["scale"], pad=0.02, ticks=[-limit, 0, limit])
    return settle(figure)


def _short(position: str) -> str:
    return position if len(position) <= _LETTERS else position[: _LETTERS - 1] + "…"


def _units(scores: Scores, rows: Sequence[Sequence[int]]) -> list[int]:
    pairs = [(layer, neuron) for layer, neuron in rows]
    missing = [pair for pair in pairs if pair not in scores.places]
    if missing:
        layer, neuron = missing[0]
        raise LensSkillsError(
            f"{unit_name(layer, neuron, scores.site)} was not scored here. Name units among these "
            f"{scores.n_units:,}, e.g. scores[metric].top(20)."
        )
    if not pairs:
        raise LensSkillsError("no neurons to draw. Pass k > 0, or neurons that were scored.")
    return [scores.places[pair] for pair in pairs]


def _metric_cells(scores: Scores, units: list[int], by: str) -> pd.DataFrame:
    strongest = scores[by].strongest_position[units].tolist()
    names = scores.components(torch.tensor(units)).names
    cells: list[dict[str, Any]] = []
    for name, unit, place in zip(names, units, strongest, strict=True):
        layer, neuron = int(scores.layer[unit]), int(scores.neuron[unit])
        position = scores.positions[place]
        for column, metric in enumerate(scores.metrics):
            bar = scores.thresholds[metric]
            r = float(scores.r[column, place, unit])
            cells.append(
                {
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


def skill_matrix(matrix: SkillMatrix, *, k: int = 30) -> Drawing:
    """r of the strongest neurons with every skill, shared neurons first, alike skills side by side.

    Outlined cells: the neuron is of that skill's set. Hatched: within the skill's permutation
    null. The tree joins skills whose r are alike over all neurons (1 - |correlation|).

    Args:
        matrix: From `lens_skills.scoring.skill_matrix`.
        k: How many neurons, evenly from shared, specific and unclear ones.

    Frame: one row per cell drawn, as in ``matrix.frame()``.

    Raises:
        LensSkillsError: No neuron to draw.
    """
    rows = _evenly(matrix, k)
    if not rows:
        raise LensSkillsError("no neurons to draw: no skill's set holds any.")
    order = matrix.order
    drawn = [row * len(order) + column for row in rows for column in order]
    size = count(matrix.n_examples, matrix.n_groups)
    about = {
        "title": f"r of {len(rows)} of {len(matrix.neurons):,} neurons with each skill",
        "lines": [
            joined(site_words(matrix.site), *source(matrix.provenance), size),
            f"sets: {matrix.chosen}",
        ],
        "note": _skill_note(matrix),
        "exploratory": matrix.exploratory,
        "tested": [s for s, tested in zip(matrix.skills, matrix.tested, strict=True) if tested],
        "tree": matrix.linkage,
    }
    return Drawing("skill_matrix", matrix.frame().iloc[drawn], about, "skill_matrix")


@draws("skill_matrix")
def _draw_skill_matrix(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    skills = list(dict.fromkeys(frame["skill"]))
    columns = [metric_words(skill) for skill in skills]
    shape = (len(frame) // len(skills), len(skills))
    cells = frame.iloc[:: len(skills)]
    linked, tested = about.get("tree"), about.get("tested", skills)
    tree_high, high = 0.35 * bool(linked), shape[0] * _SKILL_ROW
    figure = sheet(look, high + widest(columns) + tree_high + 0.5, about)
    if linked:
        heights = [tree_high, high]
        tree, axis = figure.subplots(2, 1, height_ratios=heights, gridspec_kw={"hspace": 0})
        _tree(tree, np.array(linked), len(skills))
    else:
        tree = axis = figure.add_subplot()
    r = frame["r"].to_numpy(float).reshape(shape)
    limit = round_limit(r)
    image = heat_map(axis, r, list(cells["name"]), columns, colours=R_MAP, high=limit, turn=90)
    for place, cell in enumerate(frame.to_dict("records")):
        if cell["selected"]:
            mark_cell(axis, *divmod(place, len(skills)), inset=0.05, edgecolor=BLACK,
                      linewidth=0.9, zorder=3)  # fmt: skip
        elif cell["skill"] in tested and not cell["beyond"]:
            mark_cell(axis, *divmod(place, len(skills)), **HATCHED)
    kinds = list(cells["kind"])
    for kind in dict.fromkeys(kinds):
        name_rows(axis, kind, kinds.index(kind), kinds.count(kind), len(skills), _SKILL_ROW)
    handles = [Patch(facecolor="white", edgecolor=BLACK, linewidth=0.9, label="in the skill's set")]
    if tested:
        handles.append(Patch(**HATCHED, facecolor="white", label="within its null"))
    legend_above(tree, handles=handles, handlelength=1.2, borderaxespad=0.5)
    panels = [tree, axis] if linked else axis
    colour_bar(
        figure, image, panels, "Pearson r", aspect=14, shrink=min(1.0, 1.2 / (high + tree_high)),
        anchor=(0.0, 1.0), pad=0.1, ticks=[-limit, 0, limit],
    )  # fmt: skip
    return settle(figure)


def _evenly(matrix: SkillMatrix, k: int) -> list[int]:
    """Rows of the strongest of each kind, as evenly as there are; shared ones first."""
    places = {
        kind: [row for row, one in enumerate(matrix.kinds) if one == kind]
        for kind in ("shared", "specific", "unclear")
    }
    chosen: list[int] = []
    for turn in range(max([len(rows) for rows in places.values()], default=0)):
        chosen += [rows[turn] for rows in places.values() if turn < len(rows)]
    kept = set(chosen[:k])
    return [row for rows in places.values() for row in rows if row in kept]


def _skill_note(matrix: SkillMatrix) -> str:
    pairs = matrix.overlaps().sort_values("p").to_dict("records")[:2]
    words = [
        f"{metric_words(row['skill'])} and {metric_words(row['other'])} share {row['shared']}, by "
        f"chance {row['expected']:.1f} (p = {row['p']:.2g})"
        for row in pairs
    ]
    return f"Dashed: where groups part. {'; '.join(words)}."


def _tree(axis: Axes, linkage: np.ndarray, n: int) -> None:
    """The dendrogram over the columns."""
    from scipy.cluster.hierarchy import dendrogram

    drawn = dendrogram(linkage, no_plot=True)
    for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        axis.plot(np.array(x) / 10, y, color=BLACK, linewidth=0.8)  # a leaf is ten wide
    axis.axhline(0.5, color=CHANCE, linewidth=0.5, linestyle=DASHES)
    axis.set(xlim=(0, n), ylim=(0, 1.02), xticks=[], yticks=[0, 1])
    axis.spines[["bottom", "left"]].set_visible(False)
    axis.tick_params(length=0)
    axis.set_ylabel("1 − |r|", size=SMALL)


def damage_matrix(matrix: DamageMatrix, *, exploratory: bool = False) -> Drawing:
    """What editing each skill's neurons (rows) does to each task (columns), as a table of colours.

    Numbers are effects in the metric's unit, with a star where the 95 % interval leaves out 0. The
    colour is the effect over the standard deviation of the task's clean metric, so that tasks can
    be compared: blue where the metric falls. The skill's own task has a thick frame, another task
    that surely falls a red one.

    Args:
        matrix: From `lens_skills.interventions.damage_matrix`.
        exploratory: Stamp it.

    Frame: one row per cell: skill task own effect low high damage star.
    """
    frame = matrix.frame()
    frame["star"] = (frame["low"] > 0) | (frame["high"] < 0)
    shown = list(dict.fromkeys(matrix.do))
    metric = with_unit(metric_words(matrix.metric), matrix.unit)
    about = {
        "title": f"Effect on {metric} of each skill's neurons",
        "lines": [
            shown[0] if len(shown) == 1 else f"{shown[0]} and alike",
            joined(place_words(matrix.site, matrix.position), *source(matrix.provenance)),
            f"diagonal dominance {minus(f'{matrix.dominance:+.2g}')} std · p = {matrix.p:.2g} over "
            f"{matrix.n_relabelings:,} relabelings (at least {1 / matrix.n_relabelings:.2g})",
        ],
        "note": _damage_note(matrix),
        "exploratory": exploratory,
        "units": dict(zip(matrix.skills, matrix.n_units, strict=True)),
        "examples": dict(zip(matrix.skills, matrix.n_examples, strict=True)),
    }
    return Drawing("damage_matrix", frame, about, file_name("damage_matrix", matrix.metric))


@draws("damage_matrix")
def _draw_damage_matrix(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    n = len(about["units"])
    rows = [f"{skill} ({k:,})" for skill, k in about["units"].items()]
    columns = [f"{skill} ({k:,})" for skill, k in about["examples"].items()]
    tallest = widest(columns)
    room = (look.width - widest(rows) - 1.0) / n  # inches of a cell; 1.0 for the bar and the label
    flat = tallest <= room * 0.95
    tall = max(0.9, n * float(np.clip(room, *_DAMAGE_ROW)))  # inches of all rows
    figure = sheet(look, tall + 0.6 + (0.15 if flat else tallest + 0.1), about)
    axis = figure.add_subplot()
    lowered = -frame["damage"].to_numpy(float).reshape(n, n)
    limit = round_limit(lowered)
    image = heat_map(
        axis, np.nan_to_num(lowered), rows, columns, colours=EFFECT_MAP, high=limit,
        turn=0 if flat else 90,
    )  # fmt: skip
    axis.set(xlabel="task (examples)", ylabel="edited set (units)")
    cells = frame.to_dict("records")
    texts = [
        (signed(cell["effect"]) if abs(cell["effect"]) < 100 else minus(f"{cell['effect']:+.3g}"))
        + "*" * bool(cell["star"])
        for cell in cells
    ]
    # Without room for the number the star stays: it is what colour cannot say.
    fits = widest(texts, SMALL - 0.5) < 0.96 * room
    for (row, column), value in np.ndenumerate(lowered):
        text = texts[row * n + column]
        shown = text if fits else "*" * text.count("*")
        write_cell(axis, row, column, shown, image, value)
    frames = {
        "own": {"edgecolor": BLACK, "linewidth": 1.5},
        "harmed": {"edgecolor": DAMAGE, "linewidth": 1.0},
    }
    harmed = False
    for place, cell in enumerate(cells):
        falls = cell["high"] < 0 and not cell["own"]
        harmed = harmed or falls
        if cell["own"] or falls:
            mark_cell(
                axis, *divmod(place, n), inset=0 if cell["own"] else 0.04, clip_on=False, zorder=3,
                **frames["own" if cell["own"] else "harmed"],
            )  # fmt: skip
    handles = [Patch(facecolor="white", **frames["own"], label="its own task")]
    if harmed:
        handles.append(Patch(facecolor="white", **frames["harmed"], label="another task falls"))
    legend_above(axis, handles=handles, handlelength=1.2, borderaxespad=0.4)
    colour_bar(
        figure, image, axis, "effect (std)", labelpad=2, aspect=tall / 0.1, pad=0.03,
        ticks=[-limit, 0, limit],
    )  # fmt: skip
    return settle(figure)


def _damage_note(matrix: DamageMatrix) -> str:
    shared = [row for row in matrix.overlaps().to_dict("records") if row["shared"] > 0]
    words = [
        f"{row['shared']} by {row['skill']} and {row['other']} (p = {row['p']:.2g})"
        for row in shared[:_PAIRS]
    ]
    more = f"; and {len(shared) - _PAIRS} more pairs" if len(shared) > _PAIRS else ""
    return (
        "*: the 95 % interval leaves out 0. Colour: effect over the std of the task's clean metric."
        + (f" Units shared: {'; '.join(words)}{more}." if words else "")
    )
