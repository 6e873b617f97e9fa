"""`damage_matrix`: what editing the neurons of each skill does to every skill.

Beside it, how many neurons the sets of two skills share, against sets drawn at random.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, permutations
from math import factorial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Position
from lens_skills.activations.components import Component, parse_components, site_width, sites_of
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.edits import Edit
from lens_skills.interventions.effects import Effects, measure_effects
from lens_skills.models import Chat, ModelAdapter, with_soft_prompt
from lens_skills.progress import progress
from lens_skills.results import Result
from lens_skills.stats.effect_tests import FEW_GROUPS, check_groups, cluster_interval
from lens_skills.stats.set_overlap import shared_by_chance

ComponentKind = tuple[int, str, int]
"""Layer, site and size: units of one kind may stand for one another."""


@dataclass(frozen=True, eq=False)
class DamageMatrix(Result):
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


MOST_PERMUTATIONS = 10_000


def damage_matrix(
    model: Any,
    tasks: Mapping[str, Sequence[Example]],
    neurons: Mapping[str, Any],
    do: Edit | Mapping[str, Edit],
    *,
    metric: Any = "logit_diff",
    position: Position = "last",
    at: str = DEFAULT_SITE,
    chat: Chat = False,
    seed: int = 0,
) -> DamageMatrix:
    """The effect of editing skill i's set on skill j's task, for all i and j.

    Damage is the drop of the metric in units of its spread over the task's examples,
    −(mean effect) / std(clean metric), so that tasks can be compared. Dominance is its mean on the
    diagonal minus its mean elsewhere: how much more a set hurts its own skill. Its p is the share
    of all relabelings of the sets (rows) that reach as much: exact up to seven skills, else
    (1 + #) / (1 + n) of 9,999 random ones.

    Args:
        model: A HookedTransformer or TransformerBridge.
        tasks: The examples of each skill.
        neurons: The set of each skill, under the same names.
        do: The intervention; or one per task, e.g. each with its own ``over=``.
        metric: A metric that is high where the model does well.
        position: Where to edit.
        at: The site of what is named as a neuron.
        chat: As in `score`.
        seed: Of random draws, intervals and relabelings.

    Source: Wang et al. 2022 (arXiv 2211.07349), section 5, for skill against skill.
    Does not show: that a set is necessary for its skill, only that it matters more there. With
    three skills no p can be below 1/6.

    Raises:
        LensSkillsError: Names that do not match, fewer than two skills, a task of fewer than eight
            groups, a metric that does not vary over a task.
    """
    adapter = with_soft_prompt(model, None, chat)
    names = _check_names(tasks, neurons, do)
    for name in names:
        check_groups([e.group for e in tasks[name]], f"an interval of the damage to {name!r}")
    sets = [parse_components(adapter, neurons[name], at=at) for name in names]
    measured = [
        measure_effects(
            adapter,
            tasks[name],
            sets,
            do[name] if isinstance(do, Mapping) else do,
            metric=metric,
            position=position,
            names=names,
            seed=seed,
        )
        for name in progress(names, len(names), "damage matrix", "tasks")
    ]
    return damage_of(adapter, names, sets, measured, seed=seed)


def damage_of(
    adapter: ModelAdapter,
    names: tuple[str, ...],
    sets: Sequence[Sequence[Component]],
    measured: Sequence[Effects],
    *,
    seed: int = 0,
) -> DamageMatrix:
    """The matrix of effects that are measured: of every set, in order, on each skill's task."""
    effect, low, high = _with_intervals(measured, seed)
    spread = [spread_of(name, effects) for name, effects in zip(names, measured, strict=True)]
    damage = -effect / torch.tensor(spread, dtype=torch.float64)
    p, n_relabelings = dominance_p(damage, seed=seed)
    overlap = overlap_of(sets, lambda kind: site_width(adapter, kind[1], kind[0]) // kind[2])
    return DamageMatrix(
        skills=names,
        n_units=tuple(map(len, sets)),
        n_examples=tuple(len(effects.example_ids) for effects in measured),
        n_groups=tuple(len(set(effects.groups)) for effects in measured),
        clean=tuple(float(effects.clean.mean()) for effects in measured),
        effect=effect,
        low=low,
        high=high,
        damage=damage,
        dominance=dominance(damage),
        p=p,
        n_relabelings=n_relabelings,
        shared=overlap.shared,
        jaccard=overlap.jaccard,
        jaccard_chance=overlap.chance,
        overlap_p=overlap.p,
        metric=measured[0].metric,
        unit=measured[0].unit,
        do=tuple(effects.do for effects in measured),
        site=", ".join(sorted(sites_of(chain(*sets)))),
        position=measured[0].position,
        provenance={name: one.provenance for name, one in zip(names, measured, strict=True)},
    )


def dominance(damage: Float[Tensor, "skill task"]) -> float:
    """Mean damage on the diagonal minus mean damage elsewhere.

    >>> dominance(torch.tensor([[2.0, 0.0], [1.0, 3.0]]))
    2.0
    """
    size = len(damage)
    own = float(damage.diagonal().sum())
    return own / size - (float(damage.sum()) - own) / (size * size - size)


def dominance_p(damage: Float[Tensor, "skill task"], *, seed: int = 0) -> tuple[float, int]:
    """The share of row relabelings with as much dominance, and how many there were.

    >>> dominance_p(torch.eye(3))
    (0.16666666666666666, 6)
    """
    size, values = len(damage), damage.double().numpy()
    columns = np.arange(size)
    # The sum over the matrix is the same under any relabeling, so the diagonal's decides.
    observed = values.trace()
    least = observed - 1e-12 * max(1.0, abs(observed))
    exact = factorial(size) <= MOST_PERMUTATIONS
    if exact:
        orders = np.array(list(permutations(range(size))))
    else:
        random = np.random.default_rng(seed)
        orders = np.array([random.permutation(size) for _ in range(MOST_PERMUTATIONS - 1)])
    reached = int((values[orders, columns].sum(1) >= least).sum())
    if exact:  # the labeling itself is one of them
        return reached / len(orders), len(orders)
    return (1 + reached) / (1 + len(orders)), len(orders)


def _check_names(
    tasks: Mapping[str, Any], neurons: Mapping[str, Any], do: Edit | Mapping[str, Edit]
) -> tuple[str, ...]:
    names = tuple(tasks)
    others = {"neurons": neurons} | ({"do": do} if isinstance(do, Mapping) else {})
    for what, other in others.items():
        if set(other) != set(names):
            raise LensSkillsError(
                f"tasks are called {', '.join(names)}, {what} {', '.join(other)}: every skill "
                "needs both under one name."
            )
    if len(names) < 2:
        raise LensSkillsError("a damage matrix compares skills: give two or more.")
    return names


def _with_intervals(measured: Sequence[Effects], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean effect and its interval, each ``skill task``."""
    means = [effects.total.double().mean(1) for effects in measured]
    ends = [cluster_interval(effects.total, effects.groups, seed=seed) for effects in measured]
    low, high = zip(*ends, strict=True)
    return torch.stack(means, 1), torch.stack(low, 1), torch.stack(high, 1)


def spread_of(name: str, effects: Effects) -> float:
    """Standard deviation of the clean metric over the examples: the unit of damage."""
    spread = float(effects.clean.double().std(correction=0))
    if spread == 0:
        raise LensSkillsError(
            f"{effects.metric} is {float(effects.clean[0]):g} for every example of {name!r}, so "
            "damage has no unit there. Choose a graded metric, such as logit_diff."
        )
    return spread


@dataclass(frozen=True, eq=False)
class Overlap:
    """What every pair of sets shares; the fields of `DamageMatrix` say what each is."""

    shared: Int[Tensor, "skill other"]
    jaccard: Float[Tensor, "skill other"]
    chance: Float[Tensor, "skill other"]
    p: Float[Tensor, "skill other"]


def overlap_of(
    sets: Sequence[Sequence[Component]], population: Callable[[ComponentKind], int]
) -> Overlap:
    """The overlap of every pair of sets.

    By chance, set A draws a_l of the n_l units of layer l and set B b_l of them, without
    replacement and independently: layer l shares Hypergeometric(n_l, a_l, b_l) units, and all
    layers the sum of those, whose exact distribution gives ``chance`` and ``p``. ``population``
    says how many units of a kind the model has.

    >>> one, other = (Component(f"L0N{i}", 0, "mlp.hook_post", i, i + 1) for i in (0, 1))
    >>> overlap_of([[one], [one, other]], lambda kind: 4).jaccard[0].tolist()
    [1.0, 0.5]
    """
    counted = [Counter((unit.layer, unit.site, unit.stop - unit.start) for unit in s) for s in sets]
    names = [{(unit.hook_name, unit.start, unit.stop) for unit in units} for units in sets]
    members = {kind: population(kind) for counts in counted for kind in counts}
    size = len(sets)
    shared = torch.zeros(size, size, dtype=torch.long)
    jaccard, chance, p = (torch.zeros(size, size, dtype=torch.float64) for _ in range(3))
    for i in range(size):
        for j in range(size):
            both = len(names[i] & names[j])
            shares = shared_by_chance(counted[i], counted[j], members)
            either = len(names[i]) + len(names[j]) - np.arange(len(shares))
            shared[i, j] = both
            jaccard[i, j] = both / max(len(names[i] | names[j]), 1)
            chance[i, j] = float((shares * np.arange(len(shares)) / np.maximum(either, 1)).sum())
            p[i, j] = min(1.0, float(shares[both:].sum()))
    return Overlap(shared, jaccard, chance, p)
