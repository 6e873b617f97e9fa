"""What returns when an analysis is run again: how often each neuron, and how alike two runs are."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lens_skills.errors import LensSkillsError
from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.style import (
    BLACK,
    CHANCE,
    DASHES,
    DATA,
    About,
    Look,
    joined,
    legend_above,
    settle,
    sheet,
    source,
)
from lens_skills.resampling import Stability
from lens_skills.results import file_name

_ROW = 0.15  # inches of a name


def stability(stability: Stability, *, k: int = 20) -> Drawing:
    """In what share of the runs each neuron or edge is found, and what two runs share.

    Left: the most often found; open bars are not found in the whole task. Lines are 95 % intervals
    over further draws of the same groups (none over paraphrases). Right: for every pair of runs
    the names both find, and what chance would share.

    Args:
        stability: From `lens_skills.resampling.stability`.
        k: How many names to show.

    Frame: ``what`` (name, pair): one row per name shown, as in ``stability.frame()``, and one per
    pair of runs, with ``name`` (``"1 – 2"``), ``shared`` and ``expected``.

    Raises:
        LensSkillsError: Nothing was found in any run.
    """
    whole = stability.frame()
    if not len(stability.names):
        raise LensSkillsError("nothing to draw: no run found anything, nor did the whole task.")
    frame = whole.head(k).copy()
    frame.insert(0, "what", "name")
    pairs = pd.DataFrame(
        {
            "what": "pair",
            "name": [f"{one + 1} – {other + 1}" for one, other in stability.pairs.tolist()],
            "shared": stability.shared.numpy(),
            "expected": stability.expected.numpy(),
        }
    )
    unit = "wordings" if stability.over == "paraphrases" else "parts"
    kappa = stability.kappa[~stability.kappa.isnan()]
    alike = f"kappa {float(kappa.mean()):.2f} (0 chance, 1 equal)" if len(kappa) else ""
    if stability.p_pairs == stability.p_pairs:
        alike = joined(alike, f"p = {stability.p_pairs:.2g} over all pairs, names independent")
    about = {
        "title": f"{stability.kind}: what returns in {len(stability.runs)} {unit}",
        "lines": [
            joined(
                *source(stability.provenance),
                f"{stability.n_groups_run} of {stability.n_groups} groups each",
                f"{len(frame)} of {len(whole)} names",
            ),
            alike,
        ],
        "note": " ".join(note[0].upper() + note[1:] + "." for note in stability.notes),
        "exploratory": stability.exploratory,
        "unit": unit,
        "intervals": stability.over == "groups",
    }
    name = file_name("stability", stability.kind)
    return Drawing("stability", pd.concat([frame, pairs], ignore_index=True), about, name)


@draws("stability")
def _draw_stability(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    names, pairs = (frame.loc[frame["what"] == what] for what in ("name", "pair"))
    figure = sheet(look, max(0.9, _ROW * len(names)) + 0.75, about)
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    _names(left, names, about)
    rows = np.arange(len(pairs))
    right.plot(
        pairs["shared"], rows, linestyle="none", marker="o", color=DATA, markersize=3.5,
        label="shared", zorder=3,
    )  # fmt: skip
    if pairs.loc[:, "expected"].notna().any():
        right.plot(
            pairs["expected"], rows, linestyle="none", marker="D", color=CHANCE, markersize=3.5,
            markerfacecolor="white", label="by chance", zorder=2,
        )  # fmt: skip
    right.set(xlim=(-0.5, None), ylim=(len(pairs) - 0.4, -0.6), xlabel="found by both", yticks=[])
    right.set_ylabel(f"pairs of {about['unit']}")
    right.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    for axis in (left, right):
        legend_above(axis, 1, left=-0.04, handlelength=1.2)
    return settle(figure)


def _names(axis: Axes, frame: pd.DataFrame, about: About) -> None:
    rows = np.arange(len(frame))
    for mine, look, words in (
        (True, {"color": DATA, "alpha": 0.75}, "found in the whole"),
        (False, {"facecolor": "white", "edgecolor": DATA, "linewidth": 0.8}, "not in the whole"),
    ):
        some = frame["in_whole"].astype(bool).to_numpy() == mine
        if some.any():
            axis.barh(rows[some], frame["share"][some], height=0.65, label=words, **look)
    if about["intervals"]:
        axis.hlines(
            rows, frame["low"], frame["high"], color=BLACK, linewidth=0.8, label="95 % interval"
        )
    axis.axvline(0.5, color=CHANCE, linestyle=DASHES, linewidth=0.7)
    axis.set_yticks(rows, list(frame["name"]))
    axis.set(xlim=(0, 1.02), ylim=(len(frame) - 0.4, -0.6))
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axis.set_xlabel(f"share of {about['unit']}")
    axis.tick_params(axis="y", length=0)
