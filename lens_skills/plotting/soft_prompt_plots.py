"""How soft prompts learned: loss and accuracy over the steps, one line per seed."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lens_skills.errors import LensSkillsError
from lens_skills.models import SoftPrompt
from lens_skills.plotting.drawing import Drawing, finished
from lens_skills.plotting.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    VERMILION,
    joined,
    legend_above,
    sheet,
    style,
)

# Colour, dashes and marker change together, so that no line is told by its colour alone.
_LOOKS = (
    (BLUE, "-", "o"),
    (VERMILION, (0, (5, 1.5)), "s"),
    (GREEN, (0, (1, 1.2)), "^"),
    (ORANGE, (0, (5, 1.5, 1, 1.5)), "D"),
    (SKY, (0, (3, 1)), "v"),
    (BLACK, (0, (2, 2)), "P"),
)
_MARKS = 12  # marks of a line, at most


@style()
def learning_curves(
    prompts: SoftPrompt | Sequence[SoftPrompt],
    *,
    baselines: dict[str, float] | None = None,
    width: float = COLUMN,
) -> Drawing:
    """Loss and held-out accuracy of soft prompts over their training steps, one line per seed.

    Held-out lines are thick, those of the training batches thin. A ring marks the step with the
    least held-out loss, which is the prompt that training handed back.

    Args:
        prompts: One or several, with their curves.
        baselines: Held-out accuracies to compare with, such as ``{"no prompt": 0.0}``.
        width: Inches.

    Frame: one row per prompt and look: prompt seed step epoch train_loss held_out_loss
    held_out_accuracy best.

    Raises:
        LensSkillsError: No prompt, more than can be told apart, or one without a curve.
    """
    several = [prompts] if isinstance(prompts, SoftPrompt) else list(prompts)
    if not 1 <= len(several) <= len(_LOOKS):
        raise LensSkillsError(f"{len(several)} prompts: draw 1 to {len(_LOOKS)} in one figure.")
    frame = _frame(several)
    task = several[0].provenance.get("task", "")
    suffix = f"{len(several[0].suffix)} vectors after the input"
    figure = sheet(
        width,
        3.3,
        title="Learning curves of the soft prompts" if len(several) > 1 else "Learning curve",
        lines=[joined(several[0].model, task, suffix)],
        note="Thick: held-out examples. Thin: training batches. Ring: least held-out loss.",
    )
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    for place, (_, rows) in enumerate(frame.groupby("prompt", sort=False)):
        colour, dashes, marker = _LOOKS[place]
        rows = rows.sort_values("step")
        every = max(1, len(rows) // _MARKS)
        look = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 3}
        look |= {"linewidth": 1.3, "markevery": every, "label": f"seed {rows['seed'].iloc[0]}"}
        loss.plot(rows["step"], rows["train_loss"], color=colour, linewidth=0.5, alpha=0.7)
        best = rows[rows["best"]]
        for axis, column in ((loss, "held_out_loss"), (accuracy, "held_out_accuracy")):
            axis.plot(rows["step"], rows[column], **look)
            axis.scatter(
                best["step"], best[column], s=42, facecolor="none", edgecolor=colour, linewidth=1.1
            )
    _finish(loss, accuracy, frame, baselines or {})
    return finished(figure, frame, "learning_curves")


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


def _finish(loss: Axes, accuracy: Axes, frame: pd.DataFrame, baselines: dict[str, float]) -> None:
    loss.set_ylabel("loss (nats)")
    loss.set_ylim(bottom=0)
    for name, value in baselines.items():
        accuracy.axhline(value, color=GREY, linestyle=(0, (1, 1)), linewidth=0.8)
        # The room above the highest point is free: the axis ends a little over it.
        accuracy.annotate(
            name, (1, value), xytext=(-2, 1.5), xycoords=("axes fraction", "data"),
            textcoords="offset points", color=GREY, ha="right", va="bottom",
        )  # fmt: skip
    top = max([float(frame.loc[:, "held_out_accuracy"].max()), *baselines.values(), 0.05])
    accuracy.set_ylim(-0.03 * top, 1.15 * top)
    accuracy.set(ylabel="held-out accuracy", xlabel="training step")
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    legend_above(loss, 3)
