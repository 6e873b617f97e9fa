"""`Units`: which neurons a pass scores, and a batch's activations as rows of them."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import Batch
from lens_skills.errors import LensSkillsError
from lens_skills.scoring.source import Source


class Units:
    """Which neurons are scored, and a batch's activations as rows of units."""

    def __init__(self, source: Source, neurons: Int[Tensor, "k 2"] | Sequence[Any] | None) -> None:
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


def parse_neurons(neurons: Any) -> Int[Tensor, "k 2"]:
    """Neurons as (layer, index) rows, from rows, names such as ``"L17N635"``, or a `Selection`.

    >>> parse_neurons(["L1N2", (3, 4)]).tolist()
    [[1, 2], [3, 4]]
    """
    if hasattr(neurons, "neurons"):
        neurons = neurons.neurons
    if isinstance(neurons, Tensor):
        rows = neurons
    else:
        found = []
        for neuron in neurons:
            named = re.fullmatch(r"L(\d+)N(\d+)", neuron) if isinstance(neuron, str) else None
            if isinstance(neuron, str) and named is None:
                raise LensSkillsError(f"no neuron {neuron!r}. Names look like 'L17N635'.")
            pair = named.groups() if named else neuron
            found.append([int(part) for part in pair])
        rows = torch.tensor(found, dtype=torch.long).reshape(-1, 2)
    if rows.ndim != 2 or rows.shape[1] != 2:
        raise LensSkillsError(
            f"neurons must be rows of (layer, index), not a tensor of shape {tuple(rows.shape)}."
        )
    return rows.long()


def _find_units(neurons: Any, layers: Sequence[int], width: int) -> Int[Tensor, " unit"]:
    rows = parse_neurons(neurons)
    if len(rows) == 0:
        raise LensSkillsError("no neurons to score: the selection is empty.")
    if len(torch.unique(rows, dim=0)) != len(rows):
        raise LensSkillsError("a neuron is named twice. Name each once.")
    for layer, neuron in rows.tolist():
        if layer not in layers or not 0 <= neuron < width:
            raise LensSkillsError(
                f"no neuron L{layer}N{neuron} here: layers {min(layers)} to {max(layers)} with "
                f"{width} neurons each are scored."
            )
    place = {layer: index for index, layer in enumerate(layers)}
    starts = torch.tensor([place[layer] * width for layer in rows[:, 0].tolist()])
    return starts + rows[:, 1]
