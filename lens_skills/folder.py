"""A result in a folder of its own: safetensors and JSON, whole or not there."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

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
