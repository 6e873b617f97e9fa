"""Neurons in rows, skills in columns: who is shared, who is specific, which skills are alike."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from lens_skills.errors import LensSkillsError
from lens_skills.reporting.caption import count
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import BLACK, COLUMN, GREY, SMALL, settle, sheet, style, text_width
from lens_skills.scoring import SkillMatrix

_CELL = 0.145  # inches of a row
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
        len(rows) * _CELL + tallest + tree_high + 0.35,
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
        note=_note(matrix),
        exploratory=matrix.exploratory,
    )
    tree, axis = figure.subplots(
        2, 1, height_ratios=[tree_high, len(rows) * _CELL], gridspec_kw={"hspace": 0}
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
    _cells(axis, matrix, rows, order)
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


def _note(matrix: SkillMatrix) -> str:
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


def _cells(axis: Axes, matrix: SkillMatrix, rows: list[int], order: list[int]) -> None:
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
        fits = size * _CELL > text_width(kind, SMALL) + 0.02
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
