"""`HookedPartialForward`: a HookedTransformer's own blocks, their attention laid out as a tree."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.models.adapter import ReadHook
from lens_skills.models.branches import Branches
from lens_skills.models.key_cache import keeps_keys
from lens_skills.models.partial_run import CannotResume, PartialForward, behind


class Recording:
    """A key and value cache that keeps what one block hands it, behind what was there before."""

    def __init__(self, empty: Tensor, before: Any = None) -> None:
        self.before = before
        self.past_keys = empty if before is None else before.past_keys
        self.past_values = empty if before is None else before.past_values

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.before is not None:
            keys, values = self.before.append(keys, values)
        self.past_keys, self.past_values = keys, values
        return keys, values


class HookedPrefix:
    """The shared keys and values of one block; new ones are put after them and not kept."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.past_keys, self.past_values = keys, values

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return behind(self.past_keys, keys, 1), behind(self.past_values, values, 1)

    def until(self, start: int) -> "HookedPrefix":
        """Only the first columns, without the rest in memory."""
        if start == self.past_keys.shape[1]:
            return self
        return HookedPrefix(self.past_keys[:, :start].clone(), self.past_values[:, :start].clone())


class HookedPartialForward(PartialForward):
    """The suffix of a HookedTransformer."""

    def __init__(
        self,
        adapter: Any,
        tokens: Int[Tensor, "example pos"],
        mask: Bool[Tensor, "example pos"],
        start: int,
        readers: Mapping[str, ReadHook],
        branches: Branches | None = None,
        after: Any = None,
    ) -> None:
        super().__init__(adapter, mask, start, branches, after)
        model = adapter.model
        if not keeps_keys(adapter):
            raise CannotResume("shortformer position embeddings enter every block")
        self.ones = self.mask.long()
        self.caches: list[HookedPrefix] = []
        tokens, editors = adapter._spoken(tokens[:, self.before :], {})
        with adapter._evaluating(), adapter._attached(readers, editors) as called:
            known = None if after is None else after.hooked_cache(len(tokens))
            first = start - self.before
            residual = model(
                tokens.to(adapter.device),
                attention_mask=self.ones[:, self.before :],
                past_kv_cache=known,
                stop_at_layer=0,
            )
            for layer, block in enumerate(model.blocks):
                self.entering.append(residual[:, first:].clone())
                empty = residual.new_empty(len(tokens), 0, 1, 1)
                seen = Recording(empty, None if known is None else known[layer])
                residual = block(residual, past_kv_cache_entry=seen, attention_mask=self.ones)
                kept = HookedPrefix(seen.past_keys, seen.past_values)
                self.caches.append(kept if branches is not None else kept.until(start))
            self.entering.append(residual[:, first:].clone())
            adapter._all_called(readers, called)
        self._allowed = [self._mask_of(block.attn) for block in model.blocks]
        if branches is not None:
            self._read_branches()
            self.caches = [cache.until(start) for cache in self.caches]

    def _embed(
        self, tokens: Int[Tensor, "example branch"], positions: Int[Tensor, "example branch"]
    ) -> Float[Tensor, "example branch d_model"]:
        """What enters block 0 where these tokens stand at these positions."""
        n_branches = tokens.shape[1]
        # A mask is summed up to positions: its first number puts the second token at its place.
        before, own = rearrange(positions, "e b -> (e b)"), rearrange(tokens, "e b -> (e b)")
        rows = torch.stack([torch.full_like(own, self.adapter.pad_id), own], dim=1)
        mask = torch.stack([before, torch.ones_like(before)], dim=1)
        entering = self.adapter.model(rows, attention_mask=mask, stop_at_layer=0)[:, 1]
        return rearrange(entering, "(e b) d -> e b d", b=n_branches)

    def _mask_of(self, attention: Any) -> Bool[Tensor, "example 1 column pos"]:
        """Where this block's attention may look: local windows and padding included."""
        first = self.layout.first
        shape = (len(self.mask), 1, self.width - first, self.width)
        zeros = torch.zeros(shape, device=self.mask.device)
        return attention.apply_causal_mask(zeros, first, self.ones) == 0

    def _kept(self) -> Iterator[Tensor]:
        for cache in self.caches:
            yield from (cache.past_keys, cache.past_values)

    @contextmanager
    def _branching(self, layers: Sequence[int], n_sets: int) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in layers:
                attention = self.adapter.model.blocks[layer].attn
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
            trees = scores.unflatten(0, (-1, len(self.mask)))
            return trees.masked_fill(~allowed, float("-inf")).flatten(0, 1)

        return masked

    def _apply_rotary(self, layer: int, attention: Any, n_sets: int) -> Any:
        rotate, start, n_columns = attention.apply_rotary, self.layout.start, self.layout.n_columns
        branches, n_examples = n_sets * n_columns, len(self.mask)
        # Each place is a row of its own, whose mask is summed up to its position.
        width = max(self.width, 2)
        positions = (self.ones.cumsum(1) - 1).clamp(min=0).gather(1, self.layout.places)
        mask = torch.zeros(positions.numel(), width, dtype=torch.long, device=positions.device)
        mask[:, -2], mask[:, -1] = positions.flatten(), 1

        def rotated(x: Tensor, *_: Any) -> Tensor:
            # Queries are branches only; keys have the prefix, not yet rotated, before them.
            trees = len(x) // n_examples
            rows = rearrange(
                x[:, -branches:], "(t e) (s c) h d -> (e c) 1 (t s h) d", t=trees, s=n_sets
            )
            tree = rearrange(
                rotate(rows, width - 1, mask),
                "(e c) 1 (t s h) d -> (t e) (s c) h d", t=trees, s=n_sets, c=n_columns,
            )  # fmt: skip
            if x.shape[1] == branches:
                return tree
            # The prefix is the same in every tree.
            before = rotate(x[:n_examples, :start], 0, self.ones[:, :start])
            return behind(before, tree, 1)

        return rotated

    def _block(self, layer: int, tree: Tensor, n_sets: int) -> Tensor:
        block, cache = self.adapter.model.blocks[layer], self.caches[layer]
        return block(tree, past_kv_cache_entry=cache, attention_mask=self.ones)

    def logits(self, residual: Float[Tensor, "row k d_model"]) -> Float[Tensor, "row k d_vocab"]:
        """Logits of the residual stream after the last block, over the whole vocabulary."""
        with self._evaluating():
            return self.adapter.model(residual, start_at_layer=self.adapter.n_layers)
