"""What returns when an analysis is run again: how often each neuron, and how alike two runs are."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from lens_skills.errors import LensSkillsError
from lens_skills.plotting.drawing import Drawing, finished
from lens_skills.plotting.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREY,
    ORANGE,
    joined,
    legend_above,
    sheet,
    style,
)
from lens_skills.resampling import Stability

_ROW = 0.15  # inches of a name


@style()
def stability(stability: Stability, *, k: int = 20, width: float = COLUMN) -> Drawing:
    """In what share of the runs each neuron or edge is found, and what two runs share.

    Left: the most often found; open bars are not found in the whole task. Lines are 95 % intervals
    over further draws of the same groups (none over paraphrases). Right: for every pair of runs
    the names both find, and what chance would share.

    Args:
        stability: From `lens_skills.resampling.stability`.
        k: How many names to show.
        width: Inches.

    Frame: one row per name shown, as in ``stability.frame()``.

    Raises:
        LensSkillsError: Nothing was found in any run.
    """
    frame = stability.frame().head(k).reset_index(drop=True)
    if not len(stability.names):
        raise LensSkillsError("nothing to draw: no run found anything, nor did the whole task.")
    rows = np.arange(len(frame))
    unit = "wordings" if stability.over == "paraphrases" else "parts"
    kappa = stability.kappa[~stability.kappa.isnan()]
    about = f"kappa {float(kappa.mean()):.2f} (0 chance, 1 equal)" if len(kappa) else ""
    if stability.p_pairs == stability.p_pairs:
        about = joined(about, f"p = {stability.p_pairs:.2g} over all pairs, names independent")
    figure = sheet(
        width,
        max(0.9, _ROW * len(frame)) + 0.75,
        title=f"{stability.kind}: what returns in {len(stability.runs)} {unit}",
        lines=[
            joined(
                stability.provenance.get("task"),
                f"{stability.n_groups_run} of {stability.n_groups} groups each",
                f"{len(frame)} of {len(stability.frame())} names",
            ),
            *([about] if about else []),
        ],
        note=" ".join(note[0].upper() + note[1:] + "." for note in stability.notes),
        exploratory=stability.exploratory,
    )
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    for mine, look, words in (
        (True, {"color": BLUE, "alpha": 0.8}, "found in the whole"),
        (False, {"facecolor": "white", "edgecolor": BLUE, "linewidth": 0.8}, "not in the whole"),
    ):
        some = frame["in_whole"].to_numpy() == mine
        if some.any():
            left.barh(rows[some], frame["share"][some], height=0.65, label=words, **look)
    if stability.over == "groups":
        left.hlines(rows, frame["low"], frame["high"], color=BLACK, linewidth=0.8)
    left.axvline(0.5, color=GREY, linestyle=(0, (3, 2)), linewidth=0.7)
    left.set_yticks(rows, list(frame["name"]))
    left.set(xlim=(0, 1.02), ylim=(len(frame) - 0.4, -0.6), xlabel=f"share of {unit}")
    left.tick_params(axis="y", length=0)
    pairs = np.arange(len(stability.pairs))
    right.plot(
        stability.shared, pairs, linestyle="none", marker="o", color=BLUE, markersize=3.5,
        label="shared",
    )  # fmt: skip
    if not bool(stability.expected.isnan().all()):
        right.plot(
            stability.expected, pairs, linestyle="none", marker="D", color=ORANGE, markersize=3.5,
            markeredgecolor=BLACK, markeredgewidth=0.5, label="chance",
        )  # fmt: skip
    right.set(xlim=(-0.5, None), ylim=(len(pairs) - 0.4, -0.6), xlabel="in both of two", yticks=[])
    right.set_ylabel("pairs")
    right.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    for axis in (left, right):
        legend_above(axis, 1, left=-0.04, handlelength=1.0)
    return finished(figure, frame, "stability", stability.kind)
