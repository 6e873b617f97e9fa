"""What a set does at every strength, over the damage it does elsewhere."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lens_skills.causal.curve import DoseResponse
from lens_skills.reporting.caption import count, file_name, with_unit
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREY,
    VERMILION,
    settle,
    sheet,
    style,
)


@style()
def dose_response(
    curve: DoseResponse, *, exploratory: bool = False, width: float = COLUMN
) -> Drawing:
    """Effect against dose with 95 % intervals and the fitted slope; below, the damage elsewhere.

    Both panels share the dose and each has its own unit and its own line at 0.

    Args:
        curve: From `lens_skills.causal.dose.dose_response`.
        exploratory: Stamp it.
        width: Inches.

    Frame: one row per dose: dose effect low high damage damage_low damage_high (an end is ±inf
    where there is no interval), and the line's ``fit`` there.
    """
    frame = curve.frame()
    doses, effects = frame["dose"], frame["effect"]
    frame["fit"] = effects.mean() + curve.slope * (doses - doses.mean())
    units = len(curve.names)
    named = curve.names[0] if units == 1 else f"{units:,} units together"
    source = [str(curve.provenance[key]) for key in ("model", "task") if key in curve.provenance]
    unit = curve.unit if curve.unit not in ("", "column", "0/1") else "of the metric"
    slope = f"slope {curve.slope:+.3g}"
    if np.isfinite([curve.slope_low, curve.slope_high]).all():
        slope += f" [{curve.slope_low:+.3g}, {curve.slope_high:+.3g}]"
    texts = "1 neutral text" if curve.n_texts == 1 else f"{curve.n_texts:,} neutral texts"
    figure = sheet(
        width,
        2.85,
        title=f"{named}: dose and response",
        lines=[
            f"{slope} {unit} per std · monotonicity {curve.monotonicity:+.2f}",
            f"steered at {curve.site} at {curve.position}, std over {curve.over}",
            " · ".join([*source, count(len(curve.example_ids), len(set(curve.groups)))]),
        ],
        note=f"Bars: 95 % intervals. Damage: KL(clean ‖ steered) on {texts}, "
        "steered at every token."
        + ("" if _sure(frame, "").all() else " No interval: one group of examples."),
        exploratory=exploratory,
    )
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.75, 1])
    _panel(above, frame, "effect", "", BLUE, "o")
    above.plot(doses, frame["fit"], color=GREY, linewidth=0.9, linestyle=(0, (4, 2)), label="slope")
    above.set_ylabel(f"change of\n{with_unit(curve.metric, curve.unit)}", color=BLUE)
    above.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.1, handlelength=2
    )
    _panel(below, frame, "damage", "damage_", VERMILION, "s")
    below.set_ylabel("damage\n(nats per token)", color=VERMILION)
    below.set_ylim(bottom=0, top=max(1e-6, 1.12 * _highest(frame)))
    below.yaxis.set_major_locator(MaxNLocator(nbins=3))
    below.set_xlabel("dose (each unit's own std)")
    if np.diff(np.sort(doses)).min() > 0.07 * np.ptp(doses):
        below.set_xticks(doses, [f"{dose:g}".replace("-", "\N{MINUS SIGN}") for dose in doses])
    figure.align_ylabels()
    settle(figure)
    return Drawing(figure, frame, file_name("dose_response", curve.metric))


def _sure(frame: pd.DataFrame, which: str) -> np.ndarray:
    """Where there is an interval: one group, or one text, has none."""
    ends = frame[[f"{which}low", f"{which}high"]].to_numpy(float)
    return np.asarray(np.isfinite(ends).all(axis=1))


def _highest(frame: pd.DataFrame) -> float:
    ends = frame.loc[_sure(frame, "damage_"), "damage_high"]
    return float(max([*frame["damage"], *ends]))


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
        frame["dose"],
        frame[column],
        color=colour,
        marker=marker,
        markersize=3.6,
        clip_on=False,
        zorder=3,
        label=f"mean {column}",
    )
    axis.tick_params(axis="y", colors=colour)
