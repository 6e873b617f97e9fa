"""A trial of sets of neurons: each edited on its own task and on the others, beside random sets."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from lens_skills.activations import Metric
from lens_skills.activations.components import parse_components, site_width, sites_of
from lens_skills.data import Example
from lens_skills.interventions import DamageMatrix
from lens_skills.interventions.damage_matrix import dominance, dominance_p, overlap_of
from lens_skills.interventions.effects import measure_effects
from lens_skills.models import with_soft_prompt
from lens_skills.stats.effect_tests import cluster_interval
from lens_skills.stats.multiple_testing import rank_p

ANSWER = Metric(
    "log-probability of the answer",
    lambda readout, _: readout.answer.log_probability,
    frozenset({"answer"}),
    "nats",
)
DRAWS = 4000


@dataclass(frozen=True)
class Trial:
    """What became of the sets.

    Attributes:
        matrix: Every set on every task.
        rows: One per set: its effect on its own task, on the others and that of random sets.
    """

    matrix: DamageMatrix
    rows: pd.DataFrame

    @property
    def hurts(self) -> list[str]:
        """Sets without which their own task goes worse, by an interval and beyond random sets."""
        return list(self.rows.query("high < 0 and p_random <= 0.05")["set"])

    @property
    def specific(self) -> list[str]:
        """Those of `hurts` that hurt the other tasks less, by an interval."""
        return [name for name in self.rows.query("more_low > 0")["set"] if name in self.hurts]


def try_sets(
    model: Any,
    tasks: Mapping[str, Sequence[Example]],
    sets: Mapping[str, Sequence[str]],
    do: Any,
    *,
    metric: Any = ANSWER,
    position: Any = "last",
    n_random: int = 19,
    seed: int = 0,
) -> Trial:
    """Each set on each task; beside it random sets of other neurons, as many of each layer.

    Damage is the drop of the metric over its standard deviation on the task's examples. *more* is
    the damage to the own task minus the mean damage to the others, with a bootstrap over the
    groups of each task.
    """
    adapter = with_soft_prompt(model, None, False)
    names = tuple(tasks)
    units = {name: parse_components(adapter, list(sets[name])) for name in names}
    taken = {name: {unit.name for unit in found} for name, found in units.items()}
    random = np.random.default_rng(seed)
    measured, own_random = {}, {}
    for name in names:
        drawn = [random_set(adapter, units[name], taken[name], random) for _ in range(n_random)]
        every = [*units.values(), *(parse_components(adapter, one) for one in drawn)]
        labels = [*names, *(f"random {place}" for place in range(n_random))]
        measured[name] = measure_effects(
            adapter, tasks[name], every, do, metric=metric, position=position, names=labels,
            seed=seed,
        )  # fmt: skip
        own_random[name] = measured[name].total[len(names) :].mean(dim=1)
    return Trial(
        _matrix(adapter, names, units, measured, seed),
        _rows(names, units, measured, own_random, seed),
    )


def random_set(
    adapter: Any, units: Sequence[Any], taken: set[str], random: np.random.Generator
) -> list[str]:
    """As many other neurons of each layer."""
    found = []
    for layer, count in sorted(Counter(unit.layer for unit in units).items()):
        others = [
            f"L{layer}N{place}"
            for place in range(site_width(adapter, units[0].site, layer))
            if f"L{layer}N{place}" not in taken
        ]
        found += random.choice(others, count, replace=False).tolist()
    return found


def _matrix(
    adapter: Any, names: tuple[str, ...], units: Any, measured: Any, seed: int
) -> DamageMatrix:
    effect, ends = [], []
    for name in names:
        total = measured[name].total[: len(names)]
        effect.append(total.mean(dim=1))
        ends.append(cluster_interval(total, measured[name].groups, seed=seed))
    effects = torch.stack(effect, dim=1)
    spread = torch.tensor([_spread(measured[name]) for name in names], dtype=torch.float64)
    damage = -effects / spread
    overlap = overlap_of(list(units.values()), lambda kind: site_width(adapter, kind[1], kind[0]))
    p, n_relabelings = dominance_p(damage, seed=seed)
    one = measured[names[0]]
    return DamageMatrix(
        skills=names,
        n_units=tuple(len(units[name]) for name in names),
        n_examples=tuple(len(measured[name].clean) for name in names),
        n_groups=tuple(len(set(measured[name].groups)) for name in names),
        clean=tuple(float(measured[name].clean.mean()) for name in names),
        effect=effects,
        low=torch.stack([low for low, _ in ends], dim=1),
        high=torch.stack([high for _, high in ends], dim=1),
        damage=damage,
        dominance=dominance(damage),
        p=p,
        n_relabelings=n_relabelings,
        shared=overlap.shared,
        jaccard=overlap.jaccard,
        jaccard_chance=overlap.chance,
        overlap_p=overlap.p,
        metric=one.metric,
        unit=one.unit,
        do=tuple(measured[name].do for name in names),
        site=", ".join(sorted(sites_of([unit for found in units.values() for unit in found]))),
        position=one.position,
        provenance={name: measured[name].provenance for name in names},
    )


def _spread(effects: Any) -> float:
    return max(float(effects.clean.double().std(correction=0)), 1e-9)


def _rows(
    names: tuple[str, ...], units: Any, measured: Any, own_random: Any, seed: int
) -> pd.DataFrame:
    rows = []
    drawn = {name: _resampled(measured[name], len(names), seed) for name in names}
    for place, name in enumerate(names):
        effects = measured[name]
        total = effects.total[place : place + 1]
        low, high = cluster_interval(total, effects.groups, seed=seed)
        rest = [other for other in names if other != name]
        damage = {other: -drawn[other][place] / _spread(measured[other]) for other in names}
        more = damage[name] - np.mean([damage[other] for other in rest], axis=0)
        mean = float(total.mean())
        others = [
            -float(measured[other].total[place].mean()) / _spread(measured[other]) for other in rest
        ]
        ends = np.quantile(more, [0.025, 0.975])
        rows.append(
            {
                "set": name,
                "neurons": len(units[name]),
                "groups": len(set(effects.groups)),
                "effect": mean,
                "low": float(low[0]),
                "high": float(high[0]),
                "random sets": float(own_random[name].mean()),
                "p_random": float(rank_p(-total.mean(dim=1), -own_random[name])),
                "damage": -mean / _spread(effects),
                "damage elsewhere": float(np.mean(others)),
                "more": -mean / _spread(effects) - float(np.mean(others)),
                "more_low": float(ends[0]),
                "more_high": float(ends[1]),
            }
        )
    return pd.DataFrame(rows)


def _resampled(effects: Any, n_sets: int, seed: int) -> np.ndarray:
    """The mean effect of each set when the groups are drawn anew: "set draw"."""
    groups = np.unique(np.array(effects.groups), return_inverse=True)[1]
    n_groups = groups.max() + 1
    counts = np.random.default_rng([seed, n_groups]).multinomial(
        n_groups, np.full(n_groups, 1 / n_groups), size=DRAWS
    )
    size = np.bincount(groups, minlength=n_groups)
    sums = np.zeros((n_sets, n_groups))
    np.add.at(sums.T, groups, effects.total[:n_sets].double().numpy().T)
    return (sums @ counts.T) / (counts @ size)
