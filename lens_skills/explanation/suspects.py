"""`find_suspects`: the neurons that go with a metric on one split and hold up on another."""

import warnings
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import Metric, evaluate, parse_metrics
from lens_skills.errors import LensSkillsError
from lens_skills.explanation.bank import FeatureBank, disguised
from lens_skills.models import Lens
from lens_skills.scoring import parse_neurons, score, select
from lens_skills.tasks import Task, causal_metric

_CONFIRMED_AMONG = 200  # the strongest on explore are looked at again on confirm


@dataclass(frozen=True, eq=False)
class Suspects:
    """Neurons, strongest first, their r with the metric on confirm, and what is to be said of them.

    ``neurons`` is empty where none held up, and the first note says so.
    """

    neurons: Int[Tensor, "k 2"]
    r: Float[Tensor, " k"]
    notes: tuple[str, ...]


def find_suspects(
    lens: Lens,
    explore: Task,
    confirm: Task,
    neurons: Any,
    *,
    metric: Metric,
    k: int,
    n_permutations: int,
    seed: int,
    **where: Any,
) -> Suspects:
    """The neurons given, or the k strongest that pass the permutation null and are confirmed."""
    options = {"metrics": [metric], "seed": seed, **where}
    if neurons is not None:
        rows = parse_neurons([neurons] if isinstance(neurons, str) else neurons)
        if len(rows) == 0:
            raise LensSkillsError("no neurons to try: none were named (an empty selection?).")
        checked = score(lens, confirm, neurons=rows, n_permutations=0, **options)
        notes = ("the neurons were named, not searched for",)
        return Suspects(rows, checked[metric.name].r[0], notes)
    found = score(lens, explore, n_permutations=n_permutations, **options)
    candidates = found[metric.name].top(_CONFIRMED_AMONG)
    checked = score(lens, confirm, neurons=candidates, n_permutations=n_permutations, **options)
    # Whether the neuron basis is special is not asked here: the knock-out decides.
    chosen = select(
        found[metric.name], checked[metric.name], gates=["associated"], exploratory=True
    )
    if len(chosen) == 0:
        note = (
            f"no neuron is strong for {metric.name} here: {chosen.attrition_line()}. Give more "
            "examples, or name neurons: neurons=found[metric].top(20)"
        )
        return Suspects(chosen.neurons, chosen.r_confirm, (note,))
    line = f"{chosen.attrition_line()}; the {min(k, len(chosen))} strongest were tried"
    return Suspects(chosen.neurons[:k], chosen.r_confirm[:k], (line,))


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
    lens: Lens, explore: Task, bank: FeatureBank, metric: Metric, options: dict[str, Any]
) -> tuple[FeatureBank, tuple[str, ...]]:
    """The bank without features that are the metric in disguise, and what was said of them."""
    known = evaluate(lens, explore, [metric], **options)[metric.name]
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
