"""`SoftPrompt`: trained vectors that stand among a frozen model's token embeddings."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.results import Result


@dataclass(frozen=True, eq=False)
class SoftPrompt(Result):
    """Vectors read before and after every input, in place of token embeddings.

    Attributes:
        suffix: After the input, before the answer: its activations depend on the input.
        prefix: Before the input (after the beginning-of-sequence token). Attention looks back
            only, so its activations are the same for every input, and no neuron can be scored on
            them; the positions after it feel it all the same.
        model: The model's name.
        model_fingerprint: Of the frozen model it belongs to.
        trained: False for an initial or random prompt, which serves as a control.
        init: How it began.
        seed: Of its beginning and its batches.
        curve: One row per look at the held-out examples: step, epoch, train_loss, held_out_loss
            (mean negative log-likelihood of the answer's tokens, nats), held_out_accuracy.
        provenance: Task, split, ids of the examples it was trained and stopped on, settings.
    """

    suffix: Float[Tensor, "suffix d_model"]
    prefix: Float[Tensor, "prefix d_model"]
    model: str
    model_fingerprint: str
    trained: bool
    init: str
    seed: int
    curve: tuple[dict[str, float], ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        """How many vectors it has."""
        return len(self.suffix) + len(self.prefix)

    @property
    def digest(self) -> str:
        """16 hex digits over the vectors: equal prompts, equal digits."""
        whole = torch.cat([self.prefix, self.suffix]).detach().cpu().contiguous()
        numbers = f"{len(self.prefix)}".encode() + whole.view(torch.uint8).numpy().tobytes()
        return hashlib.sha256(numbers).hexdigest()[:16]

    def frame(self) -> pd.DataFrame:
        """The learning curve: step epoch train_loss held_out_loss held_out_accuracy."""
        names = ["step", "epoch", "train_loss", "held_out_loss", "held_out_accuracy"]
        return pd.DataFrame(list(self.curve), columns=pd.Index(names))

    def __repr__(self) -> str:
        kind = "trained" if self.trained else "untrained"
        parts = [f"{len(self.suffix)} after the input"]
        if len(self.prefix):
            parts.insert(0, f"{len(self.prefix)} before")
        end = ""
        if self.curve:
            best = min(self.curve, key=lambda row: row["held_out_loss"])
            end = (
                f" · held-out loss {best['held_out_loss']:.3f} nats and accuracy "
                f"{best['held_out_accuracy']:.2f} at step {best['step']:.0f}"
            )
        return (
            f"SoftPrompt({kind}, {', '.join(parts)}, from {self.init}, seed {self.seed}, for "
            f"{self.model}{end})"
        )
