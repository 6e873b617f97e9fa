"""One pass over a task: batches of activations and metrics, nothing of it kept."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from lens_skills.activations.encoding import Encoded, encode_examples
from lens_skills.activations.metrics import Metric, parse_metrics
from lens_skills.activations.positions import Position, Reading, parse_position, token_places
from lens_skills.activations.readout import (
    Continuation,
    Readout,
    answer_places,
    pad_left,
    score_continuation,
    score_extra,
)
from lens_skills.activations.sites import DEFAULT_SITE, Site, find_site
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import as_lens

BATCH_SIZE = 32


@dataclass(frozen=True)
class Batch:
    """Some examples, what their neurons did, and their metrics.

    Attributes:
        index: Places of the examples in the sequence that was streamed.
        examples: The examples with their tokens (from a table: the examples themselves).
        activations: ``batch layer neuron``; with a list of positions or ``"all"``,
            ``batch pos layer neuron``. Owned by the batch: no view of a larger tensor.
        mask: For ``"all"``: which positions are tokens of the prompt (rows are padded at the end).
        metrics: One number per example for each metric asked for.
    """

    index: Int[Tensor, " batch"]
    examples: tuple[Encoded | Example, ...]
    activations: Float[Tensor, "batch *pos layer neuron"]
    mask: Bool[Tensor, "batch pos"] | None
    metrics: Mapping[str, Float[Tensor, " batch"]]


def stream(
    model: Any,
    examples: Sequence[Example],
    *,
    at: str = DEFAULT_SITE,
    position: Position = "last",
    layers: int | Iterable[int] | None = None,
    metrics: Any = (),
    batch_size: int = BATCH_SIZE,
    chat: bool = False,
    skip: int = 0,
    progress: bool | None = None,
) -> Iterator[Batch]:
    """Batches of activations at a site and position, with metrics, in one forward pass each.

    Examples are sorted by length so that batches hold little padding; ``Batch.index`` says which
    they are. The vocabulary projection runs only at the positions a metric reads, and not at all
    where no metric reads the model's output. Values are those of one example alone, whatever the
    batch, the padding side and the implementation (to float rounding).

    Args:
        model: A HookedTransformer or TransformerBridge; it is left as it was.
        examples: A `Task` or any sequence of `Example`.
        at: Hook point within a block, e.g. ``"mlp.hook_post"``, ``"mlp.hook_pre"``,
            ``"hook_resid_post"``, ``"attn.hook_z"`` (heads side by side), or a full name.
        position: ``"last"`` (the last *prompt* token), an index, ``span(...)``, a list of those,
            ``"mean"``, ``"max"`` or ``"all"`` (the prompt's tokens without the first, special one).
        layers: Which layers (default all).
        metrics: Names, `Metric` values or functions; see `lens_skills.activations.metrics`.
        batch_size: Examples per forward pass.
        chat: Put prompts through the tokenizer's chat template.
        skip: Batches to leave out at the start (of a pass that is being resumed).
        progress: Show a progress bar (None: on a terminal only).

    Raises:
        LensSkillsError: Unknown hook point, position outside a prompt, prompt longer than the
            context, a metric the task cannot give, a metric that is not finite.
    """
    return _stream(
        as_lens(model),
        examples,
        at=at,
        position=position,
        layers=layers,
        metrics=parse_metrics(metrics),
        batch_size=batch_size,
        chat=chat,
        skip=skip,
        progress=progress,
    )


def evaluate(
    model: Any,
    examples: Sequence[Example],
    metrics: Any,
    *,
    batch_size: int = BATCH_SIZE,
    chat: bool = False,
    progress: bool | None = None,
) -> dict[str, Float[Tensor, " row"]]:
    """Every metric of every example, in the order of the examples, reading no activations."""
    wanted = parse_metrics(metrics)
    values = {metric.name: torch.zeros(len(examples), dtype=torch.float64) for metric in wanted}
    lens = as_lens(model)
    if all(metric.known for metric in wanted):
        return known_values(wanted, examples)
    encoded, plan = prepare(lens, examples, wanted, chat)
    known = known_values(wanted, encoded)
    for batch in _batches(encoded, plan, batch_size, 0, progress, "evaluate"):
        found = _forward(lens, batch, plan, wanted, known, {})
        for name, numbers in found.items():
            values[name][[encoded.index for encoded in batch]] = numbers
    return values


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
    return encode_examples(lens, examples, answers=needs_answers, chat=chat), plan


def known_values(
    metrics: Sequence[Metric], examples: Sequence[Any]
) -> dict[str, Float[Tensor, " row"]]:
    """The metrics that need no model, over all examples at once."""
    values = {}
    for metric in metrics:
        if metric.known:
            numbers = metric.of(None, examples)  # type: ignore[arg-type]
            _refuse_non_finite(metric.name, numbers, examples)
            values[metric.name] = numbers
    return values


def _stream(
    lens: Any,
    examples: Sequence[Example],
    *,
    at: str,
    position: Position,
    layers: int | Iterable[int] | None,
    metrics: Sequence[Metric],
    batch_size: int,
    chat: bool,
    skip: int,
    progress: bool | None,
) -> Iterator[Batch]:
    if batch_size < 1:
        raise LensSkillsError(f"batch_size must be at least 1, not {batch_size}.")
    site, reading = find_site(lens, at, layers), parse_position(position)
    encoded, plan = prepare(lens, examples, metrics, chat)
    known = known_values(metrics, encoded)
    places = [[token_places(lens, item, spot) for spot in reading.spots] for item in encoded]
    for batch in _batches(encoded, plan, batch_size, skip, progress, "read"):
        rows = _Rows(site, reading, [places[item.index] for item in batch], batch, plan)
        values = _forward(lens, batch, plan, metrics, known, rows.readers())
        activations, mask = rows.result()
        yield Batch(
            index=torch.tensor([item.index for item in batch]),
            examples=tuple(batch),
            activations=activations,
            mask=mask,
            metrics=values,
        )


def _batches(
    encoded: list[Encoded],
    plan: Plan,
    batch_size: int,
    skip: int,
    progress: bool | None,
    verb: str,
) -> Iterator[list[Encoded]]:
    """Batches of like length, the order fixed by length and place alone."""

    def length(item: Encoded) -> tuple[int, int]:
        return len(item.prompt_tokens) + len(plan.extra(item)), item.index

    ordered = sorted(encoded, key=length)
    disable = None if progress is None else not progress
    with tqdm(total=len(ordered), desc=verb, unit=" examples", disable=disable) as bar:
        bar.update(min(skip * batch_size, len(ordered)))
        for start in range(skip * batch_size, len(ordered), batch_size):
            batch = ordered[start : start + batch_size]
            yield batch
            bar.update(len(batch))


def _forward(
    lens: Any,
    batch: Sequence[Encoded],
    plan: Plan,
    metrics: Sequence[Metric],
    known: Mapping[str, Tensor],
    readers: Mapping[str, Any],
) -> dict[str, Float[Tensor, " batch"]]:
    """Runs the model on a batch, feeding the readers; returns the batch's metrics."""
    extra = [plan.extra(item) for item in batch]
    rows = [[*item.prompt_tokens.tolist(), *more] for item, more in zip(batch, extra, strict=True)]
    tokens, mask = pad_left(rows, lens.pad_id, lens.device)
    places = answer_places([len(more) for more in extra], tokens.shape[1]).to(lens.device)
    logits = lens.forward(tokens, mask, readers=readers, logits_at=places if plan.logits else None)
    index = torch.tensor([item.index for item in batch])
    values = {name: numbers[index] for name, numbers in known.items()}
    if not plan.logits:
        return values
    readout = _read_out(lens, batch, plan, logits)
    for metric in metrics:
        if not metric.known:
            numbers = metric.of(readout, batch).double().cpu()
            _refuse_non_finite(metric.name, numbers, batch)
            values[metric.name] = numbers
    return values


def _read_out(
    lens: Any, batch: Sequence[Encoded], plan: Plan, logits: Float[Tensor, "batch k d_vocab"]
) -> Readout:
    first = logits[:, 0]
    answer = foil = options = None
    if plan.answer:
        answers = [item.answer_tokens or () for item in batch]
        answer = score_continuation(lens, logits, answers, stop=plan.stop)
    if plan.foil:
        foil = score_extra(lens, batch, [item.foil_tokens or () for item in batch], first)
    if plan.options:
        options = _score_options(lens, batch, first)
    return Readout(first, answer, foil, options)


def _score_options(
    lens: Any, batch: Sequence[Encoded], logits: Float[Tensor, "batch d_vocab"]
) -> tuple[Continuation, ...]:
    """Every option of every example, in batches of the size the pass runs at."""
    pairs = [(row, option) for row, item in enumerate(batch) for option in item.option_tokens]
    total = torch.zeros(len(pairs), dtype=torch.float64)
    for start in range(0, len(pairs), len(batch)):
        part = pairs[start : start + len(batch)]
        rows = [row for row, _ in part]
        scored = score_extra(
            lens, [batch[row] for row in rows], [option for _, option in part], logits[rows]
        )
        total[start : start + len(part)] = scored.log_probability
    sizes = [len(item.option_tokens) for item in batch]
    none = [torch.zeros(size, dtype=torch.bool) for size in sizes]
    return tuple(
        Continuation(part, no, None) for part, no in zip(total.split(sizes), none, strict=True)
    )


def _refuse_non_finite(name: str, numbers: Tensor, examples: Sequence[Any]) -> None:
    wrong = (~torch.isfinite(numbers)).nonzero()
    if len(wrong):
        place = int(wrong[0])
        raise LensSkillsError(
            f"the metric {name!r} is {float(numbers[place])} for example "
            f"{examples[place].id!r} ({len(wrong)} of {len(numbers)} here are not finite). "
            "Mend the column or the function; nothing was written."
        )


class _Rows:
    """Gathers what one batch's hooks deliver into one tensor of its own."""

    def __init__(
        self,
        site: Site,
        reading: Reading,
        places: Sequence[Sequence[Sequence[int]]],
        batch: Sequence[Encoded],
        plan: Plan,
    ) -> None:
        self.site, self.reading = site, reading
        lengths = [len(item.prompt_tokens) + len(plan.extra(item)) for item in batch]
        # Prompts are padded on the left and their answers follow: token p of a row of length n
        # stands at column width - n + p.
        self.width = max(lengths)
        shifts = [self.width - length for length in lengths]
        pooled = reading.ragged or reading.pool is not None
        rows = [spots[0] if pooled else [spot[0] for spot in spots] for spots in places]
        widest = max(len(row) for row in rows)
        self.places = torch.zeros(len(batch), widest, dtype=torch.long)
        self.mask = torch.zeros(len(batch), widest, dtype=torch.bool)
        for row, (spots, shift) in enumerate(zip(rows, shifts, strict=True)):
            self.places[row, : len(spots)] = torch.from_numpy(np.asarray(spots) + shift)
            self.mask[row, : len(spots)] = True
        self.out: Tensor | None = None

    def readers(self) -> dict[str, Any]:
        def reader(place: int) -> Any:
            # The layer is bound here: a bridge hands hooks the name of an alias.
            return lambda activation: self._take(place, activation)

        return {
            self.site.hook_name(layer): reader(place)
            for place, layer in enumerate(self.site.layers)
        }

    def _take(self, place: int, activation: Tensor) -> None:
        by_position = activation.shape[:2] == (len(self.places), self.width)
        # An attention pattern is "batch head query key": its heads could pass for positions.
        if not by_position or self.site.name in ("attn.hook_pattern", "attn.hook_attn_scores"):
            raise LensSkillsError(
                f"{self.site.name!r} has the shape {tuple(activation.shape)}, not batch, position, "
                "…: it holds no numbers per token. Choose another hook point."
            )
        rows = torch.arange(len(self.places), device=activation.device)[:, None]
        # Indexing copies, so no view keeps the full activation alive.
        taken = activation.detach()[rows, self.places.to(activation.device)].float()
        taken = rearrange(taken.flatten(2), "batch pos neuron -> batch pos neuron")
        mask = rearrange(self.mask.to(taken.device), "batch pos -> batch pos 1")
        if self.reading.pool == "mean":
            taken = reduce(taken * mask, "batch pos neuron -> batch 1 neuron", "sum")
            taken = taken / reduce(mask, "batch pos 1 -> batch 1 1", "sum")
        elif self.reading.pool == "max":
            taken = taken.masked_fill(~mask, -torch.inf)
            taken = reduce(taken, "batch pos neuron -> batch 1 neuron", "max")
        elif self.reading.ragged:
            taken = taken * mask
        if self.out is None:
            batch, n_pos, width = taken.shape
            self.out = taken.new_zeros(batch, n_pos, len(self.site.layers), width)
        self.out[:, :, place] = taken

    def result(self) -> tuple[Tensor, Bool[Tensor, "batch pos"] | None]:
        assert self.out is not None, "no reader was called"
        if self.reading.ragged:
            return self.out, self.mask
        if self.reading.several:
            return self.out, None
        return rearrange(self.out, "batch 1 layer neuron -> batch layer neuron"), None
