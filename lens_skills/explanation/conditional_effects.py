"""What ablating neurons does where a feature is present, beside where it is absent.

`Condition`: a feature as yes or no, so that the examples fall into two parts.
`ConditionalEffects`: neurons, and sets of them, ablated beside matched ones, effects per part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.activations import Metric, Position
from lens_skills.activations.components import Component
from lens_skills.data import Example
from lens_skills.explanation.features import Feature
from lens_skills.explanation.shortcut_report import ControlledEffect
from lens_skills.interventions import Controls, Edit
from lens_skills.interventions.control_neurons import component_table, matched_sets, nearest
from lens_skills.interventions.effects import measure_effects
from lens_skills.models import ModelAdapter
from lens_skills.stats.effect_estimates import estimate
from lens_skills.stats.effect_tests import FEWEST_GROUPS, smallest_effect
from lens_skills.stats.multiple_testing import false_discovery_q, rank_p

FEWEST = 10
"""Examples, of `FEWEST_GROUPS` groups, that either part must hold for a difference between them."""


@dataclass(frozen=True)
class Condition:
    """A yes-or-no reading of a feature.

    Attributes:
        words: "an operand is 5", "b is 4.5 or more", "the last word is 'cat'".
        holds: Of one example.
    """

    words: str
    holds: Callable[[Any], bool]

    def of(self, examples: Sequence[Any]) -> Bool[Tensor, " example"]:
        """Whether it holds for each example."""
        return torch.tensor([self.holds(example) for example in examples])


def condition_of(
    feature: Feature, examples: Sequence[Any], activation: Float[Tensor, " row"]
) -> Condition:
    """The condition under which a neuron stands out.

    A flag itself; a number beyond its median, on the side where the neuron is higher; of a
    category the class whose mean activation is farthest from that of all, weighed by its size.

    >>> from lens_skills.explanation.features import Feature
    >>> number = Feature("n", "number", lambda example: example)
    >>> condition_of(number, [1, 2, 3, 4], torch.tensor([4.0, 3.0, 1.0, 1.0])).words
    'n is below 2.5'
    """
    read = feature.read
    if feature.kind == "flag":
        return Condition(feature.name, lambda example: bool(read(example)))
    values = [read(example) for example in examples]
    if feature.kind == "number":
        numbers = np.array(values, dtype=float)
        middle = float(np.median(numbers))
        if middle == numbers.min():  # more than half are the smallest value
            middle = float(np.unique(numbers)[1])
        slope = float(np.cov(numbers, activation.numpy())[0, 1])
        if slope >= 0:
            return Condition(
                f"{feature.name} is {middle:g} or more", lambda e: float(read(e) or 0) >= middle
            )
        return Condition(
            f"{feature.name} is below {middle:g}", lambda e: float(read(e) or 0) < middle
        )
    mean = float(activation.mean())

    def distance(value: Any) -> float:
        mine = activation[torch.tensor([other == value for other in values])]
        return len(mine) * (float(mine.mean()) - mean) ** 2

    chosen = max(dict.fromkeys(values), key=distance)
    name = feature.name.removesuffix(", each value")
    return Condition(f"{name} is {chosen}", lambda example: read(example) == chosen)


@dataclass(frozen=True, eq=False)
class ConditionalEffects:
    """What ablating each neuron or set, and each of its controls, does to a metric, per example.

    Attributes:
        total: Edited minus clean, one row per neuron or set.
        controls: The same of the matched controls of each.
        clean: The metric without the edit.
        groups: Of the examples.
        do, unit: The edit and the metric's unit, in words.
    """

    total: Float[Tensor, "neuron example"]
    controls: tuple[Tensor, ...]  # each Float[Tensor, "control example"]
    clean: Float[Tensor, " example"]
    groups: tuple[str, ...]
    do: str
    unit: str

    def overall(self, delta: float | None) -> list[ControlledEffect]:
        """The mean effect on all examples of each neuron; ``delta`` of None: from its controls."""
        return list(self._effects(dict.fromkeys(range(len(self.total))), delta).values())

    def differences(
        self, present: Sequence[Bool[Tensor, " example"] | None], delta: float | None
    ) -> list[ControlledEffect | None]:
        """Mean effect where a neuron's condition holds less that where not; None where few do."""
        parts = {
            neuron: part
            for neuron, part in enumerate(present)
            if part is not None and self._enough(part) and self._enough(~part)
        }
        found = self._effects(parts, delta)
        return [found.get(neuron) for neuron in range(len(present))]

    def _enough(self, part: Bool[Tensor, " example"]) -> bool:
        inside = {self.groups[place] for place in part.nonzero()[:, 0].tolist()}
        return int(part.sum()) >= FEWEST and len(inside) >= FEWEST_GROUPS

    def _effects(
        self, parts: Mapping[int, Bool[Tensor, " example"] | None], delta: float | None
    ) -> dict[int, ControlledEffect]:
        """The effect of each neuron on its part less the rest (None: on all examples)."""
        values, bars, p = [], [], []
        for neuron, part in parts.items():
            mine = influence(self.total[neuron][None], part)
            theirs = influence(self.controls[neuron], part)
            values.append(mine[0])
            p.append(rank_p(mine.mean(1).abs(), theirs.mean(1).abs()))
            bars.append(
                smallest_effect(theirs, self.groups, float(self.clean.mean()))
                if delta is None
                else delta
            )
        if not values:
            return {}
        found = estimate(torch.stack(values), self.groups)
        q = false_discovery_q(torch.cat(p))
        return {
            neuron: ControlledEffect(
                value=float(found.mean[n]),
                **{
                    end: float(getattr(found, end)[n]) for end in ("low", "high", "low90", "high90")
                },
                p=float(p[n]),
                q=float(q[n]),
                delta=bars[n],
            )
            for n, neuron in enumerate(parts)
        }


def influence(
    effects: Float[Tensor, "set example"], part: Bool[Tensor, " example"] | None
) -> Float[Tensor, "set example"]:
    """One number per example whose mean is the part's mean effect less the rest's.

    mean_1 - mean_0 + (n / n_1)(e - mean_1) on the part, and - (n / n_0)(e - mean_0) on the rest:
    the linearised difference, so that the interval of a mean over groups is that of a difference.
    Without a part: the effects.

    >>> effects = torch.tensor([[3.0, 1.0, 0.0, 0.0]])
    >>> influence(effects, torch.tensor([True, True, False, False])).mean().item()
    2.0
    """
    effects = effects.double()
    if part is None:
        return effects
    n_examples = effects.shape[1]
    total = torch.zeros_like(effects)
    difference = torch.zeros(len(effects), 1, dtype=torch.float64)
    for where, sign in ((part, 1.0), (~part, -1.0)):
        mean = effects[:, where].mean(1, keepdim=True)
        total[:, where] = sign * (n_examples / int(where.sum())) * (effects[:, where] - mean)
        difference += sign * mean
    return difference + total


def ablate_each(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    units: Sequence[Component],
    sets: Sequence[Sequence[Component]],
    *,
    do: Edit,
    apart: Sequence[Component],
    metric: Metric,
    position: Position,
    controls: Controls,
    seed: int,
) -> ConditionalEffects:
    """Every unit ablated alone and every set together, each beside its matched controls.

    A unit beside the ``controls.neurons`` others most like it (None: all of its layer), a set
    beside ``controls.sets`` random ones with as many units of the same layers; none of them holds a
    unit of ``apart``.
    """
    population = component_table(adapter, examples, apart, position=position)
    free = torch.ones(len(population.units), dtype=torch.bool)
    free[population.places(apart)] = False
    drawn = [
        [(one,) for one in some] for some in nearest(units, population, controls.neurons, free)
    ]
    drawn += [
        list(matched_sets(some, population, n_sets=controls.sets, among=free, seed=seed).sets)
        for some in sets
    ]
    own = [*((unit,) for unit in units), *map(tuple, sets)]
    others = list(dict.fromkeys(members for some in drawn for members in some))
    tried = [*own, *others]
    effects = measure_effects(
        adapter,
        examples,
        tried,
        do,
        metric=metric,
        position=position,
        names=[" ".join(unit.name for unit in members) for members in tried],
        seed=seed,
    )
    place = {members: len(own) + number for number, members in enumerate(others)}
    return ConditionalEffects(
        total=effects.total[: len(own)],
        controls=tuple(effects.total[[place[members] for members in some]] for some in drawn),
        clean=effects.clean,
        groups=effects.groups,
        do=effects.do,
        unit=effects.unit,
    )
