"""`rank`: every neuron ranked by one method; `rank_all` by many, from shared passes.

A `Ranking` is one method's number for every neuron. `PassStatistics` are what the passes over the
activations gave, as few of them as memory allows. `unfit` says which methods cannot rank by a
metric, or in this model, and the way out.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Metric, Position, parse_metric
from lens_skills.activations.activation_reader import ActivationReader, model_in
from lens_skills.activations.components import Components, neuron_names
from lens_skills.activations.tally import add_up
from lens_skills.checkpoints import Checkpoint, part, resumable
from lens_skills.data import Example, field_of
from lens_skills.errors import LensSkillsError, RunError
from lens_skills.interventions.baselines import Baseline, describe_source
from lens_skills.models import Chat, SoftPrompt
from lens_skills.models.identity import identity
from lens_skills.models.precision import rounding_note
from lens_skills.ranking.methods import METHODS, LayerActivations, Method, find_methods
from lens_skills.ranking.rank_tally import RankTally
from lens_skills.ranking.split_passes import SplitPasses
from lens_skills.ranking.target_statistics import ClassSums, Target, target_of
from lens_skills.results import Result, provenance
from lens_skills.scoring.leakage import check_prompt
from lens_skills.scoring.score import keep_sums, restore_sums
from lens_skills.stats.moments import Moments
from lens_skills.stats.rotations import Rotation

STORED = 512 << 20
"""Bytes of activations kept at once; more layers than fit are read in further passes."""


@dataclass(frozen=True, eq=False)
class Ranking(Result):
    """Every neuron's number by one method; which are strongest, and in which direction.

    Does not show: that a neuron causes anything. `compare_methods` asks that.

    Attributes:
        method, metric: What ranked, and by what.
        layer, neuron: What each unit is.
        score: The method's number, with its sign where the method has one; NaN where it ranks the
            unit not at all (it does not vary, or the method chose others).
        strength: Larger is stronger, whatever the number means; -inf where it is not ranked.
        unit: What the number is measured in.
        about: What the number is, in a line.
        source: Where the method is from.
        site, position: Where the neurons were read.
        n_examples: On how many examples.
        seconds: What the method took: its pass over the split and its own arithmetic.
        provenance: Model, task, split, seed and versions behind the numbers.
    """

    method: str
    metric: str
    layer: Int[Tensor, " unit"]
    neuron: Int[Tensor, " unit"]
    score: Float[Tensor, " unit"]
    strength: Float[Tensor, " unit"]
    unit: str
    about: str
    source: str
    site: str
    position: str
    n_examples: int
    seconds: float
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def n_ranked(self) -> int:
        """How many units the method ranks at all."""
        return int((self.strength > -torch.inf).sum())

    def order(self, k: int) -> Int[Tensor, " unit"]:
        """Places of the k strongest units, the strongest first; fewer where fewer are ranked."""
        if k < 1:
            raise LensSkillsError(f"the {k} strongest neurons? Ask for 1 or more.")
        found = self.strength.argsort(descending=True, stable=True)
        return found[: min(k, self.n_ranked)]

    def top(self, k: int) -> Components:
        """The k strongest units, the strongest first, as any verb takes them."""
        return self._units(self.order(k))

    def _units(self, order: Int[Tensor, " unit"]) -> Components:
        rows = torch.stack([self.layer[order], self.neuron[order]], dim=1)
        return Components.of(rows, self.site, self.provenance)

    def names(self, k: int) -> list[str]:
        """The k strongest neurons' names, such as ``"L17N635"``."""
        return self.top(k).names

    def frame(self) -> pd.DataFrame:
        """One row per neuron, the strongest first: layer neuron name score strength rank."""
        order = self.strength.argsort(descending=True, stable=True)
        units = torch.stack([self.layer[order], self.neuron[order]], dim=1)
        return pd.DataFrame(
            {
                "layer": units[:, 0].numpy(),
                "neuron": units[:, 1].numpy(),
                "name": neuron_names(units, self.site, self.provenance),
                "score": self.score[order].numpy(),
                "strength": self.strength[order].numpy(),
                "rank": range(1, len(order) + 1),
            }
        )

    def __repr__(self) -> str:
        head = (
            f"{self.method} by {self.metric} · {self.site} at {self.position} · "
            f"{len(self.layer):,} neurons · {self.n_examples:,} examples"
        )
        lines = [head, f"  {self.about} ({self.source})"]
        if precision := self.provenance.get("precision"):
            lines.append(f"  {rounding_note(precision)}")
        if self.n_ranked < len(self.layer):
            lines.append(f"  {len(self.layer) - self.n_ranked:,} neurons are not ranked")
        order = self.order(3)
        for name, number in zip(self.top(3).names, self.score[order].tolist(), strict=True):
            lines.append(f"  {name}: {number:.4g} {self.unit}".rstrip())
        lines.append("  a ranking shows no effect; ls.compare_methods(…) tries the strongest")
        return "\n".join(lines)


@resumable()
def rank(
    model: Any,
    examples: Sequence[Example],
    metric: Any,
    *,
    method: str = "pearson",
    at: str = DEFAULT_SITE,
    position: Position | None = None,
    layers: int | Iterable[int] | None = None,
    prompt: SoftPrompt | None = None,
    split: str | None = None,
    gate: bool = True,
    contrast: Any = None,
    seed: int = 0,
    chat: Chat = False,
    precision: str | None = None,
    exploratory: bool = False,
    checkpoint: str | Path | None = None,
) -> Ranking:
    """Every neuron's number by one method, as a `Ranking`.

    Args:
        model: A HookedTransformer or TransformerBridge; an `ActivationTable` for methods that read
            activations only.
        examples: A `Task` or any sequence of `Example`.
        metric: What to rank by, as in `score`. Methods of gradients differentiate it, so for them
            it is something the model says (``"logit_diff"``); the others take any.
        method: One of `METHODS`.
        at: Hook point within a block.
        position: One position: ``"last"`` (default), an index, a span, ``"mean"`` or ``"max"``.
            ``"cett"`` and ``"h_neurons"`` read the tokens of the model's own answer instead.
        layers: Which layers (default all).
        prompt: A soft prompt to read every example with.
        split: ``"median"``: a continuous metric as above its median or not.
        gate: Of ``"lape"``: whether a neuron fires is the sign of its MLP's gate. ``False``: of the
            activation itself, for models without a gate.
        contrast: Of ``"specific"`` and its kin: other tasks (a sequence of `Task`, or a mapping
            from names), whose metrics the strongest neurons leave alone; they share no prompt with
            ``examples``. The project's neutral text is always one.
        seed: Of what is drawn at random.
        chat, precision: As in `score`.
        exploratory: Allow a soft prompt trained on these very examples.
        checkpoint: A folder that keeps the work so far, about once a minute; the same call goes on
            there with the same numbers.

    Raises:
        LensSkillsError: An unknown method or hook point, several positions, a metric of a kind the
            method does not take (with the way out), a method that needs a gate on a model without
            one, a metric without a gradient for a method that needs it, contrasts that are no
            tasks.
    """
    (wanted,) = find_methods([method])
    model, differentiated = model_in(model, precision), None
    if wanted.differentiates:
        differentiated = parse_metric(metric, examples, asked=f"the method {method!r}")
    target = target_of(model, examples, metric, split=split, prompt=prompt, chat=chat)
    reader = ActivationReader(
        model,
        examples,
        at=at,
        position=position,
        layers=layers,
        prompt=prompt,
        chat=chat,
        purpose="ranked",
    )
    check_prompt(reader.soft, examples, exploratory)
    rankings = rank_all(
        reader,
        target,
        [wanted],
        differentiated=differentiated,
        gate=gate,
        contrast=contrast,
        seed=seed,
    )
    if method in rankings.left_out:
        raise LensSkillsError(rankings.left_out[method])
    return rankings.rankings[method]


@dataclass(frozen=True, eq=False)
class PassStatistics:
    """What the passes over the activations gave.

    Attributes:
        sums: Of every unit.
        scores: Of each method that needed stored values.
        seconds: Of each of those, for its own arithmetic; ``"pass"`` for the forward passes.
        rotated: How much of each direction of the rotated basis of the standardised units the
            target explains (r² or η²); None without a rotation.
        scale: What each unit was divided by before it was rotated: about its standard deviation.
        n_passes: How often the split was read.
    """

    sums: ClassSums
    scores: dict[str, Float[Tensor, " unit"]]
    seconds: dict[str, float]
    rotated: Float[Tensor, " unit"] | None
    scale: Float[Tensor, " unit"] | None
    n_passes: int


@dataclass(frozen=True, eq=False)
class Rankings:
    """Several methods on one split.

    Attributes:
        rankings: By method, in the order the methods were asked for.
        left_out: Why a method could not rank by this metric, with the way out.
        target: What was ranked by.
        statistics: What the passes gave, the neurons' means among it.
        reader: The split, as it was read.
    """

    rankings: dict[str, Ranking]
    left_out: dict[str, str]
    target: Target
    statistics: PassStatistics
    reader: ActivationReader

    @property
    def baseline(self) -> Baseline:
        """Mean and standard deviation of every neuron, as an edit takes them: no pass more."""
        sums, site = self.statistics.sums, self.reader.site
        tables = []
        for numbers in (sums.mean, (sums.square / sums.n_rows).sqrt()):
            layers = rearrange(numbers, "(layer unit) -> layer 1 unit", unit=sums.width)
            tables.append({(at, site.name): layers[i] for i, at in enumerate(site.layers)})
        return Baseline(tables[0], tables[1], describe_source(self.reader.examples))


def rank_all(
    reader: ActivationReader,
    target: Target,
    methods: Sequence[Method],
    *,
    differentiated: Metric | None = None,
    gate: bool = True,
    contrast: Any = None,
    rotation_seed: int | None = None,
    seed: int = 0,
) -> Rankings:
    """The rankings of several methods: one pass over the activations, one with gradients.

    Methods that cannot rank here are left out. With ``rotation_seed`` a rotated basis is read
    beside the neurons. ``contrast`` is for methods that read other tasks; see `rank`.
    """
    left_out = unfit(methods, target, reader, gate, differentiated)
    able = [method for method in methods if method.name not in left_out]
    rotated = rotation_seed is not None
    statistics = read_statistics(
        reader,
        target,
        able,
        fires=_open if any(m.reads == "firing" for m in able) else None,
        gate=gate and reader.gated,
        rotation=Rotation.of(reader.width, seed=rotation_seed) if rotated else None,
        seed=seed,
    )
    passes = SplitPasses(reader, target, differentiated, contrast, seed)
    about = _provenance(reader, target, differentiated, seed)
    layer = torch.tensor(reader.site.layers).repeat_interleave(reader.width)
    found = {}
    for method in able:
        try:
            score, seconds = _scored(method, statistics, passes, seed)
        except RunError:
            raise
        except LensSkillsError as reason:
            if not method.reads_model:
                raise
            left_out[method.name] = f"{method.name}: {reason}"
            continue
        own = method.reads == "answers"
        if not own and method.reads != "nothing":  # chance ranks every neuron, others what varies
            score = score.masked_fill(statistics.sums.constant, torch.nan)
        found[method.name] = Ranking(
            method=method.name,
            metric=differentiated.name
            if differentiated is not None and method.differentiates
            else target.name,
            layer=layer,
            neuron=torch.arange(reader.width).repeat(len(reader.site.layers)),
            score=score,
            strength=method.strength(score),
            unit=method.unit,
            about=method.about,
            source=method.source,
            site=reader.site.name,
            position="answer" if own else reader.labels[0],
            n_examples=len(passes.answers().high) if own else len(reader.examples),
            seconds=seconds,
            provenance=about,
        )
    return Rankings(found, left_out, target, statistics, reader)


def _open(gate: Tensor) -> Tensor:
    """Whether a gate lets its neuron fire."""
    return gate > 0


def _scored(
    method: Method, statistics: PassStatistics, passes: SplitPasses, seed: int
) -> tuple[Tensor, float]:
    """A method's scores, and the seconds of its passes and its own arithmetic."""
    start, sums = time.perf_counter(), statistics.sums
    if method.reads_model:
        with passes.timed() as spent:
            given = {"gradient": passes.gradients, "answers": passes.answers}
            score = method.of(given.get(method.reads, lambda: passes)())
        return score, spent.seconds
    if method.reads == "nothing":
        return method.of(len(sums.mean), seed), time.perf_counter() - start
    if method.reads == "values":
        seconds = statistics.seconds
        return statistics.scores[method.name], seconds["pass"] + seconds[method.name]
    score = method.of(sums)
    return score, statistics.seconds["pass"] + time.perf_counter() - start


def _provenance(
    reader: ActivationReader, target: Target, differentiated: Metric | None, seed: int
) -> dict[str, Any]:
    examples, adapter, table = reader.examples, reader.adapter, reader.table
    if adapter is not None:
        about = {
            **identity(adapter),
            "implementation": adapter.implementation,
            "dtype": str(adapter.dtype),
        }
    else:
        assert table is not None
        names = ("model", "model_fingerprint", "chat", "weights", "d_head", "precision")
        about = {name: table.about[name] for name in names}
    return {
        **about,
        **provenance(examples),
        "example_ids": list(field_of(examples, "id")),
        "groups": sorted(set(field_of(examples, "group"))),
        "metric": target.name,
        "differentiated": None if differentiated is None else differentiated.name,
        "site": reader.site.name,
        "layers": list(reader.site.layers),
        "position": reader.labels[0],
        "seed": seed,
    }


def unfit(
    methods: Sequence[Method],
    target: Target,
    reader: ActivationReader,
    gate: bool,
    differentiated: Metric | None,
) -> dict[str, str]:
    """Why some methods cannot rank here, each with the way out."""
    found = {}
    for method in methods:
        why = misfit(method, target)
        if method.reads == "answers":
            why = why or _no_answers(method, reader)
        elif method.reads_model:
            why = _no_gradient(method, reader, differentiated) or (
                why if method.reads == "passes" and not method.of_metric else None
            )
        elif method.reads == "firing" and gate and not reader.gated:
            where = "a table" if reader.adapter is None else reader.adapter.name
            why = why or (
                f"{method.name} counts how often a neuron's gate is open, but {where} has none at "
                f"{reader.site.name}. Say gate=False to count how often the activation itself is "
                "above 0 (for a plain MLP that is the sign of its pre-activation)."
            )
        if why:
            found[method.name] = why
    return found


def _no_answers(method: Method, reader: ActivationReader) -> str | None:
    if reader.adapter is None:
        return f"{method.name} reads what the model answers, and a table is none. Give the model."
    if reader.site.name != DEFAULT_SITE:
        return (
            f"{method.name} measures what neurons write beside their MLP, at {DEFAULT_SITE!r}, not "
            f"at {reader.site.name!r}. Leave at= out."
        )
    if bare := next((e for e in reader.examples if e.answer is None), None):
        return (
            f"{method.name} lets the model answer, as long as the right answers are, and example "
            f"{bare.id!r} has none. Give examples with answers."
        )
    return None


def _no_gradient(method: Method, reader: ActivationReader, metric: Metric | None) -> str | None:
    if reader.adapter is None:
        return f"{method.name} differentiates the model, which a table is not. Give the model."
    if not method.differentiates:
        return None
    if metric is None or metric.known:
        name = "nothing" if metric is None else repr(metric.name)
        return (
            f"{method.name} differentiates what the model says, but {name} is a column of the "
            "task. Rank by metric='logit_diff' or confidence('answer'), or choose a method that "
            "reads activations."
        )
    return None


def misfit(method: Method, target: Target) -> str | None:
    """Why a method cannot rank by a metric of this kind, with the way out; None where it can.

    A method of gradients is asked elsewhere, since it takes a metric of the model.
    """
    if target.kind in method.takes:
        return None
    if target.kind == "categorical":
        able = [name for name, each in METHODS.items() if "categorical" in each.takes]
        return (
            f"{method.name} needs numbers in order, but {target.name!r} has "
            f"{len(target.classes)} categories. Name one, against the rest: "
            f"'{target.name}={target.classes[0]}'; or choose a method that takes categories: "
            f"{', '.join(able)}."
        )
    return (
        f"{method.name} needs classes, but {target.name!r} is continuous. Split it in two, "
        "split='median'; or choose a method that takes numbers: "
        f"{', '.join(name for name, each in METHODS.items() if 'continuous' in each.takes)}."
    )


def read_statistics(
    reader: ActivationReader,
    target: Target,
    methods: Sequence[Method],
    *,
    fires: Callable[[Tensor], Tensor] | None = None,
    gate: bool = False,
    rotation: Rotation | None = None,
    seed: int = 0,
) -> PassStatistics:
    """The sums over a split, and the scores of the methods that need stored values.

    ``fires`` says of the gate (with ``gate``) or of the activation whether the neuron fires.
    """
    stored = [method for method in methods if method.reads == "values"]
    gate = gate and fires is not None
    groups = field_of(reader.examples, "group")
    parts: list[Moments] = []
    firing: list[Tensor] = []
    rotated: list[Tensor] = []
    scales: list[Tensor] = []
    scores: dict[str, list[Tensor]] = {method.name: [] for method in stored}
    seconds = {"pass": 0.0, **{method.name: 0.0 for method in stored}}
    chunks = _chunks(reader, keep=bool(stored))
    for layers in chunks:
        start = time.perf_counter()
        moments, fired, kept = _read(reader, target, layers, gate, fires, rotation, bool(stored))
        parts.append(moments)
        firing += [] if fired is None else [fired]
        sums = ClassSums.of(target, [moments], firing[-1:], reader.width)
        seconds["pass"] += time.perf_counter() - start
        if rotation is not None:
            assert moments.scale is not None
            scales.append(moments.scale.cpu())
            square = moments.rotated_square[0].cpu()
            rotated.append(_explained(sums, square, scales[-1], rotation))
        for place in range(len(layers)):
            here = slice(place * reader.width, (place + 1) * reader.width)
            for method in stored:
                assert kept is not None
                start = time.perf_counter()
                values = LayerActivations(kept[:, here], target, groups, sums.constant[here], seed)
                scores[method.name].append(part(method.name, partial(method.of, values)))
                seconds[method.name] += time.perf_counter() - start
    return PassStatistics(
        sums=ClassSums.of(target, parts, firing, reader.width),
        scores={name: torch.cat(found) for name, found in scores.items()},
        seconds=seconds,
        rotated=torch.cat(rotated) if rotated else None,
        scale=torch.cat(scales) if scales else None,
        n_passes=len(chunks),
    )


def _chunks(reader: ActivationReader, *, keep: bool) -> list[tuple[int, ...]]:
    layers = reader.site.layers
    if not keep:
        return [layers]
    per_layer = 4 * reader.width * len(reader.examples)
    size = max(1, STORED // per_layer)
    return [layers[start : start + size] for start in range(0, len(layers), size)]


def _read(
    reader: ActivationReader,
    target: Target,
    layers: Sequence[int],
    gate: bool,
    fires: Callable[[Tensor], Tensor] | None,
    rotation: Rotation | None,
    keep: bool,
) -> tuple[Moments, Float[Tensor, "category unit"] | None, Float[Tensor, "row unit"] | None]:
    """One pass over some layers: sums, firing counts and, where they are needed, the values."""
    n_units = reader.width * len(layers)
    tally = RankTally(target, n_units, fires=fires, rotation=rotation, keep=keep)
    saved = Checkpoint.at({"layers": list(layers), "gate": gate}, name="rank")
    held = {"fired": tally.fired, **({} if tally.kept is None else {"kept": tally.kept})}
    skip = done = 0 if saved is None else restore_sums(saved, tally.running, held)
    tally.fired, tally.kept = held["fired"], held.get("kept")

    def keep_tally(batches: int, *, last: bool = False) -> None:
        nonlocal done
        done = batches
        if saved is not None:
            now = {"fired": tally.fired, **({} if tally.kept is None else {"kept": tally.kept})}
            keep_sums(saved, tally.running, now, None, batches, last=last)

    add_up(reader, tally, skip=skip, layers=layers, gate=gate, verb="rank", keep=keep_tally)
    if done > skip:
        keep_tally(done, last=True)
    return tally.running.freeze(), tally.fired if fires is not None else None, tally.kept


def _explained(
    sums: ClassSums,
    square: Float[Tensor, " unit"],
    scale: Float[Tensor, " unit"],
    rotation: Rotation,
) -> Float[Tensor, " unit"]:
    """The share of the variance of each direction of the standardised units the target explains.

    η² over the classes, which for two of them is r²; r² for a continuous target.
    """
    rows, weights = sums.cross[None], torch.tensor([sums.target_square], dtype=torch.float64)
    if sums.target.classes:
        rows, weights = sums.class_cross, sums.size
    turned = rotation.turn((rows / scale).float()).double()
    explained = (turned**2 / rearrange(weights, "category -> category 1")).sum(0)
    return (explained / square.clamp(min=1e-300)).clamp(max=1)
