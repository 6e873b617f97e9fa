"""`example_pair`: one pair of prompts in its tokens, to show where a circuit's positions are."""

from collections.abc import Sequence
from typing import Any

from lens_skills.activations.excerpts import SOFT
from lens_skills.circuits.paired_cache import PairedCache


def example_pair(caches: Sequence[PairedCache]) -> dict[str, Any]:
    """The longest pair, the first of those: every position of a circuit is a token of it.

    Returns:
        id; prompt and corrupted; tokens and corrupted_tokens, as texts, and token_ids of the
        former, what the model reads before the text included; answer, its first token, and
        answer_id: the example's, or the model's where it has none; probability: the model's of
        that token after the clean prompt.
    """
    cache = max(caches, key=lambda one: max(len(item.prompt_tokens) for item in one.batch))
    row = max(range(len(cache)), key=lambda place: len(cache.batch[place].prompt_tokens))
    item, twin, adapter = cache.batch[row], cache.twins[row], cache.adapter
    leaving = cache.clean.entering[-1][:, -1:]
    odds = cache.clean.suffix.logits(leaving)[row, 0].double().log_softmax(-1)
    answer = item.answer_tokens[0] if item.answer_tokens else int(odds.argmax())

    def texts(tokens: Any) -> list[str]:
        ids = tokens.tolist()
        return [SOFT if token >= adapter.d_vocab else adapter.decode(token) for token in ids]

    return {
        "id": item.id,
        "prompt": item.example.prompt,
        "corrupted": str(item.example.corrupted),
        "tokens": texts(item.prompt_tokens),
        "corrupted_tokens": texts(twin.prompt_tokens),
        "token_ids": item.prompt_tokens.tolist(),
        "answer": adapter.decode(answer),
        "answer_id": answer,
        "probability": float(odds[answer].exp()),
    }
