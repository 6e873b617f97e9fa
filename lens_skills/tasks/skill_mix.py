"""`skill_mix`: can it write a text about a topic that shows several skills at once?"""

import itertools
import math
import random
import string
from collections.abc import Sequence
from pathlib import Path

from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.tasks.skill_list import Skill, chosen_skills, own_topics, read_topics
from lens_skills.tasks.task import Task

# It ends before a line end: tokenizers join a space to the word that follows.
WORDING = (
    "Write a short piece of text about {topic} that shows {skills}.\n\n{definitions}\n\n"
    "Write at most {sentences} sentences, about {topic}, and nothing else.\n\nText:"
)
FIELDS = ("topic", "skills", "definitions", "sentences")


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
    if not 1 <= size <= most:
        raise LensSkillsError(f"skill_mix(n={n}): there are 1 to {most} examples with k={k}.")
    examples = [
        _example(topic, chosen, listed, template)
        for topic, chosen in _draw(subjects, listed, k, size, random.Random(f"{seed} skill-mix"))
    ]
    return Task("skill_mix", examples)


def _checked(template: str) -> str:
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise LensSkillsError(f"the wording {template!r} is no template: {error}.") from None
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
