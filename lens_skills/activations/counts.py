"""`fit_count`: the threshold of each neuron at which the tokens above it go best with a metric."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations.activation_table import ActivationTable
from lens_skills.activations.forward import NOTHING, Encoded, prepare
from lens_skills.activations.locations import (
    DEFAULT_SITE,
    Count,
    PositionSpec,
    Span,
    find_site,
)
from lens_skills.activations.metrics import parse_metrics
from lens_skills.activations.stream import Places, places_of, read_sites
from lens_skills.data import Example, field_of
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, SoftPrompt, with_soft_prompt

SAMPLED = 1024
"""Tokens of which quantiles are taken: more cost memory, and move no quantile by much."""

QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.98)
STEPS = (0.25, 0.5, 0.75)
FEWEST_EXAMPLES = 10


def fit_count(
    model: Any,
    examples: Sequence[Example],
    metric: Any,
    *,
    quantiles: Sequence[float] = QUANTILES,
    steps: Sequence[float] = STEPS,
    over: Span | None = None,
    at: str = DEFAULT_SITE,
    layers: int | Iterable[int] | None = None,
    prompt: SoftPrompt | None = None,
    chat: Chat = False,
    seed: int = 0,
) -> Count:
    """A count whose threshold is each neuron's own, chosen on these examples.

    The candidates of a neuron are quantiles of its activation over the tokens (of at most 1,024,
    drawn), and steps from the median to the largest of them, which part tokens it fires at from
    those it does not; taken is the one whose count has the largest |r| with the metric here, of
    equal ones the one that stands first. Where the result is read, examples and groups of these are
    refused: fit on one split, score on another. Two passes over the examples.

    Args:
        model: A model; a table holds no tokens to count.
        examples: What thresholds are chosen on, at least 10.
        metric: What the count should go with: a number, such as ``"covariate:negations"``.
        quantiles: Of the activation over tokens, between 0 and 1.
        steps: Shares, between 0 and 1, of the way from the median to the largest.
        over: Count in this piece of text only; see `count`.
        at, layers, prompt, chat: As in `stream`.
        seed: Of the tokens that are drawn.

    Raises:
        LensSkillsError: A table; too few examples; quantiles or steps beyond 0 and 1, or
            none; a metric that is no number or is the same everywhere; as `stream`.

    Source: an analogue of the thresholds of arXiv 2005.00723, which are learned by gradient there
    and chosen per neuron among a few here.

    Does not show: how well the count does; |r| at the chosen threshold is the largest of several.

    >>> import lens_skills as ls
    >>> model = ls.load_model("arithmetic-small")
    >>> task = ls.tasks.arithmetic("+", digits=2, n=60)
    >>> fit, rest = task.split(0.5, 0.5, seed=0)
    >>> where = ls.fit_count(model, fit, "covariate:ones_a", layers=1)
    >>> where.site, len(where.thresholds[1])
    ('mlp.hook_post', 384)
    """
    if isinstance(model, ActivationTable):
        raise LensSkillsError(
            "a table holds no activation at every token. Give fit_count the model, and capture at "
            "what it returns: ls.capture(model, examples, path, position=…)."
        )
    shares = [float(share) for share in (*quantiles, *steps)]
    if not shares or not all(0 < share < 1 for share in shares):
        raise LensSkillsError(
            f"quantiles={quantiles}, steps={steps}: name one or more between 0 and 1."
        )
    if len(examples) < FEWEST_EXAMPLES:
        raise LensSkillsError(
            f"{len(examples)} examples are too few to choose a threshold on: give "
            f"{FEWEST_EXAMPLES} or more."
        )
    adapter = with_soft_prompt(model, prompt, chat)
    measured, *more = parse_metrics(metric, examples)
    if more:
        raise LensSkillsError(
            f"fit_count takes one number per example, and {metric!r} is {1 + len(more)} metrics "
            f"({measured.name}, {more[0].name}, …). Name one of them; whole numbers that count "
            "something stand as a covariate."
        )
    site = find_site(adapter, at, layers)
    spec = PositionSpec((Count(0.0, over),), None, True, False)
    encoded, plan = prepare(adapter, examples, [measured])
    places = places_of(adapter, encoded, spec)
    drawn = _drawn(places, encoded, seed)
    rows, y = [], torch.zeros(len(examples), dtype=torch.float64)
    for batch in read_sites(adapter, encoded, plan, [site], spec, places, metrics=[measured]):
        y[batch.index] = batch.metrics[measured.name].double().cpu()
        for row, index in enumerate(batch.index.tolist()):
            rows.append(batch.activations[row, drawn[index]].cpu())
    if float(y.std(correction=0)) == 0:
        raise LensSkillsError(
            f"{measured.name} is {float(y[0]):g} on all {len(examples):,} examples: no threshold "
            "can go with it. Give examples on which it varies."
        )
    candidates = _candidates(torch.cat(rows), quantiles, steps)
    del rows
    sums = _Sums(candidates, y - y.mean())
    for batch in read_sites(adapter, encoded, NOTHING, [site], spec, places):
        assert batch.mask is not None
        sums.add(batch.activations.cpu(), batch.mask.cpu(), batch.index)
    best = sums.strength().nan_to_num(-1.0).max(0).indices
    chosen = candidates.gather(0, best[None])[0]
    told = f"{site} {over} {field_of(examples, 'id')}".encode() + chosen.numpy().tobytes()
    return Count(
        theta=None,
        over=over,
        site=site.name,
        thresholds=dict(zip(site.layers, chosen, strict=True)),
        name=hashlib.sha256(told).hexdigest()[:8],
        fitted_on=(frozenset(field_of(examples, "id")), frozenset(field_of(examples, "group"))),
    )


def _candidates(
    values: Float[Tensor, "token layer neuron"], quantiles: Sequence[float], steps: Sequence[float]
) -> Float[Tensor, "candidate layer neuron"]:
    """Thresholds to try: order statistics, and steps from the median to the largest."""
    ordered = values.sort(0).values
    n = len(ordered)
    low, high = ordered[n // 2], ordered[-1]
    ranks = [ordered[min(int(quantile * n), n - 1)] for quantile in quantiles]
    return torch.stack([*ranks, *(low + step * (high - low) for step in steps)])


def _drawn(places: Places, encoded: Sequence[Encoded], seed: int) -> dict[int, Int[Tensor, " k"]]:
    """By example: which of its tokens quantiles are taken of."""
    sizes = {item.index: len(places[item.index][0]) for item in encoded}
    tokens = [(index, place) for index, size in sizes.items() for place in range(size)]
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    found: dict[int, list[int]] = {index: [] for index in sizes}
    for number in order[:SAMPLED].tolist():
        index, place = tokens[number]
        found[index].append(place)
    return {index: torch.tensor(some, dtype=torch.long) for index, some in found.items()}


class _Sums:
    """What r of every candidate's count with the metric is made of."""

    def __init__(
        self, candidates: Float[Tensor, "candidate layer neuron"], centred: Float[Tensor, " row"]
    ) -> None:
        self.candidates, self.centred = candidates, centred
        self.first, self.square, self.cross = torch.zeros(3, *candidates.shape, dtype=torch.float64)

    def add(self, values: Tensor, mask: Tensor, index: Tensor) -> None:
        y = self.centred[index]
        for number, theta in enumerate(self.candidates):
            counted = ((values > theta) & mask[:, :, None, None]).sum(1).double()
            self.first[number] += counted.sum(0)
            self.square[number] += counted.square().sum(0)
            self.cross[number] += torch.tensordot(y, counted, dims=1)

    def strength(self) -> Float[Tensor, "candidate layer neuron"]:
        """|r|; NaN where the count does not vary."""
        n = len(self.centred)
        spread = self.square - self.first.square() / n
        spread = torch.where(spread > 1e-9 * n, spread, torch.nan)
        return (self.cross.abs() / (spread * self.centred.square().sum()).sqrt()).round(decimals=9)
