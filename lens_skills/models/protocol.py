"""`Lens`: what the rest of the house asks of a model, whichever library holds it."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.models.soft_prompt import SoftPrompt

Reader = Callable[[Tensor], None]
"""Receives the activation at one hook point, ``[batch pos ...]``, and must not change it."""

Editor = Callable[[Tensor], Tensor]
"""Receives the activation at one hook point and returns a new one in its place."""


@runtime_checkable
class Lens(Protocol):
    """One model, read and never changed.

    Attributes:
        model: The user's own HookedTransformer or TransformerBridge.
        implementation: ``"hooked"`` or ``"bridge"``.
        name: What the model calls itself.
        tokenizer: The model's tokenizer, or None where it has none.
        n_ctx: The longest sequence of tokens the model takes.
        gated: True where the MLP is ``act(gate) * up``.
        dtype: The parameters' real dtype (a bf16 model's config may claim float32).
        pad_id: A token to fill batches with; the mask, not its value, marks padding.
        soft: The soft prompt that is read with every example, if there is one.
        words_before, words_after: Ids, past the vocabulary, that stand for its vectors.
    """

    @property
    def model(self) -> Any: ...
    @property
    def implementation(self) -> Literal["hooked", "bridge"]: ...
    @property
    def name(self) -> str: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def d_head(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def d_mlp(self) -> int: ...
    @property
    def d_vocab(self) -> int: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def gated(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def soft(self) -> SoftPrompt | None: ...
    @property
    def words_before(self) -> list[int]: ...
    @property
    def words_after(self) -> list[int]: ...

    def fingerprint(self) -> str:
        """64 hex digits that differ when a weight, a size or the vocabulary differs."""
        ...

    def encode(self, text: str, *, chat: bool = False) -> list[int]:
        """Token ids as ``model.to_tokens(text)`` gives them, but never truncated."""
        ...

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of the bare text: no special token is added."""
        ...

    def decode(self, token_id: int) -> str:
        """The text of one token, with its leading space."""
        ...

    def hook_names(self) -> list[str]:
        """Every name a reader may be attached to, aliases included."""
        ...

    def weight_out(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """The layer's MLP output matrix: row i is what neuron i writes."""
        ...

    def unembed_vectors(
        self,
    ) -> tuple[Float[Tensor, "d_model d_vocab"], Float[Tensor, " d_vocab"] | None]:
        """The vocabulary projection and its bias (None where it has none)."""
        ...

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
        *,
        readers: Mapping[str, Reader],
        logits_at: Int[Tensor, "batch k"] | None,
        editors: Mapping[str, Editor] = ...,
    ) -> Float[Tensor, "batch k d_vocab"] | None:
        """Logits at the given padded positions, or None; readers are called on the way.

        An editor's activation takes the place of the model's own from there on; a reader at the
        same hook point sees the edited one.
        """
        ...
