"""`Skill`: a way of writing that a text shows or does not, and files that list such skills."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from lens_skills.errors import LensSkillsError

COLUMNS = ("skill", "definition", "example")


@dataclass(frozen=True)
class Skill:
    """A way of writing, as a prompt explains it.

    Attributes:
        name: What it is called; the name of its label.
        definition: One or two sentences.
        example: A text that shows it.
        category: Rhetorical, logical, literary, …; may be empty.
    """

    name: str
    definition: str
    example: str
    category: str = ""


def read_skills(path: str | Path) -> tuple[Skill, ...]:
    """The skills of a CSV file with the columns skill, definition and example.

    Other columns (category, comments, status, …) may stand beside them, as in the list that was
    released with Skill-Mix.

    Raises:
        LensSkillsError: No such file, a missing column, or a row that is cut short, too long,
            empty where it must not be, or repeats a skill; with its line number.
    """
    # Not by lines: a quoted cell may hold line ends, and these are part of its text.
    rows = list(_rows(_text(Path(path)), str(path)))
    if not rows:
        raise LensSkillsError(f"{path} is empty. Its first line names the columns: {COLUMNS}.")
    names = [name.strip().lower() for name in rows[0][1]]
    if missing := [name for name in COLUMNS if name not in names]:
        raise LensSkillsError(
            f"{path}, line 1: no column {missing[0]!r}, only {', '.join(names)}. A list of skills "
            f"has the columns {', '.join(COLUMNS)}."
        )
    found: dict[str, Skill] = {}
    for line, cells in rows[1:]:
        if len(cells) != len(names):
            raise LensSkillsError(
                f"{path}, line {line}: {len(cells)} cells in a table of {len(names)} columns. A "
                "text that holds a comma stands in double quotes."
            )
        row = dict(zip(names, (cell.strip() for cell in cells), strict=True))
        if empty := [name for name in COLUMNS if not row[name]]:
            raise LensSkillsError(f"{path}, line {line}: the {empty[0]} is empty.")
        name = row["skill"]
        if name in found:
            raise LensSkillsError(f"{path}, line {line}: the skill {name!r} is there already.")
        found[name] = Skill(name, row["definition"], row["example"], row.get("category", ""))
    if not found:
        raise LensSkillsError(f"{path} names columns and no skill.")
    return tuple(found.values())


def read_topics(path: str | Path) -> tuple[str, ...]:
    """The topics of a text file, one a line, empty lines left out.

    Raises:
        LensSkillsError: No such file, no topic in it, or one that stands there twice.
    """
    lines = [line.strip() for line in _text(Path(path)).splitlines()]
    for number, topic in enumerate(lines, start=1):
        if topic and topic in lines[: number - 1]:
            raise LensSkillsError(f"{path}, line {number}: the topic {topic!r} is there already.")
    topics = tuple(topic for topic in lines if topic)
    if not topics:
        raise LensSkillsError(f"{path} holds no topic. One a line.")
    return topics


@cache
def own_skills() -> tuple[Skill, ...]:
    """Twenty skills, each with a rule that detects it in a text (`lens_skills.graders`).

    >>> len(own_skills()), own_skills()[0].name
    (20, 'alliteration')
    """
    return read_skills(_shipped("skills.csv"))


@cache
def own_topics() -> tuple[str, ...]:
    """Thirty-six topics to write about.

    >>> len(own_topics()), own_topics()[0]
    (36, 'Baking bread')
    """
    return read_topics(_shipped("topics.txt"))


def chosen_skills(skills: str | Path | Sequence[str | Skill] | None) -> tuple[Skill, ...]:
    """Skills as a user may name them: a file, names of our own, `Skill` values; None for all.

    >>> irony = Skill("irony", "Says the opposite of what is meant.", "Lovely weather, this hail.")
    >>> [skill.name for skill in chosen_skills(["simile", irony])]
    ['simile', 'irony']
    """
    if skills is None:
        return own_skills()
    if isinstance(skills, str | Path):
        return read_skills(skills)
    known = {skill.name: skill for skill in own_skills()}
    unknown = [name for name in skills if isinstance(name, str) and name not in known]
    if unknown:
        raise LensSkillsError(
            f"no skill {unknown[0]!r} among ours: {', '.join(known)}. Define it: "
            "Skill(name, definition, example), or give a CSV file of skills."
        )
    chosen = tuple(known[skill] if isinstance(skill, str) else skill for skill in skills)
    if len({skill.name for skill in chosen}) < len(chosen):
        raise LensSkillsError(f"a skill is named twice: {', '.join(s.name for s in chosen)}.")
    return chosen


def _shipped(name: str) -> Path:
    return Path(str(files("lens_skills.tasks").joinpath(name)))


def _text(path: Path) -> str:
    try:
        # As written: a line end inside a quoted cell is part of it.
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise LensSkillsError(f"cannot read {str(path)!r}: {error}.") from error


def _rows(text: str, path: str) -> list[tuple[int, list[str]]]:
    """The line each row begins on, and its cells; blank lines left out."""
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    rows, begins = [], 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((begins, cells))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise LensSkillsError(
            f"{path}, line {begins}: {error}. A double quote inside a quoted text is written twice."
        ) from error
    return rows
