"""How soft prompts learned: loss and accuracy over the steps, one line per seed."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from lens_skills.errors import LensSkillsError
from lens_skills.models import SoftPrompt
from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.style import (
    BLACK,
    CHANCE,
    DASHES,
    GREY,
    SERIES,
    About,
    Look,
    joined,
    legend_above,
    series,
    settle,
    sheet,
)

_MARKS = 12  # marks of a line, at most
_MOST = 2 * len(SERIES)  # lines that are told apart: filled marks, then open ones
_STEEP = 8  # largest over smallest loss, beyond which the axis is logarithmic


def learning_curves(
    prompts: SoftPrompt | Sequence[SoftPrompt], *, baselines: dict[str, float] | None = None
) -> Drawing:
    """Loss and held-out accuracy of soft prompts over their training steps, one line per seed.

    Held-out lines are thick, those of the training batches thin. A ring marks the step with the
    least held-out loss, which is the prompt that training handed back. The axis of the loss is
    logarithmic where it falls to less than an eighth.

    Args:
        prompts: One or several, with their curves.
        baselines: Held-out accuracies to compare with, such as ``{"no prompt": 0.0}``.

    Frame: one row per prompt and look: prompt seed step epoch train_loss held_out_loss
    held_out_accuracy best.

    Raises:
        LensSkillsError: No prompt, more than can be told apart, or one without a curve.
    """
    several = [prompts] if isinstance(prompts, SoftPrompt) else list(prompts)
    if not 1 <= len(several) <= _MOST:
        raise LensSkillsError(f"{len(several)} prompts: draw 1 to {_MOST} in one figure.")
    task = several[0].provenance.get("task", "")
    suffix = f"{len(several[0].suffix)} vectors after the input"
    about = {
        "title": "Learning curves of the soft prompts" if len(several) > 1 else "Learning curve",
        "lines": [joined(several[0].model, task, suffix)],
        "baselines": baselines or {},
    }
    frame = _frame(several)
    notes = ["Ring: least held-out loss, the prompt that training handed back."]
    if _never(frame, about["baselines"]):
        notes.append("Held-out accuracy is 0 at every step (no whole answer right): not drawn.")
    if _near(frame) > 0:
        notes.append("The axis of the loss does not start at 0.")
    return Drawing("learning_curves", frame, about | {"note": " ".join(notes)}, "learning_curves")


def _never(frame: pd.DataFrame, baselines: Mapping[str, float]) -> bool:
    """Whether no held-out answer was ever right, so that there is nothing to see."""
    return not max([float(frame.loc[:, "held_out_accuracy"].max()), *baselines.values()])


def _near(frame: pd.DataFrame) -> float:
    """Where a linear axis of the loss starts: at 0, or near losses that fall by less than half."""
    losses = frame.loc[:, ["train_loss", "held_out_loss"]].to_numpy(float)
    low, high = float(np.nanmin(losses)), float(np.nanmax(losses))
    return low - 0.1 * (high - low) if low > high / 2 else 0.0


def _frame(prompts: Sequence[SoftPrompt]) -> pd.DataFrame:
    parts = []
    for place, prompt in enumerate(prompts):
        rows = prompt.frame()
        if rows.empty:
            raise LensSkillsError(
                f"prompt #{place} (seed {prompt.seed}) has no learning curve: it was not trained."
            )
        rows.insert(0, "prompt", place)
        rows.insert(1, "seed", prompt.seed)
        rows["best"] = rows.index == rows["held_out_loss"].astype(float).idxmin()
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


@draws("learning_curves")
def _draw_learning_curves(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    never = _never(frame, about["baselines"])
    figure = sheet(look, 2.2 if never else 3.4, about)
    panels = figure.subplots(1 if never else 2, 1, sharex=True, squeeze=False)[:, 0]
    loss = panels[0]
    handles = []
    for place, (_, rows) in enumerate(frame.groupby("prompt", sort=False)):
        colour, dashes, marker = series(place)
        rows = rows.sort_values("step")
        every = max(1, len(rows) // _MARKS)
        line = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 3}
        line |= {"linewidth": 1.3, "markevery": every, "clip_on": False, "zorder": 3}
        line["markerfacecolor"] = colour if place < len(SERIES) else "white"
        handles.append(Line2D([], [], **line, label=f"seed {rows['seed'].iloc[0]}"))
        loss.plot(rows["step"], rows["train_loss"], color=colour, linewidth=0.6, gid="train")
        best = rows[rows["best"]]
        for axis, column in zip(panels, ("held_out_loss", "held_out_accuracy"), strict=False):
            axis.plot(rows["step"], rows[column], **line, gid="held out")
            axis.scatter(
                best["step"], best[column], s=42, facecolor="none", edgecolor=colour,
                linewidth=1.1, clip_on=False, zorder=4,
            )  # fmt: skip
    _scale_loss(loss, frame)
    for axis in panels[1:]:
        _compare(axis, frame, about["baselines"])
    panels[-1].set_xlabel("training step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    handles.append(Line2D([], [], color=BLACK, linewidth=1.3, label="held out"))
    handles.append(Line2D([], [], color=BLACK, linewidth=0.6, label="training batches"))
    legend_above(loss, 3, handles=handles, handlelength=2.4, borderaxespad=0.5)
    figure.align_ylabels()
    return settle(figure)


def _scale_loss(axis: Axes, frame: pd.DataFrame) -> None:
    axis.set_ylabel("loss (nats per answer)")
    losses = frame.loc[:, ["train_loss", "held_out_loss"]].to_numpy(float)
    low, high = float(np.nanmin(losses)), float(np.nanmax(losses))
    if not 0 < low < high / _STEEP:
        start = _near(frame)
        axis.set_ylim(start, high + 0.06 * (high - start))
        return
    axis.set_yscale("log")
    axis.set_ylim(low / 1.15, high * 1.15)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def _compare(axis: Axes, frame: pd.DataFrame, baselines: Mapping[str, float]) -> None:
    for name, value in baselines.items():
        axis.axhline(value, color=CHANCE, linestyle=DASHES, linewidth=0.8)
        # The room above the highest point is free: the axis ends a little over it.
        axis.annotate(
            name, (1, value), xytext=(-2, 1.5), xycoords=("axes fraction", "data"),
            textcoords="offset points", color=GREY, ha="right", va="bottom",
        )  # fmt: skip
    top = max([float(frame.loc[:, "held_out_accuracy"].max()), *baselines.values(), 0.05])
    axis.set_ylim(-0.06 * top, 1.15 * top)
    axis.set_ylabel("held-out accuracy")
