"""The families' oracle: the plain Hugging Face model, one unpadded prompt at a time.

Neurons are what enters the MLP's output projection; an edit puts other values there.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# The projection back to the residual stream, of a block's one MLP; experts have several.
READS_NEURONS = re.compile(
    r"\.(\d+)\.(?:mlp\.|ffn\.|feed_forward\.|mlp_block\.)?"
    r"(?:down_proj|c_proj|dense_4h_to_h|fc2|fc_out|w2)$"
)
Edit = Callable[[int, Tensor], Tensor]
Values = Mapping[tuple[int, int], float]


class Plain:
    """A Hugging Face model that is run as it is.

    Attributes:
        neurons: Of each layer that has one MLP, the module that reads its neurons.
        widths: How many neurons each of these layers has.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.neurons = {
            int(found[1]): module
            for name, module in model.named_modules()
            if (found := READS_NEURONS.search(name)) and "expert" not in name and "attn" not in name
        }
        self.widths = {layer: _inputs(module) for layer, module in self.neurons.items()}
        self._known: dict[Any, Any] = {}
        self.n_layers = int(model.config.get_text_config().num_hidden_layers)

    def tokens(self, text: str) -> list[int]:
        """The text's tokens; the tiny tokenizer adds none of its own."""
        return list(self.tokenizer(text).input_ids)

    @contextmanager
    def hooked(self, edit: Edit | None, seen: dict[int, Tensor] | None = None) -> Iterator[None]:
        """Every pass inside has its neurons edited, and kept as they were before."""

        def hook_at(layer: int) -> Callable[..., Any]:
            def hook(module: Any, inputs: tuple[Any, ...]) -> Any:
                flat = inputs[0].ndim == 2  # OPT folds the batch and the positions
                now = inputs[0][None] if flat else inputs[0]
                if seen is not None:
                    seen[layer] = now.detach().clone()
                if edit is None:
                    return None
                new = edit(layer, now.clone())
                return (new[0] if flat else new, *inputs[1:])

            return hook

        handles = [m.register_forward_pre_hook(hook_at(k)) for k, m in self.neurons.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def run(
        self, tokens: list[int], edit: Edit | None = None, embeddings: Tensor | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Log-probabilities ``[pos d_vocab]`` and the neurons ``[pos d_mlp]`` of each layer."""
        seen: dict[int, Tensor] = {}
        with self.hooked(edit, seen):
            if embeddings is not None:
                out = self.model(inputs_embeds=embeddings[None], use_cache=False)
            else:
                out = self.model(input_ids=torch.tensor([tokens]), use_cache=False)
        return out.logits[0].float().log_softmax(-1), {k: v[0] for k, v in seen.items()}

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What a pass gave that was asked for before; implementations are judged by the same."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def read(self, prompt: str) -> tuple[Tensor, dict[int, Tensor]]:
        """`run` of a prompt without edits."""
        return self._once(prompt, lambda: self.run(self.tokens(prompt)))

    def logit_diff(self, example: Any, values: Values | None = None) -> float:
        """Answer's minus foil's logit after the prompt, neurons of its last token put to values."""
        key = (example.prompt, example.answer, tuple((values or {}).items()))

        def make() -> float:
            edit = at_last(values) if values else None
            logs, _ = (
                self.run(self.tokens(example.prompt), edit) if edit else self.read(example.prompt)
            )
            answer, foil = (self.tokens(word)[0] for word in (example.answer, example.foil))
            return float(logs[-1, answer] - logs[-1, foil])

        return self._once(key, make)

    def write(self, prompt: str, values: Values, n_tokens: int, ends: frozenset[int]) -> list[int]:
        """The likeliest continuation, everything computed anew for every token.

        The last prompt token and all that follow have neurons held at values.
        """

        def make() -> list[int]:
            tokens = self.tokens(prompt)
            edit, written = from_column(values, len(tokens) - 1), list[int]()
            while len(written) < n_tokens:
                token = int(self.run([*tokens, *written], edit)[0][-1].argmax())
                if token in ends:
                    break
                written.append(token)
            return written

        return self._once((prompt, "written", tuple(values.items()), n_tokens), make)

    def preferred(
        self, prompt: str, values: Values, wanted: list[int], found: list[int], end: int = 2
    ) -> float:
        """By how many nats the first token that differs is less likely than the likeliest; or 0."""
        pairs = enumerate(zip([*wanted, end], [*found, end], strict=False))
        first = next((k for k, (a, b) in pairs if a != b), None)
        if first is None:
            return 0.0
        tokens = self.tokens(prompt)
        edit = from_column(values, len(tokens) - 1)
        logs = self.run([*tokens, *wanted[:first]], edit)[0][-1]
        return float(logs.max() - logs[[*found, end][first]])

    @torch.no_grad()
    def loss(self, example: Any, suffix: Tensor) -> float:
        """-ln p(answer) after the prompt and the vectors, in place of token embeddings."""
        embed = self.model.get_input_embeddings()
        prompt, answer = self.tokens(example.prompt), self.tokens(example.answer)
        read = torch.cat([embed(torch.tensor(prompt)), suffix, embed(torch.tensor(answer))])
        between = slice(len(prompt), len(prompt) + len(suffix))
        # BLOOM normalises embeddings: vectors are what its blocks read, as a position's are.
        norm = getattr(self.model.base_model, "word_embeddings_layernorm", None)

        def put(module: Any, inputs: Any, out: Tensor) -> Tensor:
            return torch.cat([out[:, : between.start], suffix[None], out[:, between.stop :]], 1)

        handle = norm and norm.register_forward_hook(put)
        logs, _ = self.run([], embeddings=read)
        if handle:
            handle.remove()
        start = between.stop - 1
        return -float(sum(logs[start + k, token] for k, token in enumerate(answer)))


def at_last(values: Values) -> Edit:
    """The edit that puts these values at (layer, neuron), at the last position."""
    return from_column(values, -1)


def from_column(values: Values, column: int) -> Edit:
    """The edit that puts these values at (layer, neuron), from a position on."""

    def edit(layer: int, now: Tensor) -> Tensor:
        for (place, neuron), value in values.items():
            if place == layer:
                now[:, column:, neuron] = value
        return now

    return edit


def _inputs(module: Any) -> int:
    """How many inputs a linear map takes; GPT-2's is transposed."""
    return int(getattr(module, "in_features", None) or module.weight.shape[0])
