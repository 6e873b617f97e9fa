"""`patch_formula`: another prompt's activation at the same position, put in place."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from lens_skills.activations.encoding import encode_examples
from lens_skills.causal.baseline import with_answers
from lens_skills.causal.sources import Formula, SourceReader, Spot
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example


def patch_formula(source: Any, reader: SourceReader) -> Formula:
    """What puts the source's own activation in place, after one pass over the source.

    Raises:
        LensSkillsError: No twin, or a source that does not fit the examples.
    """
    twins = _twins(source, reader.examples)
    if reader.everywhere:
        _refuse_unequal(reader, twins)
    values = reader.values(twins)
    fixed = len(twins) == 1

    def compute(spot: Spot) -> Tensor:
        place = torch.zeros_like(spot.examples) if fixed else spot.examples
        if int(place.max()) >= len(twins):
            raise LensSkillsError(
                f"{len(twins)} examples to patch from, but a batch of {int(place.max()) + 1} rows."
            )
        n_pos = spot.old.shape[1]
        table = values[spot.layer, spot.site][place.cpu(), :n_pos]
        index = repeat(spot.features.cpu(), "row feature -> row pos feature", pos=n_pos)
        return table.gather(2, index)

    return compute


def _twins(source: Any, examples: Sequence[Any]) -> list[Any]:
    if hasattr(source, "prompt"):
        return [source]
    if source != "corrupted":
        twins = list(source)
        if examples and len(twins) != len(examples):
            raise LensSkillsError(
                f"{len(twins)} examples to patch from, but {len(examples)} to patch: they are "
                "paired one to one. Give as many, or a single example."
            )
        return twins
    if not examples:
        raise LensSkillsError(
            "'corrupted' means each example's twin, and plain hooks do not know the examples. Give "
            "the twins themselves: patch(examples)."
        )
    without = [example.id for example in examples if example.corrupted is None]
    if without:
        raise LensSkillsError(
            f"example {without[0]!r} has no corrupted twin to patch from ({len(without)} of "
            f"{len(examples)} lack one)."
        )
    return [
        Example(
            id=example.id,
            prompt=example.corrupted,
            answer=example.foil or example.answer,
            labels=example.labels,
            covariates=example.covariates,
        )
        for example in examples
    ]


def _refuse_unequal(reader: SourceReader, twins: Sequence[Any]) -> None:
    if not reader.examples:
        return
    answers = with_answers(reader.examples, reader.answers)
    here = encode_examples(reader.lens, reader.examples, answers=answers)
    there = encode_examples(reader.lens, twins, answers=answers)
    for item, twin in zip(here, there if len(there) > 1 else there * len(here), strict=True):
        if len(item.prompt_tokens) != len(twin.prompt_tokens):
            raise LensSkillsError(
                f"example {item.id!r} has {len(item.prompt_tokens)} tokens, but what it is patched "
                f"from has {len(twin.prompt_tokens)}: at position 'all' they must be as many. "
                "Choose single positions."
            )
