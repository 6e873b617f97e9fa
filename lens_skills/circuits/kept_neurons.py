"""`KeptNeurons`: the answer when some MLP neurons work and all others carry a corrupted value.

The unit is a neuron at a token position, or with one mask for all positions the neuron. Attention,
norms and embeddings stay whole, whatever is kept.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.circuits.paired_cache import PairedCache
from lens_skills.circuits.targets import AnswerTarget
from lens_skills.errors import LensSkillsError

_COLUMNS = 2048  # of all sets and examples that run at once


class KeptNeurons:
    """Runs of clean prompts in which only some neurons of the MLPs are the model's own.

    A neuron that is kept computes its activation from what it reads in that very run, the others
    already replaced below it. One that is not carries, at each position, its value on the example's
    corrupted twin (``"twin"``) or its mean over the twins of all examples (``"mean"``), which takes
    prompts of one length. Nothing is linearised: every number is a forward pass.

    Source: Marks et al. 2024 (arXiv 2403.19647), section 3 and released code, there of features,
    with the mean; the same of neurons: Arora et al. 2026 (arXiv 2601.22594).

    Attributes:
        caches: The pairs, all with as many columns.
        target: The metric of the answer.
        shape: Of a mask: layers, columns (the last is the last prompt token), neurons.
    """

    def __init__(
        self,
        caches: Sequence[PairedCache],
        target: AnswerTarget,
        *,
        values: Literal["twin", "mean"] = "twin",
    ) -> None:
        """Reads what stands in place of neurons.

        Raises:
            LensSkillsError: Batches of differing columns, a mean over prompts of differing length.
        """
        self.caches, self.target = caches, target
        adapter = caches[0].adapter
        self.shape = adapter.n_layers, caches[0].n_columns, adapter.d_mlp
        if len({cache.n_columns for cache in caches}) > 1:
            raise LensSkillsError(
                "the batches keep differing numbers of columns, so no mask fits all. Make them "
                "with as many: paired_caches(…, n_columns=…)."
            )
        lengths = {len(item.prompt_tokens) for cache in caches for item in cache.batch}
        if values == "mean" and len(lengths) > 1:
            raise LensSkillsError(
                f"prompts of {min(lengths)} to {max(lengths)} tokens have no mean at a position. "
                "Choose prompts of one length, or values='twin'."
            )
        layers = range(adapter.n_layers)
        self._values = [
            [cache.post(layer) + cache.moved_post(layer) for layer in layers] for cache in caches
        ]
        if values == "mean":
            means = [torch.cat([one[layer] for one in self._values]).mean(0) for layer in layers]
            self._values = [[mean[None] for mean in means] for _ in caches]

    def __len__(self) -> int:
        return sum(map(len, self.caches))

    @property
    def groups(self) -> list[str]:
        """Of each example."""
        return [item.example.group for cache in self.caches for item in cache.batch]

    def whole(self) -> Float[Tensor, " example"]:
        """The metric of the model itself."""
        with torch.no_grad():
            found = [self.target.of(cache, {}, cache.clean.leaving)[0] for cache in self.caches]
        return torch.cat([part.double().cpu() for part in found])

    @torch.no_grad()
    def measure(
        self, kept: Bool[Tensor, "set layer #column neuron"]
    ) -> Float[Tensor, "set example"]:
        """The metric of each set of kept neurons; a single column stands for all positions."""
        found = []
        for cache, values in zip(self.caches, self._values, strict=True):
            step = max(1, _COLUMNS // (len(cache) * cache.clean.suffix.n_columns))
            parts = [self._run(cache, values, part) for part in kept.split(step)]
            found.append(torch.cat(parts))
        return torch.cat(found, dim=1)

    def _run(
        self, cache: PairedCache, values: Sequence[Tensor], kept: Tensor
    ) -> Float[Tensor, "set example"]:
        n_sets, n = len(kept), cache.n_columns

        def editor(layer: int):
            here = kept[:, layer].to(values[layer].device)

            def put(activation: Tensor) -> Tensor:
                own = rearrange(activation, "(s e) c ... -> s e c ...", s=n_sets)
                own = own.flatten(3)
                new = torch.where(here[:, None], own[:, :, :n], values[layer][None])
                new = torch.cat([new, own[:, :, n:]], dim=2)
                return new.reshape(activation.shape)

            return put

        suffix = cache.clean.suffix
        editors = {f"blocks.{layer}.mlp.hook_post": editor(layer) for layer in range(self.shape[0])}
        out = suffix.run(suffix.clean(0, n_sets), 0, editors=editors)
        return self.target.of(cache, {}, out).double().cpu()


def strongest(
    scores: Float[Tensor, "layer column neuron"], sizes: Sequence[int]
) -> Bool[Tensor, "set layer column neuron"]:
    """Masks of the units with the largest scores, one for each size.

    Ties go to the lower layer, the earlier position, the smaller index.

    >>> strongest(torch.tensor([[[0.0, 2.0, 1.0]]]), [1, 2]).int().tolist()
    [[[[0, 1, 0]]], [[[0, 1, 1]]]]
    """
    order = scores.flatten().argsort(descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return torch.stack([(place < size).view(scores.shape) for size in sizes])
