"""`verify`: what an edit of some neurons shows, with controls beside them, on unseen examples.

First the verb, then what it refuses and says before anything is measured, then its notes.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lens_skills.activations import (
    DEFAULT_SITE,
    Position,
    logit_diff,
    soft_position,
)
from lens_skills.activations.components import Component, parse_components, sites_of
from lens_skills.activations.locations import edited_positions
from lens_skills.checkpoints import resumable
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError, RunError
from lens_skills.interventions.control_effects import (
    ControlEffects,
    Deltas,
    clean_scale,
    declare_delta,
    measure_controls,
    pilot_effects,
    resolvable,
)
from lens_skills.interventions.control_neurons import (
    BALANCED,
    DEFAULT_CONTROLS,
    Controls,
    across_layers,
    component_table,
    matched_sets,
)
from lens_skills.interventions.edits import Edit, ablate
from lens_skills.interventions.effects import (
    Effects,
    effect_metric,
    measure_effects,
    measurer,
    reads_answers,
)
from lens_skills.interventions.neutral_words import NEXT_WORD, last_words
from lens_skills.interventions.noising_denoising import corrupted_gap, pair_rows, preservation_row
from lens_skills.interventions.verdict import ALPHA, Verdict, rule, with_ablations
from lens_skills.interventions.verdict_tables import (
    class_rows,
    control_rows,
    effect_rows,
    find_classes,
    set_rows,
)
from lens_skills.models import Chat, ModelAdapter, SoftPrompt, with_soft_prompt
from lens_skills.models.precision import refuse_reduced
from lens_skills.results import provenance
from lens_skills.scoring.leakage import check_prompt, known_to
from lens_skills.stats.effect_tests import FEW_GROUPS, check_groups, effective_groups


@resumable()
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
    chat: Chat = False,
    controls: Controls = DEFAULT_CONTROLS,
    delta: float | Sequence[Example] | None = None,
    by: Sequence[str] | None = None,
    also: Sequence[Edit] | None = None,
    unrelated: Sequence[Example] | bool = True,
    pairs: bool | Literal["and preservation"] | None = None,
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
        neurons: A `Selection` (its strongest 20; ``selection.to_try(40)`` takes more), names such
            as ``"L17N635"`` or ``"L9H3"``, or (layer, index) rows.
        do: The edit, e.g. ``ablate("mean", over=explore)``.
        metric: What the edit may change; default ``logit_diff()``.
        at: The site of (layer, index) rows (default ``mlp.hook_post``); names say their own.
        position: Where in the prompt; default where the selection was scored, else ``"last"``. In
            generation with a cache, later tokens are left alone.
        prompt: A soft prompt to read every example with: the one the selection was scored with.
        chat: As in `score`; a selection wants the chat it was scored in. Neutral sentences are
            read as plain text all the same.
        controls: How many other neurons and random sets to compare with:
            ``controls(sets=200, neurons=400)``.
        delta: The smallest effect that matters, in the metric's unit, declared beforehand and used
            as it is; or a split of its own to take it from. Default, per layer: 1 % of the clean
            metric, or what 95 % of other neurons stay below (without sampling noise), if more.
        by: Columns whose classes are told apart (default: labels of two to six values with 8
            groups each).
        also: Further edits for the table over the choice of ablation (default: the other ones of
            zero, mean and resample that ``do`` has the examples for).
        unrelated: Examples of another skill, which the neurons should leave alone. By default
            sixty neutral sentences, of which the log-probability of the last word is watched
            (where the position is the last and the edit needs no corrupted twin); False for none.
        pairs: Noising and denoising with the corrupted twins (default: where all examples have
            one and the gap is clear). ``"and preservation"``: these (where all have a twin), and
            all other neurons are edited at once, so that only the set is kept.
        removes: Whether the edit takes the neurons' work away (default: ablation, patching,
            scaling down and steering down do; steering up does not).
        n_draws: Bootstrap draws.
        seed: Of controls, draws and random edits.
        exploratory: Allow what is otherwise refused (a split used before, another task), and mark
            the result.
        checkpoint: A folder from which an interrupted verdict goes on: finished measurements are
            read back, the one that was interrupted continues.

    Raises:
        LensSkillsError: No examples, or of fewer than 8 groups; a split already used for the
            selection; a selection of another model, site or task; a metric the task cannot give or
            no edit can change; no control set possible in a layer (which one); an effect that is
            not finite (whose).

    A declared δ that the examples cannot resolve is said before most is measured, as a warning
    and on the card.

    Source: random neurons of the same layers as controls, Wang et al. 2022 (arXiv 2211.07349);
    equivalence, Schuirmann 1987; patching both ways, Zhang & Nanda 2023 (arXiv 2309.16042);
    self-repair, McGrath et al. 2023 (arXiv 2307.15771).
    Does not show: what the neurons do at other positions, on other prompts, or for another metric.
    """
    neurons = neurons.to_try() if hasattr(neurons, "to_try") else neurons
    adapter = with_soft_prompt(model, prompt, chat)
    refuse_reduced(adapter, "verify")
    watched = effect_metric(logit_diff() if metric is None else metric)
    reuse = check_request(examples, neurons, do, adapter.soft, exploratory=exploratory)
    check_groups(
        [example.group for example in examples],
        "a verdict",
        instead="`sweep` measures effects without a verdict.",
    )
    calibration, declared = (delta, None) if isinstance(delta, Sequence) else (None, delta)
    if calibration is not None:
        mine = {"example_ids": [e.id for e in examples], "groups": [e.group for e in examples]}
        reuse |= reused(calibration, mine, "delta= shares its examples: the verdict", exploratory)
    elif declared is not None and not 0 < declared < math.inf:
        raise LensSkillsError(f"δ must be a positive number in the metric's unit, not {declared}.")
    sign = removes_work(do, removes)
    where = edited_where(neurons, None if position is None else soft_position(adapter, position))
    units = parse_components(adapter, neurons, at=at or DEFAULT_SITE)
    if not units:
        raise LensSkillsError("no neurons to verify: none were named.")
    table = component_table(adapter, examples, units, position=where)
    if len(units) > 1 and controls.sets:
        # Said before anything is measured: the control sets themselves are drawn later.
        matched_sets(units, table, n_sets=1, seed=seed)
    answers, sites = reads_answers(watched), sites_of(units)
    edits = other_ablations(do) if also is None else tuple(also)
    do = do.with_baseline(adapter, list(sites), position=where, answers=answers)
    preservation = pairs == "and preservation"
    everywhere = preservation or across_layers(units, table)
    layers = {site: adapter.layers_with(site) for site in sites} if everywhere else sites
    change = do.bind(adapter, examples, layers, position=where, seed=seed, answers=answers)
    measure = measurer(adapter, watched, where, seed)
    sets: list[tuple[Component, ...]] = [(unit,) for unit in units]
    names = [unit.name for unit in units]
    if len(units) > 1:
        sets, names = [*sets, units], [*names, "set"]
    notes = []
    if declared is not None:
        # Said before all the rest is measured.
        notes += _unresolved(
            pilot_effects(measure, change, examples, units, table, controls=controls, seed=seed),
            declared,
        )
    effects = measure(examples, sets, change, names=names, direct=True)
    compared = measure_controls(
        measure, change, examples, units, table, effects, controls=controls, seed=seed
    )
    scale = clean_scale(effects, lambda: corrupted_gap(measure, examples, effects.clean))
    deltas = (
        declare_delta(measure, compared, do, calibration, scale=scale)
        if declared is None
        else Deltas((declared,) * len(units), "declared")
    )
    smallest = [*deltas.values, *([max(deltas.values)] if len(units) > 1 else [])]
    classes = find_classes(examples, by)
    draws = {"n_draws": n_draws, "seed": seed}
    rulings = rule(
        effects,
        compared.ranks(effects, classes),
        delta=smallest,
        classes=classes,
        removes=sign,
        last=[all(writes_last(unit, adapter.n_layers) for unit in one) for one in sets],
        scale=scale,
        **draws,
    )
    tables = {"classes": class_rows(effects, classes, **draws)}
    if len(units) > 1:
        tables["set"] = set_rows(effects, **draws)
        tables["controls"] = control_rows(effects, compared)
        tables["match"] = () if compared.sets is None else compared.sets.match
    if edits:
        rows = list(effect_rows(effects, **draws))
        for edit in edits:
            other = measure(examples, sets, edit, names=names)
            rows += effect_rows(other, **draws)
        tables["ablations"] = tuple(rows)
        rulings = with_ablations(rulings, rows)
    if unrelated is True and where == "last" and do.kind != "patch":
        other = text_effects(adapter, sets, do, names=names, seed=seed)
        tables["unrelated"] = tuple(
            row | {"where": "neutral text (nats of the last word)"}
            for row in effect_rows(other, **draws)
        )
    elif not isinstance(unrelated, bool):
        other = measure(unrelated, sets, do, names=names)
        tables["unrelated"] = effect_rows(other, **draws)
    notes += _notes(effects, compared, units)
    paired = all(example.corrupted for example in examples)
    if pairs is True or (pairs is not False and paired):
        try:
            tables["pairs"] = pair_rows(measure, examples, sets, names, **draws)
        except RunError:
            raise
        except LensSkillsError as error:
            if pairs is True:
                raise
            notes.append(f"neither noised nor denoised: {error}")
    if preservation:
        row = preservation_row(measure, change, examples, units, table, **draws)
        tables["pairs"] = (*tables.get("pairs", ()), row)
    return Verdict(
        rulings=rulings,
        effects=effects,
        control_neurons=tuple(unit.name for unit in compared.units),
        control_neuron_effect=compared.mean,
        control_effect=compared.set_effect,
        important_effect=compared.strict_effect,
        delta=max(smallest),
        delta_from=deltas.source,
        scale=scale,
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


def writes_last(unit: Component, n_layers: int) -> bool:
    """Whether nothing but the final norm comes after what a unit writes: the last block's MLP.

    >>> writes_last(Component("L3N1", 3, "mlp.hook_post", 1, 2), 4)
    True
    """
    return unit.layer == n_layers - 1 and "mlp" in unit.site


def text_effects(
    adapter: ModelAdapter,
    sets: Sequence[tuple[Component, ...]],
    do: Any,
    *,
    names: Sequence[str],
    seed: int,
) -> Effects:
    """What the edit does to the log-probability of the last word of the project's neutral texts."""
    texts = last_words()
    # The texts are plain also where the examples are not, whose means and donors stay theirs.
    sites = sites_of([unit for units in sets for unit in units])
    change = do.bind(adapter, texts, sites, position="last", seed=seed, answers=True)
    return measure_effects(
        adapter.in_chat(False),
        texts,
        sets,
        change,
        metric=NEXT_WORD,
        position="last",
        names=names,
        seed=seed,
    )


def _unresolved(pilot: Effects, declared: float) -> list[str]:
    """The note on a δ below what the examples can resolve; also as a warning."""
    smallest = resolvable(pilot)
    if declared >= smallest:
        return []
    n_groups = len(set(pilot.groups))
    text = (
        f"δ = {declared:.2g} is below what {len(pilot.clean):,} examples in {n_groups} groups can "
        f"resolve: even of neurons without any effect most will be undecided; {smallest:.2g} could "
        "be resolved"
    )
    warnings.warn(text, RuntimeWarning, stacklevel=3)
    return [text]


def _notes(effects: Effects, compared: ControlEffects, units: Sequence[Component]) -> list[str]:
    notes = list(compared.notes)
    n_groups, worth = len(set(effects.groups)), effective_groups(effects.groups)
    if worth < FEW_GROUPS:
        alike = "" if worth > 0.9 * n_groups else f", worth {worth:.0f} of one size"
        notes.append(f"{n_groups} groups only{alike}: intervals are wide, and few effects decided")
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
    if compared.sets is not None and compared.sets.worst > BALANCED:
        apart = [
            f"{row['feature']} {float(row['smd']):+.2f}"
            for row in compared.sets.match
            if abs(float(row["smd"])) > BALANCED
        ]
        notes.append(
            f"the control sets are not matched ({', '.join(apart)} standard deviations apart): the "
            "p of the set is among smaller or larger neurons"
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
