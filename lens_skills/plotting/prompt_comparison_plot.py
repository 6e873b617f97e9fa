"""Every two soft prompts, or seeds, beside each other: do the same neurons stand out?"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.style import (
    BLACK,
    CHANCE,
    DASHES,
    DATA,
    SMALL,
    About,
    Look,
    joined,
    legend_above,
    settle,
    sheet,
)
from lens_skills.plotting.words import metric_words, site_words
from lens_skills.results import file_name
from lens_skills.scoring import ScoreComparison

_ROW = 0.2  # inches of a pair


def compare_scores(comparison: ScoreComparison) -> Drawing:
    """Every pair of prompts: neurons they share against chance, same signs, and rank correlation.

    Left: shared neurons among each prompt's strongest, with what random sets would share among all
    neurons, and with the same counts per layer. Right: share of significant neurons with the same
    sign, and Spearman's correlation of |r| over all neurons.

    Args:
        comparison: From `lens_skills.scoring.compare_scores`.

    Frame: one row per pair, as in ``comparison.frame()``.
    """
    first = comparison.provenance.get("scores", [{}])[0]
    model = str(first.get("model", "")).split(" with soft")[0]
    stable = (
        f"{len(comparison.stable):,} neurons significant with one sign under every prompt"
        if bool((comparison.n_significant >= 0).all())
        else "no null was drawn: significance unknown"
    )
    size = f"{comparison.n_units:,} neurons"
    metric = metric_words(comparison.metric)
    about = {
        "title": f"{metric}: the same neurons under {comparison.n_prompts} prompts?",
        "lines": [joined(site_words(comparison.site), model, first.get("task"), size), stable],
        "note": "" if comparison.same_examples else "Other examples per prompt: those differ too.",
        "exploratory": comparison.exploratory,
        "top": comparison.top,
    }
    name = file_name("compare_scores", comparison.metric)
    return Drawing("compare_scores", comparison.frame(), about, name)


@draws("compare_scores")
def _draw_compare_scores(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    figure = sheet(look, max(0.9, _ROW * len(frame) + 0.3) + 0.85, about)
    left, right = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(frame))
    left.barh(rows, frame["shared"], height=0.55, color=DATA, alpha=0.35, label="shared")
    for column, marker, words in (
        ("expected", "|", "by chance"),
        ("expected_by_layer", "D", "chance, by layer"),
    ):
        left.plot(
            frame[column], rows, linestyle="none", marker=marker, color=CHANCE, label=words,
            markersize=8 if marker == "|" else 3.8, markeredgewidth=1.4 if marker == "|" else 0.9,
            markerfacecolor="white", zorder=3,
        )  # fmt: skip
    left.set_yticks(rows, [f"{a} – {b}" for a, b in zip(frame["one"], frame["other"], strict=True)])
    left.set_ylim(len(frame) - 0.4, -0.6)
    left.set(xlabel=f"of the {about['top']} strongest", ylabel="prompts", xlim=(0, None))
    left.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    _agreement(right, frame, rows)
    for axis in (left, right):
        axis.tick_params(axis="y", length=0)
        legend_above(axis, 1, left=-0.04, handlelength=1.0)
    return settle(figure)


def _agreement(axis: Axes, frame: pd.DataFrame, rows: np.ndarray) -> None:
    told = frame["sign_agreement"].notna().to_numpy()
    # A legend names what is drawn, and nothing else.
    if told.any():
        axis.plot(
            frame["sign_agreement"][told], rows[told], linestyle="none", marker="o", color=DATA,
            markersize=4.5, clip_on=False, label="same sign (share)",
        )  # fmt: skip
        axis.axvline(0.5, color=CHANCE, linestyle=DASHES, linewidth=0.8, label="signs by chance")
    axis.plot(
        frame["rank_r"], rows, linestyle="none", marker="s", markerfacecolor="white", color=BLACK,
        markersize=4.5, clip_on=False, label="rank correlation",
    )  # fmt: skip
    low = min(0.0, float(frame.loc[:, "rank_r"].min()) - 0.05)
    axis.set_xlim(low, 1.02)
    axis.set_xlabel("agreement", size=SMALL + 1)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
