"""`Knockout`: neurons removed one by one beside matched ones, on two parts of the examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.activations import Metric, Position
from lens_skills.causal import Edit, Unit
from lens_skills.causal.bench import Bench
from lens_skills.causal.estimates import estimate
from lens_skills.causal.population import Population, survey
from lens_skills.example import Example
from lens_skills.explanation.shortcut import Effect
from lens_skills.models import Lens
from lens_skills.stats.corrections import false_discovery_q, rank_p

FEW = 10
"""Fewer examples than this on a side are no side."""


@dataclass(frozen=True, eq=False)
class Knockout:
    """What removing each neuron, and each of its controls, does to a metric, per example.

    Attributes:
        clean: The metric without any edit.
        total: Edited minus clean, one row per neuron.
        controls: The same of each neuron's matched controls.
        groups: Of the examples.
        do, unit: The edit and the metric's unit, in words.
    """

    clean: Float[Tensor, " example"]
    total: Float[Tensor, "neuron example"]
    controls: tuple[Tensor, ...]  # each Float[Tensor, "control example"]
    groups: tuple[str, ...]
    do: str
    unit: str

    def overall(self, delta: float | None) -> list[Effect]:
        """The mean effect on all examples of each neuron."""
        everywhere = torch.ones(len(self.groups), dtype=torch.bool)
        return self._effects([(everywhere, None)] * len(self.total), delta)

    def differences(
        self, parts: Sequence[Bool[Tensor, " example"] | None], delta: float | None
    ) -> list[Effect | None]:
        """Mean effect on a neuron's own part less that on the rest; None where a side is small."""
        which = [n for n, part in enumerate(parts) if part is not None and _two_sided(part)]
        sides = []
        for number in which:
            part = parts[number]
            assert part is not None
            sides.append((part, ~part))
        found = iter(self._effects(sides, delta, which))
        return [next(found) if number in which else None for number in range(len(parts))]

    def _effects(
        self,
        sides: Sequence[tuple[Tensor, Tensor | None]],
        delta: float | None,
        which: Sequence[int] | None = None,
    ) -> list[Effect]:
        which = range(len(self.total)) if which is None else which
        values, null, p = [], [], []
        for number, (part, rest) in zip(which, sides, strict=True):
            mine = influence(self.total[number][None], part, rest)
            theirs = influence(self.controls[number], part, rest).mean(1).abs()
            values.append(mine[0])
            null.append(theirs)
            p.append(rank_p(mine.mean(1).abs(), theirs))
        if not values:
            return []
        if delta is None:
            delta = float(torch.cat(null).quantile(0.95))
        found = estimate(torch.stack(values), self.groups)
        q = false_discovery_q(torch.cat(p))
        return [
            Effect(
                value=float(found.mean[n]),
                low=float(found.low[n]),
                high=float(found.high[n]),
                low90=float(found.low90[n]),
                high90=float(found.high90[n]),
                p=float(p[n]),
                q=float(q[n]),
                delta=delta,
            )
            for n in range(len(values))
        ]


def influence(
    effects: Float[Tensor, "set example"],
    part: Bool[Tensor, " example"],
    rest: Bool[Tensor, " example"] | None,
) -> Float[Tensor, "set example"]:
    """One number per example whose mean is the part's mean effect less the rest's.

    mean_1 - mean_0 + (n / n_1)(e - mean_1) on the part, and - (n / n_0)(e - mean_0) on the rest:
    the linearised difference, so that the interval of a mean over groups is that of a difference.

    >>> effects = torch.tensor([[3.0, 1.0, 0.0, 0.0]])
    >>> part = torch.tensor([True, True, False, False])
    >>> influence(effects, part, ~part).mean().item()
    2.0
    """
    effects = effects.double()
    if rest is None:
        return effects
    n_examples = effects.shape[1]
    total = torch.zeros_like(effects)
    difference = torch.zeros(len(effects), 1, dtype=torch.float64)
    for side, sign in ((part, 1.0), (rest, -1.0)):
        mean = effects[:, side].mean(1, keepdim=True)
        total[:, side] = sign * (n_examples / int(side.sum())) * (effects[:, side] - mean)
        difference += sign * mean
    return difference + total


def knock_out(
    lens: Lens,
    examples: Sequence[Example],
    units: Sequence[Unit],
    do: Edit,
    *,
    metric: Metric,
    position: Position,
    n_controls: int,
    seed: int,
    **options: Any,
) -> Knockout:
    """Every unit removed alone, and beside it the ``n_controls`` others that are most like it."""
    bench = Bench(lens, metric, position, seed, None, options)
    population = survey(
        lens, examples, units, position=position, batch_size=options.get("batch_size", 32)
    )
    drawn = nearest(units, population, n_controls)
    others = list(dict.fromkeys(unit for some in drawn for unit in some))
    tried = [*units, *others]
    effects = bench.measure(
        examples, [(unit,) for unit in tried], do, names=[u.name for u in tried], part="knock-out"
    )
    place = {unit: len(units) + number for number, unit in enumerate(others)}
    return Knockout(
        clean=effects.clean,
        total=effects.total[: len(units)],
        controls=tuple(effects.total[[place[unit] for unit in some]] for some in drawn),
        groups=effects.groups,
        do=effects.do,
        unit=effects.unit,
    )


def nearest(units: Sequence[Unit], population: Population, n_controls: int) -> list[list[Unit]]:
    """For each unit those most like it in mean |a|, std and ‖W_out‖, none of them on trial.

    Of its layer, or of all layers where its own has fewer than ``n_controls`` others.
    """
    places = population.places(units)
    free = torch.ones(len(population.units), dtype=torch.bool)
    free[places] = False
    found = []
    for place in places.tolist():
        pool = free & (population.stratum == population.stratum[place])
        if int(pool.sum()) < n_controls:
            pool = free & (population.kind == population.kind[place])
        others = pool.nonzero()[:, 0]
        far = (population.scaled[others] - population.scaled[place]).square().sum(1)
        chosen = others[far.argsort(stable=True)[:n_controls]]
        found.append([population.units[other] for other in chosen.tolist()])
    return found


def _two_sided(part: Bool[Tensor, " example"]) -> bool:
    return min(int(part.sum()), int((~part).sum())) >= FEW
