"""`Faithfulness`: how much of what the whole model does a circuit does alone, and against what."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lens_skills.errors import LensSkillsError


@dataclass(frozen=True)
class Share:
    """A share of the gap between the empty and the whole graph, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class Removal:
    """What becomes of the circuit's share when one of its edges is taken out.

    Attributes:
        edge: In words, ``"L9H3@-1 → L17N635@-1 gate"``.
        change: Of the share; below 0: the circuit is worse without the edge.
        q: Benjamini-Hochberg over the circuit's edges.
        matters: q at most 0.05 and an interval without 0.
    """

    edge: str
    change: Share
    q: float
    matters: bool


@dataclass(frozen=True)
class Curve:
    """One part of a circuit alone: upstream (or the behaviour), or downstream.

    Attributes:
        part, target, unit: As in the circuit's `Account`.
        whole: Mean target with every edge.
        empty: Mean target with none.
        sizes: Numbers of edges, the strongest first; the last is all of them.
        shares: Faithfulness at each size.
        random: The same of each random circuit: [draw][size].
        rest: Share of the gap that is left with all edges but the circuit's (0: complete).
        removals: One per edge; empty where they were not asked for.
        equivalent: Whether the 90 % interval at the last size lies in [1 - ε, 1 + ε].
        n_edges: Of the whole graph, at the grain of tokens, heads' channels and MLPs' gates.
    """

    part: str
    target: str
    unit: str
    whole: float
    empty: float
    sizes: tuple[int, ...]
    shares: tuple[Share, ...]
    random: tuple[tuple[float, ...], ...]
    rest: Share
    removals: tuple[Removal, ...]
    equivalent: bool
    n_edges: int

    @property
    def last(self) -> Share:
        """Faithfulness of the whole circuit."""
        return self.shares[-1]

    @property
    def p(self) -> float | None:
        """How many random circuits come as near to the whole graph: (1 + #) / (1 + n)."""
        if not self.random:
            return None
        near = sum(abs(1 - row[-1]) <= abs(1 - self.last.value) for row in self.random)
        return (1 + near) / (1 + len(self.random))

    @property
    def matter(self) -> float | None:
        """The share of edges whose removal changes the circuit."""
        if not self.removals:
            return None
        return sum(one.matters for one in self.removals) / len(self.removals)

    @property
    def area(self) -> float:
        """Mean faithfulness over sizes from 1 to the circuit's, on a log axis (trapezoids).

        One size only: its faithfulness.
        """
        return area(np.log(self.sizes), [share.value for share in self.shares])

    @property
    def distance(self) -> float:
        """Mean |1 - faithfulness| likewise; 0 is perfect."""
        return area(np.log(self.sizes), [abs(1 - share.value) for share in self.shares])


@dataclass(frozen=True)
class Faithfulness:
    """A circuit run alone, on examples that need not be those it was found on.

    f = (m(circuit) - m(empty)) / (m(whole) - m(empty)): 0 is what the graph does without an edge,
    1 with all; below 0 and above 1 are possible.

    Attributes:
        curves: Upstream (or the behaviour) and downstream, where the circuit has them.
        n_examples, n_groups: On which it ran.
        n_unrun: Edges that cannot run: a norm's scale is computed anew in every run.
        epsilon: Of the equivalence test.
        notes: What to know before quoting.
        provenance: Model, seed, whether the examples are new to the circuit.
    """

    curves: tuple[Curve, ...]
    n_examples: int
    n_groups: int
    n_unrun: int
    epsilon: float
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Curve]:
        return iter(self.curves)

    def __getitem__(self, part: str) -> Curve:
        """The curve of a part."""
        for curve in self.curves:
            if curve.part == part:
                return curve
        raise LensSkillsError(
            f"no {part!r} part here. It has: {', '.join(curve.part for curve in self.curves)}."
        )

    def frame(self) -> pd.DataFrame:
        """One row per part and size: part target n_edges faithfulness low high random_low …

        ``random_low`` and ``random_high``: the smallest and largest of the random circuits.
        """
        rows = []
        for curve in self.curves:
            for place, (size, share) in enumerate(zip(curve.sizes, curve.shares, strict=True)):
                drawn = [row[place] for row in curve.random]
                rows.append(
                    {
                        "part": curve.part,
                        "target": curve.target,
                        "n_edges": size,
                        "faithfulness": share.value,
                        "low": share.low,
                        "high": share.high,
                        "random_low": min(drawn, default=float("nan")),
                        "random_mean": float(np.mean(drawn)) if drawn else float("nan"),
                        "random_high": max(drawn, default=float("nan")),
                    }
                )
        return pd.DataFrame(rows)

    def removals(self) -> pd.DataFrame:
        """One row per edge of the circuit: part edge change low high q matters."""
        rows = [
            {
                "part": curve.part,
                "edge": one.edge,
                "change": one.change.value,
                "low": one.change.low,
                "high": one.change.high,
                "q": one.q,
                "matters": one.matters,
            }
            for curve in self.curves
            for one in curve.removals
        ]
        columns = ["part", "edge", "change", "low", "high", "q", "matters"]
        return pd.DataFrame(rows, columns=columns)

    def __repr__(self) -> str:
        """A card."""
        lines = [f"faithfulness on {self.n_examples} pairs in {self.n_groups} groups"]
        for curve in self.curves:
            size, of = curve.sizes[-1], curve.n_edges
            same = "within" if curve.equivalent else "not within"
            lines += [
                f"{curve.part} · {curve.target}: {curve.empty:+.3f} without an edge, "
                f"{curve.whole:+.3f} with all {of:,} ({curve.unit})",
                f"  {'faithfulness':<13} {curve.last} with {_edges(size)}; {same} "
                f"±{self.epsilon:g} of the whole",
                f"  {'over sizes':<13} mean {curve.area:.2f}, mean distance from 1 "
                f"{curve.distance:.2f} (1 to {_edges(size)}, log axis)",
                f"  {'completeness':<13} {curve.rest} is left with all other edges",
            ]
            if curve.p is not None:
                best = max(row[-1] for row in curve.random)
                lines.append(
                    f"  {'equivalence':<13} p = {curve.p:.3f} against {len(curve.random)} random "
                    f"circuits of {_edges(size)} (largest {best:+.2f})"
                )
            if curve.matter is not None:
                lines.append(
                    f"  {'minimality':<13} {curve.matter:.0%} of the edges change it when removed"
                )
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _edges(n: int) -> str:
    return "1 edge" if n == 1 else f"{n:,} edges"


def area(x: Sequence[float] | np.ndarray, y: Sequence[float]) -> float:
    """Mean of y over x by trapezoids; with a single x its y.

    >>> area([0, 1, 3], [0, 1, 1])
    0.8333333333333334
    """
    if len(x) == 1:
        return float(y[0])
    heights = (np.asarray(y)[1:] + np.asarray(y)[:-1]) / 2
    return float((np.diff(x) * heights).sum() / (x[-1] - x[0]))
