"""One batch through the model: tokens padded, hooks fed, metrics computed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations.encoding import Encoded
from lens_skills.activations.metrics import Metric
from lens_skills.activations.plan import Plan, refuse_non_finite
from lens_skills.activations.readout import (
    Continuation,
    Editing,
    Readout,
    answer_places,
    pad_left,
    placed,
    score_continuation,
    score_extra,
)
from lens_skills.models import Reader


def forward_batch(
    lens: Any,
    batch: Sequence[Encoded],
    plan: Plan,
    metrics: Sequence[Metric],
    known: Mapping[str, Tensor],
    readers: Mapping[str, Reader],
    editing: Editing | None = None,
) -> dict[str, Float[Tensor, " batch"]]:
    """The batch's metrics after one forward pass, which feeds the readers and is edited.

    Further passes that a metric needs (foils and options of several tokens) are edited alike.
    """
    extra = [plan.extra(item) for item in batch]
    rows = [[*item.prompt_tokens.tolist(), *more] for item, more in zip(batch, extra, strict=True)]
    tokens, mask = pad_left(rows, lens.pad_id, lens.device)
    places = answer_places([len(more) for more in extra], tokens.shape[1]).to(lens.device)
    logits = lens.forward(
        tokens,
        mask,
        readers=readers,
        logits_at=places if plan.logits else None,
        editors=placed(editing, batch, rows),
    )
    index = torch.tensor([item.index for item in batch])
    values = {name: numbers[index] for name, numbers in known.items()}
    if not plan.logits:
        return values
    readout = _read_out(lens, batch, plan, logits, editing)
    for metric in metrics:
        if not metric.known:
            numbers = metric.of(readout, batch).double().cpu()
            refuse_non_finite(metric.name, numbers, batch)
            values[metric.name] = numbers
    return values


def _read_out(
    lens: Any,
    batch: Sequence[Encoded],
    plan: Plan,
    logits: Float[Tensor, "batch k d_vocab"],
    editing: Editing | None,
) -> Readout:
    first = logits[:, 0]
    answer = foil = options = None
    if plan.answer:
        answers = [item.answer_tokens or () for item in batch]
        answer = score_continuation(lens, logits, answers, stop=plan.stop)
    if plan.foil:
        foils = [item.foil_tokens or () for item in batch]
        foil = score_extra(lens, batch, foils, first, editing)
    if plan.options:
        options = _score_options(lens, batch, first, editing)
    return Readout(first, answer, foil, options)


def _score_options(
    lens: Any,
    batch: Sequence[Encoded],
    logits: Float[Tensor, "batch d_vocab"],
    editing: Editing | None,
) -> tuple[Continuation, ...]:
    """Every option of every example, in batches of the size the pass runs at."""
    pairs = [(row, option) for row, item in enumerate(batch) for option in item.option_tokens]
    total = torch.zeros(len(pairs), dtype=torch.float64)
    for start in range(0, len(pairs), len(batch)):
        part = pairs[start : start + len(batch)]
        rows = [row for row, _ in part]
        options = [option for _, option in part]
        scored = score_extra(lens, [batch[row] for row in rows], options, logits[rows], editing)
        total[start : start + len(part)] = scored.log_probability
    sizes = [len(item.option_tokens) for item in batch]
    none = [torch.zeros(size, dtype=torch.bool) for size in sizes]
    return tuple(
        Continuation(part, no, None) for part, no in zip(total.split(sizes), none, strict=True)
    )
