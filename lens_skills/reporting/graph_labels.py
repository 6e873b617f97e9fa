"""`place_labels`: each label on its own arrow, on nothing else."""

from collections.abc import Sequence

import numpy as np

_STEPS = np.linspace(0, 1, 40)
_ALONG = (0.5, 0.4, 0.6, 0.3, 0.7, 0.22, 0.78, 0.15, 0.85)

Box = tuple[float, float, float, float]  # left, low, right, high
Point = tuple[float, float]


def place_labels(
    sizes: Sequence[Point],
    lines: Sequence[tuple[Point, Point]],
    boxes: Sequence[Box],
    width: float,
) -> tuple[tuple[Point | None, ...], float]:
    """A place on each line for its label, and the area of labels that lie on something.

    Args:
        sizes: Width and height of each label; 0 where a line has none.
        lines: Their lines.
        boxes: What they must not cover.
        width: Of the whole.
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
    along = _STEPS
    x, y = xa + along * (xb - xa), ya + along * (yb - ya)
    beside = np.maximum(np.maximum(box[0] - x, x - box[2]), 0)
    above = np.maximum(np.maximum(box[1] - y, y - box[3]), 0)
    return float(np.hypot(beside, above).min())
