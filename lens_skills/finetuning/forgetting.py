"""`Continual`: accuracy after each task, and what it says of forgetting, transfer and masks."""

import math
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.results import Result
from lens_skills.stats.correlation import spearman
from lens_skills.stats.finite_sample import student_interval

MEASURES = {
    "final": "mean accuracy on all tasks after the last",
    "learned": "mean accuracy on each task right after it was learned",
    "forgetting": "mean drop from the best before the last task to after it, without the last task",
    "backward": "mean change from right after a task to after the last, all tasks but the last",
    "forward": "mean accuracy on a task right before it, less before any, all tasks but the first",
}
"""What `Continual.values` gives, in shares of the answers, 0 to 1 (differences -1 to 1)."""

KEPT = 0.95
"""Of full fine-tuning's final accuracy: what a mask is asked to reach."""

MOST_TASKS = 7
"""Of which all relabelings are tried for the p of overlap and transfer."""


@dataclass(frozen=True, eq=False)
class Continual(Result):
    """Accuracy on every task after each was learned, for several masks and seeds.

    Does not show: what holds in another order, for other tasks or models; intervals are over seeds
    (division, order of the examples, random neurons), which share one model and pool of examples.

    Attributes:
        tasks: Their names, in the order in which they were learned.
        masks: What was trained; see `continual`.
        seeds: Of each run.
        accuracy: Share of a task's test answers whose tokens are all first choices, 0 to 1,
            ``[mask seed stage task]``; stage 0 is before any task, stage i after the i-th.
        n_neurons: How many MLP neurons the built-in masks of neurons train.
        n_trained: How many numbers each mask trains of the last task.
        jaccard: Of the tasks' neurons in the model as given, ``[seed task other]``.
        transfer: Change of the accuracy on ``other`` by every parameter trained on ``task`` alone,
            ``[seed task other]``; no rows where it was not measured.
        n_test, n_learned: Examples of each task that accuracy is measured on, and learned from, in
            the first seed's division.
        provenance: Model, examples, settings and versions behind the numbers.
    """

    tasks: tuple[str, ...]
    masks: tuple[str, ...]
    seeds: tuple[int, ...]
    accuracy: Float[Tensor, "mask seed stage task"]
    n_neurons: int
    n_trained: tuple[int, ...]
    jaccard: Float[Tensor, "seed task other"]
    transfer: Float[Tensor, "some task other"]
    n_test: tuple[int, ...]
    n_learned: tuple[int, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def _place(self, mask: str) -> int:
        if mask not in self.masks:
            raise LensSkillsError(f"no mask {mask!r} here. There are: {', '.join(self.masks)}.")
        return self.masks.index(mask)

    def matrix(self, mask: str) -> pd.DataFrame:
        """Mean accuracy over the seeds: a row per stage ("before", then each task), a column per
        task.

        Raises:
            LensSkillsError: A mask that was not tried.
        """
        numbers = self.accuracy[self._place(mask)].mean(0).numpy()
        return pd.DataFrame(numbers, index=["before", *self.tasks], columns=list(self.tasks))

    def values(self, measure: str) -> Float[Tensor, "mask seed"]:
        """One of `MEASURES` for each mask and seed.

        Raises:
            LensSkillsError: No such measure.
        """
        acc, n = self.accuracy, len(self.tasks)
        last, own = acc[:, :, n], acc[:, :, 1:].diagonal(dim1=2, dim2=3)
        if measure == "final":
            return last.mean(-1)
        if measure == "learned":
            return own.mean(-1)
        if measure == "forgetting":
            best = acc[:, :, :n].amax(2)
            return (best - last)[:, :, : n - 1].mean(-1)
        if measure == "backward":
            return (last - own)[:, :, : n - 1].mean(-1)
        if measure == "forward":
            before = acc[:, :, :n].diagonal(dim1=2, dim2=3)
            return (before - acc[:, :, 0])[:, :, 1:].mean(-1)
        raise LensSkillsError(f"no measure {measure!r}. Choose {', '.join(MEASURES)}.")

    def summary(self) -> pd.DataFrame:
        """One row per mask and measure: mask measure mean low high (95 %, over seeds)."""
        rows = []
        for measure in MEASURES:
            mean, low, high = student_interval(self.values(measure))
            for place, mask in enumerate(self.masks):
                ends = {"low": float(low[place]), "high": float(high[place])}
                rows.append({"mask": mask, "measure": measure, "mean": float(mean[place]), **ends})
        return pd.DataFrame(rows)

    def differences(self, mask: str) -> pd.DataFrame:
        """That mask less every other, paired by seed: against measure mean low high (95 %).

        Raises:
            LensSkillsError: A mask that was not tried.
        """
        own = self._place(mask)
        rows = []
        for measure in MEASURES:
            numbers = self.values(measure)
            mean, low, high = student_interval(numbers[own] - numbers)
            rows += [
                {
                    "against": other,
                    "measure": measure,
                    "mean": float(mean[place]),
                    "low": float(low[place]),
                    "high": float(high[place]),
                }
                for place, other in enumerate(self.masks)
                if place != own
            ]
        return pd.DataFrame(rows, columns=["against", "measure", "mean", "low", "high"])

    def kept(self, mask: str, share: float = KEPT) -> tuple[float, float, float]:
        """Final accuracy less ``share`` of full fine-tuning's: mean, low, high (95 %, paired).

        Above 0 the mask reaches that share.

        Raises:
            LensSkillsError: A mask that was not tried, or no full fine-tuning to compare with.
        """
        final = self.values("final")
        gap = final[self._place(mask)] - share * final[self._place("full")]
        mean, low, high = student_interval(gap)
        return float(mean), float(low), float(high)

    def frame(self) -> pd.DataFrame:
        """One row per mask, seed, stage and task: mask seed stage learned task accuracy."""
        learned = ["", *self.tasks]
        return pd.DataFrame(
            [
                {
                    "mask": mask,
                    "seed": seed,
                    "stage": stage,
                    "learned": learned[stage],
                    "task": task,
                    "accuracy": float(self.accuracy[m, s, stage, t]),
                }
                for m, mask in enumerate(self.masks)
                for s, seed in enumerate(self.seeds)
                for stage in range(len(learned))
                for t, task in enumerate(self.tasks)
            ]
        )

    def pairs(self) -> pd.DataFrame:
        """One row per ordered pair of tasks, means over seeds: task other jaccard transfer."""
        transfer = self.transfer.mean(0) if len(self.transfer) else None
        return pd.DataFrame(
            [
                {
                    "task": one,
                    "other": other,
                    "jaccard": float(self.jaccard[:, i, j].mean()),
                    "transfer": math.nan if transfer is None else float(transfer[i, j]),
                }
                for i, one in enumerate(self.tasks)
                for j, other in enumerate(self.tasks)
                if i != j
            ]
        )

    def overlap_and_transfer(self) -> tuple[float, float]:
        """Spearman's rank correlation of overlap and transfer over ordered pairs, and its p.

        Of the means over seeds. p is the share of all relabelings of the tasks in one of the
        tables with as large a correlation: one-sided, exact, never below 1 / (number of tasks)!.
        NaN where transfer was not measured, there are fewer than three tasks, or either does not
        vary.

        Source: Mantel 1967, for two tables over the same items.
        """
        n = len(self.tasks)
        if not len(self.transfer) or not 3 <= n <= MOST_TASKS:
            return math.nan, math.nan
        overlap, transfer = self.jaccard.mean(0), self.transfer.mean(0)
        r = off_diagonal_r(overlap, transfer)
        if math.isnan(r):
            return r, math.nan
        orders = [list(order) for order in permutations(range(n))]
        found = [off_diagonal_r(overlap, transfer[order][:, order]) for order in orders]
        return r, sum(one >= r - 1e-9 for one in found) / len(orders)

    def __repr__(self) -> str:
        about, n = self.provenance, len(self.tasks)
        seeds = f"{len(self.seeds)} {'seed' if len(self.seeds) == 1 else 'seeds'}"
        lines = [
            f"{n} tasks in turn: {', '.join(self.tasks)} · {about['model']} · {seeds}",
            f"  masks of {self.n_neurons:,} neurons; accuracy on {min(self.n_test):,} to "
            f"{max(self.n_test):,} test examples a task",
            f"  {'':<10}{'final':>20}{'right after':>20}{'forgotten':>20}",
        ]
        found = self.summary().set_index(["measure", "mask"])
        for mask in self.masks:
            cells = (found.loc[name, mask] for name in ("final", "learned", "forgetting"))
            shown = "".join(f"{_interval(cell):>20}" for cell in cells)
            lines.append(f"  {mask:<10}{shown}")
        if "ncft" in self.masks and len(self.masks) > 1:
            apart = self.differences("ncft").set_index(["measure", "against"])
            for other in (m for m in self.masks if m != "ncft"):
                cell = apart.loc["forgetting", other]
                lines.append(f"  ncft less {other}: forgotten {_interval(cell, signed=True)}")
        if {"ncft", "full"} <= set(self.masks):
            mean, low, high = self.kept("ncft")
            word = "reaches" if low >= 0 else "falls short of" if high < 0 else "may not reach"
            cell = {"mean": mean, "low": low, "high": high}
            if not math.isnan(low):
                lines.append(
                    f"  ncft {word} {KEPT:.0%} of full fine-tuning's final accuracy "
                    f"({_interval(cell, signed=True)})"
                )
        r, p = self.overlap_and_transfer()
        if not math.isnan(r):
            lines.append(
                f"  overlap of neurons and transfer: rank correlation {r:+.2f} over {n * (n - 1)} "
                f"pairs, p = {p:.2g} (none can be below {1 / math.factorial(n):.2g})"
            )
        lines.append(
            "  brackets: 95 % over seeds, Student's t; not over tasks, orders or models"
            if len(self.seeds) > 1
            else "  one seed: no interval"
        )
        return "\n".join(lines)


def off_diagonal_r(
    overlap: Float[Tensor, "task other"], transfer: Float[Tensor, "task other"]
) -> float:
    """Spearman's rank correlation of two tables' entries off the diagonal."""
    off = ~torch.eye(len(overlap), dtype=torch.bool)
    rows = torch.stack([overlap[off], transfer[off]])
    if any(row.unique().numel() < 2 for row in rows):
        return math.nan
    return float(spearman(rows)[0, 1])


def _interval(cell: Any, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    if math.isnan(cell["low"]):
        return f"{cell['mean']:{sign}.2f}"
    return f"{cell['mean']:{sign}.2f} [{cell['low']:{sign}.2f}, {cell['high']:{sign}.2f}]"
