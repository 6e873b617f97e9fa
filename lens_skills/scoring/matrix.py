"""`SkillMatrix`: neurons in rows, skills in columns; who is shared, and who goes with whom."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.folder import fields_of, read_folder, write_folder
from lens_skills.scoring.display import EXPLORATORY

_TUPLES = ("skills", "position", "tested")
_COLUMNS = (
    "name",
    "layer",
    "neuron",
    "kind",
    "skill",
    "position",
    "r",
    "low",
    "high",
    "beyond",
    "selected",
)


@dataclass(frozen=True, eq=False)
class SkillMatrix:
    """The neurons of several skills, and what the skills have in common.

    Attributes:
        skills: Names of the metrics.
        neurons: (layer, index) rows, the largest |r| with any skill first.
        r, low, high: Correlation and its 95 % interval, at the position where |r| is largest
            (which makes r and interval a little too large where there are several).
        position: Of each cell, row by row.
        selected: Whether the neuron is of the skill's set.
        beyond: Whether |r| is beyond the skill's permutation threshold.
        tested: Whether a skill has such a threshold.
        shared: Neurons that two sets have in common; on the diagonal the size of the set.
        jaccard: Those over the neurons in either, 0 to 1.
        expected, p: Of ``shared``, by chance for sets with the same counts per layer.
        likeness: Correlation of two skills' r over all neurons and positions, -1 to 1.
        metric_r: Correlation of the two metrics themselves over the examples.
        linkage: Average linkage of the skills on 1 - |likeness|, as SciPy writes it.
        chosen: How the sets were made.
        site: Where.
        n_examples, n_groups, n_units: Behind the correlations.
        exploratory: True where a rule against reuse was waived.
        provenance: Of the scores.
    """

    skills: tuple[str, ...]
    neurons: Int[Tensor, "neuron 2"]
    r: Float[Tensor, "neuron skill"]
    low: Float[Tensor, "neuron skill"]
    high: Float[Tensor, "neuron skill"]
    position: tuple[str, ...]
    selected: Bool[Tensor, "neuron skill"]
    beyond: Bool[Tensor, "neuron skill"]
    tested: tuple[bool, ...]
    shared: Int[Tensor, "skill other"]
    jaccard: Float[Tensor, "skill other"]
    expected: Float[Tensor, "skill other"]
    p: Float[Tensor, "skill other"]
    likeness: Float[Tensor, "skill other"]
    metric_r: Float[Tensor, "skill other"]
    linkage: Float[Tensor, "merge 4"]
    chosen: str
    site: str
    n_examples: int
    n_groups: int
    n_units: int
    exploratory: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names such as ``L17N635``."""
        return [f"L{layer}N{neuron}" for layer, neuron in self.neurons.tolist()]

    @property
    def kinds(self) -> list[str]:
        """Of each neuron: ``shared``, ``specific`` or ``unclear``.

        Shared neurons are in two sets or more; specific ones in one, and within the null of every
        other skill; unclear ones in one, but beyond the null of another (or that has none).
        """
        found = []
        for chosen, beyond in zip(self.selected.tolist(), self.beyond.tolist(), strict=True):
            elsewhere = any(
                not mine and (hit or not tested)
                for mine, hit, tested in zip(chosen, beyond, self.tested, strict=True)
            )
            found.append("shared" if sum(chosen) > 1 else "unclear" if elsewhere else "specific")
        return found

    @property
    def order(self) -> list[int]:
        """The skills' places in an order that puts alike ones side by side."""
        from scipy.cluster.hierarchy import leaves_list

        return leaves_list(self.linkage.numpy()).tolist()

    def groups(self, *, least: float = 0.5) -> list[tuple[str, ...]]:
        """The skills that belong together: joined where the mean |likeness| is ``least`` or more.

        In the order of the skills.
        """
        from scipy.cluster.hierarchy import fcluster

        names = fcluster(self.linkage.numpy(), t=1 - least + 1e-12, criterion="distance").tolist()
        return [
            tuple(s for s, name in zip(self.skills, names, strict=True) if name == this)
            for this in dict.fromkeys(names)
        ]

    def frame(self) -> pd.DataFrame:
        """One row per cell: name layer neuron kind skill position r low high beyond selected."""
        size = len(self.skills)
        kinds = self.kinds
        rows = [
            {
                "name": name,
                "layer": int(self.neurons[i, 0]),
                "neuron": int(self.neurons[i, 1]),
                "kind": kinds[i],
                "skill": skill,
                "position": self.position[i * size + j],
                "r": float(self.r[i, j]),
                "low": float(self.low[i, j]),
                "high": float(self.high[i, j]),
                "beyond": bool(self.beyond[i, j]),
                "selected": bool(self.selected[i, j]),
            }
            for i, name in enumerate(self.names)
            for j, skill in enumerate(self.skills)
        ]
        return pd.DataFrame(rows, columns=pd.Index(_COLUMNS))

    def overlaps(self) -> pd.DataFrame:
        """One row per pair: skill other shared jaccard expected p likeness metric_r."""
        names = ("shared", "jaccard", "expected", "p", "likeness", "metric_r")
        rows = [
            {
                "skill": skill,
                "other": self.skills[j],
                **{name: getattr(self, name)[i, j].item() for name in names},
            }
            for i, skill in enumerate(self.skills)
            for j in range(i + 1, len(self.skills))
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        kinds = self.kinds
        counts = ", ".join(f"{kinds.count(k):,} {k}" for k in ("specific", "shared", "unclear"))
        lines = [
            f"{len(self.neurons):,} neurons × {len(self.skills)} skills · {self.site} · {counts} · "
            f"sets: {self.chosen}"
        ]
        if self.exploratory:
            lines.insert(0, EXPLORATORY)
        sizes = self.shared.diagonal().tolist()
        lines += [f"  {s}: {n:,} neurons" for s, n in zip(self.skills, sizes, strict=True)]
        lines += [
            f"  {row['skill']} and {row['other']}: {row['shared']} shared, by chance "
            f"{row['expected']:.2f} (p = {row['p']:.2g}); likeness of r {row['likeness']:+.2f}, of "
            f"the metrics themselves {row['metric_r']:+.2f}"
            for row in self.overlaps().to_dict("records")
        ]
        lines.append("  groups: " + "; ".join(" + ".join(group) for group in self.groups()))
        lines.append("  correlates, not causes; metrics that go together share neurons for that")
        return "\n".join(lines)

    def save(self, folder: str | Path) -> Path:
        """Writes ``skills.safetensors`` and ``skills.json``."""
        return write_folder(Path(folder), "skills", *fields_of(self))

    @classmethod
    def load(cls, folder: str | Path) -> "SkillMatrix":
        """The matrix that `save` wrote.

        Raises:
            LensSkillsError: None was saved there.
        """
        tensors, plain = read_folder(Path(folder), "skills")
        for name in _TUPLES:
            plain[name] = tuple(plain[name])
        return cls(**tensors, **plain)
