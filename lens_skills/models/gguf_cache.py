"""The cache of converted GGUF files: one folder per content, whole or not there at all."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from lens_skills.errors import LensSkillsError
from lens_skills.models.gguf_metadata import check_carried, check_whole
from lens_skills.models.gguf_reading import read_once
from lens_skills.models.huggingface import quiet, reason_of

FORMAT = 2
MANIFEST = "manifest.json"


def root() -> Path:
    """The cache folder: ``$LENS_SKILLS_CACHE``, else ``lens_skills`` in the user's cache."""
    chosen = os.environ.get("LENS_SKILLS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lens_skills"


def look_ahead(gguf: Path) -> Future[Path | None]:
    """The intact folder ``gguf`` was converted into, or None, while the caller does other things.

    Half a gigabyte is hashed in the time in which the libraries are imported.
    """

    found: Future[Path | None] = Future()

    def look() -> None:
        try:
            check_gguf(gguf)
            entry = entry_of(gguf)
            found.set_result(entry if intact(entry) else None)
        except Exception:
            found.set_result(None)  # `converted` says why

    # A daemon: whoever gives up does not wait for the hash of a file.
    Thread(target=look, name="lens-skills-hash", daemon=True).start()
    return found


def converted(gguf: Path, ahead: Future[Path | None] | None = None) -> Path:
    """The Hugging Face folder ``gguf`` was converted into, converting it now if need be.

    Args:
        gguf: The file.
        ahead: What `look_ahead` gave for it.

    Safe against a second process (a lock; the folder appears by one rename) and against an
    interruption (what is half done has another name). A damaged folder is built again.

    Raises:
        LensSkillsError: Not a GGUF file, a truncated one, or a cache that cannot be written.
    """
    from filelock import FileLock

    check_gguf(gguf)
    if ahead is not None and (found := ahead.result()) is not None:
        return found
    entry = entry_of(gguf)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock"):
            if not intact(entry):
                for left_over in entry.parent.glob(f".{entry.name}-*"):
                    shutil.rmtree(left_over, ignore_errors=True)
                _build(gguf, entry)
    except OSError as error:
        raise LensSkillsError(
            f"the cache for converted models, {entry.parent}, cannot be written: {error}. "
            "Make room there, or set LENS_SKILLS_CACHE to another folder."
        ) from error
    return entry


def entry_of(gguf: Path) -> Path:
    """The cache folder of this file's content, whether or not it exists."""
    return root() / f"{gguf.stem}-{_sha256(gguf)[:16]}-v{FORMAT}"


def check_gguf(path: Path) -> None:
    """Nothing; raises where the file does not begin as a GGUF file does."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise LensSkillsError(f"{path} cannot be read: {error}.") from error
    if magic != b"GGUF":
        raise LensSkillsError(
            f"{path} is not a GGUF file: it begins with {magic!r}, not b'GGUF'. Pass a .gguf "
            "file, or the folder save_pretrained wrote."
        )


def intact(entry: Path) -> bool:
    """Whether every file of the entry is there with the bytes the manifest names."""
    try:
        files = json.loads((entry / MANIFEST).read_text())["files"]
        return bool(files) and all(_sha256(entry / name) == sha for name, sha in files.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def _build(gguf: Path, entry: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(
        f"lens_skills: converting {gguf.name} once, half a minute to two, into {entry}",
        file=sys.stderr,
    )
    place = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        try:
            with quiet(), read_once():
                check_whole(gguf)
                source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
                model: Any = AutoModelForCausalLM.from_pretrained(
                    str(gguf.parent), dtype=torch.float32, **source
                )
                check_carried(gguf, model.config)
                tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **source)
        except LensSkillsError:
            raise
        except Exception as error:  # the readers have no error of their own for a damaged file
            raise LensSkillsError(
                f"{gguf} could not be converted: {reason_of(error)}. It is truncated, or "
                "of an architecture transformers cannot read from GGUF: compare its size "
                "with the original."
            ) from error
        # The weights are plain float32 now; a model that still says it is quantised would not
        # save, and what it saved would not load.
        model.config.__dict__.pop("quantization_config", None)
        model.is_quantized = False
        model.hf_quantizer = None
        with quiet():
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
        files = {path.name: _sha256(path) for path in sorted(place.iterdir())}
        manifest = {"format": FORMAT, "source": gguf.name, "files": files, "versions": _versions()}
        (place / MANIFEST).write_text(json.dumps(manifest, indent=2))
        shutil.rmtree(entry, ignore_errors=True)
        place.replace(entry)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("transformer-lens", "transformers", "torch")}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
