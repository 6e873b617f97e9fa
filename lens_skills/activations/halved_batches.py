"""A batch that does not fit into memory is read in halves; who reads it sees one batch."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from lens_skills.activations.forward import Encoded
from lens_skills.errors import RunError
from lens_skills.models.memory import out_of_memory, release

_T = TypeVar("_T")


class HalvedBatches:
    """Runs the batches of one pass in as many parts as memory takes.

    Attributes:
        most: How many examples are run at once; None: whole batches.
    """

    def __init__(self, device: Any, give_up: Callable[[], None] = lambda: None) -> None:
        """``give_up`` drops what could be made again, before a part is tried anew."""
        self.device, self.give_up = device, give_up
        self.most: int | None = None

    def run(self, batch: Sequence[Encoded], read: Callable[[Sequence[Encoded]], _T]) -> list[_T]:
        """What ``read`` gives of the batch, in one part or in several, in order.

        Raises:
            RunError: Memory runs out at a single example.
        """
        done: list[_T] = []
        start = 0
        while start < len(batch):
            size = min(self.most or len(batch), len(batch) - start)
            part = batch[start : start + size]
            try:
                done.append(read(part))
                start += size
                continue
            except Exception as error:
                if not out_of_memory(error):
                    raise
                said = str(error).strip().split("\n")[0] or type(error).__name__
            # Outside of the handler, which holds what the pass had made.
            self.give_up()
            release(self.device)
            if size == 1:
                raise RunError(
                    f"memory ran out at a single example ({part[0].id!r}, "
                    f"{len(part[0].prompt_tokens):,} tokens; {said:.120}). Shorten or drop it, "
                    "ask for less at once (layers, tokens), or open the model with "
                    "dtype='bfloat16' or on another device."
                )
            if self.most is None:
                warnings.warn(
                    f"memory ran out at {size} examples at once; {size // 2} are run from here "
                    "on, and fewer where that is too many. Nothing is lost: numbers are the same "
                    "up to rounding. ls.config(batch_size=…) bounds them beforehand.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self.most = size // 2
        return done


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Tensors of several examples each as one; where positions differ in number, filled with 0."""
    if len(parts) == 1:
        return parts[0]
    widest = max(part.shape[1:2] for part in parts)
    filled = []
    for part in parts:
        more = part.new_zeros(len(part), *widest, *part.shape[2:])
        if widest:
            more[:, : part.shape[1]] = part
        filled.append(more if widest else part)
    return torch.cat(filled)
