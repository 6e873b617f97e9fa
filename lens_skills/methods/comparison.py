"""`Comparison`: which methods find neurons that matter, in one table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lens_skills.causal.ruling import OPPOSES, SUPPORTS
from lens_skills.errors import LensSkillsError
from lens_skills.methods.trial import Trial
from lens_skills.scoring import EXPLORATORY
from lens_skills.stats.intervals import wilson_interval

ROTATED = "rotated basis"
BASELINES = ("random", ROTATED)
"""The rows every comparison has: what any method must beat."""


@dataclass(frozen=True, eq=False)
class Row:
    """One method's strongest neurons on trial.

    Attributes:
        method: Its name; ``"random"`` and ``"rotated basis"`` are the rows to beat.
        trials: Its list of k neurons; of ``"random"`` several lists, each judged by itself.
        seconds: What ranking took.
        agreement: Mean rank correlation with the other methods; None for the rows to beat, and
            where there is no other.
        known: For each role in ``truth``: how many of its neurons are in the list.
    """

    method: str
    trials: tuple[Trial, ...]
    seconds: float
    agreement: float | None
    known: Mapping[str, float] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many neurons were tried."""
        return sum(len(trial.names) for trial in self.trials)

    @property
    def hits(self) -> int:
        """How many of them have a causal effect."""
        return sum(trial.hits for trial in self.trials)

    @property
    def share(self) -> float:
        """Hits among those tried; 0 where none was."""
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share, neurons taken as independent."""
        return wilson_interval(self.share, self.n) if self.n else (0.0, 1.0)

    @property
    def mean_effect(self) -> float:
        """Mean over the neurons of |mean effect|, in the causal metric's unit."""
        sizes = [float(size) for trial in self.trials for size in trial.effect.abs()]
        return sum(sizes) / len(sizes) if sizes else 0.0

    def count(self, word: str) -> int:
        """How many neurons have a word."""
        return sum(trial.words.count(word) for trial in self.trials)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several methods' strongest neurons, all tried on the same examples.

    Does not show: that a method is better in general. It is one model, one task and one k, and
    the intervals are wide.

    Attributes:
        rows: One per method, by share of hits; the rows to beat come last.
        k: How many neurons each method may name.
        metric, causal, unit: What was ranked by; what the neurons were tried on, and its unit.
        do: The edit in words.
        delta: The smallest effect that counts; ``delta_from`` says where it is from.
        n_controls: Other neurons of the same layers.
        methods: The methods that ranked, in the order of the two matrices.
        spearman: Rank correlation of their strengths over all neurons.
        jaccard: Overlap of their k strongest.
        left_out: Methods that could not rank here, and why.
        truth: The known neurons, by role.
        site, position: Where neurons were read and edited.
        n_explore, n_examples, n_groups: Of the splits ranked on and tried on.
        exploratory: True where a rule against reuse was waived.
        provenance: Model, task, splits, seed and versions behind the numbers.
    """

    rows: tuple[Row, ...]
    k: int
    metric: str
    causal: str
    unit: str
    do: str
    delta: float
    delta_from: str
    n_controls: int
    methods: tuple[str, ...]
    spearman: Float[Tensor, "method other"]
    jaccard: Float[Tensor, "method other"]
    left_out: Mapping[str, str]
    truth: Mapping[str, Sequence[str]]
    site: str
    position: str
    n_explore: int
    n_examples: int
    n_groups: int
    exploratory: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, method: str) -> Row:
        for row in self.rows:
            if row.method == method:
                return row
        if method in self.left_out:
            raise LensSkillsError(f"{method!r} was left out: {self.left_out[method]}")
        raise LensSkillsError(
            f"no method {method!r} here. There are: {', '.join(row.method for row in self.rows)}."
        )

    def frame(self) -> pd.DataFrame:
        """One row per method.

        Columns: method n hits share low high supports opposes mean_effect agreement seconds, and
        with known neurons recall precision (of the first role) and one column per further role.
        """
        found = []
        for row in self.rows:
            low, high = row.interval
            entry: dict[str, Any] = {
                "method": row.method,
                "n": row.n,
                "hits": row.hits,
                "share": row.share,
                "low": low,
                "high": high,
                "supports": row.count(SUPPORTS),
                "opposes": row.count(OPPOSES),
                "mean_effect": row.mean_effect,
                "agreement": row.agreement,
                "seconds": row.seconds,
            }
            for place, (role, names) in enumerate(self.truth.items()):
                known = row.known.get(role)
                if place == 0:
                    lists = max(len(row.trials), 1)
                    entry["recall"] = None if known is None else known / len(names) / lists
                    entry["precision"] = None if known is None or not row.n else known / row.n
                else:
                    entry[role] = known
            found.append(entry)
        return pd.DataFrame(found)

    def neurons(self) -> pd.DataFrame:
        """One row per method and neuron: method list rank name effect low high p q word."""
        found = [
            {
                "method": row.method,
                "list": place,
                "rank": rank + 1,
                "name": name,
                **{key: float(getattr(trial, key)[rank]) for key in _NUMBERS},
                "word": trial.words[rank],
            }
            for row in self.rows
            for place, trial in enumerate(row.trials)
            for rank, name in enumerate(trial.names)
        ]
        return pd.DataFrame(found)

    def __repr__(self) -> str:
        lines = [
            f"{self.metric} · the {self.k} strongest neurons of each method on trial · "
            f"{self.site} at {self.position}",
            f"  ranked on {self.n_explore:,} examples, tried on {self.n_examples:,} in "
            f"{self.n_groups:,} groups: {self.do}, effect on {self.causal}",
            f"  a hit: 95 % interval beyond δ = {self.delta:.3g} {self.unit} ({self.delta_from}) "
            f"and q <= 0.05 among {self.n_controls:,} controls",
        ]
        if self.exploratory:
            lines.insert(0, EXPLORATORY)
        lines += ["", *_table(self.frame())]
        lines += [f"  left out: {why}" for why in self.left_out.values()]
        return "\n".join(lines)


_NUMBERS = ("effect", "low", "high", "p", "q")


def _table(frame: pd.DataFrame) -> list[str]:
    """Aligned lines of the frame, with what needs words in words."""
    rows = [["method", "hits", "95 % interval", "supports/opposes", "mean |effect|", "agreement"]]
    more = [name for name in frame.columns[11:] if frame[name].notna().any()]
    rows[0] += ["seconds", *more]
    for entry in frame.to_dict("records"):
        cells = [
            entry["method"],
            f"{entry['hits']} of {entry['n']}",
            f"{entry['low']:.2f} to {entry['high']:.2f}",
            f"{entry['supports']}/{entry['opposes']}",
            f"{entry['mean_effect']:.3g}",
            "" if pd.isna(entry["agreement"]) else f"{entry['agreement']:.2f}",
            f"{entry['seconds']:.1f}",
        ]
        cells += ["" if pd.isna(entry[name]) else f"{entry[name]:.3g}" for name in more]
        rows.append(cells)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
