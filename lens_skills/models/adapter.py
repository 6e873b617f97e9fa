"""`ModelAdapter`: what the other rooms ask of a model, whichever library holds it.

Text to tokens, a soft prompt's vectors among them, hooks that leave no trace, and the fingerprint:
equal weights and vocabulary, equal 64 hex digits.
"""

import copy
import difflib
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lens_skills.errors import LensSkillsError
from lens_skills.models.chat_template import Chat, own_text, render
from lens_skills.models.dictionaries import Dictionary
from lens_skills.models.feature_hooks import counted, placed, refuse_sizes
from lens_skills.models.neurons import NEURON_SITES, layers_without_neurons, refusal
from lens_skills.models.precision import lowered
from lens_skills.models.soft_prompt import SoftPrompt
from lens_skills.models.stored_weights import check_gradients, check_present, checksum

EMBEDDING = "hook_embed"
"""Where token embeddings enter, before positions are added."""

BEFORE_BLOCKS = -1
"""The floor of the embedding's hook points, below block 0."""


def layer_of(name: str) -> int | None:
    """The block of a hook point, `BEFORE_BLOCKS` for the embedding's, None after the last block.

    >>> layer_of("blocks.3.mlp.hook_post"), layer_of("hook_embed"), layer_of("ln_final.hook_scale")
    (3, -1, None)
    """
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return int(block.group(1))
    embedding = re.match(
        r"(hook_embed|hook_pos_embed|hook_tokens|embed\.|pos_embed\.|rotary)", name
    )
    return BEFORE_BLOCKS if embedding else None


ReadHook = Callable[[Tensor], object]
"""Receives the activation at one hook point, ``[batch pos ...]``, and must not change it."""

EditHook = Callable[[Tensor], Tensor]
"""Receives the activation at one hook point and returns a new one in its place."""

NO_EDITORS: Mapping[str, EditHook] = {}


def keep_activation(
    kept: dict[Any, Tensor],
    key: Any,
    part: Callable[[Tensor], Tensor] = lambda activation: activation,
) -> EditHook:
    """A hook that changes nothing and puts the activation, or a part of it, into ``kept``."""

    def keep(activation: Tensor) -> Tensor:
        kept[key] = part(activation)
        return activation

    return keep


class ModelAdapter(ABC):
    """One model, read and never changed; one subclass for each library completes it.

    A soft prompt's vectors are tokens of their own here, with ids past the vocabulary.

    Attributes:
        model: The user's own HookedTransformer or TransformerBridge.
        implementation: ``"hooked"`` or ``"bridge"``.
        name: What the model calls itself.
        tokenizer: The model's tokenizer, or None where it has none.
        n_ctx: The longest sequence of tokens the model takes.
        gated: True where the MLP is ``act(gate) * up``.
        dtype: The parameters' real dtype (a bf16 model's config may claim float32).
        packed: Whether matrices are packed (quantised): what needs them is refused.
        spread: Whether its parts stand on several devices; ``device`` is where tokens go in.
        soft: The soft prompt that is read with every example, if there is one.
        features: Dictionaries by the hook point that their features are (`with_features`).
        chat: Whether prompts are put into the tokenizer's chat template; a text: with this system
            prompt.
        precision: What passes are computed in (`in_precision`); None: the model's own precision.
        n_embeddings: Tokens with an id below it can be read.
        first_word: The id of its first vector: the first one no tokenizer gives.
    """

    implementation: Literal["hooked", "bridge"]

    def __init__(self, model: Any) -> None:
        """Wrap ``model`` and change nothing of it."""
        self.model = model
        # The bridge rebuilds its table of names on every access.
        self._points = points = dict(model.hook_dict)
        self._after_blocks = [point for name, point in points.items() if layer_of(name) is None]
        # Walked once: for a bridge that takes longer than a small forward pass.
        self._parts = [part for root in (model, self._modules()) for part in root.modules()]
        weights = list(self._modules().parameters())
        first = weights[0]
        self.device: torch.device = first.device
        self.dtype: torch.dtype = first.dtype
        self.name = str(model.cfg.model_name)
        check_present(self.name, weights)
        self.packed = not all(weight.is_floating_point() for weight in weights)
        self.spread = len({weight.device for weight in weights}) > 1
        self.tokenizer: Any = model.tokenizer
        self.n_layers = int(model.cfg.n_layers)
        self.n_heads = int(model.cfg.n_heads)
        self.d_head = int(model.cfg.d_head)
        self.d_model = int(model.cfg.d_model)
        self.d_vocab = int(self.unembed_vectors()[0].shape[1])
        table = None
        with suppress(LensSkillsError):  # packed
            table = self.weight_of(getattr(model, "embed", None), "W_E")
        self.n_embeddings = self.d_vocab if table is None else len(table)
        self.n_ctx = int(model.cfg.n_ctx)
        self.gated = "blocks.0.mlp.hook_pre_linear" in self._points
        self.soft: SoftPrompt | None = None
        self.features: Mapping[str, Dictionary] = {}
        self.precision: str | None = None
        self.chat: Chat = False
        self.first_word = max(self.d_vocab, int(model.cfg.d_vocab), len(self.tokenizer or ()))

    def __repr__(self) -> str:
        """Name, implementation and size in one line."""
        size = f"{self.n_layers} layers, {self.dtype}"
        return f"ModelAdapter({self.name}, {self.implementation}, {size})"

    # What the two libraries do differently.

    @abstractmethod
    def _modules(self) -> nn.Module:
        """What holds the parameters."""

    @abstractmethod
    def unembed_vectors(
        self,
    ) -> tuple[Float[Tensor, "d_model d_vocab"], Float[Tensor, " d_vocab"] | None]:
        """The vocabulary projection and its bias (None where it has none)."""

    @abstractmethod
    def _run(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
        readers: Mapping[str, ReadHook],
        logits_at: Int[Tensor, "batch k"] | None,
        editors: Mapping[str, EditHook],
        differentiable: bool,
        after: Any,
        read_at: Int[Tensor, "batch r"] | None,
    ) -> Float[Tensor, "batch k d_vocab"] | None:
        """`forward`, on tokens of the vocabulary alone."""

    @abstractmethod
    def keys_of(
        self, tokens: Int[Tensor, "1 pos"], through: int, readers: Mapping[str, ReadHook]
    ) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each block up to ``through``, of one row without padding."""

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
        *,
        readers: Mapping[str, ReadHook],
        logits_at: Int[Tensor, "batch k"] | None,
        editors: Mapping[str, EditHook] = NO_EDITORS,
        differentiable: bool = False,
        after: Any = None,
        read_at: Int[Tensor, "batch r"] | None = None,
    ) -> Float[Tensor, "batch k d_vocab"] | None:
        """Logits at the given padded positions, or None; readers are called on the way.

        An editor's activation takes the place of the model's own from there on; a reader at the
        same hook point sees the edited one. A differentiable pass can be differentiated by what
        editors and the soft prompt put into it.

        Args:
            tokens, mask: The rows, padded on either side, and which of their tokens are real.
            readers, logits_at, editors, differentiable: As above.
            after: A `KeptPrefix` behind which every row stands; hook points and positions are those
                of the rows alone.
            read_at: The only columns that readers in the last block look at: its MLP then runs
                there, and at ``logits_at``, alone. Hook points inside that MLP give
                ``[batch r+k ...]``, these columns in their order; behind it other columns are void.
        """
        check_shapes(tokens, mask, logits_at)
        if not readers and logits_at is None:
            return None
        tokens, editors = self._spoken(tokens, editors)
        return self._run(tokens, mask, readers, logits_at, editors, differentiable, after, read_at)

    # Sizes.

    @cached_property
    def mlp_widths(self) -> tuple[int, ...]:
        """Neurons of each layer, by its weights and not its configuration; 0 without an MLP."""
        return tuple(map(self._mlp_width, range(self.n_layers)))

    @property
    def d_mlp(self) -> int:
        """Neurons in one layer (the widest); 0 where the model has no MLP."""
        return max(self.mlp_widths, default=0)

    def _mlp_width(self, layer: int) -> int:
        try:
            return int(self.weight_out(layer).shape[0])
        except LensSkillsError:
            # Packed weights: what the projection says of itself.
            out = getattr(getattr(self.model.blocks[layer], "mlp", None), "out", None)
            return int(getattr(getattr(out, "original_component", out), "in_features", 0))

    def device_of(self, layer: int) -> torch.device:
        """Where a block computes: a model may be spread over several devices."""
        return next(self.model.blocks[layer].parameters()).device

    def layers_with(self, site: str) -> tuple[int, ...]:
        """The layers that have a site: all, but those without neurons, or without a dictionary."""
        if found := self.dictionaries_at(site):
            return tuple(found)
        without = layers_without_neurons(self) if site in NEURON_SITES else {}
        return tuple(layer for layer in range(self.n_layers) if layer not in without)

    def check_site(self, at: str = NEURON_SITES[0], layers: Iterable[int] | None = None) -> None:
        """Nothing; raises where a site of these layers (default all) cannot be read.

        Raises:
            LensSkillsError: An encoder; MLP neurons of mixtures of experts, of attention alone, of
                layers of several widths: which layers, and what can be read instead.
        """
        chosen = range(self.n_layers) if layers is None else list(layers)
        refuse_sizes(self.dictionaries_at(at), chosen, at)
        if reason := refusal(self, chosen, at):
            raise LensSkillsError(reason)

    def weight_out(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """The layer's MLP output matrix, not copied: row i is what neuron i writes."""
        weight = self.weight_of(getattr(self.model.blocks[layer], "mlp", None), "W_out")
        if not isinstance(weight, Tensor) or weight.ndim != 2 or self.d_model not in weight.shape:
            raise LensSkillsError(
                f"layer {layer} of {self.name} has no single MLP output matrix (attention "
                "only, or a mixture of experts): what its neurons write cannot be told."
            )
        return weight.detach() if weight.shape[1] == self.d_model else weight.detach().mT

    def weight_of(self, part: Any, name: str) -> Tensor | None:
        """A matrix or bias of a part of the model by TransformerLens's name, None where it is not.

        Raises:
            LensSkillsError: The weights are packed (quantised).
        """
        try:
            weight = getattr(part, name, None)
        except NotImplementedError as error:  # how TransformerLens says it
            raise LensSkillsError(self._packed()) from error
        if isinstance(weight, Tensor) and not weight.is_floating_point():
            raise LensSkillsError(self._packed())
        return weight

    def _packed(self) -> str:
        return (
            f"the weights of {self.name} are packed (quantised): it can be scored, steered and "
            "edited by its activations, but what its matrices read and write cannot be told. Open "
            "the model it was quantised from for that."
        )

    def fingerprint(self) -> str:
        """64 hex digits over sizes, weights, the neurons' order, the vocabulary and a soft prompt.

        HookedTransformer and TransformerBridge share it where the one holds the other's numbers
        regrouped (Llama and its kin): tied matrices count once and all-zero tensors (the biases
        HookedTransformer adds) not at all.
        """
        names = ("n_layers", "n_heads", "d_head", "d_model", "d_mlp", "d_vocab")
        sizes = {name: getattr(self, name) for name in names}
        sums = sorted({checksum(parameter) for parameter in self._modules().parameters()})
        digest = hashlib.sha256(json.dumps(sorted(sizes.items())).encode())
        digest.update(json.dumps([entry for entry in sums if entry[1] or entry[2]]).encode())
        for layer in range(self.n_layers):
            with suppress(LensSkillsError):  # a layer without an MLP has none
                # One column, in order: a permutation of the neurons must not pass as the same.
                column = self.weight_out(layer)[:, 0].contiguous().view(torch.uint8)
                digest.update(column.cpu().numpy().tobytes())
        if self.tokenizer is not None:
            ends = json.dumps([self.bos_id, self.eos_id])
            digest.update(b"[%b, %b]" % (_vocabulary(self.tokenizer), ends.encode()))
        found = digest.hexdigest()
        # Read with a soft prompt, a model's neurons are no longer the same: results do not mix.
        more = [] if self.soft is None else [self.soft.digest]
        more += [f"{name} {one.digest}" for name, one in sorted(self.features.items())]
        for part in more:
            found = hashlib.sha256(f"{found} {part}".encode()).hexdigest()
        return found

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

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt: in a chat those of `rendered`, whose template decides on a BOS.

        Else as ``model.to_tokens(text)`` gives them, but never truncated, and with one BOS token
        where the text begins with it already.

        Raises:
            LensSkillsError: No tokenizer, or a chat template that refuses the prompt.
        """
        tokenizer = self._tokenizer()
        if self.chat:
            return self.encode_plain(self.rendered(text))
        tokens = [int(token) for token in self.model.to_tokens(text, truncate=False)[0]]
        twice = tokens[:2] == [self.bos_id] * 2 and text.startswith(tokenizer.bos_token)
        return self._known(tokens[1:] if twice else tokens)

    def rendered(self, text: str) -> str:
        """The prompt as the chat template writes it, up to the opening of the answer."""
        return render(self._tokenizer(), self.name, self.chat, text)

    def places_in_turn(self, prompt: str, text: str) -> list[int]:
        """The tokens of `encode` that hold the last occurrence of a text in the user's own words.

        Empty where it does not occur there.
        """
        tokenizer, whole = self._tokenizer(), self.rendered(prompt)
        start = whole.rfind(text, *own_text(tokenizer, self.name, self.chat, prompt))
        if start < 0:
            return []
        if not tokenizer.is_fast:
            raise LensSkillsError(
                f"the tokenizer of {self.name} does not say which text a token stands for, so no "
                "span is found in its chat template. Read 'last' or an index."
            )
        found = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        ends = start + len(text)
        return [
            place for place, (a, b) in enumerate(found["offset_mapping"]) if a < ends and b > start
        ]

    @property
    def reading(self) -> dict[str, Any]:
        """How prompts are read, as results keep it: the chat, and its template's hash."""
        if not self.chat:
            return {"chat": False}
        digest = hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()
        return {"chat": self.chat, "template": digest[:16]}

    def in_chat(self, chat: Chat) -> "ModelAdapter":
        """The same model, which reads prompts in its chat template (False: as plain text).

        Raises:
            LensSkillsError: No template, one that refuses a system prompt, an empty one.
        """
        if not isinstance(chat, bool | str) or chat == "":
            raise LensSkillsError(
                f"chat={chat!r}: say True for the chat template, a text for the template with this "
                "system prompt, or False for plain prompts."
            )
        other = copy.copy(self)
        other.chat = chat
        if chat:
            other.rendered("text")  # a template that refuses is refused before anything is run
        return other

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of the bare text: no special token is added."""
        return self._known(list(self._tokenizer()(text, add_special_tokens=False)["input_ids"]))

    def _known(self, ids: list[int]) -> list[int]:
        if ids and max(ids) >= self.n_embeddings:
            raise LensSkillsError(
                f"the tokenizer gives token {max(ids)} ({self.decode(max(ids))!r}), and "
                f"{self.name} has only {self.n_embeddings} embeddings. It is not the tokenizer of "
                "this model, or tokens were added without model.resize_token_embeddings(...)."
            )
        return ids

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

    # The soft prompt.

    def with_soft_prompt(self, prompt: SoftPrompt, *, name: str | None = None) -> "ModelAdapter":
        """The same model read with these very vectors, unchecked, which may carry gradients."""
        other = copy.copy(self)
        other.soft, other.name = prompt, name or self.name
        return other

    @property
    def words_before(self) -> list[int]:
        """The ids of the soft prompt's part before the input."""
        n_before = 0 if self.soft is None else len(self.soft.prefix)
        return list(range(self.first_word, self.first_word + n_before))

    @property
    def words_after(self) -> list[int]:
        """The ids of the soft prompt's part after the input."""
        first = self.first_word + len(self.words_before)
        n_after = 0 if self.soft is None else len(self.soft.suffix)
        return list(range(first, first + n_after))

    def _spoken(
        self, tokens: Int[Tensor, "batch pos"], editors: Mapping[str, EditHook]
    ) -> tuple[Int[Tensor, "batch pos"], Mapping[str, EditHook]]:
        """Tokens of the vocabulary alone, and what puts the soft prompt's vectors in their place.

        The vectors take the place of token embeddings: a learned position embedding is added to
        them as to any token, and rotary positions turn their keys and queries.
        """
        places = (tokens >= self.first_word).to(self.device)
        if self.soft is None or not bool(places.any()):
            return tokens, editors
        vectors = torch.cat([self.soft.prefix, self.soft.suffix]).to(self.device)
        rows = (tokens.to(self.device) - self.first_word).clamp(min=0)
        own = editors.get(EMBEDDING)

        def put(embedded: Tensor) -> Tensor:
            here = places[..., None].to(embedded.device)
            spoken = torch.where(here, vectors[rows].to(embedded), embedded)
            return spoken if own is None else own(spoken)

        plain = tokens.masked_fill(tokens >= self.first_word, self.pad_id)
        return plain, {**editors, EMBEDDING: put}

    # Features of dictionaries.

    def dictionaries_at(self, site: str) -> dict[int, Dictionary]:
        """By layer, the dictionaries whose features are called by this site."""
        found = [one for one in self.features.values() if one.name == site]
        return {one.layer: one for one in sorted(found, key=lambda one: one.layer)}

    def without_features(self) -> "ModelAdapter":
        """The same model without dictionaries."""
        other = copy.copy(self)
        other.features, other.name = {}, self.name.replace(self.says_features, "")
        return other

    @property
    def says_features(self) -> str:
        """What a name adds for its dictionaries; "" for none."""
        return f" with {', '.join(sorted(self.features))}" if self.features else ""

    # Hooks.

    def hook_names(self) -> list[str]:
        """Every name a reader may be attached to, aliases and features included."""
        return [*self._points, *self.features]

    def _point(self, name: str) -> Any:
        if name not in self._points:
            near = difflib.get_close_matches(name, self._points, n=3, cutoff=0.5)
            hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
            raise LensSkillsError(
                f"no hook point {name!r} in {self.name}.{hint} "
                f"lens-skills models --hooks lists all {len(self._points)}."
            )
        return self._points[name]

    def _top(self, names: Mapping[str, ReadHook]) -> int | None:
        """The last block any of the hook points needs, or None where the whole model must run."""
        layers = [layer_of(name) for name in names]
        if any(layer is None for layer in layers):
            return None
        return max((layer for layer in layers if layer is not None), default=BEFORE_BLOCKS)

    def _hooks_after_blocks(self, editors: Mapping[str, EditHook]) -> bool:
        """Whether the user's hooks, or editors, are at the final norm or the projection."""
        edited = any(layer_of(name) is None for name in editors)
        return edited or any(getattr(point, "fwd_hooks", None) for point in self._after_blocks)

    @contextmanager
    def _attached(
        self, readers: Mapping[str, ReadHook], editors: Mapping[str, EditHook] | None = None
    ) -> Iterator[set[str]]:
        """Attach editors, then readers, after the user's own hooks; yields the names called."""
        called: set[str] = set()
        hooks = [
            (self._point(place), counted(name, function, called, edits=edits))
            for name, place, function, edits in placed(self.features, readers, editors or {})
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
    def _evaluating(self, *, differentiable: bool = False) -> Iterator[None]:
        """No dropout, gradients only where asked, and the adapter's precision; all is put back."""
        if differentiable:
            check_gradients(self.name, self._modules().parameters())
        training = [module for module in self._parts if module.training]
        try:
            for module in training:
                module.training = False
            with torch.set_grad_enabled(differentiable), lowered(self):
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


# Of tokenizers, by how many tokens they had: sorting 50,000 of them takes as long as the weights.
_VOCABULARIES: WeakKeyDictionary[Any, tuple[int, bytes]] = WeakKeyDictionary()


def _vocabulary(tokenizer: Any) -> bytes:
    """The tokens and their ids as JSON, in order."""
    size, known = _VOCABULARIES.get(tokenizer, (-1, b""))
    if size != len(tokenizer):
        known = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
        _VOCABULARIES[tokenizer] = (len(tokenizer), known)
    return known


def check_shapes(tokens: Tensor, mask: Tensor, logits_at: Tensor | None) -> None:
    """Nothing; raises where the batch does not fit together or a row is all padding."""
    if tokens.shape != mask.shape:
        raise LensSkillsError(
            f"tokens {tuple(tokens.shape)} and mask {tuple(mask.shape)} differ in shape: "
            "the mask says of every token whether it is real."
        )
    if not bool(mask.any(dim=1).all()):
        raise LensSkillsError("a row of the batch is all padding: its mask has no True.")
    if logits_at is None:
        return
    inside = (logits_at >= 0) & (logits_at < tokens.shape[1])
    if logits_at.shape[0] != tokens.shape[0] or not bool(inside.all()):
        raise LensSkillsError(
            f"logits_at {tuple(logits_at.shape)} does not fit tokens {tuple(tokens.shape)}: "
            "one row per row of tokens, positions counted from 0."
        )
