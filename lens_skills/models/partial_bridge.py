"""`BridgePartialForward`: a TransformerBridge's blocks, called as the Hugging Face model does."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.models.adapter import ReadHook
from lens_skills.models.branches import Branches
from lens_skills.models.key_cache import cache_argument, cache_handed_on, keeps_keys
from lens_skills.models.partial_run import CannotResume, PartialForward, behind

Call = tuple[tuple[Any, ...], dict[str, Any]]


class BridgePrefix:
    """The shared keys and values of all blocks; new ones are put after them and not kept."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], start: int) -> None:
        self.layers, self.start = layers, start

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> Any:
        before = self.layers[layer]
        return behind(before[0], keys, 2), behind(before[1], values, 2)

    def get_seq_length(self, *_: Any) -> int:
        return self.start

    def until(self, start: int) -> "BridgePrefix":
        """Only the first columns, without the rest in memory."""
        if start == self.start:
            return self
        kept = [(k[:, :, :start].clone(), v[:, :, :start].clone()) for k, v in self.layers]
        return BridgePrefix(kept, start)


class _Entered(Exception):
    """Raised by our own hook with what enters the first block."""

    def __init__(self, residual: Tensor) -> None:
        self.residual = residual


class BridgePartialForward(PartialForward):
    """The suffix of a bridge.

    The clean pass records with which arguments the Hugging Face model calls each block: masks and
    rotations are then laid out for the tree, whatever the architecture's own names for them.
    """

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
        from transformers import DynamicCache

        if not keeps_keys(adapter):
            raise CannotResume(f"{adapter.name} keeps no keys and values")
        real: Tensor = self.mask.long()
        cache: Any = DynamicCache() if after is None else after.bridge_cache(len(tokens))
        options: dict[str, Any] = {str(cache_argument(adapter._accepts)): cache, "use_cache": True}
        options["position_ids"] = (real.cumsum(1) - 1).clamp(min=0)[:, self.before :]
        if "logits_to_keep" in adapter._accepts:
            options["logits_to_keep"] = 1
        calls: list[Call] = []
        tokens, editors = adapter._spoken(tokens[:, self.before :], {})
        with (
            adapter._evaluating(),
            adapter._attached(readers, editors) as called,
            self._recording(calls),
            cache_handed_on(adapter),
        ):
            try:
                whole = adapter.model.original_model(
                    tokens.to(adapter.device), attention_mask=real, **options
                )
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                # Convolutions and recurrences keep states of another kind.
                raise CannotResume(f"{adapter.name} takes no cache of keys and values") from error
            adapter._all_called(readers, called)
        if len(calls) != adapter.n_layers or len(self.entering) != adapter.n_layers + 1:
            raise CannotResume(f"{adapter.name} does not call its blocks one after another")
        self.calls = calls
        self.factor = self._logit_factor(whole.logits[:, -1])
        try:
            layers: list[Any] = list(cache.layers)
            kept = [(layer.keys, layer.values) for layer in layers]
            # The whole row's are needed only until the branches behind it have been read.
            prefix = BridgePrefix(kept, self.width)
            self.cache = prefix if branches is not None else prefix.until(start)
        except (AttributeError, IndexError, TypeError) as error:
            raise CannotResume(f"{adapter.name} keeps other states than keys and values") from error
        if any(len(k) != len(tokens) for k, _ in kept):
            raise CannotResume(f"{adapter.name} keeps keys in a layout of its own")
        cache.layers.clear()  # the calls hold on to it, and only its beginning is needed
        self._laid_out: dict[tuple[int, int, int], Call] = {}
        if branches is not None:
            self._read_branches()
            self.cache = prefix.until(start)
            self._laid_out.clear()

    def _embed(
        self, tokens: Int[Tensor, "example branch"], positions: Int[Tensor, "example branch"]
    ) -> Float[Tensor, "example branch d_model"]:
        """What enters block 0 where these tokens stand at these positions."""

        def stop(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Entered(args[0] if args else kwargs["hidden_states"])

        block = self.adapter.model.blocks[0]
        handle = block.register_forward_pre_hook(stop, with_kwargs=True)
        options = {"attention_mask": torch.ones_like(tokens), "position_ids": positions}
        try:
            self.adapter.model.original_model(tokens, use_cache=False, **options)
        except _Entered as entered:
            return entered.residual
        finally:
            handle.remove()
        raise CannotResume(f"{self.adapter.name} does not call its blocks one after another")

    @contextmanager
    def _recording(self, calls: list[Call]) -> Iterator[None]:
        """Keep each block's arguments, and the residual stream that enters and leaves."""
        blocks = list(self.adapter.model.blocks)

        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            residual = args[0] if args else kwargs["hidden_states"]
            self.entering.append(residual[:, self.start - self.before :].clone())
            # Without the whole residual stream, which would be kept for every layer.
            calls.append(((None, *args[1:]) if args else (), {**kwargs, "hidden_states": None}))

        def after(module: Any, args: Any, out: Any) -> None:
            residual = out if isinstance(out, Tensor) else out[0]
            self.entering.append(residual[:, self.start - self.before :].clone())

        handles: list[Any] = []
        try:
            for block in blocks:
                handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(blocks[-1].register_forward_hook(after))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _kept(self) -> Iterator[Tensor]:
        for keys, values in self.cache.layers:
            yield from (keys, values)

    @contextmanager
    def _branching(self, layers: Sequence[int], n_sets: int) -> Iterator[None]:
        with cache_handed_on(self.adapter):
            yield  # masks and rotations are arguments here

    def _block(self, layer: int, tree: Tensor, n_sets: int) -> Tensor:
        key = layer, n_sets, len(tree) // len(self.mask)
        if key not in self._laid_out:
            self._laid_out[key] = self._lay_out(*key)
        args, kwargs = self._laid_out[key]
        block = self.adapter.model.blocks[layer]
        if args:
            out = block(tree, *args[1:], **kwargs)
        else:
            out = block(**{**kwargs, "hidden_states": tree})
        return out if isinstance(out, Tensor) else out[0]

    def _lay_out(self, layer: int, n_sets: int, n_trees: int) -> Call:
        """The block's own arguments, for so many trees of each example."""
        args, kwargs = self.calls[layer]
        block = getattr(self.adapter.model.blocks[layer], "original_component", None)
        names = [] if block is None else list(inspect.signature(block.forward).parameters)

        def place(name: str, value: Any) -> Any:
            if name == "attention_mask" and value is None:
                # Left out where nothing is padded and the attention itself looks backwards only.
                return self._for_trees(self._place_mask(layer, self._causal(), n_sets), n_trees)
            return self._for_trees(self._place(layer, value, n_sets), n_trees)

        named = {name: place(name, v) for name, v in kwargs.items() if name != "hidden_states"}
        rest = [place(name, value) for name, value in zip(names[1:], args[1:], strict=False)]
        return (*args[:1], *rest), named

    def _for_trees(self, value: Any, n_trees: int) -> Any:
        """An argument that has a row for each example, with one for each tree."""
        if isinstance(value, tuple):
            return tuple(self._for_trees(part, n_trees) for part in value)
        rows = isinstance(value, Tensor) and value.ndim > 1 and len(value) == len(self.mask)
        return value.repeat(n_trees, *[1] * (value.ndim - 1)) if rows and n_trees > 1 else value

    def _causal(self) -> Bool[Tensor, "example 1 column pos"]:
        columns, first = torch.arange(self.width, device=self.mask.device), self.layout.first
        backwards = columns[first:, None] >= columns
        return backwards & self.mask[:, None, None]

    def _place(self, layer: int, value: Any, n_sets: int) -> Any:
        if hasattr(value, "update") and hasattr(value, "get_seq_length"):
            return self.cache
        if isinstance(value, tuple):
            return tuple(self._place(layer, part, n_sets) for part in value)
        if not isinstance(value, Tensor):
            return value
        width, shape, first = self.width - self.before, value.shape, self.layout.first
        if value.ndim == 4 and shape[2] == width and shape[3] >= self.width:
            rows = value[:, :, first - self.before :, : self.width]
            return self._place_mask(layer, rows, n_sets)
        if value.ndim == 1 and len(value) == width:
            places = self.layout.places - self.before
            if not bool((places == places[:1]).all()):
                raise CannotResume(f"{self.adapter.name} numbers the columns of all rows alike")
            return repeat(value[places[0]], "c -> (s c)", s=n_sets)
        if value.ndim > 1 and shape[0] in (1, len(self.mask)) and shape[1] == width:
            taken = self.layout.taken(value, 1, self.before)
            return repeat(taken, "e c ... -> e (s c) ...", s=n_sets)
        raise CannotResume(
            f"{self.adapter.name} hands its blocks a tensor of shape {tuple(shape)}, unknown here"
        )

    def _place_mask(self, layer: int, mask: Tensor, n_sets: int) -> Tensor:
        if mask.dtype == torch.bool:
            return self.tree_of(layer, mask, n_sets)
        shut = torch.finfo(mask.dtype).min
        if not bool(((mask == 0) | (mask <= shut / 2)).all()):
            raise CannotResume(f"{self.adapter.name} adds more than a mask to its attention scores")
        allowed = self.tree_of(layer, mask == 0, n_sets)
        return torch.zeros_like(allowed, dtype=mask.dtype).masked_fill(~allowed, shut)

    def logits(self, residual: Float[Tensor, "row k d_model"]) -> Float[Tensor, "row k d_vocab"]:
        """Logits of the residual stream after the last block, over the whole vocabulary."""
        normal = self.normalise(residual)
        with self._evaluating():
            logits = self.factor * self.adapter.model.unembed(normal)
        cap = self._cap
        return logits if cap is None else cap * (logits / cap).tanh()

    @property
    def _cap(self) -> float | None:
        return getattr(self.adapter.model.original_model.config, "final_logit_softcapping", None)

    def _logit_factor(self, given: Float[Tensor, "example d_vocab"]) -> float:
        """What the model multiplies its vocabulary projection by (Cohere, Granite): regressed.

        On two examples, which are a hundred thousand numbers of most models.
        """
        with self._evaluating():
            plain = self.adapter.model.unembed(self.normalise(self.entering[-1][:2, -1]))
        plain, given = plain.double(), given[:2].detach().double()
        if self._cap is not None:
            given = self._cap * (given / self._cap).clamp(-0.999, 0.999).atanh()
        found = float((plain * given).sum() / plain.square().sum().clamp(min=1e-300))
        return 1.0 if abs(found - 1) < 1e-2 else found
