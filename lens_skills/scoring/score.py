"""`score`: one streaming pass that correlates every neuron with every metric.

The pass itself is a sum (`stats.moments`); here are its checks, its checkpoints and what it counts
beside the sums, and `correlations.collect` makes the result.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills import settings
from lens_skills.activations import (
    DEFAULT_SITE,
    Metric,
    Position,
    known_values,
)
from lens_skills.activations.activation_reader import (
    ActivationReader,
    metric_values,
    metrics_of,
    model_in,
)
from lens_skills.activations.tally import add_up
from lens_skills.checkpoints import Checkpoint, resumable
from lens_skills.data import Example, field_of
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, SoftPrompt, with_soft_prompt
from lens_skills.models.precision import rounding_note
from lens_skills.results import numbers_hash, provenance
from lens_skills.scoring.correlations import collect
from lens_skills.scoring.covariates import left_nonlinear
from lens_skills.scoring.design_matrix import DesignMatrix, control_refused
from lens_skills.scoring.leakage import check_baseline, check_prompt
from lens_skills.scoring.predictivity import FiringCounts, baseline_means
from lens_skills.scoring.score_tally import ScoreTally
from lens_skills.scoring.scores import MetricScores, Scores
from lens_skills.scoring.sharing import check_share, shrink
from lens_skills.stats.effect_tests import FEWEST_GROUPS
from lens_skills.stats.moments import Moments, RunningMoments
from lens_skills.stats.multiple_testing import check_scheme
from lens_skills.stats.rotations import Rotation

# Draws that fit a pass: all neurons of a model share 100, a few hundred neurons get 9,999.
_MANY_DRAWS, _FEW_DRAWS, _DRAW_BUDGET = 9_999, 100, 4_608_000

# Random directions of a layer that its neurons are compared with: from 64 a tail cannot be fitted.
_DIRECTIONS = 1_024

# Draws of the control task, which cost no column of the pass but where types are very many.
_FEW_CONTROLS, _FEWEST_CONTROLS = 199, 99


@resumable()
def score(
    model: Any,
    examples: Sequence[Example],
    *,
    metrics: Any,
    at: str = DEFAULT_SITE,
    position: Position | None = None,
    layers: int | Iterable[int] | None = None,
    neurons: Int[Tensor, "k 2"] | Sequence[Any] | None = None,
    prompt: SoftPrompt | None = None,
    given: Sequence[str] = (),
    baseline: Scores | None = None,
    share: Sequence[Scores | MetricScores] = (),
    exchange: str = "auto",
    n_permutations: int | None = None,
    n_controls: int | None = None,
    n_rotations: int | None = None,
    seed: int = 0,
    chat: Chat = False,
    precision: str | None = None,
    exploratory: bool = False,
    checkpoint: str | Path | None = None,
) -> Scores:
    """Correlations of every neuron with every metric, and what chance makes of them, in one pass.

    Args:
        model: A HookedTransformer or TransformerBridge, or an `ActivationTable`.
        examples: A `Task`, or any sequence of `Example`.
        metrics: One or several: names (``"label:plural"``, ``"correct"``, ``"confidence"``, …),
            `Metric` values, functions ``(logits, examples) -> float[batch]``, one number per
            example, or a dict that names them. A label or covariate of three to twelve categories
            becomes one 0/1 metric each, that category against the rest: ``"label:rule"`` gives
            ``"label:rule=a"``, ``"label:rule=b"``, …, each of which can be named alone.
        at: Hook point within a block.
        position: Where in the prompt; see `stream`. Several positions are one family. Default:
            ``"last"``, or every vector of the soft prompt's suffix where there is one.
        layers: Which layers (default all).
        neurons: Only these, as (layer, neuron) rows or names ``"L17N635"``.
        prompt: A soft prompt to read every example with, trained on other examples.
        given: Labels or covariates to partial out of both sides: categories and numbers of up to
            12 values one-hot, other numbers as cubic splines, ``"a*b"`` for an interaction. The
            null is then Freedman and Lane's: residuals of the metric are exchanged. Metrics that
            the model computes are then read in a pass of their own first.
        baseline: Scores of another split; their mean activation becomes each neuron's threshold
            for *predictivity*, the class-balanced share of examples told apart by a > threshold,
            or its complement if larger (0.5 to 1; Wang et al. 2022, arXiv 2211.07349, section 3,
            with classes balanced).
        share: Scores of other tasks: of the same neurons at the same place of the same model, on
            other examples. Every r is then drawn towards what its neuron does there, by as much
            as the tasks agree (``shrunk_r`` and its interval, which ``top`` goes by): for few
            labels. Counterparts are metrics of one name; ``scores["label:x"]`` names another.
            p-values stay those of these examples alone.
        exchange: ``"auto"``, ``"within"``, ``"kinds"``, ``"between"``, ``"free"`` or ``"signs"``:
            which examples may trade their metric under the null; see `stats.multiple_testing`. A
            metric that the pass itself computes always takes ``"signs"``: each group's
            contribution is flipped at random, the means removed exactly.
        n_permutations: Draws of that null; 0 for none, and then no p-values. Default: 100 for a
            whole model, up to 9,999 for a few hundred neurons.
        n_controls: Draws of each metric's control task: its means per input type
            (`Example.kind`) dealt anew among the types, its residuals within them. 0 for none.
            Default: 199 for a whole model, up to 9,999 for a few hundred neurons.
        n_rotations: Random rotations of each layer's standardised activations, whose directions
            neurons are compared with (default: enough for 1,024 directions a layer where whole
            layers are scored at single positions, else 0). More make p finer and nothing stricter.
            Of a layer of more than 6,144 units each direction mixes a random part.
        seed: Of all draws.
        chat: Read prompts in the tokenizer's chat template; a text: with this system prompt.
        precision: ``"bfloat16"``: round what matrix products take, which is faster where the
            machine has it (`models.precision`); sums stay in float64. Default: the model's own.
        exploratory: Allow what is otherwise refused (a baseline from the same examples), and mark
            the result.
        checkpoint: A folder to save the running sums to every minute; called again with the same
            arguments, the pass goes on from there.

    Returns:
        `Scores`. A neuron that does not vary is excluded, never NaN; so is a metric that the pass
        computed and that did not vary.

    Raises:
        LensSkillsError: No examples, a label of one class, a non-finite metric (which example),
            an unknown hook point, neuron or position, a null that cannot be drawn, a precision
            that the machine lacks; shared scores that do not fit or share examples.

    Source: correlation with auxiliary metrics, Zhao et al. 2025 (arXiv 2511.21610; Pearson's is
    our choice); max-T, Westfall & Young 1993; covariates, Freedman & Lane 1983; control tasks,
    Hewitt & Liang 2019 (arXiv 1909.03368); random directions, Gurnee et al. 2024 (arXiv
    2401.12181). ``share``: an empirical-Bayes analogue of what multi-task neural processes (arXiv
    2111.05820) learn with a network, a prior of each task given the others; see `stats.shrinkage`.
    Does not show: that a neuron causes anything. A neuron beyond the permutation null alone is
    *associated*; a random label per operand makes thousands of those.
    """
    summed = sum_up(
        model,
        examples,
        metrics=metrics,
        at=at,
        position=position,
        layers=layers,
        neurons=neurons,
        prompt=prompt,
        given=given,
        baseline=baseline,
        share=share,
        exchange=exchange,
        n_permutations=n_permutations,
        n_controls=n_controls,
        n_rotations=n_rotations,
        seed=seed,
        chat=chat,
        precision=precision,
        exploratory=exploratory,
    )
    scores = collect(
        summed.moments,
        summed.columns,
        values=summed.values,
        units=summed.units,
        whole_layers=neurons is None,
        positions=summed.source.labels,
        rotations=summed.rotations,
        site=summed.source.site.name,
        examples=examples,
        predictivity=summed.predictivity,
        exploratory=summed.exploratory,
        notes=summed.notes,
        provenance=summed.provenance,
    )
    return shrink(scores, share)


@dataclass(frozen=True, eq=False)
class Summed:
    """The sums of a pass over some or all of the examples, and what makes scores of them.

    Attributes:
        source: What was read.
        wanted: The metrics.
        moments: The sums.
        columns: Of all examples.
        values: Of each metric, for all examples; 0 where the pass was to read it and did not.
        rotations: Of the layers.
        firing: With a baseline: how often each unit exceeds its threshold.
        provenance, notes, exploratory: Of the scores.
    """

    source: ActivationReader
    wanted: tuple[Metric, ...]
    moments: Moments
    columns: DesignMatrix
    values: dict[str, Tensor]
    rotations: list[Rotation]
    firing: FiringCounts | None
    provenance: dict[str, Any]
    notes: list[str]
    exploratory: bool

    @property
    def units(self) -> tuple[Tensor, Tensor]:
        """The layer and the index of each unit."""
        return self.source.layer, self.source.neuron

    @property
    def predictivity(self) -> dict[str, Tensor]:
        """Of each unit, for each 0/1 metric, with a baseline."""
        names = [metric.name for metric in self.wanted]
        return {} if self.firing is None else self.firing.predictivity(names)


def sum_up(
    model: Any,
    examples: Sequence[Example],
    here: Sequence[Example] | None = None,
    *,
    metrics: Any,
    at: str,
    position: Position | None,
    layers: int | Iterable[int] | None,
    neurons: Any,
    prompt: SoftPrompt | None,
    given: Sequence[str],
    baseline: Scores | None,
    exchange: str,
    n_permutations: int | None,
    n_controls: int | None,
    n_rotations: int | None,
    seed: int,
    chat: Chat,
    precision: str | None,
    exploratory: bool,
    share: Sequence[Scores | MetricScores] = (),
) -> Summed:
    """One pass over the examples, or over those of them that are ``here``; see `score`."""
    wanted = metrics_of(model, metrics, examples)
    if not wanted:
        raise LensSkillsError("no metric to score. Name one, e.g. metrics='label:plural'.")
    if len(examples) < 4:
        raise LensSkillsError(f"{len(examples)} examples are too few to correlate; 4 at least.")
    check_scheme(exchange)
    if n_controls is not None and (n_controls < 0 or 0 < n_controls < _FEWEST_CONTROLS):
        raise LensSkillsError(
            f"{n_controls} draws of the control task are too few to tell neurons apart. Ask for "
            f"{_FEWEST_CONTROLS} or more, or for 0."
        )
    known = known_values(wanted, examples)
    for name, values in known.items():
        if float(values.std(correction=0)) == 0:
            raise LensSkillsError(
                f"{name!r} has one class only here (always {float(values[0]):g}). "
                "Score it on examples that hold both."
            )
    model = model_in(model, precision)
    if prompt is not None:
        model = with_soft_prompt(model, prompt, chat)
    source = ActivationReader(
        model,
        examples if here is None else here,
        at=at,
        position=position,
        layers=layers,
        neurons=neurons,
        metrics=wanted,
        chat=chat,
    )
    seen = check_prompt(source.soft, examples, exploratory)
    if baseline is not None:
        check_baseline(baseline, examples, source, exploratory)
    seen |= check_share(share, source, wanted, examples, exploratory)
    n_units = len(source.labels) * len(source.layer)
    n_draws = _n_draws(n_permutations, n_units, len(examples))
    if n_controls is None:
        n_controls = max(_FEW_CONTROLS, min(_MANY_DRAWS, 2 * _DRAW_BUDGET // n_units))
    n_rotations = _n_rotations(n_rotations, source, neurons)
    n_groups = len(set(field_of(examples, "group")))
    notes = [rounding_note(rounded)] if (rounded := source.about.get("precision")) else []
    if n_groups < FEWEST_GROUPS:
        # Nothing that chance makes of so few independent examples is worth printing.
        n_draws = n_controls = 0
        notes.append(
            f"{n_groups} groups: {FEWEST_GROUPS} at least are needed for intervals and p-values; r "
            "alone is given"
        )
    elif n_controls and (refused := control_refused(examples)):
        notes.append(refused)
    places = None if here is None else places_among(here, examples)
    if given and places is not None and not all(metric.known for metric in wanted):
        raise LensSkillsError(
            f"given={list(given)}: what covariates leave of a metric takes its value for every "
            "example, and a part of the examples has those of its own only. Partial out of metrics "
            "that are columns of the task, or score all examples at once."
        )
    if given:
        # What the covariates leave of a metric is needed before the pass can flip its signs.
        known |= _read_first(source, [metric for metric in wanted if not metric.known])
        nonlinear = {
            name: left_nonlinear(numbers, examples, given) for name, numbers in known.items()
        }
        notes += _nonlinear_notes(nonlinear, given)
        source.metrics = ()
    columns = DesignMatrix(
        wanted,
        known,
        examples,
        given=given,
        exchange=exchange,
        n_draws=n_draws,
        n_controls=n_controls,
        seed=seed,
    )
    rotations = [Rotation.of(source.width, seed=seed + k) for k in range(n_rotations)]
    layout = columns.layout
    sums = partial(
        RunningMoments,
        layout.n_columns,
        n_units,
        n_base=layout.n_base,
        rotations=rotations,
        squared=layout.block("marks") if layout.n_marks and not (given or source.ragged) else None,
    )
    values = {
        metric.name: known.get(metric.name, torch.zeros(len(examples), dtype=torch.float64))
        for metric in wanted
    }
    provenance = describe_pass(
        source.about, examples, wanted, columns, n_rotations=n_rotations, seed=seed, given=given
    )
    thresholds = None if baseline is None else baseline_means(baseline, source)
    saved = Checkpoint.at(
        provenance
        | {
            "batch_size": settings.batch_size(),
            **({} if source.table is None else source.table.states),
            "neurons": numbers_hash(source.layer, source.neuron),
            "values": numbers_hash(*known.values(), columns.given),
            **({} if places is None else {"here": numbers_hash(places)}),
            **({} if thresholds is None else {"baseline": numbers_hash(thresholds)}),
        },
        name="score",
    )
    tally = ScoreTally(
        columns,
        [metric.name for metric in wanted],
        values,
        sums,
        thresholds,
        places,
        source.device,
    )
    running, firing = tally.running, tally.firing
    skip = done = 0 if saved is None else restore_sums(saved, running, values, firing)

    def keep(batches: int) -> None:
        nonlocal done
        done = batches
        if saved is not None:
            keep_sums(saved, running, values, firing, batches)

    add_up(source, tally, skip=skip, verb="score", keep=keep)
    if saved is not None and done > skip:
        keep_sums(saved, running, values, firing, done, last=True)
    return Summed(
        source=source,
        wanted=wanted,
        moments=running.freeze(),
        columns=columns,
        values=values,
        rotations=rotations,
        firing=tally.firing,
        provenance=provenance,
        notes=notes,
        exploratory=exploratory or seen,
    )


def places_among(here: Sequence[Example], examples: Sequence[Example]) -> Int[Tensor, " here"]:
    """The place of each of some examples among all, by id.

    Raises:
        LensSkillsError: One that is not among them, or given twice; none.
    """
    if len(here) == 0:
        raise LensSkillsError("no examples to read here: the part is empty.")
    known = {name: place for place, name in enumerate(field_of(examples, "id"))}
    found: dict[int, None] = {}
    for name in field_of(here, "id"):
        place = known.get(name, -1)
        if place < 0 or place in found:
            what = "is not among all examples" if place < 0 else "is given twice"
            raise LensSkillsError(
                f"the example {name!r} of this part {what}. A part is some of the examples "
                "that are scored together, each once."
            )
        found[place] = None
    return torch.tensor(list(found))


def _n_draws(asked: int | None, n_units: int, n_examples: int) -> int:
    if asked is not None:
        if asked < 0:
            raise LensSkillsError(f"n_permutations must be 0 or more, not {asked}.")
        if 0 < asked < 19:
            raise LensSkillsError(
                f"{asked} permutations cannot give p <= 0.05. Ask for 19 or more, or for 0."
            )
        return asked
    # Draws are stored as one index per example: 20 million of them take 80 MB.
    return max(_FEW_DRAWS, min(_MANY_DRAWS, _DRAW_BUDGET // n_units, 20_000_000 // n_examples))


# So much of what the covariates leave of a metric may be theirs after all (R²) without a warning.
_LEFT_NONLINEAR = 0.05


def _nonlinear_notes(nonlinear: Mapping[str, float], given: Sequence[str]) -> list[str]:
    """What of each metric a nonlinear fit on the covariates still tells, in words."""
    notes = []
    for name, share in nonlinear.items():
        if math.isnan(share):
            continue
        notes.append(
            f"given {', '.join(given)}: trees on them still tell {share:.0%} of what is left of "
            f"{name} (R² on other groups)"
        )
        if share > _LEFT_NONLINEAR:
            warnings.warn(
                f"{notes[-1]}. A neuron may carry those instead: name an interaction, "
                'given=["a*b"], or fewer columns.',
                stacklevel=3,
            )
            notes[-1] += ': too much; name an interaction, given=["a*b"]'
    return notes


def _read_first(
    source: ActivationReader, metrics: Sequence[Metric]
) -> dict[str, Float[Tensor, " row"]]:
    """Metrics that the model computes, read in a pass of their own that reads no activations."""
    names = field_of(source.examples, "id")
    held = {
        metric.name: torch.tensor([metric.held[name] for name in names], dtype=torch.float64)
        for metric in metrics
        if metric.held.keys() >= set(names)
    }
    if not (left := [metric for metric in metrics if metric.name not in held]):
        return held
    return held | metric_values(source.table or source.adapter, source.examples, left)


def _n_rotations(asked: int | None, source: ActivationReader, neurons: Any) -> int:
    possible = neurons is None
    if asked is None:
        return math.ceil(_DIRECTIONS / source.width) if possible and not source.ragged else 0
    if asked and not possible:
        raise LensSkillsError(
            "a rotated basis needs whole layers; leave out neurons=, or n_rotations=0."
        )
    return asked


def describe_pass(
    source: Mapping[str, Any],
    examples: Sequence[Example],
    metrics: Sequence[Metric],
    columns: DesignMatrix,
    *,
    n_rotations: int,
    seed: int,
    given: Sequence[str],
) -> dict[str, Any]:
    """The provenance of a scoring pass, as plain JSON values."""
    return {
        **source,
        **provenance(examples),
        "metrics": [metric.name for metric in metrics],
        "units": {metric.name: metric.unit for metric in metrics},
        "exchange": dict(columns.schemes),
        "given": list(given),
        "n_permutations": columns.layout.n_draws,
        "n_controls": 0 if columns.no_control else columns.n_controls,
        "n_rotations": n_rotations,
        "seed": seed,
    }


_SUMS = (
    "column_mean",
    "unit_mean",
    "gram",
    "column_square",
    "cross",
    "square",
    "rotated_square",
    "squares",
)

_FIRST = ("origin", "scale")

_WAITING = ("waiting/weights", "waiting/columns", "waiting/units")


def restore_sums(
    saved: Checkpoint,
    running: RunningMoments,
    values: dict[str, Tensor],
    firing: FiringCounts | None = None,
) -> int:
    """Puts back the sums and metric values; returns how many batches they hold (0: none).

    Raises:
        LensSkillsError: The folder holds another pass.
    """
    kept = saved.read()
    if kept is None:
        return 0
    tensors, plain = kept
    running.weight = float(tensors.pop("weight"))
    for name in (*_SUMS, *_FIRST):
        if name in tensors:  # origin and scale: once the first rows are summed
            setattr(running, name, tensors.pop(name).to(running.cross.device))
    if _WAITING[0] in tensors:
        weights, columns, units = (tensors.pop(name).to(running.cross.device) for name in _WAITING)
        running.waiting = [(weights, columns, units)]
    if firing is not None:
        firing.fired, firing.count = tensors.pop("fired"), tensors.pop("fired/of")
        firing.binary = tensors.pop("fired/binary")
    for name, numbers in tensors.items():
        values[name.removeprefix("values/")] = numbers
    return int(plain["batches"])


def keep_sums(
    saved: Checkpoint,
    running: RunningMoments,
    values: Mapping[str, Tensor],
    firing: FiringCounts | None,
    batches: int,
    *,
    last: bool = False,
) -> None:
    """Saves the sums if the last save is long enough ago, or they are the last."""
    if not last and not saved.due():
        return
    sums = {name: getattr(running, name) for name in (*_SUMS, *_FIRST)}
    tensors = {name: x.cpu().contiguous() for name, x in sums.items() if x is not None}
    tensors["weight"] = torch.tensor(running.weight, dtype=torch.float64)
    # Rows not yet summed are kept as they wait: summed from here, they would be added up in
    # another order, and a resumed pass would not end in the same bits.
    for name, parts in zip(_WAITING, zip(*running.waiting, strict=True), strict=False):
        tensors[name] = torch.cat(parts).cpu()
    tensors |= {f"values/{name}": numbers for name, numbers in values.items()}
    if firing is not None:
        counts = {"fired": firing.fired, "fired/of": firing.count, "fired/binary": firing.binary}
        tensors |= counts
    (saved.finish if last else saved.write)(tensors, {"batches": batches})
