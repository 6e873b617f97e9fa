"""`Rows`: what one batch's hooks deliver, gathered at the positions that were asked for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Bool
from torch import Tensor

from lens_skills.activations.encoding import Encoded
from lens_skills.activations.plan import Plan
from lens_skills.activations.positions import Reading
from lens_skills.activations.sites import Site
from lens_skills.errors import LensSkillsError


class Rows:
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
