"""The running sums of a pass on disk, so that an interrupted pass goes on where it stopped."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.scoring.folder import check_replaceable, read_folder, write_folder
from lens_skills.stats.moments import RunningMoments

SECONDS_BETWEEN = 60.0
_SUMS = (
    "column_mean",
    "unit_mean",
    "gram",
    "column_square",
    "cross",
    "square",
    "rotated_square",
)


class Checkpoint:
    """One pass's sums in a folder, with what the pass was asked to do."""

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self.folder = folder
        # Through JSON once, so that tuples and lists compare alike.
        self.asked = json.loads(json.dumps(dict(asked)))
        self.last = time.monotonic()

    @classmethod
    def at(cls, folder: str | Path | None, asked: Mapping[str, Any]) -> "Checkpoint | None":
        """A checkpoint in ``folder``, or None where none is wanted.

        Raises:
            LensSkillsError: The folder cannot be written, or holds something else: said before
                the pass and not after its first minute.
        """
        if folder is None:
            return None
        path = Path(folder)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK):
                raise PermissionError("no right to write there")
        except OSError as error:
            raise LensSkillsError(f"{path} cannot be written: {error}.") from error
        check_replaceable(path, "checkpoint")
        return cls(path, asked)

    def restore(self, running: RunningMoments, values: dict[str, Tensor]) -> int:
        """Puts back the sums and metric values; returns how many batches they hold (0: none).

        Raises:
            LensSkillsError: The folder holds another pass.
        """
        if not (self.folder / "checkpoint.json").exists():
            return 0
        tensors, plain = read_folder(self.folder, "checkpoint")
        if plain["asked"] != self.asked:
            changed = [key for key in self.asked if plain["asked"].get(key) != self.asked[key]]
            raise LensSkillsError(
                f"the checkpoint {self.folder} belongs to another pass (it differs in "
                f"{', '.join(changed)}). Remove it or choose another folder."
            )
        running.weight = float(tensors.pop("weight"))
        for name in _SUMS:
            setattr(running, name, tensors.pop(name).to(running.cross.device))
        for name, numbers in tensors.items():
            values[name.removeprefix("values/")] = numbers
        return int(plain["batches"])

    def keep(self, running: RunningMoments, values: Mapping[str, Tensor], batches: int) -> None:
        """Saves the sums if the last save is long enough ago."""
        if time.monotonic() - self.last < SECONDS_BETWEEN:
            return
        tensors = {name: getattr(running, name).cpu().contiguous() for name in _SUMS}
        tensors["weight"] = torch.tensor(running.weight, dtype=torch.float64)
        tensors |= {f"values/{name}": numbers for name, numbers in values.items()}
        write_folder(self.folder, "checkpoint", tensors, {"asked": self.asked, "batches": batches})
        self.last = time.monotonic()

    def remove(self) -> None:
        """Deletes the checkpoint: the pass is done."""
        if (self.folder / "checkpoint.json").exists():
            retired = self.folder.with_name(f".{self.folder.name}-done")
            os.replace(self.folder, retired)
            shutil.rmtree(retired)
