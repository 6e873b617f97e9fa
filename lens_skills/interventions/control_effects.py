"""What the same edit does to other neurons: the controls of a verdict, and δ from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations.components import Component
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError, RunError
from lens_skills.interventions.baselines import Change
from lens_skills.interventions.control_neurons import (
    FEWEST_CONTROLS,
    ComponentTable,
    Controls,
    ControlSets,
    drawn_units,
    homes,
    important,
    matched_sets,
)
from lens_skills.interventions.edits import Edit
from lens_skills.interventions.effects import Effects, Measure
from lens_skills.interventions.verdict import Ranks
from lens_skills.stats.effect_estimates import Classes, estimate
from lens_skills.stats.effect_tests import (
    SMALLEST_SHARE,
    cluster_error,
    opposition,
    resolvable_delta,
    smallest_effect,
)
from lens_skills.stats.multiple_testing import false_discovery_q, rank_p
from lens_skills.stats.size_adjustment import beyond_expected

CALIBRATED = 200
"""So many units per layer are measured on a separate split to declare δ."""
PILOT = 16
"""So many units say, before all others are measured, what δ the examples can resolve."""


@dataclass(frozen=True, eq=False)
class ControlEffects:
    """Effects of other single units and of random sets.

    Attributes:
        candidates: The units on trial.
        candidate_total: Their per-example effects.
        units: The single units each candidate is compared with.
        total: Their per-example effects.
        home, candidate_home: Only units of one home are compared; see
            `lens_skills.interventions.control_neurons.homes`.
        drawn: Which candidates are among the units drawn for their home: δ is from all drawn.
        scaled, candidate_scaled: The features that effects go with (mean |a|, std, ‖W_out‖).
        across: Whether all homes are of all layers.
        sets: The matched control sets; None where there are none.
        set_total: Their per-example effects.
        strict_effect: Mean effects of the sets drawn among important neurons.
        groups: Of the examples.
        notes: What could not be had.
    """

    candidates: tuple[Component, ...]
    candidate_total: Float[Tensor, "k example"]
    units: tuple[Component, ...]
    total: Float[Tensor, "unit example"]
    home: Int[Tensor, " unit"]
    candidate_home: Int[Tensor, " k"]
    drawn: Bool[Tensor, " k"]
    scaled: Float[Tensor, "unit feature"]
    candidate_scaled: Float[Tensor, "k feature"]
    across: bool
    sets: ControlSets | None
    set_total: Float[Tensor, "control example"]
    strict_effect: Float[Tensor, " important"]
    groups: tuple[str, ...]
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
        p_alike = self._beyond_size(means[:k].abs())
        own, q = p.tolist(), false_discovery_q(p).tolist()
        places, counts = rank.tolist(), count.tolist()
        n_sets = len(self.set_total)
        for mean in means[k:].abs():
            p_set = float(rank_p(mean[None], self.set_effect.abs())) if n_sets else None
            own.append(p_set)
            q.append(p_set)
            places.append(1 + int((self.set_effect.abs() >= mean).sum()) if n_sets else None)
            counts.append(n_sets)
        nothing = [None] * (len(means) - k)
        return Ranks(
            places,
            counts,
            own,
            q,
            self._mixed(effects, classes),
            [*p_alike.tolist(), *nothing],
            [*false_discovery_q(p_alike).tolist(), *nothing],
        )

    def _beyond_size(self, strength: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """p of each candidate's |effect| over what its size leads to expect, in its home."""
        p = torch.ones(len(strength), dtype=torch.float64)
        others = self.mean.abs()
        for code in self.candidate_home.unique():
            mine, theirs = self.candidate_home == code, self.home == code
            if not theirs.any():
                continue
            own, null = beyond_expected(
                strength[mine], self.candidate_scaled[mine], others[theirs], self.scaled[theirs]
            )
            # Ratios, so that ties of a rounding's size count as ties.
            p[mine] = rank_p(own.clamp(max=700).exp(), null.clamp(max=700).exp())
        return p

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


def pilot_effects(
    measure: Measure,
    change: Change,
    examples: Sequence[Example],
    candidates: Sequence[Component],
    table: ComponentTable,
    *,
    controls: Controls,
    seed: int,
) -> Effects:
    """The effects of `PILOT` of the units drawn, which cost next to nothing."""
    places = drawn_units(candidates, table, n=controls.neurons, seed=seed)
    some = places[torch.linspace(0, len(places) - 1, min(PILOT, len(places))).long()]
    units = [table.units[place] for place in some.tolist()]
    names, sets = [unit.name for unit in units], [(unit,) for unit in units]
    return measure(examples, sets, change, names=names)


def resolvable(effects: Effects) -> float:
    """The smallest δ within which *no effect* could be found of neurons that have none.

    Of a metric that is 0 or 1: 1 - 0.05^(1/G), what may still happen though it was seen in none of
    G groups. Of others: from the median standard error of the effects; see `resolvable_delta`.
    """
    if effects.of_shares:
        return 1 - 0.05 ** (1 / len(set(effects.groups)))
    return resolvable_delta(cluster_error(effects.total, effects.groups))


def measure_controls(
    measure: Measure,
    change: Change,
    examples: Sequence[Example],
    candidates: Sequence[Component],
    table: ComponentTable,
    effects: Effects,
    *,
    controls: Controls,
    seed: int,
) -> ControlEffects:
    """The controls of some candidates under an edit: units of their layers, and random sets.

    ``effects`` are the candidates' own, first of all. Sets are drawn where there are several
    candidates; the important neurons are the tenth of the single units measured here whose effect
    is largest, which makes the control stricter still.
    """
    drawn, tried = (
        drawn_units(candidates, table, n=controls.neurons, seed=seed),
        table.places(candidates),
    )
    places = drawn[~torch.isin(drawn, tried)]
    several = len(candidates) > 1
    sets = (
        matched_sets(candidates, table, n_sets=controls.sets, seed=seed)
        if several and controls.sets
        else None
    )
    units = tuple(table.units[place] for place in places.tolist())
    measured = [*((unit,) for unit in units), *(sets.sets if sets else ())]
    n_sets = len(measured) - len(units)
    names = [unit.name for unit in units] + [f"control {i}" for i in range(n_sets)]
    found = measure(examples, measured, change, names=names).total
    strict_effect, notes = torch.zeros(0, dtype=torch.float64), []
    if several and controls.n_important:
        strength = torch.full((len(table.units),), torch.nan, dtype=torch.float64)
        strength[places] = found[: len(units)].mean(dim=1).abs().double()
        among = important(candidates, table, strength)
        try:
            strict = matched_sets(
                candidates, table, n_sets=controls.n_important, among=among, seed=seed + 1
            )
        except RunError:
            raise
        except LensSkillsError as error:
            notes.append(f"no control among important neurons: {error}")
        else:
            labels = [f"important {i}" for i in range(len(strict.sets))]
            important_sets = measure(examples, strict.sets, change, names=labels)
            strict_effect = important_sets.total.mean(dim=1)
    codes = homes(table)
    return ControlEffects(
        candidates=tuple(candidates),
        candidate_total=effects.total[: len(candidates)],
        units=units,
        total=found[: len(units)],
        home=codes[places],
        candidate_home=codes[tried],
        drawn=torch.isin(tried, drawn),
        scaled=table.scaled[places],
        candidate_scaled=table.scaled[tried],
        across=bool((codes[tried] < 0).all()),
        sets=sets,
        set_total=found[len(units) :],
        strict_effect=strict_effect,
        groups=effects.groups,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class Deltas:
    """The smallest effect that matters for each candidate, in the metric's unit, and its source."""

    values: tuple[float, ...]
    source: str


def declare_delta(
    measure: Measure,
    controls: ControlEffects,
    do: Edit,
    calibration: Sequence[Example] | None,
    *,
    scale: float,
) -> Deltas:
    """δ of each candidate: what others of its layer reach, at least 1 % of the clean metric.

    The larger of the two: the 95th percentile of the |mean effect| of the units drawn for the
    candidate's layer, candidates among them, without what sampling adds to it (see
    `delta_from_controls`); and 1 % of ``scale``, the clean metric or the gap to the corrupted
    prompts. It is the same whatever else is on trial. With a calibration split the percentile is
    that of up to `CALIBRATED` of the units per layer there.

    Raises:
        LensSkillsError: Fewer than 20 units to take it from, or 0 without a floor.
    """
    units = [*controls.units, *controls.candidates]
    codes = torch.cat([controls.home, controls.candidate_home])
    counted = torch.cat([torch.ones(len(controls.units), dtype=torch.bool), controls.drawn])
    total, groups = torch.cat([controls.total, controls.candidate_total]), controls.groups
    where = ""
    chosen = {
        code: (counted & (codes == code)).nonzero()[:, 0].tolist()
        for code in controls.candidate_home.unique().tolist()
    }
    if calibration is not None:
        chosen = {
            code: sorted(places, key=lambda at: units[at].name)[:CALIBRATED]
            for code, places in chosen.items()
        }
        flat = [place for places in chosen.values() for place in places]
        names, sets = [units[at].name for at in flat], [(units[at],) for at in flat]
        measured = measure(calibration, sets, do, names=names)
        index = {place: row for row, place in enumerate(flat)}
        chosen = {code: [index[at] for at in places] for code, places in chosen.items()}
        total, groups = measured.total, measured.groups
        where = f" on {getattr(calibration, 'split_name', 'a separate split')}"
    found: dict[int, float] = {}
    for code, places in chosen.items():
        if len(places) < FEWEST_CONTROLS:
            raise LensSkillsError(
                f"δ cannot be taken from {len(places)} other units; {FEWEST_CONTROLS} at least. "
                "Declare it in the metric's unit: delta=…"
            )
        found[code] = smallest_effect(total[places], groups, scale)
    values = tuple(found[code] for code in controls.candidate_home.tolist())
    floored = scale > 0 and min(values) <= SMALLEST_SHARE * scale * (1 + 1e-9)
    source = (
        "1 % of the clean metric"
        if floored and max(values) == min(values)
        else (
            f"95th percentile of |effect| in the layer{where}, at least 1 % of the clean metric"
            if scale > 0
            else f"95th percentile of |effect| in the layer{where}"
        )
    )
    return Deltas(values, source)


def clean_scale(
    effects: Effects, gap: Callable[[], Float[Tensor, " example"] | None] = lambda: None
) -> float:
    """What effects are a share of: |clean mean|, where its 95 % interval leaves 0 out, else |gap|.

    0 where neither is told from 0: then effects have no share. ``gap`` is asked for only where the
    clean mean does not serve.
    """
    for values in (lambda: effects.clean, gap):
        numbers = values()
        if numbers is None:
            continue
        found = estimate(numbers[None].double(), effects.groups)
        if float(found.low[0]) > 0 or float(found.high[0]) < 0:
            return abs(float(found.mean[0]))
    return 0.0
