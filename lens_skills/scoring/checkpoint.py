"""What an interrupted pass has done so far, on disk, so that it goes on where it stopped."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.folder import check_replaceable, read_folder, write_folder

SECONDS_BETWEEN = 60.0


class Checkpoint:
    """A folder with one pass's work so far and what the pass was asked to do."""

    def __init__(self, folder: Path, asked: Mapping[str, Any], name: str) -> None:
        self.folder, self.name = folder, name
        # Through JSON once, so that tuples and lists compare alike.
        self.asked = json.loads(json.dumps(dict(asked)))
        self.last = time.monotonic()

    @classmethod
    def at(
        cls, folder: str | Path | None, asked: Mapping[str, Any], *, name: str = "checkpoint"
    ) -> "Checkpoint | None":
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
        check_replaceable(path, name)
        return cls(path, asked, name)

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was kept, or None where nothing was.

        Raises:
            LensSkillsError: The folder holds another pass.
        """
        if not (self.folder / f"{self.name}.json").exists():
            return None
        tensors, plain = read_folder(self.folder, self.name)
        if plain["asked"] != self.asked:
            changed = [key for key in self.asked if plain["asked"].get(key) != self.asked[key]]
            raise LensSkillsError(
                f"the checkpoint {self.folder} belongs to another pass (it differs in "
                f"{', '.join(changed)}). Remove it or choose another folder."
            )
        return tensors, plain

    def due(self) -> bool:
        """Whether the last save is long enough ago."""
        return time.monotonic() - self.last >= SECONDS_BETWEEN

    def write(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Keeps the work so far in place of what was kept before."""
        write_folder(self.folder, self.name, tensors, {"asked": self.asked, **plain})
        self.last = time.monotonic()

    def remove(self) -> None:
        """Deletes the checkpoint: the pass is done."""
        if (self.folder / f"{self.name}.json").exists():
            retired = self.folder.with_name(f".{self.folder.name}-done")
            os.replace(self.folder, retired)
            shutil.rmtree(retired)
