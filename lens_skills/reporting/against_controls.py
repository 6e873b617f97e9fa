"""An effect among those of random controls that were never suspected."""

import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lens_skills.causal.ruling import Ruling
from lens_skills.causal.verdict import Verdict
from lens_skills.reporting.caption import file_name
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import COLUMN, GREY, ORANGE, SMALL, settle, sheet, style
from lens_skills.reporting.verdicts import (
    LOOKS,
    bounded,
    change,
    delta_band,
    note,
    verdict_lines,
)

_UNIT = re.compile(r"L(\d+)([A-Z]+)\d*")
_MATCHED = "#9A9A9A"
_HEAD = 0.8  # share of the panel the bars may fill; above stands the effect


@style()
def effect_against_controls(
    verdict: Verdict, *, name: str | None = None, width: float = COLUMN
) -> Drawing:
    """The effect with its interval over the histogram of what random controls do.

    Args:
        verdict: From `verify` or `audit`.
        name: Whose: by default ``"set"``, against its matched control sets (and those drawn among
            important neurons); a neuron, against the single units it is compared with.
        width: Inches.

    Frame: ``what`` (matched sets, important sets or single units, one row per bin with its ends
    ``low`` and ``high`` and its count as ``value``; then the name, with the effect as ``value``,
    its 95 % interval, and ``rank``, ``n_controls`` and ``p``; and ``delta``).

    Raises:
        LensSkillsError: No ruling on that name.

    Does not show: a one-sided comparison. Rank and p count controls of as large an |effect|, on
    either side of 0.
    """
    name = verdict.rulings[-1].name if name is None else name
    ruling = verdict[name]
    controls = _controls(verdict, ruling)
    frame = _frame(verdict, ruling, controls)
    whole = name == "set"
    who = f"The set of {len(verdict)}" if whole else name
    figure = sheet(
        width,
        2.1,
        title=f"{who} among its controls" if controls else f"{who}, without controls",
        lines=[*_standing(verdict, ruling, controls), *verdict_lines(verdict)],
        note=note(verdict, [ruling], "Line"),
        exploratory=verdict.exploratory,
    )
    axis = figure.add_subplot()
    delta_band(axis, verdict, "x")
    _histograms(axis, frame, list(controls))
    look = LOOKS[ruling.word]
    axis.axvline(ruling.effect, ymax=0.9, color=look.colour, linewidth=1.0, zorder=3)
    height = 0.9
    if bounded(ruling):
        axis.plot(
            [ruling.low, ruling.high],
            [height, height],
            color=look.colour,
            linewidth=1.3,
            transform=axis.get_xaxis_transform(),
            zorder=3,
        )
    axis.plot(
        [ruling.effect],
        [height],
        linestyle="none",
        transform=axis.get_xaxis_transform(),
        **look.mark(5),
        zorder=4,
    )
    axis.set_xlabel(change(verdict))
    if controls:
        axis.set_ylabel("control sets" if whole else "single units")
        axis.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axis.margins(x=0.06)
    axis.legend(
        handles=[*_handles(controls), look.line(f"{name}: {ruling.word}", size=5)],
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=2,
        borderaxespad=0.1,
        labelspacing=0.2,
        handlelength=1.2,
    )
    settle(figure)
    return Drawing(figure, frame, file_name("effect_against_controls", name))


def _controls(verdict: Verdict, ruling: Ruling) -> dict[str, np.ndarray]:
    """Effects of the controls by kind; kinds without any are left out."""
    if ruling.name == "set":
        kinds = {
            "matched sets": verdict.control_effect.numpy(),
            "important sets": verdict.important_effect.numpy(),
        }
        return {kind: effects for kind, effects in kinds.items() if len(effects)}
    mine = _UNIT.fullmatch(ruling.name)
    across = verdict.provenance.get("peers") == "all layers"
    keep = []
    for peer in verdict.peers:
        theirs = _UNIT.fullmatch(peer)
        alike = mine is None or theirs is None or mine[2] == theirs[2]
        near = across or mine is None or theirs is None or mine[1] == theirs[1]
        keep.append(alike and near)
    effects = verdict.peer_effect.numpy()[np.array(keep, dtype=bool)]
    where = "other units" if across else "others of its layer"
    return {where: effects} if len(effects) else {}


def _standing(verdict: Verdict, ruling: Ruling, controls: dict[str, np.ndarray]) -> list[str]:
    """Rank and p, in words; nothing without controls."""
    if ruling.rank is None or ruling.p is None:
        return [] if controls else ["an effect without a comparison"]
    text = f"rank {ruling.rank:,} of {ruling.n_controls + 1:,} by |effect| · p = {ruling.p:.2g}"
    strict = [
        f"{row['p']:.2g} among the important"
        for row in verdict.tables.get("controls", ())
        if row["kind"] == "important" and ruling.name == "set"
    ]
    return [", ".join([text, *strict])]


def _frame(verdict: Verdict, ruling: Ruling, controls: dict[str, np.ndarray]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    if controls:
        pooled = np.concatenate(list(controls.values()))
        n_bins = int(np.clip(2 * np.sqrt(len(pooled)), 10, 40))
        edges = np.histogram_bin_edges(pooled, bins=n_bins)
        for kind, effects in controls.items():
            counts = np.histogram(effects, edges)[0].tolist()
            rows += [
                {"what": kind, "low": low, "high": high, "value": number}
                for low, high, number in zip(edges[:-1], edges[1:], counts, strict=True)
            ]
    rows.append(
        {
            "what": ruling.name,
            "low": ruling.low,
            "high": ruling.high,
            "value": ruling.effect,
            "rank": ruling.rank,
            "n_controls": ruling.n_controls,
            "p": ruling.p,
        }
    )
    rows.append({"what": "delta", "low": -verdict.delta, "high": verdict.delta})
    columns = ["what", "low", "high", "value", "rank", "n_controls", "p"]
    return pd.DataFrame(rows, columns=columns)


def _histograms(axis: Axes, frame: pd.DataFrame, kinds: list[str]) -> None:
    tallest = 1.0
    for kind in kinds:
        rows = frame.loc[frame["what"] == kind]
        edges = [*rows["low"], *rows["high"].tail(1)]
        counts = rows["value"].to_numpy(float)
        tallest = max(tallest, counts.max())
        look = (
            {"color": ORANGE, "linewidth": 1.2, "zorder": 2.2}
            if kind == "important sets"
            else {"color": _MATCHED, "fill": True, "zorder": 2}
        )
        axis.stairs(counts, edges, **look)
    axis.set_ylim(0, tallest / _HEAD)
    if not kinds:
        axis.set_yticks([])
        axis.text(
            0.5,
            0.35,
            "no controls were measured",
            transform=axis.transAxes,
            size=SMALL,
            color=GREY,
            ha="center",
        )


def _handles(controls: dict[str, np.ndarray]) -> list[Patch | Line2D]:
    labels = {kind: f"{kind} ({len(effects):,})" for kind, effects in controls.items()}
    return [
        Line2D([], [], color=ORANGE, linewidth=1.2, label=label)
        if kind == "important sets"
        else Patch(color=_MATCHED, label=label)
        for kind, label in labels.items()
    ]
