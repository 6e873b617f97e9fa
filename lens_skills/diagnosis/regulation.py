"""`regulators`: is a hit on a confidence metric a skill neuron, or does it regulate confidence?"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, ActivationTable, Metric, confidence, parse_metric
from lens_skills.causal.neutral import neutral_texts
from lens_skills.causal.units import parse_units
from lens_skills.diagnosis.background import cut_texts, log_unigram, read_background
from lens_skills.diagnosis.correlation import correlate
from lens_skills.diagnosis.flags import ALPHA
from lens_skills.diagnosis.kinds import Regulators
from lens_skills.diagnosis.measures import (
    add_effects,
    add_r,
    add_words,
    answer_loss,
    divergence_from,
    weight_columns,
)
from lens_skills.diagnosis.mediation import Outcome, mediate
from lens_skills.diagnosis.readings import random_neurons, read, refuse_constant
from lens_skills.diagnosis.unembedding import null_size
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import Lens, SoftPrompt, prompted

FEWEST_GROUPS = 8
"""With fewer an interval over groups says nothing."""


STAND_IN = "the frequency direction is from the model's own mean prediction on the neutral texts"

MOST_CONTROLS = 100
"""Random neurons per layer, unless asked otherwise: p can be as small as 1/101."""


def regulators(
    model: Any,
    examples: Sequence[Example],
    neurons: Any,
    *,
    metric: Any = None,
    neutral: Sequence[str] | None = None,
    unigram: Float[Tensor, " d_vocab"] | None = None,
    prompt: SoftPrompt | None = None,
    n_effects: int = 64,
    n_controls: int | None = None,
    n_null: int | None = None,
    batch_size: int = 32,
    progress: bool | None = None,
    seed: int = 0,
) -> Regulators:
    """The confidence diagnostics of each neuron, and whether it is a generic regulator.

    From the weights, against all neurons of the layer: ‖w_out‖, the variance over the vocabulary
    of cos(w_out, W), the null-space share, the cosine of the logit write with the frequency
    direction (the centred log-unigram). From passes: correlation with the metric on the task and at
    every token of neutral text; the effects of mean ablation at the last prompt token, and
    1 - mean |Δ frozen| / mean |Δ direct|, the share of the direct effect that goes through the
    final norm's scale. Rule and thresholds: `lens_skills.diagnosis.flags`.

    Args:
        model: A HookedTransformer or TransformerBridge; it is left as it was.
        examples: The task; best a split that selected nothing.
        neurons: Names, (layer, index) rows, or a `Selection`, at ``mlp.hook_post``.
        metric: What the neurons are hits for: a number read off one position's logits, such as
            ``confidence()`` (the default), ``confidence("entropy")`` or ``logit_diff()``. Where it
            needs an answer, minus the entropy stands for it on neutral text.
        neutral: Texts that have nothing to do with the task; None takes those of the project.
        unigram: A count for each token of the vocabulary, from the model's training corpus. None
            takes the model's own mean next-token distribution over the neutral texts, which is a
            stand-in.
        prompt: A soft prompt to read the task with; neutral text is read without it.
        n_effects: Examples to ablate on, drawn by group; neutral texts are cut at two places each.
        n_controls: Random neurons of each layer that |effect| is ranked among; None: 100, or all
            others where the layer holds fewer.
        n_null: Singular directions that count as the null space; None: 0.01 d_model.
        batch_size: Examples per forward pass.
        progress: Show a progress bar (None: on a terminal only).
        seed: Of the draws.

    Raises:
        LensSkillsError: A neuron that does not vary, fewer than `FEWEST_GROUPS` groups, a metric
            of categories or that no model is needed for, a table instead of a model, a model
            without a norm before its vocabulary projection.

    Source: Stolfo et al. 2024 (arXiv 2406.16254); Gurnee et al. 2024 (arXiv 2401.12181).
    Does not show: what a skill neuron's skill is; see `explain`.
    """
    if isinstance(model, ActivationTable):
        raise LensSkillsError("the diagnostics need the model itself, not a table of activations.")
    lens, bare = prompted(model, prompt), prompted(model, None)
    watched = _continuous(confidence() if metric is None else metric, examples)
    check_groups([example.group for example in examples])
    chosen = _rows(lens, neurons)
    n, k = len(chosen), n_null or null_size(lens.d_model)
    if n_controls is None:
        most = int(chosen[:, 0].bincount().max())
        n_controls = min(MOST_CONTROLS, lens.d_mlp - most)
    several = _with_controls(chosen, n_controls, lens.d_mlp, seed)
    options: dict[str, Any] = {"at": DEFAULT_SITE, "position": "last", "batch_size": batch_size}
    task = read(lens, examples, several, metrics=[watched], progress=progress, **options)
    refuse_constant(task, n)
    values = task.metrics[watched.name]
    _refuse_two_values(watched, values)
    texts = neutral_texts() if neutral is None else neutral
    background = read_background(bare, texts, several, watched)
    log_shares = log_unigram(unigram, background, lens.d_vocab)
    table, cloud = weight_columns(lens, chosen, k, log_shares)
    add_r(table, "r_task", correlate(task.values[:n], values, task.groups))
    there = correlate(background.values[:n], background.metric, background.groups)
    add_r(table, "r_neutral", there)
    drawn, cuts = draw_by_group(examples, n_effects, seed), cut_texts(texts, seed=seed)
    answers = all(example.answer is not None for example in examples)
    outcomes: dict[str, Outcome] = {"metric": watched}
    if answers:
        outcomes["loss"] = answer_loss
    effects = mediate(
        lens, drawn, several, task.values.mean(1), outcomes, answers=answers, n_paths=n
    )
    outcomes = {"entropy": confidence("entropy"), "unigram": divergence_from(log_shares)}
    mean = background.values.mean(1)
    quiet = mediate(bare, cuts, several, mean, outcomes, answers=False, n_paths=n)
    add_effects(table, chosen, several, effects, quiet, seed)
    add_words(table)
    return Regulators(
        neurons=chosen,
        table=table,
        k=k,
        metric=watched.name,
        neutral_metric=background.metric_name,
        unigram_from="the frequency direction is from the counts given"
        if unigram is not None
        else STAND_IN,
        n_examples=len(examples),
        n_groups=len(set(task.groups)),
        n_effects=len(drawn),
        n_texts=len(texts),
        n_controls=n_controls,
        provenance=task.about,
        **cloud,
    )


def check_groups(groups: Sequence[str]) -> None:
    """Nothing; raises where there are too few groups for an interval over them."""
    count = len(set(groups))
    if count < FEWEST_GROUPS:
        raise LensSkillsError(
            f"{len(groups)} examples in {count} groups: an interval over groups needs "
            f"{FEWEST_GROUPS} or more (30 to hold what it says). Give examples of other groups."
        )


def draw_by_group(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """About ``count`` examples, as evenly from all groups as there are."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(examples), generator=generator).tolist()
    turns: dict[str, int] = {}
    ranked = []
    for place in order:
        group = examples[place].group
        turns[group] = turns.get(group, 0) + 1
        ranked.append((turns[group], len(ranked), place))
    return [examples[place] for _, _, place in sorted(ranked)[:count]]


def _continuous(metric: Any, examples: Sequence[Example]) -> Metric:
    found = parse_metric(metric, examples, asked="regulators(metric=…)")
    if found.known:
        raise LensSkillsError(
            f"the metric {found.name!r} is known before the model runs, so it is no confidence. "
            "Choose confidence(), confidence('entropy') or logit_diff()."
        )
    if "stop" in found.reads:
        raise LensSkillsError(
            f"{found.name!r} is read off several positions. Choose one that a single position "
            "tells: confidence(), confidence('entropy'), logit_diff()."
        )
    return found


def _refuse_two_values(metric: Metric, values: Float[Tensor, " example"]) -> None:
    if len(values.unique()) <= 2:
        raise LensSkillsError(
            f"{metric.name!r} takes {len(values.unique())} values here, and the diagnostics need a "
            "continuous metric. Choose confidence() or logit_diff()."
        )


def _rows(lens: Lens, neurons: Any) -> Int[Tensor, "neuron 2"]:
    units = parse_units(lens, neurons, at=DEFAULT_SITE)
    if not units:
        raise LensSkillsError("no neurons to diagnose: the selection is empty.")
    for unit in units:
        if unit.site != DEFAULT_SITE:
            raise LensSkillsError(
                f"{unit.name!r} is no neuron. Name neurons at {DEFAULT_SITE}, such as 'L17N635'."
            )
    return torch.tensor([[unit.layer, unit.start] for unit in units])


def _with_controls(
    neurons: Int[Tensor, "neuron 2"], n_controls: int, width: int, seed: int
) -> Int[Tensor, "several 2"]:
    """The neurons, then random others of each of their layers."""
    if n_controls < round(1 / ALPHA) - 1:
        raise LensSkillsError(
            f"n_controls={n_controls}: p = {ALPHA} takes {round(1 / ALPHA) - 1} or more."
        )
    parts = [neurons]
    for layer in neurons[:, 0].unique().tolist():
        rows = neurons[neurons[:, 0] == layer]
        parts.append(random_neurons(rows, n_controls, width=width, seed=seed))
    return torch.cat(parts)
