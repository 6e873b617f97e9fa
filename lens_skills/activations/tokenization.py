"""From examples to tokens: where the prompt ends and its answer begins is decided here, once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError

Tokens = np.ndarray  # int32, one axis


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as one model's tokens. Reads like its `Example`, with tokens beside the texts.

    Attributes:
        index: Its place in the sequence it came from.
        example: The example itself.
        prompt_tokens: What the model reads, its beginning-of-sequence token included.
        answer_tokens: The answer as it continues the prompt; None where there is no answer.
        foil_tokens: The foil likewise.
        option_tokens: Every option likewise.
        has_bos: Whether the first token is a beginning-of-sequence token.
        n_before, n_after: Of the prompt's tokens: how many are the soft prompt's, before the text
            (after the beginning-of-sequence token) and after it.
    """

    index: int
    example: Example
    prompt_tokens: Tokens
    answer_tokens: tuple[int, ...] | None
    foil_tokens: tuple[int, ...] | None
    option_tokens: tuple[tuple[int, ...], ...]
    has_bos: bool
    n_before: int = 0
    n_after: int = 0

    def __getattr__(self, name: str) -> Any:
        # prompt, answer, foil, labels, covariates, group, id, … of the example itself.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.example, name)


def encode_examples(
    adapter: Any, examples: Sequence[Example], *, answers: bool, chat: bool = False
) -> list[Encoded]:
    """The examples as tokens of one model.

    The rule for answers, the same for all examples of a call: the answer's tokens are what the
    tokenizer adds to the prompt's when it reads both together. Where a prompt ends in a space, a
    tokenizer may fuse that space with the answer. If it does so for most answers (GPT-2 reads
    ``": 7"`` as ``":", " 7"``) the space is moved to the answer, for all examples alike. If it
    does so for few (SmolLM2 keeps ``"A: "`` and ``"7"`` apart, but fuses ``" -"``), the space
    stays with the prompt and those few answers are read on their own; otherwise every answer
    would begin with the same bare space, and its first token would say nothing.

    Args:
        adapter: The model (`lens_skills.models.backends.as_adapter`).
        examples: What to read.
        answers: Whether answers, foils and options are needed; else they stay undecided (None).
        chat: Put every prompt through the tokenizer's chat template; answers then begin the turn.

    Raises:
        LensSkillsError: A prompt longer than the context, an empty prompt, or an answer that
            cannot be told apart from its prompt in tokens.
    """
    if len(examples) == 0:
        raise LensSkillsError("no examples to read: the task is empty.")
    # Whatever the metrics read: the last prompt token must be the same one in every pass.
    moved = not chat and _space_must_move(adapter, examples)
    return [
        _encode(adapter, index, example, answers=answers, chat=chat, moved=moved)
        for index, example in enumerate(examples)
    ]


def _encode(
    adapter: Any, index: int, example: Example, *, answers: bool, chat: bool, moved: bool
) -> Encoded:
    prompt = example.prompt
    if not prompt.strip():
        raise LensSkillsError(f"example {example.id!r} has an empty prompt.")
    space = ""
    if moved:
        prompt, space = prompt.rstrip(" "), prompt[len(prompt.rstrip(" ")) :]
    tokens = adapter.encode(prompt, chat=chat)

    def continuation(text: str) -> tuple[int, ...]:
        if chat:
            return tuple(adapter.encode_plain(text))
        found = _continuation(adapter, prompt, tokens, space + text)
        if found is None and prompt.endswith(" "):
            return tuple(adapter.encode_plain(text))
        if found is None:
            raise LensSkillsError(
                f"example {example.id!r}: the answer {text!r} cannot be told apart from its prompt "
                f"(...{prompt[-20:]!r}) in this model's tokens. End the prompt at a word boundary "
                "and begin the answer with the space, or the other way round."
            )
        return found

    answer = foil = None
    options: tuple[tuple[int, ...], ...] = ()
    if answers:
        answer = None if example.answer is None else continuation(example.answer)
        foil = None if example.foil is None else continuation(example.foil)
        options = tuple(continuation(option) for option in example.options)
    longest = max((len(part) for part in (answer, foil, *options) if part is not None), default=0)
    has_bos = adapter.bos_id is not None and len(tokens) > 1 and tokens[0] == adapter.bos_id
    first = 1 if has_bos else 0
    before, after = adapter.words_before, adapter.words_after
    tokens = [*tokens[:first], *before, *tokens[first:], *after]
    if len(tokens) + longest > adapter.n_ctx:
        soft = f" ({len(before) + len(after)} of them the soft prompt's)" if before + after else ""
        raise LensSkillsError(
            f"example {example.id!r} has {len(tokens)} + {longest} tokens{soft}, but the model "
            f"reads at most {adapter.n_ctx}. Shorten or drop it."
        )
    return Encoded(
        index=index,
        example=example,
        prompt_tokens=np.asarray(tokens, dtype=np.int32),
        answer_tokens=answer,
        foil_tokens=foil,
        option_tokens=options,
        has_bos=has_bos,
        n_before=len(before),
        n_after=len(after),
    )


def _continuation(
    adapter: Any, prompt: str, tokens: list[int], text: str
) -> tuple[int, ...] | None:
    """The tokens ``text`` adds to the prompt's, or None where it changes the prompt's own."""
    whole = adapter.encode(prompt + text)
    if whole[: len(tokens)] != tokens or len(whole) == len(tokens):
        return None
    return tuple(whole[len(tokens) :])


def _space_must_move(adapter: Any, examples: Sequence[Example]) -> bool:
    """Whether most answers fuse with their prompt's trailing space, which then moves for all."""
    # Two hundred examples, evenly spaced, tell a tokenizer's habit.
    some = examples[:: max(1, len(examples) // 200)]
    fused = [
        _continuation(adapter, example.prompt, adapter.encode(example.prompt), example.answer)
        is None
        for example in some
        if example.answer is not None and example.prompt.endswith(" ")
    ]
    return sum(fused) > len(fused) / 2


def with_answers(examples: Any, answers: bool | None) -> bool:
    """Whether prompts are read together with their answers; None: where all have one."""
    return all(example.answer is not None for example in examples) if answers is None else answers
