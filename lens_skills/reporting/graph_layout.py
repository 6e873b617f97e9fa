"""`lay_out`: where the boxes, arrows and labels of a small layered graph go, without collisions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lens_skills.reporting.graph_labels import Point, box_at, place_labels

_GAP = 0.06  # inches between boxes
_TRIES = 4  # how often the rows are moved apart before a collision is accepted


@dataclass(frozen=True)
class Spot:
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
class Layout:
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


def lay_out(
    spots: Sequence[Spot], arrows: Sequence[Arrow], *, width: float, seed: int = 0
) -> Layout:
    """Rows upwards, bands left to right; rows move apart until no label lies on anything.

    A local search puts the spots of a row where few lines cross and none runs through a box, then
    labels slide along their lines to a free place. The same graph gives the same layout.
    """
    spots = _wrapped(spots, width)
    edges = _bands(spots, width)
    n_rows = 1 + max(spot.row for spot in spots)
    tall = max([arrow.height for arrow in arrows], default=0.0)
    gap = max(spot.height for spot in spots) + tall + 0.26
    best: tuple[float, Layout] | None = None
    for attempt in range(_TRIES):
        y = [0.5 * spots[0].height + _GAP + gap * spot.row for spot in spots]
        x = _search(spots, arrows, y, edges, np.random.default_rng(seed + attempt))
        centres = tuple(zip(x.tolist(), y, strict=True))
        lines = _lines(spots, arrows, centres)
        boxes = [box_at(point, s.width, s.height) for point, s in zip(centres, spots, strict=True)]
        sizes = [(arrow.width, arrow.height) for arrow in arrows]
        labels, covered = place_labels(sizes, lines, boxes, width)
        height = gap * (n_rows - 1) + spots[0].height + 2 * _GAP
        found = Layout(height, edges, centres, lines, labels)
        if best is None or covered < best[0] - 1e-9:
            best = covered, found
        if covered == 0:
            break
        gap *= 1.18
    assert best is not None
    return best[1]


def _wrapped(spots: Sequence[Spot], width: float) -> list[Spot]:
    """Rows that are wider than the whole, in two or more."""
    placed: dict[int, Spot] = {}
    shift = 0
    for row in range(1 + max(spot.row for spot in spots)):
        here = [k for k, spot in enumerate(spots) if spot.row == row]
        filled, extra = 0.0, 0
        for k in here:
            if filled and filled + spots[k].width + _GAP > width:
                filled, extra = 0.0, extra + 1
            filled += spots[k].width + _GAP
            placed[k] = replace(spots[k], row=row + shift + extra)
        shift += extra
    return [placed[k] for k in range(len(spots))]


def _bands(spots: Sequence[Spot], width: float) -> tuple[float, ...]:
    """Bands as wide as their fullest row needs, and wider where they hold more."""
    n_bands = 1 + max(spot.band for spot in spots)
    weights = []
    for band in range(n_bands):
        mine = [spot for spot in spots if spot.band == band]
        rows = {spot.row for spot in mine}
        fullest = max(
            [sum(s.width + _GAP for s in mine if s.row == row) for row in rows], default=0.3
        )
        weights.append(fullest + 0.25 * len(mine))
    ends = np.cumsum([0.0, *weights]) * width / sum(weights)
    return tuple(ends.tolist())


def _search(
    spots: Sequence[Spot],
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


def _apart(x: np.ndarray, spots: Sequence[Spot], edges: Sequence[float]) -> np.ndarray:
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
    total += 0.1 * float(np.abs(x[b] - x[a]).sum())
    # Lines that meet in one box from nearly one direction cannot be told apart.
    lean = (x[b] - x[a]) / np.abs(reach)
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
    spots: Sequence[Spot], arrows: Sequence[Arrow], centres: Sequence[Point]
) -> tuple[tuple[Point, Point], ...]:
    """From border to border; several between the same boxes lie side by side."""
    between: dict[tuple[int, int], list[int]] = {}
    for place, arrow in enumerate(arrows):
        between.setdefault((arrow.start, arrow.end), []).append(place)
    lines: list[tuple[Point, Point]] = []
    for place, arrow in enumerate(arrows):
        alike = between[arrow.start, arrow.end]
        shift = (alike.index(place) - (len(alike) - 1) / 2) * 0.16
        (xa, ya), (xb, yb) = centres[arrow.start], centres[arrow.end]
        upwards = 1 if yb >= ya else -1
        a, b = spots[arrow.start], spots[arrow.end]
        if spots[arrow.start].row == spots[arrow.end].row:  # beside each other
            right = 1 if xb > xa else -1
            lines.append(((xa + right * a.width / 2, ya), (xb - right * b.width / 2, yb)))
            continue
        lean = (xb - xa) / (yb - ya)
        ends = []
        for (x, y), spot, turn in (((xa, ya), a, 1), ((xb, yb), b, -1)):
            rise = turn * upwards * spot.height / 2
            room = max(spot.width / 2 - 0.05, 0.0)
            ends.append((x + float(np.clip(lean * rise + shift, -room, room)), y + rise))
        lines.append((ends[0], ends[1]))
    return tuple(lines)
