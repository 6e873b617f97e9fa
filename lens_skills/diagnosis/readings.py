"""`Readings`: what chosen neurons did on each example, from a model or from a table on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import ActivationTable, Position, parse_position
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import SoftPrompt, prompted
from lens_skills.scoring.source import Source
from lens_skills.scoring.units import Units, parse_neurons


@dataclass(frozen=True, eq=False)
class Readings:
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
    batch_size: int = 32,
    progress: bool | None = None,
) -> Readings:
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
    lens = model if isinstance(model, ActivationTable) else prompted(model, prompt)
    soft = None if isinstance(lens, ActivationTable) else lens.soft
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
    if rows is not None and soft is None and not isinstance(lens, ActivationTable):
        named = rows[:, 0].unique().tolist()
        layers = [layer for layer in named if 0 <= layer < lens.n_layers] or None
    source = Source(lens, examples, metrics, at, position, layers, batch_size, False, progress)
    units = Units(source, rows)
    values = torch.zeros(len(units.layer), len(examples), dtype=torch.float64)
    numbers = {m.name: torch.zeros(len(examples), dtype=torch.float64) for m in metrics}
    for batch in source.batches(0):
        found = units.rows(batch)[0]
        values[:, batch.index] = rearrange(found.double().cpu(), "batch unit -> unit batch")
        for name in numbers:
            numbers[name][batch.index] = batch.metrics[name].double()
    return Readings(
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


def refuse_constant(readings: Readings, first: int | None = None) -> None:
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


def random_neurons(
    neurons: Int[Tensor, "neuron 2"], count: int, *, width: int, seed: int
) -> Int[Tensor, "count 2"]:
    """Other neurons of the same layers, each layer in the proportion in which it is given.

    Args:
        neurons: (layer, index) rows, which are not drawn.
        count: How many to draw.
        width: Neurons in a layer.
        seed: Of the draw.

    Raises:
        LensSkillsError: The layers hold too few others.
    """
    generator = torch.Generator().manual_seed(seed)
    taken: dict[int, set[int]] = {}
    for layer, index in neurons.tolist():
        taken.setdefault(layer, set()).add(index)
    pools = {}
    for layer, own in taken.items():
        order = torch.randperm(width, generator=generator).tolist()
        pools[layer] = [index for index in order if index not in own]
    order = torch.randperm(len(neurons), generator=generator)
    chosen: list[tuple[int, int]] = []
    while len(chosen) < count and any(pools.values()):
        layer = int(neurons[order[len(chosen) % len(order)], 0])
        if not pools[layer]:
            layer = max(pools, key=lambda one: len(pools[one]))
        chosen.append((layer, pools[layer].pop()))
    if len(chosen) < count:
        raise LensSkillsError(
            f"{count} random neurons were asked for, but the layers of these {len(neurons)} "
            f"hold only {len(chosen)} others. Ask for fewer."
        )
    return torch.tensor(chosen)
