"""`DamageMatrix`: the neurons of each skill against the performance of each skill."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.folder import fields_of, read_folder, write_folder
from lens_skills.stats.bootstrap import FEW_GROUPS

_TUPLES = ("skills", "n_units", "n_examples", "n_groups", "clean", "do")


@dataclass(frozen=True, eq=False)
class DamageMatrix:
    """Rows are the edited sets, columns the tasks, both named by skill and in the same order.

    Attributes:
        skills: Their names.
        n_units: Of each skill's set.
        n_examples: Of each skill's task.
        n_groups: Of each skill's task; intervals resample groups.
        clean: Mean of the metric on each task without an edit.
        effect: Mean of edited minus clean metric, in the metric's unit; below 0 it is damage.
        low, high: Its 95 % interval, by group.
        damage: -effect over the standard deviation of the clean metric over the task's examples.
        dominance: Mean damage on the diagonal minus mean damage elsewhere.
        p: Share of relabelings of the rows with as much dominance.
        n_relabelings: How many there were; all of them where p is exact.
        shared: Units that two skills' sets have in common.
        jaccard: Those over the units in either, 0 to 1.
        jaccard_chance: Expected of random sets with the same counts per layer.
        overlap_p: Chance that such sets share as many or more.
        metric, unit: What was measured.
        do: The intervention on each task, in words.
        site, position: Where it acts.
        provenance: Of the effects on each task.
    """

    skills: tuple[str, ...]
    n_units: tuple[int, ...]
    n_examples: tuple[int, ...]
    n_groups: tuple[int, ...]
    clean: tuple[float, ...]
    effect: Float[Tensor, "skill task"]
    low: Float[Tensor, "skill task"]
    high: Float[Tensor, "skill task"]
    damage: Float[Tensor, "skill task"]
    dominance: float
    p: float
    n_relabelings: int
    shared: Int[Tensor, "skill other"]
    jaccard: Float[Tensor, "skill other"]
    jaccard_chance: Float[Tensor, "skill other"]
    overlap_p: Float[Tensor, "skill other"]
    metric: str
    unit: str
    do: tuple[str, ...]
    site: str
    position: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row per set and task: skill task own effect low high damage."""
        return pd.DataFrame(
            [
                {
                    "skill": skill,
                    "task": task,
                    "own": skill == task,
                    "effect": float(self.effect[i, j]),
                    "low": float(self.low[i, j]),
                    "high": float(self.high[i, j]),
                    "damage": float(self.damage[i, j]),
                }
                for i, skill in enumerate(self.skills)
                for j, task in enumerate(self.skills)
            ]
        )

    def overlaps(self) -> pd.DataFrame:
        """One row per pair of skills: skill other shared jaccard chance p."""
        return pd.DataFrame(
            [
                {
                    "skill": skill,
                    "other": self.skills[j],
                    "shared": int(self.shared[i, j]),
                    "jaccard": float(self.jaccard[i, j]),
                    "chance": float(self.jaccard_chance[i, j]),
                    "p": float(self.overlap_p[i, j]),
                }
                for i, skill in enumerate(self.skills)
                for j in range(i + 1, len(self.skills))
            ]
        )

    def __repr__(self) -> str:
        wide = max(11, *(len(skill) + 1 for skill in self.skills))
        side = max(len(f"{s} ({n})") for s, n in zip(self.skills, self.n_units, strict=True))
        lines = [
            f"effect on {self.metric} ({self.unit}) · rows: edited set (units), columns: task · "
            f"{self.site} at {self.position}",
            f"  {'':<{side}}" + "".join(f"{skill:>{wide}}" for skill in self.skills),
        ]
        for i, skill in enumerate(self.skills):
            row = "".join(
                # A star: the interval leaves 0 out.
                f"{float(self.effect[i, j]):>+{wide - 1}.3g}"
                + ("*" if self.low[i, j] > 0 or self.high[i, j] < 0 else " ")
                for j in range(len(self.skills))
            )
            named = f"{skill} ({self.n_units[i]})"
            lines.append(f"  {named:<{side}}{row}")
        lines.append(
            f"  diagonal dominance {self.dominance:+.3g} std of the metric, p = {self.p:.3g} over "
            f"{self.n_relabelings:,} relabelings (none can be below {1 / self.n_relabelings:.2g})"
        )
        lines += [
            f"  units shared by {row['skill']} and {row['other']}: {row['shared']}; Jaccard "
            f"{row['jaccard']:.2f}, by chance {row['chance']:.2f}, p = {row['p']:.2g}"
            for row in self.overlaps().to_dict("records")
        ]
        lines.append("  *: the 95 % interval leaves out 0")
        few = [
            f"{skill} {n}"
            for skill, n in zip(self.skills, self.n_groups, strict=True)
            if n < FEW_GROUPS
        ]
        if few:
            lines.append(
                f"  few groups ({', '.join(few)}): below {FEW_GROUPS}, intervals cover less than "
                "they say"
            )
        return "\n".join(lines)

    def save(self, folder: str | Path) -> Path:
        """Writes ``damage.safetensors`` and ``damage.json``."""
        return write_folder(Path(folder), "damage", *fields_of(self))

    @classmethod
    def load(cls, folder: str | Path) -> "DamageMatrix":
        """The matrix that `save` wrote."""
        tensors, plain = read_folder(Path(folder), "damage")
        for name in _TUPLES:
            plain[name] = tuple(plain[name])
        return cls(**tensors, **plain)
