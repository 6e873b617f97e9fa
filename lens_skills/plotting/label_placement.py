"""Where labels go so that none covers another, a point or a box.

`name_points`: names beside points. `lay_out`: the boxes, arrows and labels of a small layered
graph; `place_labels`: each label on its own arrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation

from lens_skills.plotting.style import BLACK, SMALL, inches, spread, text_width

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, low, right, high

# Of names beside points, in inches: a line of small text, distances from the point, tried in turn,
# and the distance beyond which a line leads to the point.
_HIGH = 0.125
_AWAY = (0.07, 0.13, 0.2, 0.3, 0.42, 0.56, 0.72)
_LEADER = 0.11
_ANGLES = [turn * math.pi / 8 for turn in (0, 8, 1, 15, 7, 9, 2, 14, 6, 10, 3, 13, 5, 11, 4, 12)]
# Of graphs: inches between boxes, between arrows side by side and between their ends
# on one box, how often the rows are moved apart before a collision is
# accepted (once for that many arrows), and where along its line a label is tried.
_GAP = 0.06
_ASIDE = 0.15
_ENDS = 0.08
_TRIES, _MANY = 4, 50
_ALONG = (0.5, 0.4, 0.6, 0.3, 0.7, 0.22, 0.78, 0.15, 0.85)
_STEPS = np.linspace(0, 1, 40)


def name_points(
    axis: Axes,
    names: Sequence[str],
    points: Float[np.ndarray, "name 2"],
    *,
    marks: Float[np.ndarray, "mark 2"],
    bars: Float[np.ndarray, "bar 3"],
) -> list[Annotation]:
    """The names put beside their points, the first given the best place; one without room is left.

    Marks must stay uncovered; bars (vertical lines, as x, low, high) had better. All are in data
    units, and the layout of the axis must be settled.
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
        best = _best(x, y, text_width(name, SMALL), wide, high, dots, lines, taken, leaders)
        if best is None:
            continue
        box, away = best
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
            box = box_at(centre, width, _HIGH)
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
    return all(
        box[side] < other[side + 2] + gap and other[side] < box[side + 2] + gap for side in (0, 1)
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


@dataclass(frozen=True)
class NodePlace:
    """A box to be placed: in which row and band, and how large it is (inches)."""

    row: int
    band: int
    width: float
    height: float


@dataclass(frozen=True)
class Arrow:
    """A line from one spot to another, by number, and the size of its label (0: none)."""

    start: int
    end: int
    width: float = 0.0
    height: float = 0.0


@dataclass(frozen=True)
class GraphLayout:
    """Places in inches: centres of the spots, ends of the arrows, centres of their labels.

    Attributes:
        height: Of the whole.
        edges: Left edges of the bands, and the right edge of the last.
    """

    height: float
    edges: tuple[float, ...]
    spots: tuple[Point, ...]
    lines: tuple[tuple[Point, Point], ...]
    labels: tuple[Point | None, ...]


@lru_cache(maxsize=32)
def lay_out(
    spots: tuple[NodePlace, ...], arrows: tuple[Arrow, ...], *, width: float, seed: int = 0
) -> GraphLayout:
    """Rows upwards, bands left to right; rows move apart until no label lies on anything.

    A local search puts the spots of a row where few lines cross and none runs through a box, then
    labels slide along their lines to a free place. The same graph gives the same layout.
    """
    edges = _bands(spots, width)
    wrapped = _wrapped(spots, edges)
    n_rows = 1 + max(spot.row for spot in wrapped)
    tall = max([arrow.height for arrow in arrows], default=0.0)
    gap = max(spot.height for spot in wrapped) + tall + 0.3
    best: tuple[float, GraphLayout] | None = None
    for attempt in range(_TRIES if len(arrows) <= _MANY else 1):
        y = [0.5 * wrapped[0].height + _GAP + gap * spot.row for spot in wrapped]
        x = _search(wrapped, arrows, y, edges, np.random.default_rng(seed + attempt))
        centres = tuple(zip(x.tolist(), y, strict=True))
        lines = _lines(wrapped, arrows, centres)
        boxes = [
            box_at(point, s.width, s.height) for point, s in zip(centres, wrapped, strict=True)
        ]
        sizes = [(arrow.width, arrow.height) for arrow in arrows]
        labels, covered = place_labels(sizes, lines, boxes, width)
        height = gap * (n_rows - 1) + wrapped[0].height + 2 * _GAP
        if best is None or covered < best[0] - 1e-9:
            best = covered, GraphLayout(height, edges, centres, lines, labels)
        if covered == 0:
            break
        gap *= 1.18
    assert best is not None
    return best[1]


def _wrapped(spots: Sequence[NodePlace], edges: Sequence[float]) -> list[NodePlace]:
    """Rows that are wider than their band, in two or more."""
    placed: dict[int, NodePlace] = {}
    shift = 0
    for row in range(1 + max(spot.row for spot in spots)):
        most = 0
        for band in {spot.band for spot in spots}:
            filled, extra = 0.0, 0
            for k, spot in enumerate(spots):
                if (spot.row, spot.band) != (row, band):
                    continue
                if filled and filled + spot.width + _GAP > edges[band + 1] - edges[band]:
                    filled, extra = 0.0, extra + 1
                filled += spot.width + _GAP
                placed[k] = replace(spot, row=row + shift + extra)
            most = max(most, extra)
        shift += most
    return [placed[k] for k in range(len(spots))]


def _bands(spots: Sequence[NodePlace], width: float) -> tuple[float, ...]:
    """Bands as wide as their widest box, and what is left to those with the fullest rows."""
    least, weights = [], []
    for band in range(1 + max(spot.band for spot in spots)):
        mine = [spot for spot in spots if spot.band == band]
        rows = {spot.row for spot in mine}
        fullest = max(
            [sum(s.width + _GAP for s in mine if s.row == row) for row in rows], default=0.3
        )
        least.append(max([spot.width for spot in mine], default=0.0) + _GAP)
        weights.append(fullest + 0.25 * len(mine))
    left = max(0.0, width - sum(least))
    shares = np.array(least) + left * np.array(weights) / sum(weights)
    ends = np.cumsum([0.0, *shares]) * width / shares.sum()
    return tuple(ends.tolist())


def _search(
    spots: Sequence[NodePlace],
    arrows: Sequence[Arrow],
    y: Sequence[float],
    edges: Sequence[float],
    random: np.random.Generator,
) -> np.ndarray:
    low = np.array([edges[s.band] + s.width / 2 + _GAP / 2 for s in spots])
    high = np.array([edges[s.band + 1] - s.width / 2 - _GAP / 2 for s in spots])
    high = np.maximum(low, high)
    half = np.array([s.width / 2 for s in spots])
    order = np.argsort([s.row * 1000 + s.band for s in spots], kind="stable")
    x = np.empty(len(spots))
    for row in {s.row for s in spots}:
        for band in {s.band for s in spots}:
            mine = [i for i in order if (spots[i].row, spots[i].band) == (row, band)]
            for place, i in enumerate(mine):
                x[i] = low[i] + (high[i] - low[i]) * (place + 0.5) / len(mine)
    ends = np.array([(a.start, a.end) for a in arrows], dtype=int).reshape(-1, 2)
    heights = np.asarray(y)
    rows = np.array([s.row for s in spots])
    cost = _cost(x, heights, half, rows, ends)
    for step in range(1200):
        which = int(random.integers(len(spots)))
        wide = (high[which] - low[which]) * (0.5 if step < 600 else 0.15)
        moved = x.copy()
        moved[which] = np.clip(x[which] + random.normal() * wide, low[which], high[which])
        now = _cost(moved, heights, half, rows, ends)
        if now < cost:
            x, cost = moved, now
    return _apart(x, spots, edges)


def _apart(x: np.ndarray, spots: Sequence[NodePlace], edges: Sequence[float]) -> np.ndarray:
    """Boxes of a row that still touch are pushed apart, in their order."""
    x = x.copy()
    for row, band in {(spot.row, spot.band) for spot in spots}:
        mine = [k for k, spot in enumerate(spots) if (spot.row, spot.band) == (row, band)]
        mine.sort(key=lambda k: x[k])
        left = edges[band]
        for k in mine:
            x[k] = max(x[k], left + _GAP / 2 + spots[k].width / 2)
            left = x[k] + spots[k].width / 2 + _GAP / 2
        right = edges[band + 1]
        for k in reversed(mine):
            x[k] = min(x[k], right - _GAP / 2 - spots[k].width / 2)
            right = x[k] - spots[k].width / 2 - _GAP / 2
    return x


def _cost(
    x: np.ndarray, y: np.ndarray, half: np.ndarray, rows: np.ndarray, ends: np.ndarray
) -> float:
    """What is ugly: boxes on boxes, lines through boxes, crossings, leaning lines."""
    apart = np.abs(x[:, None] - x) - half[:, None] - half - _GAP
    same = np.triu(rows[:, None] == rows, 1)
    total = 200 * float(np.clip(-apart, 0, None)[same].sum())
    if len(ends) == 0:
        return total
    a, b = ends.T
    reach = y[b] - y[a]
    reach = np.where(np.abs(reach) < 1e-9, 1e-9, reach)
    along = (y[None] - y[a][:, None]) / reach[:, None]  # line, spot
    at = x[a][:, None] + along * (x[b] - x[a])[:, None]
    inside = (along > 0.01) & (along < 0.99)
    inside[np.arange(len(a)), a] = inside[np.arange(len(a)), b] = False
    through = np.clip(half + 0.1 - np.abs(at - x), 0, None)
    total += 150 * float(through[inside].sum())
    total += _crossings(x, y, a, b)
    # Flat lines leave no room between those side by side; lines that meet in one box from nearly
    # one direction cannot be told apart.
    lean = (x[b] - x[a]) / np.abs(reach)
    total += 0.1 * float(np.abs(x[b] - x[a]).sum()) + 0.3 * float((lean[y[a] != y[b]] ** 2).sum())
    for ends_here in (a, b):
        together = np.triu(ends_here[:, None] == ends_here, 1)
        near = np.clip(0.6 - np.abs(lean[:, None] - lean), 0, None)
        total += 4 * float(near[together].sum())
    return total


def _crossings(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    def side(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
        return np.sign((x[q] - x[p]) * (y[r] - y[p]) - (y[q] - y[p]) * (x[r] - x[p]))

    i, j = np.triu_indices(len(a), 1)
    first = side(a[i], b[i], a[j]) * side(a[i], b[i], b[j])
    second = side(a[j], b[j], a[i]) * side(a[j], b[j], b[i])
    return float(((first < 0) & (second < 0)).sum())


def _lines(
    spots: Sequence[NodePlace], arrows: Sequence[Arrow], centres: Sequence[Point]
) -> tuple[tuple[Point, Point], ...]:
    """From border to border; several between the same boxes lie side by side."""
    between: dict[tuple[int, int], list[int]] = {}
    for place, arrow in enumerate(arrows):
        between.setdefault((arrow.start, arrow.end), []).append(place)
    ends: dict[tuple[int, int], Point] = {}  # of an arrow and a spot
    at_side: dict[
        tuple[int, bool], list[tuple[int, float, float]]
    ] = {}  # of a spot and its upper side
    for place, arrow in enumerate(arrows):
        alike = between[arrow.start, arrow.end]
        aside = (alike.index(place) - (len(alike) - 1) / 2) * _ASIDE
        (xa, ya), (xb, yb) = centres[arrow.start], centres[arrow.end]
        for this, other in ((arrow.start, arrow.end), (arrow.end, arrow.start)):
            x, y = centres[this]
            if spots[this].row == spots[other].row:  # beside each other
                right = 1 if centres[other][0] > x else -1
                ends[place, this] = (x + right * spots[this].width / 2, y + aside / 2)
                continue
            lean = (xb - xa) / (yb - ya)
            rise = spots[this].height / 2 * (1 if centres[other][1] > y else -1)
            # As far apart when they lean.
            wanted = lean * rise + aside * math.hypot(1, lean)
            ends[place, this] = (x, y + rise)
            at_side.setdefault((this, rise > 0), []).append((place, lean * rise, wanted))
    for (this, _), here in at_side.items():
        room = max(spots[this].width / 2 - 0.05, 0.0)
        gap = min(_ENDS, 2 * room / max(1, len(here) - 1))
        # In the order they come from, so that they do not cross before the box.
        here.sort(key=lambda one: (round(one[1], 6), one[2]))
        wanted = np.maximum.accumulate([one[2] for one in here]).tolist()
        for (place, *_), shift in zip(here, spread(wanted, gap, -room, room), strict=True):
            x, y = ends[place, this]
            ends[place, this] = (x + shift, y)
    return tuple(
        (ends[place, arrow.start], ends[place, arrow.end]) for place, arrow in enumerate(arrows)
    )


def place_labels(
    sizes: Sequence[Point],
    lines: Sequence[tuple[Point, Point]],
    boxes: Sequence[Box],
    width: float,
) -> tuple[tuple[Point | None, ...], float]:
    """A place on each line for its label, and the area of labels that lie on something.

    A label of width 0 is none. What they must not cover are the boxes.
    """
    placed: list[Point | None] = [None] * len(sizes)

    def taken(but: int) -> list[Box]:
        others = [
            box_at(point, *sizes[k])
            for k, point in enumerate(placed)
            if point is not None and k != but
        ]
        return [*boxes, *others]

    def unclear(box: Box, own: int) -> float:
        """Lines it lies on, and one that is nearer than its own."""
        gaps = [_gap(line, box) for line in lines]
        others = [gap for k, gap in enumerate(gaps) if k != own]
        return 2.0 * sum(gap == 0 for gap in others) + 3.0 * any(gap < gaps[own] for gap in others)

    for turn in range(2):
        for k, (wide, high) in enumerate(sizes):
            if not wide:
                continue
            (xa, ya), (xb, yb) = lines[k]
            choices = []
            for place, along in enumerate(_ALONG):
                for aside in (0.0, -0.35, 0.35, -0.56, 0.56) if turn else (0.0,):
                    x = xa + along * (xb - xa) + aside * wide
                    x = float(np.clip(x, wide / 2, width - wide / 2))
                    point = (x, ya + along * (yb - ya))
                    box = box_at(point, wide, high)
                    cost = 1000 * sum(_shared(box, other) for other in taken(k))
                    cost += unclear(box, k) + 0.05 * place + abs(aside)
                    choices.append((cost, point))
            placed[k] = min(choices)[1]
    covered = 0.0
    for k, point in enumerate(placed):
        if point is not None:
            box = box_at(point, *sizes[k])
            covered += sum(_shared(box, other) for other in taken(k))
    return tuple(placed), covered


def box_at(centre: Point, width: float, height: float) -> Box:
    """The box of this size around a point."""
    x, y = centre
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _shared(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)


def _gap(line: tuple[Point, Point], box: Box) -> float:
    """How far a box is from a line; 0 where it lies on it."""
    (xa, ya), (xb, yb) = line
    x, y = xa + _STEPS * (xb - xa), ya + _STEPS * (yb - ya)
    beside = np.maximum(np.maximum(box[0] - x, x - box[2]), 0)
    above = np.maximum(np.maximum(box[1] - y, y - box[3]), 0)
    return float(np.hypot(beside, above).min())
