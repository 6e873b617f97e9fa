"""`shortcuts`: strong neurons, the surface features behind them, and the test that decides."""

import math
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from lens_skills.activations import (
    BATCH_SIZE,
    DEFAULT_SITE,
    Position,
    evaluate,
    parse_metrics,
)
from lens_skills.causal import Edit, ablate, parse_units
from lens_skills.explanation.bank import FeatureBank, feature_bank
from lens_skills.explanation.case import case_of, tied_to
from lens_skills.explanation.condition import condition_of
from lens_skills.explanation.explaining import explain
from lens_skills.explanation.findings import ALPHA
from lens_skills.explanation.knockout import Knockout, knock_out
from lens_skills.explanation.report import Shortcuts, no_shortcuts
from lens_skills.explanation.suspects import (
    check_apart,
    find_suspects,
    honest_bank,
    watched_metric,
)
from lens_skills.models import Lens, as_lens
from lens_skills.scoring.provenance import examples_hash, versions
from lens_skills.tasks import Task


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
    lens = as_lens(model)
    check_apart(explore, confirm, intervene)
    (wanted,) = parse_metrics(metric)
    watched = watched_metric(wanted, watch, intervene)
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    where: dict[str, Any] = {"at": at, "position": position, **options}
    about = {
        "model": lens.name,
        "model_fingerprint": lens.fingerprint(),
        "task": explore.name,
        "splits": [split.split_name for split in (explore, confirm, intervene)],
        "examples": [examples_hash(split) for split in (explore, confirm, intervene)],
        "n_controls": n_controls,
        "seed": seed,
        "versions": versions(),
    }
    draws = {"n_permutations": n_permutations, "seed": seed}
    found = find_suspects(lens, explore, confirm, neurons, metric=wanted, k=k, **draws, **where)
    if len(found.neurons) == 0:
        return no_shortcuts(wanted.name, found.notes[0], about)
    bank, warned = honest_bank(
        lens, explore, feature_bank(explore) if features is None else features, wanted, options
    )
    why = explain(lens, explore, found.neurons, features=bank, **draws, **where)
    units = parse_units(lens, found.neurons, at=at)
    removed = knock_out(
        lens,
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
    right = [_right(lens, split, options) for split in (confirm, intervene)]
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


def _right(lens: Lens, split: Task, options: dict[str, Any]) -> Bool[Tensor, " example"] | None:
    """Whether the model answers each example correctly; None where there are no answers."""
    if any(example.answer is None for example in split):
        return None
    return evaluate(lens, split, ["correct"], **options)["correct"] > 0.5
