"""Names beside points, each where it covers neither another name nor a point."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation

from lens_skills.reporting.style import BLACK, SMALL, inches, text_width

_HIGH = 0.125  # inches of a line of small text
_AWAY = (0.07, 0.13, 0.2, 0.3, 0.42, 0.56, 0.72)  # inches from the point, tried in turn
_LEADER = 0.11  # farther than this, a line leads to the point
_ANGLES = [turn * math.pi / 8 for turn in (0, 8, 1, 15, 7, 9, 2, 14, 6, 10, 3, 13, 5, 11, 4, 12)]

Box = tuple[float, float, float, float]


def name_points(
    axis: Axes,
    names: Sequence[str],
    points: Float[np.ndarray, "name 2"],
    *,
    marks: Float[np.ndarray, "mark 2"],
    bars: Float[np.ndarray, "bar 3"],
) -> list[Annotation]:
    """The names put beside their points, the first given the best place; one without room is left.

    Args:
        axis: Whose layout is settled.
        names: What to write.
        points: Where, in data units.
        marks: What must stay uncovered: points in data units.
        bars: What had better stay uncovered: vertical lines, as x, low, high.
    """
    wide, high = inches(axis)

    def place(rows: np.ndarray) -> np.ndarray:
        return axis.transAxes.inverted().transform(axis.transData.transform(rows)) * [wide, high]

    marks = place(marks.reshape(-1, 2))
    foot, head = place(bars[:, [0, 1]].reshape(-1, 2)), place(bars[:, [0, 2]].reshape(-1, 2))
    dots = np.hstack([marks - 0.05, marks + 0.05])
    lines = np.hstack([foot - np.array([0.01, 0]), head + np.array([0.01, 0])])
    taken: list[Box] = []
    leaders: list[Box] = []
    written = []
    for name, point, (x, y) in zip(
        names, points.tolist(), place(points.reshape(-1, 2)).tolist(), strict=True
    ):
        found = _best(x, y, text_width(name, SMALL), wide, high, dots, lines, taken, leaders)
        if found is None:
            continue
        box, away = found
        taken.append(box)
        if away > _LEADER:
            leaders.append((x, y, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
        text = axis.annotate(
            name,
            xy=(point[0], point[1]),
            xytext=((box[0] + box[2]) / 2 / wide, (box[1] + box[3]) / 2 / high),
            textcoords="axes fraction",
            size=SMALL,
            ha="center",
            va="center",
            zorder=6,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2.5}
            if away > _LEADER
            else None,
            path_effects=[withStroke(linewidth=1.6, foreground="white")],
            color=BLACK,
        )
        text.set_in_layout(False)
        written.append(text)
    return written


def _best(
    x: float,
    y: float,
    width: float,
    wide: float,
    high: float,
    dots: np.ndarray,
    lines: np.ndarray,
    taken: list[Box],
    leaders: list[Box],
) -> tuple[Box, float] | None:
    """The nearest place that covers no point and few lines; None where there is none."""
    best, least = None, math.inf
    for away in _AWAY:
        for angle in _ANGLES:
            across, up = math.cos(angle), math.sin(angle)
            centre = x + across * (away + width / 2), y + up * (away + _HIGH / 2)
            box = (
                centre[0] - width / 2,
                centre[1] - _HIGH / 2,
                centre[0] + width / 2,
                centre[1] + _HIGH / 2,
            )
            if min(box[0], box[1]) < 0.02 or box[2] > wide - 0.02 or box[3] > high - 0.02:
                continue
            line = _points((x, y, *centre))
            if any(_cut((x, y, *centre), other) for other in leaders):
                continue
            if any(_through(_points(other), box) for other in leaders):
                continue
            if _covered(box, dots) or any(
                _meet(box, other) or _through(line, other) for other in taken
            ):
                continue
            crossed = sum(_covered((*at, *at), dots) > 0 for at in line) if away > _LEADER else 0
            cost = away + 0.2 * _covered(box, lines) + 0.2 * crossed
            if cost < least:
                best, least = (box, away), cost
    return best


def _covered(box: Box, others: np.ndarray) -> int:
    left, low, right, top = others.T
    return int(((left < box[2]) & (right > box[0]) & (low < box[3]) & (top > box[1])).sum())


def _meet(box: Box, other: Box) -> bool:
    gap = 0.025
    return (
        box[0] < other[2] + gap
        and other[0] < box[2] + gap
        and box[1] < other[3] + gap
        and other[1] < box[3] + gap
    )


def _points(line: Box) -> list[tuple[float, float]]:
    """Some points along a line from its first end to its second."""
    x, y, right, top = line
    return [(x + (right - x) * part, y + (top - y) * part) for part in (0.2, 0.4, 0.6, 0.8)]


def _cut(one: Box, other: Box) -> bool:
    """Whether two lines cross: the ends of each lie on both sides of the other."""

    def side(line: Box, x: float, y: float) -> bool:
        return (line[2] - line[0]) * (y - line[1]) > (line[3] - line[1]) * (x - line[0])

    return side(one, *other[:2]) != side(one, *other[2:]) and side(other, *one[:2]) != side(
        other, *one[2:]
    )


def _through(line: list[tuple[float, float]], box: Box) -> bool:
    return any(box[0] <= x <= box[2] and box[1] <= y <= box[3] for x, y in line)
