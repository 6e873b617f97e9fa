"""Neurons that compete: clusters of a given number in each layer, and one winner of each.

`Competition` holds the clusters and decides winners; `compete` runs the model while only some
neurons keep their deviation from the mean.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import Metric, Position
from lens_skills.activations.forward import Encoded, forward_batch, known_values, prepare
from lens_skills.activations.halved_batches import HalvedBatches
from lens_skills.activations.stream import batches
from lens_skills.data import Example
from lens_skills.interventions.batched_edits import EditRows, edited_places
from lens_skills.models import EditHook, ModelAdapter
from lens_skills.stats.correlation import average_linkage, standardise

Keep = Callable[[int, Tensor, Tensor], Tensor]
"""From a layer's place, its activations (row, pos, neuron) and the rows' examples: what is kept."""


@dataclass(frozen=True, eq=False)
class Competition:
    """What neurons are measured against: means, standard deviations, and clusters per layer.

    Attributes:
        mean, std: Of each neuron on the split the clusters were made on; std is 0 of one that
            does not vary there.
        cluster: By share: the cluster of each neuron, counted from 0 in each layer.
        sizes: By share: how many clusters each layer has, which is how many neurons are active.
    """

    mean: Float[Tensor, "layer neuron"]
    std: Float[Tensor, "layer neuron"]
    cluster: Mapping[float, Int[Tensor, "layer neuron"]]
    sizes: Mapping[float, int]

    @classmethod
    def of(
        cls, values: Float[Tensor, "layer neuron row"], shares: Sequence[float]
    ) -> "Competition":
        """Clusters by average linkage on 1 - |r|, cut at share · width of them in every layer."""
        n_layers, width, _ = values.shape
        spread = values.std(2, correction=0)
        flat = spread <= 1e-9 * values.abs().amax(2)
        sizes = {share: max(1, round(share * width)) for share in shares}
        cluster = {share: torch.zeros(n_layers, width, dtype=torch.long) for share in shares}
        for layer in range(n_layers):
            unit = standardise(values[layer])
            r = (unit @ unit.T / unit.shape[1]).nan_to_num(0.0).clamp(-1, 1)
            r.fill_diagonal_(1.0)
            tree = average_linkage((1 - r.abs()).numpy().round(12))
            for share, size in sizes.items():
                cluster[share][layer] = cut(tree, size)
        return cls(values.mean(2), torch.where(flat, 0.0, spread), cluster, sizes)

    def z(self, layer: int, values: Float[Tensor, "*row neuron"]) -> Float[Tensor, "*row neuron"]:
        """Standard deviations above the mean; -inf of a neuron that does not vary."""
        std = self.std[layer].to(values)
        z = (values - self.mean[layer].to(values)) / std.clamp(min=1e-30)
        return torch.where(std > 0, z, -torch.inf)

    def winners(
        self, layer: int, values: Float[Tensor, "*row neuron"], share: float
    ) -> Bool[Tensor, "*row neuron"]:
        """In each cluster the neuron with the largest z; of equal ones the first."""
        z = self.z(layer, values)
        cluster = self.cluster[share][layer].to(z.device).expand_as(z)
        most = z.new_full((*z.shape[:-1], self.sizes[share]), -torch.inf)
        most = most.scatter_reduce(-1, cluster, z, "amax")
        index = torch.arange(z.shape[-1], device=z.device).expand_as(z)
        late = torch.where(z == most.gather(-1, cluster), index, z.shape[-1])
        first = torch.full_like(most, z.shape[-1], dtype=torch.long)
        first = first.scatter_reduce(-1, cluster, late, "amin")
        return index == first.gather(-1, cluster)

    def keep_winners(self, share: float) -> Keep:
        """The winners alone."""
        return lambda layer, values, _: self.winners(layer, values, share)

    def keep_random(self, share: float, *, seed: int) -> Keep:
        """As many neurons of each layer as win, drawn for each example anew."""

        def keep(layer: int, values: Tensor, examples: Tensor) -> Tensor:
            n_pos, width = values.shape[1:]
            kept = torch.zeros(values.shape, dtype=torch.bool)
            for row, example in enumerate(examples.tolist()):
                generator = torch.Generator().manual_seed(
                    (seed * 1_000_003 + example) * 1_009 + layer
                )
                drawn = torch.rand(n_pos, width, generator=generator)
                kept[row].scatter_(-1, drawn.topk(self.sizes[share], dim=-1).indices, value=True)
            return kept.to(values.device)

        return keep


def cut(tree: Float[Tensor, "merge 4"], size: int) -> Int[Tensor, " neuron"]:
    """Exactly so many clusters: the tree without its last size - 1 merges."""
    n = len(tree) + 1
    home = list(range(2 * n - 1))
    for number, row in enumerate(tree[: n - size, :2].long().tolist()):
        for child in row:
            home[child] = n + number

    def root(node: int) -> int:
        while home[node] != node:
            node = home[node]
        return node

    roots = [root(node) for node in range(n)]
    order = {place: code for code, place in enumerate(dict.fromkeys(roots))}
    return torch.tensor([order[place] for place in roots])


def compete(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    metric: Metric,
    competition: Competition,
    keep: Keep | None,
    *,
    layers: Sequence[int],
    site: str,
    position: Position,
) -> Float[Tensor, " row"]:
    """The metric while only what ``keep`` says keeps its own activation, the rest its mean.

    Winners are decided in the very run, in which the layers below have competed already. None keeps
    nothing. Only the prompt's token at ``position`` is edited.
    """
    encoded, plan = prepare(adapter, examples, [metric])
    known = known_values([metric], encoded)
    places = edited_places(adapter, encoded, position)
    found = torch.zeros(len(examples), dtype=torch.float64)

    def editing(batch: Sequence[Encoded], starts: Sequence[int]) -> Mapping[str, EditHook]:
        at = EditRows.of(batch, places, starts)

        def hook(layer: int) -> EditHook:
            def edit(activation: Tensor) -> Tensor:
                here = at.to(activation.device)
                own = here.taken(activation)
                new = competition.mean[layer].to(own).expand_as(own)
                if keep is not None:
                    new = torch.where(keep(layer, own, at.examples), own, new)
                edited = activation.flatten(2).clone()
                row, pos = here.valid.nonzero(as_tuple=True)
                edited[row, here.columns[row, pos]] = new[row, pos]
                return edited.reshape(activation.shape)

            return edit

        return {f"blocks.{layer}.{site}": hook(number) for number, layer in enumerate(layers)}

    halves = HalvedBatches(adapter.device)

    def read(part: Sequence[Encoded]) -> Tensor:
        values: Any = forward_batch(adapter, part, plan, [metric], known, {}, editing)
        return values[metric.name].double().cpu()

    for batch in batches(encoded, plan, progress=False):
        found[[item.index for item in batch]] = torch.cat(halves.run(batch, read))
    return found
