"""`damage_matrix`: what editing the neurons of each skill does to every skill."""

from collections.abc import Mapping, Sequence
from itertools import permutations
from math import factorial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Position
from lens_skills.causal.edits import Edit
from lens_skills.causal.effects import Effects
from lens_skills.causal.matrix import DamageMatrix
from lens_skills.causal.measurement import measure_effects
from lens_skills.causal.overlap import Kind, overlap_of
from lens_skills.causal.units import Unit, parse_units, site_width
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import Lens, as_lens
from lens_skills.stats.bootstrap import cluster_interval

MOST_PERMUTATIONS = 10_000


def damage_matrix(
    model: Any,
    tasks: Mapping[str, Sequence[Example]],
    units: Mapping[str, Any],
    *,
    do: Edit | Mapping[str, Edit],
    metric: Any = "logit_diff",
    position: Position = "last",
    at: str = DEFAULT_SITE,
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
        units: The set of each skill, under the same names.
        do: The intervention; or one per task, e.g. each with its own ``over=``.
        metric: A metric that is high where the model does well.
        position: Where to edit.
        at: The site of what is named as a neuron.
        seed: Of random draws, intervals and relabelings.

    Source: Wang et al. 2022 (arXiv 2211.07349), section 5, for skill against skill.
    Does not show: that a set is necessary for its skill, only that it matters more there. With
    three skills no p can be below 1/6.

    Raises:
        LensSkillsError: Names that do not match, fewer than two skills, a metric that does not
            vary over a task.
    """
    lens = as_lens(model)
    names = _check_names(tasks, units, do)
    sets = [parse_units(lens, units[name], at=at) for name in names]
    measured = [
        measure_effects(
            lens,
            tasks[name],
            sets,
            do[name] if isinstance(do, Mapping) else do,
            metric=metric,
            position=position,
            names=names,
            seed=seed,
        )
        for name in names
    ]
    effect, low, high = _with_intervals(measured, seed)
    spread = [_spread(name, effects) for name, effects in zip(names, measured, strict=True)]
    damage = -effect / torch.tensor(spread, dtype=torch.float64)
    p, n_relabelings = dominance_p(damage, seed=seed)
    overlap = overlap_of(sets, lambda kind: _population(lens, kind))
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
        site=_sites(sets),
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
    tasks: Mapping[str, Any], units: Mapping[str, Any], do: Edit | Mapping[str, Edit]
) -> tuple[str, ...]:
    names = tuple(tasks)
    others = {"units": units} | ({"do": do} if isinstance(do, Mapping) else {})
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


def _spread(name: str, effects: Effects) -> float:
    spread = float(effects.clean.double().std(correction=0))
    if spread == 0:
        raise LensSkillsError(
            f"{effects.metric} is {float(effects.clean[0]):g} for every example of {name!r}, so "
            "damage has no unit there. Choose a graded metric, such as logit_diff."
        )
    return spread


def _population(lens: Lens, kind: Kind) -> int:
    _, site, size = kind
    return site_width(lens, site) // size


def _sites(sets: Sequence[Sequence[Unit]]) -> str:
    return ", ".join(sorted({unit.site for units in sets for unit in units}))
