"""`judge`: a language model behind an OpenAI-compatible endpoint that grades texts."""

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.generation.graded import Ungraded
from lens_skills.results import writable, write_file
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

GIVE_UP = 3  # texts in a row that the endpoint did not answer for, before it is left alone

LONGEST_WAIT = 60.0  # seconds, whatever the endpoint asks for


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
    if not url.startswith(("http://", "https://")):
        raise LensSkillsError(f"a judge's url begins with http:// or https://, not {url!r}.")
    if not (timeout > 0 and retries >= 0 and wait >= 0):
        raise LensSkillsError("timeout is above 0, retries and wait are 0 or more.")
    try:
        from openai import Omit, OpenAI
    except ImportError as error:
        raise LensSkillsError(
            "judge asks through the openai client, which is not installed: "
            "pip install 'lens-skills[judge]'."
        ) from error
    key = "" if api_key_env is None else os.environ.get(api_key_env, "")
    if api_key_env is not None and not key:
        raise LensSkillsError(f"the environment variable {api_key_env} is not set.")
    folder = None if cache is None else Path(cache)
    if folder is not None:
        with writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
    base = url.rstrip("/").removesuffix("/chat/completions")
    # Its own retries are off: they would not share the budget with answers that are no grades.
    client = OpenAI(
        base_url=base,
        api_key=key or "none",
        timeout=timeout,
        max_retries=0,
    )
    # Of what the client would take from the environment, nothing is sent to other endpoints.
    unsaid = ("OpenAI-Organization", "OpenAI-Project", *(() if key else ("Authorization",)))
    headers = {name: Omit() for name in unsaid}
    body = {"model": model} | ({} if temperature is None else {"temperature": temperature})
    price = price_per_token
    prices = price if isinstance(price, tuple) else (price, price)
    chosen = None if skills is None else chosen_skills(skills)
    address = f"{base}/chat/completions"
    return Judge(address, body, chosen, client, headers, retries, wait, folder, prices)


class Unanswered(Exception):
    """A request without a usable reply; ``final`` where asking again cannot help."""

    def __init__(self, reason: str, *, final: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.final, self.wait = final, wait


COUNTS = ("requests", "failed_requests", "from_cache", "prompt_tokens", "completion_tokens")


@dataclass(eq=False, repr=False)
class Judge:
    """A grader that asks an endpoint; made by `judge`."""

    url: str
    body: dict[str, Any]
    skills: tuple[Skill, ...] | None
    client: Any
    headers: dict[str, Any]
    retries: int
    wait: float
    cache: Path | None
    prices: tuple[float, float]
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    silent: int = 0

    def __post_init__(self) -> None:
        self.__name__ = f"judge {self.body['model']}"

    def start(self) -> None:
        """A new round: an endpoint that was down is asked again."""
        self.silent = 0

    def report(self) -> dict[str, Any]:
        """What was asked so far: requests, failures, answers from the cache, tokens, cost."""
        counts, (reading, writing) = self.counts, self.prices
        cost = counts["prompt_tokens"] * reading + counts["completion_tokens"] * writing
        return {"model": self.body["model"], "url": self.url, **counts, "cost": cost}

    def __call__(self, text: str, example: Example) -> dict[str, float]:
        skills = self._skills(example)
        messages = [
            {"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": question(text, example, skills)},
        ]
        asked = {**self.body, "messages": messages}
        names = [skill.name for skill in skills]
        kept = self._kept(asked)
        if kept is not None:
            self.counts["from_cache"] += 1
            return read_answer(kept, names)[0]
        if self.silent >= GIVE_UP:
            raise Ungraded(
                f"not asked: {self.url} did not answer for {GIVE_UP} texts in a row. Grade again "
                "when it is back; what is graded stays."
            )
        best: dict[str, float] = {}
        reason = ""
        for attempt in range(self.retries + 1):
            again = asked
            if attempt and reason.startswith("nonsense"):
                # The same question once more, so that a fixed temperature may answer otherwise.
                again = {**asked, "messages": [*messages, {"role": "user", "content": AGAIN}]}
            try:
                content = self._ask(again)
            except Unanswered as error:
                self.counts["failed_requests"] += 1
                reason = str(error)
                if error.final:
                    break
                if attempt < self.retries:
                    time.sleep(min(LONGEST_WAIT, max(error.wait, self.wait * 2**attempt)))
                continue
            self.silent = 0
            found, missing = read_answer(content, names)
            best |= found
            if not missing:
                self._keep(asked, content)
                return found
            reason = f"nonsense: {missing}"
        if not reason.startswith("nonsense"):
            self.silent += 1
        raise Ungraded(f"{reason} (asked {attempt + 1} times)", best)

    def _skills(self, example: Example) -> tuple[Skill, ...]:
        if self.skills is not None:
            return self.skills
        if not example.labels:
            raise Ungraded("this example names no skills: give judge(…, skills=[…])")
        known = {skill.name: skill for skill in chosen_skills(None)}
        return tuple(known.get(name, Skill(name, "", "")) for name in example.labels)

    def _ask(self, asked: Mapping[str, Any]) -> str:
        """The content of one reply."""
        self.counts["requests"] += 1
        from openai import APIConnectionError, APIStatusError

        try:
            chat = self.client.chat.completions.with_raw_response
            raw = chat.create(**asked, extra_headers=self.headers).content
        except APIStatusError as error:
            said, status = error.response.text[:300].strip(), error.status_code
            again = status in (408, 409, 425, 429) or status >= 500
            wait = _seconds(error.response.headers.get("Retry-After"))
            raise Unanswered(f"HTTP {status} {said}".strip(), final=not again, wait=wait) from error
        except APIConnectionError as error:  # refused, reset, timed out, cut short
            cause = error.__cause__ or error
            raise Unanswered(f"{type(cause).__name__}: {cause}") from error
        try:
            reply = json.loads(raw)
            usage = reply.get("usage") or {}
            for name in ("prompt_tokens", "completion_tokens"):
                self.counts[name] += int(usage.get(name) or 0)
            return str(reply["choices"][0]["message"]["content"] or "")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Unanswered(f"no chat completion in the reply: {raw[:80]!r}") from error

    def _file(self, asked: Mapping[str, Any]) -> Path | None:
        if self.cache is None:
            return None
        key = json.dumps([self.url, asked], sort_keys=True).encode()
        return self.cache / f"{hashlib.sha256(key).hexdigest()[:32]}.json"

    def _kept(self, asked: Mapping[str, Any]) -> str | None:
        file = self._file(asked)
        try:
            return None if file is None else str(json.loads(file.read_text())["content"])
        except (OSError, ValueError, LookupError, TypeError):
            return None  # not there, or damaged: asked anew

    def _keep(self, asked: Mapping[str, Any], content: str) -> None:
        file = self._file(asked)
        if file is not None:
            kept = {"content": content, "asked": asked}
            write_file(file, json.dumps(kept, indent=1).encode())


def _seconds(said: str | None) -> float:
    """What a Retry-After header asks for; dates and nonsense count as nothing."""
    try:
        seconds = float(said or 0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


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
