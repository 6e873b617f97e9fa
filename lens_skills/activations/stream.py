"""One pass over a task: batches of activations and metrics, nothing of it kept."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from lens_skills.activations.halved_batches import HalvedBatches, joined
from lens_skills.activations.locations import (
    DEFAULT_SITE,
    Count,
    Position,
    PositionSpec,
    Site,
    find_site,
    parse_position,
    soft_position,
    token_places,
)
from lens_skills.activations.metrics import Metric, parse_metrics
from lens_skills.activations.shared_prefix import PrefixedPasses, by_beginning
from lens_skills.checkpoints import part
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, SoftPrompt, with_soft_prompt
from lens_skills.models.kept_prefix import KeptPrefix
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
    examples: Sequence[Encoded | Example]
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
            ``"mean"``, ``"max"``, ``count(…)`` or ``"all"`` (the prompt's tokens without the first,
            special one), or ``"prompt"``: each vector of the soft prompt's suffix. Default:
            ``"last"``, or ``"prompt"`` where there is a soft prompt. In a chat, ``"last"`` ends the
            opening of the answer, indices count all tokens, and spans lie in the user's own text.
        layers: Which layers (default all).
        metrics: Names, `Metric` values or functions; see `lens_skills.activations.metrics`.
        prompt: A soft prompt to read every example with.
        chat: Read prompts in the tokenizer's chat template: the prompt is the user's turn, the
            answer opens the assistant's. A text: with this system prompt.
        skip: Batches to leave out at the start (of a pass that is being resumed).

    Raises:
        LensSkillsError: Unknown hook point, position outside a prompt, prompt longer than the
            context, a metric the task cannot give, a metric that is not finite, a threshold that
            no token crosses.
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
    passes, parts = PrefixedPasses(adapter, encoded, plan), HalvedBatches(adapter.device)

    def read(batch: Sequence[Encoded]) -> dict[str, Tensor]:
        _, run = passes.of(batch)
        return dict(
            forward_batch(adapter, batch, plan, wanted, known, {}, forward=run, after=passes.prefix)
        )

    def measure(batch: Sequence[Encoded]) -> dict[str, Tensor]:
        found = parts.run(batch, read)
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}

    for batch in batches(encoded, plan, "evaluate"):
        for name, numbers in part("evaluate", partial(measure, batch)).items():
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
    stop: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Iterator[Batch]:
    """Batches of a site's activations, and of its gate's where a second site is given.

    One forward pass a batch. ``places`` are those of ``reading`` where left out; the rest is as in
    `batches`.
    """
    known = known_values(metrics, encoded)
    places = places_of(adapter, encoded, reading) if places is None else places
    options: dict[str, Any] = {"skip": skip, "stop": stop}
    options |= {"batch_size": batch_size, "progress": progress}

    def gather(batch: Sequence[Encoded], prefix: KeptPrefix | None) -> list[PositionGather]:
        here = [places[item.index] for item in batch]
        return [PositionGather(site, reading, here, batch, plan, prefix) for site in sites]

    counted = reading.spots[0] if reading.pool == "count" else None
    if isinstance(counted, Count):
        _check_fitted(counted, encoded)
    crossed = skip > 0
    passes = PrefixedPasses(adapter, encoded, plan, gather, f"{sites} {reading}")

    def read(batch: Sequence[Encoded]) -> tuple[list[Any], Mapping[str, Tensor]]:
        parts, run = passes.of(batch)
        readers = {name: reader for part in parts for name, reader in part.readers().items()}
        values = forward_batch(
            adapter, batch, plan, metrics, known, readers, forward=run, after=passes.prefix
        )
        return [part.result() for part in parts], values

    halves = HalvedBatches(adapter.device)
    for batch in batches(encoded, plan, **options):
        found = halves.run(batch, read)
        (activations, masks), *gates = [
            tuple(zip(*results, strict=True))
            for results in zip(*(f for f, _ in found), strict=True)
        ]
        whole = joined(activations)
        crossed = crossed or counted is None or bool(whole.any())
        yield Batch(
            index=torch.tensor([item.index for item in batch]),
            examples=tuple(batch),
            activations=whole,
            mask=None if masks[0] is None else joined(masks),
            metrics={name: joined([values[name] for _, values in found]) for name in found[0][1]},
            gate=joined(gates[0][0]) if gates else None,
        )
    if not crossed:
        raise LensSkillsError(
            f"{counted}: no neuron of {sites[0].name} in layers {list(sites[0].layers)} is above "
            f"the threshold at any token of the {len(encoded):,} examples. Choose a lower one; "
            "ls.fit_count(…) finds each neuron's own."
        )


def _check_fitted(counted: Count, encoded: Sequence[Encoded]) -> None:
    """Nothing; raises where thresholds were chosen on what is read."""
    ids, groups = counted.fitted_on
    same = sum(item.id in ids for item in encoded)
    alike = len({item.example.group for item in encoded} & groups)
    if same or alike:
        raise LensSkillsError(
            f"{counted} was fitted on {same} of these {len(encoded):,} examples and {alike} of "
            "their groups: a threshold chosen there would look better than it is. Fit and read on "
            "splits that share no group, as task.split(…) gives them."
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
    stop: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Iterator[list[Encoded]]:
    """Batches of like beginning and length, their order fixed by tokens and place alone.

    Args:
        encoded: The examples in tokens.
        plan: What the pass computes beside activations.
        verb: What the bar says.
        skip: Batches to leave out at the start.
        stop: The batch before which to stop; None: behind the last.
        batch_size: Examples per batch; None: as `lens_skills.config` says, or 32.
        progress: False for a loop within another one that is shown.
    """
    ordered = ordered_batches(encoded, plan, batch_size)
    done = sum(map(len, ordered[:skip]))
    with Progress(len(encoded), verb, "examples", done=done, shown=progress) as bar:
        for batch in ordered[skip:stop]:
            yield batch
            bar.update(len(batch))


def ordered_batches(
    encoded: Sequence[Encoded], plan: RequiredOutputs, batch_size: int | None = None
) -> list[list[Encoded]]:
    """All batches of a pass in the order in which they are run; see `batches`."""
    size = settings.batch_size() if batch_size is None else batch_size

    def length(item: Encoded) -> tuple[int, int]:
        return len(item.prompt_tokens) + len(plan.extra(item)), item.index

    groups = [sorted(group, key=length) for group in by_beginning(encoded)]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


class PositionGather:
    """Gathers what one batch's hooks deliver into one tensor of its own."""

    def __init__(
        self,
        site: Site,
        reading: PositionSpec,
        places: Sequence[Sequence[Sequence[int]]],
        batch: Sequence[Encoded],
        plan: RequiredOutputs,
        prefix: KeptPrefix | None = None,
    ) -> None:
        self.site, self.reading = site, reading
        lengths = [len(item.prompt_tokens) + len(plan.extra(item)) for item in batch]
        # Prompts are padded on the left and their answers follow: token p of a row of length n
        # stands at column width - n + p. Behind a prefix of q tokens they stand at its end, and
        # token p at column p - q; what is negative stands in the prefix.
        self.before = {} if prefix is None else prefix.read
        n_before = 0 if prefix is None else len(prefix)
        self.width = max(lengths) - n_before
        shifts = [-n_before if prefix else self.width - length for length in lengths]
        pooled = reading.ragged or reading.pool is not None
        rows = [spots[0] if pooled else [spot[0] for spot in spots] for spots in places]
        widest = max(len(row) for row in rows)
        self.places = torch.zeros(len(batch), widest, dtype=torch.long)
        self.mask = torch.zeros(len(batch), widest, dtype=torch.bool)
        for row, (spots, shift) in enumerate(zip(rows, shifts, strict=True)):
            self.places[row, : len(spots)] = torch.from_numpy(np.asarray(spots) + shift)
            self.mask[row, : len(spots)] = True
        self.first = min(min(row) for row in rows)
        self.n_before, self.narrow = n_before, 0
        self.out: Tensor | None = None

    @property
    def columns(self) -> Int[Tensor, "batch pos"] | None:
        """The only columns it looks at; None where they are many, or stand in the prefix."""
        many = self.reading.ragged or self.reading.pool is not None or bool((self.places < 0).any())
        return None if many else self.places

    def n_columns(self, more: int) -> None:
        """Takes activations at `columns` alone, and at so many more after them, too."""
        self.narrow = 0 if self.columns is None else self.places.shape[1] + more

    def readers(self) -> dict[str, Any]:
        def reader(place: int, name: str) -> Any:
            # The layer is bound here: a bridge hands hooks the name of an alias.
            return lambda activation: self._take(place, name, activation)

        names = enumerate(map(self.site.hook_name, self.site.layers))
        return {name: reader(place, name) for place, name in names}

    def _take(self, place: int, name: str, activation: Tensor) -> None:
        by_position = activation.shape[:2] == (len(self.places), self.width)
        columns = self.places
        if self.narrow and activation.shape[:2] == (len(self.places), self.narrow):
            by_position = True
            columns = torch.arange(columns.shape[1]).expand_as(columns)
        # An attention pattern is "batch head query key": its heads could pass for positions.
        if not by_position or self.site.name in ("attn.hook_pattern", "attn.hook_attn_scores"):
            raise LensSkillsError(
                f"{self.site.name!r} has the shape {tuple(activation.shape)}, not batch, position, "
                "…: it holds no numbers per token. Choose another hook point."
            )
        rows = torch.arange(len(self.places), device=activation.device)[:, None]
        # Indexing copies, so no view keeps the full activation alive.
        columns = columns.to(activation.device)
        taken = activation.detach()[rows, columns.clamp(min=0)].float().flatten(2)
        if name in self.before:
            before = self.before[name][0].float().flatten(1)
            token = (columns + self.n_before).clamp(max=self.n_before - 1)
            taken = torch.where((columns < 0)[..., None], before[token], taken)
        mask = rearrange(self.mask.to(taken.device), "batch pos -> batch pos 1")
        if self.reading.pool == "mean":
            taken = reduce(taken * mask, "batch pos neuron -> batch 1 neuron", "sum")
            taken = taken / reduce(mask, "batch pos 1 -> batch 1 1", "sum")
        elif self.reading.pool == "max":
            taken = taken.masked_fill(~mask, -torch.inf)
            taken = reduce(taken, "batch pos neuron -> batch 1 neuron", "max")
        elif self.reading.pool == "count":
            taken = self._above(taken, self.site.layers[place]) & mask
            taken = reduce(taken.float(), "batch pos neuron -> batch 1 neuron", "sum")
        elif self.reading.ragged:
            taken = taken * mask
        if self.out is None:
            batch, n_pos, width = taken.shape
            self.out = taken.new_zeros(batch, n_pos, len(self.site.layers), width)
        self.out[:, :, place] = taken

    def _above(self, taken: Tensor, layer: int) -> Tensor:
        counted = self.reading.spots[0]
        assert isinstance(counted, Count)
        theta = counted.of(self.site.name, layer)
        return taken > (theta.to(taken) if isinstance(theta, Tensor) else theta)

    def result(self) -> tuple[Tensor, Bool[Tensor, "batch pos"] | None]:
        assert self.out is not None, "no reader was called"
        if self.reading.ragged:
            return self.out, self.mask
        if self.reading.several:
            return self.out, None
        return rearrange(self.out, "batch 1 layer neuron -> batch layer neuron"), None
