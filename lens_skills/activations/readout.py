"""What the model says about a batch: logits at the first answer token, scores of whole answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations.encoding import Encoded
from lens_skills.errors import LensSkillsError
from lens_skills.models import Editor

Editing = Callable[[Sequence[Encoded], Sequence[int]], Mapping[str, Editor]]
"""From a batch and the padded column each prompt begins at: what replaces which activation."""


@dataclass(frozen=True)
class Continuation:
    """How the model takes one given continuation of each prompt.

    Attributes:
        log_probability: Joint log-probability of its tokens (nats).
        greedy: Whether every token of it is the model's first choice.
        stops: Whether the model's first choice after it does not extend it: the next token begins
            with neither a letter nor a digit (``12`` extends ``1``; a space or a line end do not).
            None where no metric asked.
    """

    log_probability: Float[Tensor, " batch"]
    greedy: Bool[Tensor, " batch"]
    stops: Bool[Tensor, " batch"] | None


@dataclass(frozen=True)
class Readout:
    """The model's output for one batch, as far as the metrics of a pass need it.

    Attributes:
        logits: At the last prompt token, where the first answer token is predicted.
        answer: The answer as a whole, or None where no metric reads it.
        foil: The foil likewise.
        options: One `Continuation` per example over its own options, or None.
    """

    logits: Float[Tensor, "batch d_vocab"]
    answer: Continuation | None = None
    foil: Continuation | None = None
    options: tuple[Continuation, ...] | None = None

    @cached_property
    def log_probabilities(self) -> Float[Tensor, "batch d_vocab"]:
        """Of the first answer token (float64): computed once for all metrics that read it."""
        return self.logits.double().log_softmax(-1)


def pad_left(
    rows: Sequence[Sequence[int]], pad: int, device: Any
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Token rows as one tensor, padded on the left, and the mask of its real tokens.

    >>> pad_left([[5], [6, 7]], 0, "cpu")[0].tolist()
    [[0, 5], [6, 7]]
    """
    width = max(len(row) for row in rows)
    tokens = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=bool)
    for place, row in enumerate(rows):
        tokens[place, width - len(row) :] = row
        mask[place, width - len(row) :] = True
    return torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)


def score_continuation(
    lens: Any,
    logits: Float[Tensor, "batch k d_vocab"],
    continuations: Sequence[Sequence[int]],
    *,
    stop: bool,
) -> Continuation:
    """The continuations scored by logits that predict their tokens one after another.

    ``logits[i, 0]`` predicts the first token of ``continuations[i]``; rows shorter than ``k`` are
    padded at the end.
    """
    log_probabilities = logits.float().log_softmax(-1)
    totals, greedy, stops = [], [], []
    for row, tokens in zip(log_probabilities, continuations, strict=True):
        target = torch.tensor(list(tokens), device=row.device)
        steps = row[: len(target)]
        totals.append(steps.gather(-1, target[:, None]).double().sum())
        greedy.append(bool((steps.argmax(-1) == target).all()))
        if stop:
            stops.append(not _extends(lens.decode(int(row[len(target)].argmax()))))
    return Continuation(
        log_probability=torch.stack(totals).cpu(),
        greedy=torch.tensor(greedy),
        stops=torch.tensor(stops) if stop else None,
    )


def _extends(text: str) -> bool:
    return text[:1].isalnum()


def score_extra(
    lens: Any,
    batch: Sequence[Encoded],
    continuations: Sequence[Sequence[int]],
    logits: Float[Tensor, "batch d_vocab"],
    editing: Editing | None = None,
) -> Continuation:
    """Continuations of the prompts that the batch's own forward pass did not contain.

    Those of a single token are read off ``logits``; the rest cost one more forward pass.
    """
    if all(len(tokens) == 1 for tokens in continuations):
        return score_continuation(lens, logits[:, None], continuations, stop=False)
    rows = [
        [*encoded.prompt_tokens.tolist(), *tokens[:-1]]
        for encoded, tokens in zip(batch, continuations, strict=True)
    ]
    tokens, mask = pad_left(rows, lens.pad_id, lens.device)
    places = answer_places([len(c) - 1 for c in continuations], tokens.shape[1]).to(lens.device)
    out = lens.forward(
        tokens, mask, readers={}, logits_at=places, editors=placed(editing, batch, rows)
    )
    return score_continuation(lens, out, continuations, stop=False)


def placed(
    editing: Editing | None, batch: Sequence[Encoded], rows: Sequence[Sequence[int]]
) -> Mapping[str, Editor]:
    """What to attach for one forward pass of the batch, its rows padded on the left."""
    if editing is None:
        return {}
    width = max(len(row) for row in rows)
    return editing(batch, [width - len(row) for row in rows])


def answer_places(extra: Sequence[int], width: int) -> Int[Tensor, "batch k"]:
    """Padded positions that predict the first token after the prompt and the ``extra`` ones.

    Rows with fewer extra tokens repeat the last position.

    >>> answer_places([0, 2], 5).tolist()
    [[4, 4, 4], [2, 3, 4]]
    """
    first = width - 1 - torch.tensor(list(extra))
    steps = torch.arange(int(max(extra)) + 1)
    return (first[:, None] + steps).clamp(max=width - 1)


def answer_tokens(example: Any) -> tuple[int, ...]:
    """The example's answer in tokens; raises where it has none."""
    if example.answer_tokens is None:
        raise LensSkillsError(f"example {example.id!r} has no answer, but the metric needs one.")
    return example.answer_tokens


def single_token_readout(
    logits: Float[Tensor, "batch d_vocab"],
    examples: Sequence[Any],
    name: str,
    reads: frozenset[str],
) -> Readout:
    """A readout made of first-token logits alone, for a metric called ``name``.

    Raises:
        LensSkillsError: The metric reads more than one position (an answer of several tokens, the
            stop after it), or an example lacks what it reads.
    """
    shares = logits.double().log_softmax(-1).cpu()

    def of(tokens: Sequence[tuple[int, ...] | None]) -> Continuation | None:
        if any(part is None for part in tokens):
            return None
        if any(len(part) != 1 for part in tokens if part is not None) or "stop" in reads:
            raise LensSkillsError(
                f"{name} needs more than the logits of one position here (answers of "
                "several tokens, or the stop after them). Use ls.evaluate(model, examples, …)."
            )
        first = torch.tensor([part[0] for part in tokens if part is not None])
        return Continuation(
            shares[torch.arange(len(first)), first], shares.argmax(-1) == first, None
        )

    needs_sequences = reads - {"logits", "user"}
    if not needs_sequences:
        return Readout(logits)
    if "answer" in reads:
        for example in examples:
            answer_tokens(example)
    options = None
    if "options" in reads or "contrast" in reads:
        rows = [
            Continuation(
                row[torch.tensor([tokens[0] for tokens in example.option_tokens])],
                torch.zeros(len(example.option_tokens), dtype=torch.bool),
                None,
            )
            for row, example in zip(shares, examples, strict=True)
            if example.option_tokens
        ]
        options = tuple(rows) if len(rows) == len(examples) else None
    foil = of([example.foil_tokens for example in examples])
    if options is None and ("options" in reads or ("contrast" in reads and not foil)):
        raise LensSkillsError(f"{name} needs a foil or options, which an example lacks.")
    return Readout(
        logits,
        answer=of([example.answer_tokens for example in examples]),
        foil=foil,
        options=options,
    )
