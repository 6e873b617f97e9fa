"""The suffix of a TransformerBridge: its blocks called as the Hugging Face model calls them."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.models.protocol import Reader
from lens_skills.models.suffix import CannotResume, Suffix

Call = tuple[tuple[Any, ...], dict[str, Any]]


class PrefixCache:
    """The shared keys and values of all blocks; new ones are put after them and not kept."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], start: int) -> None:
        self.layers, self.start = layers, start

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> Any:
        before = self.layers[layer]
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)

    def get_seq_length(self, *_: Any) -> int:
        return self.start


class BridgeSuffix(Suffix):
    """The suffix of a bridge.

    The clean pass records with which arguments the Hugging Face model calls each block: masks and
    rotations are then laid out for the tree, whatever the architecture's own names for them.
    """

    def __init__(
        self,
        lens: Any,
        tokens: Int[Tensor, "example pos"],
        mask: Bool[Tensor, "example pos"],
        start: int,
        readers: Mapping[str, Reader],
    ) -> None:
        super().__init__(lens, mask, start)
        from transformers import DynamicCache

        if not {"past_key_values", "use_cache", "position_ids"} <= lens._accepts:
            raise CannotResume(f"{lens.name} keeps no keys and values")
        real, cache = self.mask.long(), DynamicCache()
        options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        options["position_ids"] = (real.cumsum(1) - 1).clamp(min=0)
        if "logits_to_keep" in lens._accepts:
            options["logits_to_keep"] = 1
        calls: list[Call] = []
        tokens, editors = lens._spoken(tokens, {})
        with (
            lens._evaluating(),
            lens._attached(readers, editors) as called,
            self._recording(calls),
        ):
            lens.model.original_model(tokens.to(lens.device), attention_mask=real, **options)
            lens._all_called(readers, called)
        if len(calls) != lens.n_layers or len(self.entering) != lens.n_layers + 1:
            raise CannotResume(f"{lens.name} does not call its blocks one after another")
        self.calls = calls
        try:
            layers: list[Any] = list(cache.layers)
            kept = [(layer.keys, layer.values) for layer in layers]
            kept = [(k[:, :, :start].clone(), v[:, :, :start].clone()) for k, v in kept]
        except (AttributeError, IndexError, TypeError) as error:
            raise CannotResume(f"{lens.name} keeps other states than keys and values") from error
        if any(len(k) != len(tokens) for k, _ in kept):
            raise CannotResume(f"{lens.name} keeps keys in a layout of its own")
        cache.layers.clear()  # the calls hold on to it, and only its beginning is needed
        self.cache = PrefixCache(kept, start)
        self._laid_out: dict[tuple[int, int], Call] = {}

    @contextmanager
    def _recording(self, calls: list[Call]) -> Iterator[None]:
        """Keep each block's arguments, and the residual stream that enters and leaves."""
        blocks = list(self.lens.model.blocks)

        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            residual = args[0] if args else kwargs["hidden_states"]
            self.entering.append(residual[:, self.start :].clone())
            # Without the whole residual stream, which would be kept for every layer.
            calls.append(((None, *args[1:]) if args else (), {**kwargs, "hidden_states": None}))

        def after(module: Any, args: Any, out: Any) -> None:
            residual = out if isinstance(out, Tensor) else out[0]
            self.entering.append(residual[:, self.start :].clone())

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
        yield  # masks and rotations are arguments here: nothing of the model is touched

    def _block(self, layer: int, tree: Tensor, n_sets: int) -> Tensor:
        if (layer, n_sets) not in self._laid_out:
            self._laid_out[layer, n_sets] = self._lay_out(layer, n_sets)
        args, kwargs = self._laid_out[layer, n_sets]
        block = self.lens.model.blocks[layer]
        if args:
            out = block(tree, *args[1:], **kwargs)
        else:
            out = block(**{**kwargs, "hidden_states": tree})
        return out if isinstance(out, Tensor) else out[0]

    def _lay_out(self, layer: int, n_sets: int) -> Call:
        """The block's own arguments, for the tree."""
        args, kwargs = self.calls[layer]
        block = getattr(self.lens.model.blocks[layer], "original_component", None)
        names = [] if block is None else list(inspect.signature(block.forward).parameters)

        def place(name: str, value: Any) -> Any:
            if name == "attention_mask" and value is None:
                # Left out where nothing is padded and the attention itself looks backwards only.
                return self._place_mask(layer, self._causal(), n_sets)
            return self._place(layer, value, n_sets)

        named = {name: place(name, v) for name, v in kwargs.items() if name != "hidden_states"}
        rest = [place(name, value) for name, value in zip(names[1:], args[1:], strict=False)]
        return (*args[:1], *rest), named

    def _causal(self) -> Bool[Tensor, "example 1 column pos"]:
        columns = torch.arange(self.width, device=self.mask.device)
        backwards = columns[self.start :, None] >= columns
        return backwards & self.mask[:, None, None]

    def _place(self, layer: int, value: Any, n_sets: int) -> Any:
        if hasattr(value, "update") and hasattr(value, "get_seq_length"):
            return self.cache
        if isinstance(value, tuple):
            return tuple(self._place(layer, part, n_sets) for part in value)
        if not isinstance(value, Tensor):
            return value
        width, shape = self.width, value.shape
        if value.ndim == 4 and shape[2] == width and shape[3] >= width:
            return self._place_mask(layer, value[:, :, self.start :, :width], n_sets)
        if value.ndim == 1 and len(value) == width:
            return repeat(value[self.start :], "c -> (s c)", s=n_sets)
        if value.ndim > 1 and shape[0] in (1, len(self.mask)) and shape[1] == width:
            return repeat(value[:, self.start :], "e c ... -> e (s c) ...", s=n_sets)
        raise CannotResume(
            f"{self.lens.name} hands its blocks a tensor of shape {tuple(shape)}, unknown here"
        )

    def _place_mask(self, layer: int, mask: Tensor, n_sets: int) -> Tensor:
        if mask.dtype == torch.bool:
            return self.tree_of(layer, mask, n_sets)
        shut = torch.finfo(mask.dtype).min
        if not bool(((mask == 0) | (mask <= shut / 2)).all()):
            raise CannotResume(f"{self.lens.name} adds more than a mask to its attention scores")
        allowed = self.tree_of(layer, mask == 0, n_sets)
        return torch.zeros_like(allowed, dtype=mask.dtype).masked_fill(~allowed, shut)

    def normalise(self, residual: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """The final norm of the residual stream."""
        return self._alone(self.lens.model.ln_final, residual)

    def logits(self, residual: Float[Tensor, "row k d_model"]) -> Float[Tensor, "row k d_vocab"]:
        """Logits of the residual stream after the last block, over the whole vocabulary."""
        logits = self._alone(self.lens.model.unembed, self.normalise(residual))
        cap = getattr(self.lens.model.original_model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * (logits / cap).tanh()

    def _alone(self, part: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        with self._evaluating():
            return part(value)
