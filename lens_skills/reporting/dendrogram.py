"""Which hits do the same: the tree of their correlations, cut into clusters."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from lens_skills.diagnosis import Redundancy
from lens_skills.errors import LensSkillsError
from lens_skills.reporting.caption import count
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREY,
    PALE,
    VERMILION,
    settle,
    sheet,
    style,
)

_ROW = 0.135  # inches of a neuron
MOST = 120
"""Neurons beyond which their names are no longer read."""


@style()
def redundancy(found: Redundancy, *, width: float = COLUMN) -> Drawing:
    """The average-linkage tree on 1 - |r| of the neurons, one row each, and where it is cut.

    Clusters of two or more stand on grey; the representative of each is in bold, and a neuron that
    goes against it carries a minus sign.

    Args:
        found: From `lens_skills.diagnosis.redundancy`.
        width: Inches.

    Frame: one row per neuron from the top, as in ``found.frame()``, with ``row``.

    Raises:
        LensSkillsError: More than `MOST` neurons.
    """
    # Imported here: SciPy's clustering takes a while to load.
    from scipy.cluster.hierarchy import dendrogram

    n = len(found.neurons)
    if n > MOST:
        raise LensSkillsError(
            f"{n} neurons cannot be told apart in one tree. Draw up to {MOST}: the strongest, or "
            "the representatives."
        )
    drawn = dendrogram(found.linkage.numpy(), no_plot=True, color_threshold=0)
    order = [int(place) for place in drawn["leaves"]]
    frame = found.frame().iloc[order].reset_index(drop=True)
    frame.insert(0, "row", range(n))
    about = found.provenance
    source = (about.get("model", ""), about.get("task", ""), count(found.n_examples))
    noun = "cluster" if len(found) == 1 else "clusters"
    figure = sheet(
        width,
        n * _ROW + 0.45,
        title=f"{len(found)} {noun} of {n} neurons",
        lines=[
            f"{found.site} at {found.position}",
            " · ".join(str(part) for part in source if part),
        ],
        note="Bold: the representative. Minus: against it. Dashed: where the tree is cut. Alike on "
        "these examples, which does not prove that they do the same.",
    )
    axis = figure.add_subplot()
    for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        inside = max(y) <= found.threshold
        # A leaf is ten wide, the first in the middle of its ten.
        axis.plot(
            y, np.array(x) / 10 - 0.5, color=BLUE if inside else BLACK, linewidth=1.1 if inside
            else 0.8, solid_joinstyle="miter",
        )  # fmt: skip
    axis.axvline(found.threshold, color=GREY, linewidth=0.7, linestyle=(0, (3, 2)))
    _clusters(axis, frame, found)
    _names(axis, frame, found)
    top = max(found.threshold, float(found.linkage[:, 2].max()))
    axis.set(xlim=(1.04 * top, 0), ylim=(n - 0.5, -0.5), xlabel="1 − |r|, average linkage")
    axis.spines[["left"]].set_visible(False)
    settle(figure)
    return Drawing(figure, frame, "redundancy")


def _clusters(axis: Axes, frame: pd.DataFrame, found: Redundancy) -> None:
    """A grey ground under every cluster of two or more."""
    top = max(found.threshold, float(found.linkage[:, 2].max()))
    for _, rows in frame.groupby("cluster"):
        if len(rows) > 1:
            first = int(rows["row"].min())
            axis.add_patch(
                Rectangle(
                    (0, first - 0.42),
                    min(found.threshold, top),
                    len(rows) - 0.16,
                    facecolor=PALE,
                    linewidth=0,
                    zorder=0,
                )
            )


def _names(axis: Axes, frame: pd.DataFrame, found: Redundancy) -> None:
    texts = [
        f"{'−' if sign < 0 else ''}{name}"
        for name, sign in zip(frame["name"], frame["sign"], strict=True)
    ]
    axis.yaxis.tick_right()
    axis.set_yticks(frame["row"], texts)
    axis.tick_params(axis="y", length=0)
    for label, row in zip(axis.get_yticklabels(), frame.to_dict("records"), strict=True):
        if row["name"] == row["representative"]:
            label.set_fontweight("bold")
        if row["sign"] < 0:
            label.set_color(VERMILION)
