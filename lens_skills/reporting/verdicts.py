"""What all figures of a verdict share: the look of each word, and what is said around them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lens_skills.causal.ruling import (
    COMPENSATED,
    MIXED,
    NO_EFFECT,
    OPPOSES,
    SUPPORTS,
    UNDECIDED,
    Ruling,
)
from lens_skills.causal.verdict import Verdict
from lens_skills.reporting.caption import count, with_unit
from lens_skills.reporting.style import BLACK, BLUE, GREEN, PALE, VERMILION

PURPLE = "#A84D86"  # Okabe and Ito's, darker: thin marks on white must be seen


@dataclass(frozen=True)
class Look:
    """A colour with a marker of its own, so that either alone tells the word."""

    colour: str
    marker: str
    filled: bool = True

    def line(self, label: str, size: float = 4.0, **options: Any) -> Line2D:
        """One mark of this look, for a legend."""
        return Line2D([], [], linestyle="none", label=label, **self.mark(size), **options)

    def mark(self, size: float) -> dict[str, Any]:
        """Keywords of ``Axes.plot``."""
        return {
            "marker": self.marker,
            "color": self.colour,
            "markersize": size,
            "markerfacecolor": self.colour if self.filled else "white",
            "markeredgewidth": 0.4 if self.filled and self.marker != "x" else 1.0,
            "markeredgecolor": "white" if self.filled and self.marker != "x" else self.colour,
        }


LOOKS = {
    SUPPORTS: Look(BLUE, "o"),
    OPPOSES: Look(VERMILION, "s"),
    MIXED: Look(PURPLE, "D"),
    COMPENSATED: Look(GREEN, "^"),
    NO_EFFECT: Look(BLACK, "x"),
    UNDECIDED: Look(BLACK, "o", filled=False),
}


def verdict_lines(verdict: Verdict) -> list[str]:
    """What was done, to which model where, and on how many examples."""
    effects = verdict.effects
    source = [
        str(verdict.provenance[key]) for key in ("model", "task") if key in verdict.provenance
    ]
    size = count(len(effects.clean), len(set(effects.groups)))
    where = f"{effects.site} at {effects.position}"
    return [effects.do, " · ".join([*source, where]), size]


def change(verdict: Verdict) -> str:
    """Two lines for an axis of effects: which way is which, and the unit."""
    what = "removing it" if verdict.removes else "the edit"
    measured = with_unit(verdict.effects.metric, verdict.effects.unit)
    return f"← lowers · {what} · raises →\nchange of {measured}"


def note(verdict: Verdict, rulings: Sequence[Ruling], marks: str) -> str:
    """What the band is, and the lines of the intervals where there are any."""
    sure = [bounded(ruling) for ruling in rulings]
    parts = [_band(verdict)]
    if any(sure):
        parts.append(f"{marks}: 95 % interval, by group of examples.")
    if not all(sure):
        parts.append("No interval: one group of examples.")
    return " ".join(parts)


def _band(verdict: Verdict) -> str:
    unit = verdict.effects.unit
    amount = f"{verdict.delta:.3g}" + (f" {unit}" if unit not in ("", "column", "0/1") else "")
    return f"Band: ±δ = ±{amount} ({verdict.delta_from})."


def delta_band(axis: Axes, verdict: Verdict, which: str) -> None:
    """The effects too small to matter, and the line of no effect, across axis ``x`` or ``y``."""
    span, line = (axis.axvspan, axis.axvline) if which == "x" else (axis.axhspan, axis.axhline)
    span(-verdict.delta, verdict.delta, color=PALE, zorder=0, linewidth=0, gid="delta")
    line(0, color=BLACK, linewidth=0.5, zorder=0.9)


def bounded(ruling: Ruling) -> bool:
    """Whether the effect has an interval: of a single group of examples it has none."""
    return math.isfinite(ruling.low) and math.isfinite(ruling.high)
