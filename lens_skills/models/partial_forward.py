"""`prefill`: a batch's clean pass, whose last columns can then run again (`PartialForward`)."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_skills.models.adapter import ReadHook, check_shapes
from lens_skills.models.branches import Branches
from lens_skills.models.kept_prefix import KeptPrefix
from lens_skills.models.partial_bridge import BridgePartialForward
from lens_skills.models.partial_hooked import HookedPartialForward
from lens_skills.models.partial_run import CannotResume, PartialForward
from lens_skills.models.user_hooks import watched


def prefill(
    adapter: Any,
    tokens: Int[Tensor, "example pos"],
    mask: Bool[Tensor, "example pos"],
    *,
    start: int,
    readers: Mapping[str, ReadHook],
    branches: Branches | None = None,
    after: KeptPrefix | None = None,
    check: bool = True,
) -> PartialForward:
    """The suffix of a batch from column ``start`` on, after one clean pass that feeds the readers.

    Args:
        adapter: The model.
        tokens: Padded on the left; behind a prefix on the right.
        mask: Which of them are real.
        start: The first column to be run again.
        readers: Called on the way; they see whole rows, as in `ModelAdapter.forward`.
        branches: What else continues the rows; no reader sees it.
        after: What all rows begin with, run before: readers see the columns behind it alone, and
            ``start`` is one of those.
        check: Whether to run it once and compare with an ordinary pass over some of the rows;
            without, only what is known beforehand to go wrong is refused, and the caller compares
            what it computes itself.

    Raises:
        CannotResume: The user's own hooks are on the model, or its architecture does not allow
            it, which is found by comparing an unedited run with the clean pass.
    """
    check_shapes(tokens, mask, None)
    if watched(adapter):
        raise CannotResume(
            f"{adapter.name} carries hooks of its user, which would see other shapes"
        )
    kinds = {"hooked": HookedPartialForward, "bridge": BridgePartialForward}
    kind = kinds.get(adapter.implementation)
    if kind is None:
        raise CannotResume(f"a {type(adapter).__name__} runs whole")
    if adapter.spread:
        raise CannotResume(f"the blocks of {adapter.name} stand on several devices")
    if not hasattr(adapter.model, "ln_final"):
        raise CannotResume(f"{adapter.name} has no final norm")
    suffix = kind(adapter, tokens, mask, start, readers, branches, after)
    if not check:
        return suffix
    rows = _tried(mask)
    at = torch.full((len(rows), 1), tokens.shape[1] - 1)
    clean = adapter.forward(tokens[rows], mask[rows], readers={}, logits_at=at)[:, 0]
    suffix.check(clean, rows)
    if branches is not None:
        suffix.check_branches(tokens)
    return suffix


def _tried(mask: Bool[Tensor, "example pos"]) -> list[int]:
    """Rows that stand for all: those of most and of least padding, the first and the last."""
    lengths = mask.sum(1).tolist()
    ends = lengths.index(min(lengths)), lengths.index(max(lengths))
    return sorted({0, len(lengths) - 1, *ends})
