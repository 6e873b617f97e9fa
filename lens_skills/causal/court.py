"""`verify`: neurons on trial, with controls beside them, on examples nobody has looked at."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lens_skills.activations import (
    BATCH_SIZE,
    DEFAULT_SITE,
    Position,
    logit_diff,
    parse_metrics,
    soft_position,
)
from lens_skills.causal import exhibits
from lens_skills.causal.bench import Bench
from lens_skills.causal.comparison import Comparison, compare, declare_delta
from lens_skills.causal.controls import matched_sets
from lens_skills.causal.edits import Edit
from lens_skills.causal.effects import Effects
from lens_skills.causal.pairs import pair_rows, preservation_row
from lens_skills.causal.population import survey
from lens_skills.causal.refusals import check_case, edited_where, removes_work, reused
from lens_skills.causal.ruling import ALPHA, rule
from lens_skills.causal.units import Unit, parse_units
from lens_skills.causal.verdict import Verdict
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import SoftPrompt, prompted
from lens_skills.scoring.provenance import examples_hash, versions
from lens_skills.stats.bootstrap import FEW_GROUPS


def verify(
    model: Any,
    examples: Sequence[Example],
    skills: Any,
    *,
    do: Edit,
    metric: Any = None,
    at: str | None = None,
    position: Position | None = None,
    prompt: SoftPrompt | None = None,
    n_controls: int = 200,
    n_important: int | None = None,
    n_peers: int | None = 1000,
    delta: float | None = None,
    calibrate: Sequence[Example] | None = None,
    by: Sequence[str] | None = None,
    also: Sequence[Edit] | None = None,
    unrelated: Sequence[Example] | None = None,
    pairs: bool | None = None,
    preservation: bool = False,
    removes: bool | None = None,
    n_draws: int = 2000,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    exploratory: bool = False,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Verdict:
    """What an intervention shows of each neuron and of all together: a `Verdict`.

    Args:
        model: A HookedTransformer or TransformerBridge.
        examples: A split that took no part in the selection, nor in training the prompt.
        skills: A `Selection`, names such as ``"L17N635"`` or ``"L9H3"``, or (layer, index) rows.
        do: The edit, e.g. ``ablate("mean", over=explore)``.
        metric: What the edit may change; default ``logit_diff()``.
        at: The site of neurons named by hand; default the selection's, else ``mlp.hook_post``.
        position: Where in the prompt; default where the selection was scored, else ``"last"``. In
            generation with a cache, later tokens are left alone.
        prompt: A soft prompt to read every example with: the one the selection was scored with.
        n_controls: Random sets that match the candidates in number per layer, mean |a|, std and
            ‖W_out‖; for the set as a whole.
        n_important: Random sets among the neurons of largest effect (default a quarter of
            ``n_controls``).
        n_peers: Other single neurons per layer that each neuron is compared with; None for all.
            With k neurons and n peers, one alone can pass only where 1 / (1 + n) <= 0.05 / k.
        delta: The smallest effect that matters, in the metric's unit, declared beforehand.
        calibrate: Instead, a split of its own to take it from; see `declare_delta` for the default.
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
        batch_size: Examples per forward pass.
        exploratory: Allow what is otherwise refused (a split used before, another task), and mark
            the result.
        checkpoint: A folder from which an interrupted verdict goes on: finished measurements are
            read back, the one that was interrupted continues.
        progress: Show progress (None: on a terminal only).

    Raises:
        LensSkillsError: No examples; a split already used for the selection; a selection of
            another model, site or task; a metric the task cannot give or no edit can change; no
            control set possible in a layer (which one); an effect that is not finite (whose).

    Does not show: what the neurons do at other positions, on other prompts, or for another metric.
    """
    lens = prompted(model, prompt)
    (wanted,) = parse_metrics(logit_diff() if metric is None else metric)
    waived = check_case(examples, skills, do, wanted, lens.soft, exploratory=exploratory)
    if calibrate is not None:
        mine = {"example_ids": [e.id for e in examples], "groups": [e.group for e in examples]}
        waived |= reused(
            calibrate, mine, "calibrate= shares its examples: the verdict", exploratory
        )
    if delta is not None and not 0 < delta < float("inf"):
        raise LensSkillsError(f"δ must be a positive number in the metric's unit, not {delta}.")
    sign = removes_work(do, removes)
    where = edited_where(skills, None if position is None else soft_position(lens, position))
    units = parse_units(lens, skills, at=at or getattr(skills, "site", DEFAULT_SITE))
    if not units:
        raise LensSkillsError("no neurons to verify: none were named.")
    folder = None if checkpoint is None else Path(checkpoint)
    options = {"batch_size": batch_size, "progress": progress}
    bench = Bench(lens, wanted, where, seed, folder, options)
    sets, names = _trials(units)
    population = survey(lens, examples, units, position=where, batch_size=batch_size)
    if len(units) > 1 and n_controls:
        # Said before anything is measured: the control sets themselves are drawn later.
        matched_sets(units, population, n_sets=1, seed=seed)
    effects = bench.measure(examples, sets, do, names=names, part="candidates", direct=True)
    comparison = compare(
        bench,
        examples,
        units,
        population,
        do,
        n_sets=n_controls,
        n_important=n_controls // 4 if n_important is None else n_important,
        n_peers=n_peers,
        seed=seed,
    )
    delta_from = "declared"
    if delta is None:
        delta, delta_from = declare_delta(bench, comparison, do, calibrate=calibrate, seed=seed)
    classes = exhibits.find_classes(examples, by)
    draws = {"n_draws": n_draws, "seed": seed}
    rulings = rule(
        effects,
        comparison.ranks(effects, classes),
        delta=delta,
        classes=classes,
        removes=sign,
        **draws,
    )
    tables = {"classes": exhibits.class_rows(effects, classes, **draws)}
    if len(units) > 1:
        tables["set"] = exhibits.set_rows(effects, **draws)
        tables["controls"] = exhibits.control_rows(effects, comparison)
        tables["match"] = exhibits.match_rows(comparison.sets)
    edits = exhibits.other_ablations(do) if also is None else tuple(also)
    if edits:
        rows = list(exhibits.effect_rows(effects, **draws))
        for number, edit in enumerate(edits):
            found = bench.measure(examples, sets, edit, names=names, part=f"also {number}")
            rows += exhibits.effect_rows(found, **draws)
        tables["ablations"] = tuple(rows)
    if unrelated is not None:
        found = bench.measure(unrelated, sets, do, names=names, part="unrelated")
        tables["unrelated"] = exhibits.effect_rows(found, **draws)
    notes = _notes(effects, comparison, units)
    if pairs or (pairs is None and all(example.corrupted for example in examples)):
        try:
            tables["pairs"] = pair_rows(bench, examples, sets, names, **draws)
        except LensSkillsError as error:
            if pairs:
                raise
            notes.append(f"neither noised nor denoised: {error}")
    if preservation:
        row = preservation_row(bench, examples, units, population, do, **draws)
        tables["pairs"] = (*tables.get("pairs", ()), row)
    bench.clear()
    return Verdict(
        rulings=rulings,
        effects=effects,
        peers=tuple(unit.name for unit in comparison.units),
        peer_effect=comparison.mean,
        control_effect=comparison.set_effect,
        important_effect=comparison.strict_effect,
        delta=delta,
        delta_from=delta_from,
        tables={name: rows for name, rows in tables.items() if rows},
        notes=tuple(notes),
        removes=sign,
        exploratory=waived,
        provenance={
            **effects.provenance,
            "model": lens.name,
            "model_fingerprint": lens.fingerprint(),
            "task": getattr(examples, "name", "examples"),
            "split": getattr(examples, "split_name", "all"),
            "examples": examples_hash(examples),
            "selection": dict(getattr(skills, "attrition", {})),
            "n_controls": n_controls,
            "n_peers": n_peers,
            "peers": "all layers" if comparison.across else "own layer",
            "n_draws": n_draws,
            "seed": seed,
            "versions": versions(),
        },
    )


def _trials(units: Sequence[Unit]) -> tuple[list[tuple[Unit, ...]], list[str]]:
    """Each unit alone, then all together where there are several; and their names."""
    sets, names = [(unit,) for unit in units], [unit.name for unit in units]
    return (sets, names) if len(units) == 1 else ([*sets, tuple(units)], [*names, "set"])


def _notes(effects: Effects, comparison: Comparison, units: Sequence[Unit]) -> list[str]:
    notes = list(comparison.notes)
    n_groups = len(set(effects.groups))
    if n_groups < FEW_GROUPS:
        notes.append(
            f"{n_groups} groups only: below {FEW_GROUPS}, intervals cover less than they say"
        )
    if comparison.across:
        notes.append("neurons are compared with those of all layers: their own has too few")
    fewest = min(int((comparison.home == code).sum()) for code in comparison.candidate_home)
    # Benjamini–Hochberg lets j of k neurons pass at the smallest p where it is <= 0.05 j / k.
    needed = math.ceil(len(units) / (ALPHA * (1 + fewest)) - 1e-9)
    if needed > len(units):
        notes.append(f"{fewest} units to compare with cannot give q <= {ALPHA}: no causal word")
    elif needed > 1:
        notes.append(
            f"with {fewest} units to compare with, p is at least {1 / (1 + fewest):.2g}: fewer "
            f"than {needed} of {len(units)} neurons cannot pass together"
        )
    unmatchable = comparison.sets.unmatchable if comparison.sets else ()
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
