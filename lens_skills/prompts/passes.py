"""`Passes`: the loss of a batch as a function of a soft prompt's vectors alone."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.models import SoftPrompt
from lens_skills.models.lens import rows_at
from lens_skills.models.suffix import COARSE, TOLERANCE, CannotResume, Suffix, prefill
from lens_skills.prompts.batches import TrainingBatch

Losses = tuple[Float[Tensor, " example"], Bool[Tensor, " example"]]


class Passes:
    """How batches are run: from the soft prompt on where that is exact, else whole.

    The keys and values of the input do not depend on what follows it: they are computed once and
    kept, as many as the budget allows.

    Attributes:
        whole: Why every pass runs the whole model (None: only the last columns are run).
        n_bytes: What is kept.
    """

    def __init__(self, lens: Any, start: SoftPrompt, memory_mb: float) -> None:
        """``lens`` is the bare model; ``start`` tells how many vectors stand where."""
        self.lens = lens
        self.budget = memory_mb * 2**20
        self.n_bytes = 0
        # At the place of a zero vector, what enters the first block is the position's part alone.
        self.silent = _spoken(lens, replace(start, suffix=torch.zeros_like(start.suffix)))
        self.whole: str | None = None
        if len(start.prefix):
            self.whole = "the input is read after a part of the soft prompt"
        self._kept: dict[int, tuple[TrainingBatch, Suffix]] = {}
        self._checked: set[bool] = set()

    def losses(self, batch: TrainingBatch, prompt: SoftPrompt) -> Losses:
        """Loss and greedy success of each example.

        They can be differentiated by the prompt's vectors, unless gradients are off.
        """
        suffix = self._suffix(batch, prompt)
        if suffix is None:
            return whole_losses(self.lens, batch, prompt)
        return suffix_losses(suffix, batch, prompt)

    def _suffix(self, batch: TrainingBatch, prompt: SoftPrompt) -> Suffix | None:
        if self.whole is not None:
            return None
        if id(batch) in self._kept:
            return self._kept[id(batch)][1]
        start = int(batch.suffix_columns.min())
        try:
            suffix = prefill(
                self.silent, batch.tokens, batch.mask, start=start, readers={}, check=False
            )
            del suffix.entering[1:]
            if batch.ragged not in self._checked:
                self._check(suffix, batch, prompt)
        except CannotResume as reason:
            self.whole = str(reason)
            self._kept.clear()
            self.n_bytes = 0
            return None
        if self.n_bytes + suffix.n_bytes <= self.budget:
            self._kept[id(batch)] = batch, suffix  # with the batch, so that its id stays its own
            self.n_bytes += suffix.n_bytes
        return suffix

    def _check(self, suffix: Suffix, batch: TrainingBatch, prompt: SoftPrompt) -> None:
        """Nothing; raises `CannotResume` unless the whole model gives the same losses.

        A model that scales its embeddings after the soft prompt has entered is found here.
        """
        with torch.no_grad():
            fast, _ = suffix_losses(suffix, batch, prompt)
            exact, _ = whole_losses(self.lens, batch, prompt)
        difference = float(((fast - exact).abs() / batch.counts.sum(-1)).max())
        if not difference <= TOLERANCE.get(self.lens.dtype, COARSE):
            raise CannotResume(
                f"{self.lens.name}: the soft prompt run alone differs from the whole model by "
                f"{difference:.1e} nats"
            )
        self._checked.add(batch.ragged)


def suffix_losses(suffix: Suffix, batch: TrainingBatch, prompt: SoftPrompt) -> Losses:
    """The losses from a pass over the last columns alone."""
    base = suffix.entering[0]
    columns = repeat(batch.suffix_columns - suffix.start, "e s -> e s d", d=base.shape[-1])
    vectors = repeat(prompt.suffix.to(base), "s d -> e s d", e=len(base))
    with suffix.differentiable() if torch.is_grad_enabled() else nullcontext():
        # Added: the base holds the positions' part where the vectors stand.
        residual = base.scatter_add(1, columns, vectors)
        out = suffix.run(rearrange(residual, "e c d -> 1 e c d"), 0)
        rows = rows_at(rearrange(out, "1 e c d -> e c d"), batch.predicting - suffix.start)
        return batch.losses(suffix.logits(rows))


def whole_losses(lens: Any, batch: TrainingBatch, prompt: SoftPrompt) -> Losses:
    """The losses from a pass of the whole model."""
    spoken = _spoken(lens, prompt)
    spoken.differentiable = torch.is_grad_enabled()
    return batch.losses(
        spoken.forward(batch.tokens, batch.mask, readers={}, logits_at=batch.predicting)
    )


def _spoken(lens: Any, prompt: SoftPrompt) -> Any:
    """The lens with these very vectors, which may carry gradients and change."""
    spoken = copy.copy(lens)
    spoken.soft = prompt
    return spoken
