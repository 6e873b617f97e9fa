"""Damages a saved folder in ways that disks, editors and other versions do; and counts escapes.

``python -m tests.folder_damage 10000 FOLDER …`` reads so many damaged copies of each folder.
"""

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import lens_skills as ls
from lens_skills.checkpoints import Checkpoint, part, working
from lens_skills.cli.runs import Run
from lens_skills.errors import LensSkillsError

_ODD: tuple[Any, ...] = (
    None, True, -1, 0, 10**400, 1e308, float("nan"), float("inf"), "", "é", "\ud800", "L1N2", [],
    [[]], [1, "a"], {}, {"$tensor": "r"}, {"$table": "x"}, {"a": {"b": []}},
)  # fmt: skip


def read(folder: Path) -> None:
    """All that reads a folder, as a user does; the cards are printed too."""
    readers: tuple[Callable[[], Any], ...] = (
        lambda: repr(ls.load(folder)),
        lambda: Run.load(folder).scores(),
        lambda: [repr(one) for one in Run.load(folder).selections()],
        lambda: Run.load(folder).verdicts(),
        lambda: stopped(folder),
    )
    for reader in readers:
        try:
            reader()
        except LensSkillsError:
            continue


def stopped(folder: Path) -> None:
    """Goes on with some work in a folder, or begins it, and is interrupted."""
    with suppress(KeyboardInterrupt), working(folder, {"verb": "score"}) as work:
        saved = Checkpoint.at({"pass": 1}, name="sums")
        assert saved is not None
        if saved.read() is None:
            saved.write({"sums": torch.zeros(3)}, {"done": 2})
        part("values", lambda: {"a": (torch.ones(2), 1.5)})
        work.flush()
        raise KeyboardInterrupt


def damage(folder: Path, seed: int) -> str:
    """Changes one file of a folder, or two; says how."""
    draw, said = random.Random(seed), []
    for _ in range(draw.choice((1, 1, 1, 2))):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if files:
            said.append(_damage_file(draw.choice(files), draw))
    return ", ".join(said)


def _damage_file(path: Path, draw: random.Random) -> str:
    whole = path.read_bytes()
    how = draw.choice(("json", "json", "json", "cut", "flip", "insert", "gone", "folder", "other"))
    if how == "json" and path.suffix == ".json":
        try:
            plain = json.loads(whole)
            plain = _change(plain, draw)
            if draw.random() < 0.5 and isinstance(plain, dict):
                plain.pop("digest", None)  # so that the change itself is what is read
            path.write_text(json.dumps(plain))
        except (ValueError, RecursionError):
            path.write_text("[" * 100_000)
    elif how == "cut":
        path.write_bytes(whole[: draw.randrange(len(whole) + 1)])
    elif how in ("flip", "json"):
        changed = bytearray(whole or b"x")
        for _ in range(draw.choice((1, 3, 40))):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        path.write_bytes(changed)
    elif how == "insert":
        place = draw.randrange(len(whole) + 1)
        path.write_bytes(whole[:place] + draw.randbytes(draw.choice((1, 8))) + whole[place:])
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how == "other":
            path.write_bytes(
                draw.choice((b"", b"{}", b"[]", b"null", b"\xff\xfe", b"3", b"[" * 9999))
            )
    return f"{how} {path.name}"


def _change(plain: Any, draw: random.Random) -> Any:
    """Plain values with one of them, somewhere within, another or gone."""
    if not isinstance(plain, dict | list) or not plain or draw.random() < 0.1:
        return draw.choice(_ODD)
    keys = list(plain) if isinstance(plain, dict) else list(range(len(plain)))
    key = draw.choice(keys)
    if draw.random() < 0.1:
        del plain[key]
    elif draw.random() < 0.1 and isinstance(plain, dict):
        plain[f"{key}x"] = plain.pop(key)
    else:
        plain[key] = _change(plain[key], draw)
    return plain


def escapes(folder: Path, seeds: range) -> list[str]:
    """What is raised beside a `LensSkillsError` by damaged copies of a folder."""
    found = []
    with tempfile.TemporaryDirectory() as work:
        for seed in seeds:
            copy = Path(work) / f"{folder.name} é{seed}"
            shutil.copytree(folder, copy)
            how = damage(copy, seed)
            try:
                read(copy)
            except Exception as error:
                found.append(f"{folder.name} {seed}: {how}: {error!r:.200}")
            shutil.rmtree(copy)
    return found


if __name__ == "__main__":
    for name in sys.argv[2:]:
        left = escapes(Path(name), range(int(sys.argv[1])))
        print(f"{name}: {sys.argv[1]} inputs, {len(left)} escapes", *left[:20], sep="\n  ")
