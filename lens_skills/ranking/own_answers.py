"""`read_own_answers`: what a model answers by itself, and what each neuron contributes meanwhile.

The contribution of a neuron at a token is its CETT. It is averaged over the tokens of the answer,
and over all others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills import settings
from lens_skills.activations import DEFAULT_SITE, find_site
from lens_skills.activations.continuations import pad_left
from lens_skills.activations.forward import Encoded, encode_examples
from lens_skills.checkpoints import part
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.generation.generate import Continuer
from lens_skills.models import ReadHook
from lens_skills.models.memory import free_bytes
from lens_skills.progress import Progress

SMALLEST = 1e-8
"""Added to the norm of what an MLP writes, as in the released code."""


@dataclass(frozen=True, eq=False)
class OwnAnswers:
    """What a model answered, and the mean CETT of every neuron over two kinds of tokens.

    Attributes:
        kept: Places of the examples that were answered at all: a text that ends at once is none.
        tokens: Of each answer.
        log_probabilities: Of each of these tokens (nats).
        answer: Mean CETT over the answer's tokens, 0 and above, without a unit.
        other: Over all other tokens read: the prompt's, without a beginning-of-sequence token.
        layers: The layers read, one block of units each.
        width: Units of one layer.
    """

    kept: Int[Tensor, " row"]
    tokens: tuple[tuple[int, ...], ...]
    log_probabilities: tuple[tuple[float, ...], ...]
    answer: Float[Tensor, "row unit"]
    other: Float[Tensor, "row unit"]
    layers: tuple[int, ...]
    width: int


def read_own_answers(
    adapter: Any,
    examples: Sequence[Example],
    *,
    layers: int | Iterable[int] | None = None,
    n_tokens: int | None = None,
) -> OwnAnswers:
    """The model's own answers, written greedily, and every neuron's CETT while it reads them.

    CETT of neuron j at a token = |a_j| · ‖W_out,j‖ / (‖Σ_k a_k W_out,k + b‖ + 1e-8): how large what
    the neuron writes is beside what its MLP writes. An answer is what is written before a line
    break that follows something, at most ``n_tokens`` tokens. Its tokens are read after the prompt,
    so a neuron is seen at the answer's own tokens: after the first of them is chosen.

    Args:
        adapter: The model (`lens_skills.models.as_adapter`, or `with_soft_prompt`).
        examples: What to answer.
        layers: Which layers (default all).
        n_tokens: The longest answer; default: as many tokens as the longest right answer has.

    Returns:
        `OwnAnswers`; two float32 numbers per example and neuron: 940 MB for 1,000 examples and
        116,736 neurons.

    Raises:
        LensSkillsError: An example without an answer (where ``n_tokens`` is left out), a prompt
            whose answer would not fit the context, too little memory, an MLP without one output
            matrix, no example that is answered.

    Source: Gao et al. 2025, arXiv 2512.01797, and its released code (CETT of the answer's tokens
    and of all others). There another model marks the answer's tokens; up to the line break is ours.
    """
    site = find_site(adapter, DEFAULT_SITE, layers)
    encoded = encode_examples(adapter, examples, answers=n_tokens is None)
    if n_tokens is None:
        for item in encoded:
            if not item.answer_tokens:
                raise LensSkillsError(
                    f"example {item.id!r} has no answer, whose length says how long the model's "
                    "own may be. Give examples with answers."
                )
        n_tokens = max(len(item.answer_tokens or ()) for item in encoded)
    _check_room(adapter, encoded, n_tokens, len(site.layers))
    written = _write(adapter, encoded, n_tokens)
    kept = [item for item in encoded if written[item.index][0]]
    if not kept:
        raise LensSkillsError(
            f"{adapter.name} answers none of {len(encoded)} examples: it ends each text at once. "
            "Give prompts that it continues, or chat=True to a model that was tuned for it."
        )
    rows = {item.index: row for row, item in enumerate(kept)}
    answer = torch.zeros(len(kept), len(site.layers) * adapter.d_mlp)
    other = torch.zeros_like(answer)
    size = settings.batch_size(16)
    reader = _Contributions(adapter, site.layers)
    with Progress(len(kept), "read answers", "examples") as bar:
        for batch in _batches(kept, size):
            answers = [written[item.index][0] for item in batch]
            found = part("contributions", partial(reader.read, batch, answers))
            index = [rows[item.index] for item in batch]
            answer[index], other[index] = found
            bar.update(len(batch))
    return OwnAnswers(
        kept=torch.tensor([item.index for item in kept]),
        tokens=tuple(written[item.index][0] for item in kept),
        log_probabilities=tuple(written[item.index][1] for item in kept),
        answer=answer,
        other=other,
        layers=site.layers,
        width=adapter.d_mlp,
    )


def _batches(encoded: Sequence[Encoded], size: int) -> Iterable[list[Encoded]]:
    ordered = sorted(encoded, key=lambda item: (len(item.prompt_tokens), item.index))
    return (ordered[start : start + size] for start in range(0, len(ordered), size))


def _check_room(adapter: Any, encoded: Sequence[Encoded], n_tokens: int, n_layers: int) -> None:
    for item in encoded:
        if len(item.prompt_tokens) + n_tokens > adapter.n_ctx:
            raise LensSkillsError(
                f"example {item.id!r} has {len(item.prompt_tokens)} tokens and is to be answered "
                f"with up to {n_tokens}, but the model reads at most {adapter.n_ctx}. Shorten it, "
                "or leave out the example with the longest answer."
            )
    needed, free = 8 * len(encoded) * n_layers * adapter.d_mlp, free_bytes()
    if free is not None and needed > free:
        raise LensSkillsError(
            f"the contributions of {n_layers * adapter.d_mlp:,} neurons on {len(encoded):,} "
            f"examples take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Give fewer "
            "examples, or some layers: layers=…"
        )


Answer = tuple[tuple[int, ...], tuple[float, ...]]
"""Its tokens, and the log-probability of each."""


def _write(adapter: Any, encoded: Sequence[Encoded], n_tokens: int) -> dict[int, Answer]:
    """What is answered to each example, by its index."""
    continuer = Continuer(adapter, n_tokens, temperature=0.0, top_p=1.0, seed=0)
    found: dict[int, Answer] = {}
    with Progress(len(encoded), "answer", "examples") as bar:
        for batch in _batches(encoded, settings.batch_size(16)):
            texts = part("answers", partial(continuer.write, batch))
            for item, written in zip(batch, texts, strict=True):
                n = answer_length([adapter.decode(token) for token in written.tokens])
                found[item.index] = (
                    tuple(written.tokens[:n]),
                    tuple(written.log_probabilities[:n]),
                )
            bar.update(len(batch))
    return found


def answer_length(pieces: Sequence[str]) -> int:
    r"""How many of the written tokens are the answer: those before a line break after something.

    >>> answer_length(["1", "2", "\n", "B"]), answer_length(["\n", "7", ".\n"]), answer_length([])
    (2, 2, 0)
    """
    something = False
    for place, piece in enumerate(pieces):
        before = piece.split("\n")[0]
        if "\n" in piece and (something or before.strip()):
            return place + bool(before.strip() and not something)
        something = something or bool(piece.strip())
    return len(pieces)


class _Contributions:
    """CETT of some layers' neurons, averaged over the tokens of a batch."""

    def __init__(self, adapter: Any, layers: Sequence[int]) -> None:
        self.adapter, self.layers = adapter, layers
        self.norms: dict[int, Tensor] = {}
        for layer in layers:
            self.norms[layer] = adapter.weight_out(layer).float().norm(dim=1)

    def read(
        self, batch: Sequence[Encoded], answers: Sequence[Sequence[int]]
    ) -> tuple[Float[Tensor, "batch unit"], Float[Tensor, "batch unit"]]:
        """Mean CETT over the answer's tokens of each example, and over all others."""
        adapter = self.adapter
        rows = [
            [*item.prompt_tokens.tolist(), *answer]
            for item, answer in zip(batch, answers, strict=True)
        ]
        tokens, mask = pad_left(rows, adapter.pad_id, adapter.device)
        own = torch.zeros(mask.shape, dtype=torch.bool)
        rest = mask.cpu().clone()
        for row, (item, answer) in enumerate(zip(batch, answers, strict=True)):
            own[row, -len(answer) :] = True
            rest[row, -len(answer) :] = False
            if item.has_bos:
                rest[row, mask.shape[1] - len(rows[row])] = False
        found: dict[int, Tensor] = {}
        readers = {
            f"blocks.{layer}.{DEFAULT_SITE}": self._reader(layer, torch.stack([own, rest]), found)
            for layer in self.layers
        }
        adapter.forward(tokens, mask, readers=readers, logits_at=None)
        means = torch.stack([found[layer] for layer in self.layers], dim=2)
        both = rearrange(means, "part batch layer unit -> part batch (layer unit)")
        return both[0], both[1]

    def _reader(
        self, layer: int, parts: Bool[Tensor, "part batch pos"], found: dict[int, Tensor]
    ) -> ReadHook:
        matrix = self.adapter.weight_out(layer)
        bias = self.adapter.weight_of(self.adapter.model.blocks[layer].mlp, "b_out")

        def read(activation: Tensor) -> None:
            acts = activation.detach()
            out = acts.to(matrix.dtype) @ matrix
            if bias is not None:
                out = out + bias.detach()
            share = acts.float().abs() / (out.float().norm(dim=-1, keepdim=True) + SMALLEST)
            weight = parts.to(share)
            total = torch.einsum("kbp,bpu->kbu", weight, share)
            mean = total / weight.sum(-1, keepdim=True).clamp(min=1)
            found[layer] = (mean * self.norms[layer]).cpu()

        return read
