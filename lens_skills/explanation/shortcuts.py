"""`shortcuts`: strong neurons, the surface features behind them, and the ablation that decides."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Metric, Position, evaluate, parse_metric
from lens_skills.activations.components import parse_components, parse_neurons, site_of
from lens_skills.activations.metrics import causal_metric
from lens_skills.errors import LensSkillsError
from lens_skills.explanation.conditional_effects import (
    ConditionalEffects,
    ablate_each,
)
from lens_skills.explanation.disguises import disguises, label_columns, told
from lens_skills.explanation.explain import explain, metric_column
from lens_skills.explanation.explanations import ALPHA
from lens_skills.explanation.feature_bank import FeatureBank, feature_bank
from lens_skills.explanation.shortcut_report import (
    ControlledEffect,
    Shortcut,
    Shortcuts,
    no_shortcuts,
    word_for,
)
from lens_skills.explanation.shortcut_ties import Tie, q_of_ties, sets_of
from lens_skills.interventions import Controls, Edit, ablate
from lens_skills.interventions.effects import effect_metric
from lens_skills.models import Chat, ModelAdapter, with_soft_prompt
from lens_skills.results import examples_hash, provenance
from lens_skills.scoring import score, select
from lens_skills.stats.effect_tests import FEWEST_GROUPS
from lens_skills.tasks import Task

_CONFIRMED_AMONG = 200  # the strongest on explore are looked at again on confirm
NEAREST = Controls(neurons=100)


def shortcuts(
    model: Any,
    explore: Task,
    confirm: Task,
    intervene: Task,
    *,
    metric: Any = "correct",
    neurons: Any = None,
    features: FeatureBank | None = None,
    k: int = 5,
    at: str = DEFAULT_SITE,
    position: Position = "last",
    do: Edit | None = None,
    causal_metric: Any = None,
    least: float = 0.1,
    delta: float | None = None,
    controls: Controls = NEAREST,
    sets: int = 0,
    n_permutations: int = 999,
    chat: Chat = False,
    seed: int = 0,
) -> Shortcuts:
    """Which neurons that are strong for a metric owe it to a surface feature: `Shortcuts`.

    1. On explore, neurons are ranked by |r| with the metric; on confirm, those that hold up stay.
    2. On explore, `explain` finds the feature behind each. A neuron is *tied* to a surface feature
       where that explains at least ``least`` of its variance on held-out examples (q <= 0.05 over
       the neurons tried, of a p that is family-wise over the features), and no feature that defines
       the task explains much more. Features that stand for the metric (its η² on them is 0.8 or
       more) are left out; those that stand for a label count as defining the task.
    3. On confirm: what that implies, and on how many such examples the model is right and wrong.
    4. On intervene, each neuron is ablated. The effect on examples with the feature less that
       on those without is ranked among the same difference of matched neurons of its layer.

    The words: *shortcut* where the difference's 95 % interval lies beyond δ, few controls reach it
    (q <= 0.05), and it is larger with the feature; *tied, not causal* where its 90 % interval lies
    within δ and so does not matter; *causal, but no surface feature explains it* where the effect
    on all examples is beyond δ; else what is missing. δ is, unless declared, what a neuron's own
    controls reach in 95 %, less the noise of measuring it, and at least 1 % of the clean metric.

    Args:
        model: A HookedTransformer or TransformerBridge.
        explore, confirm, intervene: Splits that share no group.
        metric: What the neurons are strong for: ``"correct"``, ``confidence()``, ….
        neurons: These instead of a search for the strongest.
        features: From `feature_bank`; by default all that `feature_bank` finds on explore.
        k: At most so many neurons of the search.
        at, position: The neurons' site, and where they are read and ablated.
        do: How they are ablated; default mean ablation over explore.
        causal_metric: What is measured while they are; default ``metric``, or, where that is 0/1
            or a column, ``logit_diff`` or ``answer_probability``.
        least: Share of variance from which a feature explains a neuron.
        delta: The smallest effect that matters, in the causal metric's unit.
        controls: As in `verify`, of which ``neurons`` is read: so many of the same layer for
            each, those nearest to it in mean |a|, std and ‖W_out‖. With k neurons and n controls,
            one alone can pass only where 1 / (1 + n) <= 0.05 / k. With ``sets``, its ``sets``
            too: so many random sets for each, as many neurons of the same layers.
        sets: Of so many of the strongest (of all, where ``neurons`` names them) those that are
            tied to one feature, under one condition, and push the metric the same way, are ablated
            together as well, in sets of two or more; 0 for none. The ``k`` that are ablated alone
            are then the strongest that are tied, and q is over neurons and sets.
        n_permutations: For the search and for the features.
        chat: As in `score`.
        seed: Of all draws.

    Raises:
        LensSkillsError: Splits that share groups or hold too few of them; a feature bank that is
            left empty; as `score`, `explain` and `sweep`.

    Source: bag of heuristics and their knock-out, Nikankin et al. 2024 (arXiv 2410.21272).
    """
    adapter = with_soft_prompt(model, None, chat)
    check_apart(explore, confirm, intervene)
    check_groups(explore, confirm, intervene)
    wanted = parse_metric(metric, (), asked="shortcuts(metric=…)")
    outcome = parse_causal_metric(wanted, causal_metric, intervene)
    splits = (explore, confirm, intervene)
    about = {
        **provenance(explore, adapter),
        "splits": [split.split_name for split in splits],
        "examples": [examples_hash(split) for split in splits],
        "n_controls": controls.neurons,
        **({"n_control_sets": controls.sets} if sets else {}),
        "seed": seed,
    }
    at = site_of(neurons, at)
    options: dict[str, Any] = {
        "at": at, "position": position, "n_permutations": n_permutations, "seed": seed,
    }  # fmt: skip
    found = find_candidates(
        adapter, explore, confirm, neurons, metric=wanted, k=max(k, sets), **options
    )
    if len(found.neurons) == 0:
        return no_shortcuts(wanted.name, found.notes[0], about)
    bank, same, warned = without_disguises(
        adapter,
        explore,
        feature_bank(explore) if features is None else features,
        wanted,
        known=found.known,
    )
    explained = explain(adapter, explore, found.neurons, features=bank, **options)
    components = parse_components(adapter, found.neurons, at=at)
    ties = [
        Tie.of(explained[one.name], bank, explore, r=float(r), q=q, least=least)
        for one, r, q in zip(
            components,
            found.r,
            q_of_ties([explained[one.name] for one in components]),
            strict=True,
        )
    ]
    if found.r_explore is not None:
        selected = found.r_explore.tolist()
        ties = [replace(tie, r_explore=r) for tie, r in zip(ties, selected, strict=True)]
    several = sets_of(ties) if sets else []
    if neurons is None and sets:  # the tied first, so that they are not tried in sets only
        ties = sorted(ties, key=lambda tie: tie.condition is None)[:k]
    by_name = {one.name: one for one in components}
    alone = [by_name[tie.name] for tie in ties]
    ties = [*ties, *several]
    ablated = ablate_each(
        adapter,
        intervene,
        alone,
        [[by_name[name] for name in tie.members] for tie in several],
        do=ablate("mean", over=explore) if do is None else do,
        apart=components,
        metric=outcome,
        position=position,
        controls=controls,
        seed=seed,
    )
    present = [None if tie.condition is None else tie.condition.of(intervene) for tie in ties]
    differences, overall = ablated.differences(present, delta), ablated.overall(delta)
    right = [_right(adapter, split) for split in (confirm, intervene)]
    tried = tuple(
        _describe(
            tie,
            splits,
            right,
            ablated.total[place],
            difference=differences[place],
            effect=overall[place],
            n_controls=len(ablated.controls[place]),
        )
        for place, tie in enumerate(ties)
    )
    nowhere = torch.zeros(len(intervene), dtype=torch.bool)
    together = (_of_sets(len(components), len(alone), len(several)),) if sets else ()
    return Shortcuts(
        neurons=tried[: len(alone)],
        sets=tried[len(alone) :],
        explanations=explained,
        effects=ablated.total,
        present=torch.stack([nowhere if part is None else part for part in present]).double(),
        example_ids=tuple(example.id for example in intervene),
        metric=wanted.name,
        causal_metric=outcome.name,
        unit=ablated.unit,
        do=ablated.do,
        notes=(
            *found.notes,
            *together,
            *warned,
            *_coarse(ablated, len(tried)),
            *explained.notes,
        ),
        provenance=about,
        clean=float(ablated.clean.mean()),
        n_groups=len(set(ablated.groups)),
        n_features=len(explained.features),
        disguises=same,
    )


def _of_sets(n_tried: int, n_alone: int, n_sets: int) -> str:
    """Which of the neurons that were explained are ablated alone, and in how many sets."""
    alone = f"of {n_tried} neurons that were explained, {n_alone} were ablated alone"
    if n_alone < n_tried:
        alone += " (those that are tied to a feature first)"
    if n_sets == 0:
        return f"{alone}; no two are tied to one feature and push the same way, so there is no set"
    return (
        f"{alone}, and those that are tied to one feature, under one condition, and push the same "
        f"way, together: {n_sets} set{'s' * (n_sets > 1)}"
    )


def check_apart(*splits: Task) -> None:
    """Nothing; raises where two splits share a group."""
    for place, split in enumerate(splits):
        for other in splits[place + 1 :]:
            shared = set(split.groups) & set(other.groups)
            if shared:
                raise LensSkillsError(
                    f"the splits {split.split_name!r} and {other.split_name!r} share "
                    f"{len(shared)} groups (such as {sorted(shared)[0]!r}): what is found on one "
                    "would be confirmed by itself. Divide the task: task.split(0.4, 0.2, 0.4)."
                )


def check_groups(explore: Task, confirm: Task, intervene: Task) -> None:
    """Nothing; raises where a split holds too few groups, before anything is measured."""
    for split in (explore, confirm, intervene):
        fewest = (1 + (split is explore)) * FEWEST_GROUPS
        if len(split.groups) < fewest:
            raise LensSkillsError(
                f"the split {split.split_name!r} holds {len(split.groups)} of the {fewest} groups "
                "that shortcuts needs at least"
                + (
                    " (half of them to rank features on, half to measure)"
                    if split is explore
                    else ""
                )
                + ". Give more groups. All the same, explain(…, n_permutations=0) ranks the "
                "features of these examples, without any p."
            )


def parse_causal_metric(metric: Metric, asked: Any, examples: Task) -> Metric:
    """What is measured under ablation: the metric, or a continuous one for a 0/1 or a column.

    Raises:
        LensSkillsError: A column is asked for, or a column is the metric and there are no answers.
    """
    if asked is None and (metric.known or metric.unit == "0/1"):
        asked = causal_metric(examples)
        if asked is None:
            raise LensSkillsError(
                f"{metric.name!r} cannot be measured while neurons are ablated, and the examples "
                "have no answers. Say what should change: causal_metric='entropy', …"
            )
    return effect_metric(metric if asked is None else asked)


@dataclass(frozen=True, eq=False)
class ShortcutCandidates:
    """Neurons, strongest first, their r with the metric on confirm, and notes on them.

    ``neurons`` is empty where none held up, and the first note says so. ``r_explore`` and ``known``
    (the metric) are of explore, where there was a search.
    """

    neurons: Int[Tensor, "k 2"]
    r: Float[Tensor, " k"]
    notes: tuple[str, ...]
    r_explore: Float[Tensor, " k"] | None = None
    known: Float[Tensor, " example"] | None = None


def find_candidates(
    adapter: ModelAdapter,
    explore: Task,
    confirm: Task,
    neurons: Any,
    *,
    metric: Metric,
    k: int,
    n_permutations: int,
    seed: int,
    **where: Any,
) -> ShortcutCandidates:
    """The neurons given, or the k strongest that pass the permutation null and are confirmed."""
    options = {"metrics": [metric], "seed": seed, **where}
    if neurons is not None:
        rows = parse_neurons(neurons, site_of(neurons, where["at"]), adapter.d_head)
        if len(rows) == 0:
            raise LensSkillsError("no neurons to test: none were named (an empty selection?).")
        confirm_scores = score(adapter, confirm, neurons=rows, n_permutations=0, **options)
        notes = ("the neurons were named, not searched for",)
        return ShortcutCandidates(rows, confirm_scores[metric.name].r[0], notes)
    scores = score(adapter, explore, n_permutations=n_permutations, **options)
    candidates = scores[metric.name].top(_CONFIRMED_AMONG)
    confirm_scores = score(
        adapter, confirm, neurons=candidates, n_permutations=n_permutations, **options
    )
    # Whether they beat the control task is not asked here: the ablation decides.
    chosen = select(scores[metric.name], confirm_scores[metric.name], grade="C", exploratory=True)
    if len(chosen) == 0:
        note = (
            f"no neuron is strong for {metric.name} here: {chosen.attrition_line()}. Give more "
            "examples, or name neurons: neurons=scores[metric].top(20)"
        )
        return ShortcutCandidates(chosen.neurons, chosen.r_confirm, (note,))
    notes = (
        f"{chosen.attrition_line()}; the {min(k, len(chosen))} strongest were tested",
        "they were selected on explore and confirm, so their r and the shares explained are larger "
        "than on new examples; the effects on intervene are not",
    )
    return ShortcutCandidates(
        chosen.neurons[:k],
        chosen.r_confirm[:k],
        notes,
        chosen.r_explore[:k],
        scores.values[metric.name],
    )


def without_disguises(
    adapter: ModelAdapter,
    explore: Task,
    bank: FeatureBank,
    metric: Metric,
    *,
    known: Float[Tensor, " example"] | None = None,
) -> tuple[FeatureBank, pd.DataFrame, tuple[str, ...]]:
    """The bank without surface features that stand for the metric, those of a label marked so.

    With the table of `disguises`, and what is to be said of both. ``known`` is the metric on
    explore; None reads it.
    """
    if known is None:
        known = evaluate(adapter, explore, [metric])[metric.name]
    own = metric_column(metric.name, known)
    values = bank.values(explore)
    same = disguises(bank, values, own | label_columns(explore))
    surface = same.loc[same["surface"]]
    copies = surface.loc[surface["column"].isin(list(own))].drop_duplicates("feature")
    notes = []
    for row in copies.itertuples():
        text = (
            f"the feature {row.feature!r} is {metric.name} in disguise (η² = "
            f"{row.eta_squared:.2f}) and was left out: it would explain every neuron of the metric "
            "by itself"
        )
        warnings.warn(text, RuntimeWarning, stacklevel=3)
        notes.append(text)
    left = bank.without(*copies["feature"]) if len(copies) else bank
    labels = surface.loc[~surface["feature"].isin(copies["feature"])]
    if n := labels["feature"].nunique():
        marked = set(labels["feature"])
        left = replace(
            left,
            features=tuple(
                replace(one, surface=one.surface and one.name not in marked) for one in left
            ),
        )
        notes.append(
            f"{n} surface feature{'s' * (n > 1)} stand{'s' * (n == 1)} for a label here and count"
            f"{'s' * (n == 1)} as defining the task: {told(labels)}"
        )
    return left, same, tuple(notes)


def _describe(
    tie: Tie,
    splits: tuple[Task, Task, Task],
    right: Sequence[Tensor | None],
    effects: Float[Tensor, " example"],
    *,
    difference: ControlledEffect | None,
    effect: ControlledEffect,
    n_controls: int,
) -> Shortcut:
    """What is known of one neuron or set, and the word for it.

    ``right`` says whether the model answers the examples of confirm and intervene correctly, and
    ``effects`` what the ablation does on intervene.
    """
    condition = tie.condition
    names = ("n_right", "n_wrong", "n_right_moved", "n_wrong_moved")
    counts: dict[str, int | None] = dict.fromkeys(names)
    n_present, mean_present, mean_absent = 0, None, None
    if condition is not None:
        on_confirm, present = (condition.of(split) for split in splits[1:])
        n_present = int(present.sum())
        if difference is not None:
            mean_present, mean_absent = (
                float(effects[part].mean()) for part in (present, ~present)
            )
        # What the ablation takes from the metric, the neuron gave it.
        moved = present & ((effects < 0) if tie.raises else (effects > 0))
        for correct, chosen, suffix in zip(right, (on_confirm, moved), ("", "_moved"), strict=True):
            if correct is not None:
                counts[f"n_right{suffix}"] = int((chosen & correct).sum())
                counts[f"n_wrong{suffix}"] = int((chosen & ~correct).sum())
    larger = (
        mean_present is not None
        and mean_absent is not None
        and abs(mean_present) > abs(mean_absent)
    )
    word, why = word_for(condition is not None, difference, effect, larger)
    return Shortcut(
        name=tie.name,
        members=tie.members if len(tie.members) > 1 else (),
        word=word,
        why=why,
        r=tie.r,
        r_explore=tie.r_explore,
        feature=tie.feature,
        condition="" if condition is None else condition.words,
        explained=tie.explained,
        p=tie.p,
        q=tie.q,
        task_feature=tie.task_feature,
        task_feature_explained=tie.task_feature_explained,
        raises=tie.raises,
        n_present=n_present,
        n_absent=0 if condition is None else len(effects) - n_present,
        **counts,
        difference=difference,
        effect=effect,
        effect_present=mean_present,
        effect_absent=mean_absent,
        n_controls=n_controls,
    )


def _coarse(ablated: ConditionalEffects, n_neurons: int) -> tuple[str, ...]:
    """That q can hardly pass, where the controls are so few."""
    fewest = min(len(controls) for controls in ablated.controls)
    needed = math.ceil(n_neurons / (ALPHA * (1 + fewest)) - 1e-9)
    if needed <= 1:
        return ()
    few = f"{fewest} controls give p of {1 / (1 + fewest):.2g} at least"
    if needed > n_neurons:
        return (f"{few}: no neuron of {n_neurons} can be called causal",)
    return (f"{few}: fewer than {needed} of {n_neurons} neurons cannot pass together",)


def _right(adapter: ModelAdapter, split: Task) -> Bool[Tensor, " example"] | None:
    """Whether the model answers each example correctly; None where there are no answers."""
    if any(example.answer is None for example in split):
        return None
    return evaluate(adapter, split, ["correct"])["correct"] > 0.5
