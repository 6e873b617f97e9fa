"""One batch through the model: text to tokens, padded, run with hooks, and what is read of it.

Where the prompt ends and the answer begins; which outputs the metrics need; logits at the first
answer token, scores of whole answers, and the log-odds of single tokens without the vocabulary."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations.continuations import (
    Chunk,
    ContinuationTree,
    ForwardPass,
    Padding,
    Scores,
    longest,
    read_of,
)
from lens_skills.activations.metrics import Continuation, Metric, Readout
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import EditHook, ReadHook
from lens_skills.models.kept_prefix import KeptPrefix
from lens_skills.models.partial_forward import CannotResume, prefill
from lens_skills.models.user_hooks import watched

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


def check_examples(examples: Any) -> None:
    """Nothing; raises where these are not examples, or none."""
    if isinstance(examples, str) or not isinstance(examples, Iterable):
        raise LensSkillsError(f"{examples!r:.60} is no task and no list of examples.")
    for example in examples:
        if not isinstance(example, Example):
            raise LensSkillsError(
                f"examples hold a {type(example).__name__}, {example!r:.60}; each must be an "
                "Example: ls.tasks.table(…) makes them of a table, ls.Example(…) one at a time."
            )
    if len(examples) == 0:  # pyright: ignore[reportArgumentType]
        raise LensSkillsError("no examples to read: the task is empty.")


def encode_examples(adapter: Any, examples: Sequence[Example], *, answers: bool) -> list[Encoded]:
    """The examples as tokens of one model.

    The rule for answers, the same for all examples of a call: the answer's tokens are what the
    tokenizer adds to the prompt's when it reads both together. Where a prompt ends in a space, a
    tokenizer may fuse that space with the answer. If it does so for most answers (GPT-2 reads
    ``": 7"`` as ``":", " 7"``) the space is moved to the answer, for all examples alike. If it
    does so for few (SmolLM2 keeps ``"A: "`` and ``"7"`` apart, but fuses ``" -"``), the space
    stays with the prompt and those few answers are read on their own; otherwise every answer
    would begin with the same bare space, and its first token would say nothing.

    In a chat (`ModelAdapter.chat`) the user's turn is the prompt as it is written, and the answer
    opens the assistant's turn, without the spaces that would join it to the prompt; its tokens are
    what it adds to those of the template's text.

    Args:
        adapter: The model (`lens_skills.models.backends.as_adapter`).
        examples: What to read.
        answers: Whether answers, foils and options are needed; else they stay undecided (None).

    Raises:
        LensSkillsError: A prompt longer than the context, an empty prompt, or an answer that
            cannot be told apart from its prompt in tokens.
    """
    check_examples(examples)
    # Whatever the metrics read: the last prompt token must be the same one in every pass.
    # An answer is read again as a foil or an option: what was just read is remembered.
    read = lru_cache(maxsize=_REMEMBERED)(adapter.encode)
    moved = not adapter.chat and _space_must_move(read, examples)
    once: dict[tuple[int, ...], tuple[int, ...]] = {}
    return [
        _encode(adapter, read, index, example, answers=answers, moved=moved, once=once)
        for index, example in enumerate(examples)
    ]


_REMEMBERED = 1024  # texts

Read = Callable[[str], list[int]]
"""From a text to its tokens, which are not to be changed."""


def _encode(
    adapter: Any,
    read: Read,
    index: int,
    example: Example,
    *,
    answers: bool,
    moved: bool,
    once: dict[tuple[int, ...], tuple[int, ...]],
) -> Encoded:
    """``once`` holds each answer's tokens, which examples with the same answer share."""
    prompt = example.prompt
    if not prompt.strip():
        raise LensSkillsError(f"example {example.id!r} has an empty prompt.")
    space = ""
    if moved:
        prompt, space = prompt.rstrip(" "), prompt[len(prompt.rstrip(" ")) :]
    tokens = read(prompt)

    def continuation(text: str) -> tuple[int, ...]:
        found = continued(text)
        return once.setdefault(found, found)

    def continued(text: str) -> tuple[int, ...]:
        if adapter.chat:
            return _in_turn(adapter, example, tokens, text)
        found = _continuation(read, prompt, tokens, space + text)
        if found is None and prompt.endswith(" "):
            return tuple(adapter.encode_plain(text))
        if found is None:
            raise LensSkillsError(
                f"example {example.id!r}: the answer {text!r} cannot be told apart from its prompt "
                f"(...{prompt[-20:]!r}) in this model's tokens. End the prompt at a word boundary "
                "and begin the answer with the space, or the other way round: tasks.table(…, "
                "join=' ') and bigbench(…, join=' ') do it."
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


def _in_turn(adapter: Any, example: Example, tokens: list[int], text: str) -> tuple[int, ...]:
    """The tokens of an answer that opens the assistant's turn."""
    answer = text.lstrip(" ")
    whole = adapter.encode_plain(adapter.rendered(example.prompt) + answer)
    if whole[: len(tokens)] != tokens:  # fused with the template's end, which the model has read
        whole = [*tokens, *adapter.encode_plain(answer)]
    if len(whole) == len(tokens):
        raise LensSkillsError(
            f"example {example.id!r}: the answer {text!r} has no tokens of its own in a chat, "
            "where it opens a turn. Give answers with a text, or leave chat out."
        )
    return tuple(whole[len(tokens) :])


def _continuation(read: Read, prompt: str, tokens: list[int], text: str) -> tuple[int, ...] | None:
    """The tokens ``text`` adds to the prompt's, or None where it changes the prompt's own."""
    whole = read(prompt + text)
    if whole[: len(tokens)] != tokens or len(whole) == len(tokens):
        return None
    return tuple(whole[len(tokens) :])


def _space_must_move(read: Read, examples: Sequence[Example]) -> bool:
    """Whether most answers fuse with their prompt's trailing space, which then moves for all."""
    # Two hundred examples, evenly spaced, tell a tokenizer's habit.
    some = examples[:: max(1, len(examples) // 200)]
    fused = [
        _continuation(read, example.prompt, read(example.prompt), example.answer) is None
        for example in some
        if example.answer is not None and example.prompt.endswith(" ")
    ]
    return sum(fused) > len(fused) / 2


def with_answers(examples: Any, answers: bool | None) -> bool:
    """Whether prompts are read together with their answers; None: where all have one."""
    return all(example.answer is not None for example in examples) if answers is None else answers


@dataclass(frozen=True)
class RequiredOutputs:
    """Which parts of the model's output a pass must compute.

    Attributes:
        logits: Any of it.
        answer, foil, options: Their log-probabilities.
        stop: What follows the answer.
        vocabulary: The whole vocabulary at the prompt's end.
    """

    logits: bool
    answer: bool
    stop: bool
    foil: bool
    options: bool
    vocabulary: bool

    def continuations(self, encoded: Encoded) -> list[tuple[int, ...]]:
        """What is scored behind a prompt: answer, foil, options, as far as they are asked for."""
        found = []
        own = (self.answer, encoded.answer_tokens), (self.foil, encoded.foil_tokens)
        for asked, tokens in own:
            if asked:
                assert tokens is not None
                found.append(tokens)
        return [*found, *(encoded.option_tokens if self.options else ())]

    def extra(self, encoded: Encoded) -> tuple[int, ...]:
        """The tokens that stand behind the prompt in its row: see `ContinuationTree`."""
        return longest(read_of(self.continuations(encoded), stop=self.stop))

    def tree(
        self,
        adapter: Any,
        batch: Sequence[Encoded],
        prompts: Sequence[Encoded] | None = None,
        *,
        padding: Padding = "left",
    ) -> ContinuationTree:
        """The batch with all its continuations, or these behind other prompts."""
        return ContinuationTree.of(
            [item.prompt_tokens.tolist() for item in prompts or batch],
            [self.continuations(item) for item in batch],
            stop=self.stop,
            pad=adapter.pad_id,
            device=adapter.device,
            padding=padding,
        )


NOTHING = RequiredOutputs(
    logits=False, answer=False, stop=False, foil=False, options=False, vocabulary=False
)


def prepare(
    adapter: Any, examples: Sequence[Example], metrics: Sequence[Metric]
) -> tuple[list[Encoded], RequiredOutputs]:
    """The examples in tokens, and what the pass must compute for the metrics."""
    reads = frozenset[str]().union(*(metric.reads for metric in metrics))
    contrast = "contrast" in reads
    foils = contrast and all(example.foil is not None for example in examples)
    plan = RequiredOutputs(
        logits=bool(reads),
        answer=bool({"answer", "stop"} & reads),
        stop="stop" in reads,
        foil=foils,
        options="options" in reads or (contrast and not foils),
        vocabulary="logits" in reads,
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
    encoded = encode_examples(adapter, examples, answers=needs_answers)
    if "tokens" in reads:
        _warn_of_one_beginning(adapter, encoded)
    return encoded, plan


def _warn_of_one_beginning(adapter: Any, encoded: Sequence[Encoded]) -> None:
    """A warning where different answers all begin with one token, which then tells nothing."""
    answers = {item.answer_tokens for item in encoded}
    firsts = {answer[0] for answer in answers if answer}
    if len(firsts) == 1 < len(answers):
        warnings.warn(
            f"all {len(answers)} answers begin with the token {adapter.decode(firsts.pop())!r}, so "
            "a metric of the first token cannot tell them apart. Let the prompts end in the space "
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


MakeEditHooks = Callable[[Sequence[Encoded], Sequence[int]], Mapping[str, EditHook]]
"""From a batch and the padded column each prompt begins at: what replaces which activation."""


def placed(
    editing: MakeEditHooks | None, batch: Sequence[Encoded], rows: Sequence[Sequence[int]]
) -> Mapping[str, EditHook]:
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


def forward_batch(
    adapter: Any,
    batch: Sequence[Encoded],
    plan: RequiredOutputs,
    metrics: Sequence[Metric],
    known: Mapping[str, Tensor],
    readers: Mapping[str, ReadHook],
    editing: MakeEditHooks | None = None,
    *,
    forward: ForwardPass | None = None,
    after: KeptPrefix | None = None,
) -> dict[str, Float[Tensor, " batch"]]:
    """The batch's metrics after one forward pass, which feeds the readers and is edited.

    Continuations that share the prompt run behind its keys and values, where the model allows it;
    else, and under edits, in passes of their own, edited alike.

    Args:
        adapter, batch: The model, and examples in its tokens.
        plan, metrics: What to compute.
        known: The metrics that need no model, over all examples.
        readers: Hooks of the first pass.
        editing: Makes the editing hooks of every pass.
        forward: What runs the passes in place of the adapter's own ``forward``.
        after: The prefix behind which ``forward`` runs them, if it does.
    """
    index = torch.tensor([item.index for item in batch])
    values = {name: numbers[index] for name, numbers in known.items()}
    tree = plan.tree(adapter, batch)
    run = adapter.forward if forward is None else forward

    def editors(rows: Sequence[int], starts: Sequence[int]) -> Mapping[str, EditHook]:
        return {} if editing is None else editing([batch[row] for row in rows], starts)

    if not plan.logits:
        own = editors(range(len(batch)), tree.starts)
        run(tree.tokens, tree.mask, readers=readers, logits_at=None, editors=own)
        return values
    chunks = None
    if editing is None and tree.branches is not None and (forward is None or after is not None):
        before = after if forward is not None else None
        here = tree if before is None else plan.tree(adapter, batch, padding="right")
        chunks = _behind_prompts(adapter, here, readers, before)
    if chunks is None:
        chunks = tree.plain_logits(run, readers, editors, adapter.pad_id)
    scores = Scores.of(tree, chunks, first=plan.vocabulary)
    return values | read_metrics(adapter, batch, plan, metrics, scores)


# Of adapters whose branches were tried, without and with a prefix: the widest rows they agreed on,
# None where they do not.
_TRIED: WeakKeyDictionary[Any, dict[bool, int | None]] = WeakKeyDictionary()
_WIDER = 1.5  # times as wide rows are tried anew: windows of attention begin to matter


def _behind_prompts(
    adapter: Any,
    tree: ContinuationTree,
    readers: Mapping[str, ReadHook],
    after: KeptPrefix | None,
) -> Iterable[Chunk] | None:
    """Logits at all places, what is not in the rows run behind them; None where that cannot be."""
    above = bool(readers) and adapter._top(readers) is None
    verdicts = _TRIED.setdefault(adapter, {})
    width, tried = tree.tokens.shape[1], verdicts.get(after is not None, 0)
    if above or tried is None or watched(adapter):
        return None
    try:
        suffix = prefill(
            adapter, tree.tokens, tree.mask, start=tree.start, readers=readers,
            branches=tree.branches, after=after, check=False,
        )  # fmt: skip
        if width > _WIDER * tried:
            suffix.check_branches(tree.tokens)
            verdicts[after is not None] = width
    except CannotResume:
        verdicts[after is not None] = None
        return None
    return tree.suffix_logits(suffix, suffix.entering[-1][None])


def read_metrics(
    adapter: Any,
    examples: Sequence[Encoded],
    plan: RequiredOutputs,
    metrics: Sequence[Metric],
    scores: Scores,
) -> dict[str, Float[Tensor, " row"]]:
    """The metrics that need the model, of examples that are scored.

    Raises:
        LensSkillsError: One is not finite.
    """
    readout = read_out(adapter, examples, plan, scores)
    values = {}
    for metric in metrics:
        if not metric.known:
            values[metric.name] = metric.of(readout, examples).double().cpu()
            refuse_non_finite(metric.name, values[metric.name], examples)
    return values


def read_out(
    adapter: Any, examples: Sequence[Encoded], plan: RequiredOutputs, scores: Scores
) -> Readout:
    """What metrics read, of the continuations in the order of `RequiredOutputs.continuations`."""
    joint, greedy = scores.log_probability, scores.greedy
    answer = foil = options = None
    if plan.answer:
        stops = None
        if scores.after is not None:
            texts = {token: adapter.decode(token) for token in set(scores.after.tolist())}
            stops = torch.tensor([not texts[t][:1].isalnum() for t in scores.after.tolist()])
        answer = Continuation(joint[:, 0], greedy[:, 0], stops)
    before = int(plan.answer) + int(plan.foil)
    if plan.foil:
        foil = Continuation(joint[:, before - 1], greedy[:, before - 1], None)
    if plan.options:
        ends = [before + len(item.option_tokens) for item in examples]
        options = tuple(
            Continuation(row[before:end], yes[before:end], None)
            for row, yes, end in zip(joint, greedy, ends, strict=True)
        )
    return Readout(scores.first, answer, foil, options)


class TokenOdds:
    """Answer against foil (or the best other option), each of one token, for a batch.

    The softmax's normaliser cancels, so two columns of the unembedding suffice; everything here
    is linear in the normalised residual stream, up to the choice among several other options.
    """

    def __init__(self, adapter: Any, batch: Sequence[Encoded], plan: RequiredOutputs) -> None:
        weight, bias = adapter.unembed_vectors()
        rows, offsets = [], []
        for answer, others in (_tokens(item, plan) for item in batch):
            rows.append(weight[:, answer, None].double() - weight[:, others].double())
            zeros = torch.zeros(len(others), dtype=torch.float64, device=weight.device)
            offsets.append(zeros if bias is None else (bias[answer] - bias[others]).double())
        widest = max(len(row) for row in offsets)
        # Examples with fewer options repeat their last one: a minimum does not mind.
        pad = [list(range(len(o))) + [len(o) - 1] * (widest - len(o)) for o in offsets]
        self.directions = torch.stack([r[:, p].T for r, p in zip(rows, pad, strict=True)])
        self.offsets = torch.stack([o[p] for o, p in zip(offsets, pad, strict=True)])

    @classmethod
    def of(
        cls, adapter: Any, batch: Sequence[Encoded], plan: RequiredOutputs, metric: Metric
    ) -> Any:
        """The log-odds of a batch, or None where the metric or its tokens are others."""
        if not metric.is_log_odds:
            return None
        single = all(
            len(item.answer_tokens or ()) == 1
            and all(len(tokens) == 1 for tokens in _others(item, plan))
            for item in batch
        )
        return cls(adapter, batch, plan) if single else None

    def __call__(
        self, normal: Float[Tensor, "set example d_model"]
    ) -> Float[Tensor, "set example"]:
        """The log-odds of the normalised residual stream at the last prompt token, in nats."""
        odds = torch.einsum("sed,ekd->sek", normal.to(self.directions), self.directions)
        return (odds + self.offsets).amin(-1)


def _others(item: Encoded, plan: RequiredOutputs) -> list[tuple[int, ...]]:
    if plan.foil:
        return [item.foil_tokens or ()]
    answer = item.example.answer
    pairs = zip(item.example.options, item.option_tokens, strict=True)
    return [tokens for option, tokens in pairs if option != answer]


def _tokens(item: Encoded, plan: RequiredOutputs) -> tuple[int, list[int]]:
    assert item.answer_tokens is not None
    return item.answer_tokens[0], [tokens[0] for tokens in _others(item, plan)]
