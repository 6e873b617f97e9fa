"""`KeptPrefix`: tokens that many rows begin with, run once, and what the rest of each row reads.

The prefix runs with a batch of one; its keys and values are expanded, not copied, over the rows
that follow. Rows stand directly behind it and are padded at their end, so that windows and biases
that count columns count the same ones as in a pass over the whole row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_skills.models.adapter import ReadHook
from lens_skills.models.key_cache import cache_argument, keeps_keys
from lens_skills.models.partial_hooked import HookedPrefix
from lens_skills.models.user_hooks import watched


@dataclass(frozen=True)
class KeptPrefix:
    """The keys and values of some tokens, one row of them, in each block that was run.

    Attributes:
        tokens: The ids; those of a soft prompt's vectors lie past the vocabulary.
        layers: Per block, in the model's own layout, with a batch of one.
        read: By hook point, the activations of its one row, where something reads them.
    """

    tokens: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]
    read: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def begins(self, row: Sequence[int] | np.ndarray) -> bool:
        """Whether a row of tokens begins with these, and goes on."""
        return len(row) > len(self) and bool(np.array_equal(row[: len(self)], self.tokens))

    def whole(self, mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch all"]:
        """The attention mask over the prefix and what follows."""
        before = mask.new_ones(len(mask), len(self))
        return torch.cat([before, mask], dim=1).long()

    def hooked_cache(self, batch: int) -> "HookedKeys":
        """What a HookedTransformer takes as its cache; it keeps nothing of the pass."""
        entries = [
            HookedPrefix(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1))
            for keys, values in self.layers
        ]
        return HookedKeys(entries, len(self))

    def bridge_cache(self, batch: int) -> Any:
        """What a Hugging Face model takes as its cache, for one pass."""
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        for place, (keys, values) in enumerate(self.layers):
            # The first update makes the layer and gives it the tensors as they are.
            cache.update(keys[:, :, :0], values[:, :, :0], place)
            layer = cache.layers[place]
            layer.keys = keys.expand(batch, -1, -1, -1)
            layer.values = values.expand(batch, -1, -1, -1)
        return cache


class HookedKeys:
    """Keys and values as HookedTransformer asks for them, block by block."""

    def __init__(self, entries: Sequence[Any], length: int) -> None:
        self.entries, self.length = entries, length

    def __getitem__(self, layer: int) -> Any:
        return self.entries[layer]

    def append_attention_mask(self, mask: Int[Tensor, "batch new"]) -> Int[Tensor, "batch all"]:
        return torch.cat([mask.new_ones(len(mask), self.length), mask], dim=1)


def keep_prefix(
    adapter: Any, tokens: Sequence[int], *, through: int, readers: Mapping[str, ReadHook]
) -> KeptPrefix:
    """Run tokens once, with a batch of one, and keep what every later column looks at.

    Args:
        adapter: The model.
        tokens: What rows begin with.
        through: The last block that is needed.
        readers: Called on the way, with one row.
    """
    row = torch.tensor([list(tokens)], device=adapter.device)
    return KeptPrefix(tuple(tokens), tuple(adapter.keys_of(row, through, readers)))


def may_keep(adapter: Any) -> bool:
    """Whether to try at all: no hooks of the user's, one device, keys and values that are kept."""
    return (
        adapter.implementation in ("hooked", "bridge")
        and not adapter.spread
        and _takes_keys(adapter)
        and not watched(adapter)
    )


def _takes_keys(adapter: Any) -> bool:
    if adapter.implementation == "hooked":
        return keeps_keys(adapter)
    # Positions need not be told: rows stand directly behind the prefix.
    return cache_argument(adapter._accepts) is not None and "use_cache" in adapter._accepts
