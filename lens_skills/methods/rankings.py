"""`rank_all`: every neuron ranked by many methods, from shared passes."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from lens_skills.activations import BATCH_SIZE, DEFAULT_SITE, Metric, Position
from lens_skills.causal.baseline import Baseline, describe_source
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.methods.chance import Blank
from lens_skills.methods.fitness import unfit
from lens_skills.methods.method import Method
from lens_skills.methods.observation import Observation, observe
from lens_skills.methods.ranking import Ranking
from lens_skills.methods.reading import Reader
from lens_skills.methods.slopes import Slopes, slopes_of
from lens_skills.methods.target import Target, target_of
from lens_skills.models import SoftPrompt
from lens_skills.models.fingerprint import identity
from lens_skills.scoring.matching import check_prompt
from lens_skills.scoring.provenance import examples_hash, versions
from lens_skills.stats.rotation import random_rotation


@dataclass(frozen=True, eq=False)
class Rankings:
    """Several methods on one split.

    Attributes:
        found: The rankings, in the order the methods were asked for.
        left_out: Why a method could not rank by this metric, with the way out.
        target: What was ranked by.
        seen: What the passes gave, the neurons' means among it.
        reader: The split, as it was read.
    """

    found: dict[str, Ranking]
    left_out: dict[str, str]
    target: Target
    seen: Observation
    reader: Reader

    @property
    def baseline(self) -> Baseline:
        """Mean and standard deviation of every neuron, as an edit takes them: no pass more."""
        sums, site = self.seen.sums, self.reader.site
        tables = []
        for numbers in (sums.mean, (sums.square / sums.n_rows).sqrt()):
            layers = rearrange(numbers, "(layer unit) -> layer 1 unit", unit=sums.width)
            tables.append({(at, site.name): layers[i] for i, at in enumerate(site.layers)})
        return Baseline(tables[0], tables[1], describe_source(self.reader.examples))


def rank_all(
    model: Any,
    examples: Sequence[Example],
    metric: Any,
    methods: Sequence[Method],
    *,
    differentiated: Metric | None,
    at: str = DEFAULT_SITE,
    position: Position | None = None,
    layers: int | Iterable[int] | None = None,
    prompt: SoftPrompt | None = None,
    split: str | None = None,
    gate: bool = True,
    rotation_seed: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    chat: bool = False,
    exploratory: bool = False,
    progress: bool | None = None,
) -> Rankings:
    """The rankings of several methods: one pass over the activations, one with gradients.

    Args:
        differentiated: What methods of gradients differentiate.
        rotation_seed: Of a rotated basis that is read beside the neurons (None: none).
        at, position, layers, prompt, split, gate, seed: As in `rank`.
        batch_size, chat, exploratory, progress: As there.
    """
    target = target_of(
        model,
        examples,
        metric,
        split=split,
        prompt=prompt,
        batch_size=batch_size,
        chat=chat,
        progress=progress,
    )
    reader = Reader(
        model,
        examples,
        at=at,
        position=position,
        layers=layers,
        prompt=prompt,
        batch_size=batch_size,
        chat=chat,
        progress=progress,
    )
    if reader.lens is not None:
        check_prompt(reader.lens.soft, examples, exploratory)
    left_out = unfit(methods, target, reader, gate, differentiated)
    able = [method for method in methods if method.name not in left_out]
    seen = observe(
        reader,
        target,
        able,
        fires=_open if any(method.reads == "firing" for method in able) else None,
        gate=gate and reader.gated,
        rotation=None
        if rotation_seed is None
        else random_rotation(reader.width, seed=rotation_seed),
        seed=seed,
    )
    scores: dict[str, tuple[Tensor, float]] = {}
    slopes: tuple[Slopes, float] | None = None
    for method in able:
        if method.reads != "gradient":
            scores[method.name] = _timed(method, seen, reader, seed)
            continue
        try:
            slopes = slopes or _slopes(reader, differentiated)
        except LensSkillsError as reason:
            left_out[method.name] = f"{method.name}: {reason}"
        else:
            scores[method.name] = method.of(slopes[0]), slopes[1]
    about = _provenance(reader, target, differentiated, seed)
    layer = torch.tensor(reader.site.layers).repeat_interleave(reader.width)
    found = {}
    for method in able:
        if method.name not in scores:
            continue
        score, seconds = scores[method.name]
        # Chance ranks every neuron; all others leave those out that do not vary.
        score = score if method.reads == "nothing" else score.masked_fill(seen.sums.constant, NAN)
        found[method.name] = Ranking(
            method=method.name,
            metric=slopes[0].metric if slopes and method.reads == "gradient" else target.name,
            layer=layer,
            neuron=torch.arange(reader.width).repeat(len(reader.site.layers)),
            score=score,
            strength=method.strength(score),
            unit=method.unit,
            about=method.about,
            source=method.source,
            site=reader.site.name,
            position=reader.label,
            n_examples=len(examples),
            seconds=seconds,
            provenance=about,
        )
    return Rankings(found, left_out, target, seen, reader)


NAN = float("nan")


def _open(gate: Tensor) -> Tensor:
    return gate > 0


def _timed(method: Method, seen: Observation, reader: Reader, seed: int) -> tuple[Tensor, float]:
    """A method's scores, and the seconds of its pass and its own arithmetic."""
    start = time.perf_counter()
    if method.reads == "nothing":
        return method.of(Blank(len(seen.sums.mean), seed)), time.perf_counter() - start
    if method.reads == "values":
        return seen.scores[method.name], seen.seconds["pass"] + seen.seconds[method.name]
    score = method.of(seen.sums)
    return score, seen.seconds["pass"] + time.perf_counter() - start


def _slopes(reader: Reader, metric: Metric | None) -> tuple[Slopes, float]:
    assert reader.lens is not None, "a table has no gradient"
    assert metric is not None, "a method of gradients without a metric"
    start = time.perf_counter()
    found = slopes_of(
        reader.lens,
        reader.examples,
        metric,
        reader.site,
        position=reader.position,
        batch_size=reader.batch_size,
        progress=reader.progress,
    )
    return found, time.perf_counter() - start


def _provenance(
    reader: Reader, target: Target, differentiated: Metric | None, seed: int
) -> dict[str, Any]:
    examples, lens, table = reader.examples, reader.lens, reader.table
    if lens is not None:
        about = {**identity(lens), "implementation": lens.implementation, "dtype": str(lens.dtype)}
    else:
        assert table is not None
        about = {name: table.manifest[name] for name in ("model", "model_fingerprint")}
    return {
        **about,
        "task": getattr(examples, "name", "examples"),
        "split": getattr(examples, "split_name", "all"),
        "examples": examples_hash(examples),
        "example_ids": [example.id for example in examples],
        "groups": sorted({example.group for example in examples}),
        "metric": target.name,
        "differentiated": None if differentiated is None else differentiated.name,
        "site": reader.site.name,
        "layers": list(reader.site.layers),
        "position": reader.label,
        "seed": seed,
        "versions": versions(),
    }
