"""How many neurons are left after each step, and what speaks for the strongest of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lens_skills.errors import LensSkillsError
from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.style import (
    COUNT_FLOOR,
    EVIDENCE,
    GREY,
    PALE,
    SIZE,
    SMALL,
    About,
    Look,
    count,
    count_axis,
    halo,
    joined,
    minus,
    settle,
    sheet,
    source,
    text_width,
)
from lens_skills.plotting.words import metric_words, position_words, site_words
from lens_skills.results import file_name
from lens_skills.scoring import Selection
from lens_skills.scoring.evidence import (
    BADGE,
    CONTROL_AGAIN,
    GENERAL,
    NOT_TESTED,
    TURNED,
    UNCONFIRMED,
    of_others,
    percent_text,
    short_number,
    tried,
)
from lens_skills.scoring.predicted_evidence import DOORS
from lens_skills.scoring.scores import LEVEL

_ROW = 0.145  # inches of a neuron
_STEP, _AXIS = 0.155, 0.36  # of a step above them, and of the axis of the steps
PREDICTED = "confirmed as predicted"
_CELLS = {
    "associated": ("associated", "r, explore"),
    "beat the control task": ("beats the\ncontrol", "q"),
    "confirmed": ("confirmed", "r, confirm"),
    BADGE: ("basis-\nprivileged", "excess"),
    PREDICTED: ("predicted", "confirm"),
    "causal": ("causal", "effect"),
}
"""Of each column of the table its head, and the number that its cells hold."""


def attrition(
    steps: Selection | Mapping[str, int],
    verdict: Any = None,
    *,
    k: int = 20,
    metric: str = "",
    exploratory: bool = False,
) -> Drawing:
    """How many neurons are left after each step, and below, the evidence for the strongest.

    Above, the counts on a logarithmic axis. Below, one row per neuron, best grade first; a cell is
    coloured where the neuron passes, pale where it does not, and empty where it was not tried.
    Cells hold r on explore (selected for being large), q of the control task, r on confirm, |r|
    over that of a random direction of its layer, and the effect of the edit in % of the clean
    metric. Where neurons were found by prediction too, their steps follow, and a column holds the
    effect that gradients expect of the edit (on confirm, in the metric's unit).

    Args:
        steps: A `Selection`, or counts by step in order, which have no rows.
        verdict: A `Verdict` on its neurons: adds the step and the column *causal*, and grade A.
        k: How many neurons.
        metric: Named in the title; a `Selection` knows its own.
        exploratory: Stamp it; a `Selection` knows whether it is.

    Frame: gate count share (of the first) for each step; below, for each cell of the table: gate
    name grade passed value.

    Raises:
        LensSkillsError: No steps; a ``k`` below 0.

    >>> attrition({"neurons": 100, "confirmed": 1}).frame["share"].tolist()
    [1.0, 0.01]
    """
    if k < 0:
        raise LensSkillsError(f"k= is how many neurons to show, 0 or more, not {k}.")
    lines: list[str] = []
    rows: Sequence[Mapping[str, Any]] = []
    note, counts = "", {}
    if isinstance(steps, Selection):
        metric, exploratory = steps.metric, steps.exploratory or exploratory
        lines, counts = _selected(steps), dict(steps.attrition)
        badged = counts.pop(BADGE, None)
        counts.pop("tried", None)
        every = list(steps.rows if verdict is None else tried(steps.rows, verdict))
        if steps.by != DOORS[0]:
            counts = _both_doors(steps, verdict)
            every = [row for row in every if not of_others(row) or row["found_by"]]
            every.sort(key=lambda row: not row.get("verdict"))
        elif verdict is not None:
            counts["causal"] = len(verdict.causal)
        rows = every[:k]
        note = _note(rows, len(every), badged)
    else:
        counts = dict(steps)
    if not counts:
        raise LensSkillsError(
            "no steps to draw. Pass a Selection, or counts such as {'neurons': 1}."
        )
    first = max(1, next(iter(counts.values())))
    flow = [{"gate": gate, "count": n, "share": n / first} for gate, n in counts.items()]
    cells = [
        cell | {"name": row["name"], "grade": row["grade"]} for row in rows for cell in _cells(row)
    ]
    frame = pd.DataFrame(flow + cells) if cells else pd.DataFrame(flow)
    words = f": {metric_words(metric)}" if metric else ""
    about = {
        "title": f"What is left after each step{words}",
        "lines": lines,
        "note": note,
        "exploratory": exploratory,
    }
    name = file_name("attrition", *([metric] if metric else []))
    return Drawing("attrition", frame, about, name)


def _both_doors(selection: Selection, verdict: Any) -> dict[str, int]:
    """The steps of both ways of finding neurons, one below the other."""
    steps = selection.steps(verdict)
    counts = {
        name: n for name, n in steps.get(DOORS[0], {}).items() if name not in (BADGE, "tried")
    }
    second = steps[DOORS[1]]
    counts.setdefault("neurons", second["neurons"])
    counts |= {"largest predicted effects": second["tested"], PREDICTED: second["confirmed"]}
    if verdict is not None:
        counts |= {"predicted and causal": second["causal"], GENERAL: second[GENERAL]}
    return counts


@draws("attrition")
def _draw_attrition(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    named = frame.get("name", pd.Series("", frame.index)) != ""
    cells, flow = frame.loc[named], frame.loc[~named]
    heights = [len(flow) * _STEP + _AXIS]
    if len(cells):
        heights.append(len(set(cells["name"])) * _ROW + 0.42)
    figure = sheet(look, sum(heights) + 0.08 * (len(heights) - 1), about)
    axes = figure.subplots(
        len(heights), 1, height_ratios=heights, gridspec_kw={"hspace": 0.02}, squeeze=False
    )[:, 0]
    if len(cells):
        _table(axes[1], cells)
    _flow(axes[0], flow)
    return settle(figure)


def _note(rows: Sequence[Mapping[str, Any]], n: int, badged: int | None) -> str:
    parts = []
    if badged is not None:
        parts.append(f"{badged:,} of the confirmed are basis-privileged.")
    if n > len(rows):
        found, order = "associated", "best grade first"
        if rows and "found_by" in rows[0]:
            found, order = "associated or predicted", "those tried first"
        parts.append(f"Shown: {len(rows)} of {n:,} {found} neurons, {order}.")
    if any(row["grade"] == GENERAL for row in rows):
        parts.append("g: general, causal and not found to be associated.")
    if rows:
        parts.append(
            "Letters: grades. Pale: not passed; empty: not tried."
            + (" Effects are in % of the clean metric." if "verdict" in rows[0] else "")
        )
    return " ".join(parts)


def _flow(axis: Axes, flow: pd.DataFrame) -> None:
    """The counts one below the other as dots on a logarithmic axis, each with its number."""
    counts = flow["count"].to_numpy(float)
    most = max(1.0, counts.max())
    count_axis(axis, "x", most)
    axis.set_xlim(COUNT_FLOOR * 0.7, 1.6 * most)
    axis.set_ylim(len(flow) - 0.4, -0.6)
    low, high = np.log(axis.get_xlim())
    for row, (gate, n) in enumerate(zip(flow["gate"], counts, strict=True)):
        colour = EVIDENCE.get(gate, GREY)
        # None is left: on no place of a logarithmic axis, so a ring at its foot.
        at = max(n, COUNT_FLOOR)
        axis.axhline(row, color=PALE, linewidth=0.5, zorder=0)
        axis.plot(
            [at], [row], marker="o", markersize=5, color=colour, zorder=2, clip_on=False,
            markerfacecolor=colour if n else "white",
        )  # fmt: skip
        number, beyond = f"{n:,.0f}", (np.log(at) - low) / (high - low) > 0.62
        widths = [text_width(number, SIZE, "bold") * 72, text_width(gate, SMALL) * 72]
        # Where the dot is far to the right, number and step stand before it.
        start = -7 - sum(widths) - 3 if beyond else 7
        look: dict[str, Any] = {
            "textcoords": "offset points",
            "va": "center_baseline",
            "annotation_clip": False,
        }
        bold: dict[str, Any] = {"weight": "bold", "size": SIZE, "color": colour}
        halo(axis.annotate(number, (at, row), xytext=(start, 0), **look, **bold))
        start += widths[0] + 3
        halo(axis.annotate(gate, (at, row), xytext=(start, 0), size=SMALL, **look))
    axis.spines["left"].set_visible(False)
    axis.set_yticks([])
    axis.tick_params(axis="x", labelsize=SMALL - 0.5, pad=1)
    axis.set_xlabel("neurons left", labelpad=1, size=SMALL)


def _cells(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dictionary per column: whether the neuron passes (None: not tried) and its number."""
    q, basis = row["q_control"], row["q_basis"]
    outcome = row["stopped_by"]
    unconfirmed = outcome in (UNCONFIRMED, TURNED, CONTROL_AGAIN)
    found: dict[str, tuple[bool | None, Any]] = {
        "associated": (True, row["r_explore"]),
        "beat the control task": (None if q is None else q <= LEVEL, q),
        "confirmed": (None if outcome == NOT_TESTED else not unconfirmed, row["r_confirm"]),
        BADGE: (None if basis is None else bool(row["badge"]), row["excess"]),
    }
    if "found_by" in row:
        if of_others(row):
            found["associated"] = (False, row["r_explore"])
            found["beat the control task"] = (None, q)
            found["confirmed"] = (False, row["r_confirm"])
        known = row["predicted_confirm"] is not None
        passed = row["found_by"] in DOORS[1:] if known else None
        found[PREDICTED] = (passed, row["predicted_confirm"])
    if "verdict" in row:
        found["causal"] = (row["causal"], row["effect_percent"])
    return [
        {"gate": gate, "passed": passed, "value": value} for gate, (passed, value) in found.items()
    ]


def _table(axis: Axes, cells: pd.DataFrame) -> None:
    gates, names = list(cells["gate"].unique()), list(cells["name"].unique())
    grades = cells.drop_duplicates("name")["grade"]
    for cell in cells.to_dict("records"):
        column, line = gates.index(cell["gate"]), names.index(cell["name"])
        passed = cell["passed"]
        if passed is None:
            continue
        colour = EVIDENCE[cell["gate"]] if passed else PALE
        axis.add_patch(
            Rectangle((column + 0.03, line + 0.06), 0.94, 0.88, facecolor=colour, linewidth=0)
        )
        axis.text(
            column + 0.5, line + 0.53, _number(cell), size=SMALL - 0.5, ha="center",
            va="center", color="white" if passed else GREY,
        )  # fmt: skip
    for line, grade in enumerate(grades):
        letter = "g" if grade == GENERAL else grade
        axis.text(len(gates) + 0.12, line + 0.53, letter, size=SMALL, weight="bold", va="center")
    axis.set(xlim=(0, len(gates) + 0.3), ylim=(len(names), 0))
    axis.set_yticks([line + 0.5 for line in range(len(names))], names)
    axis.xaxis.tick_top()
    axis.set_xticks(
        [column + 0.5 for column in range(len(gates))],
        [_CELLS[gate][0] for gate in gates],
        linespacing=1.0,
    )
    axis.tick_params(length=0, pad=1)
    axis.tick_params(axis="x", labelsize=SMALL - 0.5)
    axis.spines[:].set_visible(False)
    for column, gate in enumerate(gates):
        axis.text(
            column + 0.5, len(names) + 0.15, _CELLS[gate][1], size=SMALL - 0.5, color=GREY,
            ha="center", va="top",
        )  # fmt: skip


def _number(cell: Mapping[str, Any]) -> str:
    value = cell["value"]
    if math.isnan(value):
        return ""
    if cell["gate"] == "beat the control task":
        return short_number(value)
    if cell["gate"] == BADGE:
        return f"{value:.1f}"
    if cell["gate"] == PREDICTED:
        return minus(f"{value:+.2g}")
    return minus(percent_text(value) if cell["gate"] == "causal" else f"{value:+.2f}")


def _selected(selection: Selection) -> list[str]:
    explore = selection.provenance.get("explore", {})
    where = [site_words(selection.site), *map(position_words, selection.positions)]
    ids, groups = (selection.provenance.get(key, ()) for key in ("example_ids", "groups"))
    size = count(len(ids), len(groups)) + ", both splits" if ids else ""
    return [
        f"{', '.join(where)} · FDR {selection.fdr:.0%}",
        joined(*source(explore), size),
        "partial r, given " + ", ".join(explore["given"]) if explore.get("given") else "",
    ]
