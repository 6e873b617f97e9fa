"""Names of files and folders: which can be written anywhere, and which stay inside their folder."""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lens_skills.errors import LensSkillsError

LONGEST = 200
"""Bytes of a name. Systems take 255; what is written beside meanwhile has a longer one."""

_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *([.:]|$)")
_FORBIDDEN = re.compile(r'[\x00-\x1f<>:"/\\|?*]')


def is_file_name(name: Any) -> bool:
    r"""Whether a text is the name of a file on every system: no path, no device, nothing cut off.

    >>> [is_file_name(name) for name in ("verdict-truth.csv", "Wörter", ".hidden")]
    [True, True, True]
    >>> [is_file_name(name) for name in ("../x", "a/b", "a\\b", "C:x", "NUL", "com1.csv", "x.", "")]
    [False, False, False, False, False, False, False, False]
    """
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not _FORBIDDEN.search(name)
        and not _RESERVED.match(name)
        and name[-1] not in ". "
        and len(name.encode("utf-8", "surrogatepass")) <= LONGEST
    )


def portable(name: str) -> str:
    """A name that is one on every system: a device's gets an underscore, a long one is cut.

    >>> portable("nul"), portable("truth")
    ('nul_', 'truth')
    """
    encoded = name.encode("utf-8", "replace")
    if len(encoded) > LONGEST // 2:
        import hashlib

        cut = encoded[: LONGEST // 2 - 9].decode("utf-8", "ignore")
        name = f"{cut}-{hashlib.sha256(encoded).hexdigest()[:8]}"
    return f"{name}_" if _RESERVED.match(name) else name


def place_to_write(place: str | Path) -> Path:
    """A path to write at; where it is a link, what the link points to, so that the link stays.

    Raises:
        LensSkillsError: No system has a file of this name (a null character, or too long).
    """
    text = os.fspath(place)
    if "\0" in text:
        raise LensSkillsError(
            f"{text!r:.80} holds a null character, which no path can. Leave it out."
        )
    path = Path(text)
    for part in path.parts:
        if len(os.fsencode(part)) > LONGEST:
            raise LensSkillsError(
                f"the name {part[:40]}… has {len(os.fsencode(part))} bytes; at most {LONGEST} can "
                "be written everywhere. Choose a shorter one."
            )
    return path.resolve() if path.is_symlink() else path


def place_to_read(place: str | Path) -> Path:
    """A path to read from, whether or not something is there.

    Raises:
        LensSkillsError: The system does not look for such a name (too long, or no right to look).
    """
    path = Path(place)
    try:
        path.exists()
    except OSError as error:
        text = os.fspath(place)
        shown = text if len(text) <= 80 else f"{text[:77]}…"
        raise LensSkillsError(
            f"{shown!r} cannot be opened: {(error.strerror or str(error)).lower()}. Give the path "
            "of a file or a folder."
        ) from error
    return path


def inside(folder: Path, name: Any, what: str, names: str) -> Path:
    """The path of a file that a file names; raises where it points out of the folder.

    Links may point to where ``names`` itself lies: downloads of a hub are links into one store.

    Args:
        folder: Where it must be.
        name: As it was read: parts joined by ``/``.
        what: What it is called in the error.
        names: The file in the folder that names it.
    """
    text = name if isinstance(name, str) else ""
    parts = PurePosixPath(text).parts
    away = {"..", "/", "//"} & {*parts} or PureWindowsPath(text).anchor or "\\" in text
    if not parts or away or "\0" in text or any(map(_RESERVED.match, parts)):
        raise LensSkillsError(
            f"{names} of {folder} names {name!r:.80} as {what}: only files inside the folder are "
            "read, by names that are no device's on any system. Put it there and name it by its "
            "path in the folder, with '/'."
        )
    path = folder.joinpath(*parts)
    check_links(folder, [path], names)
    return path


def check_links(folder: Path, paths: Iterable[Path], names: str) -> None:
    """Nothing; raises where one of the paths in a folder is a link that leads out of it.

    Raises:
        LensSkillsError: Which, and where it leads.
    """
    homes = (folder.resolve(), (folder / names).resolve().parent)
    for path in paths:
        real = path.resolve()
        if not any(real.is_relative_to(home) for home in homes):
            raise LensSkillsError(
                f"{path} is a link to {real}, outside of {folder}: nothing there is read or "
                "written. Copy what it points to into the folder, or move the whole folder and "
                "link that."
            )
