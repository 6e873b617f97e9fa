"""What neurons do, against how strongly they correlate: the picture that tells the two apart."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from lens_skills.errors import LensSkillsError
from lens_skills.interventions.verdict import CAUSAL, WORDS, Verdict
from lens_skills.plotting.drawing import MANY, Drawing, draws
from lens_skills.plotting.intervention_plots import LOOKS, change, note, verdict_lines
from lens_skills.plotting.label_placement import name_points
from lens_skills.plotting.style import (
    BLACK,
    GREY,
    OTHERS,
    PALE,
    SMALL,
    THRESHOLD,
    About,
    Look,
    correlation,
    legend_above,
    legend_from_edge,
    minus,
    settle,
    sheet,
)
from lens_skills.plotting.words import metric_words
from lens_skills.results import file_name
from lens_skills.scoring import MetricScores, Scores
from lens_skills.scoring.scores import one_metric

_COLUMNS = ["what", "name", "r", "strength", "effect", "low", "high", "word", "mark"]
_HIDDEN = 10  # times δ that the largest effect is from where on the band is hardly seen
_ASIDE = 0.6  # inches the labels of the y axis take, about
_RINGS = ("o", "s", "D", "^")  # around marked neurons, one shape for each kind of mark


def effect_against_r(
    scores: MetricScores | Scores,
    verdict: Verdict,
    *,
    marked: Mapping[str, str] | None = None,
    n_labels: int | None = None,
) -> Drawing:
    """Each neuron's signed causal effect against its |r|: what correlates need not matter.

    Small and pale behind: the single neurons that the verdict compares with. Colour and marker are
    the word. Up and down mean what the axis says, so a neuron that supports the skill is low where
    the edit removes it. The axis is linear within ±δ and logarithmic beyond, unless the band is
    seen on a linear one.

    Args:
        scores: Of one metric and the same neurons: ``scores["name"]``. At the verdict's position
            where they hold it, else each neuron's largest |r|.
        verdict: Of those neurons.
        marked: Neurons to ring, with what they are: ``{"L1N2": "decoy"}``.
        n_labels: How many neurons of largest |effect| to name, as far as there is room; None names
            those whose word is an effect, or the five largest where none is.

    Frame: one row per point: ``what`` (edited, compared with), ``name``, ``r`` and its size
    ``strength``, ``effect`` with ``low`` and ``high`` (95 %), ``word``, ``mark``; and two rows
    ``delta`` (low, high) and ``threshold`` (strength), the latter with a null only.

    Raises:
        LensSkillsError: Scores of several metrics, of another model or site, or of none of the
            neurons; a mark on a neuron that is not in the verdict.

    Does not show: that r and effect are of the same examples; they are of different splits.
    """
    scores = one_metric(scores)
    frame, left = join_points(scores, verdict, dict(marked or {}))
    edited = frame.loc[frame["what"] == "edited"]
    notes = [note(verdict, [verdict[name] for name in edited["name"]], "Bars")]
    if _bent(frame):
        notes.append("The axis is linear within ±δ and logarithmic beyond.")
    if left:
        notes.append(f"Not shown, for want of an r: {left} of {left + len(edited)}.")
    if n_labels is None:
        n_labels = int(edited["word"].isin(CAUSAL).sum()) or 5
    about = {
        "title": f"{len(edited):,} neuron{'s' * (len(edited) > 1)}: "
        "correlation against causal effect",
        "lines": verdict_lines(verdict),
        "note": " ".join(notes),
        "exploratory": verdict.exploratory or scores.scores.exploratory,
        "x": f"|{correlation(scores.scores)}| with {metric_words(scores.metric)}",
        "y": change(verdict),
        "marks": list(dict.fromkeys((marked or {}).values())),  # each once, in the order given
        "n_labels": n_labels,
    }
    name = file_name("effect_against_r", scores.metric)
    return Drawing("effect_against_r", frame, about, name)


@draws("effect_against_r")
def _draw_effect_against_r(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    edited = frame.loc[frame["what"] == "edited"]
    handles = _handles(frame, about["marks"])
    columns = max(2, int(look.width / 1.7))
    figure = sheet(look, 2.45 + 0.13 * math.ceil(len(handles) / columns), about)
    axis = figure.add_subplot()
    delta = _delta(frame)
    axis.axhspan(-delta, delta, color=PALE, zorder=0, linewidth=0, gid="delta")
    axis.axhline(0, color=BLACK, linewidth=0.5, zorder=0.9)
    _points(axis, frame, about["marks"])
    for value in frame.loc[frame["what"] == "threshold", "strength"]:
        colour, dashes, _ = THRESHOLD
        axis.axvline(value, color=colour, linestyle=dashes, linewidth=0.9, zorder=1)
    axis.set_xlim(0, min(1.02, 1.1 * max(0.05, float(frame.loc[:, "strength"].max()))))
    if _bent(frame):
        _bend(axis, frame, delta)
    else:
        low, high = axis.get_ylim()
        axis.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    axis.set(xlabel=about["x"], ylabel=about["y"])
    axis.text(
        1.01, 0, "±δ", transform=axis.get_yaxis_transform(), color=GREY, size=SMALL,
        va="center_baseline",
    )  # fmt: skip
    left_edge = -_ASIDE / (look.width - _ASIDE)
    legend = legend_above(
        axis, columns, left=left_edge, handles=handles, handlelength=1.3, columnspacing=0.8
    )
    settle(figure)
    legend_from_edge(axis, legend)
    _names(axis, edited, about["n_labels"])
    return figure


def _delta(frame: pd.DataFrame) -> float:
    return float(frame.loc[frame["what"] == "delta", "high"].iloc[0])


def _sizes(frame: pd.DataFrame) -> np.ndarray:
    """Every effect and end of an interval that is drawn."""
    sizes = frame.loc[frame["what"] != "delta", ["effect", "low", "high"]].to_numpy(float)
    return sizes[np.isfinite(sizes)]


def _bent(frame: pd.DataFrame) -> bool:
    """Whether ±δ would hardly be seen on a linear axis."""
    return float(np.abs(_sizes(frame)).max(initial=0)) > _HIDDEN * _delta(frame) > 0


def _bend(axis: Axes, frame: pd.DataFrame, delta: float) -> None:
    """Makes the axis of effects linear within ±δ and logarithmic beyond."""
    sizes = _sizes(frame)
    # Both sides of the band are always there.
    low, high = min(sizes.min(), -1.3 * delta), max(sizes.max(), 1.3 * delta)
    axis.set_yscale("symlog", linthresh=delta, linscale=0.5)
    axis.set_ylim(1.35 * low, 1.35 * high)
    decades = range(math.floor(math.log10(delta)), math.ceil(math.log10(max(high, -low))) + 1)
    steps = [digit * 10.0**k for k in decades for digit in (1, 3)]
    ticks = [sign * step for step in steps for sign in (-1, 1) if step > 1.25 * delta]
    ticks = [0, *(tick for tick in ticks if 1.3 * low < tick < 1.3 * high)]
    axis.set_yticks(ticks, [minus(f"{tick:g}") for tick in ticks])
    axis.yaxis.set_minor_locator(NullLocator())


def _points(axis: Axes, frame: pd.DataFrame, kinds: Iterable[str]) -> None:
    cloud = frame[frame["what"] == "compared with"]
    axis.scatter(
        cloud["strength"], cloud["effect"], s=3.0, color=OTHERS, alpha=0.45, linewidth=0,
        zorder=1.5, rasterized=len(cloud) > MANY,
    )  # fmt: skip
    edited = frame[frame["what"] == "edited"]
    size = 4.6 if len(edited) <= 40 else 3.6
    for kind, ring in zip(kinds, _RINGS, strict=False):
        here = frame[frame["mark"] == kind]
        axis.plot(here["strength"], here["effect"], **_ring(ring, size + 3.0), zorder=5)
    # What has an effect lies on top.
    for order, word in enumerate(reversed(WORDS)):
        here = edited[edited["word"] == word]
        sure = here[np.isfinite(here["low"]) & np.isfinite(here["high"])]
        axis.vlines(
            sure["strength"], sure["low"], sure["high"], color=LOOKS[word].colour, linewidth=0.8,
            alpha=0.75, zorder=2 + order / 10,
        )  # fmt: skip
        axis.plot(
            here["strength"], here["effect"], linestyle="none", **LOOKS[word].mark(size),
            zorder=3 + order / 10,
        )  # fmt: skip


def _ring(marker: str, size: float) -> dict[str, Any]:
    return {
        "marker": marker,
        "markersize": size,
        "linestyle": "none",
        "markerfacecolor": "none",
        "markeredgecolor": BLACK,
        "markeredgewidth": 0.6,
    }


def _handles(frame: pd.DataFrame, kinds: Iterable[str]) -> list[Line2D]:
    """The legend: words with how many neurons got them, then everything else."""
    words = frame.loc[frame["what"] == "edited", "word"].value_counts()
    handles = [LOOKS[word].line(f"{word} ({words[word]})") for word in WORDS if word in words]
    n_cloud = np.count_nonzero(frame["what"] == "compared with")
    if n_cloud:
        label = f"other neurons ({n_cloud:,})"
        handles.append(
            Line2D([], [], linestyle="none", marker=".", color=OTHERS, markersize=3.5, label=label)
        )
    for kind, ring in zip(kinds, _RINGS, strict=False):
        n = np.count_nonzero(frame["mark"] == kind)
        handles.append(Line2D([], [], **_ring(ring, 7.0), label=f"{kind} ({n})"))
    if np.any(frame["what"] == "threshold"):
        colour, dashes, words_of = THRESHOLD
        handles.append(Line2D([], [], color=colour, linestyle=dashes, label=words_of))
    return handles


def _names(axis: Axes, edited: pd.DataFrame, n_labels: int) -> None:
    # What has an effect comes first, the larger before the smaller.
    weaker, size = ~edited["word"].isin(CAUSAL), -edited["effect"].abs()
    order = sorted(edited.index, key=lambda row: (weaker[row], size[row]))[:n_labels]
    named = edited.loc[order]
    bars = edited.loc[np.isfinite(edited["low"]) & np.isfinite(edited["high"])]
    name_points(
        axis,
        named["name"].tolist(),
        named[["strength", "effect"]].to_numpy(float),
        marks=edited[["strength", "effect"]].to_numpy(float),
        bars=bars[["strength", "low", "high"]].to_numpy(float),
    )


def join_points(
    scores: MetricScores, verdict: Verdict, marked: Mapping[str, str]
) -> tuple[pd.DataFrame, int]:
    """The rows that `effect_against_r` draws, and how many edited neurons have no r."""
    r = _signed_r(scores, verdict)
    unknown = set(marked) - {*verdict.control_neurons, *(ruling.name for ruling in verdict.singles)}
    if unknown:
        raise LensSkillsError(
            f"no neuron {min(unknown)!r} in this verdict to mark. It is about: "
            + ", ".join(ruling.name for ruling in verdict.singles[:5])
            + (", …." if len(verdict) > 5 else ".")
        )
    controls = zip(verdict.control_neurons, verdict.control_neuron_effect.tolist(), strict=True)
    rows: list[dict[str, Any]] = [
        {"what": "compared with", "name": name, "effect": effect}
        for name, effect in controls
        if name in r
    ]
    edited = [ruling for ruling in verdict.singles if ruling.name in r]
    if not edited:
        raise LensSkillsError(
            f"none of the {len(verdict)} edited units was scored: the scores hold "
            f"{scores.scores.n_units:,} neurons at {scores.scores.site}. Pass the scores of the "
            "edited neurons."
        )
    shown = ("name", "effect", "low", "high", "word")
    rows += [{"what": "edited"} | {name: getattr(one, name) for name in shown} for one in edited]
    for row in rows:
        value = r[row["name"]]
        row |= {"r": value, "strength": abs(value), "mark": marked.get(row["name"], "")}
    rows.append({"what": "delta", "low": -verdict.delta, "high": verdict.delta})
    bar = scores.threshold
    if bar is not None:
        rows.append({"what": "threshold", "name": "permutation", "strength": bar})
    return pd.DataFrame(rows, columns=_COLUMNS), len(verdict) - len(edited)


def _signed_r(metric_scores: MetricScores, verdict: Verdict) -> dict[str, float]:
    """Signed r by name such as ``L17N635``, of neurons that vary."""
    scores, effects = metric_scores.scores, verdict.effects
    if scores.site not in effects.site.split(", "):
        raise LensSkillsError(
            f"the scores are of {scores.site}, the verdict of {effects.site}. Pass the scores of "
            "the edited neurons."
        )
    mine, theirs = (
        about.get("model_fingerprint") for about in (scores.provenance, verdict.provenance)
    )
    if None not in (mine, theirs) and mine != theirs:
        raise LensSkillsError(
            "the scores and the verdict are of different models. Pass the scores the neurons were "
            "selected from."
        )
    if effects.position in scores.positions:
        r = metric_scores.r[scores.positions.index(effects.position)]
    else:
        r = metric_scores.at_strongest(metric_scores.r)
    names = scores.names()
    rows = zip(names, r.tolist(), scores.excluded.tolist(), strict=True)
    return {name: value for name, value, out in rows if not out}
