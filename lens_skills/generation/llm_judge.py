"""`judge`: a language model behind an OpenAI-compatible endpoint that grades texts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_skills.contents import content
from lens_skills.data import Example
from lens_skills.generation.endpoint import GIVE_UP as GIVE_UP
from lens_skills.generation.endpoint import (
    Endpoint,
    NoAnswer,
    Nonsense,
    connection,
    content_of,
)
from lens_skills.generation.graded import Ungraded
from lens_skills.tasks.skill_mix import Skill, chosen_skills

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


def judge(
    url: str,
    *,
    model: str,
    skills: Sequence[str | Skill] | str | Path | None = None,
    api_key_env: str | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    wait: float = 1.0,
    cache: str | Path | None = None,
    price_per_token: float | tuple[float, float] = 0.0,
    temperature: float | None = 0.0,
) -> "Judge":
    """A grader that asks a language model which skills a text shows: 0, 0.5 or 1 each.

    One request per text. Errors of the network, timeouts and the replies 408, 409, 425, 429 and
    5xx are tried again after ``wait``, then twice as long, and so on (or as long as the endpoint
    asks for, a minute at most); an answer that is no JSON with a grade per skill is asked for
    again. What then is missing is recorded with the reason. After three texts in a row without any
    reply the rest is not asked; ``grade(graded, judge)`` goes on later, and what is in the cache
    costs nothing.

    Args:
        url: Of an OpenAI-compatible endpoint, up to and without ``/chat/completions``.
        model: Its name there.
        skills: What to grade, as in `tasks.skill_mix`; None takes each example's labels.
        api_key_env: The environment variable that holds the key; the key is never saved.
        timeout: Seconds for one reply.
        retries: How often one text is asked about again.
        wait: Seconds before the first retry.
        cache: A folder for answers.
        price_per_token: Of a token read, or of one read and one written; ``report()`` gives the
            cost in the same currency.
        temperature: None leaves it out, for endpoints that refuse it.

    Raises:
        LensSkillsError: No http address, a variable that is not set, a folder that cannot be
            written, settings out of range, no openai client: ``pip install 'lens-skills[judge]'``.
    """
    made = connection(
        url, model, api_key_env, timeout, retries, wait, cache, price_per_token, temperature
    )
    return Judge(skills=None if skills is None else chosen_skills(skills), **made)


@dataclass(eq=False, repr=False, kw_only=True)
class Judge(Endpoint):
    """A grader that asks an endpoint; made by `judge`."""

    skills: tuple[Skill, ...] | None

    def __post_init__(self) -> None:
        self.__name__ = f"judge {self.model}"

    def __call__(self, text: str, example: Example) -> dict[str, float]:
        skills = self._skills(example)
        messages = [
            {"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": question(text, example, skills)},
        ]
        names, best = [skill.name for skill in skills], dict[str, float]()

        def read(content: str) -> dict[str, float]:
            found, missing = read_answer(content, names)
            best.update(found)
            if missing:
                raise Nonsense(missing)
            return found

        try:
            return self.answer(messages, read, AGAIN)
        except NoAnswer as error:
            raise Ungraded(str(error), best) from error

    def _skills(self, example: Example) -> tuple[Skill, ...]:
        if self.skills is not None:
            return self.skills
        if not example.labels:
            raise Ungraded("this example names no skills: give judge(…, skills=[…])")
        known = {skill.name: skill for skill in chosen_skills(None)}
        return tuple(known.get(name, Skill(name, "", "")) for name in example.labels)


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


@content.register
def _(value: Judge) -> Any:
    return {**content_of(value), "skills": content(value.skills)}
