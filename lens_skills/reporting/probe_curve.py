"""How well a label is told, against how many neurons tell it."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lens_skills.diagnosis import SparseProbe
from lens_skills.reporting.caption import file_name
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    settle,
    sheet,
    style,
)

_CONTROL = (0, (5, 1.5, 1, 1.5))


@style()
def sparse_probe(probe: SparseProbe, *, width: float = COLUMN) -> Drawing:
    """Held-out balanced accuracy and description length of k-sparse probes, against k.

    Above: the best k neurons with their 95 % interval, k random neurons (mean, and all draws
    between the thin ends), the control task's random labels, chance. Below: bits of the labels and
    bits to name the neurons; the ring is the shortest, which chooses k.

    Args:
        probe: From `lens_skills.diagnosis.sparse_probe`.
        width: Inches.

    Frame: as ``probe.frame()``, with ``chosen``.

    Does not show: that the model uses these neurons.
    """
    frame = probe.frame()
    frame["chosen"] = frame["k"] == probe.chosen
    about = probe.provenance
    figure = sheet(
        width,
        3.1,
        title=f"{probe.label} · {probe.word}",
        lines=[
            f"{probe.site} at {probe.position} · {probe.n_candidates:,} candidates, "
            f"{probe.order_from}",
            " · ".join(
                str(part)
                for part in (
                    about.get("model", ""),
                    about.get("task", ""),
                    f"{probe.n_train:,} to train, {probe.n_test:,} to test in "
                    f"{probe.n_groups:,} groups",
                )
                if part
            ),
        ],
        note="Band: 95 % over groups. The k is chosen by the shortest description of the training "
        "labels, not by the held-out accuracy.",
    )
    accuracy, bits = figure.subplots(2, 1, sharex=True, height_ratios=[1.5, 1])
    _accuracy(accuracy, frame)
    _description(bits, frame)
    ks = [int(k) for k in frame["k"]]
    bits.set_xscale("symlog", base=2, linthresh=1, linscale=0.6)
    bits.xaxis.set_major_locator(FixedLocator(ks))
    bits.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    bits.xaxis.set_minor_locator(NullLocator())
    bits.set(xlabel="neurons k", xlim=(-0.3, 1.15 * max(ks)))
    settle(figure)
    return Drawing(figure, frame, file_name("sparse_probe", probe.label))


def _accuracy(axis: Axes, frame: pd.DataFrame) -> None:
    rows = frame.loc[frame["k"] > 0]
    k = rows["k"]
    axis.axhline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (1, 1)), label="chance")
    low, high = (rows[f"balanced_accuracy_{end}"] for end in ("low", "high"))
    axis.fill_between(k, low, high, color=BLUE, alpha=0.2, linewidth=0)
    axis.plot(
        k, rows["balanced_accuracy"], color=BLUE, marker="o", markersize=3.5, label="best k neurons"
    )
    axis.plot(
        k, rows["random"], color=ORANGE, marker="s", markersize=3, label="random neurons",
        linestyle=(0, (5, 1.5)),
    )  # fmt: skip
    axis.vlines(k, rows["random_low"], rows["random_high"], color=ORANGE, linewidth=0.8)
    axis.plot(
        k, rows["control"], color=GREEN, marker="^", markersize=3, label="control task",
        linestyle=_CONTROL,
    )  # fmt: skip
    least = min([0.5, *rows[["random_low", "control", "balanced_accuracy_low"]].min()])
    axis.set(ylabel="balanced accuracy", ylim=(least - 0.04, 1.04))
    axis.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.1, handlelength=2.4
    )


def _description(axis: Axes, frame: pd.DataFrame) -> None:
    k = frame["k"].to_numpy()
    axis.plot(
        k, frame["description"], color=BLACK, marker="o", markersize=3, label="labels + neurons"
    )
    axis.plot(
        k, frame["bits"], color=GREY, linestyle=(0, (3, 1)), marker="s", markersize=2.5,
        label="labels",
    )  # fmt: skip
    best = frame.loc[frame["chosen"]]
    axis.scatter(
        best["k"], best["description"], s=52, facecolor="none", edgecolor=BLACK, clip_on=False
    )
    axis.set_ylabel("bits")
    axis.set_ylim(bottom=0, top=1.12 * float(frame["description"].max()))
    axis.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.1, handlelength=2.4
    )
