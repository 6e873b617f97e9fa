"""Neurons found by what gradients expect of them: their numbers on two splits, rows and lines.

`Predicted` holds the numbers; the rows go beside those of associated neurons (`evidence`), so that
both are graded alike. A cause without association is **general**.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.scoring.evidence import (
    GENERAL,
    Rows,
    aligned,
    interval_text,
    rank,
    short_number,
    verdict_text,
)
from lens_skills.stats.effect_tests import cluster_interval, cluster_p, effective_groups
from lens_skills.stats.multiple_testing import false_discovery_q

DOORS = ("association", "prediction", "both")

COLUMNS = (
    "found_by", "predicted_explore", "predicted_confirm", "predicted_low", "predicted_high",
    "q_predicted",
)  # fmt: skip
"""Of a row where neurons were found by prediction too, behind those of `evidence`."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """First-order effects of one edit of each of explore's strongest neurons, held up on confirm.

    Attributes:
        neurons: (layer, index) rows, the largest on explore first.
        explore: The mean on explore, where they were chosen for being large, in ``unit``.
        confirm, low, high: The mean on confirm and its 95 % interval over groups.
        q: Benjamini–Hochberg of the cluster-robust p of the mean on confirm, over the neurons.
        confirmed: q at most the level, the interval beyond 0, and the sign that explore had.
        metric, unit, do: Of which metric, and under which edit.
    """

    neurons: Int[Tensor, "k 2"]
    explore: Float[Tensor, " k"]
    confirm: Float[Tensor, " k"]
    low: Float[Tensor, " k"]
    high: Float[Tensor, " k"]
    q: Float[Tensor, " k"]
    confirmed: Bool[Tensor, " k"]
    metric: str
    unit: str
    do: str

    @classmethod
    def of(
        cls,
        neurons: Int[Tensor, "k 2"],
        explore: Float[Tensor, " k"],
        values: Float[Tensor, "k example"],
        groups: Sequence[str],
        *,
        fdr: float,
        metric: str,
        unit: str,
        do: str,
        seed: int = 0,
    ) -> "Predicted":
        """What ``values``, the effects predicted on confirm, say of those chosen on explore.

        By simulation of studies in which no neuron has a mean effect (100 or 200 largest of 3,000
        on explore; 8, 16 and 32 groups on confirm, even and uneven), any is confirmed in .00 to
        .05 of them for normal effects of groups, in none for Student's t with 2 degrees and for
        log-normal ones (spread 1.5), and in .19 to .27 for exponential ones, whose means a t cannot
        be trusted with. With 40 or 60 real ones among them .01 of what is confirmed is not, for
        all of these. What is confirmed is no cause yet: the verdict on a third split tells.

        Source: the edit's first-order effect, arXiv 2412.18053; Benjamini & Hochberg 1995.
        Assumes: independent groups.
        """
        values = values.double()
        low, high = cluster_interval(values, groups, seed=seed)
        q, mean = false_discovery_q(cluster_p(values, groups)), values.mean(1)
        same = torch.where(explore > 0, low > 0, high < 0) & (explore != 0)
        return cls(neurons, explore, mean, low, high, q, same & (q <= fdr), metric, unit, do)

    def numbers(self, place: int) -> dict[str, float]:
        """The columns of one neuron's row, but for the door it came through."""
        values = (self.explore, self.confirm, self.low, self.high, self.q)
        return {name: float(v[place]) for name, v in zip(COLUMNS[1:], values, strict=True)}


def with_doors(rows: Rows, beside: Rows, predicted: Predicted, *, kept: str) -> Rows:
    """The rows of associated neurons and those of others that were predicted, best grade first.

    Args:
        rows: Of associated neurons; ``kept`` is the lowest grade that came through the first door.
        beside: Of predicted neurons without association.
        predicted: The numbers of all that were predicted.
    """
    places = {tuple(pair): place for place, pair in enumerate(predicted.neurons.tolist())}
    found = []
    for row in (*rows, *beside):
        place = places.get((row["layer"], row["neuron"]))
        doors = [DOORS[0]] if row["grade"] and row["grade"] <= kept else []
        numbers: dict[str, Any] = dict.fromkeys(COLUMNS[1:])
        if place is not None:
            numbers = predicted.numbers(place)
            doors += [DOORS[1]] if bool(predicted.confirmed[place]) else []
        door = DOORS[2] if len(doors) == 2 else "".join(doors)
        found.append({**row, "found_by": door, **numbers})
    return tuple(sorted(found, key=rank))


def smallest_seen(
    r: Float[Tensor, " unit"],
    low: Float[Tensor, " unit"],
    high: Float[Tensor, " unit"],
    bar: float,
    groups: Sequence[str],
) -> float:
    """The true |r| that would be beyond ``bar`` in 80 % of such studies, about.

    tanh(atanh(bar) + 0.84 se), se being the median standard error of Fisher's z, read off the 95 %
    intervals [low, high], of the hundred units whose |r| is nearest ``bar``: one that is far below
    may have a much smaller error, where what varies in it is the group.

    Source: Cohen 1988 (power); Fisher's z.
    """
    from scipy.stats import t as student

    near = (r.abs() - bar).abs().argsort(stable=True)[:100]
    reach = float(student.ppf(0.975, max(effective_groups(groups) - 1, 1.0)))
    ends = [torch.atanh(end[near].double().clamp(-1 + 1e-12, 1 - 1e-12)) for end in (low, high)]
    error = float((ends[1] - ends[0]).median()) / 2 / reach
    return math.tanh(math.atanh(min(bar, 1 - 1e-12)) + 0.8416 * error)


def of_prediction(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that were predicted: tried ones first, then confirmed ones, then the largest."""
    held = [row for row in rows if row["predicted_confirm"] is not None]

    def order(row: Mapping[str, Any]) -> tuple[bool, bool, float]:
        untried = not row.get("verdict")
        return (untried, row["found_by"] in ("", DOORS[0]), -abs(row["predicted_confirm"]))

    return sorted(held, key=order)


def predicted_lines(rows: Sequence[Mapping[str, Any]], *, most: int = 10) -> list[str]:
    """A table of the first of `of_prediction`, at most 80 columns wide."""
    after = bool(rows) and "verdict" in rows[0]
    lines = [["", "neuron", "predicted", "q", "r on confirm [95 %]"]]
    lines[0] += ["effect", "verdict"] if after else ["found by"]
    for row in of_prediction(rows)[:most]:
        letter = "G" if row["grade"] == GENERAL else row["grade"] or "-"
        cells = [
            letter + ("*" if row["badge"] else ""),
            row["name"] + ("+" if row["found_by"] == DOORS[2] else ""),
            f"{row['predicted_confirm']:+.2g}",
            short_number(row["q_predicted"]),
            interval_text(row),
        ]
        if after:
            effect = row["effect"]
            cells += ["" if effect is None else f"{effect:+.2g}", verdict_text(row) or "not tried"]
        else:
            cells.append(row["found_by"] or "neither door")
        lines.append(cells)
    return aligned(lines, left=(0, 1, 4, len(lines[0]) - 1))


def predicted_legend(
    rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], *, most: int = 10
) -> list[str]:
    """What the table of `predicted_lines` means, of what occurs in it."""
    shown = of_prediction(rows)[:most]
    lines = [
        f"predicted: first-order effect of {facts['do']} on {facts['metric']}, on confirm, "
        f"{facts['unit']}; effect: what the edit did, on a third split",
        f"q: of it, false discoveries among the {facts['tested']:,} largest of explore",
    ]
    if any(row["found_by"] == DOORS[2] for row in shown):
        lines.append("+: through both doors")
    if any(not row["grade"] for row in shown):
        lines.append("-: not associated on both splits, and not general")
    if any(row["grade"] == GENERAL for row in shown):
        lines.append(f"G: general: causal, and no association found; {seen_words(facts)}")
    return lines


def seen_words(facts: Mapping[str, Any]) -> str:
    """How strong an association would have been found, from `Selection.predicted`."""
    bar, often = facts["smallest_r"], facts["smallest_r_80"]
    return f"one of |r| > {bar:.2f} is, a true {often:.2f} in 80 % of studies"
