"""`SourceReader`: the passes that hand an edit its means, donors and twins."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import Position
from lens_skills.causal.baseline import (
    Baseline,
    Key,
    Sites,
    edited_positions,
    measure_baseline,
    read_batches,
)
from lens_skills.models import Lens


@dataclass(frozen=True, eq=False)
class Spot:
    """Where an edit acts in one call: rows that may belong to different examples and units."""

    layer: int
    site: str
    old: Float[Tensor, "row pos feature"]
    features: Int[Tensor, "row feature"]
    examples: Int[Tensor, " row"]
    draw: int


Formula = Callable[[Spot], Tensor]


@dataclass(frozen=True)
class SourceReader:
    """How an edit's source is to be read: by which model, where, for which examples."""

    lens: Lens
    examples: Sequence[Any]
    sites: Sites
    position: Position
    seed: int
    batch_size: int
    answers: bool | None

    @property
    def everywhere(self) -> bool:
        return edited_positions(self.position).ragged

    def baseline(self, over: Any) -> Baseline:
        """Mean and std over a split, or as results hold them."""
        return measure_baseline(
            self.lens,
            over,
            self.sites,
            position=self.position,
            answers=self.answers,
            batch_size=self.batch_size,
        )

    def values(
        self, examples: Sequence[Any], *, one_token: bool = False
    ) -> dict[Key, Float[Tensor, "example pos width"]]:
        """Every example's own activations; with ``"all"``, padded at the end.

        With ``one_token`` a single token, drawn at random, stands for each example: all tokens of
        a split would fill the memory.
        """
        found: dict[Key, Tensor] = {}
        for site, layers in self.sites.items():
            parts: list[tuple[list[int], Tensor]] = []
            for batch, values, mask in read_batches(
                self.lens,
                examples,
                site,
                layers,
                position=self.position,
                answers=self.answers,
                batch_size=self.batch_size,
            ):
                index = [item.index for item in batch]
                if one_token:
                    assert mask is not None, "one of several tokens: position 'all'"
                    lengths = zip(index, mask.sum(1).tolist(), strict=True)
                    drawn = [self._token(examples[place].id, length) for place, length in lengths]
                    values = values[torch.arange(len(index)), drawn][:, None]
                parts.append((index, values))
            n_pos = max(values.shape[1] for _, values in parts)
            for place, layer in enumerate(sorted(set(layers))):
                width = parts[0][1].shape[-1]
                table = torch.zeros(len(examples), n_pos, width)
                for index, values in parts:
                    table[index, : values.shape[1]] = values[:, :, place]
                found[layer, site] = table
        return found

    def _token(self, donor: str, n_tokens: int) -> int:
        return int(generator_of(self.seed, "token", donor).integers(n_tokens))

    def key(self, place: int) -> str:
        """What random draws for an example depend on; rows of unknown examples are counted."""
        return self.examples[place].id if self.examples else f"row {place}"


def generator_of(seed: int, *words: Any) -> np.random.Generator:
    """A generator that depends on the words alone, in every process and on every machine."""
    text = "\0".join(map(str, (seed, *words)))
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
