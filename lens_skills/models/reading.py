"""`Reading`: what both lenses share, i.e. text to tokens, names, and hooks that leave no trace."""

import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lens_skills.errors import LensSkillsError
from lens_skills.models.fingerprint import fingerprint
from lens_skills.models.floors import BEFORE_BLOCKS, layer_of
from lens_skills.models.protocol import Editor, Reader
from lens_skills.models.soft_prompt import SoftPrompt
from lens_skills.models.words import Words


class Reading(Words):
    """The part of a `Lens` that does not depend on the library; the two lenses complete it."""

    implementation: Literal["hooked", "bridge"]

    def __init__(self, model: Any) -> None:
        """Wrap ``model`` and change nothing of it."""
        self.model = model
        # The bridge rebuilds its table of names on every access.
        self._points = points = dict(model.hook_dict)
        self._after_blocks = [point for name, point in points.items() if layer_of(name) is None]
        # Walked once: for a bridge that takes longer than a small forward pass.
        self._parts = [part for root in (model, self._modules()) for part in root.modules()]
        first = next(parameter for parameter in self._modules().parameters())
        self.device: torch.device = first.device
        self.dtype: torch.dtype = first.dtype
        self.name = str(model.cfg.model_name)
        self.tokenizer: Any = model.tokenizer
        self.n_layers = int(model.cfg.n_layers)
        self.n_heads = int(model.cfg.n_heads)
        self.d_head = int(model.cfg.d_head)
        self.d_model = int(model.cfg.d_model)
        self.d_vocab = int(self.unembed_vectors()[0].shape[1])
        self.n_ctx = int(model.cfg.n_ctx)
        self.gated = "blocks.0.mlp.hook_pre_linear" in self._points
        self.soft: SoftPrompt | None = None
        self.first_word = max(self.d_vocab, int(model.cfg.d_vocab), len(self.tokenizer or ()))

    def __repr__(self) -> str:
        """Name, implementation and size in one line."""
        return f"Lens({self.name}, {self.implementation}, {self.n_layers} layers, {self.dtype})"

    # What the two libraries do differently.

    def _modules(self) -> nn.Module:
        raise NotImplementedError

    def unembed_vectors(self) -> tuple[Tensor, Tensor | None]:
        """The vocabulary projection and its bias."""
        raise NotImplementedError

    # Sizes.

    @property
    def d_mlp(self) -> int:
        """Neurons in one layer; 0 where the model has no MLP."""
        config = self.model.cfg
        if getattr(config, "attn_only", False):
            return 0  # its configuration states a size all the same
        return int(config.d_mlp or self.weight_out(0).shape[0])

    def weight_out(self, layer: int) -> Tensor:
        """The layer's MLP output matrix ``[d_mlp d_model]``, not copied."""
        weight = getattr(getattr(self.model.blocks[layer], "mlp", None), "W_out", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            raise LensSkillsError(
                f"layer {layer} of {self.name} has no single MLP output matrix (attention "
                "only, or a mixture of experts): what its neurons write cannot be told."
            )
        return weight.detach() if weight.shape[1] == self.d_model else weight.detach().mT

    def fingerprint(self) -> str:
        """64 hex digits that differ when a weight, a size, the words or the soft prompt differ."""
        names = ("n_layers", "n_heads", "d_head", "d_model")
        sizes = {name: getattr(self, name) for name in names}
        weights_out = []
        for layer in range(self.n_layers):
            with suppress(LensSkillsError):  # a layer without an MLP has none
                weights_out.append(self.weight_out(layer))
        found = fingerprint(
            sizes | {"d_mlp": self.d_mlp, "d_vocab": self.d_vocab},
            self._modules().parameters(),
            weights_out,
            self.tokenizer,
        )
        if self.soft is None:
            return found
        # Read with a soft prompt, a model's neurons are no longer the same: results do not mix.
        return hashlib.sha256(f"{found} {self.soft.digest}".encode()).hexdigest()

    # Text.

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise LensSkillsError(
                f"{self.name} has no tokenizer, so text cannot be read. Give it one: "
                "load_model(model, tokenizer=...), or model.set_tokenizer(...)."
            )
        return self.tokenizer

    @property
    def bos_id(self) -> int | None:
        """The token sequences begin with, if there is one."""
        return None if self.tokenizer is None else self.tokenizer.bos_token_id

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, if there is one."""
        return None if self.tokenizer is None else self.tokenizer.eos_token_id

    @property
    def pad_id(self) -> int:
        """A token to fill batches with; the mask, not this value, marks padding."""
        pad = None if self.tokenizer is None else self.tokenizer.pad_token_id
        return next((found for found in (pad, self.eos_id, self.bos_id) if found is not None), 0)

    def encode(self, text: str, *, chat: bool = False) -> list[int]:
        """Token ids as ``model.to_tokens(text)`` gives them, but never truncated.

        Args:
            text: The prompt.
            chat: Render the tokenizer's chat template around it (one user turn, then the
                opening of the answer). The template alone then decides on a BOS token.

        Raises:
            LensSkillsError: No tokenizer, or ``chat=True`` and no chat template.
        """
        tokenizer = self._tokenizer()
        if not chat:
            return [int(token) for token in self.model.to_tokens(text, truncate=False)[0]]
        if not getattr(tokenizer, "chat_template", None):
            raise LensSkillsError(
                f"chat=True, but the tokenizer of {self.name} has no chat template. Leave chat "
                "out, or set model.tokenizer.chat_template."
            )
        turn = [{"role": "user", "content": text}]
        return self.encode_plain(
            tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        )

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of the bare text: no special token is added."""
        return list(self._tokenizer()(text, add_special_tokens=False)["input_ids"])

    def decode(self, token_id: int) -> str:
        """The text of one token, with its leading space."""
        tokenizer = self._tokenizer()

        def text(ids: list[int]) -> str:
            return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

        piece = tokenizer.convert_ids_to_tokens(token_id)
        if isinstance(piece, str) and piece.startswith("\u2581"):
            # SentencePiece drops the space of a first token: decode it as a second one.
            return text([token_id, token_id])[len(text([token_id])) :]
        return text([token_id])

    # Hooks.

    def hook_names(self) -> list[str]:
        """Every name a reader may be attached to, aliases included."""
        return list(self._points)

    def _point(self, name: str) -> Any:
        if name not in self._points:
            near = difflib.get_close_matches(name, self._points, n=3, cutoff=0.5)
            hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
            raise LensSkillsError(
                f"no hook point {name!r} in {self.name}.{hint} "
                f"lens-skills models --hooks lists all {len(self._points)}."
            )
        return self._points[name]

    def _top(self, names: Mapping[str, Reader]) -> int | None:
        """The last block any of the hook points needs, or None where the whole model must run."""
        layers = [layer_of(name) for name in names]
        if any(layer is None for layer in layers):
            return None
        return max((layer for layer in layers if layer is not None), default=BEFORE_BLOCKS)

    def _hooks_after_blocks(self, editors: Mapping[str, Editor]) -> bool:
        """Whether the user's hooks, or editors, are at the final norm or the projection."""
        edited = any(layer_of(name) is None for name in editors)
        return edited or any(getattr(point, "fwd_hooks", None) for point in self._after_blocks)

    @contextmanager
    def _attached(
        self, readers: Mapping[str, Reader], editors: Mapping[str, Editor] | None = None
    ) -> Iterator[set[str]]:
        """Attach editors, then readers, after the user's own hooks; yields the names called."""
        called: set[str] = set()
        hooks = [
            (self._point(name), _hook(name, function, called, edits=functions is editors))
            for functions in (editors, readers)
            for name, function in (functions or {}).items()
        ]
        try:
            for point, hook in hooks:
                point.add_hook(hook)
            yield called
        finally:
            # By identity, never reset_hooks(): the user's own hooks stay.
            for point, hook in hooks:
                for handle in [h for h in point.fwd_hooks if h.user_hook is hook]:
                    handle.hook.remove()
                    point.fwd_hooks.remove(handle)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """No dropout, and gradients only where asked; training flags are put back as they were."""
        training = [module for module in self._parts if module.training]
        try:
            for module in training:
                module.training = False
            with torch.set_grad_enabled(self.differentiable):
                yield
        finally:
            for module in training:
                module.training = True

    def _all_called(self, names: Iterable[str], called: set[str]) -> None:
        silent = sorted(set(names) - called)
        if silent:
            raise LensSkillsError(
                f"hook point {silent[0]!r} of {self.name} was never reached in a forward pass: "
                "TransformerLens leaves it out unless asked (e.g. model.set_use_attn_result(True) "
                "for hook_result), or this architecture has no such step."
            )


def _hook(
    name: str, function: Reader | Editor, called: set[str], *, edits: bool
) -> Callable[..., Tensor | None]:
    # One function per name: the bridge calls a hook with the name of the aliased hook point.
    def call(activation: Tensor, hook: Any) -> Tensor | None:
        called.add(name)
        out = function(activation)
        return out if edits else None

    return call
