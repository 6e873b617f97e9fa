"""What is kept when few neurons act, and how well numbers read from tokens tell what is there."""

import pandas as pd
from matplotlib.figure import Figure

from lens_skills.diagnostics import Dissection
from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.style import (
    BLACK,
    CHANCE,
    DASHES,
    DATA,
    GREY,
    RANDOM,
    About,
    Look,
    joined,
    legend_above,
    legend_from_edge,
    series,
    settle,
    sheet,
    source,
    ticks_at,
)
from lens_skills.plotting.words import metric_words, place_words
from lens_skills.results import file_name


def dissection(dissection: Dissection) -> Drawing:
    """The metric that is kept against the share of neurons that act: winners, and random ones.

    Args:
        dissection: From `lens_skills.diagnostics.dissect`.

    Frame: as ``dissection.curve``, with ``clean`` and ``none``, the metric where all neurons act
    and where all are at their mean.

    Does not show: that the model needs the winners.
    """
    frame = dissection.curve.assign(clean=dissection.clean, none=dissection.none)
    metric = metric_words(dissection.metric)
    about = {
        "title": f"{metric} when few neurons act",
        "lines": [
            f"{place_words(dissection.site, dissection.position)} · {len(dissection.layers)} "
            f"layers of {dissection.wins.shape[1]:,}",
            joined(
                *source(dissection.provenance),
                f"{dissection.n_held:,} held-out examples in {dissection.n_groups:,} groups",
            ),
        ],
        "note": "Bars: 95 % over groups. One winner in each cluster of like neurons, by example; "
        f"random: as many, mean of {dissection.n_random} draws. The others are at their mean.",
        "metric": metric if dissection.unit == "share" else f"{metric} ({dissection.unit})",
    }
    name = file_name("dissection", dissection.metric)
    return Drawing("dissection", frame, about, name=name)


@draws("dissection")
def _draw_dissection(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    figure = sheet(look, 2.4, about)
    axis = figure.add_subplot()
    axis.axhline(float(frame["clean"].iloc[0]), color=BLACK, linewidth=0.9, label="all neurons")
    axis.axhline(
        float(frame["none"].iloc[0]), color=CHANCE, linewidth=0.9, linestyle=DASHES, label="none"
    )
    for arm, colour, line, marker, beside in (
        ("winners", DATA, "-", "o", 0.97), ("random", RANDOM, (0, (5, 1.5)), "s", 1.03),
    ):  # fmt: skip
        x = 100 * frame["share"] * beside
        axis.vlines(x, frame[f"{arm}_low"], frame[f"{arm}_high"], color=colour, linewidth=0.9)
        axis.plot(x, frame[arm], color=colour, linestyle=line, marker=marker, markersize=3.2,
                  label=f"{arm} only")  # fmt: skip
    axis.set_xscale("log")
    ticks_at(axis.xaxis, (100 * frame["share"]).tolist(), "{:g}")
    axis.minorticks_off()
    axis.set(xlabel="neurons that act (% of each layer)", ylabel=about["metric"])
    legend_above(axis, handlelength=2.4)
    return settle(figure)


def read_outs(frame: pd.DataFrame, *, title: str, lines: tuple[str, ...] = ()) -> Drawing:
    """R² on unseen texts of the best neuron's count, mean and maximum, for several kinds of clue.

    Args:
        frame: One row per kind of clue and read-out: ``clue``, ``read_out``, ``r2``, ``low``,
            ``high``.
        title: What was told.
        lines: Of the caption: models, texts.

    Frame: as it was given.
    """
    about = {
        "title": title,
        "lines": list(lines),
        "note": "Bars: 95 % over groups of unseen texts. Neuron, threshold and line are chosen on "
        "other texts, so R² may be below 0: then the mean number of clues tells more.",
    }
    return Drawing("read_outs", frame.reset_index(drop=True), about, "read_outs")


@draws("read_outs")
def _draw_read_outs(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    clues = list(dict.fromkeys(frame["clue"]))
    names = list(dict.fromkeys(frame["read_out"]))
    figure = sheet(look, 0.5 + 0.5 * len(clues), about)
    axis = figure.add_subplot()
    for place, name in enumerate(names):
        rows = frame.loc[frame["read_out"] == name]
        y = [clues.index(clue) + 0.22 * (place - (len(names) - 1) / 2) for clue in rows["clue"]]
        colour, _, marker = series(place)
        axis.hlines(y, rows["low"], rows["high"], color=colour, linewidth=0.9)
        axis.plot(rows["r2"], y, linestyle="none", marker=marker, color=colour, markersize=3.6,
                  label=name, clip_on=False)  # fmt: skip
    axis.axvline(0, color=GREY, linewidth=0.6)
    axis.set_yticks(range(len(clues)), clues)
    axis.set(xlabel="R² on unseen texts", ylim=(len(clues) - 0.5, -0.5))
    axis.set_xlim(min(-0.05, float(frame.loc[:, "low"].min()) - 0.03), 1.06)
    legend = legend_above(axis, n_columns=len(names), columnspacing=0.8, handlelength=1.0)
    settle(figure)
    legend_from_edge(axis, legend)
    return figure
