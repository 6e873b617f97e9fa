"""`Reader`: the pass over a split, with what the gate did beside what the neuron did.

`Readings`: what chosen neurons did on each example, from a model or from a table on disk.

`Source`: a model or a table, as a supplier of batches of one site and position.

The activations of a few neurons: one number per example, or one per token of some examples.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills import settings
from lens_skills.activations.activation_table import ActivationTable
from lens_skills.activations.components import Component, _find_units, parse_neurons
from lens_skills.activations.forward import NOTHING, forward_batch, prepare
from lens_skills.activations.locations import (
    DEFAULT_SITE,
    Position,
    Site,
    edited_positions,
    find_site,
    parse_position,
    soft_position,
    token_places,
)
from lens_skills.activations.metrics import Metric
from lens_skills.activations.stream import Batch, PositionGather, batches, stream
from lens_skills.activations.tokenization import Encoded, encode_examples, with_answers
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import ModelAdapter, SoftPrompt, as_adapter, with_soft_prompt
from lens_skills.models.fingerprint import identity


def read_batches(
    adapter: ModelAdapter,
    examples: Sequence[Any],
    site: str,
    layers: Sequence[int],
    *,
    position: Position,
    answers: bool | None,
    batch_size: int | None = None,
) -> Iterator[
    tuple[list[Encoded], Float[Tensor, "batch pos layer width"], Bool[Tensor, "batch pos"] | None]
]:
    """Batches of one site's activations at the edited positions (layers in ascending order).

    The mask says for ``"all"`` which positions are tokens of the prompt; rows end in padding.
    """
    where, reading = find_site(adapter, site, layers), edited_positions(position)
    # Unlike a stream without metrics: a prompt must end where it ends in the pass that measures
    # the effect, and that one may hand a trailing space to the answer.
    encoded = encode_examples(adapter, examples, answers=with_answers(examples, answers))
    for batch in batches(encoded, NOTHING, batch_size=batch_size, progress=False):
        places = [[token_places(adapter, item, spot) for spot in reading.spots] for item in batch]
        rows = PositionGather(where, reading, places, batch, NOTHING)
        forward_batch(adapter, batch, NOTHING, (), {}, rows.readers())
        values, mask = rows.result()
        if values.ndim == 3:
            values = rearrange(values, "batch layer width -> batch 1 layer width")
        yield batch, values.cpu(), None if mask is None else mask.cpu()


class SplitReader:
    """A model or a table, as a supplier of batches of one site and position."""

    def __init__(
        self,
        model: Any,
        examples: Sequence[Example],
        metrics: Sequence[Metric],
        at: str,
        position: Position | None,
        layers: int | Iterable[int] | None,
        batch_size: int | None = None,
        chat: bool = False,
        progress: bool | None = None,
    ) -> None:
        self.table = model if isinstance(model, ActivationTable) else None
        self.examples, self.metrics = examples, metrics
        self.batch_size = settings.batch_size() if batch_size is None else batch_size
        self.chat, self.progress = chat, progress
        self.device: torch.device | str = "cpu"
        self.soft: SoftPrompt | None = None
        if self.table is not None:
            self._read_table(self.table, at, position or "last", layers)
            return
        adapter = as_adapter(model)
        position = soft_position(adapter, position)
        found = find_site(adapter, at, layers)
        reading = parse_position(position)
        self.adapter, self.position, self.soft = adapter, position, adapter.soft
        self.site, self.layers, self.labels = found.name, found.layers, reading.labels
        self.ragged = reading.ragged
        # MPS has no float64; the sums then live on the CPU.
        self.device = "cpu" if adapter.device.type == "mps" else adapter.device
        self.about = {
            **identity(adapter),
            "implementation": adapter.implementation,
            "dtype": str(adapter.dtype),
            "site": found.name,
            "layers": list(found.layers),
            "positions": list(reading.labels),
            "chat": chat,
        }
        self.width = _width(adapter, examples[0], found.name, found.layers[0], chat)

    def _read_table(
        self,
        table: ActivationTable,
        at: str,
        position: Position,
        layers: int | Iterable[int] | None,
    ) -> None:
        about = table.manifest
        asked = {"site": at, "positions": list(parse_position(position).labels)}
        for name, value in asked.items():
            if about[name] != value:
                raise LensSkillsError(
                    f"the table {table.path} holds {name} {about[name]}, not {value}."
                )
        if layers is not None:
            raise LensSkillsError("a table is scored with all the layers it holds: leave layers=.")
        self.site, self.layers, self.labels = at, table.layers, tuple(about["positions"])
        self.ragged = False
        self.width = table.activations().shape[-1]
        self.about = {
            name: about[name]
            for name in ("model", "model_fingerprint", "site", "layers", "positions", "chat")
        }
        self.about["weights"] = about.get("weights", about["model_fingerprint"])

    def batches(self, skip: int) -> Iterator[Batch]:
        """The pass's batches from batch ``skip`` on."""
        if self.table is not None:
            found = self.table.stream(
                self.examples,
                metrics=self.metrics,
                batch_size=self.batch_size,
            )
            return (batch for place, batch in enumerate(found) if place >= skip)
        return stream(
            self.adapter,
            self.examples,
            at=self.site,
            position=self.position,
            layers=self.layers,
            metrics=self.metrics,
            batch_size=self.batch_size,
            chat=self.chat,
            skip=skip,
            progress=self.progress,
        )


def _width(adapter: Any, example: Example, site: str, layer: int, chat: bool) -> int:
    """How many neurons the site has, seen on one example."""
    bare = Example(id=example.id, prompt=example.prompt)
    only = {"at": site, "position": "last", "layers": layer, "chat": chat, "progress": False}
    batch = next(stream(adapter, [bare], **only))
    return batch.activations.shape[-1]


class ScoredNeurons:
    """Which neurons are scored, and a batch's activations as rows of units."""

    def __init__(
        self, source: SplitReader, neurons: Int[Tensor, "k 2"] | Sequence[Any] | None
    ) -> None:
        width = source.width
        layer = torch.tensor(source.layers).repeat_interleave(width)
        neuron = torch.arange(width).repeat(len(source.layers))
        self.chosen: Tensor | None = None
        if neurons is not None:
            self.chosen = _find_units(neurons, source.layers, width)
            layer, neuron = layer[self.chosen], neuron[self.chosen]
        self.layer, self.neuron = layer, neuron

    def rows(
        self, batch: Batch
    ) -> tuple[
        Float[Tensor, "batch unit"],
        Float[Tensor, " batch"] | None,
        Float[Tensor, "token unit"] | None,
    ]:
        """Units of each example, how many tokens they average, and what the average leaves."""
        acts = batch.activations
        if batch.mask is None:
            if acts.ndim == 3:
                acts = rearrange(acts, "batch layer neuron -> batch 1 layer neuron")
            flat = self._choose(
                rearrange(acts, "batch pos layer neuron -> batch pos (layer neuron)")
            )
            return rearrange(flat, "batch pos unit -> batch (pos unit)"), None, None
        tokens = self._choose(rearrange(acts, "batch pos layer neuron -> batch pos (layer neuron)"))
        mask: Bool[Tensor, "batch pos"] = batch.mask.to(tokens.device)
        weights = reduce(mask.double(), "batch pos -> batch", "sum")
        total = reduce(tokens.double() * mask[..., None], "batch pos unit -> batch unit", "sum")
        means = total / weights[:, None]
        residuals = (tokens - means[:, None])[mask]
        return means, weights, residuals

    def _choose(self, flat: Float[Tensor, "batch pos all"]) -> Float[Tensor, "batch pos unit"]:
        return flat if self.chosen is None else flat[..., self.chosen.to(flat.device)]


@dataclass(frozen=True, eq=False)
class NeuronValues:
    """The activations of some neurons, in float64, and the metrics of the same pass.

    Attributes:
        neurons: (layer, index) rows.
        values: One row per neuron.
        metrics: One number per example for each metric asked for.
        groups: Of the examples.
        site, position: Where they were read.
        about: Of which model.
        width: Neurons in one layer at the site.
        layers: The layers there are.
    """

    neurons: Int[Tensor, "neuron 2"]
    values: Float[Tensor, "neuron example"]
    metrics: dict[str, Float[Tensor, " example"]]
    groups: tuple[str, ...]
    site: str
    position: str
    about: dict[str, Any]
    width: int
    layers: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """Names such as ``L17N635``."""
        return [f"L{layer}N{neuron}" for layer, neuron in self.neurons.tolist()]


def read(
    model: Any,
    examples: Sequence[Example],
    neurons: Any,
    *,
    at: str,
    position: Position | None,
    metrics: Any = (),
    prompt: SoftPrompt | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> NeuronValues:
    """The neurons' activations at one position of every example.

    Args:
        model: A model, or an `ActivationTable`.
        examples: What is read.
        neurons: Names, rows or a `Selection`, in the order wanted; None: every neuron there is.
        at, position: Where; one position only.
        metrics: Read in the same pass, already parsed.
        prompt: A soft prompt to read with.
        batch_size: Examples per pass.
        progress: Show a bar.

    Raises:
        LensSkillsError: Several positions, an unknown neuron, no example.
    """
    if len(examples) == 0:
        raise LensSkillsError("no examples to read: the task is empty (after filtering?).")
    adapter = model if isinstance(model, ActivationTable) else with_soft_prompt(model, prompt)
    soft = None if isinstance(adapter, ActivationTable) else adapter.soft
    if position is None:
        position = "last"  # with a soft prompt: its last vector
    reading = parse_position(position)
    if len(reading.labels) != 1 or reading.ragged:
        raise LensSkillsError(
            f"these neurons are read at one position, not {', '.join(reading.labels)}. Give one "
            "token, 'mean' or 'max'."
        )
    layers = None
    rows = None if neurons is None else parse_neurons(neurons)
    if rows is not None and soft is None and not isinstance(adapter, ActivationTable):
        named = rows[:, 0].unique().tolist()
        layers = [layer for layer in named if 0 <= layer < adapter.n_layers] or None
    source = SplitReader(
        adapter, examples, metrics, at, position, layers, batch_size, False, progress
    )
    units = ScoredNeurons(source, rows)
    values = torch.zeros(len(units.layer), len(examples), dtype=torch.float64)
    numbers = {m.name: torch.zeros(len(examples), dtype=torch.float64) for m in metrics}
    for batch in source.batches(0):
        found = units.rows(batch)[0]
        values[:, batch.index] = rearrange(found.double().cpu(), "batch unit -> unit batch")
        for name in numbers:
            numbers[name][batch.index] = batch.metrics[name].double()
    return NeuronValues(
        neurons=torch.stack([units.layer, units.neuron], dim=1),
        values=values,
        metrics=numbers,
        groups=tuple(example.group for example in examples),
        site=source.site,
        position=source.labels[0],
        about={**source.about, "task": getattr(examples, "name", "examples")},
        width=source.width,
        layers=tuple(source.layers),
    )


def refuse_constant(readings: NeuronValues, first: int | None = None) -> None:
    """Nothing; raises where one of the first neurons does the same on every example.

    Raises:
        LensSkillsError: Which, how often, and what to do.
    """
    values = readings.values[:first]
    spread = values.std(dim=1, correction=0)
    flat = spread <= 1e-9 * values.abs().amax(dim=1)
    if not bool(flat.any()):
        return
    names = [
        name
        for name, constant in zip(readings.names[:first], flat.tolist(), strict=True)
        if constant
    ]
    held = float(values[flat][0, 0])
    dead = "is never active" if held == 0 else f"is {held:.3g}"
    raise LensSkillsError(
        f"{names[0]} {dead} on all {values.shape[1]:,} examples"
        f"{f', and {len(names) - 1} more do not vary either' if len(names) > 1 else ''}: nothing "
        "can be said of a neuron that does not vary. Leave it out, or give examples on which it "
        "fires."
    )


SOFT = "⟨soft⟩"
"""What is shown for a vector of a soft prompt."""


@dataclass(frozen=True)
class Excerpt:
    """An example as one neuron reads it.

    Attributes:
        id, prompt: Of the example.
        activation: At the position that was explained.
        tokens: The prompt's tokens as texts, without the beginning-of-sequence token.
        values: The neuron's activation at each.
    """

    id: str
    prompt: str
    activation: float
    tokens: tuple[str, ...]
    values: tuple[float, ...]

    def __repr__(self) -> str:
        return f"{self.activation:+.2f}  {self.prompt!r}"


def read_neurons(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    units: Sequence[Component],
    *,
    position: Position,
    **how: Any,
) -> Float[Tensor, "neuron row"]:
    """Each neuron's activation at the position, in the order of the examples."""
    reading = parse_position(position)
    if reading.several or reading.ragged:
        raise LensSkillsError(
            f"position {position!r} gives several numbers per example, and one is explained at a "
            "time. Choose 'last', an index, span('text'), 'mean' or 'max'."
        )
    layers = sorted({unit.layer for unit in units})
    values = torch.zeros(len(units), len(examples), dtype=torch.float64)
    layer, feature = _places(units, layers)
    for batch in stream(
        adapter, examples, at=units[0].site, position=position, layers=layers, **how
    ):
        values[:, batch.index] = batch.activations[:, layer, feature].double().T.cpu()
    return values


def read_tokens(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    units: Sequence[Component],
    wanted: Sequence[Sequence[int]],
    activations: Float[Tensor, "neuron row"],
    **how: Any,
) -> list[tuple[Excerpt, ...]]:
    """For every neuron the wanted examples, by place, with its activation at every token."""
    chosen = sorted({place for places in wanted for place in places})
    if not chosen:
        return [() for _ in units]
    some = [examples[place] for place in chosen]
    layers = sorted({unit.layer for unit in units})
    layer, feature = _places(units, layers)
    tokens: dict[int, tuple[str, ...]] = {}
    values: dict[int, Tensor] = {}
    for batch in stream(adapter, some, at=units[0].site, position="all", layers=layers, **how):
        assert batch.mask is not None
        for row, index in enumerate(batch.index.tolist()):
            encoded: Any = batch.examples[row]
            own = encoded.prompt_tokens[1 if encoded.has_bos else 0 :].tolist()
            tokens[chosen[index]] = tuple(
                SOFT if token >= adapter.d_vocab else adapter.decode(token) for token in own
            )
            here = batch.activations[row, batch.mask[row]]
            values[chosen[index]] = here[:, layer, feature].T.cpu()
    return [
        tuple(
            Excerpt(
                examples[place].id,
                examples[place].prompt,
                float(activations[number, place]),
                tokens[place],
                tuple(values[place][number].tolist()),
            )
            for place in places
        )
        for number, places in enumerate(wanted)
    ]


def _places(units: Sequence[Component], layers: list[int]) -> tuple[Tensor, Tensor]:
    layer = torch.tensor([layers.index(unit.layer) for unit in units])
    return layer, torch.tensor([unit.start for unit in units])


GATE = "mlp.hook_pre"
"""What goes into the activation function: a gated MLP's gate, a plain one's pre-activation."""


@dataclass(frozen=True, eq=False)
class LayerBatch:
    """Some examples, their neurons, and what went into their activation function.

    Attributes:
        index: Places of the examples.
        units: Activations, one row per example.
        gate: The gates' pre-activations, or None where they were not asked for.
    """

    index: Int[Tensor, " batch"]
    units: Float[Tensor, "batch unit"]
    gate: Float[Tensor, "batch unit"] | None


class LayerReader:
    """One split at one site and position, read as often as there are groups of layers.

    Attributes:
        adapter: The model; None for a table.
        site: The site and its layers.
        position: One position: a token, a span, or tokens pooled.
        width: Units per layer.
        chat: Whether prompts go through the chat template.
    """

    def __init__(
        self,
        model: Any,
        examples: Sequence[Example],
        *,
        at: str = DEFAULT_SITE,
        position: Position | None = None,
        layers: Any = None,
        prompt: SoftPrompt | None = None,
        batch_size: int | None = None,
        chat: bool = False,
        progress: bool | None = None,
    ) -> None:
        self.batch_size = settings.batch_size() if batch_size is None else batch_size
        self.examples, self.chat, self.progress = examples, chat, progress
        self.table = model if isinstance(model, ActivationTable) else None
        if self.table is not None:
            self.adapter: ModelAdapter | None = None
            self.position: Position = "last" if position is None else position
            self.site = _table_site(self.table, at, self.position, layers)
            self.width = int(self.table.activations().shape[-1])
            return
        self.adapter = with_soft_prompt(model, prompt)
        if position is None:
            position = "last"  # with a soft prompt, its last vector
        self.position = soft_position(self.adapter, position)
        self.reading = parse_position(self.position)
        if self.reading.several or self.reading.ragged:
            raise LensSkillsError(
                f"neurons are ranked by one number per example, but position {position!r} is "
                "several. Name one: 'last', an index, span('text'), or 'mean' and 'max' over all."
            )
        self.site = find_site(self.adapter, at, layers)
        self.encoded, self.plan = prepare(self.adapter, examples, (), chat)
        spots = self.reading.spots
        self.places = [
            [token_places(self.adapter, e, spot) for spot in spots] for e in self.encoded
        ]
        self.width = next(self.read(self.site.layers[:1], few=1)).units.shape[1]

    @property
    def label(self) -> str:
        """The position in words."""
        return parse_position(self.position).labels[0]

    @property
    def gated(self) -> bool:
        """Whether the gate's own sign can be read here."""
        adapter = self.adapter
        return adapter is not None and adapter.gated and self.site.name == DEFAULT_SITE

    def read(
        self, layers: Sequence[int], *, gate: bool = False, few: int | None = None
    ) -> Iterator[LayerBatch]:
        """Batches of some layers' units, from one forward pass each.

        Args:
            layers: Which.
            gate: Whether to read the gates too, in the same pass.
            few: Stop after so many examples.
        """
        if self.table is not None:
            yield from self._from_table(self.table, layers)
            return
        encoded = self.encoded if few is None else self.encoded[:few]
        quiet = False if few is not None else self.progress
        for batch in batches(encoded, self.plan, batch_size=self.batch_size, progress=quiet):
            places = [self.places[item.index] for item in batch]
            sites = [Site(name, tuple(layers)) for name in (self.site.name, GATE)[: 1 + gate]]
            rows = [PositionGather(site, self.reading, places, batch, self.plan) for site in sites]
            readers = {name: reader for part in rows for name, reader in part.readers().items()}
            forward_batch(self.adapter, batch, self.plan, (), {}, readers)
            units = [
                rearrange(part.result()[0], "batch layer unit -> batch (layer unit)")
                for part in rows
            ]
            index = torch.tensor([item.index for item in batch])
            yield LayerBatch(index, units[0].cpu(), units[1].cpu() if gate else None)

    def _from_table(self, table: ActivationTable, layers: Sequence[int]) -> Iterator[LayerBatch]:
        chosen = [table.layers.index(layer) for layer in layers]
        for batch in table.stream(self.examples):
            acts = batch.activations[:, chosen]
            yield LayerBatch(
                batch.index, rearrange(acts, "batch layer unit -> batch (layer unit)"), None
            )


def _table_site(table: ActivationTable, at: str, position: Position, layers: Any) -> Site:
    about = table.manifest
    asked = {"site": at, "positions": list(parse_position(position).labels)}
    for name, value in asked.items():
        if about[name] != value:
            raise LensSkillsError(
                f"the table {table.path} holds {name} {about[name]}, not {value}."
            )
    if layers is not None:
        raise LensSkillsError("a table is ranked with all the layers it holds: leave layers=.")
    return Site(at, table.layers)
