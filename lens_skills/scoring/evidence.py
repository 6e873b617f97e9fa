"""What speaks for each associated neuron, whatever became of it: its row, its grade, the table.

Grades: **A** causal, confirmed, beats the control task; **B** confirmed, beats the control task,
not tried, undecided, or of an effect that its size explains; **C** associated and confirmed;
**general** causal, and no association found. *Basis-privileged* is a badge beside them.
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
GENERAL = "general"
GENERAL_MEANING = "causal, and no association with the metric found"
BADGE = "basis-privileged"

NOT_TESTED = "not tested on confirm"
UNCONFIRMED, TURNED = "association on confirm", "sign on confirm"
NOT_ASSOCIATED, ONLY_CONFIRM = "no association", "association on explore"
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
    ONLY_CONFIRM: "confirm only",
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
    units, spots = _spots(here)
    rows, tested = _rows(here, there, units, spots)
    beats = here.beats_control[spots, units] & tested
    q_control = torch.full((len(rows),), math.nan, dtype=torch.float64)
    if control:
        q_control = _q(_at(there, "p_control", spots, _places(there, rows), tested), beats)
    for row, q, beaten in zip(rows, _plain(q_control), beats.tolist(), strict=True):
        row["q_control_confirm"] = q
        row |= _grade(row, fdr, control=control, beats=beaten, flat=_constant(there, row))
    return _sorted(rows)


def weigh_others(
    here: MetricScores, there: MetricScores, pairs: Sequence[tuple[int, int]], *, fdr: float
) -> Rows:
    """One row per (layer, index) pair that is not associated on explore, without a grade.

    Each stands for the position of its largest |r| on explore. Stopped by *no association*, or,
    where its p on confirm has a q of at most ``fdr`` among these, by *association on explore*.
    """
    units = torch.tensor([here.scores.places[pair] for pair in pairs], dtype=torch.long)
    units = units[~here.associated.any(0)[units]]
    rows, _ = _rows(here, there, units, here.strongest_position[units])
    for row in rows:
        shown = row["q_confirm"] is not None and row["q_confirm"] <= fdr
        seen = shown and not _constant(there, row)
        row |= {"grade": "", "stopped_by": ONLY_CONFIRM if seen else NOT_ASSOCIATED}
    return _sorted(rows)


def _rows(
    here: MetricScores, there: MetricScores, units: Int[Tensor, " unit"], spots: Tensor
) -> tuple[list[dict[str, Any]], Bool[Tensor, " unit"]]:
    """The numbers of each unit at its position on both splits, and which confirm holds."""
    explore, confirm = here.scores, there.scores
    neurons = torch.stack([explore.layer, explore.neuron], dim=1)[units]
    pairs = [tuple(pair) for pair in neurons.tolist()]
    places = torch.tensor([confirm.places.get(pair, -1) for pair in pairs], dtype=torch.long)
    tested = places >= 0
    again = _at(there, "p", spots, places, tested)
    numbers: dict[str, Sequence[float | None]] = {
        "r_confirm": _plain(_at(there, "r", spots, places, tested)),
        "low": _plain(_at(there, "low", spots, places, tested)),
        "high": _plain(_at(there, "high", spots, places, tested)),
        "r_explore": here.r[spots, units].tolist(),
        "p_confirm": _plain(again),
        "q_confirm": _plain(_q(again, tested)),
    }
    for name in ("p_family", "q_control", "excess", "q_basis"):
        part = getattr(here, name)
        numbers[name] = [None] * len(units) if part is None else part[spots, units].tolist()
    badges = here.basis_privileged[spots, units].tolist()
    rows = []
    for place, name in enumerate(neuron_names(neurons, explore.site, explore.provenance)):
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {"name": name, "layer": pairs[place][0], "neuron": pairs[place][1]}
        row["position"] = explore.positions[int(spots[place])]
        row |= {column: values[place] for column, values in numbers.items()}
        row["badge"] = BADGE if badges[place] else ""
        rows.append(row)
    return rows, tested


def _places(there: MetricScores, rows: Sequence[Mapping[str, Any]]) -> Int[Tensor, " unit"]:
    found = [there.scores.places.get((row["layer"], row["neuron"]), -1) for row in rows]
    return torch.tensor(found, dtype=torch.long)


def _constant(there: MetricScores, row: Mapping[str, Any]) -> bool:
    """Whether the neuron does not vary on confirm."""
    place = there.scores.places.get((row["layer"], row["neuron"]), -1)
    return place >= 0 and bool(there.scores.excluded[place])


def _sorted(rows: Sequence[dict[str, Any]]) -> Rows:
    return tuple(sorted(rows, key=rank))


def rank(row: Mapping[str, Any]) -> tuple[str, float]:
    """Sorts rows: best grade first, then the strongest on confirm, then on explore.

    *General* ones stand behind **C**, those without a grade at the end, by their predicted effect
    where no association was found.
    """
    grade, r = str(_BEHIND.get(row["grade"], row["grade"])), row["r_confirm"]
    if of_others(row):
        return (grade if row["grade"] else "F", -abs(row.get("predicted_confirm") or 0.0))
    if r is None or math.isnan(r):
        return (grade, -abs(row["r_explore"]))
    return (grade, -1 - abs(r))


_BEHIND = {GENERAL: "D", "": "E"}


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
    A causal one without association is **general**.
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
            elif is_causal and new["stopped_by"] == NOT_ASSOCIATED:
                new["grade"] = GENERAL
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


def of_others(row: Mapping[str, Any]) -> bool:
    """Whether a row is of a neuron without association on explore, found by prediction."""
    return row.get("stopped_by") in (NOT_ASSOCIATED, ONLY_CONFIRM)


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
        percent = row.get("effect_percent")
        last = (after and verdict_text(row)) or row["stopped_by"]
        lines.append(
            [
                (row["grade"] or "-") + ("*" if row["badge"] else ""),
                row["name"],
                interval_text(row),
                short_number(row["q_confirm"]),
                short_number(row["q_control"]),
                "" if row["excess"] is None else f"{row['excess']:.1f}",
                percent_text(percent) if after else f"{row['r_explore']:+.2f}",
                _SHORT.get(last, last),
            ]
        )
    return aligned(lines, left=(0, 1, 2, len(head) - 1))


def verdict_text(row: Mapping[str, Any]) -> str:
    """The word of a row's verdict, as short as a card wants it; empty where it was not tried."""
    large = row["verdict"] in _SIGNED and not row["causal"]
    return _SHORT.get(row["verdict"], row["verdict"]) + " (large)" * large


def interval_text(row: Mapping[str, Any]) -> str:
    """r on confirm with its interval; empty where it was not tested."""
    if row["r_confirm"] is None:
        return ""
    return f"{row['r_confirm']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def aligned(lines: Sequence[Sequence[str]], *, left: Sequence[int]) -> list[str]:
    """Cells in columns; those of the columns ``left`` begin at one place, others end at one."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        " ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


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
