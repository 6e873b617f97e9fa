"""The figures of a verdict and of a dose-response, and how a verdict looks in every figure.

`LOOKS`: the colour and marker of each word. `verdict_lines`, `change`, `note` and `delta_band`:
what is said and drawn around effects wherever they stand.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lens_skills.interventions.dose_response import DoseResponse
from lens_skills.interventions.verdict import (
    COMPENSATED,
    MIXED,
    NO_EFFECT,
    OPPOSES,
    SUPPORTS,
    UNDECIDED,
    WORDS,
    Ruling,
    Verdict,
)
from lens_skills.plotting import style as look_of
from lens_skills.plotting.drawing import Drawing, bin_rows, draws
from lens_skills.plotting.style import (
    BLACK,
    DAMAGE,
    DASHES,
    DATA,
    GREY,
    OTHERS,
    PALE,
    RANDOM,
    SMALL,
    About,
    Look,
    count,
    joined,
    legend_above,
    minus,
    name_lines,
    settle,
    sheet,
    signed,
    source,
    with_unit,
)
from lens_skills.plotting.words import metric_words, place_words
from lens_skills.results import file_name

_NAME = re.compile(r"L(\d+)([A-Z]+)\d*")
_FULL = 0.8  # share of the panel the bars may fill; above stands the effect
_ROW, _BELOW = 0.165, 0.27  # inches of a row; rows that the direct effect stands under the total
_FAR = 3.0  # a set this many times wider than its neurons gets a scale of its own
_SHORT = {NO_EFFECT: "none beyond δ"}
_DIRECT: dict[str, Any] = {"marker": "|", "color": GREY, "markersize": 4.0, "markeredgewidth": 1.1}


@dataclass(frozen=True)
class VerdictStyle:
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
    SUPPORTS: VerdictStyle(look_of.SUPPORTS, "o"),
    OPPOSES: VerdictStyle(look_of.OPPOSES, "s"),
    MIXED: VerdictStyle(look_of.MIXED, "D"),
    COMPENSATED: VerdictStyle(look_of.COMPENSATED, "^"),
    NO_EFFECT: VerdictStyle(BLACK, "x"),
    UNDECIDED: VerdictStyle(BLACK, "o", filled=False),
}


def effect_against_controls(verdict: Verdict, *, name: str | None = None) -> Drawing:
    """The effect with its interval over the histogram of what random controls do.

    Args:
        verdict: From `verify` or `audit`.
        name: Whose: by default ``"set"``, against its matched control sets (and those drawn among
            important neurons); a neuron, against the single units it is compared with.

    Frame: ``what`` (matched sets, important sets or single units, one row per bin with its ends
    ``low`` and ``high`` and its count as ``value``; then the name, with the effect as ``value``,
    its 95 % interval, ``word``, ``rank``, ``n_controls`` and ``p``; and ``delta``).

    Raises:
        LensSkillsError: No ruling on that name.

    Does not show: a one-sided comparison. Rank and p count controls of as large an |effect|, on
    either side of 0.
    """
    name = verdict.rulings[-1].name if name is None else name
    ruling = verdict[name]
    controls = _controls(verdict, ruling)
    who = f"The set of {len(verdict)}" if name == "set" else name
    about = {
        "title": f"{who} among its controls" if controls else f"{who}, without controls",
        "lines": [*_standing(verdict, ruling, controls), *verdict_lines(verdict)],
        "note": note(verdict, [ruling], "Line"),
        "exploratory": verdict.exploratory,
        "name": name,
        "controls": {kind: len(effects) for kind, effects in controls.items()},
        "counted": "control sets" if name == "set" else "single units",
        "axis": change(verdict),
    }
    frame = _controls_frame(verdict, ruling, controls)
    return Drawing(
        "effect_against_controls", frame, about, file_name("effect_against_controls", name)
    )


@draws("effect_against_controls")
def _draw_effect_against_controls(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    figure = sheet(look, 2.1, about)
    axis = figure.add_subplot()
    own = frame.loc[frame["what"] == about["name"]].to_dict("records")[-1]
    delta = frame.loc[frame["what"] == "delta", "high"]
    delta_band(axis, float(delta.iloc[0]), "x")
    _histograms(axis, frame, list(about["controls"]))
    mark = LOOKS[own["word"]]
    height, across = 0.9, axis.get_xaxis_transform()
    axis.axvline(own["value"], ymax=height, color=mark.colour, linewidth=1.0, zorder=3)
    axis.plot(
        [own["low"], own["high"]], [height, height], color=mark.colour, linewidth=1.3,
        transform=across, zorder=3,
    )  # fmt: skip
    axis.plot([own["value"]], [height], linestyle="none", transform=across, **mark.mark(5),
              zorder=4)  # fmt: skip
    axis.set_xlabel(about["axis"])
    if about["controls"]:
        axis.set_ylabel(about["counted"])
        axis.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axis.margins(x=0.06)
    handles = [*_kinds(about["controls"]), mark.line(f"{about['name']}: {own['word']}", size=5)]
    handles.append(Patch(color=PALE, label="within ±δ"))
    legend_above(axis, handles=handles, handlelength=1.2)
    return settle(figure)


def _controls(verdict: Verdict, ruling: Ruling) -> dict[str, np.ndarray]:
    """Effects of the controls by kind; kinds without any are left out."""
    if ruling.name == "set":
        kinds = {
            "matched sets": verdict.control_effect.numpy(),
            "important sets": verdict.important_effect.numpy(),
        }
        return {kind: effects for kind, effects in kinds.items() if len(effects)}
    mine = _NAME.fullmatch(ruling.name)
    across = verdict.provenance.get("control_neurons") == "all layers"
    keep = []
    for other in verdict.control_neurons:
        theirs = _NAME.fullmatch(other)
        alike = mine is None or theirs is None or mine[2] == theirs[2]
        near = across or mine is None or theirs is None or mine[1] == theirs[1]
        keep.append(alike and near)
    effects = verdict.control_neuron_effect.numpy()[np.array(keep, dtype=bool)]
    where = "other units" if across else "others of its layer"
    return {where: effects} if len(effects) else {}


def _standing(verdict: Verdict, ruling: Ruling, controls: dict[str, np.ndarray]) -> list[str]:
    """The effect, its rank and p, in words; no rank without controls."""
    digits = 2 if abs(ruling.effect) >= 0.095 else 3 if abs(ruling.effect) >= 0.0095 else 4
    ends = f"[{signed(ruling.low, digits)}, {signed(ruling.high, digits)}]"
    effect = f"effect {signed(ruling.effect, digits)} {ends}"
    if ruling.rank is None or ruling.p is None:
        return [effect] if controls else [joined(effect, "no comparison")]
    text = f"rank {ruling.rank:,} of {ruling.n_controls + 1:,} by |effect| · p = {ruling.p:.2g}"
    strict = [
        f"{row['p']:.2g} among the important"
        for row in verdict.tables.get("controls", ())
        if row["kind"] == "important" and ruling.name == "set"
    ]
    return [effect, ", ".join([text, *strict])]


def _controls_frame(
    verdict: Verdict, ruling: Ruling, controls: dict[str, np.ndarray]
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    if controls:
        pooled = np.concatenate(list(controls.values()))
        n_bins = int(np.clip(2 * np.sqrt(len(pooled)), 10, 40))
        edges = np.histogram_bin_edges(pooled, bins=n_bins)
        for kind, effects in controls.items():
            rows += bin_rows(kind, edges, np.histogram(effects, edges)[0])
    shown = ("low", "high", "word", "rank", "n_controls", "p")
    own = {name: getattr(ruling, name) for name in shown}
    rows.append({"what": ruling.name, "value": ruling.effect} | own)
    delta = _delta(ruling, verdict)
    rows.append({"what": "delta", "low": -delta, "high": delta})
    columns = ["what", "low", "high", "value", "word", "rank", "n_controls", "p"]
    return pd.DataFrame(rows, columns=columns)


def _histograms(axis: Axes, frame: pd.DataFrame, kinds: list[str]) -> None:
    tallest = 1.0
    for kind in kinds:
        rows = frame.loc[frame["what"] == kind]
        edges = [*rows["low"], *rows["high"].tail(1)]
        counts = rows["value"].to_numpy(float)
        tallest = max(tallest, counts.max())
        look = (
            {"color": RANDOM, "linewidth": 1.2, "zorder": 2.2}
            if kind == "important sets"
            else {"color": OTHERS, "fill": True, "zorder": 2}
        )
        axis.stairs(counts, edges, **look)
    axis.set_ylim(0, tallest / _FULL)
    if not kinds:
        axis.set_yticks([])
        axis.text(
            0.5, 0.35, "no controls were measured", transform=axis.transAxes, size=SMALL,
            color=GREY, ha="center",
        )  # fmt: skip


def _kinds(controls: Mapping[str, int]) -> list[Patch | Line2D]:
    labels = {kind: f"{kind} ({n:,})" for kind, n in controls.items()}
    return [
        Line2D([], [], color=RANDOM, linewidth=1.2, label=label)
        if kind == "important sets"
        else Patch(color=OTHERS, label=label)
        for kind, label in labels.items()
    ]


def effect_forest(verdict: Verdict, *, k: int = 40) -> Drawing:
    """Total effect with its 95 % interval, direct effect and word of every neuron, one a row.

    Neurons stand by word, then by |effect|; the set is the last row, with an axis of its own where
    it would leave the neurons no room.

    Args:
        verdict: From `verify` or `audit`.
        k: Show so many neurons at most: those without an effect beyond δ are left out first.

    Frame: one row per row drawn: name word large effect low high direct direct_low direct_high
    delta.
    """
    order = sorted(verdict.singles, key=lambda one: (WORDS.index(one.word), -abs(one.effect)))
    # Of too many those without an effect beyond delta go first, the smallest before the others.
    kept = sorted(order, key=lambda one: (one.word == NO_EFFECT, -abs(one.effect)))[:k]
    shown = [one for one in order if one in kept]
    whole = [one for one in verdict.rulings if one.name == "set"]
    rulings = [*shown, *whole]
    apart = bool(whole and shown) and _reach(whole) > _FAR * max(_reach(shown), verdict.delta)
    notes = [note(verdict, rulings, "Lines")]
    if any(one.word == NO_EFFECT for one in rulings):
        notes.append(f"{_SHORT[NO_EFFECT].capitalize()}: {NO_EFFECT}.")
    if any(one.large for one in rulings):
        notes.append("Large: no more than mean |a|, std and ‖W_out‖ lead to expect.")
    if len(order) > len(shown):
        notes.append(f"{len(order) - len(shown):,} more neurons in the verdict's frame.")
    if apart:
        notes.append("The set has a scale of its own.")
    who = f"{len(verdict):,} neurons do" if len(verdict) > 1 else f"{rulings[0].name} does"
    metric = verdict.effects.metric
    about = {
        "title": f"What {who} to {metric_words(metric)}",
        "lines": verdict_lines(verdict),
        "note": " ".join(notes),
        "exploratory": verdict.exploratory,
        "set_apart": apart,
        "axis": change(verdict),
    }
    frame = _forest_frame(rulings, [_delta(one, verdict) for one in rulings])
    return Drawing("effect_forest", frame, about, file_name("effect_forest", metric))


@draws("effect_forest")
def _draw_effect_forest(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    apart = about["set_apart"]
    whole = frame["name"] == "set"
    parts = [frame.loc[~whole], frame.loc[whole]] if apart else [frame]
    figure = sheet(look, _ROW * len(frame) + (0.85 if apart else 0.6) + 0.15, about)
    axes = figure.subplots(
        len(parts), 1, squeeze=False, height_ratios=[len(part) + 0.3 for part in parts]
    )[:, 0]
    for axis, part in zip(axes, parts, strict=True):
        axis.axvline(0, color=BLACK, linewidth=0.5, zorder=0.9)
        axis.barh(
            range(len(part)), 2 * part["delta"], 1.0, left=-part["delta"], color=PALE, zorder=0,
            gid="delta",
        )  # fmt: skip
        _rows(axis, part.to_dict("records"))
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes[-1].set_xlabel(about["axis"])
    total = {"marker": "o", "color": BLACK, "markersize": 4, "linewidth": 1.1}
    handles: list[Line2D | Patch] = [Line2D([], [], **total, label="total effect")]
    if frame.loc[:, "direct"].notna().any():
        handles.append(Line2D([], [], **_DIRECT, linewidth=0.6, label="direct effect"))
    handles.append(Patch(color=PALE, label="within ±δ"))
    legend_above(axes[0], 3, handles=handles, handlelength=1.8)
    return settle(figure)


def _delta(ruling: Ruling, verdict: Verdict) -> float:
    """The neuron's own δ; the verdict's where it has none of its own."""
    return ruling.delta if math.isfinite(ruling.delta) else verdict.delta


def _forest_frame(rulings: list[Ruling], deltas: list[float]) -> pd.DataFrame:
    columns = [
        "name",
        "word",
        "large",
        "effect",
        "low",
        "high",
        "direct",
        "direct_low",
        "direct_high",
    ]
    frame = pd.DataFrame([{name: getattr(one, name) for name in columns} for one in rulings])
    numbers = frame.columns[3:]
    frame[numbers] = frame[numbers].astype(float)
    return frame.assign(delta=deltas)


def _reach(rulings: list[Ruling]) -> float:
    """The largest distance from 0 that is drawn."""
    return max(
        abs(number)
        for one in rulings
        for number in (one.effect, one.low, one.high, one.direct or 0)
    )


def _rows(axis: Axes, rulings: list[dict[Any, Any]]) -> None:
    for row, one in enumerate(rulings):
        look = LOOKS[one["word"]]
        if one["name"] == "set" and row:
            axis.axhline(row - 0.5, color=GREY, linewidth=0.5)
        axis.plot([one["low"], one["high"]], [row, row], color=look.colour, linewidth=1.1, zorder=3)
        axis.plot([one["effect"]], [row], linestyle="none", **look.mark(4.6), zorder=4)
        if math.isfinite(one["direct"]):
            at, low, high = row + _BELOW, one["direct_low"], one["direct_high"]
            if math.isfinite(low) and math.isfinite(high):
                axis.plot([low, high], [at, at], color=GREY, linewidth=0.6, zorder=2)
            axis.plot([one["direct"]], [at], linestyle="none", **_DIRECT, zorder=2)
        axis.text(
            1.02, row, _SHORT.get(one["word"], str(one["word"])) + " (large)" * bool(one["large"]),
            transform=axis.get_yaxis_transform(), size=SMALL, va="center_baseline",
        )  # fmt: skip
    name_lines(axis, range(len(rulings)), [one["name"] for one in rulings])
    axis.set_ylim(len(rulings) - 0.4, -0.6)
    axis.margins(x=0.06)
    axis.grid(axis="y", color=PALE, linewidth=0.4, zorder=0)
    axis.set_axisbelow(True)


def dose_response(curve: DoseResponse, *, exploratory: bool = False) -> Drawing:
    """Effect against dose with 95 % intervals and the fitted slope; below, the damage elsewhere.

    Both panels share the dose and each has its own unit and its own line at 0.

    Args:
        curve: From `lens_skills.interventions.dose_response`.
        exploratory: Stamp it.

    Frame: one row per dose: dose effect low high damage damage_low damage_high (an end is ±inf
    where there is no interval), and the line's ``fit`` there.
    """
    frame = curve.frame()
    doses, effects = frame["dose"], frame["effect"]
    frame["fit"] = effects.mean() + curve.slope * (doses - doses.mean())
    units = len(curve.names)
    named = curve.names[0] if units == 1 else f"{units:,} units together"
    unit = curve.unit if curve.unit not in ("", "column", "0/1") else "of the metric"
    slope = f"slope {minus(f'{curve.slope:+.3g}')}"
    if np.isfinite([curve.slope_low, curve.slope_high]).all():
        slope += minus(f" [{curve.slope_low:+.3g}, {curve.slope_high:+.3g}]")
    texts = "1 neutral text" if curve.n_texts == 1 else f"{curve.n_texts:,} neutral texts"
    size = count(len(curve.example_ids), len(set(curve.groups)))
    about = {
        "title": f"{named}: dose and response",
        "lines": [
            f"{slope} {unit} per std · monotonicity {minus(f'{curve.monotonicity:+.2f}')}",
            f"steered: {place_words(curve.site, curve.position)}; std over {curve.over}",
            joined(*source(curve.provenance), size),
        ],
        "note": f"Bars: 95 % intervals. Damage: KL(clean ‖ steered) on {texts}, "
        "steered at every token.",
        "exploratory": exploratory,
        "axis": f"change of\n{with_unit(metric_words(curve.metric), curve.unit)}",
    }
    return Drawing("dose_response", frame, about, file_name("dose_response", curve.metric))


@draws("dose_response")
def _draw_dose_response(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    figure = sheet(look, 2.85, about)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.75, 1])
    doses = frame["dose"].to_numpy(float)
    above.plot(doses, frame["fit"], color=GREY, linewidth=0.9, linestyle=DASHES, label="slope")
    _panel(above, frame, "effect", "", DATA, "o")
    above.set_ylabel(about["axis"], color=DATA)
    legend_above(above, handlelength=2.4)
    _panel(below, frame, "damage", "damage_", DAMAGE, "s")
    below.set_ylabel("damage\n(nats per token)", color=DAMAGE)
    highest = max([*frame["damage"], *frame.loc[_sure(frame, "damage_"), "damage_high"]])
    below.set_ylim(bottom=0, top=max(1e-6, 1.12 * float(highest)))
    below.yaxis.set_major_locator(MaxNLocator(nbins=3))
    below.set_xlabel("dose (each unit's own std)")
    below.margins(x=0.05)
    if np.diff(np.sort(doses)).min(initial=np.inf) > 0.07 * np.ptp(doses):
        below.set_xticks(doses, [minus(f"{dose:g}") for dose in doses.tolist()])
    figure.align_ylabels()
    return settle(figure)


def _sure(frame: pd.DataFrame, which: str) -> np.ndarray:
    """Where there is an interval: one group, or one text, has none."""
    ends = frame[[f"{which}low", f"{which}high"]].to_numpy(float)
    return np.asarray(np.isfinite(ends).all(axis=1))


def _panel(
    axis: Axes, frame: pd.DataFrame, column: str, which: str, colour: str, marker: str
) -> None:
    sure = frame[_sure(frame, which)]
    axis.axhline(0, color=BLACK, linewidth=0.5, zorder=1)
    axis.axvline(0, color=BLACK, linewidth=0.5, linestyle=(0, (1, 2)), zorder=1)
    axis.vlines(
        sure["dose"], sure[f"{which}low"], sure[f"{which}high"], color=colour, linewidth=0.9
    )
    axis.plot(
        frame["dose"], frame[column], color=colour, marker=marker, markersize=3.6, clip_on=False,
        zorder=3, label=f"mean {column}",
    )  # fmt: skip
    axis.tick_params(axis="y", colors=colour)


def verdict_lines(verdict: Verdict) -> list[str]:
    """What was done, to which model where, and on how many examples."""
    effects = verdict.effects
    size = count(len(effects.clean), len(set(effects.groups)))
    where = place_words(effects.site, effects.position)
    return [effects.do, joined(where, *source(verdict.provenance), size)]


def change(verdict: Verdict) -> str:
    """Two lines for an axis of effects: which way is which, and the unit."""
    what = "removing it" if verdict.removes else "the edit"
    measured = with_unit(metric_words(verdict.effects.metric), verdict.effects.unit)
    return f"← lowers · {what} · raises →\nchange of {measured}"


def note(verdict: Verdict, rulings: Sequence[Ruling], marks: str) -> str:
    """What the band is, and the lines of the intervals."""
    unit = verdict.effects.unit
    values = [_delta(ruling, verdict) for ruling in rulings] or [verdict.delta]
    amount = f"{max(values):.2g}" + (f" {unit}" if unit not in ("", "column", "0/1") else "")
    if min(values) < 0.95 * max(values):
        amount = f"{min(values):.2g} to {amount}"
    return (
        f"Band: ±δ = ±{amount} ({verdict.delta_from}). {marks}: 95 % interval, by group of "
        "examples."
    )


def delta_band(axis: Axes, delta: float, which: str) -> None:
    """The effects too small to matter, and the line of no effect, across axis ``x`` or ``y``."""
    span, line = (axis.axvspan, axis.axvline) if which == "x" else (axis.axhspan, axis.axhline)
    span(-delta, delta, color=PALE, zorder=0, linewidth=0, gid="delta")
    line(0, color=BLACK, linewidth=0.5, zorder=0.9)
