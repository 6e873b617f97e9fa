"""What an interrupted pass has done so far, on disk, so that it goes on where it stopped.

A result in a folder of its own: safetensors and JSON, whole or not there.

Where a result comes from: enough to repeat it and to refuse what does not fit.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError


def write_folder(
    folder: Path, name: str, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> Path:
    """A result as safetensors and JSON in a folder that replaces an older one at once."""
    from safetensors.torch import save_file

    with work_folder(folder) as work:
        save_file(dict(tensors), work / f"{name}.safetensors")
        (work / f"{name}.json").write_text(json.dumps(plain, indent=1))
        check_replaceable(folder, name)
        if folder.exists():
            # Moved aside first: an interruption in between loses neither the old nor the new.
            retired = work.with_name(f"{work.name}-old")
            os.replace(folder, retired)
            try:
                os.replace(work, folder)
            except BaseException:
                os.replace(retired, folder)
                raise
            shutil.rmtree(retired)
    return folder


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that becomes it at the end, and is gone after an error."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise LensSkillsError(f"{folder} cannot be written: {error}.") from error
    try:
        yield work
        if work.exists():
            os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def fields_of(result: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A frozen result's tensors and its plain values, by field."""
    values = {item.name: getattr(result, item.name) for item in fields(result)}
    tensors = {name: v.contiguous() for name, v in values.items() if isinstance(v, Tensor)}
    return tensors, {name: value for name, value in values.items() if name not in tensors}


def check_replaceable(folder: Path, name: str) -> None:
    """Refuses a folder that holds anything but a saved ``name``."""
    if not folder.exists():
        return
    own = {f"{name}.json", f"{name}.safetensors"}
    others = sorted(path.name for path in folder.iterdir() if path.name not in own)
    if not (folder / f"{name}.json").exists():
        raise LensSkillsError(f"{folder} exists and holds no saved {name}. Choose another folder.")
    if others:
        raise LensSkillsError(
            f"{folder} holds {others[0]!r} beside the saved {name}, which replacing it would lose. "
            "Choose another folder."
        )


def read_folder(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_folder` wrote."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        plain = json.loads((folder / f"{name}.json").read_text())
        return load_file(folder / f"{name}.safetensors"), plain
    except (OSError, ValueError, SafetensorError) as error:
        raise LensSkillsError(
            f"no saved {name} in {folder} ({error}). Save one with .save({str(folder)!r})."
        ) from error


def file_name(*parts: str) -> str:
    """A name for files: letters, digits, ``-`` and ``_`` only.

    >>> file_name("layer_profile", "label:plural")
    'layer_profile-label_plural'
    """
    kept: Sequence[str] = [
        "".join(c if c.isalnum() or c in "-_" else "_" for c in part) for part in parts
    ]
    return "-".join(kept)


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


_PACKAGES = ("lens-skills", "transformer-lens", "torch", "transformers", "numpy", "scipy")


def examples_hash(examples: Sequence[Example]) -> str:
    """A hash of the examples' ids, prompts, groups and kinds, in order."""
    digest = hashlib.sha256()
    for example in examples:
        parts = (example.id, example.prompt, example.group, example.kind)
        digest.update("\0".join(parts).encode() + b"\0")
    return digest.hexdigest()[:16]


def numbers_hash(*tensors: Tensor) -> str:
    """A hash of the numbers in some tensors, in order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of the packages that make the numbers."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
