"""The effects of neurons, one a row, and of their set below them."""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lens_skills.causal.ruling import NO_EFFECT, WORDS, Ruling
from lens_skills.causal.verdict import Verdict
from lens_skills.reporting.caption import file_name
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import BLACK, COLUMN, GREY, PALE, SMALL, settle, sheet, style
from lens_skills.reporting.verdicts import (
    LOOKS,
    bounded,
    change,
    delta_band,
    note,
    verdict_lines,
)

_ROW = 0.165  # inches
_BELOW = 0.27  # rows: the direct effect stands under the total
_FAR = 3.0  # a set this many times wider than its neurons gets a scale of its own
_SHORT = {NO_EFFECT: "none beyond δ"}


@style()
def effect_forest(verdict: Verdict, *, k: int = 40, width: float = COLUMN) -> Drawing:
    """Total effect with its 95 % interval, direct effect and word of every neuron, one a row.

    Neurons stand by word, then by |effect|; the set is the last row, with an axis of its own where
    it would leave the neurons no room.

    Args:
        verdict: From `verify` or `audit`.
        k: Show so many neurons at most, the most telling ones.
        width: Inches.

    Frame: one row per row drawn: name word effect low high direct direct_low direct_high delta.
    """
    order = sorted(verdict.singles, key=lambda one: (WORDS.index(one.word), -abs(one.effect)))
    shown, whole = order[:k], [one for one in verdict.rulings if one.name == "set"]
    rulings = [*shown, *whole]
    frame = _frame(rulings, verdict.delta)
    notes = [note(verdict, rulings, "Lines")]
    if any(one.word == NO_EFFECT for one in rulings):
        notes.append(f"{_SHORT[NO_EFFECT].capitalize()}: {NO_EFFECT}.")
    if len(order) > len(shown):
        notes.append(f"{len(order) - len(shown):,} more neurons in the verdict's frame.")
    apart = bool(whole and shown) and _reach(whole) > _FAR * max(_reach(shown), verdict.delta)
    parts = [shown, whole] if apart else [rulings]
    if apart:
        notes.append("The set has a scale of its own.")
    who = f"{len(verdict):,} neurons do" if len(verdict) > 1 else f"{rulings[0].name} does"
    figure = sheet(
        width,
        _ROW * len(rulings) + (0.85 if apart else 0.6) + 0.15,
        title=f"What {who} to {verdict.effects.metric}",
        lines=verdict_lines(verdict),
        note=" ".join(notes),
        exploratory=verdict.exploratory,
    )
    axes = figure.subplots(
        len(parts), 1, squeeze=False, height_ratios=[len(part) + 0.3 for part in parts]
    )[:, 0]
    for axis, part in zip(axes, parts, strict=True):
        delta_band(axis, verdict, "x")
        _rows(axis, part)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes[-1].set_xlabel(change(verdict))
    axes[0].legend(
        handles=_handles(rulings),
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=2,
        borderaxespad=0.1,
        handlelength=1.8,
    )
    settle(figure)
    return Drawing(figure, frame, file_name("effect_forest", verdict.effects.metric))


def _frame(rulings: list[Ruling], delta: float) -> pd.DataFrame:
    columns = ["name", "word", "effect", "low", "high", "direct", "direct_low", "direct_high"]
    frame = pd.DataFrame([{name: getattr(one, name) for name in columns} for one in rulings])
    numbers = frame.columns[2:]
    frame[numbers] = frame[numbers].astype(float)
    return frame.assign(delta=delta)


def _reach(rulings: list[Ruling]) -> float:
    """The largest distance from 0 that is drawn."""
    return max(
        abs(number)
        for one in rulings
        for number in (one.effect, *((one.low, one.high) if bounded(one) else ()), one.direct or 0)
    )


def _rows(axis: Axes, rulings: list[Ruling]) -> None:
    for row, one in enumerate(rulings):
        look = LOOKS[one.word]
        if one.name == "set" and row:
            axis.axhline(row - 0.5, color=GREY, linewidth=0.5)
        if bounded(one):
            axis.plot([one.low, one.high], [row, row], color=look.colour, linewidth=1.1, zorder=3)
        axis.plot([one.effect], [row], linestyle="none", **look.mark(4.6), zorder=4)
        if one.direct is not None:
            _direct(axis, one, one.direct, row + _BELOW)
        axis.text(
            1.02,
            row,
            _SHORT.get(one.word, one.word),
            transform=axis.get_yaxis_transform(),
            size=SMALL,
            va="center_baseline",
        )
    axis.set_yticks(range(len(rulings)), [one.name for one in rulings])
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set_ylim(len(rulings) - 0.4, -0.6)
    axis.margins(x=0.06)
    axis.grid(axis="y", color=PALE, linewidth=0.4, zorder=0)
    axis.set_axisbelow(True)


_DIRECT: dict[str, Any] = {
    "marker": "|",
    "color": GREY,
    "markersize": 4.0,
    "markeredgewidth": 1.1,
}


def _direct(axis: Axes, one: Ruling, direct: float, at: float) -> None:
    low, high = one.direct_low, one.direct_high
    if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        axis.plot([low, high], [at, at], color=GREY, linewidth=0.6, zorder=2)
    axis.plot([direct], [at], linestyle="none", **_DIRECT, zorder=2)


def _handles(rulings: list[Ruling]) -> list[Line2D]:
    total = {"marker": "o", "color": BLACK, "markersize": 4, "linewidth": 1.1}
    handles = [Line2D([], [], **total, label="total effect")]
    if any(one.direct is not None for one in rulings):
        handles.append(Line2D([], [], **_DIRECT, linewidth=0.6, label="direct effect"))
    return handles
