"""Several metrics, skills or prompts at once: which neurons they share, and what those do.

Neurons in rows and metrics or skills in columns, the damage of each skill's neurons to every
skill, and the agreement of every two prompts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lens_skills.activations.components import parse_neurons, unit_name
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.damage_matrix import DamageMatrix
from lens_skills.plotting.drawing import Drawing, finished
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
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    SMALL,
    caption,
    correlation,
    count,
    joined,
    legend_above,
    minus,
    sheet,
    signed,
    style,
    text_width,
    widest,
    with_unit,
)
from lens_skills.scoring import ScoreComparison, Scores, SkillMatrix

_LETTERS = 16  # of a position beside a neuron; the table has all of them
_PAIRS = 3  # overlaps in the note of a damage matrix
# Inches of a row: of metrics, of skills, of pairs of prompts, and of a damage matrix at least and
# at most.
_METRIC_ROW, _SKILL_ROW, _PAIR_ROW, _DAMAGE_ROW = 0.155, 0.145, 0.2, (0.16, 0.26)


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
    d_head = scores.provenance.get("d_head")
    rows = ranking.top(k).rows if neurons is None else parse_neurons(neurons, scores.site, d_head)
    frame = _metric_cells(scores, _units(scores, rows.tolist()), by)
    n_columns = len(scores.metrics)
    names = frame["row"].tolist()[::n_columns]
    n_rows = len(names)
    tallest = widest(scores.metrics)
    room = (width - widest(names) - 0.8) / n_columns  # inches of a cell; 0.8 for the colour bar
    upright = tallest <= room * 0.95
    ranked = f"the {n_rows} strongest by {by}" if neurons is None else f"{n_rows} neurons"
    figure = sheet(
        width,
        max(0.9, n_rows * _METRIC_ROW) + 0.2 + (0.15 if upright else 0.72 * tallest + 0.1),
        title=f"r with each metric: {ranked}",
        lines=caption(scores),
        note="Hatched: within the permutation null (5 % family-wise)."
        if any(bar is not None for bar in scores.thresholds.values())
        else "No null was drawn: a description, not a test.",
        exploratory=scores.exploratory,
    )
    axis = figure.add_subplot()
    r = frame["r"].to_numpy().reshape(n_rows, n_columns)
    limit = round_limit(r)
    image = heat_map(axis, r, names, scores.metrics, high=limit, turn=0 if upright else 45)
    plain = (frame["beyond"] | frame["threshold"].isna()).to_numpy(bool).reshape(r.shape)
    with_numbers = room > text_width("+0.00", SMALL)
    for (row, column), value in np.ndenumerate(r):
        if not plain[row, column]:
            mark_cell(axis, row, column, **HATCHED)
        if with_numbers:
            look = {} if plain[row, column] else {"color": GREY}
            write_cell(axis, row, column, signed(value), value / limit, **look)
    colour_bar(figure, image, axis, correlation(scores), pad=0.02, ticks=[-limit, 0, limit])
    return finished(figure, frame.drop(columns="row"), "metric_heatmap", by)


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
        short = position if len(position) <= _LETTERS else position[: _LETTERS - 1] + "…"
        for column, metric in enumerate(scores.metrics):
            bar = scores.thresholds[metric]
            r = float(scores.r[column, place, unit])
            cells.append(
                {
                    "row": name if len(scores.positions) == 1 else f"{name} {short}",
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


@style()
def skill_matrix(matrix: SkillMatrix, *, k: int = 30, width: float = COLUMN) -> Drawing:
    """r of the strongest neurons with every skill, shared neurons first, alike skills side by side.

    Outlined cells: the neuron is of that skill's set. Hatched: within the skill's permutation
    null. The tree joins skills whose r are alike over all neurons (1 - |correlation|).

    Args:
        matrix: From `lens_skills.scoring.skill_matrix`.
        k: How many neurons, evenly from shared, specific and unclear ones.
        width: Inches.

    Frame: one row per cell drawn, as in ``matrix.frame()``.

    Raises:
        LensSkillsError: No neuron to draw.
    """
    rows = _evenly(matrix, k)
    if not rows:
        raise LensSkillsError("no neurons to draw: no skill's set holds any.")
    order = matrix.order
    skills = [matrix.skills[column] for column in order]
    tree_high, high = 0.35, len(rows) * _SKILL_ROW
    size = count(matrix.n_examples, matrix.n_groups)
    figure = sheet(
        width,
        high + widest(skills) + tree_high + 0.35,
        title=f"r of {len(rows)} of {len(matrix.neurons):,} neurons with each skill",
        lines=[
            joined(matrix.provenance.get("model"), matrix.site, size),
            f"sets: {matrix.chosen}",
        ],
        note=_skill_note(matrix),
        exploratory=matrix.exploratory,
    )
    tree, axis = figure.subplots(2, 1, height_ratios=[tree_high, high], gridspec_kw={"hspace": 0})
    r = matrix.r[rows][:, order].numpy()
    limit = round_limit(r)
    image = heat_map(axis, r, [matrix.names[row] for row in rows], skills, high=limit, turn=90)
    for i, row in enumerate(rows):
        for j, column in enumerate(order):
            if matrix.selected[row, column]:
                look = {"edgecolor": BLACK, "linewidth": 0.9, "zorder": 3}
            elif matrix.tested[column] and not matrix.beyond[row, column]:
                look = HATCHED
            else:
                continue
            mark_cell(axis, i, j, inset=0.05, **look)
    kinds = [matrix.kinds[row] for row in rows]
    for kind in dict.fromkeys(kinds):
        name_rows(axis, kind, kinds.index(kind), kinds.count(kind), len(order), _SKILL_ROW)
    _tree(tree, matrix)
    colour_bar(figure, image, [tree, axis], "Pearson r", pad=0.12, ticks=[-limit, 0, limit])
    drawn = [row * len(order) + column for row in rows for column in order]
    return finished(figure, matrix.frame().iloc[drawn].reset_index(drop=True), "skill_matrix")


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
        f"{row['skill']} and {row['other']} share {row['shared']}, by chance {row['expected']:.1f} "
        f"(p = {row['p']:.2g})"
        for row in pairs
    ]
    marks = "Outlined: of the skill's set. Hatched: within its null. Dashed: where groups part."
    return f"{marks} {'; '.join(words)}."


def _tree(axis: Axes, matrix: SkillMatrix) -> None:
    """The dendrogram over the columns."""
    from scipy.cluster.hierarchy import dendrogram

    drawn = dendrogram(matrix.linkage.numpy(), no_plot=True)
    for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        axis.plot(np.array(x) / 10, y, color=BLACK, linewidth=0.8)  # a leaf is ten wide
    axis.axhline(0.5, color=GREY, linewidth=0.5, linestyle=(0, (2, 2)))
    axis.set(xlim=(0, len(matrix.skills)), ylim=(0, 1.02), xticks=[], yticks=[0, 1])
    axis.spines[["bottom", "left"]].set_visible(False)
    axis.tick_params(length=0)
    axis.set_ylabel("1 − |r|", size=SMALL)


@style()
def damage_matrix(
    matrix: DamageMatrix, *, exploratory: bool = False, width: float = COLUMN
) -> Drawing:
    """What editing each skill's neurons (rows) does to each task (columns), as a table of colours.

    Numbers are effects in the metric's unit, with a star where the 95 % interval leaves out 0. The
    colour is the effect over the standard deviation of the task's clean metric, so that tasks can
    be compared: red is damage. The skill's own task is outlined.

    Args:
        matrix: From `lens_skills.interventions.damage_matrix`.
        exploratory: Stamp it.
        width: Inches.

    Frame: one row per cell: skill task own effect low high damage star.
    """
    frame = matrix.frame()
    frame["star"] = (frame["low"] > 0) | (frame["high"] < 0)
    n = len(matrix.skills)
    rows = [f"{s} ({k:,})" for s, k in zip(matrix.skills, matrix.n_units, strict=True)]
    columns = [f"{s} ({k:,})" for s, k in zip(matrix.skills, matrix.n_examples, strict=True)]
    tallest = widest(columns)
    room = (width - widest(rows) - 1.0) / n  # inches of a cell; 1.0 for the bar and the label
    flat = tallest <= room * 0.95
    tall = max(0.9, n * float(np.clip(room, *_DAMAGE_ROW)))  # inches of all rows
    figure = sheet(
        width,
        tall + 0.4 + (0.15 if flat else tallest + 0.1),
        title=f"Effect on {with_unit(matrix.metric, matrix.unit)} of each skill's neurons",
        lines=_damage_lines(matrix),
        note=_damage_note(matrix),
        exploratory=exploratory,
    )
    axis = figure.add_subplot()
    lowered = -matrix.damage.numpy()
    limit = round_limit(lowered)
    image = heat_map(
        axis, np.nan_to_num(lowered), rows, columns, colours="RdBu", high=limit,
        turn=0 if flat else 90,
    )  # fmt: skip
    axis.set(xlabel="task (examples)", ylabel="edited set (units)")
    texts = [
        (signed(effect) if abs(effect) < 100 else minus(f"{effect:+.3g}")) + "*" * star
        for effect, star in zip(frame["effect"], frame["star"], strict=True)
    ]
    # Without room for the number the star stays: it is what colour cannot say.
    fits = widest(texts, SMALL - 0.5) < 0.96 * room
    for (row, column), value in np.ndenumerate(lowered):
        text = texts[row * n + column]
        write_cell(axis, row, column, text if fits else "*" * text.count("*"), value / limit)
    for row in range(n):
        mark_cell(axis, row, row, edgecolor=BLACK, linewidth=1.3, clip_on=False, zorder=3)
    colour_bar(
        figure, image, axis, "effect (std)", labelpad=2, aspect=tall / 0.1, pad=0.03,
        ticks=[-limit, 0, limit],
    )  # fmt: skip
    return finished(figure, frame, "damage_matrix", matrix.metric)


def _damage_lines(matrix: DamageMatrix) -> list[str]:
    shown = list(dict.fromkeys(matrix.do))
    return [
        joined(matrix.provenance.get("model"), f"{matrix.site} at {matrix.position}"),
        shown[0] if len(shown) == 1 else f"{shown[0]} and alike",
        f"diagonal dominance {matrix.dominance:+.2g} std · p = {matrix.p:.2g} over "
        f"{matrix.n_relabelings:,} relabelings (none can be below {1 / matrix.n_relabelings:.2g})",
    ]


def _damage_note(matrix: DamageMatrix) -> str:
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


@style()
def compare_scores(comparison: ScoreComparison, *, width: float = COLUMN) -> Drawing:
    """Every pair of prompts: neurons they share against chance, same signs, and rank correlation.

    Left: shared neurons among each prompt's strongest, with what random sets would share among all
    neurons, and with the same counts per layer. Right: share of significant neurons with the same
    sign, and Spearman's correlation of |r| over all neurons.

    Args:
        comparison: From `lens_skills.scoring.compare_scores`.
        width: Inches.

    Frame: one row per pair, as in ``comparison.frame()``.
    """
    frame = comparison.frame()
    model = str(comparison.provenance.get("scores", [{}])[0].get("model", "")).split(" with soft")[
        0
    ]
    stable = (
        f"{len(comparison.stable):,} neurons significant with one sign under every prompt"
        if bool((comparison.n_significant >= 0).all())
        else "no null was drawn: significance unknown"
    )
    figure = sheet(
        width,
        max(0.9, _PAIR_ROW * len(frame) + 0.3) + 0.85,
        title=f"{comparison.metric}: the same neurons under {comparison.n_prompts} prompts?",
        lines=[joined(model, comparison.site, f"{comparison.n_units:,} neurons"), stable],
        note="" if comparison.same_examples else "Other examples per prompt: those differ too.",
        exploratory=comparison.exploratory,
    )
    left, right = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(frame))
    left.barh(rows, frame["shared"], height=0.55, color=BLUE, alpha=0.8, label="shared")
    for column, marker, colour, words in (
        ("expected", "|", BLACK, "chance"),
        ("expected_by_layer", "D", ORANGE, "chance by layer"),
    ):
        left.plot(
            frame[column], rows, linestyle="none", marker=marker, color=colour, label=words,
            markersize=7 if marker == "|" else 3.5, markeredgewidth=1.2 if marker == "|" else 0.5,
            markeredgecolor=BLACK,
        )  # fmt: skip
    left.set_yticks(rows, [f"{one} – {other}" for one, other in comparison.pairs.tolist()])
    left.set_ylim(len(frame) - 0.4, -0.6)
    left.set(xlabel=f"of the {comparison.top} strongest", ylabel="prompts", xlim=(0, None))
    left.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    _agreement(right, comparison, rows)
    for axis in (left, right):
        axis.tick_params(axis="y", length=0)
        legend_above(axis, 1, left=-0.04, handlelength=1.0)
    return finished(figure, frame, "compare_scores", comparison.metric)


def _agreement(axis: Axes, comparison: ScoreComparison, rows: np.ndarray) -> None:
    told = ~comparison.sign_agreement.isnan().numpy()
    axis.plot(
        comparison.sign_agreement.numpy()[told], rows[told], linestyle="none", marker="o",
        color=GREEN, markersize=4.5, label="same sign (share)",
    )  # fmt: skip
    axis.plot(
        comparison.rank_r.numpy(), rows, linestyle="none", marker="s", markerfacecolor="white",
        color=BLACK, markersize=4.5, label="rank correlation",
    )  # fmt: skip
    low = min(0.0, float(np.nanmin(comparison.rank_r.numpy())) - 0.05)
    axis.axvline(0.5, color=GREY, linestyle=(0, (3, 2)), linewidth=0.7)
    axis.set_xlim(low, 1.04)
    axis.set_xlabel("agreement (0.5: coin signs)", size=SMALL)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
