"""`PartialForward`: the last columns of a batch, run again from any layer, many versions at once.

The prefix stays as it was; only from the first changed column and block on is anything computed. A
HookedTransformer's own blocks run with their attention laid out as a tree; a TransformerBridge's
are called as the Hugging Face model calls them.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.models.adapter import NO_EDITORS, EditHook, ReadHook, check_shapes
from lens_skills.models.rounding import distance
from lens_skills.models.stored_weights import check_gradients


class CannotResume(Exception):
    """This model, or this state of it, does not let its upper blocks run alone; says why."""


class PartialForward(ABC):
    """What a clean pass leaves behind, so that only its last columns need to run again.

    Many versions of an example (*sets*, since each stands for a set of edited units) share the
    keys and values of its unchanged columns. They are laid side by side on the position axis, as
    branches of a tree: a column sees the shared prefix and its own branch, at its own position.
    The model's own blocks do the work, so its hook points are reached as ever.

    Attributes:
        start: The first column that is run again.
        entering: The clean residual stream entering each block, and at last leaving the top one.
    """

    def __init__(self, adapter: Any, mask: Bool[Tensor, "example pos"], start: int) -> None:
        self.adapter, self.start = adapter, start
        self.mask = mask.to(adapter.device)
        self.width = int(mask.shape[1])
        self.entering: list[Float[Tensor, "example column d_model"]] = []
        self._gradients = False
        self._trees: dict[tuple[int, int], Tensor] = {}

    def run(
        self,
        residual: Float[Tensor, "set example column d_model"],
        layer: int,
        *,
        stop: int | None = None,
        editors: Mapping[str, EditHook] = NO_EDITORS,
    ) -> Float[Tensor, "set example column d_model"]:
        """The residual stream after the last block (or entering block ``stop``).

        Args:
            residual: What enters block ``layer`` at the columns from `start` on.
            layer: The first block that runs.
            stop: The block before which it ends (None: none).
            editors: Per hook point; each is given ``[set * example, column, ...]``, the examples
                of the first set first.
        """
        n_sets = residual.shape[0]
        # Contiguous: some blocks take views of what they are given.
        tree = rearrange(residual, "set example column d -> example (set column) d").contiguous()
        layers = range(layer, self.adapter.n_layers if stop is None else stop)
        rowwise = {name: self._on_rows(editor, n_sets) for name, editor in editors.items()}
        with self._evaluating(), self.adapter._attached({}, rowwise) as called:
            with self._branching(layers, n_sets):
                for index in layers:
                    tree = self._block(index, tree, n_sets)
            self.adapter._all_called(editors, called)
        return rearrange(tree, "example (set column) d -> set example column d", set=n_sets)

    def _on_rows(self, editor: EditHook, n_sets: int) -> EditHook:
        def edit(tree: Tensor) -> Tensor:
            rows = rearrange(tree, "e (s c) ... -> (s e) c ...", s=n_sets)
            tree = rearrange(editor(rows), "(s e) c ... -> e (s c) ...", s=n_sets)
            return tree.contiguous()

        return edit

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """What runs inside can be differentiated by the residual stream it is given."""
        check_gradients(self.adapter.name, self.adapter._modules().parameters())
        self._gradients = True
        try:
            yield
        finally:
            self._gradients = False

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        with self.adapter._evaluating(), torch.set_grad_enabled(self._gradients):
            yield

    def clean(self, layer: int, n_sets: int) -> Float[Tensor, "set example column d_model"]:
        """``n_sets`` copies of the clean residual stream entering a block."""
        return repeat(self.entering[layer], "example column d -> set example column d", set=n_sets)

    def tree_of(
        self, layer: int, allowed: Bool[Tensor, "#example #head column pos"], n_sets: int
    ) -> Bool[Tensor, "#example #head branch key"]:
        """Who may look at whom in the tree, from who may in the clean pass; kept for next time."""
        if (layer, n_sets) not in self._trees:
            prefix = repeat(allowed[..., : self.start], "e h c k -> e h (s c) k", s=n_sets)
            own = allowed[..., self.start :]
            same = torch.eye(n_sets, dtype=torch.bool, device=own.device)
            branches = rearrange(same, "s t -> 1 1 s 1 t 1") & rearrange(
                own, "e h c k -> e h 1 c 1 k"
            )
            own = rearrange(branches, "e h s c t k -> e h (s c) (t k)")
            self._trees[layer, n_sets] = torch.cat([prefix, own], dim=-1)
        return self._trees[layer, n_sets]

    @property
    def n_bytes(self) -> int:
        """The size of what it keeps for later runs."""
        return sum(part.numel() * part.element_size() for part in [*self._kept(), *self.entering])

    @abstractmethod
    def _kept(self) -> Iterable[Tensor]:
        """The keys and values of all blocks."""

    @abstractmethod
    def _branching(self, layers: Sequence[int], n_sets: int) -> Any:
        """A context in which blocks read the tree; everything is put back afterwards."""

    @abstractmethod
    def _block(self, layer: int, tree: Tensor, n_sets: int) -> Tensor:
        """One block on the tree."""

    def normalise(self, residual: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """The final norm of the residual stream."""
        with self._evaluating():
            return self.adapter.model.ln_final(residual)

    @abstractmethod
    def logits(self, residual: Float[Tensor, "row k d_model"]) -> Float[Tensor, "row k d_vocab"]:
        """Logits of the residual stream after the last block, over the whole vocabulary."""

    def check(self, clean: Float[Tensor, "example d_vocab"]) -> None:
        """Nothing; raises `CannotResume` unless unedited columns give the clean pass's logits.

        Three versions run from the bottom, the second one disturbed: what is equal then is also
        independent of its neighbours.
        """
        residual = self.entering[0]
        noise = torch.linspace(-1, 1, residual.numel(), device=residual.device).view_as(residual)
        disturbed = residual + (residual.std() * noise).to(residual)
        out = self.run(torch.stack([residual, disturbed, residual]), 0)[:, :, -1]
        found = self.logits(out).double().log_softmax(-1)
        difference, allowed = distance(self.adapter, found[[0, 2]], clean.double().log_softmax(-1))
        if not difference <= allowed:
            raise CannotResume(
                f"{self.adapter.name}: upper blocks run alone differ from the whole model by "
                f"{difference:.1e} in log-probability"
            )


def prefill(
    adapter: Any,
    tokens: Int[Tensor, "example pos"],
    mask: Bool[Tensor, "example pos"],
    *,
    start: int,
    readers: Mapping[str, ReadHook],
    clean: Float[Tensor, "example d_vocab"] | None = None,
    check: bool = True,
) -> PartialForward:
    """The suffix of a batch from column ``start`` on, after one clean pass that feeds the readers.

    Args:
        adapter: The model.
        tokens: Padded on the left.
        mask: Which of them are real.
        start: The first column to be run again.
        readers: Called on the way; they see whole rows, as in `ModelAdapter.forward`.
        clean: Logits of the last column from an ordinary pass, to check against (None: one more
            pass is made for them).
        check: Whether to run it once and compare; without, only what is known beforehand to go
            wrong is refused, and the caller compares what it computes itself.

    Raises:
        CannotResume: The user's own hooks are on the model, or its architecture does not allow
            it, which is found by comparing an unedited run with the clean pass.
    """
    check_shapes(tokens, mask, None)
    if watched(adapter):
        raise CannotResume(
            f"{adapter.name} carries hooks of its user, which would see other shapes"
        )
    kind = {"hooked": HookedPartialForward, "bridge": BridgePartialForward}.get(
        adapter.implementation
    )
    if kind is None:
        raise CannotResume(f"a {type(adapter).__name__} runs whole")
    if adapter.spread:
        raise CannotResume(f"the blocks of {adapter.name} stand on several devices")
    if not hasattr(adapter.model, "ln_final"):
        raise CannotResume(f"{adapter.name} has no final norm")
    suffix = kind(adapter, tokens, mask, start, readers)
    if not check:
        return suffix
    if clean is None:
        at = torch.full((len(tokens), 1), tokens.shape[1] - 1)
        clean = adapter.forward(tokens, mask, readers={}, logits_at=at)[:, 0]
    suffix.check(clean)
    return suffix


def keeps_keys(adapter: Any) -> bool:
    """Whether blocks run on keys and values that were kept: what the model itself says of it."""
    if adapter.implementation == "hooked":
        return adapter.model.cfg.positional_embedding_type != "shortformer"
    kept = cache_argument(adapter._accepts) is not None
    return kept and {"use_cache", "position_ids"} <= adapter._accepts


def cache_argument(accepts: Iterable[str]) -> str | None:
    """What a Hugging Face forward calls its keys and values: transformers 5.24 renamed them.

    >>> cache_argument(["input_ids", "cache"]), cache_argument(["past_key_values", "cache"])
    ('cache', 'past_key_values')
    >>> cache_argument(["input_ids"])
    """
    return next((name for name in ("past_key_values", "cache") if name in accepts), None)


@contextmanager
def cache_handed_on(adapter: Any) -> Iterator[None]:
    """TransformerLens's attention finds the cache inside, whatever transformers calls it.

    Its bridges look for ``past_key_values`` and silently compute without the ones handed over as
    ``cache``. Those that call the original attention are left alone.
    """
    from transformer_lens.model_bridge.generalized_components import AttentionBridge

    def rename(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if kwargs.get("cache") is not None and "past_key_values" not in kwargs:
            return args, {**kwargs, "past_key_values": kwargs["cache"]}
        return None

    handles: list[Any] = []
    try:
        if cache_argument(adapter._accepts) == "cache":
            for part in adapter._parts:
                own = isinstance(part, AttentionBridge)
                if own and type(part).forward is not AttentionBridge.forward:
                    handles.append(part.register_forward_pre_hook(rename, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def watched(adapter: Any) -> bool:
    """Whether a user's hooks are on the model: TransformerLens hooks or torch hooks."""
    return bool(_users(adapter))


@contextmanager
def set_aside(adapter: Any) -> Iterator[None]:
    """No hook of the user's is on the model inside; afterwards all are back, in their order."""
    found = _users(adapter)
    before = [(hooks, list(hooks.items())) for hooks, _ in found]
    try:
        for hooks, keys in found:
            for key in keys:
                del hooks[key]
        yield
    finally:
        for hooks, items in before:
            hooks.clear()
            hooks.update(items)


def _of_libraries(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(("transformer_lens", "transformers"))


def _users(adapter: Any) -> list[tuple[dict[int, Any], list[int]]]:
    """The tables of torch hooks that hold hooks of the user's, and under which keys."""
    handles = [handle for point in adapter._points.values() for handle in point.fwd_hooks]
    theirs = {handle.hook.id for handle in handles if not _of_libraries(handle.user_hook)}
    found: dict[int, tuple[dict[int, Any], list[int]]] = {}
    for part in [*adapter._parts, *adapter._points.values()]:
        for hooks in (part._forward_hooks, part._forward_pre_hooks):
            # The bridge works with torch hooks of its own, and transformers leaves some on every
            # model that was once asked for hidden states or attention patterns: they look on.
            keys = [
                key for key, hook in hooks.items()
                if key in theirs or not _of_libraries(hook)
            ]  # fmt: skip
            if keys:
                found[id(hooks)] = (hooks, keys)
    return list(found.values())


Call = tuple[tuple[Any, ...], dict[str, Any]]


class BridgePrefix:
    """The shared keys and values of all blocks; new ones are put after them and not kept."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], start: int) -> None:
        self.layers, self.start = layers, start

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> Any:
        before = self.layers[layer]
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)

    def get_seq_length(self, *_: Any) -> int:
        return self.start


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
    ) -> None:
        super().__init__(adapter, mask, start)
        from transformers import DynamicCache

        if not keeps_keys(adapter):
            raise CannotResume(f"{adapter.name} keeps no keys and values")
        real, cache = self.mask.long(), DynamicCache()
        options: dict[str, Any] = {str(cache_argument(adapter._accepts)): cache, "use_cache": True}
        options["position_ids"] = (real.cumsum(1) - 1).clamp(min=0)
        if "logits_to_keep" in adapter._accepts:
            options["logits_to_keep"] = 1
        calls: list[Call] = []
        tokens, editors = adapter._spoken(tokens, {})
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
            kept = [(k[:, :, :start].clone(), v[:, :, :start].clone()) for k, v in kept]
        except (AttributeError, IndexError, TypeError) as error:
            raise CannotResume(f"{adapter.name} keeps other states than keys and values") from error
        if any(len(k) != len(tokens) for k, _ in kept):
            raise CannotResume(f"{adapter.name} keeps keys in a layout of its own")
        cache.layers.clear()  # the calls hold on to it, and only its beginning is needed
        self.cache = BridgePrefix(kept, start)
        self._laid_out: dict[tuple[int, int], Call] = {}

    @contextmanager
    def _recording(self, calls: list[Call]) -> Iterator[None]:
        """Keep each block's arguments, and the residual stream that enters and leaves."""
        blocks = list(self.adapter.model.blocks)

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
        with cache_handed_on(self.adapter):
            yield  # masks and rotations are arguments here

    def _block(self, layer: int, tree: Tensor, n_sets: int) -> Tensor:
        if (layer, n_sets) not in self._laid_out:
            self._laid_out[layer, n_sets] = self._lay_out(layer, n_sets)
        args, kwargs = self._laid_out[layer, n_sets]
        block = self.adapter.model.blocks[layer]
        if args:
            out = block(tree, *args[1:], **kwargs)
        else:
            out = block(**{**kwargs, "hidden_states": tree})
        return out if isinstance(out, Tensor) else out[0]

    def _lay_out(self, layer: int, n_sets: int) -> Call:
        """The block's own arguments, for the tree."""
        args, kwargs = self.calls[layer]
        block = getattr(self.adapter.model.blocks[layer], "original_component", None)
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
        """What the model multiplies its vocabulary projection by (Cohere, Granite): regressed."""
        with self._evaluating():
            plain = self.adapter.model.unembed(self.normalise(self.entering[-1][:, -1]))
        plain, given = plain.double(), given.detach().double()
        if self._cap is not None:
            given = self._cap * (given / self._cap).clamp(-0.999, 0.999).atanh()
        found = float((plain * given).sum() / plain.square().sum().clamp(min=1e-300))
        return 1.0 if abs(found - 1) < 1e-2 else found


class Recording:
    """A key and value cache that keeps what one block hands it."""

    def __init__(self, empty: Tensor) -> None:
        self.past_keys = self.past_values = empty

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.past_keys, self.past_values = keys, values
        return keys, values


class HookedPrefix:
    """The shared keys and values of one block; new ones are put after them and not kept."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.past_keys, self.past_values = keys, values

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([self.past_keys, keys], 1), torch.cat([self.past_values, values], 1)


class HookedPartialForward(PartialForward):
    """The suffix of a HookedTransformer."""

    def __init__(
        self,
        adapter: Any,
        tokens: Int[Tensor, "example pos"],
        mask: Bool[Tensor, "example pos"],
        start: int,
        readers: Mapping[str, ReadHook],
    ) -> None:
        super().__init__(adapter, mask, start)
        model = adapter.model
        if not keeps_keys(adapter):
            raise CannotResume("shortformer position embeddings enter every block")
        self.ones = self.mask.long()
        self.caches: list[HookedPrefix] = []
        tokens, editors = adapter._spoken(tokens, {})
        with adapter._evaluating(), adapter._attached(readers, editors) as called:
            residual = model(tokens.to(adapter.device), attention_mask=self.ones, stop_at_layer=0)
            for block in model.blocks:
                self.entering.append(residual[:, start:].clone())
                seen = Recording(residual.new_empty(len(tokens), 0, 1, 1))
                residual = block(residual, past_kv_cache_entry=seen, attention_mask=self.ones)
                kept = (seen.past_keys[:, :start].clone(), seen.past_values[:, :start].clone())
                self.caches.append(HookedPrefix(*kept))
            self.entering.append(residual[:, start:].clone())
            adapter._all_called(readers, called)
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
        block, cache = self.adapter.model.blocks[layer], self.caches[layer]
        return block(tree, past_kv_cache_entry=cache, attention_mask=self.ones)

    def logits(self, residual: Float[Tensor, "row k d_model"]) -> Float[Tensor, "row k d_vocab"]:
        """Logits of the residual stream after the last block, over the whole vocabulary."""
        with self._evaluating():
            return self.adapter.model(residual, start_at_layer=self.adapter.n_layers)
