"""What the same edit does to other neurons: the controls of a verdict, and delta from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations.components import Component
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.baselines import Change
from lens_skills.interventions.control_neurons import (
    FEWEST_CONTROLS,
    ComponentTable,
    Controls,
    ControlSets,
    important,
    layer_controls,
    matched_sets,
)
from lens_skills.interventions.edits import Edit
from lens_skills.interventions.effects import Effects, Measure
from lens_skills.interventions.verdict import Ranks
from lens_skills.stats.effect_estimates import Classes
from lens_skills.stats.effect_tests import delta_from_controls, opposition
from lens_skills.stats.multiple_testing import false_discovery_q, rank_p

CALIBRATED = 200
"""So many other units are measured on a separate split to declare delta."""


@dataclass(frozen=True, eq=False)
class ControlEffects:
    """Effects of other single units and of random sets.

    Attributes:
        units: The single units each candidate is compared with.
        total: Their per-example effects.
        home, candidate_home: Only units of one home are compared: a layer, or all layers together.
        across: Whether it is all layers together.
        sets: The matched control sets; None where there are none.
        set_total: Their per-example effects.
        strict_effect: Mean effects of the sets drawn among important neurons.
        notes: What could not be had.
    """

    units: tuple[Component, ...]
    total: Float[Tensor, "unit example"]
    home: Int[Tensor, " unit"]
    candidate_home: Int[Tensor, " k"]
    across: bool
    sets: ControlSets | None
    set_total: Float[Tensor, "control example"]
    strict_effect: Float[Tensor, " important"]
    notes: tuple[str, ...]

    @property
    def mean(self) -> Float[Tensor, " unit"]:
        """Mean effect of each single unit."""
        return self.total.mean(dim=1)

    @property
    def set_effect(self) -> Float[Tensor, " control"]:
        """Mean effect of each matched control set."""
        return self.set_total.mean(dim=1)

    def ranks(self, effects: Effects, classes: Classes) -> Ranks:
        """Where the candidates stand among other units, and the set among its control sets."""
        k = len(self.candidate_home)
        means = effects.total.mean(dim=1)
        rank, count, p = self._ranked(means[:k].abs(), self.mean.abs())
        own, q = p.tolist(), false_discovery_q(p).tolist()
        places, counts = rank.tolist(), count.tolist()
        n_sets = len(self.set_total)
        for mean in means[k:].abs():
            p_set = float(rank_p(mean[None], self.set_effect.abs())) if n_sets else None
            own.append(p_set)
            q.append(p_set)
            places.append(1 + int((self.set_effect.abs() >= mean).sum()) if n_sets else None)
            counts.append(n_sets)
        return Ranks(places, counts, own, q, self._mixed(effects, classes))

    def _mixed(self, effects: Effects, classes: Classes) -> dict[str, list[float | None]]:
        """Per column, the q of each set's opposition; the single units are one family."""
        k = len(self.candidate_home)
        single, whole = [], []
        for members in classes.values():
            here = opposition(effects.total, members)
            single.append(self._ranked(here[:k], opposition(self.total, members))[2])
            null = opposition(self.set_total, members)
            whole.append(rank_p(here[k:], null).tolist() if len(null) else [None] * (len(here) - k))
        if not single:
            return {}
        family = torch.stack(single)
        q = false_discovery_q(family.flatten()).reshape(family.shape).tolist()
        return {column: [*row, *rest] for column, row, rest in zip(classes, q, whole, strict=True)}

    def _ranked(
        self, statistic: Float[Tensor, " k"], null: Float[Tensor, " control"]
    ) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"], Float[Tensor, " k"]]:
        """Rank, number of controls and p of each candidate among the other units of its home."""
        p = torch.ones(len(statistic), dtype=torch.float64)
        count = torch.zeros(len(statistic), dtype=torch.long)
        for code in self.candidate_home.unique():
            mine, theirs = self.candidate_home == code, self.home == code
            p[mine] = rank_p(statistic[mine], null[theirs])
            count[mine] = int(theirs.sum())
        return (p * (1 + count)).round().long(), count, p


def measure_controls(
    measure: Measure,
    change: Change,
    examples: Sequence[Example],
    candidates: Sequence[Component],
    table: ComponentTable,
    *,
    controls: Controls,
    seed: int,
) -> ControlEffects:
    """The controls of some candidates under an edit: units of their layers, and random sets.

    Sets are drawn where there are several candidates; the important neurons are the tenth of the
    single units measured here whose effect is largest, which makes the control stricter still.
    """
    places, across = layer_controls(candidates, table, n=controls.neurons, seed=seed)
    several = len(candidates) > 1
    sets = (
        matched_sets(candidates, table, n_sets=controls.sets, seed=seed)
        if several and controls.sets
        else None
    )
    units = tuple(table.units[place] for place in places.tolist())
    tried = [*((unit,) for unit in units), *(sets.sets if sets else ())]
    names = [unit.name for unit in units] + [f"control {i}" for i in range(len(tried) - len(units))]
    found = measure(examples, tried, change, names=names, part="controls").total
    strict_effect, notes = torch.zeros(0, dtype=torch.float64), []
    if several and controls.n_important:
        strength = torch.full((len(table.units),), torch.nan, dtype=torch.float64)
        strength[places] = found[: len(units)].mean(dim=1).abs().double()
        among = important(candidates, table, strength)
        try:
            strict = matched_sets(
                candidates, table, n_sets=controls.n_important, among=among, seed=seed + 1
            )
        except LensSkillsError as error:
            notes.append(f"no control among important neurons: {error}")
        else:
            labels = [f"important {i}" for i in range(len(strict.sets))]
            measured = measure(examples, strict.sets, change, names=labels, part="important")
            strict_effect = measured.total.mean(dim=1)
    codes = table.kind if across else table.stratum
    return ControlEffects(
        units=units,
        total=found[: len(units)],
        home=codes[places],
        candidate_home=codes[table.places(candidates)],
        across=across,
        sets=sets,
        set_total=found[len(units) :],
        strict_effect=strict_effect,
        notes=tuple(notes),
    )


def declare_delta(
    measure: Measure,
    controls: ControlEffects,
    do: Edit,
    calibration: Sequence[Example] | None,
    *,
    seed: int,
) -> tuple[float, str]:
    """The smallest effect that matters, and where the number is from.

    The 95th percentile of single units' |mean effect|: of up to `CALIBRATED` of the control
    neurons on a separate split, else of a random half of them on this one.

    Raises:
        LensSkillsError: Fewer than 20 units to take it from, or a percentile of 0.
    """
    n_units = len(controls.units)
    order = np.random.default_rng(seed).permutation(n_units)
    if calibration is not None:
        chosen = order[:CALIBRATED]
        units = [controls.units[place] for place in chosen]
        names, sets = [unit.name for unit in units], [(unit,) for unit in units]
        effect = measure(calibration, sets, do, names=names, part="delta").total.mean(dim=1)
        where = f"on {getattr(calibration, 'split_name', 'a separate split')}"
    else:
        chosen = order[: (n_units + 1) // 2]
        effect = controls.mean[torch.from_numpy(chosen)]
        where = "half of those compared with"
    if len(chosen) < FEWEST_CONTROLS:
        raise LensSkillsError(
            f"δ cannot be taken from {len(chosen)} other units; {FEWEST_CONTROLS} at least. "
            "Declare it in the metric's unit: delta=…"
        )
    delta = delta_from_controls(effect)
    return delta, f"95th percentile of |effect| of {len(chosen)} other units, {where}"
