"""`Writer`: a model that writes one token after another, with or without kept keys and values."""

import inspect
from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.models.adapter import check_shapes
from lens_skills.models.chat_template import closing
from lens_skills.models.key_cache import cache_argument, cache_handed_on, keeps_keys
from lens_skills.models.memory import out_of_memory
from lens_skills.models.rounding import distance
from lens_skills.models.user_hooks import set_aside, watched


class Writer(ABC):
    """A batch of prompts, padded on the left, and what has been written after them.

    Hooks that are on the model see every pass: the first over the whole prompts, then one over
    the newest column at a time.

    Attributes:
        logits: Of the next token of each row.
    """

    logits: Float[Tensor, "batch d_vocab"]

    def __init__(
        self, adapter: Any, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]
    ) -> None:
        check_shapes(tokens, mask, None)
        self.adapter = adapter
        self.real = mask.to(adapter.device, torch.long)
        self.logits = self._read(tokens)

    def add(self, tokens: Int[Tensor, " batch"], live: Bool[Tensor, " batch"]) -> None:
        """Reads one more token of each row, and predicts the next.

        Args:
            tokens: The newest tokens.
            live: False for rows that have ended; what stands in their place is never looked at.
        """
        column = live[:, None].to(self.real)
        self.real = torch.cat([self.real, column], dim=1)
        # A row that has ended is fed filling: any token does.
        plain = torch.where(live, tokens, torch.full_like(tokens, self.adapter.pad_id))
        self.logits = self._read(plain[:, None])

    @abstractmethod
    def _read(self, tokens: Int[Tensor, "batch new"]) -> Float[Tensor, "batch d_vocab"]:
        """Logits after the newest columns, whose mask stands at the end of ``self.real``."""


class HookedWriter(Writer):
    """A HookedTransformer, continued."""

    cache: Any = None

    def _read(self, tokens: Int[Tensor, "batch new"]) -> Float[Tensor, "batch d_vocab"]:
        adapter, model = self.adapter, self.adapter.model
        if self.cache is None:
            from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

            self.cache = TransformerLensKeyValueCache.init_cache(
                model.cfg, adapter.device, len(tokens)
            )
        tokens, editors = adapter._spoken(tokens, {})
        # A hook of the user's at the final norm sees what it would see in an ordinary pass.
        whole = adapter._hooks_after_blocks({})
        with adapter._evaluating(), adapter._attached({}, editors):
            out = model(
                tokens.to(adapter.device),
                attention_mask=self.real[:, -tokens.shape[1] :],  # the cache knows the rest
                past_kv_cache=self.cache,
                stop_at_layer=None if whole else adapter.n_layers,
            )[:, -1:]
            return (out if whole else model(out, start_at_layer=adapter.n_layers))[:, 0]


class BridgeWriter(Writer):
    """A TransformerBridge, continued by its Hugging Face model's own cache."""

    cache: Any = None

    def _read(self, tokens: Int[Tensor, "batch new"]) -> Float[Tensor, "batch d_vocab"]:
        adapter = self.adapter
        if self.cache is None:
            from transformers import DynamicCache

            self.cache = DynamicCache()
        tokens, editors = adapter._spoken(tokens, {})
        places = (self.real.cumsum(1) - 1).clamp(min=0)
        options: dict[str, Any] = {
            str(cache_argument(adapter._accepts)): self.cache,
            "use_cache": True,
        }
        if "logits_to_keep" in adapter._accepts and not adapter._hooks_after_blocks({}):
            options["logits_to_keep"] = 1
        with adapter._evaluating(), adapter._attached({}, editors), cache_handed_on(adapter):
            out = adapter.model.original_model(
                tokens.to(adapter.device),
                attention_mask=self.real,
                position_ids=places[:, -tokens.shape[1] :],
                **options,
            )
        return out.logits[:, -1]


class WholeWriter(Writer):
    """Any adapter: everything is read anew for each token."""

    tokens: Tensor | None = None

    def _read(self, tokens: Int[Tensor, "batch new"]) -> Float[Tensor, "batch d_vocab"]:
        before = [] if self.tokens is None else [self.tokens]
        self.tokens = torch.cat([*before, tokens.to(self.real.device)], dim=1)
        at = torch.full((len(tokens), 1), self.tokens.shape[1] - 1)
        logits = self.adapter.forward(self.tokens, self.real.bool(), readers={}, logits_at=at)
        return logits[:, 0]


def writer_for(
    adapter: Any, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]
) -> type[Writer]:
    """How this model continues texts: with keys and values kept where that gives the same.

    It is tried on the row with the most padding, without the user's hooks: one kept step against a
    whole pass.

    Raises:
        LensSkillsError: It gives something else, and hooks of the user's are on the model: they
            see the prompts and then each new token, which whole passes do not show them.
    """
    kind = {"hooked": HookedWriter, "bridge": BridgeWriter}.get(adapter.implementation)
    if kind is not None and keeps_keys(adapter):
        with set_aside(adapter):
            if _continues(kind, adapter, tokens, mask):
                return kind
    if kind is not None and watched(adapter):
        raise LensSkillsError(
            f"{adapter.name} cannot write under edits or hooks: it keeps no keys and values that "
            "give what whole passes give, and reading all anew would edit other tokens. Write "
            "without edits, or measure the next token's logits under them."
        )
    return WholeWriter


def _continues(kind: type[Writer], adapter: Any, tokens: Tensor, mask: Tensor) -> bool:
    row = int(mask.sum(1).argmin())
    tokens, mask = tokens[row : row + 1], mask[row : row + 1]
    live = torch.ones(1, dtype=torch.bool, device=adapter.device)
    try:
        kept = kind(adapter, tokens, mask)
        kept.add(kept.logits.argmax(-1), live)
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
        if out_of_memory(error):
            raise
        return False  # its cache is of another make
    whole = WholeWriter(adapter, tokens, mask)
    whole.add(whole.logits.argmax(-1), live)
    rows = (writer.logits.double().log_softmax(-1) for writer in (kept, whole))
    difference, allowed = distance(adapter, *rows)
    return difference <= allowed


def loses_cache(model: Any) -> bool:
    """Whether the model's own ``generate`` writes other text with a cache than without.

    TransformerLens's bridges lose the cache under the name transformers 5.24 gives it.
    """
    accepts = inspect.signature(getattr(model, "original_model", model).forward).parameters
    return cache_argument(accepts) == "cache"


def end_tokens(adapter: Any) -> frozenset[int]:
    """The tokens that end a text: the end-of-text token, and in a chat also the end of a turn."""
    ends = set() if adapter.eos_id is None else {int(adapter.eos_id)}
    if adapter.chat:
        after = adapter.encode_plain(closing(adapter.tokenizer, adapter.name, adapter.chat))
        # Only a special token ends a turn: a plain line end would end every paragraph.
        ends |= set(after[:1]) & set(adapter.tokenizer.all_special_ids)
    return frozenset(ends)
