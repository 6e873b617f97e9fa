"""`verify`: what an edit of some neurons shows, with controls beside them, on unseen examples.

First the verb, then what it refuses before anything is measured, then the tables of a verdict:
classes, the set against the sum of its neurons, the choice of ablation, the controls.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens_skills.activations import (
    DEFAULT_SITE,
    Position,
    logit_diff,
    soft_position,
)
from lens_skills.activations.components import Component, parse_components, sites_of
from lens_skills.activations.locations import edited_positions
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.control_effects import (
    ControlEffects,
    declare_delta,
    measure_controls,
)
from lens_skills.interventions.control_neurons import (
    DEFAULT_CONTROLS,
    Controls,
    across_layers,
    component_table,
    matched_sets,
)
from lens_skills.interventions.edits import Edit, ablate
from lens_skills.interventions.effects import (
    Effects,
    clear_parts,
    effect_metric,
    measurer,
    reads_answers,
)
from lens_skills.interventions.noising_denoising import pair_rows, preservation_row
from lens_skills.interventions.verdict import ALPHA, Rows, Verdict, mean_and_ends, rule
from lens_skills.models import SoftPrompt, with_soft_prompt
from lens_skills.results import provenance, resumable
from lens_skills.scoring.leakage import check_prompt, known_to
from lens_skills.stats.effect_estimates import Classes, estimate, estimate_classes
from lens_skills.stats.effect_tests import FEW_GROUPS
from lens_skills.stats.multiple_testing import rank_p


@resumable
def verify(
    model: Any,
    examples: Sequence[Example],
    neurons: Any,
    *,
    do: Edit,
    metric: Any = None,
    at: str | None = None,
    position: Position | None = None,
    prompt: SoftPrompt | None = None,
    controls: Controls = DEFAULT_CONTROLS,
    delta: float | Sequence[Example] | None = None,
    by: Sequence[str] | None = None,
    also: Sequence[Edit] | None = None,
    unrelated: Sequence[Example] | None = None,
    pairs: bool | None = None,
    preservation: bool = False,
    removes: bool | None = None,
    n_draws: int = 2000,
    seed: int = 0,
    exploratory: bool = False,
    checkpoint: str | Path | None = None,
) -> Verdict:
    """What an intervention shows of each neuron and of all together: a `Verdict`.

    Args:
        model: A HookedTransformer or TransformerBridge.
        examples: A split that took no part in the selection, nor in training the prompt.
        neurons: A `Selection`, names such as ``"L17N635"`` or ``"L9H3"``, or (layer, index) rows.
        do: The edit, e.g. ``ablate("mean", over=explore)``.
        metric: What the edit may change; default ``logit_diff()``.
        at: The site of neurons named by hand; default the selection's, else ``mlp.hook_post``.
        position: Where in the prompt; default where the selection was scored, else ``"last"``. In
            generation with a cache, later tokens are left alone.
        prompt: A soft prompt to read every example with: the one the selection was scored with.
        controls: How many other neurons and random sets to compare with:
            ``controls(sets=200, neurons=1000)``.
        delta: The smallest effect that matters, in the metric's unit, declared beforehand; or a
            split of its own to take it from. Default: from half of the control neurons.
        by: Columns whose classes are told apart (default: labels of two to six values).
        also: Further edits for the table over the choice of ablation (default: the other ones of
            zero, mean and resample that ``do`` has the examples for).
        unrelated: Examples of another skill, which the neurons should leave alone.
        pairs: Noising and denoising with the corrupted twins (default: where all examples have
            one and the gap is clear).
        preservation: Also edit all other neurons at once and keep only the set.
        removes: Whether the edit takes the neurons' work away (default: ablation, patching,
            scaling down and steering down do; steering up does not).
        n_draws: Bootstrap draws.
        seed: Of controls, draws and random edits.
        exploratory: Allow what is otherwise refused (a split used before, another task), and mark
            the result.
        checkpoint: A folder from which an interrupted verdict goes on: finished measurements are
            read back, the one that was interrupted continues.

    Raises:
        LensSkillsError: No examples; a split already used for the selection; a selection of
            another model, site or task; a metric the task cannot give or no edit can change; no
            control set possible in a layer (which one); an effect that is not finite (whose).

    Does not show: what the neurons do at other positions, on other prompts, or for another metric.
    """
    adapter = with_soft_prompt(model, prompt)
    watched = effect_metric(logit_diff() if metric is None else metric)
    reuse = check_request(examples, neurons, do, adapter.soft, exploratory=exploratory)
    calibration, declared = (delta, None) if isinstance(delta, Sequence) else (None, delta)
    if calibration is not None:
        mine = {"example_ids": [e.id for e in examples], "groups": [e.group for e in examples]}
        reuse |= reused(calibration, mine, "delta= shares its examples: the verdict", exploratory)
    elif declared is not None and not 0 < declared < math.inf:
        raise LensSkillsError(f"δ must be a positive number in the metric's unit, not {declared}.")
    sign = removes_work(do, removes)
    where = edited_where(neurons, None if position is None else soft_position(adapter, position))
    units = parse_components(adapter, neurons, at=at or getattr(neurons, "site", DEFAULT_SITE))
    if not units:
        raise LensSkillsError("no neurons to verify: none were named.")
    table = component_table(adapter, examples, units, position=where)
    if len(units) > 1 and controls.sets:
        # Said before anything is measured: the control sets themselves are drawn later.
        matched_sets(units, table, n_sets=1, seed=seed)
    answers, sites = reads_answers(watched), sites_of(units)
    edits = other_ablations(do) if also is None else tuple(also)
    do = do.with_baseline(adapter, list(sites), position=where, answers=answers)
    everywhere = preservation or across_layers(units, table)
    layers = dict.fromkeys(sites, range(adapter.n_layers)) if everywhere else sites
    change = do.bind(adapter, examples, layers, position=where, seed=seed, answers=answers)
    folder = None if checkpoint is None else Path(checkpoint)
    measure = measurer(adapter, watched, where, seed, folder)
    sets: list[tuple[Component, ...]] = [(unit,) for unit in units]
    names = [unit.name for unit in units]
    if len(units) > 1:
        sets, names = [*sets, units], [*names, "set"]
    effects = measure(examples, sets, change, names=names, part="candidates", direct=True)
    compared = measure_controls(
        measure, change, examples, units, table, controls=controls, seed=seed
    )
    smallest, delta_from = (
        declare_delta(measure, compared, do, calibration, seed=seed)
        if declared is None
        else (declared, "declared")
    )
    classes = find_classes(examples, by)
    draws = {"n_draws": n_draws, "seed": seed}
    rulings = rule(
        effects,
        compared.ranks(effects, classes),
        delta=smallest,
        classes=classes,
        removes=sign,
        **draws,
    )
    tables = {"classes": class_rows(effects, classes, **draws)}
    if len(units) > 1:
        tables["set"] = set_rows(effects, **draws)
        tables["controls"] = control_rows(effects, compared)
        tables["match"] = () if compared.sets is None else compared.sets.match
    if edits:
        rows = list(effect_rows(effects, **draws))
        for number, edit in enumerate(edits):
            other = measure(examples, sets, edit, names=names, part=f"also {number}")
            rows += effect_rows(other, **draws)
        tables["ablations"] = tuple(rows)
    if unrelated is not None:
        other = measure(unrelated, sets, do, names=names, part="unrelated")
        tables["unrelated"] = effect_rows(other, **draws)
    notes = _notes(effects, compared, units)
    if pairs or (pairs is None and all(example.corrupted for example in examples)):
        try:
            tables["pairs"] = pair_rows(measure, examples, sets, names, **draws)
        except LensSkillsError as error:
            if pairs:
                raise
            notes.append(f"neither noised nor denoised: {error}")
    if preservation:
        row = preservation_row(measure, change, examples, units, table, **draws)
        tables["pairs"] = (*tables.get("pairs", ()), row)
    clear_parts(folder)
    return Verdict(
        rulings=rulings,
        effects=effects,
        control_neurons=tuple(unit.name for unit in compared.units),
        control_neuron_effect=compared.mean,
        control_effect=compared.set_effect,
        important_effect=compared.strict_effect,
        delta=smallest,
        delta_from=delta_from,
        tables={name: rows for name, rows in tables.items() if rows},
        notes=tuple(notes),
        removes=sign,
        exploratory=reuse,
        provenance={
            **effects.provenance,
            **provenance(examples, adapter),
            "selection": dict(getattr(neurons, "attrition", {})),
            "controls": vars(controls),
            "control_neurons": "all layers" if compared.across else "own layer",
            "n_draws": n_draws,
            "seed": seed,
        },
    )


def check_request(
    examples: Sequence[Example],
    neurons: Any,
    do: Any,
    prompt: SoftPrompt | None,
    *,
    exploratory: bool,
) -> bool:
    """Whether the result is exploratory; raises where a verdict would mean nothing.

    Raises:
        LensSkillsError: No examples; an empty selection, or one of another task; a split that took
            part in selecting, or in training the soft prompt (unless ``exploratory``); a baseline
            that knows the selected neurons only.
    """
    if len(examples) == 0:
        raise LensSkillsError(
            "no examples to intervene on: the split is empty. Loosen the filter, or split anew."
        )
    if hasattr(neurons, "neurons") and len(neurons.neurons) == 0:
        raise LensSkillsError(
            "no neurons to verify: the selection is empty. Nothing was confirmed, and that is the "
            "result; other neurons can be named by hand."
        )
    if hasattr(getattr(do, "over", None), "neurons"):
        raise LensSkillsError(
            "over= is a Selection, which knows its own neurons only; controls need every neuron's "
            "mean. Give the split, or the Scores of explore."
        )
    provenance = getattr(neurons, "provenance", None) or {}
    explored = provenance.get("explore", {}).get("task")
    task = getattr(examples, "name", None)
    elsewhere = explored is not None and task is not None and explored != task
    if elsewhere and not exploratory:
        raise LensSkillsError(
            f"the selection was made on the task {explored!r}, but the examples are of {task!r}. "
            "Give that task's intervene split, or say exploratory=True to ask what these neurons "
            "do elsewhere."
        )
    again = reused(examples, provenance, "the selection", exploratory)
    again |= check_prompt(prompt, examples, exploratory)
    return again or elsewhere or bool(getattr(neurons, "exploratory", False))


def reused(
    examples: Sequence[Example], provenance: Any, what: str, exploratory: bool = False
) -> bool:
    """Whether examples or groups took part before; raises unless ``exploratory``."""
    known = known_to(examples, provenance)
    if known and not exploratory:
        raise LensSkillsError(
            f"{what} was made with {known} of this split, so a verdict on it would repeat the "
            "search. Use a split of its own (task.split(…)), or say exploratory=True to mark the "
            "result."
        )
    return bool(known)


def removes_work(do: Any, removes: bool | None) -> bool:
    """Whether the edit takes away what the neurons do: the sign of a word depends on it.

    Raises:
        LensSkillsError: Clamping, which may do either: it must be said.
    """
    if removes is not None:
        return removes
    kind, amount = getattr(do, "kind", None), getattr(do, "amount", 0.0)
    if kind == "clamp":
        raise LensSkillsError(
            "clamping may add to a neuron's work or take it away, so no word can be chosen. Say "
            "removes=True or removes=False."
        )
    if kind == "steer":
        return amount < 0
    return not (kind == "scale" and amount > 1)


def edited_where(neurons: Any, position: Position | None) -> Position:
    """The position to edit: the one asked for, else where the selection was scored, else last.

    Raises:
        LensSkillsError: The selection was scored at a span, whose text its label does not hold,
            or at a pooled position, which cannot be edited.
    """
    if position is None:
        labels = list(getattr(neurons, "positions", ()) or ["last"])
        if any(label.startswith("span(") for label in labels):
            raise LensSkillsError(
                f"the selection was scored at {', '.join(labels)}. Say position=span(…) again: "
                "where a piece of text lies is not saved with it."
            )
        position = labels[0] if len(labels) == 1 else labels
    edited_positions(position)
    return position


def _notes(effects: Effects, compared: ControlEffects, units: Sequence[Component]) -> list[str]:
    notes = list(compared.notes)
    n_groups = len(set(effects.groups))
    if n_groups < FEW_GROUPS:
        notes.append(
            f"{n_groups} groups only: below {FEW_GROUPS}, intervals cover less than they say"
        )
    if compared.across:
        notes.append("neurons are compared with those of all layers: their own has too few")
    fewest = min(int((compared.home == code).sum()) for code in compared.candidate_home)
    # Benjamini–Hochberg lets j of k neurons pass at the smallest p where it is <= 0.05 j / k.
    needed = math.ceil(len(units) / (ALPHA * (1 + fewest)) - 1e-9)
    if needed > len(units):
        notes.append(f"{fewest} units to compare with cannot give q <= {ALPHA}: no causal word")
    elif needed > 1:
        notes.append(
            f"with {fewest} units to compare with, p is at least {1 / (1 + fewest):.2g}: fewer "
            f"than {needed} of {len(units)} neurons cannot pass together"
        )
    unmatchable = compared.sets.unmatchable if compared.sets else ()
    if unmatchable:
        notes.append(
            f"nothing matches {', '.join(unmatchable[:5])}"
            f"{' and others' if len(unmatchable) > 5 else ''}, which write nothing or never fire"
        )
    if effects.direct is None:
        notes.append(
            "direct effects are not known here: a neuron without effect may be made up for"
        )
    return notes


MOST_CLASSES = 6


def find_classes(examples: Sequence[Example], by: Sequence[str] | None) -> Classes:
    """Which examples belong to which value of each column.

    By default every label with two to six values, two groups of examples in each.

    Raises:
        LensSkillsError: A column that was named and that not all examples have, or that has a
            single value.
    """
    columns = (
        sorted({name for example in examples for name in example.labels}) if by is None else by
    )
    found: dict[str, dict[str, Tensor]] = {}
    for column in columns:
        values = [example.column(column) for example in examples]
        names = sorted({str(value) for value in values if value is not None})
        members = {name: torch.tensor([str(value) == name for value in values]) for name in names}
        if by is not None and (None in values or len(names) < 2):
            raise LensSkillsError(
                f"the examples cannot be told apart by {column!r}: "
                + ("some have none." if None in values else f"all are {', '.join(names)}.")
            )
        groups = [
            len({examples[int(place)].group for place in mask.nonzero()})
            for mask in members.values()
        ]
        if by is not None or (
            None not in values and 2 <= len(names) <= MOST_CLASSES and min(groups) >= 2
        ):
            found[column] = members
    return found


def class_rows(effects: Effects, classes: Classes, **draws: int) -> Rows:
    """Effect of every set in every class: name column value n effect low high."""
    found = estimate_classes(effects.total, effects.groups, classes, **draws)
    return tuple(
        {"name": name, "column": column, "value": value, "n": int(classes[column][value].sum())}
        | mean_and_ends(part, place)
        for column, members in found.items()
        for value, part in members.items()
        for place, name in enumerate(effects.names)
    )


def set_rows(effects: Effects, **draws: int) -> Rows:
    """The set, the sum of its neurons each alone, and their difference: name effect low high.

    A difference of the set's own sign says that the neurons back each other up.
    """
    together, alone = effects.total[-1], effects.total[:-1].sum(dim=0)
    numbers = torch.stack([together, alone, together - alone])
    found = estimate(numbers, effects.groups, **draws)
    names = ("set", "sum of singles", "set - sum of singles")
    return tuple({"name": name} | mean_and_ends(found, place) for place, name in enumerate(names))


def effect_rows(effects: Effects, **draws: int) -> Rows:
    """One row per set: name do n effect low high."""
    found = estimate(effects.total, effects.groups, **draws)
    return tuple(
        {"name": name, "do": effects.do, "n": len(effects.clean)} | mean_and_ends(found, place)
        for place, name in enumerate(effects.names)
    )


def control_rows(effects: Effects, compared: ControlEffects) -> Rows:
    """The set among each kind of control: kind controls mean low high p.

    ``low`` and ``high`` are the 5th and 95th percentile of the controls.
    """
    observed = effects.total[-1:].mean(dim=1).abs()
    kinds = {"matched": compared.set_effect, "important": compared.strict_effect}
    return tuple(
        {
            "kind": kind,
            "controls": len(found),
            "mean": float(found.mean()),
            "low": float(found.double().quantile(0.05)),
            "high": float(found.double().quantile(0.95)),
            "p": float(rank_p(observed, found.abs())),
        }
        for kind, found in kinds.items()
        if len(found)
    )


def other_ablations(do: Edit) -> tuple[Edit, ...]:
    """The other ways to ablate that need no more than ``do`` has: zero, mean, resample.

    >>> [edit.name for edit in other_ablations(ablate("mean"))]
    ['zero ablation']
    """
    if do.kind not in ("zero", "mean", "resample"):
        return ()
    edits = [ablate("zero")]
    if do.over is not None:
        edits.append(ablate("mean", over=do.over))
        if not hasattr(do.over, "provenance"):  # results hold means, but no donors
            edits.append(ablate("resample", over=do.over))
    return tuple(edit for edit in edits if edit.kind != do.kind)
