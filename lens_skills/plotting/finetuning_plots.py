"""Tasks learned in turn: the accuracy on each after each, and what every mask forgets."""

from math import ceil

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lens_skills.finetuning import Continual
from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.heat_map import colour_bar, heat_map, mark_cell, write_cell
from lens_skills.plotting.style import (
    BLACK,
    CHANCE,
    DASHES,
    DATA,
    OTHERS,
    SIZE_MAP,
    SMALL,
    About,
    Look,
    joined,
    settle,
    sheet,
    widest,
)

NAMES = {
    "full": "all parameters",
    "ncft": "task's neurons",
    "w_ncft": "same, weighted",
    "random": "random neurons",
    "top_r": "largest |r|",
}
_SHOWN = {"forgetting": "forgotten", "learned": "just after", "final": "at the end"}
_PANEL = 1.15  # inches of a matrix and its title


def _about(found: Continual, title: str, note: str) -> dict[str, object]:
    seeds = f"{len(found.seeds)} {'seed' if len(found.seeds) == 1 else 'seeds'}"
    tests = sorted({min(found.n_test), max(found.n_test)})
    examples = f"{'–'.join(map(str, tests))} test examples a task"
    return {
        "title": title,
        "lines": [
            joined(found.provenance["model"], f"in turn: {', '.join(found.tasks)}"),
            joined(f"masks of {found.n_neurons:,} neurons", seeds, examples),
        ],
        "note": note,
        "tasks": list(found.tasks),
        "masks": list(found.masks),
    }


def accuracy_matrices(found: Continual) -> Drawing:
    """Accuracy on every task (columns) after each was learned (rows), one panel per mask.

    Means over the seeds, in per cent. A frame marks the task that was just learned: below it the
    column shows what of it is kept.

    Args:
        found: From `lens_skills.continual`.

    Frame: one row per mask, stage and task: mask stage learned task accuracy.
    """
    names = ["mask", "stage", "learned", "task"]
    frame = pd.DataFrame(found.frame().groupby(names, sort=False)["accuracy"].mean()).reset_index()
    note = "Means over seeds, per cent of the answers. Frame: the task just learned."
    about = _about(found, "Accuracy on each task after each was learned", note)
    return Drawing("accuracy_matrices", frame, about, "accuracy_matrices")


@draws("accuracy_matrices", width="page")
def _draw_accuracy_matrices(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    tasks, masks = about["tasks"], about["masks"]
    rows = ["before", *(f"after {task}" for task in tasks)]
    side = widest(rows) + 0.5  # and the bar
    each = max(0.8, 0.42 * len(tasks))
    n_columns = max(1, min(len(masks), int((look.width - side) / each)))
    n_rows = ceil(len(masks) / n_columns)
    lean = widest(tasks) > (look.width - side) / n_columns / len(tasks) * 0.9
    height = n_rows * (_PANEL + 0.18 * len(tasks) / 3 + (widest(tasks) if lean else 0))
    figure = sheet(look, height, about)
    axes = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    image = None
    for place, axis in enumerate(axes.flat):
        if place >= len(masks):
            axis.set_visible(False)
            continue
        own = frame.loc[frame["mask"] == masks[place]]
        values = own["accuracy"].to_numpy(float).reshape(len(rows), len(tasks))
        image = heat_map(
            axis, values, rows, tasks, colours=SIZE_MAP, low=0.0, high=1.0, turn=90 if lean else 0
        )
        for (row, column), value in np.ndenumerate(values):
            write_cell(axis, row, column, f"{100 * value:.0f}", image, value)
        for row in range(1, len(rows)):
            mark_cell(axis, row, row - 1, edgecolor=BLACK, linewidth=1.2, clip_on=False, zorder=3)
        axis.set_title(NAMES.get(masks[place], masks[place]), fontsize=SMALL + 0.5)
    axes[0, 0].set_ylim(len(rows), 0)  # shared: every panel has turned it round
    if image is not None:
        colour_bar(figure, image, axes, "accuracy", aspect=18)
    return settle(figure)


def forgetting(found: Continual) -> Drawing:
    """What each mask forgets and keeps: points are seeds, bars means with 95 % intervals.

    Left: the mean drop of the accuracy on a task from its best to after the last task. Middle: the
    mean accuracy on each task right after it was learned. Right: on all of them after the last.

    Args:
        found: From `lens_skills.continual`.

    Frame: one row per measure, mask and seed: measure mask seed value mean low high.
    """
    ends = found.summary().set_index(["measure", "mask"])
    rows = [
        {
            "measure": measure,
            "mask": mask,
            "seed": seed,
            "value": float(found.values(measure)[m, s]),
            **{name: float(ends.loc[(measure, mask), name]) for name in ("mean", "low", "high")},
        }
        for measure in _SHOWN
        for m, mask in enumerate(found.masks)
        for s, seed in enumerate(found.seeds)
    ]
    note = (
        "Share of the answers: forgotten; right just after each task; right at the end. Points: "
        "seeds. Bars: means and 95 % intervals over seeds (Student's t)."
    )
    if "full" in found.masks:
        note += " Dashed: all parameters."
    about = _about(found, "What is forgotten, and what is learned", note)
    return Drawing("forgetting", pd.DataFrame(rows), about, "forgetting")


@draws("forgetting", width="page")
def _draw_forgetting(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    masks = about["masks"]
    figure = sheet(look, 0.24 * len(masks) + 0.75, about)
    axes = figure.subplots(1, len(_SHOWN), sharey=True)
    for axis, (measure, words) in zip(axes, _SHOWN.items(), strict=True):
        _measure(axis, frame.loc[frame["measure"] == measure], masks)
        axis.set_xlabel(words)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=3))
    axes[0].set_yticks(range(len(masks)), [NAMES.get(mask, mask) for mask in masks])
    axes[0].set_ylim(len(masks) - 0.5, -0.5)
    return settle(figure)


def _measure(axis: Axes, frame: pd.DataFrame, masks: list[str]) -> None:
    for row, mask in enumerate(masks):
        own = frame.loc[frame["mask"] == mask]
        mean, low, high = own[["mean", "low", "high"]].to_numpy(float)[0].tolist()
        if mask == "full":
            axis.axvline(mean, color=CHANCE, linestyle=DASHES, linewidth=0.8, zorder=1)
        beside = np.linspace(-0.16, 0.16, len(own)) if len(own) > 1 else np.zeros(1)
        axis.plot(
            own["value"], row + beside, linestyle="none", marker="o", markersize=3, color=OTHERS,
            markeredgewidth=0, clip_on=False, zorder=2,
        )  # fmt: skip
        if np.isfinite(low):
            axis.hlines(row, low, high, color=DATA, linewidth=1.4, zorder=3)
        axis.plot(mean, row, marker="|", markersize=9, markeredgewidth=1.6, color=DATA, zorder=3)
    axis.tick_params(axis="y", length=0)
    low = float(np.nanmin(frame[["value", "low"]].to_numpy(float)))
    high = float(np.nanmax(frame[["value", "high"]].to_numpy(float)))
    axis.set_xlim(min(0.0, low) - 0.02, max(0.1, high) + 0.02)
