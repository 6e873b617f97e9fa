"""`from_file`: grades that people or other models gave, read from a file."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.generation.graded import Ungraded
from lens_skills.tasks.table_files import file_kind, read_json_lines, read_separated

# Columns of a CSV file that are not skills.
ABOUT = ("id", "topic", "text", "student", "model", "grader", "prompt", "comment", "comments")

KEYS = ("id", "text", "topic")


@dataclass(eq=False)
class FileGrader:
    """A grader that looks texts up: by the example's id, else by the text (and its topic)."""

    path: Path
    by_id: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    by_text: dict[tuple[str, str], dict[str, list[float]]] = field(default_factory=dict)
    texts: dict[str, set[str]] = field(default_factory=dict)

    @property
    def __name__(self) -> str:
        return self.path.name

    def __call__(self, text: str, example: Example) -> dict[str, float]:
        found = self.by_id.get(example.id)
        if found is not None:
            graded = self.texts.get(example.id, set())
            if graded and _bare(text) not in graded:
                raise Ungraded(f"{self.path.name} graded another text under this id")
        else:
            topic = str(example.column("topic") or "")
            # A row without a topic, or an example without one, goes by the text alone.
            keys = [key for key in self.by_text if key[1] == _bare(text)]
            found = self.by_text.get((topic, _bare(text)))
            if found is None and len(keys) == 1 and "" in (topic, keys[0][0]):
                found = self.by_text[keys[0]]
        if found is None:
            raise Ungraded(f"{self.path.name} has no grade of this text")
        # Several rows of one text are several people, or one asked again: their mean.
        return {skill: sum(values) / len(values) for skill, values in found.items()}


def from_file(path: str | Path) -> FileGrader:
    """A grader with the grades of a file, made by people or by a model.

    JSONL: one object a line with ``grades``, from skill to number, and ``id`` (the example's) or
    ``text`` and, where one text may stand for several, ``topic``: the format the Skill-Mix grades
    were released in. CSV: the same columns, and one column per skill. An empty cell or null is no
    grade. Several rows on one text are averaged.

    Raises:
        LensSkillsError: no such file; a row that names no text, or whose grade is no number, with
            its line.
    """
    file = Path(path)
    kind = file_kind(file)
    if kind not in (".jsonl", ".csv"):
        raise LensSkillsError(
            f"grades are read from a .jsonl or .csv file, not from {str(file)!r}."
        )
    grader = FileGrader(file)
    rows = list(_json_lines(file) if kind == ".jsonl" else _csv_rows(file))
    if not rows:
        raise LensSkillsError(f"{file} holds no grades.")
    for line, row, grades in rows:
        id, text, topic = (_written(row, key, f"{file}, line {line}") for key in KEYS)
        if not id and not text.strip():
            raise LensSkillsError(f"{file}, line {line}: neither an id nor a text.")
        if id:
            home = grader.by_id.setdefault(id, defaultdict(list))
            grader.texts.setdefault(id, set()).update({_bare(text)} if text.strip() else set())
        else:
            home = grader.by_text.setdefault((topic, _bare(text)), defaultdict(list))
        for skill, value in grades.items():
            if value is None or value == "":
                continue
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if not math.isfinite(number):
                raise LensSkillsError(
                    f"{file}, line {line}: the grade of {skill!r} is {value!r}, not a number."
                )
            home[str(skill)].append(number)
    return grader


def _json_lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any], Mapping[str, Any]]]:
    for line, row in read_json_lines(file):
        if not isinstance(row.get("grades"), dict):
            raise LensSkillsError(
                f"{file}, line {line}: no 'grades', an object from skill to number."
            )
        yield line, row, row["grades"]


def _csv_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any], Mapping[str, Any]]]:
    names, rows = read_separated(file)
    for line, cells in rows:
        row = dict(zip(names, cells, strict=True))
        grades = {k: v.strip() for k, v in row.items() if k.strip().lower() not in ABOUT}
        yield line, row, grades


def _written(row: Mapping[str, Any], key: str, where: str) -> str:
    """What a row holds under a key as text, "" where it holds nothing."""
    value = row.get(key)
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return "" if value is None else str(value)
    raise LensSkillsError(f"{where}: {key!r} is {str(value)[:60]}, no text.")


def _bare(text: str) -> str:
    """The text without differences of white space, which copying through tables brings."""
    return " ".join(text.split())
