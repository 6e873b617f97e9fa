"""`shortcuts`: strong neurons, the surface features behind them, and the test that decides.

`Knockout`: neurons removed one by one beside matched ones, on two parts of the examples.

`find_suspects`: the neurons that go with a metric on one split and hold up on another.

`case_of`: all that speaks for and against one neuron being a shortcut.

`Condition`: when a feature counts as present, so that examples fall into two parts.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import (
    BATCH_SIZE,
    DEFAULT_SITE,
    Metric,
    Position,
    evaluate,
    parse_metrics,
)
from lens_skills.activations.components import parse_components, parse_neurons
from lens_skills.activations.metrics import causal_metric
from lens_skills.errors import LensSkillsError
from lens_skills.explanation.explain import explain
from lens_skills.explanation.explanations import ALPHA, Explanation
from lens_skills.explanation.feature_bank import FeatureBank, disguised, feature_bank
from lens_skills.explanation.knockout import (
    Condition,
    Knockout,
    condition_of,
    knock_out,
)
from lens_skills.explanation.shortcut_report import (
    KnockoutEffect,
    Shortcut,
    Shortcuts,
    no_shortcuts,
    ruling,
)
from lens_skills.interventions import Edit, ablate
from lens_skills.models import ModelAdapter, as_adapter
from lens_skills.results import examples_hash, versions
from lens_skills.scoring import score, select
from lens_skills.tasks import Task

_RIVAL = 0.8  # a surface feature explains a neuron only where no other explains much more


def tied_to(one: Explanation, least: float) -> str | None:
    """The surface feature that explains a neuron; None where none does, or another does better.

    It is the best of the surface features on the fitted half; held out it explains at least
    ``least`` of the variance with p <= 0.05; and on the fitted half, no feature that defines the
    task explains so much that this one explains less than 80 % of it.
    """
    surface = [row for row in one.rows if row["surface"]]
    if not surface:
        return None
    row, best = surface[0], one.rows[0]
    beyond_chance = row["p"] is None or row["p"] <= ALPHA
    rivals = row["explained_fitted"] >= _RIVAL * best["explained_fitted"]
    return (
        row["feature"] if beyond_chance and rivals and row["variance_explained"] >= least else None
    )


def case_of(
    one: Explanation,
    tied: str | None,
    *,
    r: float,
    condition: Condition | None,
    splits: tuple[Task, Task],
    right: list[Tensor | None],
    part: Bool[Tensor, " example"] | None,
    total: Float[Tensor, " example"],
    difference: KnockoutEffect | None,
    effect: KnockoutEffect,
    n_controls: int,
) -> Shortcut:
    """Everything known of one neuron, and the word for it."""
    rival = next((row for row in one.rows if not row["surface"]), None)
    row = one.feature(tied) if tied else None
    raises, inside, outside = False, None, None
    counts: list[int | None] = [None] * 4
    if condition is not None and part is not None:
        present = condition.of(splits[0])
        shift = one.activation[present].mean() - one.activation[~present].mean()
        raises = bool(r * float(shift) > 0)
        if difference is not None:
            inside, outside = float(total[part].mean()), float(total[~part].mean())
        # What the knock-out takes from the metric, the neuron gave it.
        moved = part & ((total < 0) if raises else (total > 0))
        for place, (correct, chosen) in enumerate(
            zip(right, (condition.of(splits[1]), moved), strict=True)
        ):
            if correct is not None:
                counts[2 * place] = int((chosen & correct).sum())
                counts[2 * place + 1] = int((chosen & ~correct).sum())
    larger = inside is not None and outside is not None and abs(inside) > abs(outside)
    word, reason = ruling(condition is not None, difference, effect, larger)
    return Shortcut(
        name=one.name,
        word=word,
        why=reason,
        r=r,
        feature=tied or "",
        condition="" if condition is None else condition.words,
        explained=None if row is None else row["variance_explained"],
        p=None if row is None else row["p"],
        rival="" if rival is None else rival["feature"],
        rival_explained=None if rival is None else rival["variance_explained"],
        raises=raises,
        n_associated=0 if part is None else int(part.sum()),
        n_others=0 if part is None else int((~part).sum()),
        helps=counts[0],
        fools=counts[1],
        helped=counts[2],
        fooled=counts[3],
        difference=difference,
        effect=effect,
        associated=inside,
        others=outside,
        n_controls=n_controls,
    )


_CONFIRMED_AMONG = 200  # the strongest on explore are looked at again on confirm


@dataclass(frozen=True, eq=False)
class ShortcutCandidates:
    """Neurons, strongest first, their r with the metric on confirm, and what is to be said of them.

    ``neurons`` is empty where none held up, and the first note says so.
    """

    neurons: Int[Tensor, "k 2"]
    r: Float[Tensor, " k"]
    notes: tuple[str, ...]


def find_suspects(
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
        rows = parse_neurons([neurons] if isinstance(neurons, str) else neurons)
        if len(rows) == 0:
            raise LensSkillsError("no neurons to try: none were named (an empty selection?).")
        checked = score(adapter, confirm, neurons=rows, n_permutations=0, **options)
        notes = ("the neurons were named, not searched for",)
        return ShortcutCandidates(rows, checked[metric.name].r[0], notes)
    found = score(adapter, explore, n_permutations=n_permutations, **options)
    candidates = found[metric.name].top(_CONFIRMED_AMONG)
    checked = score(adapter, confirm, neurons=candidates, n_permutations=n_permutations, **options)
    # Whether the neuron basis is special is not asked here: the knock-out decides.
    chosen = select(
        found[metric.name], checked[metric.name], gates=["associated"], exploratory=True
    )
    if len(chosen) == 0:
        note = (
            f"no neuron is strong for {metric.name} here: {chosen.attrition_line()}. Give more "
            "examples, or name neurons: neurons=found[metric].top(20)"
        )
        return ShortcutCandidates(chosen.neurons, chosen.r_confirm, (note,))
    line = f"{chosen.attrition_line()}; the {min(k, len(chosen))} strongest were tried"
    return ShortcutCandidates(chosen.neurons[:k], chosen.r_confirm[:k], (line,))


def watched_metric(metric: Metric, watch: Any, examples: Task) -> Metric:
    """What the knock-out is seen on: the metric, or a continuous one in place of a 0/1 or a column.

    Raises:
        LensSkillsError: A column to be watched, or a column as the metric and no answers.
    """
    if watch is None and (metric.known or metric.unit == "0/1"):
        watch = causal_metric(examples)
        if watch is None:
            raise LensSkillsError(
                f"{metric.name!r} cannot be watched while neurons are removed, and the examples "
                "have no answers. Say what should change: watch='entropy', …"
            )
    (found,) = parse_metrics(metric if watch is None else watch)
    if found.known:
        raise LensSkillsError(
            f"watch={found.name!r} is a column of the task, which no knock-out changes. Name what "
            "the model says: confidence(), logit_diff(), …"
        )
    return found


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


def honest_bank(
    adapter: ModelAdapter, explore: Task, bank: FeatureBank, metric: Metric, options: dict[str, Any]
) -> tuple[FeatureBank, tuple[str, ...]]:
    """The bank without features that are the metric in disguise, and what was said of them."""
    known = evaluate(adapter, explore, [metric], **options)[metric.name]
    values = bank.values(explore)
    surface = [feature.name for feature in bank if feature.surface]
    same = disguised({metric.name: known.numpy()}, values, surface)
    notes = []
    for name, (_, r) in same.items():
        text = (
            f"the feature {name!r} is {metric.name} in disguise (r = {r:+.2f}) and was left out: "
            "it would explain every neuron of the metric by itself"
        )
        warnings.warn(text, RuntimeWarning, stacklevel=3)
        notes.append(text)
    return (bank.without(*same) if same else bank), tuple(notes)


def shortcuts(
    model: Any,
    explore: Task,
    confirm: Task,
    intervene: Task,
    *,
    metric: Any = "correct",
    features: FeatureBank | None = None,
    neurons: Any = None,
    k: int = 5,
    at: str = DEFAULT_SITE,
    position: Position = "last",
    do: Edit | None = None,
    watch: Any = None,
    least: float = 0.1,
    delta: float | None = None,
    n_controls: int = 100,
    n_permutations: int = 999,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> Shortcuts:
    """Which neurons that are strong for a metric owe it to a surface feature: `Shortcuts`.

    1. On explore, neurons are ranked by |r| with the metric; on confirm, those that hold up stay.
    2. On explore, `explain` finds the feature behind each. A neuron is *tied* to a surface feature
       where that explains at least ``least`` of its variance on held-out examples (p <= 0.05 over
       all features), and no feature that defines the task explains much more.
    3. On confirm: what that implies, which examples it helps and which it fools.
    4. On intervene, each neuron is knocked out. The effect on examples with the feature less that
       on those without is held against the same difference of matched neurons of its layer.

    The words: *shortcut* where the difference's 95 % interval lies beyond δ, few controls reach it
    (q <= 0.05), and it is larger with the feature; *tied, not causal* where its 90 % interval lies
    within δ and so does not matter; *causal, but no surface feature explains it* where the effect
    on all examples is beyond δ; else what is missing. δ is, unless declared, the 95th percentile
    among the controls.

    Args:
        model: A HookedTransformer or TransformerBridge.
        explore, confirm, intervene: Splits that share no group.
        metric: What the neurons are strong for: ``"correct"``, ``confidence()``, ….
        features: From `feature_bank`; by default all that `feature_bank` finds on explore.
        neurons: These instead of a search; or how many of them, see ``k``.
        k: At most so many neurons of the search.
        at, position: The neurons' site, and where they are read and removed.
        do: How they are knocked out; default mean ablation over explore.
        watch: The metric the knock-out is seen on; default ``metric``, or, where that is 0/1 or a
            column, ``logit_diff`` or ``answer_probability``.
        least: Share of variance from which a feature explains a neuron.
        delta: The smallest effect that matters, in the watched metric's unit.
        n_controls: Neurons of the same layer for each, those nearest to it in mean |a|, std and
            ‖W_out‖. With k neurons and n controls, one alone can pass only where
            1 / (1 + n) <= 0.05 / k.
        n_permutations: For the search and for the features.
        seed: Of all draws.
        batch_size: Examples per forward pass.
        progress: Show progress (None: on a terminal only).

    Raises:
        LensSkillsError: Splits that share groups; a feature bank that is left empty; as `score`,
            `explain` and `sweep`.

    Source: bag of heuristics and their knock-out, Nikankin et al. 2024 (arXiv 2410.21272).
    """
    adapter = as_adapter(model)
    check_apart(explore, confirm, intervene)
    (wanted,) = parse_metrics(metric)
    watched = watched_metric(wanted, watch, intervene)
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    where: dict[str, Any] = {"at": at, "position": position, **options}
    about = {
        "model": adapter.name,
        "model_fingerprint": adapter.fingerprint(),
        "task": explore.name,
        "splits": [split.split_name for split in (explore, confirm, intervene)],
        "examples": [examples_hash(split) for split in (explore, confirm, intervene)],
        "n_controls": n_controls,
        "seed": seed,
        "versions": versions(),
    }
    draws = {"n_permutations": n_permutations, "seed": seed}
    found = find_suspects(adapter, explore, confirm, neurons, metric=wanted, k=k, **draws, **where)
    if len(found.neurons) == 0:
        return no_shortcuts(wanted.name, found.notes[0], about)
    bank, warned = honest_bank(
        adapter, explore, feature_bank(explore) if features is None else features, wanted, options
    )
    why = explain(adapter, explore, found.neurons, features=bank, **draws, **where)
    units = parse_components(adapter, found.neurons, at=at)
    removed = knock_out(
        adapter,
        intervene,
        units,
        ablate("mean", over=explore) if do is None else do,
        metric=watched,
        position=position,
        n_controls=n_controls,
        seed=seed,
        **options,
    )
    tied = [tied_to(why[unit.name], least) for unit in units]
    conditions = [
        None if name is None else condition_of(bank[name], explore, why[unit.name].activation)
        for unit, name in zip(units, tied, strict=True)
    ]
    parts = [None if condition is None else condition.of(intervene) for condition in conditions]
    differences = removed.differences(parts, delta)
    overall = removed.overall(delta)
    right = [_right(adapter, split, options) for split in (confirm, intervene)]
    cases = tuple(
        case_of(
            why[unit.name],
            tied[place],
            r=float(found.r[place]),
            condition=conditions[place],
            splits=(explore, confirm),
            right=right,
            part=parts[place],
            total=removed.total[place],
            difference=differences[place],
            effect=overall[place],
            n_controls=len(removed.controls[place]),
        )
        for place, unit in enumerate(units)
    )
    nothing = torch.zeros(len(intervene), dtype=torch.bool)
    return Shortcuts(
        cases=cases,
        why=why,
        effects=removed.total,
        present=torch.stack([nothing if part is None else part for part in parts]).double(),
        example_ids=tuple(example.id for example in intervene),
        metric=wanted.name,
        watched=watched.name,
        unit=removed.unit,
        do=removed.do,
        notes=(*found.notes, *warned, *_coarse(removed, len(units)), *why.notes),
        provenance=about,
    )


def _coarse(removed: Knockout, n_neurons: int) -> tuple[str, ...]:
    """That q can hardly pass, where the controls are so few."""
    fewest = min(len(controls) for controls in removed.controls)
    needed = math.ceil(n_neurons / (ALPHA * (1 + fewest)) - 1e-9)
    if needed <= 1:
        return ()
    few = f"{fewest} controls give p of {1 / (1 + fewest):.2g} at least"
    if needed > n_neurons:
        return (f"{few}: no neuron of {n_neurons} can be called causal",)
    return (f"{few}: fewer than {needed} of {n_neurons} neurons cannot pass together",)


def _right(
    adapter: ModelAdapter, split: Task, options: dict[str, Any]
) -> Bool[Tensor, " example"] | None:
    """Whether the model answers each example correctly; None where there are no answers."""
    if any(example.answer is None for example in split):
        return None
    return evaluate(adapter, split, ["correct"], **options)["correct"] > 0.5
