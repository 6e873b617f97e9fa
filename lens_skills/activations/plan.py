"""`Plan`: which parts of the model's output a pass must compute for its metrics."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations.encoding import Encoded, encode_examples
from lens_skills.activations.metrics import Metric
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example


@dataclass(frozen=True)
class Plan:
    """Which parts of the model's output a pass must compute."""

    logits: bool
    answer: bool
    stop: bool
    foil: bool
    options: bool

    def extra(self, encoded: Encoded) -> tuple[int, ...]:
        """The answer tokens the model reads after the prompt, to score the next ones."""
        if not self.answer:
            return ()
        answer = encoded.answer_tokens
        assert answer is not None
        return answer if self.stop else answer[:-1]


NOTHING = Plan(logits=False, answer=False, stop=False, foil=False, options=False)


def prepare(
    lens: Any, examples: Sequence[Example], metrics: Sequence[Metric], chat: bool
) -> tuple[list[Encoded], Plan]:
    """The examples in tokens, and what the pass must compute for the metrics."""
    reads = frozenset[str]().union(*(metric.reads for metric in metrics))
    contrast = "contrast" in reads
    foils = contrast and all(example.foil is not None for example in examples)
    plan = Plan(
        logits=bool(reads),
        answer=bool({"answer", "stop"} & reads),
        stop="stop" in reads,
        foil=foils,
        options="options" in reads or (contrast and not foils),
    )
    for example in examples:
        lacks = None
        if (plan.answer or "tokens" in reads) and example.answer is None:
            lacks = "answer"
        elif plan.options and len(example.options) < 2:
            lacks = "foil and no options" if contrast else "options"
        elif "options" in reads and example.answer not in (None, *example.options):
            lacks = "answer among its options"
        if lacks:
            names = ", ".join(metric.name for metric in metrics if not metric.known)
            raise LensSkillsError(
                f"example {example.id!r} has no {lacks}, but a metric needs it (asked for: "
                f"{names}). Give the task one, or choose other metrics."
            )
    needs_answers = bool(reads - {"logits"})
    encoded = encode_examples(lens, examples, answers=needs_answers, chat=chat)
    if "tokens" in reads:
        _warn_of_one_beginning(lens, encoded)
    return encoded, plan


def _warn_of_one_beginning(lens: Any, encoded: Sequence[Encoded]) -> None:
    """A warning where different answers all begin with one token, which then tells nothing."""
    answers = {item.answer_tokens for item in encoded}
    firsts = {answer[0] for answer in answers if answer}
    if len(firsts) == 1 < len(answers):
        warnings.warn(
            f"all {len(answers)} answers begin with the token {lens.decode(firsts.pop())!r}, so a "
            "metric of the first token cannot tell them apart. Let the prompts end in the space "
            "and the answers begin without it, or use 'correct'.",
            RuntimeWarning,
            stacklevel=2,
        )


def known_values(
    metrics: Sequence[Metric], examples: Sequence[Any]
) -> dict[str, Float[Tensor, " row"]]:
    """The metrics that need no model, over all examples at once."""
    values = {}
    for metric in metrics:
        if metric.known:
            numbers = metric.of(None, examples)  # type: ignore[arg-type]
            refuse_non_finite(metric.name, numbers, examples)
            values[metric.name] = numbers
    return values


def refuse_non_finite(name: str, numbers: Tensor, examples: Sequence[Any]) -> None:
    """Nothing; raises where a metric is not finite, naming the example."""
    wrong = (~torch.isfinite(numbers)).nonzero()
    if len(wrong):
        place = int(wrong[0])
        raise LensSkillsError(
            f"the metric {name!r} is {float(numbers[place])} for example "
            f"{examples[place].id!r} ({len(wrong)} of {len(numbers)} here are not finite). "
            "Mend the column or the function; nothing was written."
        )
