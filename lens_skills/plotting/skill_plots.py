"""Which of the strongest neurons go with which metric.

Neurons in rows, skills in columns: who is shared, who is specific, which skills are alike.

What the neurons of each skill do to every skill.

Whether several prompts find the same neurons: overlap, signs and ranks of every pair.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from lens_skills.activations.components import parse_neurons
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.damage_matrix import DamageMatrix
from lens_skills.plotting.drawing import Drawing
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
    settle,
    sheet,
    style,
    text_width,
    with_unit,
)
from lens_skills.results import file_name
from lens_skills.scoring import Scores, SkillMatrix, Stability

_DAMAGE_CELL, _LOW = 0.26, 0.16  # inches of a row, at most and at least


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
    widest = max(text_width(name, SMALL) for name in rows)
    tallest = max(text_width(name, SMALL) for name in columns)
    room = (width - widest - 1.0) / n  # inches of a cell; 1.0 for the colour bar and the label
    flat = tallest <= room * 0.95
    tall = max(0.9, n * min(_DAMAGE_CELL, max(_LOW, room)))  # inches of all rows
    figure = sheet(
        width,
        tall + 0.4 + (0.15 if flat else tallest + 0.1),
        title=f"Effect on {with_unit(matrix.metric, matrix.unit)} of each skill's neurons",
        lines=_lines(matrix),
        note=_damage_note(matrix),
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
    _damage_cells(axis, frame, np.abs(colour) > 0.62 * limit, room)
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


def _damage_cells(axis: Axes, frame: pd.DataFrame, dark: np.ndarray, room: float) -> None:
    n = len(dark)
    texts = [
        _damage_signed(effect) + "*" * star
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


def _damage_signed(value: float) -> str:
    """Three digits with a sign, but none on 0."""
    text = f"{value:+.2f}" if abs(value) < 100 else f"{value:+.3g}"
    text = text.replace("-", "\N{MINUS SIGN}")
    return text[1:] if not text.strip("+\N{MINUS SIGN}0.") else text


_HEATMAP_CELL = 0.155  # inches of a row


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
        max(0.9, n_rows * _HEATMAP_CELL) + 0.2 + (0.15 if upright else 0.72 * tallest + 0.1),
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
    _heatmap_cells(axis, r, beyond | ~tested, limit, with_numbers=with_numbers)
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


def _heatmap_cells(
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
                _heatmap_signed(value),
                size=SMALL - 0.5,
                color=colour if plain[row, column] else GREY,
                ha="center",
                va="center",
            )


def _heatmap_signed(value: float) -> str:
    """Two decimals with a sign, but no sign on 0.00."""
    text = f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if text.endswith("0.00") else text


def _shortened(position: str) -> str:
    return position if len(position) <= _SHORT else position[: _SHORT - 1] + "…"


_ROW = 0.2  # inches of a pair


@style()
def stability(found: Stability, *, width: float = COLUMN) -> Drawing:
    """Every pair of prompts: neurons they share against chance, same signs, and rank correlation.

    Left: shared neurons among each prompt's strongest, with what random sets would share among all
    neurons, and with the same counts per layer. Right: share of significant neurons with the same
    sign, and Spearman's correlation of |r| over all neurons.

    Args:
        found: From `lens_skills.scoring.stability`.
        width: Inches.

    Frame: one row per pair, as in ``found.frame()``.
    """
    frame = found.frame()
    names = [f"{one} – {other}" for one, other in found.pairs.tolist()]
    model = str(found.provenance.get("scores", [{}])[0].get("model", "")).split(" with soft")[0]
    source = [part for part in (model, found.site, f"{found.n_units:,} neurons") if part]
    stable = (
        f"{len(found.stable):,} neurons significant with one sign under every prompt"
        if bool((found.n_significant >= 0).all())
        else "no null was drawn: significance unknown"
    )
    figure = sheet(
        width,
        max(0.9, _ROW * len(frame) + 0.3) + 0.85,
        title=f"{found.metric}: the same neurons under {found.n_prompts} prompts?",
        lines=[" · ".join(source), stable],
        note="" if found.same_examples else "Other examples per prompt: those differ too.",
        exploratory=found.exploratory,
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
    left.set_yticks(rows, names)
    left.set_ylim(len(frame) - 0.4, -0.6)
    left.set(xlabel=f"of the {found.top} strongest", ylabel="prompts", xlim=(0, None))
    left.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    _agreement(right, found, rows)
    for axis in (left, right):
        axis.tick_params(axis="y", length=0)
        axis.legend(
            loc="lower left", bbox_to_anchor=(-0.04, 1.0), borderaxespad=0.1, labelspacing=0.2,
            handlelength=1.0,
        )  # fmt: skip
    settle(figure)
    return Drawing(figure, frame, file_name("stability", found.metric))


def _agreement(axis: Axes, found: Stability, rows: np.ndarray) -> None:
    told = ~found.sign_agreement.isnan().numpy()
    axis.plot(
        found.sign_agreement.numpy()[told], rows[told], linestyle="none", marker="o", color=GREEN,
        markersize=4.5, label="same sign (share)",
    )  # fmt: skip
    axis.plot(
        found.rank_r.numpy(), rows, linestyle="none", marker="s", markerfacecolor="white",
        color=BLACK, markersize=4.5, label="rank correlation",
    )  # fmt: skip
    low = min(0.0, float(np.nanmin(found.rank_r.numpy())) - 0.05)
    axis.axvline(0.5, color=GREY, linestyle=(0, (3, 2)), linewidth=0.7)
    axis.set_xlim(low, 1.04)
    axis.set_xlabel("agreement (0.5: coin signs)", size=SMALL)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4))


_SKILL_CELL = 0.145  # inches of a row


_LETTERS = {"shared": "shared", "specific": "specific", "unclear": "unclear"}


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
    rows = _rows(matrix, k)
    if not rows:
        raise LensSkillsError("no neurons to draw: no skill's set holds any.")
    order = matrix.order
    names = [matrix.names[row] for row in rows]
    skills = [matrix.skills[column] for column in order]
    tallest = max(text_width(skill, SMALL) for skill in skills)
    kinds = [matrix.kinds[row] for row in rows]
    tree_high = 0.35
    figure = sheet(
        width,
        len(rows) * _SKILL_CELL + tallest + tree_high + 0.35,
        title=f"r of {len(rows)} of {len(matrix.neurons):,} neurons with each skill",
        lines=[
            " · ".join(
                str(part)
                for part in (
                    matrix.provenance.get("model", ""),
                    matrix.site,
                    count(matrix.n_examples, matrix.n_groups),
                )
                if part
            ),
            f"sets: {matrix.chosen}",
        ],
        note=_skill_note(matrix),
        exploratory=matrix.exploratory,
    )
    tree, axis = figure.subplots(
        2, 1, height_ratios=[tree_high, len(rows) * _SKILL_CELL], gridspec_kw={"hspace": 0}
    )
    r = matrix.r[rows][:, order].numpy()
    limit = max(0.1, float(np.ceil(np.abs(r).max() * 10) / 10))
    image = axis.pcolormesh(
        r, cmap="RdBu_r", vmin=-limit, vmax=limit, edgecolors="white", linewidth=0.6
    )
    axis.invert_yaxis()
    axis.set_yticks(np.arange(len(rows)) + 0.5, names)
    axis.set_xticks(np.arange(len(order)) + 0.5, skills, rotation=90)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    _skill_cells(axis, matrix, rows, order)
    _kinds(axis, kinds, len(order))
    _tree(tree, matrix)
    bar = figure.colorbar(image, ax=[tree, axis], aspect=30, pad=0.12, ticks=[-limit, 0, limit])
    bar.set_label("Pearson r", labelpad=1)
    bar.outline.set_visible(False)
    settle(figure)
    frame = matrix.frame()
    drawn = [row * len(order) + column for row in rows for column in order]
    return Drawing(figure, frame.iloc[drawn].reset_index(drop=True), "skill_matrix")


def _rows(matrix: SkillMatrix, k: int) -> list[int]:
    """The strongest of each kind, as evenly as there are; shared ones first."""
    places = {kind: [i for i, one in enumerate(matrix.kinds) if one == kind] for kind in _LETTERS}
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
    return (
        "Outlined: of the skill's set. Hatched: within its null. Dashed: where groups part. "
        + "; ".join(words)
        + "."
    )


def _skill_cells(axis: Axes, matrix: SkillMatrix, rows: list[int], order: list[int]) -> None:
    for i, row in enumerate(rows):
        for j, column in enumerate(order):
            look: dict[str, Any] = {"fill": False}
            if matrix.selected[row, column]:
                look |= {"edgecolor": BLACK, "linewidth": 0.9, "zorder": 3}
            elif matrix.tested[column] and not matrix.beyond[row, column]:
                look |= {"hatch": "//////", "edgecolor": "#C4C4C4", "linewidth": 0}
            else:
                continue
            axis.add_patch(Rectangle((j + 0.04, i + 0.06), 0.92, 0.88, **look))


def _kinds(axis: Axes, kinds: list[str], n_skills: int) -> None:
    """The kinds' names beside their rows, with a line between them."""
    for kind in dict.fromkeys(kinds):
        first, size = kinds.index(kind), kinds.count(kind)
        axis.plot(
            [n_skills + 0.12] * 2, [first + 0.12, first + size - 0.12], color=GREY, clip_on=False,
            linewidth=0.8,
        )  # fmt: skip
        fits = size * _SKILL_CELL > text_width(kind, SMALL) + 0.02
        axis.annotate(
            kind if fits else kind[:2] + ".",
            (n_skills + 0.12, first + size / 2),
            xytext=(3, 0),
            textcoords="offset points",
            rotation=90 if fits else 0,
            size=SMALL,
            color=GREY,
            va="center",
            annotation_clip=False,
        )
    axis.set_xlim(0, n_skills)


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
