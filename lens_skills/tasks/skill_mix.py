"""`skill_mix`: can it write a text about a topic that shows several skills at once?

The skills and topics are ours (`skills.csv`, `topics.txt`) or a user's own files.
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.tasks.table_files import read_separated, read_text, text_lines
from lens_skills.tasks.task import Task, check_number
from lens_skills.tasks.templates import template_slots

COLUMNS = ("skill", "definition", "example")
FIELDS = ("topic", "skills", "definitions", "sentences")

# It ends before a line end: tokenizers join a space to the word that follows.
WORDING = (
    "Write a short piece of text about {topic} that shows {skills}.\n\n{definitions}\n\n"
    "Write at most {sentences} sentences, about {topic}, and nothing else.\n\nText:"
)


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


def skill_mix(
    skills: str | Path | Sequence[str | Skill] | None = None,
    topics: str | Path | Sequence[str] | None = None,
    *,
    k: int = 2,
    n: int | None = None,
    seed: int = 0,
    wording: str | None = None,
) -> Task:
    """A Task of texts to be written: one topic, k skills, each with its definition and example.

    There is no right answer: a model writes (`generate`) and graders say which skills its text
    shows. Labels: every skill of the list by its name, 1 where the prompt asks for it, 0 where
    not. Covariates: ``topic``, ``skills`` (those asked for, sorted), ``k``, ``n_words``.

    The group is the topic, so that a split holds other topics and the same skills: what is
    confirmed is then about the skill and not about bread or chess. The kind is the set of skills,
    which a control task gives a random label each. Each topic comes equally often and each skill
    is asked for equally often (to 1), in random order within the prompt.

    Source: the form of the prompts, k skills with definition and example on one topic, follows
    Skill-Mix (Yu et al. 2023, arXiv 2310.17567); wording, skills and topics are ours.

    Args:
        skills: A CSV file with the columns skill, definition, example (the released format);
            names among our own; `Skill` values; None for our twenty.
        topics: A text file with one topic a line; texts; None for our 36.
        k: How many skills a prompt asks for.
        n: Number of examples; None asks for every skill once per topic.
        seed: Which skills meet on which topic.
        wording: A template over {topic}, {skills}, {definitions}, {sentences}.

    Raises:
        LensSkillsError: a malformed file (with its line), an unknown skill, k or n out of range,
            a template without topic or definitions.

    >>> task = skill_mix(["simile", "rhyme", "tricolon"], ["Chess", "Wool"], k=1)
    >>> len(task), task.groups, task.column("simile").mean().round(2)
    (6, ('Chess', 'Wool'), np.float64(0.33))
    """
    listed = chosen_skills(skills)
    if topics is None:
        subjects = own_topics()
    else:
        subjects = read_topics(topics) if isinstance(topics, str | Path) else tuple(topics)
    template = _checked(WORDING if wording is None else wording)
    if not 1 <= k <= len(listed):
        raise LensSkillsError(f"skill_mix(k={k}): there are {len(listed)} skills to choose from.")
    if not subjects or len(set(subjects)) < len(subjects):
        raise LensSkillsError("skill_mix needs at least one topic, and each only once.")
    most = len(subjects) * math.comb(len(listed), k)
    size = min(most, -(-len(subjects) * len(listed) // k)) if n is None else n
    check_number("skill_mix", size, most, f"examples with k={k}")
    examples = [
        _example(topic, chosen, listed, template)
        for topic, chosen in _draw(subjects, listed, k, size, random.Random(f"{seed} skill-mix"))
    ]
    return Task("skill_mix", examples)


def _checked(template: str) -> str:
    names = set(template_slots(template, f"the wording {template!r} is no template"))
    if unknown := sorted(names - set(FIELDS)):
        raise LensSkillsError(
            f"the wording names {{{unknown[0]}}}; it can name {', '.join(FIELDS)}."
        )
    if "topic" not in names or not names & {"skills", "definitions"}:
        raise LensSkillsError("the wording must name {topic}, and {skills} or {definitions}.")
    return template


def _draw(
    topics: Sequence[str], skills: Sequence[Skill], k: int, size: int, generator: random.Random
) -> list[tuple[str, tuple[Skill, ...]]]:
    """Topics in turn and skills in turn, both shuffled, no set of skills twice on one topic."""
    order = generator.sample(list(topics), len(topics))
    used: dict[str, set[frozenset[str]]] = {topic: set() for topic in order}
    counts = dict.fromkeys((skill.name for skill in skills), 0)
    drawn = []
    for topic in itertools.islice(itertools.cycle(order), size):
        for _ in range(100):
            shuffled = generator.sample(list(skills), len(skills))
            # Sorting is stable: the least used come first, in random order among equals.
            chosen = sorted(shuffled, key=lambda skill: counts[skill.name])[:k]
            key = frozenset(skill.name for skill in chosen)
            if key not in used[topic]:
                break
        else:
            free = [
                list(combination)
                for combination in itertools.combinations(skills, k)
                if frozenset(skill.name for skill in combination) not in used[topic]
            ]
            chosen = min(free, key=lambda some: sum(counts[skill.name] for skill in some))
            key = frozenset(skill.name for skill in chosen)
        used[topic].add(key)
        for skill in chosen:
            counts[skill.name] += 1
        drawn.append((topic, tuple(generator.sample(list(chosen), k))))
    return drawn


def _example(
    topic: str, chosen: Sequence[Skill], skills: Sequence[Skill], template: str
) -> Example:
    names = [skill.name for skill in chosen]
    asked = " + ".join(sorted(names))
    prompt = template.format(
        topic=topic,
        skills=", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1],
        definitions="\n".join(
            f"{skill.name}: {skill.definition}\nExample: {skill.example}" for skill in chosen
        ),
        sentences=max(2, len(names)),
    )
    return Example(
        id=f"{topic}: {asked}",
        prompt=prompt,
        labels={skill.name: int(skill in chosen) for skill in skills},
        covariates={
            "topic": topic,
            "skills": asked,
            "k": len(names),
            "n_words": len(prompt.split()),
        },
        group=topic,
        kind=asked,
    )


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


def _shipped(name: str) -> Path:
    return Path(str(files("lens_skills.tasks").joinpath(name)))


def read_skills(path: str | Path) -> tuple[Skill, ...]:
    """The skills of a CSV file with the columns skill, definition and example.

    Other columns (category, comments, status, …) may stand beside them, as in the list that was
    released with Skill-Mix.

    Raises:
        LensSkillsError: No such file, a missing column, or a row that is cut short, too long,
            empty where it must not be, or repeats a skill; with its line number.
    """
    header, rows = read_separated(Path(path))
    names = [name.strip().lower() for name in header]
    if missing := [name for name in COLUMNS if name not in names]:
        raise LensSkillsError(
            f"{path}, line 1: no column {missing[0]!r}, only {', '.join(names)}. A list of skills "
            f"has the columns {', '.join(COLUMNS)}."
        )
    found: dict[str, Skill] = {}
    for line, cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
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
    lines = [line.strip() for line in text_lines(read_text(Path(path)))]
    for number, topic in enumerate(lines, start=1):
        if topic and topic in lines[: number - 1]:
            raise LensSkillsError(f"{path}, line {number}: the topic {topic!r} is there already.")
    topics = tuple(topic for topic in lines if topic)
    if not topics:
        raise LensSkillsError(f"{path} holds no topic. One a line.")
    return topics
