"""How much a circuit does alone, over its number of edges, with random circuits beside it."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lens_skills.circuits.curve import Curve, Faithfulness
from lens_skills.reporting.caption import count, file_name
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import BLACK, BLUE, COLUMN, GREY, SMALL, settle, sheet, style

_PALE = "#BBBBBB"  # of one random circuit
_LIMIT = 2.5  # what overshoots further runs out of the panel, and the note says so


@style()
def faithfulness(
    result: Faithfulness, *, exploratory: bool = False, width: float = COLUMN
) -> Drawing:
    """Faithfulness against the number of edges, one panel per part of the circuit.

    Band: 95 % interval. Grey: random circuits of equal size. Lines at 0 (no edge) and 1 (the
    whole model).

    Args:
        result: From `lens_skills.faithfulness`.
        exploratory: Stamp it.
        width: Inches.

    Frame: one row per part and size, as in ``result.frame()``.
    """
    curves = result.curves
    known = [str(result.provenance[key]) for key in ("model", "task") if result.provenance.get(key)]
    beyond = any(
        not -_LIMIT + 1 <= end <= _LIMIT
        for curve in curves
        for share in curve.shares
        for end in (share.low, share.high)
    )
    figure = sheet(
        width,
        0.35 + 1.35 * len(curves),
        title=f"Circuit of {result.provenance.get('start', 'a target')} alone: faithfulness",
        lines=[
            *(_caption(curve) for curve in curves),
            " · ".join([*known, count(result.n_examples, result.n_groups)]),
        ],
        note="Band: 95 % interval. 0: no edge; 1: the whole model."
        + (f" {len(curves[0].random)} random circuits of equal size." if curves[0].random else "")
        + (" What lies beyond the panel is in the table." if beyond else ""),
        exploratory=exploratory,
    )
    axes = np.atleast_1d(figure.subplots(len(curves), 1))
    for axis, curve in zip(axes, curves, strict=True):
        _panel(axis, curve)
    axes[-1].set_xlabel("edges, strongest first")
    figure.align_ylabels()
    settle(figure)
    start = str(result.provenance.get("start", ""))
    return Drawing(figure, result.frame(), file_name("faithfulness", *([start] if start else [])))


def _caption(curve: Curve) -> str:
    size = curve.sizes[-1]
    edges = "1 edge" if size == 1 else f"{size} edges"
    against = "" if curve.p is None else f", p = {curve.p:.2g} against random"
    return f"{curve.part} ({curve.target}): {curve.last} with {edges}{against}"


def _panel(axis: Axes, curve: Curve) -> None:
    sizes = np.array(curve.sizes)
    value, low, high = (
        np.array([getattr(share, name) for share in curve.shares])
        for name in ("value", "low", "high")
    )
    for row in curve.random:
        axis.plot(sizes, row, color=_PALE, linewidth=0.5, marker=".", markersize=1.5, zorder=1)
    for level, line in ((0, (0, (1, 1.5))), (1, (0, (4, 2)))):
        axis.axhline(level, color=BLACK, linewidth=0.6, linestyle=line, zorder=0)
    if len(sizes) == 1:
        axis.errorbar(
            sizes, value, yerr=[value - low, high - value], color=BLUE, linewidth=0.9, capsize=2
        )
    axis.fill_between(sizes, low, high, color=BLUE, alpha=0.2, linewidth=0, zorder=2, gid="band")
    axis.plot(sizes, value, color=BLUE, marker="o", markersize=3, zorder=3, gid="circuit")
    axis.set_xscale("log")
    axis.set_xlim(0.88, max(sizes[-1] * 1.12, 2.2))
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if t <= max(sizes[-1], 2)]
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.0f}"))
    axis.xaxis.set_minor_locator(NullLocator())
    drawn = [*low, *high, *(number for row in curve.random for number in row), 0.0, 1.0]
    bottom, top = max(min(drawn), 1 - _LIMIT), min(max(drawn), _LIMIT)
    room = 0.06 * (top - bottom)
    axis.set_ylim(bottom - room, top + room)
    axis.set_ylabel("faithfulness")
    axis.annotate(
        curve.part, (1, 1), xycoords="axes fraction", xytext=(0, 1), textcoords="offset points",
        ha="right", va="bottom", size=SMALL, color=GREY,
    )  # fmt: skip
