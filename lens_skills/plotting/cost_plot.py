"""What a pass costs against each of its sizes, beside what the machine could do at best."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.style import (
    BLACK,
    CHANCE,
    DASHES,
    DATA,
    RANDOM,
    About,
    Look,
    settle,
    sheet,
    ticks_at,
)

_LINES = {
    "score": ("score", DATA, "-", "o"),
    "forward": ("bare forward", RANDOM, "-", "s"),
    "limit": ("limit", CHANCE, DASHES, ""),
}


def cost_curves(frame: pd.DataFrame, *, machine: str = "") -> Drawing:
    """Seconds of a scoring pass against examples, tokens, layers and width, both axes logarithmic.

    Args:
        frame: One row per measured size: ``varied`` (what is varied), ``size``, and the seconds
            of ``score``, of the bare ``forward`` pass and of its matrix products at the machine's
            own rate (``limit``).
        machine: What it was measured on.

    Frame: as it was given.
    """
    about = {
        "title": "What does a scoring pass cost?",
        "lines": [machine],
        "note": "Limit: the blocks' matrix products alone, at the rate of one large product here.",
    }
    return Drawing("cost_curves", frame.reset_index(drop=True), about, "cost_curves")


@draws("cost_curves", width="page")
def _draw_costs(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    varied = list(dict.fromkeys(frame["varied"]))
    figure = sheet(look, 2.1, about)
    axes = np.atleast_1d(figure.subplots(1, len(varied), sharey=True))
    for axis, name in zip(axes, varied, strict=True):
        rows = frame.loc[frame["varied"] == name].sort_values("size")
        for column, (label, colour, line, marker) in _LINES.items():
            axis.plot(
                rows["size"], rows[column], color=colour, linestyle=line, marker=marker,
                markersize=3, linewidth=0.9, label=label, gid=column,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.minorticks_off()
        ticks_at(axis.xaxis, rows["size"].tolist())
        axis.set_xlabel(str(name), color=BLACK)
    axes[0].set_ylabel("seconds")
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    # Costs rise, so this corner is free; above the panel it would push the next one aside.
    axes[0].legend(loc="upper left", handlelength=1.2)
    return settle(figure)
