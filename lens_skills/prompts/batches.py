"""`TrainingBatch`: examples as tokens, and where in them soft prompt and answer stand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations.encoding import Encoded
from lens_skills.activations.readout import answer_places, pad_left


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Examples of like length, padded on the left; the answer follows the soft prompt.

    Attributes:
        tokens: Input, soft prompt (as the lens's own words) and all but the last answer token.
        mask: Which of them are real.
        suffix_columns: Where each vector after the input stands.
        predicting: Where each answer token is predicted; short answers repeat the last place.
        targets: The answer's tokens.
        counts: Which of them there are.
    """

    tokens: Int[Tensor, "example pos"]
    mask: Bool[Tensor, "example pos"]
    suffix_columns: Int[Tensor, "example suffix"]
    predicting: Int[Tensor, "example k"]
    targets: Int[Tensor, "example k"]
    counts: Bool[Tensor, "example k"]

    @classmethod
    def of(cls, lens: Any, encoded: Sequence[Encoded]) -> "TrainingBatch":
        """The examples as one batch; ``lens`` is read with a soft prompt."""
        answers = [list(item.answer_tokens or ()) for item in encoded]
        rows = [[*e.prompt_tokens.tolist(), *a[:-1]] for e, a in zip(encoded, answers, strict=True)]
        tokens, mask = pad_left(rows, lens.pad_id, lens.device)
        predicting = answer_places([len(a) - 1 for a in answers], tokens.shape[1])
        sizes = torch.tensor([len(answer) for answer in answers])
        targets = [answer + answer[-1:] * (int(sizes.max()) - len(answer)) for answer in answers]
        # The first answer token is predicted at the last vector.
        back = torch.arange(len(lens.words_after) - 1, -1, -1)
        return cls(
            tokens=tokens,
            mask=mask,
            suffix_columns=(predicting[:, :1] - back).to(lens.device),
            predicting=predicting.to(lens.device),
            targets=torch.tensor(targets, device=lens.device),
            counts=(torch.arange(int(sizes.max())) < sizes[:, None]).to(lens.device),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def ragged(self) -> bool:
        """Whether its rows differ in length, of the input or of the answer."""
        return not bool(self.mask.all() & self.counts.all())

    def losses(
        self, logits: Float[Tensor, "example k d_vocab"]
    ) -> tuple[Float[Tensor, " example"], Bool[Tensor, " example"]]:
        """-ln p(answer) of each example (nats), and whether all its tokens are first choices."""
        shares = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        each = shares.gather(-1, self.targets[..., None])[..., 0]
        loss = -torch.where(self.counts, each, 0.0).sum(-1)
        return loss, ((shares.argmax(-1) == self.targets) | ~self.counts).all(-1)


def training_batches(
    lens: Any, encoded: Sequence[Encoded], batch_size: int
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
        TrainingBatch.of(lens, ordered[at : at + batch_size])
        for at in range(0, len(ordered), batch_size)
    )
