"""Results on disk: saved and read back as they were, whole or not at all; and where they come from.

Every result is a frozen dataclass and a `Result`, and is saved by the same rule: its tensors as
safetensors, all else as JSON, which begins with the kind of the result and the number of the
format. The JSON names fields alone and is read by their types, so that others can read it and a
class may move; the parts of a checkpoint are values of no declared type, for the version that
wrote them, and `contents.packed` writes the types down instead. `provenance` says which model,
examples, seed and versions made the numbers: enough to repeat them and to refuse what does not fit.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache, wraps
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
from torch import Tensor

from lens_skills.cards import Tabled, fold
from lens_skills.data import Example, field_of
from lens_skills.errors import LensSkillsError
from lens_skills.file_names import check_links, place_to_read, place_to_write, portable

FORMAT = 2
"""Of saved results. Those of format 1, which had no number, are not read."""

ASKED_FORMAT = 1
"""Of the files that say what a command was asked, beside what it made."""

_NAME, _TENSOR, _TABLE = "result", "$tensor", "$table"
_R = TypeVar("_R", bound="Result")


class Result(Tabled):
    """What a verb hands back: a frozen dataclass that is saved to a folder and read back."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Every card keeps within `CARD_WIDTH`, whatever names stand in it."""
        super().__init_subclass__(**options)
        card = vars(cls).get("__repr__")
        if card is not None:

            @wraps(card)
            def folded(self: Any) -> str:
                return fold(card(self))

            cls.__repr__ = folded  # type: ignore[method-assign]

    def save(self, folder: str | Path) -> Path:
        """Writes the result into a folder of its own, in place of one of its kind saved before.

        ``lens_skills.load(folder)`` reads it. The folder appears whole or not at all.

        Raises:
            LensSkillsError: The folder cannot be written, or holds something else.
        """
        place, kind, packer = place_to_write(folder), type(self).__name__, _Packer()
        check_replaceable(place, _NAME, kind)
        plain = {"kind": kind, "format": FORMAT, "values": packer.fields(self, "")}
        texts = self.readable_files()
        plain |= {"tables": packer.tables, "texts": list(texts)}
        return write_folder(place, _NAME, packer.tensors, plain, texts)

    @classmethod
    def load(cls: type[_R], folder: str | Path) -> _R:
        """What `save` wrote.

        Raises:
            LensSkillsError: Nothing saved there, a result of another kind, or a damaged one.
        """
        with undamaged(place_to_read(folder)):
            kind = kind_of(folder, cls.__name__)
        if kind != cls.__name__:
            raise LensSkillsError(
                f"{folder} holds a saved {kind}, no {cls.__name__}. lens_skills.load(folder) opens "
                "either."
            )
        with undamaged(folder, kind):
            tensors, plain = read_folder(Path(folder), _NAME)
            made = _Unpacker(tensors, plain["tables"]).fields(plain["values"], cls)
            if "digest" not in plain:  # by an earlier version: that its card prints must do
                repr(made)
            return made

    def report(self, path: str | Path, **options: Any) -> Path:
        """Writes the result as one HTML file to read, as `lens_skills.report` does; its path.

        Args:
            path: Of the file, such as ``"report.html"``.
            options: Of `lens_skills.report`: ``model``, ``examples``, ``prompt``, ``neurons``.

        Raises:
            LensSkillsError: The file cannot be written; see `lens_skills.report`.
        """
        return Path(import_module(str(__package__)).report(self, path, **options))

    def readable_files(self) -> Mapping[str, str]:
        """Files to read without this package, which are saved beside: name and content."""
        return {}


@contextmanager
def undamaged(folder: str | Path, what: str = "result") -> Iterator[None]:
    """Whatever a file that was cut or changed makes fail is one error: it is damaged."""
    try:
        yield
    except LensSkillsError:
        raise
    except Exception as error:  # what a damaged file may raise has no bounds
        raise LensSkillsError(
            f"the {what} in {folder} is damaged, or was saved by another version of "
            f"lens-skills ({error!r:.200}). Run the command that made it again."
        ) from error


def is_saved(folder: Path) -> bool:
    """Whether a folder is a saved result."""
    return (folder / f"{_NAME}.json").exists()


def kind_of(folder: str | Path, wanted: str = "result") -> str:
    """The kind of the result in a folder, such as ``"Scores"``.

    Raises:
        LensSkillsError: No folder, nothing saved in it (what it holds instead), a result of an
            older or of a newer format.
    """
    place = Path(folder)
    if not is_saved(place):
        raise LensSkillsError(f"no saved {wanted} in {place}: {_what_is_there(place)}")
    try:
        plain = json.loads((place / f"{_NAME}.json").read_text(encoding="utf-8"))
        kind, number = str(plain["kind"]), int(plain["format"])
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise LensSkillsError(f"{place / _NAME}.json is damaged ({error!r}).") from error
    if number != FORMAT:
        newer = number > FORMAT
        raise LensSkillsError(
            f"the {kind} in {place} has format {number}; this version of lens-skills reads "
            f"{FORMAT}. {'Update it' if newer else 'Run the command that made it again'}."
        )
    return kind


def _what_is_there(folder: Path) -> str:
    if not folder.is_dir():
        return "it is a file." if folder.exists() else "there is no such folder."
    holds = sorted(path.name for path in folder.iterdir())
    if "asked" in _json(folder / "asked.json"):
        return (
            "it holds work that was interrupted. Run the command that began it again, with the "
            "same checkpoint: it goes on where it stopped."
        )
    for name in holds:
        stem, _, ending = name.rpartition(".")
        if ending == "json" and f"{stem}.safetensors" in holds:
            return (
                f"{name} was saved by an older version of lens-skills (format 1; this one reads "
                f"{FORMAT}). Run the command that made it again."
            )
    inside = [name for name in holds if is_saved(folder / name)]
    if inside:
        return f"it holds the results {', '.join(inside)}. Open one: {str(folder / inside[0])!r}."
    return f"it holds {', '.join(holds[:8]) or 'nothing'}{', …' if len(holds) > 8 else ''}."


def _json(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return plain if isinstance(plain, dict) else {}


_LEAVES = frozenset({str, int, float, bool, type(None)})


class _Packer:
    """A result as plain JSON values, its tensors and tables apart; one that occurs twice is one."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.tables: dict[str, Any] = {}
        self.seen: dict[int, tuple[Any, dict[str, str]]] = {}

    def fields(self, value: Any, place: str) -> dict[str, Any]:
        names = [item.name for item in fields(value) if item.init]
        return {name: self.plain(getattr(value, name), f"{place}{name}") for name in names}

    def plain(self, value: Any, place: str) -> Any:
        if type(value) in _LEAVES:  # nearly all of them: asked first, and quickly
            return value
        if isinstance(value, Tensor | pd.DataFrame):
            if id(value) not in self.seen:
                self._put(value, place)
            return self.seen[id(value)][1]
        if is_dataclass(value):
            return self.fields(value, f"{place}/")
        if isinstance(value, Mapping):
            return {key: self.plain(part, f"{place}/{key}") for key, part in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.plain(part, f"{place}/{n}") for n, part in enumerate(value)]
        return value.item() if isinstance(value, np.generic) else value

    def _put(self, value: Tensor | pd.DataFrame, place: str) -> None:
        if isinstance(value, Tensor):
            # Cloned: views of one storage cannot be written.
            self.tensors[place] = value.detach().cpu().clone().contiguous()
            self.seen[id(value)] = value, {_TENSOR: place}
            return
        columns = {str(name): self.plain(value[name].tolist(), place) for name in value}
        types = {str(name): str(value[name].dtype) for name in value}
        self.tables[place] = {"columns": columns, "types": types, "index": value.index.tolist()}
        self.seen[id(value)] = value, {_TABLE: place}


class _Unpacker:
    """Plain JSON values as the fields of a result say."""

    def __init__(self, tensors: Mapping[str, Tensor], tables: Mapping[str, Any]) -> None:
        self.tensors = tensors
        self.tables = {place: _table(**table) for place, table in tables.items()}

    def fields(self, values: Mapping[str, Any], kind: Any) -> Any:
        hints = _hints(kind)
        unknown = values.keys() - hints.keys()
        if unknown:
            raise KeyError(f"unknown {', '.join(sorted(unknown))}")
        return kind(**{name: self.value(part, hints[name]) for name, part in values.items()})

    def value(self, value: Any, hint: Any) -> Any:
        if isinstance(value, dict) and len(value) == 1:
            if _TENSOR in value:
                return self.tensors[value[_TENSOR]]
            if _TABLE in value:
                return self.tables[value[_TABLE]]
        kind, parts = get_origin(hint), get_args(hint)
        if kind in (Union, UnionType):
            parts = [part for part in parts if part is not type(None)]
            # Where several kinds are possible they are plain values.
            return value if value is None or len(parts) > 1 else self.value(value, parts[0])
        if is_dataclass(hint):
            return self.fields(value, hint)
        if isinstance(value, dict):
            inner = parts[1] if parts else Any
            if inner is Any:  # the rows of a large selection hold a million values
                held = {k: part for k, part in value.items() if isinstance(part, (dict, list))}
                return value | {key: self.value(part, Any) for key, part in held.items()}
            return {key: self.value(part, inner) for key, part in value.items()}
        if isinstance(value, list):
            inner = parts[0] if parts else Any
            made = [self.value(part, inner) for part in value]
            return tuple(made) if kind in (tuple, Sequence) else made
        return value


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind) if item.init}


def _table(columns: dict[str, Any], types: dict[str, str], index: list[Any]) -> pd.DataFrame:
    series = {name: pd.Series(part, dtype=types[name]) for name, part in columns.items()}
    table = pd.DataFrame(series, columns=pd.Index(list(columns)))
    return table if index == list(range(len(table))) else table.set_axis(index)


def write_folder(
    folder: Path,
    name: str,
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    texts: Mapping[str, str] | None = None,
    *,
    durable: bool = False,
) -> Path:
    """Tensors and plain values in a folder that replaces an older one at once.

    ``texts`` are files for people, written beside. With ``durable`` it outlives the machine's
    power, too.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with writable(folder), work_folder(folder) as work:
        try:
            save_file(dict(tensors), work / f"{name}.safetensors")
        except SafetensorError as error:  # what the disk said, in its words
            raise OSError(str(error)) from error
        written = json.loads(json.dumps(plain))
        written["digest"] = _digest(work / f"{name}.safetensors", written)
        (work / f"{name}.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
        for file, text in (texts or {}).items():
            (work / file).write_text(text, encoding="utf-8")
        if durable:
            for path in (*work.iterdir(), work):
                _sync(path)
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


def _sync(path: Path) -> None:
    """What was written there is on the disk itself, where the system can say so."""
    if os.name != "posix" and path.is_dir():
        return
    held = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(held)
    finally:
        os.close(held)


@contextmanager
def writable(folder: str | Path) -> Iterator[None]:
    """Where the disk refuses, says which folder cannot be written, and why."""
    try:
        yield
    except OSError as error:
        raise LensSkillsError(f"{folder} cannot be written: {error}.") from error


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that becomes it at the end, and is gone after an error."""
    with writable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield work
        if work.exists():
            os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_file(path: Path, content: bytes) -> Path:
    """One file, whole or not at all, with the permissions any new file here would have.

    Raises:
        LensSkillsError: The folder cannot be written.
    """
    path = place_to_write(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, work = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(work, 0o666 & ~_umask())  # a temporary file is private
            os.replace(work, path)
        finally:
            Path(work).unlink(missing_ok=True)
    except OSError as error:
        raise LensSkillsError(
            f"{path} cannot be written: {error.strerror or error}. Choose another folder."
        ) from error
    return path


def asked_file(place: Path) -> Path:
    """Where it stands what a command was asked that made ``place``."""
    return place.with_name(f".{place.name}-asked.json")


def write_asked(place: Path, asked: Mapping[str, Any]) -> None:
    """Writes down beside ``place`` what was asked: options by their names.

    Raises:
        LensSkillsError: It cannot be written.
    """
    text = json.dumps({"format": ASKED_FORMAT, "asked": dict(asked)}, default=str)
    write_file(asked_file(place), text.encode())


def read_asked(place: Path) -> dict[str, Any] | None:
    """What `write_asked` wrote; None where nothing is written down.

    Raises:
        LensSkillsError: It is damaged, or of another format (which, and what to do).
    """
    path = asked_file(place)
    otherwise = f"Remove it to take {place.name} as it is, or say --again to make that anew."
    try:
        plain = dict(json.loads(path.read_text(encoding="utf-8")))
        number, asked = plain["format"], dict(plain["asked"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise LensSkillsError(
            f"{path} says what was asked, and is damaged or of another version of lens-skills "
            f"({error!r:.100}). {otherwise}"
        ) from error
    if type(number) is not int or number != ASKED_FORMAT:
        newer = type(number) is int and number > ASKED_FORMAT
        raise LensSkillsError(
            f"{path} has format {str(number)[:20]}; this version of lens-skills reads "
            f"{ASKED_FORMAT}. {'Update lens-skills. Or: r' if newer else 'R'}{otherwise[1:]}"
        )
    return asked


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_replaceable(folder: Path, name: str, kind: str | None = None) -> None:
    """Refuses a folder that holds anything but a saved ``name`` (of this kind, if one is given)."""
    if not folder.exists():
        return
    plain = folder / f"{name}.json"
    if not plain.exists():
        raise LensSkillsError(
            f"{folder} exists and holds no saved {kind or name}. Choose another folder."
        )
    saved = _json(plain)
    texts = saved.get("texts")
    if kind is not None and saved.get("kind") != kind:
        raise LensSkillsError(
            f"{folder} holds a saved {saved.get('kind')}, which saving a {kind} there would lose. "
            "Choose another folder."
        )
    own = {
        f"{name}.json",
        f"{name}.safetensors",
        *(map(str, texts) if isinstance(texts, list) else ()),
    }
    others = sorted(path.name for path in folder.iterdir() if path.name not in own)
    if others:
        raise LensSkillsError(
            f"{folder} holds {others[0]!r} beside the saved {kind or name}, which replacing it "
            "would lose. Choose another folder."
        )


def read_folder(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_folder` wrote, to the byte."""
    from safetensors.torch import load_file

    check_links(folder, [folder / f"{name}.json", folder / f"{name}.safetensors"], f"{name}.json")
    with undamaged(folder, f"saved {name}"):
        plain = dict(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
        # The file's own memory begins anywhere; the last bits of a product depend on where it does.
        tensors = {k: x.clone() for k, x in load_file(folder / f"{name}.safetensors").items()}
        content = {key: part for key, part in plain.items() if key != "digest"}
        made = _digest(folder / f"{name}.safetensors", content)
        if plain.get("digest", made) != made:
            raise ValueError("its content is not what was saved")
        return tensors, plain


def _digest(tensors: Path, plain: Mapping[str, Any]) -> str:
    """Of a saved folder: changed by any change of a number in it."""
    with tensors.open("rb") as file:
        whole = hashlib.sha256()
        while part := file.read(2**20):
            whole.update(part)
    whole.update(json.dumps(plain, sort_keys=True).encode())
    return whole.hexdigest()


def provenance(examples: Sequence[Example], adapter: Any = None) -> dict[str, Any]:
    """Where numbers come from: the model (where one was read), task, split, examples, versions."""
    model: dict[str, Any] = {}
    if adapter is not None:
        model = {
            "model": adapter.name,
            "model_fingerprint": adapter.fingerprint(),
            **adapter.reading,
        }
    return {
        **model,
        "task": getattr(examples, "name", "examples"),
        "split": getattr(examples, "split_name", "all"),
        "recipe": getattr(examples, "recipe", "all"),
        "examples": examples_hash(examples),
        "versions": versions(),
    }


_PACKAGES = ("lens-skills", "transformer-lens", "torch", "transformers", "numpy", "scipy")


def examples_hash(examples: Sequence[Example]) -> str:
    """A hash of the examples' ids, prompts, groups and kinds, in order."""
    digest = hashlib.sha256()
    fields = [field_of(examples, name) for name in ("id", "prompt", "group", "kind")]
    for start in range(0, len(examples), 1024):
        rows = zip(*(column[start : start + 1024] for column in fields), strict=True)
        digest.update(("\0".join(chain.from_iterable(rows)) + "\0").encode())
    return digest.hexdigest()[:16]


def numbers_hash(*tensors: Tensor) -> str:
    """A hash of the numbers in some tensors, in order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of the packages that make the numbers."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    own = import_module(str(__package__)).__version__  # of the code that runs
    found = {"lens-skills": own}
    for package in _PACKAGES[1:]:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


_PLAIN = re.compile(r"((label|covariate):)?[\w-]+(:options)?|[A-Za-z0-9]+(\+[A-Za-z0-9-]+)+")


def file_name(*parts: str) -> str:
    """A name for files on any system: letters, digits, ``-`` and ``_`` only, a long one cut.

    What is neither a plain name, a column's nor units joined by ``+`` ends in a hash of it, so
    that no two have one file; but a column and a plain name that looks like its file
    (``label:plural``, ``label_plural``) do: a name that is made of a name stays as it is.

    >>> file_name("layer_profile", "label:plural")
    'layer_profile-label_plural'
    >>> file_name("label:op=+"), file_name("label:op=*")
    ('label_op__-e31bbc67', 'label_op__-0d5c0001')
    """
    kept: list[str] = []
    for part in parts:
        plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in part)
        if plain != part and not _PLAIN.fullmatch(part):
            digest = hashlib.sha256(part.encode("utf-8", "surrogatepass")).hexdigest()
            plain = f"{plain}-{digest[:8]}"
        kept.append(plain)
    return portable("-".join(kept))
