"""`Rows`: the rows of HANS by sub-case, and which of them a prompt learns from."""

import hashlib
import random
from collections import defaultdict
from typing import Any


class Rows:
    """The rows of the file by sub-case, each sub-case's in an order that its ids decide."""

    def __init__(self, task: Any, rule: str) -> None:
        self.task, self.rule = task, rule
        turns: dict[str, int] = defaultdict(int)
        self.rank: dict[str, int] = {}
        for example in sorted(task, key=lambda e: hashlib.sha256(e.id.encode()).digest()):
            case = str(example.covariates["subcase"])
            self.rank[example.id] = turns[case]
            turns[case] += 1
        cells: dict[Any, set[str]] = defaultdict(set)
        for example in task.where(heuristic=rule):
            cells[example.labels["entailment"]].add(str(example.covariates["subcase"]))
        draw = random.Random(0)
        self.known = {case for c in sorted(cells) for case in draw.sample(sorted(cells[c]), 3)}
        self.new = set().union(*cells.values()) - self.known

    def part(self, first: int, count: int, which: str = "all") -> Any:
        """``count`` rows of each sub-case, from the ``first`` on: known, new, others or all."""

        def wanted(example: Any) -> bool:
            case = str(example.covariates["subcase"])
            kind = "known" if case in self.known else "new" if case in self.new else "others"
            return which in ("all", kind) and first <= self.rank[example.id] < first + count

        return self.task.where(wanted)

    def scored(self, sizes: Any) -> Any:
        """The rows whose neurons are looked at: all, or so many of each that trained no prompt."""
        if not sizes.scored:
            return self.task
        return self.part(sizes.rows + sizes.stop + sizes.tested, sizes.scored)
