"""How many neurons remain after each gate."""

from collections.abc import Mapping

import pandas as pd

from lens_skills.errors import LensSkillsError
from lens_skills.reporting.caption import count, file_name
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import (
    BLUE,
    COLUMN,
    GATE_COLOURS,
    PALE,
    SKY,
    count_axis,
    settle,
    sheet,
    style,
)
from lens_skills.scoring import Selection

_COLOURS = {"neurons": PALE, **GATE_COLOURS, "confirmed": BLUE}
_FLOOR = 0.7  # so that one neuron is still a bar


@style()
def attrition(
    steps: Selection | Mapping[str, int],
    *,
    metric: str = "",
    exploratory: bool = False,
    width: float = COLUMN,
) -> Drawing:
    """Bars of how many neurons are left after each gate, on a log axis, with the counts.

    Args:
        steps: A `Selection`, or counts by gate in order.
        metric: Named in the title; a `Selection` knows its own.
        exploratory: Stamp it; a `Selection` knows whether it is.
        width: Inches.

    Frame: one row per gate: gate count share (of the first).

    Raises:
        LensSkillsError: No steps.

    >>> attrition({"neurons": 100, "confirmed": 1}).frame["share"].tolist()
    [1.0, 0.01]
    """
    lines = []
    if isinstance(steps, Selection):
        metric, exploratory = steps.metric, steps.exploratory or exploratory
        lines = _lines(steps)
        steps = steps.attrition
    if not steps:
        raise LensSkillsError(
            "no steps to draw. Pass a Selection, or counts such as {'neurons': 1}."
        )
    counts = list(steps.values())
    first = max(1, counts[0])
    frame = pd.DataFrame(
        {"gate": list(steps), "count": counts, "share": [n / first for n in counts]}
    )
    figure = sheet(
        width,
        0.21 * len(frame) + 0.5,
        title="What is left after each gate" + (f": {metric}" if metric else ""),
        lines=lines,
        exploratory=exploratory,
    )
    axis = figure.add_subplot()
    count_axis(axis, "x", first)
    drawn = axis.barh(
        frame["gate"],
        (frame["count"] - _FLOOR).clip(lower=0),
        left=_FLOOR,
        height=0.74,
        color=[_COLOURS.get(gate, SKY) for gate in frame["gate"]],
    )
    axis.bar_label(drawn, [f"{n:,}" for n in frame["count"]], padding=2, weight="bold")
    axis.invert_yaxis()
    # Room for the number beside the longest bar.
    axis.set_xlim(_FLOOR, first * (first / _FLOOR) ** 0.22 * 1.5)
    axis.tick_params(axis="y", length=0, labelsize=8)
    axis.spines["left"].set_visible(False)
    axis.set_xlabel("neurons")
    settle(figure)
    return Drawing(figure, frame, file_name("attrition", *([metric] if metric else [])))


def _lines(selection: Selection) -> list[str]:
    explore = selection.provenance.get("explore", {})
    source = [str(explore[key]) for key in ("model", "task") if key in explore]
    ids, groups = (selection.provenance.get(key, ()) for key in ("example_ids", "groups"))
    if ids:
        source.append(count(len(ids), len(groups)) + ", both splits")
    lines = [f"{selection.site} at {', '.join(selection.positions)} · FDR {selection.fdr:.0%}"]
    if source:
        lines.append(" · ".join(source))
    if explore.get("given"):
        lines.append("partial r, given " + ", ".join(explore["given"]))
    return lines
