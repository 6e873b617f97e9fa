"""`Sheet`: effects as they are filled in, in memory and, to resume from, on disk."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.scoring.folder import check_replaceable, read_folder, write_folder

SECONDS_BETWEEN = 60.0
_NAME = "sweep"


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


class SheetOnDisk:
    """A folder that keeps a sheet, with what the sweep was asked to do."""

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self.folder = folder
        # Through JSON once, so that tuples and lists compare alike.
        self.asked = json.loads(json.dumps(dict(asked)))
        self.last = time.monotonic()

    @classmethod
    def at(cls, folder: str | Path | None, asked: Mapping[str, Any]) -> "SheetOnDisk | None":
        """A checkpoint in ``folder``, or None where none is wanted.

        Raises:
            LensSkillsError: The folder cannot be written, or holds something else: said before
                the sweep and not after its first minute.
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
        check_replaceable(path, _NAME)
        return cls(path, asked)

    def restore(self, blank: Sheet) -> Sheet:
        """The sheet in the folder, or the blank one where there is none.

        Raises:
            LensSkillsError: The folder holds another sweep.
        """
        if not (self.folder / f"{_NAME}.json").exists():
            return blank
        tensors, plain = read_folder(self.folder, _NAME)
        if plain["asked"] != self.asked:
            changed = [key for key in self.asked if plain["asked"].get(key) != self.asked[key]]
            raise LensSkillsError(
                f"the checkpoint {self.folder} belongs to another sweep (it differs in "
                f"{', '.join(changed)}). Remove it or choose another folder."
            )
        return Sheet(tensors["clean"], tensors["total"], tensors.get("direct"), **plain["sheet"])

    def keep(self, sheet: Sheet, *, now: bool = False) -> None:
        """Saves the sheet if the last save is long enough ago, or at once."""
        if not now and time.monotonic() - self.last < SECONDS_BETWEEN:
            return
        tensors = {"clean": sheet.clean, "total": sheet.total}
        if sheet.direct is not None:
            tensors["direct"] = sheet.direct
        plain = {"whole": sheet.whole, "done": sheet.done}
        write_folder(self.folder, _NAME, tensors, {"asked": self.asked, "sheet": plain})
        self.last = time.monotonic()

    def remove(self) -> None:
        """Deletes the checkpoint: the sweep is done."""
        if (self.folder / f"{_NAME}.json").exists():
            retired = self.folder.with_name(f".{self.folder.name}-done")
            os.replace(self.folder, retired)
            shutil.rmtree(retired)
