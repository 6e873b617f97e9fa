"""`as_adapter`: any supported model as a `ModelAdapter`; `with_soft_prompt`: with a soft prompt.

Two adapters stand behind both: one for HookedTransformer, one for TransformerBridge.
"""

import inspect
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from lens_skills.contents import content
from lens_skills.errors import LensSkillsError
from lens_skills.models.adapter import EditHook, ModelAdapter, ReadHook
from lens_skills.models.chat_template import Chat
from lens_skills.models.identity import check_reading
from lens_skills.models.kept_prefix import HookedKeys, KeptPrefix
from lens_skills.models.key_cache import cache_argument, cache_handed_on
from lens_skills.models.partial_hooked import Recording
from lens_skills.models.row_columns import mlp_at, rows_at
from lens_skills.models.soft_prompt import SoftPrompt


def as_adapter(model: Any) -> ModelAdapter:
    """The model as a `ModelAdapter`; it stays the user's own object, unwrapped and unchanged.

    Args:
        model: A HookedTransformer or TransformerBridge with any processing, dtype and device,
            or a ModelAdapter, which is returned as it is.

    Raises:
        LensSkillsError: Something else. A Hugging Face model goes through `load_model`.

    >>> as_adapter("gpt2")
    Traceback (most recent call last):
    ...
    lens_skills.errors.LensSkillsError: a HookedTransformer or TransformerBridge is needed, \
found str. Open it first: load_model('gpt2').
    """
    if isinstance(model, ModelAdapter):
        return model
    kind = implementation_of(model)
    if kind == "hooked":
        return HookedAdapter(model)
    if kind == "bridge":
        return BridgeAdapter(model)
    shown = repr(model) if isinstance(model, str) else "it, tokenizer=..."
    raise LensSkillsError(
        f"a HookedTransformer or TransformerBridge is needed, found {type(model).__name__}. "
        f"Open it first: load_model({shown})."
    )


@content.register(nn.Module)
@content.register(ModelAdapter)
def _(model: Any) -> Any:
    """Which model it is, and in which numbers it is read."""
    adapter = as_adapter(model)
    return {
        "name": adapter.name,
        "fingerprint": adapter.fingerprint(),
        "soft prompt": None if adapter.soft is None else adapter.soft.digest,
        "implementation": adapter.implementation,
        "dtype": str(adapter.dtype),
        "device": adapter.device.type,
        "precision": adapter.precision,
        **adapter.reading,
    }


def implementation_of(model: Any) -> str | None:
    """``"hooked"``, ``"bridge"``, or None for anything else, without importing TransformerLens."""
    kinds = {"HookedTransformer": "hooked", "TransformerBridge": "bridge"}
    for ancestor in type(model).__mro__:
        if ancestor.__module__.startswith("transformer_lens.") and ancestor.__name__ in kinds:
            return kinds[ancestor.__name__]
    return None


class HookedAdapter(ModelAdapter):
    """A HookedTransformer, raw or processed, as a `ModelAdapter`."""

    implementation = "hooked"

    def _modules(self) -> nn.Module:
        return self.model

    def unembed_vectors(self) -> tuple[Tensor, Tensor | None]:
        """The vocabulary projection ``[d_model d_vocab]`` and its bias."""
        return self.model.unembed.W_U.detach(), self.model.unembed.b_U.detach()

    def _run(
        self,
        tokens: Tensor,
        mask: Tensor,
        readers: Mapping[str, ReadHook],
        logits_at: Tensor | None,
        editors: Mapping[str, EditHook],
        differentiable: bool,
        after: KeptPrefix | None,
        read_at: Tensor | None,
    ) -> Tensor | None:
        top = self._top(readers)
        whole = top is None or (logits_at is not None and self._hooks_after_blocks(editors))
        stop = self.n_layers if logits_at is not None or top is None else top + 1
        cache = {} if after is None else {"past_kv_cache": after.hooked_cache(len(tokens))}
        last = max(self.n_layers if whole else stop, 1) - 1
        narrow = mlp_at(self.model, last, None if whole else read_at, logits_at, editors)
        evaluating = self._evaluating(differentiable=differentiable)
        with evaluating, self._attached(readers, editors) as called, narrow:
            out = self.model(
                tokens.to(self.device),
                attention_mask=mask.to(self.device, torch.long),
                stop_at_layer=None if whole else stop,
                return_type=None if whole and logits_at is None else "logits",
                **cache,
            )
            self._all_called([*readers, *(editors if logits_at is not None else ())], called)
            if logits_at is None:
                return None
            rows = rows_at(out, logits_at)
            # Past the last block only the final norm and the vocabulary projection are left,
            # and both act on each position alone: only the rows someone reads are projected.
            return rows if whole else self.model(rows, start_at_layer=self.n_layers)

    def keys_of(
        self, tokens: Tensor, through: int, readers: Mapping[str, ReadHook]
    ) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each block up to ``through``, of one row without padding."""
        cfg = self.model.cfg
        heads = cfg.n_heads if cfg.n_key_value_heads is None else cfg.n_key_value_heads
        empty = torch.empty(1, 0, heads, cfg.d_head, device=self.device, dtype=self.dtype)
        seen = [Recording(empty) for _ in range(through + 1)]
        tokens, editors = self._spoken(tokens, {})
        with self._evaluating(), self._attached(readers, editors) as called:
            self.model(
                tokens,
                attention_mask=torch.ones_like(tokens),
                past_kv_cache=HookedKeys(seen, 0),
                stop_at_layer=through + 1,
            )
            self._all_called(readers, called)
        return [(entry.past_keys, entry.past_values) for entry in seen]


class _EnoughRead(Exception):
    """Raised by our own hook when nothing further up is needed."""


class BridgeAdapter(ModelAdapter):
    """A TransformerBridge, with or without compatibility mode, as a `ModelAdapter`."""

    implementation = "bridge"

    def __init__(self, model: Any) -> None:
        """Wrap ``model`` and change nothing of it."""
        if not hasattr(model, "blocks"):
            raise LensSkillsError(
                f"{model.cfg.model_name} has no single stack of blocks; decoder-only language "
                "models can be read."
            )
        super().__init__(model)
        self._accepts = frozenset(inspect.signature(self._modules().forward).parameters)
        self._last_device = self.unembed_vectors()[0].device

    def _modules(self) -> nn.Module:
        return self.model.original_model

    def unembed_vectors(self) -> tuple[Tensor, Tensor | None]:
        """The vocabulary projection ``[d_model d_vocab]`` and its bias."""
        weight, bias = self.weight_of(self.model, "W_U"), self.weight_of(self.model, "b_U")
        assert weight is not None
        return weight.detach(), bias.detach() if isinstance(bias, Tensor) else None

    def _run(
        self,
        tokens: Tensor,
        mask: Tensor,
        readers: Mapping[str, ReadHook],
        logits_at: Tensor | None,
        editors: Mapping[str, EditHook],
        differentiable: bool,
        after: KeptPrefix | None,
        read_at: Tensor | None,
    ) -> Tensor | None:
        top = self._top(readers)
        real = mask.to(self.device)
        real = real.long() if after is None else after.whole(real)
        options: dict[str, Any] = {"attention_mask": real}
        if "position_ids" in self._accepts:
            # Without them every token of a left-padded row is read at the wrong position.
            options["position_ids"] = (real.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        if "use_cache" in self._accepts:
            options["use_cache"] = after is not None
        if after is not None:
            options[str(cache_argument(self._accepts))] = after.bridge_cache(len(tokens))
        # The positions to project are chosen where the projection is.
        kept = torch.arange(tokens.shape[1], device=self._last_device)
        if self._few_logits(readers, editors):
            kept = kept[-1:] if logits_at is None else logits_at.to(kept.device).unique()
            options["logits_to_keep"] = kept
        last = self.n_layers - 1 if logits_at is not None or top is None else max(top, 0)
        narrow = mlp_at(self.model, last, None if top is None else read_at, logits_at, editors)
        evaluating = self._evaluating(differentiable=differentiable)
        with evaluating, self._attached(readers, editors) as called, narrow, ExitStack() as stack:
            if after is not None:
                stack.enter_context(cache_handed_on(self))
            if logits_at is None and top is not None:
                stack.enter_context(self._attached({f"blocks.{max(top, 0)}.hook_out": _stop}))
            try:
                out = self.model(tokens.to(self.device), **options)
            except _EnoughRead:
                out = None
            self._all_called([*readers, *(editors if logits_at is not None else ())], called)
        if logits_at is None or out is None:
            return None
        return rows_at(out, torch.searchsorted(kept, logits_at.to(kept.device).contiguous()))

    def keys_of(
        self, tokens: Tensor, through: int, readers: Mapping[str, ReadHook]
    ) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each block up to ``through``, of one row without padding."""
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        options: dict[str, Any] = {str(cache_argument(self._accepts)): cache, "use_cache": True}
        if "logits_to_keep" in self._accepts:
            options["logits_to_keep"] = 1
        tokens, editors = self._spoken(tokens, {})
        if "position_ids" in self._accepts:
            options["position_ids"] = torch.arange(tokens.shape[1], device=self.device)[None]
        with (
            self._evaluating(),
            self._attached(readers, editors) as called,
            self._attached({f"blocks.{through}.hook_out": _stop}),
            cache_handed_on(self),
            suppress(_EnoughRead),
        ):
            self.model(tokens, attention_mask=torch.ones_like(tokens), **options)
        self._all_called(readers, called)
        return [(layer.keys, layer.values) for layer in cache.layers[: through + 1]]

    def _few_logits(self, readers: Mapping[str, ReadHook], editors: Mapping[str, EditHook]) -> bool:
        """Whether the projection may skip positions: not where a hook watches it."""
        return (
            "logits_to_keep" in self._accepts
            and self._top(readers) is not None
            and not self._hooks_after_blocks(editors)
        )


def _stop(activation: Tensor) -> None:
    raise _EnoughRead


def with_soft_prompt(model: Any, prompt: SoftPrompt | None, chat: Chat = False) -> ModelAdapter:
    """The model as every verb takes it, read with a soft prompt around each example, or in a chat.

    The model itself stays as it is: the vectors are put in place of token embeddings during each
    pass. What is measured this way has a fingerprint of its own, so that results with and without
    the prompt are never mixed.

    In a chat, the vectors before the input stand in front of the whole template (after its
    beginning-of-sequence token), those after it behind the opening of the assistant's turn,
    directly before the answer.

    Args:
        model: A HookedTransformer, a TransformerBridge, or a ModelAdapter.
        prompt: The soft prompt; None for none.
        chat: As in `ModelAdapter`; False leaves an adapter as it is.

    Raises:
        LensSkillsError: A prompt of another width or another model, or trained in another chat; a
            second prompt or chat; a chat template that is missing or refuses.
    """
    adapter = as_adapter(model)
    if chat is not False and chat != adapter.chat:
        if adapter.chat:
            raise LensSkillsError(f"{adapter.name} is read with chat={adapter.chat!r} already.")
        adapter = adapter.in_chat(chat)
    if prompt is None:
        return adapter
    width = prompt.suffix.shape[1]
    if width != adapter.d_model or prompt.prefix.shape[1] != adapter.d_model:
        raise LensSkillsError(
            f"the soft prompt has vectors of width {width} ({prompt.model}), but {adapter.name} "
            f"reads {adapter.d_model}. Train one for this model: fit_prompt(model, …)."
        )
    if adapter.soft is not None:
        if adapter.soft.digest == prompt.digest:
            return adapter
        raise LensSkillsError(f"{adapter.name} is read with a soft prompt already; one at a time.")
    if prompt.model_fingerprint != adapter.without_features().fingerprint():
        raise LensSkillsError(
            f"the soft prompt was made for other weights ({prompt.model}) than these of "
            f"{adapter.name}. Open the model it was trained on, or train one for this model."
        )
    if prompt.trained and "settings" in prompt.provenance:
        check_reading(prompt.provenance["settings"], adapter, "the soft prompt")
    name = f"{adapter.name} with a soft prompt of {prompt.n_tokens} vectors (seed {prompt.seed})"
    return adapter.with_soft_prompt(prompt, name=name)
