"""`scenes_of`: examples and their corrupted twins, token by token, in batches."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lens_skills.activations import Metric
from lens_skills.activations.encoding import Encoded, encode_examples
from lens_skills.activations.plan import Plan, prepare
from lens_skills.activations.stream import BATCH_SIZE
from lens_skills.circuits.anatomy import Anatomy
from lens_skills.circuits.scene import Scene
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import as_lens


def scenes_of(
    anatomy: Anatomy,
    examples: Sequence[Example],
    metric: Metric,
    *,
    batch_size: int = BATCH_SIZE,
) -> list[Scene]:
    """One `Scene` per batch of examples, in their order.

    Raises:
        LensSkillsError: No examples, one without a twin, or twins that differ in tokens from
            their examples in number, or not at all.
    """
    items, twins, plan = encode_pairs(anatomy.lens, examples, metric)
    parts = [slice(k, k + batch_size) for k in range(0, len(items), batch_size)]
    return [Scene(anatomy, plan, items[part], twins[part]) for part in parts]


def encode_pairs(
    lens: Any, examples: Sequence[Example], metric: Metric
) -> tuple[list[Encoded], list[Encoded], Plan]:
    """Clean prompts, corrupted prompts and what the metric reads, as tokens.

    Raises:
        LensSkillsError: See `scenes_of`.
    """
    check_twins(examples)
    items, plan = prepare(lens, examples, [metric], False)
    corrupted = [replace(example, prompt=str(example.corrupted)) for example in examples]
    twins = encode_examples(lens, corrupted, answers=False)
    unequal = [
        (one, other)
        for one, other in zip(items, twins, strict=True)
        if len(one.prompt_tokens) != len(other.prompt_tokens)
    ]
    if unequal:
        one, other = unequal[0]
        raise LensSkillsError(
            f"example {one.id!r} has {len(one.prompt_tokens)} tokens and its corrupted twin "
            f"{len(other.prompt_tokens)} ({len(unequal)} of {len(items)} pairs are unequal): a "
            "path is patched token by token. Leave such pairs out (equal_pairs(model, examples))."
        )
    for one, other in zip(items, twins, strict=True):
        if one.prompt_tokens.tolist() == other.prompt_tokens.tolist():
            raise LensSkillsError(f"example {one.id!r} and its corrupted twin are the same tokens.")
    return items, twins, plan


def check_twins(examples: Sequence[Example]) -> None:
    """Nothing; raises where there are no examples, or one has no corrupted twin."""
    if len(examples) == 0:
        raise LensSkillsError("no examples to find a circuit on: the task is empty.")
    lacking = [example.id for example in examples if example.corrupted is None]
    if lacking:
        raise LensSkillsError(
            f"example {lacking[0]!r} has no corrupted twin ({len(lacking)} of {len(examples)} lack "
            "one), and an edge is patched with what it carries on that. Write one for each "
            "(tasks.pairs), or use a task that has them: agreement, ioi."
        )


def equal_pairs(model: Any, examples: Any) -> Any:
    """The examples whose twins have as many tokens as they: those a circuit can be found on.

    Of a `Task`, a `Task`; else a list.

    Raises:
        LensSkillsError: None is left, or one has no twin.
    """
    lens = as_lens(model)
    check_twins(examples)
    twins = [replace(example, prompt=str(example.corrupted)) for example in examples]
    lengths = (
        [len(item.prompt_tokens) for item in encode_examples(lens, some, answers=False)]
        for some in (examples, twins)
    )
    kept = {e.id for e, one, other in zip(examples, *lengths, strict=True) if one == other}
    if not kept:
        raise LensSkillsError(
            f"none of the {len(examples)} pairs has twins of equal length under the tokenizer of "
            f"{lens.name}, and a path is patched token by token. Write twins that differ in words "
            "of as many tokens (tasks.pairs)."
        )
    if hasattr(examples, "where"):
        return examples.where(lambda example: example.id in kept)
    return [example for example in examples if example.id in kept]
