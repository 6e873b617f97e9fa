"""From small runs to the whole: seconds as a sum over kinds of work, memory, disk."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

from lens_skills.estimation.measuring import SmallRun
from lens_skills.estimation.plans import READING, Work

_NOISE = 1.15  # what two runs of the same differ by on a machine that does nothing else
_PER_DOUBLING = 1.06  # how much wider the interval gets each time the whole is twice as large


@dataclass(frozen=True)
class TimeModel:
    """Seconds of a call by its work: what does not grow, and what each kind of work takes.

    Processor seconds, which what else runs on the machine changes little: those inside the loops
    of a kind grow with the work of that kind and with the prompts it is done on, those outside of
    all loops with all kinds (least squares without negative terms, longer runs weighing more).
    Then times the seconds of the clock that a processor second took.

    Attributes:
        constant: Seconds that do not grow.
        rates: Seconds per unit of each kind of work.
        most: The most work of each kind that was measured.
    """

    constant: float
    rates: dict[str, float]
    most: dict[str, float]

    @classmethod
    def of(cls, runs: Sequence[SmallRun]) -> "TimeModel":
        """From two runs of different sizes or more; of one, all seconds grow with all its work."""
        kinds = list(runs[-1].work)
        most = {kind: max(run.work[kind] for run in runs) or 1.0 for kind in kinds}
        constant, rates = 0.0, dict.fromkeys(kinds, 0.0)
        for unit in dict.fromkeys(unit for run in runs for unit in run.spent):
            grows = kinds if unit == "" else [k for k in kinds if k in (READING, unit)]
            seconds = np.array([run.spent.get(unit, 0.0) for run in runs])
            rows = np.array([[1.0, *(run.work[k] / most[k] for k in grows)] for run in runs])
            fixed, *grown = _line(rows, seconds)
            constant += fixed
            for kind, part in zip(grows, grown, strict=True):
                rates[kind] += part / most[kind]
        slower = sum(run.seconds for run in runs) / max(sum(run.cpu for run in runs), 1e-9)
        rates = {kind: rate * slower for kind, rate in rates.items()}
        return cls(constant * slower, rates, most)

    def parts(self, work: Work) -> dict[str, float]:
        """Seconds of each kind of work; under ``""`` those that do not grow."""
        return {"": self.constant} | {kind: rate * work[kind] for kind, rate in self.rates.items()}

    def seconds(self, work: Work) -> float:
        """Of so much work."""
        return sum(self.parts(work).values())

    def doublings(self, work: Work) -> float:
        """How often the work measured must be doubled, of the kind that takes longest."""
        longest = max(self.rates, key=lambda kind: self.rates[kind] * work[kind])
        return max(0.0, math.log2(max(work[longest], 1.0) / max(self.most[longest], 1.0)))


def _line(rows: Float[np.ndarray, "run term"], seconds: Float[np.ndarray, " run"]) -> list[float]:
    """The terms; where all runs are of one size, in proportion to the last kind of work."""
    if len(np.unique(rows, axis=0)) < 2:
        return [*(0.0 for _ in rows[0][1:]), float(seconds.mean() / rows[0][-1])]
    weight = 1 / np.sqrt(np.maximum(seconds, 1e-3 * seconds.max() + 1e-9))
    found, _ = nnls(rows * weight[:, None], seconds * weight)
    return [float(term) for term in found]


def interval(runs: Sequence[SmallRun], model: TimeModel, work: Work) -> tuple[float, float]:
    """Between what the time may lie: over fits that leave one run out, and what a machine varies.

    Where the process did not get the processor all the time, the time might be as much shorter, or
    as much longer.
    """
    whole = model.seconds(work)
    told = [whole]
    for left in range(len(runs) if len(runs) > 2 else 0):
        others = [*runs[:left], *runs[left + 1 :]]
        told.append(TimeModel.of(others).seconds(work))
    wider = _NOISE * _PER_DOUBLING ** model.doublings(work)
    busy = max(1.0, sum(run.seconds for run in runs) / max(sum(run.cpu for run in runs), 1e-9))
    low = max(min(told), 0.5 * whole) / wider / min(busy, 3.0)
    return low, min(max(told), 2 * whole) * wider * min(busy, 2.0)


def peak_memory(runs: Sequence[SmallRun], n: int, batch: int, grown: float) -> float:
    """Bytes at the peak of the whole: that of a full batch, and what grows with the examples.

    Args:
        runs: All of them, the first among them.
        n: Examples of the whole.
        batch: Examples in a forward pass.
        grown: Bytes by which the result grows from the largest run to the whole.
    """
    full = [run for run in runs if run.n >= min(batch, n)]
    if not full:
        rows = np.array([[1.0, run.n / min(batch, n)] for run in runs])
        return sum(_line(rows, np.array([float(run.memory) for run in runs]))) + grown
    top = max(run.memory for run in full)
    steps = [max(r.memory for r in full if r.n == size) for size in sorted({r.n for r in full})]
    sizes = sorted({run.n for run in full})
    # What a process has in use varies by itself: it grows where it grows from size to size.
    if len(steps) > 1 and steps == sorted(steps) and steps[-1] - steps[0] > max(2e6, steps[0] / 5):
        slope = (steps[-1] - steps[0]) / (sizes[-1] - sizes[0])
        most = 8.0 if len(steps) > 2 or sizes[-1] >= 4 * sizes[0] else 2.0
        return top + max(min(slope * (n - sizes[-1]), (most - 1) * top), grown)
    return top + grown


def disk_size(runs: Sequence[SmallRun], n: int, m: int) -> float | None:
    """Bytes of the whole's result: what does not grow, what grows with examples, sizes, both."""
    known = [run for run in runs if run.disk is not None]
    if not known:
        return None
    rows = np.array([[1.0, run.n / n, run.m / m, run.n * run.m / (n * m)] for run in known])
    rows = rows[:, : min(4, len(np.unique(rows, axis=0)))]
    sizes = np.array([float(run.disk or 0) for run in known])
    found, _ = nnls(rows, sizes)
    return float(found.sum())
