"""The running sums of a scoring pass, put into a checkpoint and taken out again."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lens_skills.scoring.checkpoint import Checkpoint
from lens_skills.stats.moments import RunningMoments

_SUMS = (
    "column_mean",
    "unit_mean",
    "gram",
    "column_square",
    "cross",
    "square",
    "rotated_square",
)
_WAITING = ("waiting/weights", "waiting/columns", "waiting/units")


def restore_sums(saved: Checkpoint, running: RunningMoments, values: dict[str, Tensor]) -> int:
    """Puts back the sums and metric values; returns how many batches they hold (0: none).

    Raises:
        LensSkillsError: The folder holds another pass.
    """
    kept = saved.read()
    if kept is None:
        return 0
    tensors, plain = kept
    running.weight = float(tensors.pop("weight"))
    for name in _SUMS:
        setattr(running, name, tensors.pop(name).to(running.cross.device))
    if _WAITING[0] in tensors:
        weights, columns, units = (tensors.pop(name).to(running.cross.device) for name in _WAITING)
        running.waiting = [(weights, columns, units)]
    for name, numbers in tensors.items():
        values[name.removeprefix("values/")] = numbers
    return int(plain["batches"])


def keep_sums(
    saved: Checkpoint, running: RunningMoments, values: Mapping[str, Tensor], batches: int
) -> None:
    """Saves the sums if the last save is long enough ago."""
    if not saved.due():
        return
    tensors = {name: getattr(running, name).cpu().contiguous() for name in _SUMS}
    tensors["weight"] = torch.tensor(running.weight, dtype=torch.float64)
    # Rows not yet summed are kept as they wait: summed from here, they would be added up in
    # another order, and a resumed pass would not end in the same bits.
    for name, parts in zip(_WAITING, zip(*running.waiting, strict=True), strict=False):
        tensors[name] = torch.cat(parts).cpu()
    tensors |= {f"values/{name}": numbers for name, numbers in values.items()}
    saved.write(tensors, {"batches": batches})
