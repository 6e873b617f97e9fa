"""A trial of sets of neurons: each edited on its own task and on the others, beside random sets."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from lens_skills.activations import Metric
from lens_skills.activations.components import parse_components, site_width
from lens_skills.data import Example
from lens_skills.interventions import DamageMatrix
from lens_skills.interventions.damage_matrix import damage_of, spread_of
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
    own = [
        replace(measured[name], names=names, total=measured[name].total[: len(names)])
        for name in names
    ]
    return Trial(
        damage_of(adapter, names, list(units.values()), own, seed=seed),
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
        damage = {
            other: -drawn[other][place] / spread_of(other, measured[other]) for other in names
        }
        more = damage[name] - np.mean([damage[other] for other in rest], axis=0)
        mean = float(total.mean())
        others = [
            -float(measured[other].total[place].mean()) / spread_of(other, measured[other])
            for other in rest
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
                "damage": -mean / spread_of(name, effects),
                "damage elsewhere": float(np.mean(others)),
                "more": -mean / spread_of(name, effects) - float(np.mean(others)),
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
