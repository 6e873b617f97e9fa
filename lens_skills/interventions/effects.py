"""`Effects`: what an intervention on each of many sets of units does to a metric, per example.

`measure_effects`: the one engine behind every effect that is reported.

`Bench`: one model, metric and position, on which every measurement of a verdict is taken.

`sweep`: the exact effect of every neuron alone.

`Sheet`: effects as they are filled in, in memory and, to resume from, on disk.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lens_skills.activations import (
    DEFAULT_SITE,
    Metric,
    Position,
    parse_metrics,
    parse_position,
    soft_position,
)
from lens_skills.activations.components import Component, parse_components, sites_of
from lens_skills.activations.forward import prepare
from lens_skills.activations.stream import BATCH_SIZE, batches
from lens_skills.activations.tokenization import Encoded
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.baselines import Baseline, measure_baseline
from lens_skills.interventions.batched_edits import EditStack, edited_places, stack_sets
from lens_skills.interventions.edits import Edit
from lens_skills.interventions.effect_engine import DirectPath, EffectEngine, SweepSpec
from lens_skills.models import ModelAdapter, SoftPrompt, with_soft_prompt
from lens_skills.models.weights import OutputWeights
from lens_skills.results import Checkpoint, examples_hash, versions


@dataclass(frozen=True, eq=False)
class Effects:
    """Change of a metric under an intervention: edited minus clean, in the metric's unit.

    Attributes:
        names: One name per set, such as ``"L17N635"`` or ``"top 10"``.
        clean: The metric of each example without the intervention.
        total: Edited minus clean; the mean over draws where the edit draws at random.
        direct: The part that reaches the answer without passing a later layer: the edit's write
            to the residual stream read through the clean pass's own final norm. None where it was
            not asked for or the metric does not allow it.
        example_ids, groups: Of the examples, in order.
        metric, unit: What was measured.
        do: The intervention in words, such as ``"mean ablation over agreement, 0.4 of all #1"``.
        site, position: Where it acts.
        provenance: Model, task, split, seed and versions behind the numbers.
    """

    names: tuple[str, ...]
    clean: Float[Tensor, " example"]
    total: Float[Tensor, "set example"]
    direct: Float[Tensor, "set example"] | None
    example_ids: tuple[str, ...]
    groups: tuple[str, ...]
    metric: str
    unit: str
    do: str
    site: str
    position: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row per set: name, mean effect, its standard deviation over examples, direct."""
        columns: dict[str, Any] = {
            "name": list(self.names),
            "effect": self.total.mean(dim=1).numpy(),
            "std": self.total.std(dim=1, correction=0).numpy(),
        }
        if self.direct is not None:
            columns["direct"] = self.direct.mean(dim=1).numpy()
        return pd.DataFrame(columns)


@dataclass(eq=False)
class PartialEffects:
    """The effects measured so far.

    Attributes:
        clean, total, direct: As in `Effects`; zero where nothing was measured yet. ``direct`` is
            None as soon as one part does not define it.
        whole: Why full passes were run, where they were.
        done: How many parts (a batch and a stack of sets) are finished.
    """

    clean: Float[Tensor, " example"]
    total: Float[Tensor, "set example"]
    direct: Float[Tensor, "set example"] | None
    whole: str | None = None
    done: int = 0

    @classmethod
    def blank(cls, n_sets: int, n_examples: int, direct: bool) -> "PartialEffects":
        """Zeros: what an empty set does."""
        total = torch.zeros(n_sets, n_examples, dtype=torch.float64)
        clean = torch.zeros(n_examples, dtype=torch.float64)
        return cls(clean, total, torch.zeros_like(total) if direct else None)

    @classmethod
    def restore(cls, saved: Checkpoint, blank: "PartialEffects") -> "PartialEffects":
        """The sheet that was kept, or the blank one where none was.

        Raises:
            LensSkillsError: The folder holds another sweep.
        """
        kept = saved.read()
        if kept is None:
            return blank
        tensors, plain = kept
        return cls(tensors["clean"], tensors["total"], tensors.get("direct"), **plain["sheet"])

    def keep(self, saved: Checkpoint, *, now: bool = False) -> None:
        """Saves the sheet if the last save is long enough ago, or at once."""
        if not now and not saved.due():
            return
        tensors = {"clean": self.clean, "total": self.total}
        if self.direct is not None:
            tensors["direct"] = self.direct
        saved.write(tensors, {"sheet": {"whole": self.whole, "done": self.done}})


ROWS = 256


def measure_effects(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    sets: Sequence[tuple[Component, ...]],
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
    encoded, plan = prepare(adapter, examples, [measured], False)
    units = [unit for units in sets for unit in units]
    sites = sites_of(units)
    answers = bool(measured.reads - {"logits"})
    change = do.bind(
        adapter,
        examples,
        sites,
        position=position,
        seed=seed,
        batch_size=batch_size,
        answers=answers,
    )
    reading = parse_position(position)
    setting = SweepSpec(
        adapter=adapter,
        plan=plan,
        metric=measured,
        change=change,
        places=edited_places(adapter, encoded, position),
        spots=frozenset((unit.layer, unit.site) for unit in units),
        ragged=reading.ragged,
        direct=direct,
        rows=rows,
        writes=OutputWeights(adapter),
    )
    about = {
        "model": adapter.name,
        "model_fingerprint": adapter.fingerprint(),
        "implementation": adapter.implementation,
        "dtype": str(adapter.dtype),
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
    sheet = PartialEffects.blank(len(sets), len(examples), direct)
    saved = Checkpoint.at(checkpoint, asked, name="sweep")
    if saved is not None:
        sheet = PartialEffects.restore(saved, sheet)
    ordered = list(batches(encoded, plan, batch_size=batch_size, progress=False))
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
    setting: SweepSpec,
    ordered: Sequence[list[Encoded]],
    stacks: Sequence[EditStack],
    sheet: PartialEffects,
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
                engine = EffectEngine(setting, batch)
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
    engine: EffectEngine,
    path: DirectPath | None,
    stack: EditStack,
    sheet: PartialEffects,
    names: Sequence[str],
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
    effects: Float[Tensor, "set example"],
    stack: EditStack,
    engine: EffectEngine,
    names: Sequence[str],
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


def _name(units: tuple[Component, ...]) -> str:
    shown = ", ".join(unit.name for unit in units[:3])
    return f"{shown}, … ({len(units)})" if len(units) > 3 else shown or "no unit"


def _sets_hash(sets: Sequence[tuple[Component, ...]]) -> str:
    digest = hashlib.sha256()
    for units in sets:
        rows = sorted((unit.layer, unit.site, unit.start, unit.stop) for unit in units)
        digest.update(repr(rows).encode())
    return digest.hexdigest()[:16]


def check_finite(total: Tensor, names: Sequence[str], examples: Sequence[Example]) -> None:
    """Nothing; raises where an effect is not finite, naming the neuron and the example."""
    wrong = (~total.isfinite()).nonzero()
    if len(wrong):
        name, example = (int(place) for place in wrong[0])
        raise LensSkillsError(
            f"the effect of {names[name]} on example {examples[example].id!r} is not finite "
            f"({float(total[name, example])}; {len(wrong)} in all). Leave the example out, or "
            "choose a gentler edit."
        )


@dataclass(frozen=True)
class Bench:
    """What all measurements of one verdict share.

    Attributes:
        adapter, metric, position, seed: As in `measure_effects`.
        checkpoint: A folder in which every measurement resumes under its own name; a finished one
            is kept until the verdict is there.
        options: Passed on: ``batch_size``, ``progress``.
        baselines: Means and standard deviations of splits read so far: one pass over a split
            serves every measurement.
    """

    adapter: ModelAdapter
    metric: Metric
    position: Position
    seed: int
    checkpoint: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    baselines: dict[tuple[Any, ...], Baseline] = field(default_factory=dict)

    def measure(
        self,
        examples: Sequence[Example],
        sets: Sequence[tuple[Component, ...]],
        do: Edit,
        *,
        names: Sequence[str],
        part: str,
        direct: bool = False,
    ) -> Effects:
        """The effects of the sets; ``part`` names this measurement in the checkpoint.

        Raises:
            LensSkillsError: An effect that is not finite (which neuron, which example).
        """
        effects = measure_effects(
            self.adapter,
            examples,
            sets,
            self._informed(do, sets),
            metric=self.metric,
            position=self.position,
            names=names,
            direct=direct,
            seed=self.seed,
            checkpoint=None if self.checkpoint is None else self.checkpoint / part,
            keep=True,
            **self.options,
        )
        check_finite(effects.total, effects.names, examples)
        return effects

    def _informed(self, do: Edit, sets: Sequence[tuple[Component, ...]]) -> Edit:
        """The edit with the baseline of its split in place of the split."""
        if do.kind not in ("mean", "noise", "steer") or not isinstance(do.over, Sequence):
            return do
        sites = sites_of([unit for units in sets for unit in units])
        # All layers: controls of other layers ask for the same split again.
        wanted = {site: range(self.adapter.n_layers) for site in sites}
        key = id(do.over), *sorted(wanted)
        if key not in self.baselines:
            self.baselines[key] = measure_baseline(
                self.adapter,
                do.over,
                wanted,
                position=self.position,
                answers=bool(self.metric.reads - {"logits"}),
                batch_size=self.options.get("batch_size", BATCH_SIZE),
            )
        return replace(do, over=self.baselines[key])

    def clear(self) -> None:
        """Deletes the checkpoints of the measurements: the verdict is there."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        for part in self.checkpoint.iterdir():
            if (part / "sweep.json").exists():
                shutil.rmtree(part)
        if not any(self.checkpoint.iterdir()):
            self.checkpoint.rmdir()


def sweep(
    model: Any,
    examples: Sequence[Example],
    neurons: Any = "all",
    *,
    do: Edit,
    metric: Any,
    at: str = DEFAULT_SITE,
    position: Position | None = None,
    prompt: SoftPrompt | None = None,
    direct: bool = False,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    rows: int = ROWS,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Effects:
    """The effect of each neuron (or head, or MLP) alone, per example, exact.

    Nothing below the edited layer or left of the edited position is computed again; many neurons
    run side by side. The numbers are those of a full pass with hooks, to float rounding.

    Args:
        model: A HookedTransformer or TransformerBridge; it is left as it was.
        examples: A `Task` or any sequence of `Example`; best a split that selected nothing.
        neurons: What to edit, one at a time: ``"all"`` at the site, names, rows, a `Selection`.
        do: The intervention, e.g. ``ablate("mean", over=explore)``.
        metric: What to watch: a name, a `Metric` or a function.
        at: The site of everything named as a neuron.
        position: Where to edit: ``"last"`` (of the prompt), an index, a span, a list, ``"all"``,
            or ``"prompt"``, the vectors of a soft prompt (the default where there is one).
        prompt: A soft prompt to read every example with.
        direct: Also the direct effect; see `Effects`.
        seed: Of the edit's random draws.
        batch_size: Examples whose clean pass is held at once.
        rows: Columns that are recomputed at once (neurons x examples x positions): bounds memory.
        checkpoint: A folder to resume from, written about once a minute.
        progress: Show a progress bar (None: on a terminal only).

    Raises:
        LensSkillsError: No examples, unknown neurons, a metric the task cannot give or that no
            model is needed for, an effect that is not finite (with its neuron and example).
    """
    adapter = with_soft_prompt(model, prompt)
    units = parse_components(adapter, neurons, at=at)
    return measure_effects(
        adapter,
        examples,
        [(unit,) for unit in units],
        do,
        metric=metric,
        position=soft_position(adapter, position),
        names=[unit.name for unit in units],
        direct=direct,
        seed=seed,
        batch_size=batch_size,
        rows=rows,
        checkpoint=checkpoint,
        progress=progress,
    )
