"""`text_damage`: what an edit does to text that has nothing to do with the task."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.activations.encoding import Encoded, encode_examples
from lens_skills.activations.readout import pad_left, placed
from lens_skills.causal.edits import Change
from lens_skills.causal.placement import edited_places, editing_of
from lens_skills.causal.units import Unit
from lens_skills.example import Example
from lens_skills.models import Lens

BATCH_SIZE = 4  # texts whose logits over the whole vocabulary, at every token, are held at once


@cache
def neutral_texts() -> tuple[str, ...]:
    """Sixty plain sentences on many subjects, shipped with the project.

    >>> len(neutral_texts())
    60
    """
    text = files("lens_skills.causal").joinpath("neutral.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def text_damage(
    lens: Lens,
    texts: Sequence[str],
    units: Sequence[Unit],
    changes: Sequence[Change],
    *,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "change text"]:
    """How far each change, made at every token, moves the model's predictions; nats per token.

    For each text the mean over its tokens of KL(clean ‖ edited) = Σ_v p_v (ln p_v − ln q_v) of the
    next-token distributions, ≥ 0. The beginning-of-sequence token is neither edited nor counted.

    Args:
        lens: The model.
        texts: What to read.
        units: The set that is edited.
        changes: Bound edits that are the same for every example (steering, a clamp, a mean).
        batch_size: Texts per forward pass.
    """
    examples = [Example(id=f"text {place}", prompt=text) for place, text in enumerate(texts)]
    encoded = encode_examples(lens, examples, answers=False)
    places = edited_places(lens, encoded, "all")
    damage = torch.zeros(len(changes), len(texts), dtype=torch.float64)
    ordered = sorted(encoded, key=lambda item: len(item.prompt_tokens))
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        index = [item.index for item in batch]
        clean, counted = _log_probabilities(lens, batch, None, units, places)
        for row, change in enumerate(changes):
            other, _ = _log_probabilities(lens, batch, change, units, places)
            divergence = (clean.exp() * (clean - other)).sum(-1).double().clamp(min=0)
            total = (divergence * counted).sum(1) / counted.sum(1)
            damage[row, index] = total.cpu()
    return damage


def _log_probabilities(
    lens: Lens,
    batch: Sequence[Encoded],
    change: Change | None,
    units: Sequence[Unit],
    places: dict[int, list[int]],
) -> tuple[Float[Tensor, "batch pos d_vocab"], Bool[Tensor, "batch pos"]]:
    """Of the next token at every column, and which columns count."""
    rows = [item.prompt_tokens.tolist() for item in batch]
    tokens, mask = pad_left(rows, lens.pad_id, lens.device)
    width = tokens.shape[1]
    logits = lens.forward(
        tokens,
        mask,
        readers={},
        logits_at=repeat(torch.arange(width), "pos -> batch pos", batch=len(batch)),
        editors=placed(None if change is None else editing_of(change, units, places), batch, rows),
    )
    assert logits is not None, "logits were asked for"
    counted = torch.zeros_like(mask)
    for row, item in enumerate(batch):
        start = width - len(rows[row])
        counted[row, [start + place for place in places[item.index]]] = True
    return logits.float().log_softmax(-1), counted
