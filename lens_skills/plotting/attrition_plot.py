"""How many neurons are left after each step, and what speaks for the strongest of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from lens_skills.errors import LensSkillsError
from lens_skills.plotting.drawing import Drawing, finished
from lens_skills.plotting.style import (
    COLUMN,
    EVIDENCE,
    GREY,
    PALE,
    SIZE,
    SMALL,
    count,
    joined,
    minus,
    sheet,
    source,
    style,
    wrap,
)
from lens_skills.scoring import Selection
from lens_skills.scoring.evidence import (
    BADGE,
    CONTROL_AGAIN,
    NOT_TESTED,
    TURNED,
    UNCONFIRMED,
    percent_text,
    short_number,
    tried,
)
from lens_skills.scoring.scores import LEVEL

_ROW = 0.145  # inches of a neuron
_FLOW = 0.42  # of the counts above them
_CELLS = {
    "associated": ("associated", "r, explore"),
    "beat the control task": ("beats the\ncontrol task", "q"),
    "confirmed": ("confirmed", "r, confirm"),
    BADGE: ("basis-\nprivileged", "excess"),
    "causal": ("causal", "effect"),
}
"""Of each column of the table its head, and the number that its cells hold."""


@style()
def attrition(
    steps: Selection | Mapping[str, int],
    verdict: Any = None,
    *,
    k: int = 20,
    metric: str = "",
    exploratory: bool = False,
    width: float = COLUMN,
) -> Drawing:
    """How many neurons are left after each step, and below, the evidence for the strongest.

    One row per neuron, best grade first; a cell is coloured where the neuron passes, pale where it
    does not, and empty where it was not tried. Cells hold r on explore (selected for being large),
    q of the control task, r on confirm, |r| over that of a random direction of its layer, and the
    effect of the edit in % of the clean metric.

    Args:
        steps: A `Selection`, or counts by step in order, which have no rows.
        verdict: A `Verdict` on its neurons: adds the step and the column *causal*, and grade A.
        k: How many neurons.
        metric: Named in the title; a `Selection` knows its own.
        exploratory: Stamp it; a `Selection` knows whether it is.
        width: Inches.

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
        rows = every[:k]
        if verdict is not None:
            counts["causal"] = len(verdict.causal)
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
    figure = sheet(
        width,
        _FLOW + (len(rows) * _ROW + 0.5 if rows else 0.05),
        title="What is left after each step" + (f": {metric}" if metric else ""),
        lines=lines,
        note=note,
        exploratory=exploratory,
    )
    if rows:
        heights = [_FLOW, len(rows) * _ROW + 0.4]
        top, axis = figure.subplots(2, 1, height_ratios=heights, gridspec_kw={"hspace": 0.02})
        _table(axis, rows)
    else:
        top = figure.add_subplot()
    _flow(top, counts, width)
    frame = pd.DataFrame(flow + cells) if cells else pd.DataFrame(flow)
    return finished(figure, frame, "attrition", *([metric] if metric else []))


def _note(rows: Sequence[Mapping[str, Any]], n: int, badged: int | None) -> str:
    parts = []
    if badged is not None:
        parts.append(f"{badged:,} of the confirmed are basis-privileged.")
    if n > len(rows):
        parts.append(f"Shown: {len(rows)} of {n:,} associated neurons, best grade first.")
    if rows:
        parts.append(
            "Letters: grades. Pale: not passed; empty: not tried."
            + (" Effects are in % of the clean metric." if "verdict" in rows[0] else "")
        )
    return " ".join(parts)


def _flow(axis: Axes, counts: Mapping[str, int], width: float) -> None:
    """The counts side by side, an arrow from each to the next."""
    axis.set(xlim=(0, len(counts)), ylim=(0, 1))
    axis.axis("off")
    room = width / len(counts) - 0.04
    for place, (step, n) in enumerate(counts.items()):
        axis.text(
            place + 0.5, 0.98, f"{n:,}", size=SIZE + 1, weight="bold", ha="center", va="top",
            color=EVIDENCE.get(step, GREY),
        )  # fmt: skip
        words = "\n".join(wrap(step, room, SMALL, "normal"))
        axis.text(place + 0.5, 0.56, words, size=SMALL, ha="center", va="top", linespacing=1.05)
        if place:
            axis.annotate(
                "", (place + 0.13, 0.82), (place - 0.13, 0.82),
                arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 0.7},
            )  # fmt: skip


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
    if "verdict" in row:
        found["causal"] = (row["causal"], row["effect_percent"])
    return [
        {"gate": gate, "passed": passed, "value": value} for gate, (passed, value) in found.items()
    ]


def _table(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    gates = [cell["gate"] for cell in _cells(rows[0])]
    for line, row in enumerate(rows):
        for column, cell in enumerate(_cells(row)):
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
        axis.text(
            len(gates) + 0.12, line + 0.53, row["grade"], size=SMALL, weight="bold", va="center"
        )
    axis.set(xlim=(0, len(gates) + 0.3), ylim=(len(rows), 0))
    axis.set_yticks([line + 0.5 for line in range(len(rows))], [row["name"] for row in rows])
    heads = [f"{_CELLS[gate][0]}" for gate in gates]
    axis.xaxis.tick_top()
    axis.set_xticks([column + 0.5 for column in range(len(gates))], heads, linespacing=1.0)
    axis.tick_params(length=0, pad=1)
    axis.tick_params(axis="x", labelsize=SMALL - 0.5)
    axis.spines[:].set_visible(False)
    for column, gate in enumerate(gates):
        axis.text(
            column + 0.5, len(rows) + 0.15, _CELLS[gate][1], size=SMALL - 0.5, color=GREY,
            ha="center", va="top",
        )  # fmt: skip


def _number(cell: Mapping[str, Any]) -> str:
    value = cell["value"]
    if value is None:
        return ""
    if cell["gate"] == "beat the control task":
        return short_number(value)
    if cell["gate"] == BADGE:
        return f"{value:.1f}"
    return minus(percent_text(value) if cell["gate"] == "causal" else f"{value:+.2f}")


def _selected(selection: Selection) -> list[str]:
    explore = selection.provenance.get("explore", {})
    ids, groups = (selection.provenance.get(key, ()) for key in ("example_ids", "groups"))
    size = count(len(ids), len(groups)) + ", both splits" if ids else ""
    return [
        f"{selection.site} at {', '.join(selection.positions)} · FDR {selection.fdr:.0%}",
        joined(*source(explore), size),
        "partial r, given " + ", ".join(explore["given"]) if explore.get("given") else "",
    ]
