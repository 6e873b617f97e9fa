"""The suffix of a HookedTransformer: its own blocks, their attention laid out as a tree."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.models.protocol import Reader
from lens_skills.models.suffix import CannotResume, Suffix


class Recording:
    """A key and value cache that keeps what one block hands it."""

    def __init__(self, empty: Tensor) -> None:
        self.past_keys = self.past_values = empty

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.past_keys, self.past_values = keys, values
        return keys, values


class Prefix:
    """The shared keys and values of one block; new ones are put after them and not kept."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.past_keys, self.past_values = keys, values

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([self.past_keys, keys], 1), torch.cat([self.past_values, values], 1)


class HookedSuffix(Suffix):
    """The suffix of a HookedTransformer."""

    def __init__(
        self,
        lens: Any,
        tokens: Int[Tensor, "example pos"],
        mask: Bool[Tensor, "example pos"],
        start: int,
        readers: Mapping[str, Reader],
    ) -> None:
        super().__init__(lens, mask, start)
        model = lens.model
        if model.cfg.positional_embedding_type == "shortformer":
            raise CannotResume("shortformer position embeddings enter every block")
        self.ones = self.mask.long()
        self.caches: list[Prefix] = []
        tokens, editors = lens._spoken(tokens, {})
        with lens._evaluating(), lens._attached(readers, editors) as called:
            residual = model(tokens.to(lens.device), attention_mask=self.ones, stop_at_layer=0)
            for block in model.blocks:
                self.entering.append(residual[:, start:].clone())
                seen = Recording(residual.new_empty(len(tokens), 0, 1, 1))
                residual = block(residual, past_kv_cache_entry=seen, attention_mask=self.ones)
                kept = (seen.past_keys[:, :start].clone(), seen.past_values[:, :start].clone())
                self.caches.append(Prefix(*kept))
            self.entering.append(residual[:, start:].clone())
            lens._all_called(readers, called)
        self._allowed = [self._mask_of(block.attn) for block in model.blocks]

    def _mask_of(self, attention: Any) -> Bool[Tensor, "example 1 column pos"]:
        """Where this block's attention may look: local windows and padding included."""
        shape = (len(self.mask), 1, self.width - self.start, self.width)
        zeros = torch.zeros(shape, device=self.mask.device)
        return attention.apply_causal_mask(zeros, self.start, self.ones) == 0

    def _kept(self) -> Iterator[Tensor]:
        for cache in self.caches:
            yield from (cache.past_keys, cache.past_values)

    @contextmanager
    def _branching(self, layers: Sequence[int], n_sets: int) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in layers:
                attention = self.lens.model.blocks[layer].attn
                for name in ("apply_causal_mask", "apply_rotary"):
                    # In place of the class's method, on this object and for this pass only.
                    own = attention.__dict__.get(name)
                    replacement = getattr(self, "_" + name)(layer, attention, n_sets)
                    attention.__dict__[name] = replacement
                    if own is None:
                        stack.callback(attention.__dict__.pop, name)
                    else:
                        stack.callback(attention.__dict__.__setitem__, name, own)
            yield

    def _apply_causal_mask(self, layer: int, attention: Any, n_sets: int) -> Any:
        def masked(scores: Tensor, *_: Any) -> Tensor:
            allowed = self.tree_of(layer, self._allowed[layer], n_sets)
            return scores.masked_fill(~allowed, float("-inf"))

        return masked

    def _apply_rotary(self, layer: int, attention: Any, n_sets: int) -> Any:
        rotate, start = attention.apply_rotary, self.start
        branches = n_sets * (self.width - start)
        ones = repeat(self.ones, "example pos -> (set example) pos", set=n_sets)

        def rotated(x: Tensor, *_: Any) -> Tensor:
            # Queries are branches only; keys have the prefix, not yet rotated, before them.
            rows = rearrange(x[:, -branches:], "e (s c) h d -> (s e) c h d", s=n_sets)
            tree = rearrange(rotate(rows, start, ones), "(s e) c h d -> e (s c) h d", s=n_sets)
            if x.shape[1] == branches:
                return tree
            return torch.cat([rotate(x[:, :start], 0, self.ones[:, :start]), tree], dim=1)

        return rotated

    def _block(self, layer: int, tree: Tensor, n_sets: int) -> Tensor:
        block, cache = self.lens.model.blocks[layer], self.caches[layer]
        return block(tree, past_kv_cache_entry=cache, attention_mask=self.ones)

    def normalise(self, residual: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """The final norm of the residual stream."""
        with self._evaluating():
            return self.lens.model.ln_final(residual)

    def logits(self, residual: Float[Tensor, "row k d_model"]) -> Float[Tensor, "row k d_vocab"]:
        """Logits of the residual stream after the last block, over the whole vocabulary."""
        with self._evaluating():
            return self.lens.model(residual, start_at_layer=self.lens.n_layers)
