"""The cache of converted GGUF files: one folder per content, whole or not there at all."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from lens_skills.errors import LensSkillsError
from lens_skills.models.gguf_metadata import check_carried, check_whole
from lens_skills.models.gguf_reading import read_once
from lens_skills.models.gguf_weights import Weights, one_by_one
from lens_skills.models.huggingface import quiet, reason_of

FORMAT = 2
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"


def root() -> Path:
    """The cache folder: ``$LENS_SKILLS_CACHE``, else ``lens_skills`` in the user's cache."""
    chosen = os.environ.get("LENS_SKILLS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lens_skills"


def look_ahead(gguf: Path) -> Future[tuple[Path, bool] | None]:
    """The folder of ``gguf`` in the cache, and whether it is intact; None where it cannot be read.

    Looked at while the caller does other things: half a gigabyte is hashed in the time in which the
    libraries are imported.
    """

    found: Future[tuple[Path, bool] | None] = Future()

    def look() -> None:
        try:
            check_gguf(gguf)
            entry = entry_of(gguf)
            found.set_result((entry, intact(entry)))
        except Exception:
            found.set_result(None)  # `converted` says why

    # A daemon: whoever gives up does not wait for the hash of a file.
    Thread(target=look, name="lens-skills-hash", daemon=True).start()
    return found


def converted(gguf: Path, ahead: Future[tuple[Path, bool] | None] | None = None) -> Path:
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
    looked = None if ahead is None else ahead.result()
    entry, whole = (entry_of(gguf), False) if looked is None else looked
    if whole:
        return entry
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
    from transformers import AutoTokenizer

    print(
        f"lens_skills: converting {gguf.name} once (seconds; minutes for gigabytes), into {entry}",
        file=sys.stderr,
    )
    place = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        with quiet(), read_once():
            with _readable(gguf):
                shell = check_whole(gguf)
                check_carried(gguf, shell.config)
                tokenizer = AutoTokenizer.from_pretrained(
                    str(gguf.parent),
                    gguf_file=gguf.name,
                    local_files_only=True,
                    trust_remote_code=False,
                )
                weights = one_by_one(gguf, shell)
            if weights is None:
                _save_model(gguf, place)
                files = {}
            else:
                files = {WEIGHTS: _write(gguf, weights, place / WEIGHTS)}
                _save_configuration(shell, place)
            tokenizer.save_pretrained(place)
        others = (path for path in sorted(place.iterdir()) if path.name not in files)
        files |= {path.name: _sha256(path) for path in others}
        manifest = {"format": FORMAT, "source": gguf.name, "files": files, "versions": _versions()}
        (place / MANIFEST).write_text(json.dumps(manifest, indent=2))
        shutil.rmtree(entry, ignore_errors=True)
        place.replace(entry)
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _readable(gguf: Path) -> Iterator[None]:
    """Nothing; an error of a reader inside becomes one that names the file."""
    try:
        yield
    except LensSkillsError:
        raise
    except Exception as error:  # the readers have no error of their own for a damaged file
        raise LensSkillsError(
            f"{gguf} could not be converted: {reason_of(error)}. It is truncated, or "
            "of an architecture transformers cannot read from GGUF: compare its size "
            "with the original."
        ) from error


def _write(gguf: Path, weights: Weights, target: Path) -> str:
    """The SHA-256 of the weights, written while they are read."""

    def pieces() -> Iterator[Any]:
        with _readable(gguf):
            yield from weights.pieces()

    digest = hashlib.sha256()
    with target.open("wb") as file:
        for piece in pieces():
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _save_configuration(shell: Any, place: Path) -> None:
    """What `save_pretrained` writes beside the weights."""
    shell.config.dtype = "float32"
    shell.config.architectures = [type(shell).__name__]
    shell.config.save_pretrained(place)
    if shell.can_generate():
        shell.generation_config.save_pretrained(place)


def _save_model(gguf: Path, place: Path) -> None:
    """The model built whole by `transformers` and saved."""
    from transformers import AutoModelForCausalLM

    with _readable(gguf):
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            local_files_only=True,
            dtype=torch.float32,
            trust_remote_code=False,
        )
    # The weights are plain float32 now; a model that still says it is quantised would not
    # save, and what it saved would not load.
    model.config.__dict__.pop("quantization_config", None)
    model.is_quantized = False
    model.hf_quantizer = None
    model.save_pretrained(place)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("transformer-lens", "transformers", "torch")}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
