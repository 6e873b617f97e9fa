"""What a judge is asked about a text, and what its answer says."""

import json
from collections.abc import Sequence
from typing import Any

from lens_skills.example import Example
from lens_skills.tasks.skill_list import Skill

INSTRUCTIONS = (
    "You grade short texts. For each skill listed, decide whether the text shows it: 1 if it "
    "clearly does, 0.5 if it does in part, 0 if it does not. Judge the text alone, not what its "
    "writer was asked for; a text that merely names a skill does not show it. Answer with one JSON "
    'object from each skill\'s name to its grade, such as {"simile": 1, "rhyme": 0}, and with '
    "nothing else."
)
AGAIN = (
    "That was not one JSON object with a grade (0, 0.5 or 1) for every skill. Answer with that "
    "object and nothing else."
)
WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0, "partly": 0.5}


def question(text: str, example: Example, skills: Sequence[Skill]) -> str:
    """What the judge reads about one text."""
    listed = "\n".join(
        f"- {skill.name}" + (f": {skill.definition}" if skill.definition else "")
        for skill in skills
    )
    topic = example.column("topic")
    about = f"Topic: {topic}\n" if topic is not None else ""
    return f"{about}Skills:\n{listed}\n\nText, between the lines:\n-----\n{text.strip()}\n-----"


def read_answer(content: str, names: Sequence[str]) -> tuple[dict[str, float], str]:
    """The grades an answer gives, and what is wrong with it ("" for nothing).

    >>> read_answer('Sure: {"simile": 1, "rhyme": "no"}', ["simile", "rhyme"])
    ({'simile': 1.0, 'rhyme': 0.0}, '')
    >>> read_answer("I cannot say.", ["simile"])
    ({}, "no JSON object in 'I cannot say.'")
    """
    said = next((found for found in _objects(content) if set(found) & set(names)), None)
    if said is None:
        return {}, f"no JSON object in {content[:80]!r}"
    grades, wrong = {}, []
    for name in names:
        value: Any = said.get(name)
        value = WORDS.get(value.strip().lower(), value) if isinstance(value, str) else value
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if 0 <= number <= 1:
            grades[name] = number
        else:
            wrong.append(f"{name!r} is {value!r}")
    return grades, "; ".join(wrong)


def _objects(content: str) -> list[dict[str, Any]]:
    """Every JSON object in a text, outermost ones, in order."""
    decoder, found, place = json.JSONDecoder(), [], 0
    while (place := content.find("{", place)) >= 0:
        try:
            value, end = decoder.raw_decode(content, place)
        except ValueError:
            place += 1
            continue
        if isinstance(value, dict):
            found.append(value)
        place = end
    return found
