"""Neurons and the model's confidence on text that has nothing to do with the task."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Metric, confidence
from lens_skills.activations.continuations import pad_left
from lens_skills.activations.forward import NOTHING, encode_examples
from lens_skills.activations.stream import batches
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import ModelAdapter, keep_activation

_TEXTS_TOGETHER = 4  # texts whose logits, at every token, are held at once
SHORTEST = 3  # words before a text may be cut: with fewer there is nothing to go on


@dataclass(frozen=True, eq=False)
class NeutralText:
    """What neurons and the next-token prediction do at every token of neutral texts.

    Attributes:
        values: Activations, one row per neuron, one column per token.
        metric: The metric at the same tokens.
        metric_name: Which: the one asked for, or minus the entropy where it needs an answer.
        groups: The text of each token.
        unigram: The model's mean next-token distribution over these tokens.
    """

    values: Float[Tensor, "neuron token"]
    metric: Float[Tensor, " token"]
    metric_name: str
    groups: tuple[str, ...]
    unigram: Float[Tensor, " d_vocab"]


def read_neutral_text(
    adapter: ModelAdapter, texts: Sequence[str], neurons: Int[Tensor, "neuron 2"], metric: Metric
) -> NeutralText:
    """One pass over the texts; the beginning-of-sequence token is not counted.

    Raises:
        LensSkillsError: Texts that are a single text or none.
    """
    if isinstance(texts, str) or len(texts) < 2:
        raise LensSkillsError(
            "neutral= takes several texts, one string each, so that there is an interval over "
            "them. None takes the sixty sentences that come with the project."
        )
    own = metric.reads == {"logits"}
    chosen = metric if own else confidence("entropy")
    examples = [Example(id=f"text {place}", prompt=text) for place, text in enumerate(texts)]
    encoded = encode_examples(adapter, examples, answers=False)
    values, numbers, groups = [], [], []
    total = torch.zeros(adapter.d_vocab, dtype=torch.float64)
    layers = neurons[:, 0].unique().tolist()
    for batch in batches(encoded, NOTHING, batch_size=_TEXTS_TOGETHER, progress=False):
        tokens, mask = pad_left(
            [item.prompt_tokens.tolist() for item in batch], adapter.pad_id, adapter.device
        )
        width = tokens.shape[1]
        seen: dict[int, Tensor] = {}
        logits = adapter.forward(
            tokens,
            mask,
            readers={
                f"blocks.{layer}.{DEFAULT_SITE}": keep_activation(seen, layer) for layer in layers
            },
            logits_at=repeat(torch.arange(width), "pos -> batch pos", batch=len(batch)),
        )
        assert logits is not None, "logits were asked for"
        for row, item in enumerate(batch):
            first = width - len(item.prompt_tokens) + (1 if item.has_bos else 0)
            here = logits[row, first:]
            numbers.append(chosen(here, [item] * len(here)).double().cpu())
            total += here.double().softmax(-1).sum(0).cpu()
            groups += [item.id] * len(here)
            own_tokens = [seen[layer][row, first:, index] for layer, index in neurons.tolist()]
            values.append(rearrange(own_tokens, "neuron token -> neuron token").double().cpu())
    found = torch.cat(numbers)
    return NeutralText(
        values=torch.cat(values, dim=1),
        metric=found if own else -found,
        metric_name=chosen.name if own else "minus the entropy",
        groups=tuple(groups),
        unigram=total / total.sum(),
    )


def cut_texts(texts: Sequence[str], *, per_text: int = 2, seed: int = 0) -> list[Example]:
    """Beginnings of the texts that break off after some word: places to predict the next one.

    Each text is a group. A text of too few words is taken whole.

    >>> [example.prompt for example in cut_texts(["one two three four"], per_text=1)]
    ['one two three']
    """
    examples = []
    for place, text in enumerate(texts):
        words = text.split(" ")
        ends = list(range(SHORTEST, len(words))) or [len(words)]
        drawn = random.Random(f"{seed} {text}").sample(ends, min(per_text, len(ends)))
        examples += [
            Example(id=f"text {place}/{end}", prompt=" ".join(words[:end]), group=f"text {place}")
            for end in sorted(drawn)
        ]
    return examples


def log_unigram(
    counts: Float[Tensor, " d_vocab"] | None, found: NeutralText, d_vocab: int
) -> Float[Tensor, " d_vocab"]:
    """The log of the unigram distribution: of the counts given (one is added to each), or found.

    Raises:
        LensSkillsError: Counts of another vocabulary, or no counts.
    """
    if counts is None:
        return found.unigram.clamp(min=1e-30).log()
    if len(counts) != d_vocab or bool((counts < 0).any()) or not bool(counts.sum() > 0):
        raise LensSkillsError(
            f"unigram= takes one count (0 or more) for each of the model's {d_vocab:,} tokens, "
            f"not {len(counts):,} numbers. Leave it out to use the model's own mean prediction."
        )
    shares = counts.double() + 1
    return (shares / shares.sum()).log()
