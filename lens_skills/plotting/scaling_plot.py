"""What scaling a set of neurons does to a task and to neutral text, beside random sets."""

import pandas as pd
from matplotlib.figure import Figure

from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.style import (
    BLACK,
    DATA,
    GREY,
    PALE,
    About,
    Look,
    legend_above,
    settle,
    sheet,
)

_PANELS = {
    "accuracy": "change of\naccuracy",
    "logit_diff": "change of logit\ndifference (nats)",
    "damage": "damage\n(nats per token)",
}


def scaling_curve(frame: pd.DataFrame, *, title: str, lines: tuple[str, ...] = ()) -> Drawing:
    """Change of accuracy and logit difference, and damage to neutral text, against a scale factor.

    Args:
        frame: One row per factor: ``alpha``; of ``accuracy``, ``logit_diff`` and ``damage`` the
            set's mean change, its interval (``accuracy_low``, ``accuracy_high``, …) and the mean
            and the range over random sets (``random_accuracy``, ``random_accuracy_low``, …).
        title: What was scaled.
        lines: Of the caption: model, examples, sets.

    Frame: as it was given.
    """
    about = {
        "title": title,
        "lines": list(lines),
        "note": "Bars: 95 % intervals, over groups of examples and over texts. Band: from the "
        "lowest to the highest random set. Damage: KL(clean ‖ scaled). Factor 1 changes nothing.",
    }
    return Drawing("scaling_curve", frame.reset_index(drop=True), about, "scaling_curve")


@draws("scaling_curve")
def _draw_scaling(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    figure = sheet(look, 3.4, about)
    axes = figure.subplots(len(_PANELS), 1, sharex=True)
    for axis, (column, label) in zip(axes, _PANELS.items(), strict=True):
        axis.fill_between(
            frame["alpha"], frame[f"random_{column}_low"], frame[f"random_{column}_high"],
            color=PALE, linewidth=0, label="random sets", gid=f"{column}_random",
        )  # fmt: skip
        axis.plot(frame["alpha"], frame[f"random_{column}"], color=GREY, linewidth=0.9)
        axis.vlines(
            frame["alpha"], frame[f"{column}_low"], frame[f"{column}_high"], color=DATA,
            linewidth=0.9,
        )  # fmt: skip
        axis.plot(
            frame["alpha"], frame[column], color=DATA, marker="o", markersize=3.4, linewidth=1,
            label="the set", gid=column, clip_on=False,
        )  # fmt: skip
        axis.axhline(0, color=BLACK, linewidth=0.5)
        axis.axvline(1, color=BLACK, linewidth=0.5, linestyle=(0, (1, 2)))
        axis.set_ylabel(label)
    axes[-1].set_ylim(bottom=0)
    axes[-1].set_xlabel("scale factor")
    axes[-1].set_xticks(frame["alpha"], [f"{alpha:g}" for alpha in frame["alpha"]])
    legend_above(axes[0], handlelength=1.6)
    figure.align_ylabels()
    return settle(figure)
