"""What is trained on, and the loss of a batch as a function of a soft prompt's vectors alone."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations.continuations import pad_left
from lens_skills.activations.forward import Encoded, answer_places
from lens_skills.activations.halved_batches import HalvedBatches
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import SoftPrompt
from lens_skills.models.partial_forward import CannotResume, PartialForward, prefill
from lens_skills.models.rounding import TOLERANCE
from lens_skills.models.row_columns import rows_at
from lens_skills.tasks import Task

_T = TypeVar("_T")
_COARSE = 0.05  # nats per token, in half precision


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Examples of like length, padded on the left; the answer follows the soft prompt.

    Attributes:
        tokens: Input, soft prompt (as the adapter's own words) and all but the last answer token.
        mask: Which of them are real.
        suffix_columns: Where each vector after the input stands.
        predicting: Where each answer token is predicted; short answers repeat the last place.
        targets: The answer's tokens.
        counts: Which of them there are.
        encoded: The examples.
    """

    tokens: Int[Tensor, "example pos"]
    mask: Bool[Tensor, "example pos"]
    suffix_columns: Int[Tensor, "example suffix"]
    predicting: Int[Tensor, "example k"]
    targets: Int[Tensor, "example k"]
    counts: Bool[Tensor, "example k"]
    encoded: tuple[Encoded, ...]

    @classmethod
    def of(cls, adapter: Any, encoded: Sequence[Encoded]) -> "TrainingBatch":
        """The examples as one batch; ``adapter`` is read with a soft prompt."""
        answers = [list(item.answer_tokens or ()) for item in encoded]
        rows = [[*e.prompt_tokens.tolist(), *a[:-1]] for e, a in zip(encoded, answers, strict=True)]
        tokens, mask = pad_left(rows, adapter.pad_id, adapter.device)
        predicting = answer_places([len(a) - 1 for a in answers], tokens.shape[1])
        sizes = torch.tensor([len(answer) for answer in answers])
        targets = [answer + answer[-1:] * (int(sizes.max()) - len(answer)) for answer in answers]
        # The first answer token is predicted at the last vector.
        back = torch.arange(len(adapter.words_after) - 1, -1, -1)
        return cls(
            tokens=tokens,
            mask=mask,
            suffix_columns=(predicting[:, :1] - back).to(adapter.device),
            predicting=predicting.to(adapter.device),
            targets=torch.tensor(targets, device=adapter.device),
            counts=(torch.arange(int(sizes.max())) < sizes[:, None]).to(adapter.device),
            encoded=tuple(encoded),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, adapter: Any, some: Sequence[Encoded]) -> "TrainingBatch":
        """The batch of some of its examples."""
        return self if len(some) == len(self) else TrainingBatch.of(adapter, some)

    @property
    def ragged(self) -> bool:
        """Whether its rows differ in length, of the input or of the answer."""
        return not bool(self.mask.all() & self.counts.all())

    def losses(
        self, logits: Float[Tensor, "example k d_vocab"]
    ) -> tuple[Float[Tensor, " example"], Bool[Tensor, " example"]]:
        """-ln p(answer) of each example (nats), and whether all its tokens are first choices."""
        shares = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        targets, counts = self.targets.to(shares.device), self.counts.to(shares.device)
        each = shares.gather(-1, targets[..., None])[..., 0]
        loss = -torch.where(counts, each, 0.0).sum(-1)
        return loss, ((shares.argmax(-1) == targets) | ~counts).all(-1)


def training_batches(
    adapter: Any, encoded: Sequence[Encoded], batch_size: int
) -> tuple[TrainingBatch, ...]:
    """Batches of like length; within a length the examples are mixed.

    They stay as they are in all epochs, which only order them anew: what a batch's inputs leave in
    the model is then computed once.
    """
    mixed = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(0)).tolist()

    def length(place: int) -> tuple[int, int]:
        item = encoded[place]
        return len(item.prompt_tokens) + len(item.answer_tokens or ()), len(item.prompt_tokens)

    ordered = [encoded[place] for place in sorted(mixed, key=length)]
    return tuple(
        TrainingBatch.of(adapter, ordered[at : at + batch_size])
        for at in range(0, len(ordered), batch_size)
    )


def training_parts(
    examples: Sequence[Example], held_out: float | Sequence[Example]
) -> tuple[Sequence[Example], Sequence[Example]]:
    """What is trained on, and what is only looked at: the same for every seed."""
    task = examples if isinstance(examples, Task) else Task("examples", examples)
    if isinstance(held_out, float | int):
        if not 0 < held_out < 1:
            raise LensSkillsError(
                f"held_out={held_out}: the share of examples to stop by is between 0 and 1, e.g. "
                "0.2; or give those examples themselves."
            )
        train, looked_at = task.split(
            1 - held_out, held_out, seed=0, names=("training", "held-out")
        )
    else:
        train, looked_at = task, Task("held out", held_out)
        shared = set(train.groups) & set(looked_at.groups)
        if shared:
            raise LensSkillsError(
                f"{len(shared)} groups are both trained on and held out ({min(shared)!r}): "
                "split the task by group, task.split(0.8, 0.2)."
            )
    for example in (*train, *looked_at):
        if example.answer is None:
            raise LensSkillsError(
                f"example {example.id!r} has no answer, so there is nothing to train for."
            )
    return train, looked_at


Losses = tuple[Float[Tensor, " example"], Bool[Tensor, " example"]]


class TrainingPasses:
    """How batches are run: from the soft prompt on where that is exact, else whole.

    The keys and values of the input do not depend on what follows it: they are computed once and
    kept, as many as the budget allows.

    Attributes:
        whole: Why every pass runs the whole model (None: only the last columns are run).
        n_bytes: What is kept.
    """

    def __init__(self, adapter: Any, start: SoftPrompt, memory_mb: float) -> None:
        """``adapter`` is the bare model; ``start`` tells how many vectors stand where."""
        self.adapter = adapter
        self.budget = memory_mb * 2**20
        self.n_bytes = 0
        # At the place of a zero vector, what enters the first block is the position's part alone.
        silent = replace(start, suffix=torch.zeros_like(start.suffix))
        self.silent = adapter.with_soft_prompt(silent)
        self.whole: str | None = None
        if len(start.prefix):
            self.whole = "the input is read after a part of the soft prompt"
        self._kept: dict[int, tuple[TrainingBatch, PartialForward]] = {}
        self._parts: dict[tuple[int, int], TrainingBatch] = {}
        self._checked: set[bool] = set()
        self._halves = HalvedBatches(adapter.device, self._give_up)

    def run(self, batch: TrainingBatch, read: Callable[[TrainingBatch], _T]) -> list[_T]:
        """What ``read`` gives of the batch, in one part or in as many as memory takes."""
        return self._halves.run(batch.encoded, lambda part: read(self._part(batch, part)))

    def _part(self, batch: TrainingBatch, some: Sequence[Encoded]) -> TrainingBatch:
        if len(some) == len(batch):
            return batch
        # The same object in every epoch: what its inputs leave in the model is kept by it.
        key = some[0].index, len(some)
        if key not in self._parts:
            self._parts[key] = batch.part(self.silent, some)
        return self._parts[key]

    def _give_up(self) -> None:
        """Drops all that is kept, and keeps half as much from here on."""
        if self.n_bytes:
            self.budget = self.n_bytes / 2
        self._kept.clear()
        self._parts.clear()
        self.n_bytes = 0

    def losses(self, batch: TrainingBatch, prompt: SoftPrompt) -> Losses:
        """Loss and greedy success of each example.

        They can be differentiated by the prompt's vectors, unless gradients are off.
        """
        suffix = self._suffix(batch, prompt)
        if suffix is None:
            return whole_losses(self.adapter, batch, prompt)
        return suffix_losses(suffix, batch, prompt)

    def _suffix(self, batch: TrainingBatch, prompt: SoftPrompt) -> PartialForward | None:
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

    def _check(self, suffix: PartialForward, batch: TrainingBatch, prompt: SoftPrompt) -> None:
        """Nothing; raises `CannotResume` unless the whole model gives the same losses.

        A model that scales its embeddings after the soft prompt has entered is found here.
        """
        with torch.no_grad():
            fast, _ = suffix_losses(suffix, batch, prompt)
            exact, _ = whole_losses(self.adapter, batch, prompt)
        difference = float(((fast - exact).abs() / batch.counts.sum(-1)).max())
        if not difference <= TOLERANCE.get(self.adapter.dtype, _COARSE):
            raise CannotResume(
                f"{self.adapter.name}: the soft prompt run alone differs from the whole model by "
                f"{difference:.1e} nats"
            )
        self._checked.add(batch.ragged)


def suffix_losses(suffix: PartialForward, batch: TrainingBatch, prompt: SoftPrompt) -> Losses:
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


def whole_losses(adapter: Any, batch: TrainingBatch, prompt: SoftPrompt) -> Losses:
    """The losses from a pass of the whole model."""
    logits = adapter.with_soft_prompt(prompt).forward(
        batch.tokens,
        batch.mask,
        readers={},
        logits_at=batch.predicting,
        differentiable=torch.is_grad_enabled(),
    )
    return batch.losses(logits)
