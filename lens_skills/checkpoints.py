"""Interrupted work: kept in a folder as it goes; the same call goes on to the same numbers.

A verb made `resumable` takes ``checkpoint=FOLDER``. In the folder stand what was asked
(``asked.json``), the finished parts (`part`) and the states of passes that are still summing
(`Checkpoint`). Everything appears in it whole or not at all, under a name that nothing had before:
a process that is killed leaves what it had kept. Parts compose: what a verb within a verb finishes
is kept in the folder of the outermost.
"""

import errno
import inspect
import json
import os
import re
import shutil
import socket
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from lens_skills import settings
from lens_skills.contents import content, packed, unpacked
from lens_skills.errors import LensSkillsError, RunError
from lens_skills.file_names import check_links, place_to_write
from lens_skills.results import file_name, read_folder, versions, write_folder

SECONDS_BETWEEN = 60.0
"""Between two writings of a state, or of finished parts: about so much work is lost at most."""

_ASKED, _LOCK, _HOLDER = "asked.json", ".lock", ".holder.json"
_PARTS, _STATE = "parts", "state"
_FORMAT = 1
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

Verb = TypeVar("Verb", bound=Callable[..., Any])
Made = TypeVar("Made")

_WORK: ContextVar["Work | None"] = ContextVar("work", default=None)


def resumable(*, free: Sequence[str] = ()) -> Callable[[Verb], Verb]:
    """Makes a verb keep its work in ``checkpoint=FOLDER`` and go on from there.

    The folder is removed once the verb is done. Interrupted (Ctrl-C), it says what is kept.

    Args:
        free: Arguments that may differ when it is called again: nothing kept depends on them.
    """

    def decorate(verb: Verb) -> Verb:
        signature = inspect.signature(verb)

        @wraps(verb)
        def run(*args: Any, **options: Any) -> Any:
            folder, work = options.get("checkpoint"), _WORK.get()
            if work is not None and folder is not None and Path(folder) == work.folder:
                folder = None
            if folder is None and work is None:
                try:
                    return verb(*args, **options)
                except KeyboardInterrupt as stopped:
                    if stopped.args:  # a verb within this one has said it
                        raise
                    raise KeyboardInterrupt(_kept(verb.__name__, None)) from None
            asked = _contents(signature, args, options, free)
            if folder is None:
                assert work is not None
                work.check_call(verb.__name__, asked)
                return verb(*args, **options)
            with working(folder, {"verb": verb.__name__, **asked}):
                return verb(*args, **options)

        run.resumable = True  # type: ignore[attr-defined]
        return run  # type: ignore[return-value]

    return decorate


def _contents(
    signature: inspect.Signature,
    args: tuple[Any, ...],
    options: Mapping[str, Any],
    free: Sequence[str] = (),
) -> dict[str, Any]:
    bound = signature.bind(*args, **options)
    bound.apply_defaults()
    # How examples are batched decides which part holds which.
    given = {"config(batch_size)": settings.batch_size(), **bound.arguments}
    left = {name: value for name, value in given.items() if name not in ("checkpoint", *free)}
    return {name: content(value) for name, value in left.items()}


def check_call(verb: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Nothing; raises where the work that is kept was called with other arguments.

    Of a verb that is not `resumable`, whose parts are kept all the same.
    """
    work = _WORK.get()
    if work is not None and not hasattr(verb, "resumable"):
        work.check_call(verb.__name__, _contents(inspect.signature(verb), args, options))


def _kept(what: str, folder: str | Path | None) -> str:
    if folder is None:
        return (
            f"{what} was stopped and nothing is kept. With checkpoint=FOLDER, the same call goes "
            "on where it was stopped."
        )
    if not Path(folder).exists():
        return f"{what} was stopped before anything was kept: the same again begins anew."
    return (
        f"{what} was stopped. What it has done is kept in {folder}: the same again goes on there."
    )


@contextmanager
def working(folder: str | Path, asked: Mapping[str, Any]) -> Iterator["Work"]:
    """Keeps in ``folder`` what is done inside; the folder is removed at the end of it.

    After an error or an interruption it stays, and the same again goes on from there.

    Raises:
        RunError: The folder cannot be written, holds something else or the work of other
            arguments (which), is damaged, or another process is at work in it.
    """
    work = Work(place_to_write(folder), asked)
    token = _WORK.set(work)
    try:
        yield work
    except KeyboardInterrupt as stopped:
        work.close()
        if stopped.args:
            raise
        raise KeyboardInterrupt(_kept(str(asked.get("verb", "it")), folder)) from None
    except BaseException:
        # What failed is said first; that nothing could be written besides is not news.
        with suppress(LensSkillsError):
            work.close()
        work.unlock()
        raise
    else:
        work.remove()
    finally:
        work.unlock()
        _WORK.reset(token)


@contextmanager
def unkept() -> Iterator[None]:
    """Inside, nothing is kept: for what is so small that reading it back takes as long."""
    token = _WORK.set(None)
    try:
        yield
    finally:
        _WORK.reset(token)


def part(name: str, make: Callable[[], Made]) -> Made:
    """What ``make`` gives; where it is kept already, that.

    Parts are known by their name and order, so what is done between them is the same each time.
    Made of tensors, arrays, tables, plain values, and dataclasses of this package.
    """
    work = _WORK.get()
    return make() if work is None else work.part(name, make)


class Work:
    """A folder with what was asked and all that is done of it; one process at a time."""

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self.folder = folder
        self.asked = _through_json(asked)
        self.last = time.monotonic()
        self.inside: list[str] = []
        self.counts: Counter[str] = Counter()
        self.done: dict[str, tuple[Path, Any]] = {}
        self.new: dict[str, Any] = {}
        self.number = 0
        self.held: Any = None
        self._open()

    def _open(self) -> None:
        path = self.folder
        begun = (path / _ASKED).exists()
        if path.exists() and not begun:
            _check_empty(path)
        with _writable(path):
            path.mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK):
                raise PermissionError("no right to write there")
        self._lock()
        try:
            for left in path.glob(".*-*"):  # half written when a process was killed
                shutil.rmtree(left, ignore_errors=True)
            if (path / _ASKED).exists():
                self._check_asked()
                self._read_parts()
            else:
                self._write_asked()
        except BaseException:
            self.unlock()
            raise

    # One process at a time.

    def _lock(self) -> None:
        from filelock import FileLock, Timeout

        path = self.folder / _LOCK
        try:
            while True:
                held = FileLock(path, thread_local=False)
                held.acquire(blocking=False)
                # Another process may have finished, and removed the file, in between.
                if path.exists() and os.path.samestat(os.stat(path), _stat_of(held)):
                    break
                held.release()
                self.folder.mkdir(parents=True, exist_ok=True)
        except Timeout as error:
            raise RunError(
                f"another run is at work in {self.folder}{_holder(self.folder)}. Wait until it "
                "ends or stop it, then give the same call again; or choose another folder."
            ) from error
        except (NotImplementedError, OSError) as error:
            if path.is_dir() or getattr(error, "errno", None) in _NO_ROOM:
                raise RunError(
                    f"{path}, which keeps a second run out, cannot be made: {error}. Remove it, or "
                    "choose another folder."
                ) from error
            warnings.warn(
                f"{self.folder} lies on a file system without locks ({error}): nothing keeps a "
                "second run out of it. Start one at a time.",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        self.held = held
        said = {"pid": os.getpid(), "host": socket.gethostname()}
        with suppress(OSError):
            (self.folder / _HOLDER).write_text(json.dumps(said), encoding="utf-8")

    def unlock(self) -> None:
        """Lets other processes in."""
        if self.held is not None:
            self.held.release()
            self.held = None

    # What was asked.

    def _write_asked(self) -> None:
        with _writable(self.folder):
            plain = {"format": _FORMAT, "version": versions()["lens-skills"], "asked": self.asked}
            work = self.folder / f".{_ASKED}-new"
            work.write_text(json.dumps(plain, indent=1), encoding="utf-8")
            os.replace(work, self.folder / _ASKED)

    def _check_asked(self) -> None:
        path = self.folder / _ASKED
        try:
            plain = dict(json.loads(path.read_text(encoding="utf-8")))
            before, number, version = plain["asked"], plain["format"], plain["version"]
            assert isinstance(before, dict)
        except Exception as error:  # what a damaged file may raise has no bounds
            raise RunError(
                f"the checkpoint {self.folder} is damaged: {_ASKED} cannot be read "
                f"({error!r:.100}), so it is not known what was asked. Copy it again whole, or "
                "remove the folder to begin anew."
            ) from error
        if number != _FORMAT:
            raise RunError(
                f"the checkpoint {self.folder} has format {number!r:.20}, this version of "
                f"lens-skills reads {_FORMAT}. Go on with lens-skills {version!s:.20}, which began "
                "it, or remove the folder to begin anew."
            )
        if version != versions()["lens-skills"]:
            raise RunError(
                f"the checkpoint {self.folder} was begun by lens-skills {version}, this is "
                f"{versions()['lens-skills']}: the rest would be done in another way. Go on with "
                "that version, or remove the folder to begin anew."
            )
        _refuse_other(self.folder, before, self.asked)

    def check_call(self, verb: str, asked: Mapping[str, Any]) -> None:
        """Nothing; raises where a verb within this work was asked something else before."""
        now = {"verb": verb, **_through_json(asked)}
        _refuse_other(self.folder, self.part(f"call {verb}", lambda: json.dumps(now)), now)

    # Finished parts.

    def key(self, name: str) -> str:
        """The name of the next part called so."""
        name = "/".join([*self.inside, name])
        self.counts[name] += 1
        return f"{name} {self.counts[name]}"

    def part(self, name: str, make: Callable[[], Made]) -> Made:
        """See `part`."""
        key = self.key(name)
        if key in self.done:
            return self.read(key)
        self.inside.append(key)
        try:
            made = make()
        finally:
            self.inside.pop()
        under = f"{key}/"
        self.new = {k: value for k, value in self.new.items() if not k.startswith(under)}
        self.new[key] = made
        if self.due():
            self.flush()
        return made

    def read(self, key: str) -> Any:
        """A part that is kept."""
        from safetensors import safe_open

        folder, plain = self.done[key]
        with (
            _whole(folder, self.folder),
            safe_open(folder / f"{_PARTS}.safetensors", "pt") as tensors,
        ):
            return unpacked(plain, lambda name: tensors.get_tensor(name).clone())  # see read_folder

    def _read_parts(self) -> None:
        for folder in sorted(self.folder.glob("done-*")):
            with _whole(folder, self.folder):
                check_links(self.folder, [folder], _ASKED)
                _, plain = read_folder(folder, _PARTS)
                self.done |= {key: (folder, value) for key, value in plain["parts"].items()}
                self.number = int(folder.name.removeprefix("done-"))

    def due(self) -> bool:
        """Whether the last writing is long enough ago."""
        return time.monotonic() - self.last >= SECONDS_BETWEEN

    def flush(self) -> None:
        """Writes the parts finished since the last time."""
        if not self.new:
            return
        tensors: dict[str, Tensor] = {}
        plain = {key: packed(value, tensors) for key, value in self.new.items()}
        with _writable(self.folder):
            folder = self.folder / f"done-{self.number + 1:06d}"
            write_folder(folder, _PARTS, tensors, {"parts": plain}, durable=True)
        self.number += 1
        self.new = {}
        self.last = time.monotonic()

    def close(self) -> None:
        """Keeps what is done; a folder in which nothing is kept is removed."""
        calls = all(key.rpartition("/")[2].startswith("call ") for key in self.new)
        if not calls:
            self.flush()
        if not any(self.folder.glob("done-*")) and not any(self.folder.glob("state-*")):
            self.remove()

    def remove(self) -> None:
        """Deletes the folder: the work is done."""
        if not (self.folder / _ASKED).exists():
            return
        # What was asked goes last: killed in between, the same again finds its own folder.
        for path in [*self.folder.glob("done-*"), *self.folder.glob("state-*")]:
            shutil.rmtree(path, ignore_errors=True)
        for name in (_HOLDER, _ASKED, _LOCK):
            with suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()


class Checkpoint:
    """The state of one pass so far, within the work that it is a part of."""

    def __init__(self, work: Work, name: str, asked: Mapping[str, Any]) -> None:
        self.work = work
        self.key = work.key(name)
        plain = re.sub(r"\W", "_", self.key)
        self.stem = f"state-{file_name(plain)[-120:]}"
        self.asked = _through_json(dict(asked))
        self.last = self.began = time.monotonic()
        self.written = False

    @classmethod
    def at(cls, asked: Mapping[str, Any], *, name: str) -> "Checkpoint | None":
        """Of the next pass called ``name``, or None where no work is kept."""
        work = _WORK.get()
        return None if work is None else cls(work, name, asked)

    def _folders(self) -> list[Path]:
        found = [(p.name.rpartition(".")[2], p) for p in self.work.folder.glob(f"{self.stem}.*")]
        return [path for _, path in sorted((int(n), path) for n, path in found if n.isdigit())]

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was kept, or None where nothing was.

        Raises:
            RunError: It is damaged, or of another pass.
        """
        there = self._folders()
        if self.key in self.work.done:
            tensors, plain = self.work.read(self.key)
        elif there:
            with _whole(there[-1], self.work.folder):
                check_links(self.work.folder, there[-1:], _ASKED)
                tensors, plain = read_folder(there[-1], _STATE)
        else:
            return None
        before = plain.get("asked")
        _refuse_other(self.work.folder, before if isinstance(before, dict) else {}, self.asked)
        return tensors, plain

    def due(self) -> bool:
        """Whether the last save is long enough ago."""
        return time.monotonic() - self.last >= SECONDS_BETWEEN

    def write(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Keeps the work so far in place of what was kept before."""
        # Finished parts first: the state may stand on them.
        self.work.flush()
        before = self._folders()
        number = int(before[-1].name.rpartition(".")[2]) + 1 if before else 1
        with _writable(self.work.folder):
            folder = self.work.folder / f"{self.stem}.{number}"
            write_folder(folder, _STATE, tensors, {"asked": self.asked, **plain}, durable=True)
        for path in before:
            shutil.rmtree(path, ignore_errors=True)
        self.last = time.monotonic()
        self.written = True

    def finish(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Keeps how the pass ended: at once where it took long, else with the next finished parts.

        The tensors may change afterwards.
        """
        if self.written or time.monotonic() - self.began >= min(1.0, SECONDS_BETWEEN):
            self.write(tensors, plain)
        else:
            held = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
            self.work.new[self.key] = held, {"asked": self.asked, **plain}


def _through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _refuse_other(folder: Path, before: Any, now: Mapping[str, Any]) -> None:
    before = json.loads(before) if isinstance(before, str) else before
    if before == now:
        return
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    differs = "; ".join(_difference(n, before.get(n), now.get(n)) for n in names[:4])
    more = f"; and {len(names) - 4} more" if len(names) > 4 else ""
    raise RunError(
        f"the checkpoint {folder} belongs to another pass (it differs in {differs}{more}). Give "
        "the arguments of then and it goes on; or choose another folder, or remove this one."
    )


def _difference(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        inner = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        shown = [key for key in inner if key != "hash"] or inner
        return ", ".join(
            _difference(f"{name}'s {key}", before.get(key), now.get(key)) for key in shown[:2]
        )
    return f"{name}: {_short(before)} there, {_short(now)} here"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:38]} …"


def _holder(folder: Path) -> str:
    try:
        said = dict(json.loads((folder / _HOLDER).read_text(encoding="utf-8")))
        return f" (process {said['pid']} on {said['host']})"
    except Exception:  # what a damaged file may raise has no bounds
        return ""


def _stat_of(held: Any) -> os.stat_result:
    return os.fstat(held._context.lock_file_fd)


def _check_empty(folder: Path) -> None:
    """Refuses a place that is no folder, or holds what is not ours."""
    if not folder.is_dir():
        raise RunError(f"{folder} is a file, and a checkpoint is a folder. Choose another.")
    holds = sorted(path.name for path in folder.iterdir())
    if any(name.startswith(("done-", "state-")) for name in holds):
        raise RunError(
            f"the checkpoint {folder} is damaged: it lacks {_ASKED}, so it is not known what was "
            "asked. Copy it again whole, or remove the folder to begin anew."
        )
    if others := [name for name in holds if not name.startswith(".")]:
        raise RunError(
            f"{folder} exists and holds no checkpoint, but {others[0]!r}. Choose another folder."
        )


@contextmanager
def _whole(path: Path, folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what a damaged file may raise has no bounds
        raise RunError(
            f"the checkpoint {folder} is damaged: {path.name} was cut short or changed. Copy it "
            f"again whole, or remove {path}: that piece is then done again, and the rest kept."
        ) from error


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, LensSkillsError) as error:
        why = getattr(error, "strerror", None) or error
        raise RunError(
            f"{folder} cannot be written: {why}. What was kept there before is whole. Make room, "
            "or the right to write, and give the same call again: it goes on from there."
        ) from error
