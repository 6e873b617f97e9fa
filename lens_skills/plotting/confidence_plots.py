"""Whether the model's confidence can be trusted: the reliability diagram, and any other measure."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lens_skills.errors import LensSkillsError
from lens_skills.plotting.drawing import Column, Drawing, draws, finite, numbers
from lens_skills.plotting.style import (
    CHANCE,
    DASHES,
    DATA,
    GREY,
    SMALL,
    About,
    Look,
    count,
    joined,
    legend_above,
    series,
    settle,
    sheet,
    source,
    with_unit,
)
from lens_skills.plotting.words import metric_words, shortened
from lens_skills.scoring import Scores
from lens_skills.stats.calibration import Calibration
from lens_skills.stats.correlation import area_under_curve
from lens_skills.stats.intervals import wilson_interval

_FEW = 10  # examples below which a share is drawn hollow and the curve passes it by
_CURVE: dict[str, Any] = {"color": DATA, "linewidth": 1.0, "clip_on": False, "zorder": 3}
_DIAMETER = 2.6, 6.5  # points of a mark, by the share of the examples in its bin


def reliability(calibration: Calibration | Scores, *, about: str = "") -> Drawing:
    """Share correct against confidence, bin by bin, with the count of examples below.

    The closer to the diagonal, the more the confidence means what it says; ECE (the expected
    calibration error, 0 to 1) is the count-weighted distance. Bars are Wilson's 95 % intervals.
    The area of a mark is the number of examples; a bin of fewer than 10 is hollow, and the curve
    passes it by.

    Args:
        calibration: ``scores.calibration()``, or the scores themselves, whose model and task are
            then named and whose exploratory mark is kept.
        about: A line to put under the title instead.

    Frame: one row per bin: low high confidence accuracy count, and the interval's accuracy_low
    and accuracy_high (NaN in an empty bin, of which nothing but the count is drawn).

    Raises:
        LensSkillsError: Scores without both a confidence and a correctness.

    Assumes: independent examples (for the intervals).
    Source: Guo et al. 2017 (arXiv 1706.04599); Wilson 1927.
    """
    scores = calibration if isinstance(calibration, Scores) else None
    table = calibration.calibration() if isinstance(calibration, Scores) else calibration
    if table is None:
        raise LensSkillsError(
            "these scores hold no pair of confidence and correctness. Score both, e.g. "
            'metrics=["confidence", "first_token_correct"].'
        )
    frame = _calibration_frame(table)
    total = count(int(frame.loc[:, "count"].sum()), None if scores is None else scores.n_groups)
    known = [] if scores is None else source(scores.provenance)
    few = frame["count"].between(1, _FEW - 1).any()
    said = {
        "title": "Reliability of the model's confidence",
        "lines": [about or joined(*known, total)],
        "note": "Bars: 95 % of each share."
        + (f" Hollow: fewer than {_FEW} examples." if few else ""),
        "exploratory": scores is not None and scores.exploratory,
        "error": table.error,
    }
    return Drawing("reliability", frame, said, name="reliability")


@draws("reliability")
def _draw_reliability(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    figure = sheet(look, 2.9, about)
    curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 1])
    _curve(curve, frame, about["error"])
    _calibration_counts(counts, frame)
    return settle(figure)


def _calibration_frame(table: Calibration) -> pd.DataFrame:
    frame = table.frame()
    ends = [_wilson(*row) for row in zip(frame["accuracy"], frame["count"], strict=True)]
    frame[["accuracy_low", "accuracy_high"]] = np.array(ends, dtype=float).reshape(-1, 2)
    frame.loc[frame["count"] == 0, ["confidence", "accuracy", "accuracy_low", "accuracy_high"]] = (
        np.nan
    )
    return frame


def _curve(axis: Axes, frame: pd.DataFrame, error: float) -> None:
    seen = frame.loc[frame["count"] > 0]
    axis.plot([0, 1], [0, 1], color=CHANCE, linewidth=0.8, linestyle=DASHES)
    _marks(axis, seen, "accuracy", seen.loc[:, "count"].to_numpy())
    gap = float(((seen.loc[:, "accuracy"] - seen["confidence"]) * seen["count"]).sum())
    side = "below the line: overconfident" if gap <= 0 else "above the line: underconfident"
    # Above the panel: inside, an interval may lie anywhere.
    axis.set_title(f"ECE {error:.3f} · {side}", loc="left", size=SMALL, pad=4)
    # A share of 0 or 1 keeps the whole of its mark.
    axis.set(xlim=(0, 1), ylim=(-0.03, 1.03), ylabel="share correct")


def _marks(axis: Axes, rows: pd.DataFrame, column: str, n: np.ndarray) -> None:
    """Shares with their intervals, sized by their examples; a curve through those of enough."""
    names = ("confidence", column, f"{column}_low", f"{column}_high")
    x, share, low, high = (rows[name].to_numpy(float) for name in names)
    enough = n >= _FEW
    axis.errorbar(x, share, yerr=[share - low, high - share], fmt="none", ecolor=DATA,
                  elinewidth=0.8)  # fmt: skip
    axis.plot(x[enough], share[enough], **_CURVE)
    small, large = _DIAMETER
    sizes = small**2 + (large**2 - small**2) * n / max(1, n.max())
    faces = [DATA if full else "white" for full in enough]
    axis.scatter(x, share, s=sizes, c=faces, edgecolors=DATA, linewidth=0.9, zorder=4,
                 clip_on=False)  # fmt: skip


def _calibration_counts(axis: Axes, frame: pd.DataFrame) -> None:
    wide = frame["high"] - frame["low"]
    drawn = axis.bar(
        frame["low"], frame["count"], wide * 0.94, align="edge", color=DATA, alpha=0.75
    )
    labels = [f"{n:,}" if n else "" for n in frame["count"]]
    axis.bar_label(drawn, labels, padding=1, size=SMALL - 0.5)
    axis.set_ylim(0, 1.25 * max(1, frame.loc[:, "count"].max()))
    axis.set(ylabel="examples", xlabel="confidence (probability)")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))


def confidence_against_correctness(
    confidence: Column | Scores,
    correct: Column | None = None,
    *,
    metric: str = "confidence",
    truth: str | None = None,
    unit: str | None = None,
    bins: int = 8,
    about: str = "",
    exploratory: bool = False,
) -> Drawing:
    """Share right in bins of equally many examples, with counts of right and wrong below.

    For measures that are no probability (mean log-probability, margin, entropy), which a
    reliability diagram cannot take; for probabilities see `reliability`. AUROC is the chance that
    a right answer has a larger measure than a wrong one (0.5: it says nothing).

    Args:
        confidence: One number per example; or scores, whose metrics are then named.
        correct: 0 or 1 per example; left out with scores.
        metric: Name of the confidence, and of the scores' metric.
        truth: Name of the scores' 0/1 metric; None takes first_token_correct or correct.
        unit: Of the confidence, behind its name.
        bins: How many, at most: ties stay together.
        about: A line under the title.
        exploratory: Stamp it.

    Frame: ``what`` (bin, histogram), its ends ``low`` and ``high``, counts ``right`` and
    ``wrong``; of a bin the mean ``confidence``, the ``share`` right with share_low and share_high
    (Wilson's 95 %), and the AUROC of all.

    Raises:
        LensSkillsError: Columns of different length, not finite or not 0/1, or metrics that the
            scores do not hold.

    Assumes: independent examples (for the intervals).

    >>> drawing = confidence_against_correctness([0.1, 0.2, 0.7, 0.9], [0, 0, 1, 1], bins=2)
    >>> rows = drawing.frame.query("what == 'bin'")
    >>> rows["share"].tolist(), rows["auroc"].tolist()
    ([0.0, 1.0], [1.0, 1.0])
    """
    lines = [about] if about else []
    n_groups = None
    if isinstance(confidence, Scores):
        scores = confidence
        exploratory, n_groups = exploratory or scores.exploratory, scores.n_groups
        truth = truth or next(
            (n for n in ("first_token_correct", "correct") if n in scores.values), "correct"
        )
        missing = [name for name in (metric, truth) if name not in scores.values]
        if missing:
            raise LensSkillsError(
                f"these scores hold no {missing[0]!r}. They hold: {', '.join(scores.values)}."
            )
        unit = unit or scores.provenance.get("units", {}).get(metric)
        x, y = scores.values[metric].numpy(), scores.values[truth].numpy()
        lines = lines or [joined(*source(scores.provenance))]
    else:
        x, y = numbers(confidence), numbers([] if correct is None else correct)
    _check(x, y)
    frame = _confidence_frame(x, y, bins)
    auroc = float(frame["auroc"].iloc[0])
    said = {
        "title": f"Right answers by {metric_words(metric)}, "
        + ("one class only" if np.isnan(auroc) else f"AUROC {auroc:.2f}"),
        "lines": [joined(*lines, count(len(x), n_groups))],
        "note": "Bins hold about as many examples each. Bars: the bin, and 95 % of its share. "
        "Dashed: share of all.",
        "exploratory": exploratory,
        "share": float(y.mean()),
        "label": with_unit(metric, unit),
    }
    parts = [frame.assign(what="bin"), _histogram(x, y).assign(what="histogram")]
    kind = "confidence_against_correctness"
    return Drawing(
        kind, pd.concat(parts, ignore_index=True).reindex(columns=["what", *frame]), said, name=kind
    )


@draws("confidence_against_correctness")
def _draw_confidence(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    figure = sheet(look, 2.7, about)
    share, counts = figure.subplots(2, 1, sharex=True, height_ratios=[1.8, 1])
    _share(share, frame.loc[frame["what"] == "bin"], about["share"])
    _confidence_counts(counts, frame.loc[frame["what"] == "histogram"])
    counts.set_xlabel(shortened(about["label"], 44))
    return settle(figure)


def _check(x: np.ndarray, y: np.ndarray) -> None:
    if len(x) != len(y) or len(x) < 2:
        raise LensSkillsError(
            f"{len(x)} confidences and {len(y)} answers: one of each per example, 2 at least."
        )
    finite(x, "confidence")
    if not np.isin(y, (0, 1)).all():
        place = int(np.flatnonzero(~np.isin(y, (0, 1)))[0])
        raise LensSkillsError(f"example {place} is {y[place]:g} correct; give 0 or 1.")


def _confidence_frame(x: np.ndarray, y: np.ndarray, bins: int) -> pd.DataFrame:
    ends = np.unique(np.quantile(x, np.linspace(0, 1, bins + 1)))
    place = np.clip(np.searchsorted(ends, x, side="right") - 1, 0, max(len(ends) - 2, 0))
    auroc = float(area_under_curve(torch.as_tensor(x), torch.as_tensor(y).double()))
    rows = []
    for one in np.unique(place):
        mine = place == one
        hits, size = int(y[mine].sum()), int(mine.sum())
        low, high = _wilson(hits / size, size)
        rows.append(
            {
                "low": x[mine].min(),
                "high": x[mine].max(),
                "confidence": x[mine].mean(),
                "right": hits,
                "wrong": size - hits,
                "share": hits / size,
                "share_low": low,
                "share_high": high,
                "auroc": auroc,
            }
        )
    return pd.DataFrame(rows)


def _wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval around a share, which rounding must not leave outside."""
    low, high = wilson_interval(share, max(n, 1))
    return min(low, share), max(high, share)


def _share(axis: Axes, frame: pd.DataFrame, overall: float) -> None:
    axis.axhline(overall, color=GREY, linestyle=DASHES, linewidth=0.8)
    axis.hlines(frame["share"], frame["low"], frame["high"], color=DATA, linewidth=0.6)
    _marks(axis, frame, "share", (frame["right"] + frame["wrong"]).to_numpy())
    axis.annotate(
        f"all:\n{overall:.2f}",
        (1, overall),
        xytext=(4, 0),  # beside the panel: inside, the last bin may lie anywhere
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        size=SMALL,
        color=GREY,
        ha="left",
        va="center",
    )
    axis.set_ylim(-0.03, 1.03)
    axis.set_ylabel("share right")


def _histogram(x: np.ndarray, y: np.ndarray) -> pd.DataFrame:
    edges = np.histogram_bin_edges(x, bins=min(30, max(6, len(x) // 10)))
    right, wrong = (np.histogram(x[y == side], edges)[0] for side in (1, 0))
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "right": right, "wrong": wrong})


def _confidence_counts(axis: Axes, frame: pd.DataFrame) -> None:
    edges = [*frame["low"], frame["high"].iloc[-1]]
    for place, words in enumerate(("right", "wrong")):
        counts, colour = frame.loc[:, words], series(place)[0]
        # Filled against outlined: told apart without colour, and both seen where they overlap.
        axis.stairs(
            counts, edges, fill=place == 0, color=colour, alpha=1.0 if place else 0.6,
            linewidth=1.2, label=f"{words} (n = {int(counts.sum()):,})",
        )  # fmt: skip
    axis.set_ylabel("examples")
    axis.set_ylim(bottom=0)
    legend_above(axis)
