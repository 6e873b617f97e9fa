"""What speaks for each associated neuron, whatever became of it: its row, its grade, the table.

Grades: **A** causal, confirmed, beats the control task; **B** confirmed, beats the control task,
not tried, undecided, or of an effect that its size explains; **C** associated and confirmed.
*Basis-privileged* is a badge beside them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations.components import neuron_names
from lens_skills.scoring.scores import MetricScores
from lens_skills.stats.multiple_testing import false_discovery_q

Rows = tuple[dict[str, Any], ...]

MEANINGS = {
    "A": "causal, confirmed, beats the control task",
    "B": "confirmed, beats the control task; not tried, undecided or only large",
    "C": "associated and confirmed",
}
BADGE = "basis-privileged"

NOT_TESTED = "not tested on confirm"
UNCONFIRMED, TURNED = "association on confirm", "sign on confirm"
LARGE, UNDECIDED = "large neuron", "undecided"
NO_CONTROL, CONTROL, CONTROL_AGAIN = "no control task", "control task", "control task on confirm"

COLUMNS = (
    "name", "layer", "neuron", "position", "r_confirm", "low", "high", "r_explore", "p_family",
    "q_control", "excess", "q_basis", "p_confirm", "q_confirm", "q_control_confirm", "grade",
    "badge", "stopped_by",
)  # fmt: skip

_SIGNED = ("supports", "opposes")

# On a card, which is 80 columns wide.
_SHORT = {
    NOT_TESTED: "not tested",
    UNCONFIRMED: "not confirmed",
    TURNED: "sign turned",
    CONTROL_AGAIN: "control, confirm",
    "no total effect beyond δ": "no total effect",
}


def weigh(here: MetricScores, there: MetricScores, *, fdr: float, control: bool) -> Rows:
    """One row per neuron associated on explore, best grade first, with its evidence.

    A neuron stands for its strongest position among those that beat the control task, or, where
    none does, among those that are associated.

    Args:
        here: One metric on explore.
        there: The same on confirm; neurons it does not hold are not tested there.
        fdr: Level of the q on confirm: Benjamini–Hochberg over the associated neurons that were
            tested there, and for the control task over those of them that beat it on explore.
        control: Whether a control task was drawn on both splits; without one nothing is above C.
    """
    explore, confirm = here.scores, there.scores
    units, spots = _spots(here)
    neurons = torch.stack([explore.layer, explore.neuron], dim=1)[units]
    pairs = [tuple(pair) for pair in neurons.tolist()]
    where = [confirm.places.get(pair, -1) for pair in pairs]
    tested = torch.tensor([place >= 0 for place in where], dtype=torch.bool)
    places = torch.tensor(where, dtype=torch.long)
    beats = here.beats_control[spots, units] & tested
    again = _at(there, "p", spots, places, tested)
    q_confirm = _q(again, tested)
    q_control = _q(_at(there, "p_control", spots, places, tested), beats) if control else None
    numbers: dict[str, Sequence[float | None]] = {
        "r_confirm": _plain(_at(there, "r", spots, places, tested)),
        "low": _plain(_at(there, "low", spots, places, tested)),
        "high": _plain(_at(there, "high", spots, places, tested)),
        "r_explore": here.r[spots, units].tolist(),
        "p_confirm": _plain(again),
        "q_confirm": _plain(q_confirm),
        "q_control_confirm": [None] * len(units) if q_control is None else _plain(q_control),
    }
    for name in ("p_family", "q_control", "excess", "q_basis"):
        part = getattr(here, name)
        numbers[name] = [None] * len(units) if part is None else part[spots, units].tolist()
    badges = here.basis_privileged[spots, units].tolist()
    constant = [place >= 0 and bool(confirm.excluded[place]) for place in where]
    rows = []
    for place, name in enumerate(neuron_names(neurons, explore.site, explore.provenance)):
        row: dict[str, Any] = {"name": name, "layer": pairs[place][0], "neuron": pairs[place][1]}
        row["position"] = explore.positions[int(spots[place])]
        row |= {column: values[place] for column, values in numbers.items()}
        row |= _grade(row, fdr, control=control, beats=bool(beats[place]), flat=constant[place])
        row["badge"] = BADGE if badges[place] else ""
        rows.append({column: row[column] for column in COLUMNS})
    return tuple(sorted(rows, key=rank))


def rank(row: Mapping[str, Any]) -> tuple[str, float]:
    """Sorts rows: best grade first, then the strongest on confirm, then on explore."""
    r = row["r_confirm"]
    if r is None or math.isnan(r):
        return (row["grade"] or "D", -abs(row["r_explore"]))
    return (row["grade"] or "D", -1 - abs(r))


def _spots(here: MetricScores) -> tuple[Int[Tensor, " unit"], Int[Tensor, " unit"]]:
    """The associated units, and for each the place of the position it stands for."""
    strength = torch.where(here.associated, here.r.abs(), -1.0)
    strength = torch.where(here.beats_control, strength + 2, strength)
    best = strength.max(dim=0)
    units = (best.values >= 0).nonzero()[:, 0]
    return units, best.indices[units]


def _at(
    there: MetricScores, what: str, spots: Tensor, places: Tensor, tested: Bool[Tensor, " unit"]
) -> Float[Tensor, " unit"]:
    """A number of each unit on confirm; NaN where it was not tested, or has none."""
    part = getattr(there, what)
    values = torch.full((len(places),), float("nan"), dtype=torch.float64)
    if part is not None:
        values[tested] = part[spots[tested], places[tested]].double()
    return values


def _q(p: Float[Tensor, " unit"], family: Bool[Tensor, " unit"]) -> Float[Tensor, " unit"]:
    q = torch.full_like(p, float("nan"))
    q[family] = false_discovery_q(p[family])
    return q


def _plain(values: Float[Tensor, " unit"]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _grade(
    row: Mapping[str, Any], fdr: float, *, control: bool, beats: bool, flat: bool
) -> dict[str, str]:
    """The grade and, in plain words, the test that kept it from a better one."""
    if row["r_confirm"] is None:
        return {"grade": "", "stopped_by": NOT_TESTED}
    if row["q_confirm"] > fdr or flat:
        return {"grade": "", "stopped_by": UNCONFIRMED}
    if row["r_confirm"] * row["r_explore"] <= 0:
        return {"grade": "", "stopped_by": TURNED}
    if not control:
        return {"grade": "C", "stopped_by": NO_CONTROL}
    if not beats:
        return {"grade": "C", "stopped_by": CONTROL}
    if row["q_control_confirm"] > fdr:
        return {"grade": "C", "stopped_by": CONTROL_AGAIN}
    return {"grade": "B", "stopped_by": ""}


def tried(rows: Sequence[Mapping[str, Any]], verdict: Any) -> Rows:
    """The rows after a verdict: its numbers beside them, **A** where it calls a **B** causal.

    Adds effect, effect_low and effect_high (95 % interval), effect_percent (of the clean metric),
    effect_q, verdict and causal; None and empty where a neuron was not tried. A **B** whose effect
    is no more than its size leads to expect, or undecided, stays one, stopped by *large neuron* or
    *undecided*; one that has no total effect becomes a **C**, stopped by the word of its verdict.
    """
    rulings = {ruling.name: ruling for ruling in verdict.singles}
    causal = set(verdict.causal)
    columns = ("effect", "effect_low", "effect_high", "effect_percent", "effect_q")
    found: list[dict[str, Any]] = []
    for row in rows:
        new: dict[str, Any] = dict(row) | dict.fromkeys(columns) | {"verdict": "", "causal": None}
        ruling = rulings.get(row["name"])
        if ruling is not None:
            new |= {"effect": ruling.effect, "effect_low": ruling.low, "effect_high": ruling.high}
            new |= {"effect_percent": ruling.percent, "effect_q": ruling.q}
            is_causal = ruling.name in causal
            new |= {"verdict": ruling.word, "causal": is_causal}
            if new["grade"] == "B":
                new |= _regrade(ruling, is_causal)
        found.append(new)
    return tuple(sorted(found, key=rank))


def _regrade(ruling: Any, causal: bool) -> dict[str, str]:
    """What its verdict makes of a **B**."""
    if causal:
        return {"grade": "A", "stopped_by": ""}
    if ruling.large:
        return {"grade": "B", "stopped_by": LARGE}
    kept = ruling.word == UNDECIDED
    return {"grade": "B" if kept else "C", "stopped_by": ruling.word}


def evidence_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows as a table, with every column even where there is no row."""
    return pd.DataFrame(list(rows), columns=list(rows[0]) if rows else list(COLUMNS))


def evidence_lines(rows: Sequence[Mapping[str, Any]], *, most: int = 10) -> list[str]:
    """A table of the first rows, at most 80 columns wide, and what its columns mean."""
    shown, after = rows[:most], bool(rows) and "verdict" in rows[0]
    head = ["", "neuron", "r on confirm [95 %]", "q", "q ctrl", "excess"]
    head += ["effect", "verdict"] if after else ["r expl.", "stopped by"]
    lines = [head]
    for row in shown:
        last: str = row["stopped_by"]
        if after:
            last = row["verdict"] or row["stopped_by"]
            if row["verdict"] in _SIGNED and not row["causal"]:
                last += " (large)"
        percent = row.get("effect_percent")
        lines.append(
            [
                (row["grade"] or "-") + ("*" if row["badge"] else ""),
                row["name"],
                ""
                if row["r_confirm"] is None
                else f"{row['r_confirm']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]",
                short_number(row["q_confirm"]),
                short_number(row["q_control"]),
                "" if row["excess"] is None else f"{row['excess']:.1f}",
                percent_text(percent) if after else f"{row['r_explore']:+.2f}",
                _SHORT.get(last, last),
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    left = (0, 1, 2, len(head) - 1)
    table = [
        " ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return table


def legend_lines(rows: Sequence[Mapping[str, Any]], *, tested: int, family: str) -> list[str]:
    """What grades and columns of `evidence_lines` mean, of those that occur."""
    lines = [f"{g}: {words}" for g, words in MEANINGS.items() if any(r["grade"] == g for r in rows)]
    if any(not row["grade"] for row in rows):
        lines.append("-: associated, and not confirmed")
    if any(row["badge"] for row in rows):
        lines.append(f"*: {BADGE}, q ≤ 5 % over {family}")
    lines.append(f"q: of r on confirm, false discoveries among the {tested:,} tested there")
    if any(row["q_control"] is not None for row in rows):
        lines.append(f"q ctrl: against the control task on explore, over {family}")
    if any(row["excess"] is not None for row in rows):
        lines.append("excess: |r| over that of random directions of the same layer")
    if any("verdict" in row for row in rows):
        lines.append(
            "effect: of the edit, in % of the clean metric (or of the gap, see the verdict)"
        )
    else:
        lines.append("r expl.: on explore, where it was selected for being large")
    return lines


def percent_text(value: float | None) -> str:
    """An effect in per cent, to two digits or whole; empty where there is none.

    >>> percent_text(-137.6), percent_text(1.64), percent_text(0.042), percent_text(None)
    ('-138 %', '+1.6 %', '+0.04 %', '')
    """
    if value is None or math.isnan(value):
        return ""
    digits = 0 if abs(value) >= 10 else 1 if abs(value) >= 0.1 else 2
    return f"{value:+.{digits}f} %"


def short_number(value: float | None) -> str:
    """A chance in at most six characters; empty where there is none.

    >>> short_number(0.00321), short_number(0.31), short_number(2.1e-5), short_number(None)
    ('0.003', '0.3', '2e-05', '')
    """
    return "" if value is None or math.isnan(value) else f"{value:.1g}"
