"""What cannot be tried: cases refused before anything is measured."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lens_skills.activations import Metric, Position
from lens_skills.causal.baseline import edited_positions
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import SoftPrompt
from lens_skills.scoring.matching import check_prompt, known_to


def check_case(
    examples: Sequence[Example],
    skills: Any,
    do: Any,
    metric: Metric,
    prompt: SoftPrompt | None,
    *,
    exploratory: bool,
) -> bool:
    """Whether a rule against reuse was waived; raises where the case cannot be tried.

    Raises:
        LensSkillsError: No examples; a metric known before the model runs; an empty selection, or
            one of another task; a split that took part in selecting, or in training the soft prompt
            (unless ``exploratory``); a baseline that knows the selected neurons only.
    """
    if len(examples) == 0:
        raise LensSkillsError(
            "no examples to intervene on: the split is empty. Loosen the filter, or split anew."
        )
    if metric.known:
        raise LensSkillsError(
            f"{metric.name!r} is a column of the task, so no intervention can change it. Choose "
            "what the model says: logit_diff(), correct(), confidence(), …"
        )
    if hasattr(skills, "neurons") and len(skills.neurons) == 0:
        raise LensSkillsError(
            "no neurons to verify: the selection is empty. Nothing was confirmed, and that is the "
            "result; other neurons can be named by hand."
        )
    if hasattr(getattr(do, "over", None), "neurons"):
        raise LensSkillsError(
            "over= is a Selection, which knows its own neurons only; controls need every neuron's "
            "mean. Give the split, or the Scores of explore."
        )
    provenance = getattr(skills, "provenance", None) or {}
    explored = provenance.get("explore", {}).get("task")
    task = getattr(examples, "name", None)
    elsewhere = explored is not None and task is not None and explored != task
    if elsewhere and not exploratory:
        raise LensSkillsError(
            f"the selection was made on the task {explored!r}, but the examples are of {task!r}. "
            "Give that task's intervene split, or say exploratory=True to ask what these neurons "
            "do elsewhere."
        )
    again = reused(examples, provenance, "the selection", exploratory)
    again |= check_prompt(prompt, examples, exploratory)
    return again or elsewhere or bool(getattr(skills, "exploratory", False))


def reused(
    examples: Sequence[Example], provenance: Any, what: str, exploratory: bool = False
) -> bool:
    """Whether examples or groups took part before; raises unless ``exploratory``."""
    found = known_to(examples, provenance)
    if found and not exploratory:
        raise LensSkillsError(
            f"{what} was made with {found} of this split, so a verdict on it would repeat the "
            "search. Use a split of its own (task.split(…)), or say exploratory=True to mark the "
            "result."
        )
    return bool(found)


def removes_work(do: Any, removes: bool | None) -> bool:
    """Whether the edit takes away what the units do: the sign of a word depends on it.

    Raises:
        LensSkillsError: Clamping, which may do either: it must be said.
    """
    if removes is not None:
        return removes
    kind, amount = getattr(do, "kind", None), getattr(do, "amount", 0.0)
    if kind == "clamp":
        raise LensSkillsError(
            "clamping may add to a neuron's work or take it away, so no word can be chosen. Say "
            "removes=True or removes=False."
        )
    if kind == "steer":
        return amount < 0
    return not (kind == "scale" and amount > 1)


def edited_where(skills: Any, position: Position | None) -> Position:
    """The position to edit: the one asked for, else where the selection was scored, else last.

    Raises:
        LensSkillsError: The selection was scored at a span, whose text its label does not hold,
            or at a pooled position, which cannot be edited.
    """
    if position is None:
        labels = list(getattr(skills, "positions", ()) or ["last"])
        if any(label.startswith("span(") for label in labels):
            raise LensSkillsError(
                f"the selection was scored at {', '.join(labels)}. Say position=span(…) again: "
                "where a piece of text lies is not saved with it."
            )
        position = labels[0] if len(labels) == 1 else labels
    edited_positions(position)
    return position


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
