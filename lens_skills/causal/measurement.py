"""`measure_effects`: the one engine behind every effect that is reported."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lens_skills.activations import Metric, Position, parse_metrics, parse_position
from lens_skills.activations.encoding import Encoded
from lens_skills.activations.plan import prepare
from lens_skills.activations.stream import BATCH_SIZE, batches
from lens_skills.causal.direct import DirectPath
from lens_skills.causal.edits import Edit
from lens_skills.causal.effects import Effects
from lens_skills.causal.engine import Engine, Setting
from lens_skills.causal.placement import edited_places
from lens_skills.causal.sheet import Sheet
from lens_skills.causal.stack import Stack, stack_sets
from lens_skills.causal.units import Unit, sites_of
from lens_skills.causal.writes import Writes
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import Lens
from lens_skills.scoring.checkpoint import Checkpoint
from lens_skills.scoring.provenance import examples_hash, versions

ROWS = 256


def measure_effects(
    lens: Lens,
    examples: Sequence[Example],
    sets: Sequence[tuple[Unit, ...]],
    do: Edit,
    *,
    metric: Any,
    position: Position = "last",
    names: Sequence[str] | None = None,
    direct: bool = False,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    rows: int = ROWS,
    checkpoint: str | Path | None = None,
    keep: bool = False,
    progress: bool | None = None,
) -> Effects:
    """The effect of each set of units, all edited together, per example; see `sweep`.

    An empty set has no effect. Where an edit draws at random, the metric is averaged over its
    draws. ``provenance["whole_passes"]`` says why full passes were run where they were. With
    ``keep`` the checkpoint stays when all is done, and the next call reads it back.
    """
    measured = one_metric(metric)
    if len(examples) == 0:
        raise LensSkillsError(
            "no examples to measure effects on: the task is empty (after filtering?)."
        )
    if batch_size < 1 or rows < 1:
        raise LensSkillsError(f"batch_size={batch_size} and rows={rows}: both must be 1 or more.")
    labels = tuple(names) if names is not None else tuple(map(_name, sets))
    if len(labels) != len(sets):
        raise LensSkillsError(f"{len(labels)} names were given for {len(sets)} sets.")
    encoded, plan = prepare(lens, examples, [measured], False)
    units = [unit for units in sets for unit in units]
    sites = sites_of(units)
    answers = bool(measured.reads - {"logits"})
    change = do.bind(
        lens, examples, sites, position=position, seed=seed, batch_size=batch_size, answers=answers
    )
    reading = parse_position(position)
    setting = Setting(
        lens=lens,
        plan=plan,
        metric=measured,
        change=change,
        places=edited_places(lens, encoded, position),
        spots=frozenset((unit.layer, unit.site) for unit in units),
        ragged=reading.ragged,
        direct=direct,
        rows=rows,
        writes=Writes(lens),
    )
    about = {
        "model": lens.name,
        "model_fingerprint": lens.fingerprint(),
        "implementation": lens.implementation,
        "dtype": str(lens.dtype),
        "task": getattr(examples, "name", "examples"),
        "split": getattr(examples, "split_name", "all"),
        "examples": examples_hash(examples),
        "metric": measured.name,
        "do": change.name,
        "n_draws": change.n_draws,
        "sites": {site: list(layers) for site, layers in sites.items()},
        "positions": list(reading.labels),
        "seed": seed,
        "versions": versions(),
    }
    asked = {
        **about,
        "sets": _sets_hash(sets),
        "direct": direct,
        "batch_size": batch_size,
        "rows": rows,
    }
    sheet = Sheet.blank(len(sets), len(examples), direct)
    saved = Checkpoint.at(checkpoint, asked, name="sweep")
    if saved is not None:
        sheet = Sheet.restore(saved, sheet)
    ordered = list(batches(encoded, plan, batch_size, 0, False, "sweep"))
    _measure(setting, ordered, stack_sets(sets), sheet, labels, saved, progress)
    if saved is not None and keep:
        sheet.keep(saved, now=True)
    elif saved is not None:
        saved.remove()
    return Effects(
        names=labels,
        clean=sheet.clean,
        total=sheet.total,
        direct=sheet.direct,
        example_ids=tuple(example.id for example in examples),
        groups=tuple(example.group for example in examples),
        metric=measured.name,
        unit=measured.unit,
        do=change.name,
        site=", ".join(sites),
        position=", ".join(reading.labels),
        provenance={**about, "whole_passes": sheet.whole},
    )


def _measure(
    setting: Setting,
    ordered: Sequence[list[Encoded]],
    stacks: Sequence[Stack],
    sheet: Sheet,
    names: Sequence[str],
    saved: Checkpoint | None,
    progress: bool | None,
) -> None:
    """Fills the sheet in, one batch after another and one stack of sets after another."""
    n_sets = sum(len(stack.places) for stack in stacks)
    disable = None if progress is None else not progress
    total = n_sets * sum(map(len, ordered))
    with tqdm(total=total, desc="sweep", unit=" effects", unit_scale=True, disable=disable) as bar:
        try:
            for place, batch in enumerate(ordered):
                finished = sheet.done - place * len(stacks)
                if finished >= len(stacks) > 0:
                    bar.update(n_sets * len(batch))
                    continue
                engine = Engine(setting, batch)
                sheet.clean[[item.index for item in batch]] = engine.clean
                sheet.whole = sheet.whole or engine.whole
                path = None if sheet.direct is None else DirectPath.of(engine)
                for order, stack in enumerate(stacks):
                    if order >= finished:
                        _fill(engine, path, stack, sheet, names)
                        sheet.done += 1
                        if saved is not None:
                            sheet.keep(saved)
                    bar.update(len(stack.places) * len(batch))
        except BaseException:
            # An interruption (or a failure in a late part) does not lose the finished parts.
            if saved is not None and sheet.done:
                sheet.keep(saved, now=True)
            raise


def _fill(
    engine: Engine, path: DirectPath | None, stack: Stack, sheet: Sheet, names: Sequence[str]
) -> None:
    """One stack of sets on one batch, in parts that fit into memory, averaged over draws."""
    change, examples = engine.setting.change, [item.index for item in engine.batch]
    size = engine.n_sets()
    for start in range(0, len(stack.places), size):
        part = stack.part(start, start + size)
        where = torch.tensor(part.places)[:, None], torch.tensor(examples)
        draws = [engine.measure(part, draw) for draw in range(change.n_draws)]
        effects = torch.stack(draws).mean(0)
        _refuse_non_finite(effects, part, engine, names)
        sheet.total[where] = effects
        if sheet.direct is not None:
            parts = [path and path.measure(part, draw) for draw in range(change.n_draws)]
            known = [found for found in parts if found is not None]
            if len(known) < len(parts):
                sheet.direct = None
            else:
                sheet.direct[where] = torch.stack(known).mean(0)


def _refuse_non_finite(
    effects: Float[Tensor, "set example"], stack: Stack, engine: Engine, names: Sequence[str]
) -> None:
    wrong = (~torch.isfinite(effects)).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise LensSkillsError(
            f"the effect of {names[stack.places[row]]} on {engine.setting.metric.name!r} is "
            f"{float(effects[row, column])} for example {engine.batch[column].id!r}. Leave the "
            "unit or the example out, or choose a milder edit."
        )


def one_metric(metric: Any) -> Metric:
    found = parse_metrics(metric)
    if len(found) != 1:
        raise LensSkillsError(
            f"one metric is watched at a time, not {len(found)}: "
            f"{', '.join(each.name for each in found)}. Sweep once for each."
        )
    if found[0].known:
        raise LensSkillsError(
            f"the metric {found[0].name!r} is known before the model runs, so no edit can change "
            "it. Choose one that reads the model's output, such as logit_diff()."
        )
    return found[0]


def _name(units: tuple[Unit, ...]) -> str:
    shown = ", ".join(unit.name for unit in units[:3])
    return f"{shown}, … ({len(units)})" if len(units) > 3 else shown or "no unit"


def _sets_hash(sets: Sequence[tuple[Unit, ...]]) -> str:
    digest = hashlib.sha256()
    for units in sets:
        rows = sorted((unit.layer, unit.site, unit.start, unit.stop) for unit in units)
        digest.update(repr(rows).encode())
    return digest.hexdigest()[:16]
