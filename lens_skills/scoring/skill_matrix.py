"""`skill_matrix`: the neurons of several skills side by side, shared and specific ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations.components import neuron_names, unit_name
from lens_skills.errors import LensSkillsError
from lens_skills.results import Result
from lens_skills.scoring.scores import EXPLORATORY, Scores
from lens_skills.scoring.select import Selection
from lens_skills.stats.correlation import average_linkage
from lens_skills.stats.set_overlap import compare_sets


@dataclass(frozen=True, eq=False)
class SkillMatrix(Result):
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
        exploratory: True where the scores or a selection are.
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
        return neuron_names(self.neurons, self.site, self.provenance)

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
        per_neuron = {
            "name": self.names,
            "layer": self.neurons[:, 0].tolist(),
            "neuron": self.neurons[:, 1].tolist(),
            "kind": self.kinds,
        }
        columns: dict[str, Any] = {
            name: [value for value in values for _ in range(size)]
            for name, values in per_neuron.items()
        }
        columns |= {"skill": [*self.skills] * len(self.neurons), "position": list(self.position)}
        columns |= {
            name: getattr(self, name).flatten().tolist()
            for name in ("r", "low", "high", "beyond", "selected")
        }
        return pd.DataFrame(columns)

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


def skill_matrix(
    scores: Scores,
    selections: Sequence[Selection] | None = None,
    *,
    metrics: Sequence[str] | None = None,
    top: int = 50,
) -> SkillMatrix:
    """Every selected neuron against every metric of one pass: which are shared, which specific.

    Rows are the union of the selections; without selections, of each metric's ``top`` strongest
    beyond its permutation threshold, which are found and not confirmed. A neuron stands for each
    metric at the position where its |r| with it is largest. Metrics are grouped by average linkage
    on 1 - |correlation of their r| over all neurons and positions, so that a skill and its opposite
    are one group.

    Args:
        scores: Scores of all metrics on the same examples, of all neurons that could have been
            chosen (chance counts them); best of a split that no selection came from.
        selections: One per metric.
        metrics: Which, and in what order; default those of the selections, else all.
        top: How many per metric where there are no selections.

    Raises:
        LensSkillsError: Fewer than two metrics, two selections of one, one at another site, a
            neuron that was not scored, or neither selections nor a null.

    Source: several skills read from one pass, Zhao et al. 2025 (arXiv 2511.21610).
    Does not show: that a shared neuron does the same for both skills, or anything at all; and
    metrics that go together in the examples share neurons for that reason alone.
    """
    names = _names(scores, selections, metrics)
    strengths, chosen = {}, {}
    for name in names:
        strengths[name] = scores[name].strength
        chosen[name] = _chosen(scores, name, selections, top)
    mask = torch.stack([chosen[name] for name in names], dim=1)
    rows = mask.any(dim=1).nonzero()[:, 0]
    most = torch.stack([strengths[name] for name in names], dim=1).amax(dim=1)
    rows = rows[most[rows].argsort(descending=True, stable=True)]
    r, low, high, place, beyond = _at_best(scores, names)
    pairs = list(combinations(range(len(names)), 2))
    members = torch.stack([scores.layer, scores.neuron], dim=1)
    population = {
        int(layer): int(((scores.layer == layer) & (~scores.excluded | mask.any(dim=1))).sum())
        for layer in scores.layer.unique()
    }
    sets = [
        [(int(a), int(b)) for a, b in members[mask[:, column]].tolist()]
        for column in range(len(names))
    ]
    compared = [compare_sets(sets[i], sets[j], population) for i, j in pairs]
    size = len(names)
    shared = torch.diag(mask.sum(dim=0))
    jaccard, p = torch.eye(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    expected = torch.diag(mask.sum(dim=0).double())
    for (i, j), one in zip(pairs, compared, strict=True):
        for a, b in ((i, j), (j, i)):
            shared[a, b], jaccard[a, b] = one.count, one.jaccard
            expected[a, b], p[a, b] = one.expected, one.p
    likeness = _likeness(scores, names)
    between = torch.corrcoef(torch.stack([scores.values[name].double() for name in names]))
    return SkillMatrix(
        skills=names,
        neurons=members[rows],
        r=r[rows],
        low=low[rows],
        high=high[rows],
        position=tuple(scores.positions[int(at)] for at in place[rows].flatten()),
        selected=mask[rows],
        beyond=beyond[rows],
        tested=tuple(scores.thresholds[name] is not None for name in names),
        shared=shared,
        jaccard=jaccard,
        expected=expected,
        p=p,
        likeness=likeness,
        metric_r=between,
        linkage=average_linkage(1 - likeness.abs().numpy()),
        chosen="confirmed" if selections is not None else f"the {top} strongest beyond the null",
        site=scores.site,
        n_examples=scores.n_examples,
        n_groups=scores.n_groups,
        n_units=int((~scores.excluded).sum()),
        exploratory=scores.exploratory or any(s.exploratory for s in selections or ()),
        provenance=scores.provenance,
    )


def _names(
    scores: Scores, selections: Sequence[Selection] | None, metrics: Sequence[str] | None
) -> tuple[str, ...]:
    said = [selection.metric for selection in selections or ()]
    twice = {name for name in said if said.count(name) > 1}
    if twice:
        raise LensSkillsError(f"two selections are of {min(twice)!r}. Give one per metric.")
    names = tuple(metrics if metrics is not None else said or scores.metrics)
    if len(names) < 2:
        raise LensSkillsError(f"a matrix takes two metrics or more, not {len(names)}.")
    for name in names:
        _ = scores[name]  # raises where it was not scored
        if selections is not None and name not in said:
            raise LensSkillsError(f"there is no selection of {name!r}. Give one per metric.")
    return names


def _chosen(
    scores: Scores, name: str, selections: Sequence[Selection] | None, top: int
) -> Bool[Tensor, " unit"]:
    """Which units are of a metric's set."""
    mask = torch.zeros(scores.n_units, dtype=torch.bool)
    if selections is None:
        bar = scores[name].threshold
        if bar is None:
            raise LensSkillsError(
                f"{name!r} has neither a selection nor a null to choose neurons by. Pass "
                "selections, or score with n_permutations > 0."
            )
        strength = scores[name].strength
        order = strength.argsort(descending=True, stable=True)[:top]
        mask[order[strength[order] > bar]] = True
        return mask & ~scores.excluded
    (selection,) = (s for s in selections if s.metric == name)
    if selection.site != scores.site:
        raise LensSkillsError(
            f"the selection of {name!r} is of {selection.site}, the scores of {scores.site}."
        )
    places: Mapping[tuple[int, int], int] = scores.places
    for layer, neuron in selection.neurons.tolist():
        if (layer, neuron) not in places:
            raise LensSkillsError(
                f"{unit_name(layer, neuron, scores.site)} was selected for {name!r} and not scored "
                "here. Score all neurons that could have been chosen."
            )
        mask[places[layer, neuron]] = True
    return mask


def _at_best(scores: Scores, names: Sequence[str]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``unit skill``: r, its interval, its position, and whether it is beyond the null."""
    rows = []
    for view in (scores[name] for name in names):
        bar = view.threshold
        best, low, high = (view.at_strongest(part) for part in (view.r, view.low, view.high))
        beyond = best.abs() > (float("inf") if bar is None else bar)
        rows.append((best, low, high, view.strongest_position, beyond))
    r, low, high, place, beyond = (torch.stack(part, dim=1) for part in zip(*rows, strict=True))
    return r, low, high, place, beyond


def _likeness(scores: Scores, names: Sequence[str]) -> Float[Tensor, "skill other"]:
    """Correlation of the metrics' r over all neurons that vary, and positions."""
    flat = torch.stack([scores[name].r[:, ~scores.excluded].flatten() for name in names])
    # Rounded, because a matrix product's last digits differ from call to call.
    return torch.corrcoef(flat).clamp(-1, 1).round(decimals=12)
