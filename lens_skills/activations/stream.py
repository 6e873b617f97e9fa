"""One pass over a task: batches of activations and metrics, nothing of it kept."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills import settings
from lens_skills.activations.forward import (
    Encoded,
    RequiredOutputs,
    forward_batch,
    known_values,
    prepare,
)
from lens_skills.activations.locations import (
    DEFAULT_SITE,
    Position,
    PositionSpec,
    Site,
    find_site,
    parse_position,
    soft_position,
    token_places,
)
from lens_skills.activations.metrics import Metric, parse_metrics
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, SoftPrompt, with_soft_prompt
from lens_skills.progress import Progress


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
        gate: What went into the neurons' activation function, where it was read too.
    """

    index: Int[Tensor, " batch"]
    examples: tuple[Encoded | Example, ...]
    activations: Float[Tensor, "batch *pos layer neuron"]
    mask: Bool[Tensor, "batch pos"] | None
    metrics: Mapping[str, Float[Tensor, " batch"]]
    gate: Float[Tensor, "batch layer neuron"] | None = None


def stream(
    model: Any,
    examples: Sequence[Example],
    *,
    at: str = DEFAULT_SITE,
    position: Position | None = None,
    layers: int | Iterable[int] | None = None,
    metrics: Any = (),
    prompt: SoftPrompt | None = None,
    chat: Chat = False,
    skip: int = 0,
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
            ``"mean"``, ``"max"`` or ``"all"`` (the prompt's tokens without the first, special one),
            or ``"prompt"``: each vector of the soft prompt's suffix. Default: ``"last"``, or
            ``"prompt"`` where there is a soft prompt. In a chat, ``"last"`` ends the opening of the
            answer, indices count all tokens, and spans lie in the user's own text.
        layers: Which layers (default all).
        metrics: Names, `Metric` values or functions; see `lens_skills.activations.metrics`.
        prompt: A soft prompt to read every example with.
        chat: Read prompts in the tokenizer's chat template: the prompt is the user's turn, the
            answer opens the assistant's. A text: with this system prompt.
        skip: Batches to leave out at the start (of a pass that is being resumed).

    Raises:
        LensSkillsError: Unknown hook point, position outside a prompt, prompt longer than the
            context, a metric the task cannot give, a metric that is not finite.
    """
    wanted, adapter = parse_metrics(metrics, examples), with_soft_prompt(model, prompt, chat)
    site, reading = find_site(adapter, at, layers), parse_position(soft_position(adapter, position))
    return _stream(adapter, examples, site, reading, wanted, skip)


def evaluate(
    model: Any,
    examples: Sequence[Example],
    metrics: Any,
    *,
    prompt: SoftPrompt | None = None,
    chat: Chat = False,
) -> dict[str, Float[Tensor, " row"]]:
    """Every metric of every example, in the order of the examples, reading no activations."""
    wanted = parse_metrics(metrics, examples)
    values = {metric.name: torch.zeros(len(examples), dtype=torch.float64) for metric in wanted}
    adapter = with_soft_prompt(model, prompt, chat)
    if all(metric.known for metric in wanted):
        return known_values(wanted, examples)
    encoded, plan = prepare(adapter, examples, wanted)
    known = known_values(wanted, encoded)
    for batch in batches(encoded, plan, "evaluate"):
        found = forward_batch(adapter, batch, plan, wanted, known, {})
        for name, numbers in found.items():
            values[name][[encoded.index for encoded in batch]] = numbers
    return values


def _stream(
    adapter: Any,
    examples: Sequence[Example],
    site: Site,
    reading: PositionSpec,
    metrics: Sequence[Metric],
    skip: int,
) -> Iterator[Batch]:
    encoded, plan = prepare(adapter, examples, metrics)
    yield from read_sites(adapter, encoded, plan, [site], reading, metrics=metrics, skip=skip)


Places = Mapping[int, Sequence[Sequence[int]]] | Sequence[Sequence[Sequence[int]]]
"""By an example's index: the prompt tokens each spot covers."""


def read_sites(
    adapter: Any,
    encoded: list[Encoded],
    plan: RequiredOutputs,
    sites: Sequence[Site],
    reading: PositionSpec,
    places: Places | None = None,
    *,
    metrics: Sequence[Metric] = (),
    skip: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> Iterator[Batch]:
    """Batches of a site's activations, and of its gate's where a second site is given.

    One forward pass a batch. ``places`` are those of ``reading`` where left out; the rest is as in
    `batches`.
    """
    known = known_values(metrics, encoded)
    places = places_of(adapter, encoded, reading) if places is None else places
    options: dict[str, Any] = {"skip": skip, "batch_size": batch_size, "progress": progress}
    for batch in batches(encoded, plan, **options):
        here = [places[item.index] for item in batch]
        parts = [PositionGather(site, reading, here, batch, plan) for site in sites]
        readers = {name: reader for part in parts for name, reader in part.readers().items()}
        values = forward_batch(adapter, batch, plan, metrics, known, readers)
        (activations, mask), *gates = [part.result() for part in parts]
        yield Batch(
            index=torch.tensor([item.index for item in batch]),
            examples=tuple(batch),
            activations=activations,
            mask=mask,
            metrics=values,
            gate=gates[0][0] if gates else None,
        )


def places_of(adapter: Any, encoded: Sequence[Encoded], reading: PositionSpec) -> Places:
    """The prompt tokens each spot of a position covers, by example."""
    return [[token_places(adapter, item, spot) for spot in reading.spots] for item in encoded]


def batches(
    encoded: list[Encoded],
    plan: RequiredOutputs,
    verb: str = "read",
    *,
    skip: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> Iterator[list[Encoded]]:
    """Batches of like length, the order fixed by length and place alone.

    Args:
        encoded: The examples in tokens.
        plan: What the pass computes beside activations.
        verb: What the bar says.
        skip: Batches to leave out at the start.
        batch_size: Examples per batch; None: as `lens_skills.config` says, or 32.
        progress: False for a loop within another one that is shown.
    """
    if batch_size is None:
        batch_size = settings.batch_size()

    def length(item: Encoded) -> tuple[int, int]:
        return len(item.prompt_tokens) + len(plan.extra(item)), item.index

    ordered = sorted(encoded, key=length)
    done = min(skip * batch_size, len(ordered))
    with Progress(len(ordered), verb, "examples", done=done, shown=progress) as bar:
        for start in range(skip * batch_size, len(ordered), batch_size):
            batch = ordered[start : start + batch_size]
            yield batch
            bar.update(len(batch))


class PositionGather:
    """Gathers what one batch's hooks deliver into one tensor of its own."""

    def __init__(
        self,
        site: Site,
        reading: PositionSpec,
        places: Sequence[Sequence[Sequence[int]]],
        batch: Sequence[Encoded],
        plan: RequiredOutputs,
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
        taken = activation.detach()[rows, self.places.to(activation.device)].float().flatten(2)
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
