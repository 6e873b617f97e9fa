"""`open_task`: the task behind a name or a path, as the shell takes it."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lens_skills.errors import LensSkillsError, did_you_mean
from lens_skills.tasks.agreement import agreement
from lens_skills.tasks.arithmetic import arithmetic
from lens_skills.tasks.bigbench import bigbench
from lens_skills.tasks.code import code
from lens_skills.tasks.hans import hans, is_hans
from lens_skills.tasks.instructions import instructions
from lens_skills.tasks.ioi import ioi
from lens_skills.tasks.nli import nli
from lens_skills.tasks.skill_mix import skill_mix
from lens_skills.tasks.table import table
from lens_skills.tasks.table_files import file_kind
from lens_skills.tasks.task import Task

GENERATORS = {
    "agreement": "subject-verb number, with and without distractors",
    "ioi": "indirect-object identification",
    "arithmetic": "one- and two-digit + - * in BIG-bench's wording; arithmetic:+-:1,2 narrows it",
    "nli": "does it follow? three shallow rules crossed with the truth; hans:FILE reads HANS's",
    "instructions": "household instructions of one to three tasks: which thing belongs to which?",
    "code": "kinds of token in Python's own library; code:FOLDER reads your own",
    "skill_mix": "a short text on a topic that shows two skills: to be written, not answered",
}


def open_task(spec: str, columns: Mapping[str, Any] | None = None) -> Task:
    """The task behind a name or path, as the shell takes it.

    Args:
        spec: ``agreement``, ``ioi``, ``arithmetic`` (or ``arithmetic:OPS:DIGITS``, such as
            ``arithmetic:+-:1,2``), ``nli``, ``instructions``, ``skill_mix``, ``code`` (or
            ``code:FOLDER``);
            ``hans:FILE``, or a tab-separated file that begins as HANS's does; a BIG-bench JSON file
            or folder; a CSV, TSV, JSONL or Parquet file, with ``columns`` saying what its columns
            are.
        columns: Arguments of `tasks.table`.

    Raises:
        LensSkillsError: Neither a known name nor a file.
    """
    name, _, rest = spec.partition(":")
    whole = {
        "agreement": agreement,
        "ioi": ioi,
        "nli": nli,
        "instructions": instructions,
        "code": code,
        "skill_mix": skill_mix,
    }
    if spec in whole:
        return whole[spec]()
    if name == "code":
        return code(folder=rest or ".")
    if name == "arithmetic":
        ops, _, digits = rest.partition(":")
        try:
            sizes = tuple(int(part) for part in (digits or "1,2").split(","))
        except ValueError:
            raise LensSkillsError(
                f"no task {spec!r}: the digits {digits!r} are no numbers. Write "
                "arithmetic:OPS:DIGITS, such as arithmetic:+-:1,2."
            ) from None
        return arithmetic(ops or "+-*", digits=sizes, n=1000 if max(sizes) > 1 else None)
    asked = dict(columns or {})
    known = [*inspect.signature(table).parameters][1:]
    if unknown := [key for key in asked if key not in known]:
        raise LensSkillsError(
            f"a table has no option {unknown[0]!r}.{did_you_mean(str(unknown[0]), known)} It has "
            f"{', '.join(known)}."
        )
    path = Path(rest if name == "hans" and rest else spec)
    try:
        path = path.expanduser()
        found = bool(spec.strip()) and path.exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a home of nobody
        found = False
    if not found:
        beside = sorted(other.name for other in path.parent.glob("*")) if len(spec) < 200 else []
        near = did_you_mean(name, GENERATORS) or did_you_mean(path.name, beside)
        raise LensSkillsError(
            f"no task {spec!r}: neither a file nor one of {', '.join(GENERATORS)}.{near} "
            "`lens-skills tasks` lists what can be opened."
        )
    if path.is_dir() or (file_kind(path) == ".json" and not asked.get("prompt")):
        return bigbench(path)
    if not asked.get("prompt"):
        if name == "hans" or is_hans(path):
            return hans(path)
        raise LensSkillsError(f"{path} is a table: say which column is the prompt (--text NAME).")
    return table(path, **asked)
