"""Activations of some or all neurons of a site, batch by batch, from a model or from a table.

`ActivationReader` is what every room reads a split with. Below it: the values of chosen neurons on
every example, and a site at the positions that an edit changes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills import settings
from lens_skills.activations.activation_table import ActivationTable
from lens_skills.activations.components import (
    Components,
    find_places,
    neuron_names,
    parse_components,
    parse_neurons,
    site_of,
)
from lens_skills.activations.forward import (
    NOTHING,
    Encoded,
    RequiredOutputs,
    encode_examples,
    prepare,
    with_answers,
)
from lens_skills.activations.locations import (
    DEFAULT_SITE,
    Position,
    PositionSpec,
    Site,
    edited_positions,
    find_site,
    parse_position,
    soft_position,
)
from lens_skills.activations.metrics import Metric, parse_metrics
from lens_skills.activations.stream import (
    Batch,
    Places,
    evaluate,
    ordered_batches,
    places_of,
    read_sites,
    stream,
)
from lens_skills.checkpoints import Checkpoint
from lens_skills.data import Example, field_of
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, ModelAdapter, SoftPrompt, as_adapter, with_soft_prompt
from lens_skills.models.identity import identity
from lens_skills.models.precision import in_precision

GATE = "mlp.hook_pre"
"""What goes into the activation function: a gated MLP's gate, a plain one's pre-activation."""


class ActivationReader:
    """One split at one site and position, read as often as there are reasons to.

    Args:
        model: A model, or an `ActivationTable`.
        examples: What is read.
        at: Hook point within a block.
        position: Which tokens. None: ``"last"``; for a soft prompt each of its vectors, or where a
            ``purpose`` is given its last one; of a table, what it holds.
        layers: Which layers (default all).
        neurons: Names, rows, components or a `Selection`, in the order wanted, all at one site,
            which names say; None: every unit at ``at``.
        metrics: Read in the same pass, already parsed.
        prompt: A soft prompt to read with.
        chat: Read prompts in the tokenizer's chat template; a text: with this system prompt.
        purpose: What is done with one number per example ("ranked"); several are then refused.

    Attributes:
        adapter, table: The model or the table; the other is None.
        site: The site and its layers.
        labels: The positions, as results name them.
        ragged: Whether examples differ in how many tokens are read (position ``"all"``).
        width: Neurons per layer.
        layer, neuron: Of the units that are read.
        soft: The soft prompt the model is read with.

    Raises:
        LensSkillsError: An unknown hook point, neuron or position; a table of another site or
            position.
    """

    def __init__(
        self,
        model: Any,
        examples: Sequence[Example],
        *,
        at: str = DEFAULT_SITE,
        position: Position | None = None,
        layers: int | Iterable[int] | None = None,
        neurons: Any = None,
        metrics: Sequence[Metric] = (),
        prompt: SoftPrompt | None = None,
        chat: Chat = False,
        purpose: str = "",
    ) -> None:
        self.examples, self.metrics, self._neurons = examples, metrics, neurons
        at = site_of(neurons, at)
        self.table = model if isinstance(model, ActivationTable) else None
        self.adapter: ModelAdapter | None = None
        spec: PositionSpec | None = None
        if position is None and self.table is not None:
            held = self.table.manifest["positions"]  # as labels, which name what was read
            position = held[0] if len(held) == 1 else held
            spec = PositionSpec(tuple(held), None, False, len(held) > 1)
        elif position is None and purpose:
            position = "last"  # with a soft prompt: its last vector
        if self.table is None:
            self.adapter = with_soft_prompt(model, prompt, chat)
            position = soft_position(self.adapter, position)
        assert position is not None
        self.position, self.spec = position, spec or parse_position(position)
        self.labels, self.ragged = self.spec.labels, self.spec.ragged
        if purpose and (len(self.labels) != 1 or self.ragged):
            raise LensSkillsError(
                f"position {position!r} gives several numbers per example, and neurons are "
                f"{purpose} by one. Name one: 'last', an index, span('text'), 'mean', 'max' or "
                "count(0.5)."
            )
        if self.table is not None:
            self.site = _table_site(self.table, at, list(self.labels), layers, chat)
            self.width = int(self.table.manifest["width"])
        else:
            self.site = find_site(self.adapter, at, layers)
            self.width = _width(self.adapter, examples[0], self.site)
        layer = torch.tensor(self.site.layers).repeat_interleave(self.width)
        neuron = torch.arange(self.width).repeat(len(self.site.layers))
        self._chosen: Tensor | None = None
        if neurons is not None:
            self._chosen = find_places(
                neurons, self.site.layers, self.width, self.site.name, self.about.get("d_head")
            )
            layer, neuron = layer[self._chosen], neuron[self._chosen]
        self.layer, self.neuron = layer, neuron

    @property
    def soft(self) -> SoftPrompt | None:
        """The soft prompt the model is read with."""
        return None if self.adapter is None else self.adapter.soft

    @property
    def device(self) -> torch.device | str:
        """Where sums are kept: on the model's device, unless it has no float64 (MPS)."""
        if self.adapter is None or self.adapter.device.type == "mps":
            return "cpu"
        return self.adapter.device

    @property
    def gated(self) -> bool:
        """Whether the gate's own sign can be read here."""
        adapter = self.adapter
        return adapter is not None and adapter.gated and self.site.name == DEFAULT_SITE

    @cached_property
    def about(self) -> dict[str, Any]:
        """Which model is read, and where."""
        if self.table is not None:
            return self.table.about
        assert self.adapter is not None
        return {
            **identity(self.adapter),
            "implementation": self.adapter.implementation,
            "dtype": str(self.adapter.dtype),
            "site": self.site.name,
            "layers": list(self.site.layers),
            "positions": list(self.labels),
        }

    def batches(
        self,
        *,
        skip: int = 0,
        stop: int | None = None,
        layers: Sequence[int] | None = None,
        gate: bool = False,
        progress: bool = True,
    ) -> Iterator[Batch]:
        """The pass's batches.

        Args:
            skip: Batches to leave out at the start.
            stop: The batch before which to stop; None: behind the last.
            layers: Only these of the site's layers.
            gate: Whether to read the gates too, in the same pass.
            progress: False for a loop within another one that is shown.
        """
        here = self.site.layers if layers is None else tuple(layers)
        if self.table is not None:
            yield from self.table.stream(
                self.examples,
                metrics=self.metrics,
                layers=here,
                skip=skip,
                stop=stop,
                progress=progress,
            )
            return
        sites = [Site(name, here) for name in (self.site.name, GATE)[: 1 + gate]]
        (encoded, plan), places = self._prepared
        yield from read_sites(
            self.adapter,
            encoded,
            plan,
            sites,
            self.spec,
            places,
            metrics=self.metrics,
            skip=skip,
            stop=stop,
            progress=progress,
        )

    def sizes(self) -> list[int]:
        """How many examples each batch of the pass holds."""
        if self.table is not None:
            return self.table.batch_sizes(len(self.examples), len(self.site.layers))
        return [len(batch) for batch in ordered_batches(*self._prepared[0])]

    def recipe(self) -> dict[str, Any]:
        """What makes the same reader of the table, or of a copy of the model that is read alike."""
        position = self.position if self.table is None else None
        where = {"at": self.site.name, "position": position, "layers": self.site.layers}
        own = {"examples": self.examples, "neurons": self._neurons, "metrics": self.metrics}
        return {**own, **where}

    @cached_property
    def _prepared(self) -> tuple[tuple[list[Encoded], RequiredOutputs], Places]:
        """The examples in tokens, and the tokens that are read."""
        encoded, plan = prepare(self.adapter, self.examples, self.metrics)
        return (encoded, plan), places_of(self.adapter, encoded, self.spec)

    def rows(
        self, batch: Batch
    ) -> tuple[
        Float[Tensor, "batch unit"],
        Float[Tensor, " batch"] | None,
        Float[Tensor, "token unit"] | None,
    ]:
        """Units of each example, how many tokens they average, and what the average leaves."""
        acts = batch.activations
        if acts.ndim == 3:
            acts = rearrange(acts, "batch layer neuron -> batch 1 layer neuron")
        flat = rearrange(acts, "batch pos layer neuron -> batch pos (layer neuron)")
        tokens: Float[Tensor, "batch pos unit"] = flat
        if self._chosen is not None:
            tokens = flat[..., self._chosen.to(flat.device)]
        if batch.mask is None:
            return rearrange(tokens, "batch pos unit -> batch (pos unit)"), None, None
        mask: Bool[Tensor, "batch pos"] = batch.mask.to(tokens.device)
        weights = reduce(mask.double(), "batch pos -> batch", "sum")
        total = reduce(tokens.double() * mask[..., None], "batch pos unit -> batch unit", "sum")
        means = total / weights[:, None]
        residuals = (tokens - means[:, None])[mask]
        return means, weights, residuals


def model_in(model: Any, precision: str | None) -> Any:
    """The model read in this precision; itself where none is asked for.

    Raises:
        LensSkillsError: As `in_precision`; a table, whose activations are what they are.
    """
    if precision is None:
        return model
    if isinstance(model, ActivationTable):
        raise LensSkillsError(
            f"{model.called} holds activations as they were computed: leave precision= "
            "out, or give the model."
        )
    return in_precision(as_adapter(model), precision)


def _table_site(
    table: ActivationTable, at: str, labels: list[str], layers: Any, chat: Chat
) -> Site:
    """The site a table holds; raises where another one, or some of its layers, are asked for."""
    asked = {"site": at, "positions": labels} | ({"chat": chat} if chat else {})
    for name, value in asked.items():
        if table.manifest[name] != value:
            raise LensSkillsError(
                f"the table {table.called} holds {name} {table.manifest[name]}, not {value}."
            )
    wanted = [layers] if isinstance(layers, int) else layers
    chosen = table.layers if wanted is None else tuple(sorted({*wanted}))
    if missing := [layer for layer in chosen if layer not in table.layers]:
        raise LensSkillsError(
            f"the table {table.called} holds no layer {missing[0]}, only {list(table.layers)}. "
            "Name some of these in layers=, or leave it out."
        )
    return Site(at, chosen)


def _width(adapter: Any, example: Example, site: Site) -> int:
    """How many neurons the site has, seen on one example."""
    bare = Example(id=example.id, prompt=example.prompt)
    one = {"at": site.name, "position": "last", "layers": site.layers[0]}
    with settings.config(progress=False):
        return next(stream(adapter, [bare], **one)).activations.shape[-1]


def metrics_of(model: Any, metrics: Any, examples: Sequence[Example]) -> tuple[Metric, ...]:
    """Metrics as `parse_metrics` reads them; of a table also those that came with its rows."""
    named = model.named(metrics) if isinstance(model, ActivationTable) else metrics
    return parse_metrics(named, examples)


def metric_values(
    model: Any,
    examples: Sequence[Example],
    metrics: Any,
    *,
    prompt: SoftPrompt | None = None,
    chat: Chat = False,
) -> dict[str, Float[Tensor, " row"]]:
    """Every metric of every example, in the order of the examples: of a model, or of a table."""
    if isinstance(model, ActivationTable):
        return model.values(examples, metrics)
    return evaluate(model, examples, metrics, prompt=prompt, chat=chat)


def units_of(source: ModelAdapter | ActivationTable, units: Any, *, at: str) -> Components:
    """Units of a model, or of a table, in the order they were named; see `parse_components`.

    Raises:
        LensSkillsError: As there; of a table, a unit that it does not hold.
    """
    if not isinstance(source, ActivationTable):
        return parse_components(source, units, at=at)
    at, about = site_of(units, at), source.about
    made_with = getattr(units, "provenance", {}).get("explore", {}).get("model_fingerprint")
    if (
        None not in (made_with, about["model_fingerprint"])
        and made_with != about["model_fingerprint"]
    ):
        raise LensSkillsError(
            f"the selection belongs to another model than the table {source.called}, which is of "
            f"{about['model']}. Score and select with this table."
        )
    rows = parse_neurons(units, at, about["d_head"])
    found = Components.of(rows, at, about)
    for unit in found:
        if unit.layer not in source.layers or not 0 <= unit.start < source.manifest["width"]:
            raise LensSkillsError(
                f"no unit {unit.name!r} in the table {source.called}: it holds layers "
                f"{list(source.layers)}, {source.manifest['width']:,} units each."
            )
    return found


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
        """Names such as ``L17N635``, by the site."""
        return neuron_names(self.neurons, self.site, self.about)


def read_neurons(
    model: Any,
    examples: Sequence[Example],
    neurons: Any,
    *,
    at: str = DEFAULT_SITE,
    position: Position | None,
    metrics: Any = (),
    prompt: SoftPrompt | None = None,
    chat: Chat = False,
    purpose: str = "read",
) -> NeuronValues:
    """The neurons' activations at one position of every example, as `ActivationReader` reads them.

    Raises:
        LensSkillsError: Several positions, an unknown neuron, no example.
    """
    if len(examples) == 0:
        raise LensSkillsError("no examples to read: the task is empty (after filtering?).")
    at = site_of(neurons, at)
    if not isinstance(model, ActivationTable):
        model = as_adapter(model)
    width = model.manifest.get("d_head") if isinstance(model, ActivationTable) else model.d_head
    layers, rows = None, None if neurons is None else parse_neurons(neurons, at, width)
    if rows is not None and prompt is None:
        held = isinstance(model, ActivationTable)
        there = model.layers if held else range(model.n_layers)
        named = rows[:, 0].unique().tolist()
        layers = [layer for layer in named if layer in there] or None
        if not held and model.soft is not None:
            layers = None
    reader = ActivationReader(
        model,
        examples,
        at=at,
        position=position,
        layers=layers,
        neurons=rows,
        metrics=metrics,
        prompt=prompt,
        chat=chat,
        purpose=purpose,
    )
    values = torch.zeros(len(reader.layer), len(examples), dtype=torch.float64)
    numbers = {m.name: torch.zeros(len(examples), dtype=torch.float64) for m in metrics}
    saved = Checkpoint.at({"neurons": len(values), "examples": len(examples)}, name="neurons")
    skip = done = 0
    if saved is not None and (kept := saved.read()) is not None:
        values, skip = kept[0]["values"], int(kept[1]["batches"])
        numbers = {name: kept[0][f"metric/{name}"] for name in numbers}

    def state() -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"metric/{name}": column for name, column in numbers.items()}
        return {"values": values, **tensors}, {"batches": skip + done}

    for batch in reader.batches(skip=skip):
        found = reader.rows(batch)[0]
        values[:, batch.index] = rearrange(found.double().cpu(), "batch unit -> unit batch")
        for name in numbers:
            numbers[name][batch.index] = batch.metrics[name].double()
        done += 1
        if saved is not None and saved.due():
            saved.write(*state())
    if saved is not None and done:
        saved.finish(*state())
    return NeuronValues(
        neurons=torch.stack([reader.layer, reader.neuron], dim=1),
        values=values,
        metrics=numbers,
        groups=tuple(field_of(examples, "group")),
        site=reader.site.name,
        position=reader.labels[0],
        about={**reader.about, "task": getattr(examples, "name", "examples")},
        width=reader.width,
        layers=reader.site.layers,
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
    if held == 0 and readings.position.startswith("count("):
        dead = f"is above the threshold of {readings.position} at no token"
    raise LensSkillsError(
        f"{names[0]} {dead} on all {values.shape[1]:,} examples"
        f"{f', and {len(names) - 1} more do not vary either' if len(names) > 1 else ''}: nothing "
        "can be said of a neuron that does not vary. Leave it out, or give examples on which it "
        "fires."
    )


def read_batches(
    adapter: ModelAdapter,
    examples: Sequence[Any],
    site: str,
    layers: Sequence[int],
    *,
    position: Position,
    answers: bool | None,
) -> Iterator[
    tuple[list[int], Float[Tensor, "batch pos layer width"], Bool[Tensor, "batch pos"] | None]
]:
    """Places of examples, with a site's activations at the edited positions (layers ascending).

    The mask says for ``"all"`` which positions are tokens of the prompt; rows end in padding.
    """
    where, reading = find_site(adapter, site, layers), edited_positions(position)
    # Unlike a stream without metrics: a prompt must end where it ends in the pass that measures
    # the effect, and that one may hand a trailing space to the answer.
    encoded = encode_examples(adapter, examples, answers=with_answers(examples, answers))
    for batch in read_sites(adapter, encoded, NOTHING, [where], reading):
        values, mask = batch.activations, batch.mask
        if values.ndim == 3:
            values = rearrange(values, "batch layer width -> batch 1 layer width")
        yield batch.index.tolist(), values.cpu(), None if mask is None else mask.cpu()
