"""`Sheet`: effects as they are filled in, in memory and, to resume from, on disk."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.scoring.checkpoint import Checkpoint


@dataclass(eq=False)
class Sheet:
    """The effects measured so far.

    Attributes:
        clean, total, direct: As in `Effects`; zero where nothing was measured yet. ``direct`` is
            None as soon as one part does not define it.
        whole: Why full passes were run, where they were.
        done: How many parts (a batch and a stack of sets) are finished.
    """

    clean: Float[Tensor, " example"]
    total: Float[Tensor, "set example"]
    direct: Float[Tensor, "set example"] | None
    whole: str | None = None
    done: int = 0

    @classmethod
    def blank(cls, n_sets: int, n_examples: int, direct: bool) -> "Sheet":
        """Zeros: what an empty set does."""
        total = torch.zeros(n_sets, n_examples, dtype=torch.float64)
        clean = torch.zeros(n_examples, dtype=torch.float64)
        return cls(clean, total, torch.zeros_like(total) if direct else None)

    @classmethod
    def restore(cls, saved: Checkpoint, blank: "Sheet") -> "Sheet":
        """The sheet that was kept, or the blank one where none was.

        Raises:
            LensSkillsError: The folder holds another sweep.
        """
        kept = saved.read()
        if kept is None:
            return blank
        tensors, plain = kept
        return cls(tensors["clean"], tensors["total"], tensors.get("direct"), **plain["sheet"])

    def keep(self, saved: Checkpoint, *, now: bool = False) -> None:
        """Saves the sheet if the last save is long enough ago, or at once."""
        if not now and not saved.due():
            return
        tensors = {"clean": self.clean, "total": self.total}
        if self.direct is not None:
            tensors["direct"] = self.direct
        saved.write(tensors, {"sheet": {"whole": self.whole, "done": self.done}})
