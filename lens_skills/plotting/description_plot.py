"""What sentences on neurons are worth: AUROC on unseen texts beside shuffled sentences."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lens_skills.errors import LensSkillsError
from lens_skills.explanation import Explanations
from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.style import (
    BLACK,
    DASHES,
    DATA,
    GREY,
    PALE,
    RANDOM,
    SMALL,
    About,
    Look,
    count,
    halo,
    joined,
    legend_above,
    name_lines,
    settle,
    sheet,
    source,
    text_width,
)
from lens_skills.plotting.words import place_words, shortened

_ROW, _LETTERS = 0.36, 90  # inches; letters of a sentence
_NULLS = (("sentences", -0.04), ("neurons", 0.2))  # and where in its row each lies


def description_scores(explanations: Explanations, *, n_neurons: int = 20) -> Drawing:
    """AUROC of every neuron's sentence on held-out texts, with its interval, beside both nulls.

    A dot with its 95 % interval over groups, filled where all of it is above 95 % of either null.
    Bars: the nulls, up to their 95th percentile, with their mean as a line: other neurons'
    sentences on this neuron above, this sentence on other neurons below.

    Args:
        explanations: From `explain` with a describer.
        n_neurons: Of the first so many that have a score.

    Frame: one row per neuron with a score, as in ``explanations.descriptions``.

    Raises:
        LensSkillsError: No describer was asked for, or no sentence has a score.
    """
    told = explanations.descriptions
    frame = told.loc[told["auroc"].notna()].head(n_neurons).reset_index(drop=True)
    if not len(frame):
        why = told["note"].iloc[0] if len(told) else "explain(…, describer='features') makes them"
        raise LensSkillsError(f"no sentence with a score to draw: {why}.")
    n = sum(above is True for above in frame["above_null"])
    size = f"judged on {count(len(explanations.answers), explanations.n_groups)}"
    without = sum(not sentence for sentence in told["sentence"])
    about = {
        "title": f"{n} of {len(frame)} sentences are above the shuffled ones",
        "lines": [
            place_words(explanations.site, explanations.position),
            joined(*source(explanations.provenance), size),
        ],
        "note": "Line: 95 % interval over groups. Bars: 95 % of other neurons' sentences on this "
        "neuron, and of this sentence on other neurons; dark: their mean. Filled: above both."
        + (f" {without} without a sentence." if without else ""),
    }  # fmt: skip
    return Drawing("description_scores", frame, about, name="description_scores")


@draws("description_scores")
def _draw(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    rows = frame.to_dict("records")
    figure = sheet(look, _ROW * len(rows) + 0.85, about)
    axis = figure.add_subplot()
    for place, one in enumerate(rows):
        _neuron(axis, place, one, look.width - 1.0)
    axis.axvline(0.5, color=BLACK, linewidth=0.6, linestyle=DASHES, zorder=1)
    name_lines(axis, range(len(rows)), [str(one["name"]) for one in rows])
    axis.set_ylim(len(rows) - 0.55, -0.75)
    ends = [0.4, *frame["low"].dropna(), *frame["auroc"], *frame["null_sentences"].dropna(),
            *frame["null_neurons"].dropna()]  # fmt: skip
    axis.set_xlim(max(0.0, min(ends) - 0.02), 1.0)
    axis.set_xlabel("AUROC between yes and no (dashed: chance)")
    handles = [
        Line2D([], [], color=DATA, marker="o", linewidth=1.2, markersize=4, label="its sentence"),
        Patch(facecolor=PALE, label="others' sentences"),
        Patch(facecolor=RANDOM, alpha=0.45, label="other neurons"),
    ]
    legend_above(axis, 2, handles=handles, columnspacing=0.9)
    return settle(figure)


def _neuron(axis: Axes, place: int, one: dict[str, Any], room: float) -> None:
    for name, offset in _NULLS:
        mean, ceiling = one[f"null_{name}"], one[f"null_{name}_ceiling"]
        if mean is None or np.isnan(mean):
            continue
        ink: dict[str, Any] = (
            {"color": PALE} if name == "sentences" else {"color": RANDOM, "alpha": 0.45}
        )
        low, high = place + offset - 0.1, place + offset + 0.1
        axis.fill_between([0, ceiling], low, high, linewidth=0, zorder=0, **ink)
        axis.plot([mean, mean], [low, high], color=GREY, linewidth=1.0, zorder=1)
    if one["low"] is not None and not np.isnan(one["low"]):
        axis.plot([one["low"], one["high"]], [place + 0.08] * 2, color=DATA, linewidth=1.2)
    fill = DATA if one["above_null"] is True else "white"
    axis.plot([one["auroc"]], [place + 0.08], "o", color=DATA, mfc=fill, markersize=4, zorder=4,
              clip_on=False)  # fmt: skip
    text = shortened(str(one["sentence"]), _LETTERS)
    while text_width(text, SMALL) > room and len(text) > 8:
        text = text[:-2].rstrip() + "…"
    said = halo(
        axis.annotate(
            text, (0.0, place - 0.36), xycoords=("axes fraction", "data"), size=SMALL, color=GREY,
            va="center",
        )
    )  # fmt: skip
    said.set_in_layout(False)
