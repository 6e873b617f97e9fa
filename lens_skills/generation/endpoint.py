"""`endpoint`: a language model behind an OpenAI-compatible address, asked question by question."""

import base64
import hashlib
import html
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from lens_skills.contents import content
from lens_skills.errors import LensSkillsError
from lens_skills.results import writable, write_file

GIVE_UP = 3  # questions in a row that the endpoint did not answer, before it is left alone

LONGEST_WAIT = 60.0  # seconds, whatever the endpoint asks for

CACHE_FORMAT = 1
"""Of kept answers, and in their names: those of another format are asked for anew, and stay."""

COUNTS = ("requests", "failed_requests", "from_cache", "prompt_tokens", "completion_tokens")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_QUOTED: tuple[Callable[[str], str], ...] = (
    str,
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    html.escape,
    lambda text: quote(text, safe=""),
    quote,
)

Message = Mapping[str, str]
Answer = TypeVar("Answer")


def endpoint(
    url: str,
    *,
    model: str,
    api_key_env: str | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    wait: float = 1.0,
    cache: str | Path | None = None,
    price_per_token: float | tuple[float, float] = 0.0,
    temperature: float | None = 0.0,
) -> "Endpoint":
    """A language model that `explain` asks for sentences about neurons, and to judge them.

    Errors of the network, timeouts and the replies 408, 409, 425, 429 and 5xx are tried again after
    ``wait``, then twice as long, and so on (or as long as the endpoint asks for, a minute at most);
    an answer of the wrong form is asked for again. After three questions in a row without any reply
    nothing more is asked in this call. What was answered is not asked again: in this session, and
    with ``cache=`` in later ones.

    Args:
        url: Of an OpenAI-compatible endpoint, up to and without ``/chat/completions``.
        model: Its name there.
        api_key_env: The environment variable that holds the key; the key is never saved.
        timeout: Seconds for one reply.
        retries: How often one question is asked again.
        wait: Seconds before the first retry.
        cache: A folder for answers.
        price_per_token: Of a token read, or of one read and one written; ``report()`` gives the
            cost in the same currency.
        temperature: None leaves it out, for endpoints that refuse it.

    Raises:
        LensSkillsError: No http address, a variable that is not set, a folder that cannot be
            written, settings out of range, no openai client: ``pip install 'lens-skills[judge]'``.

    >>> import lens_skills as ls
    >>> writer = ls.endpoint("http://localhost:8000/v1", model="qwen2.5-7b-instruct")
    >>> writer.report()["requests"]
    0
    """
    return Endpoint(
        memory={},
        **connection(
            url, model, api_key_env, timeout, retries, wait, cache, price_per_token, temperature
        ),
    )


def connection(
    url: Any,
    model: Any,
    api_key_env: str | None,
    timeout: float,
    retries: int,
    wait: float,
    cache: str | Path | None,
    price_per_token: float | tuple[float, float],
    temperature: float | None,
) -> dict[str, Any]:
    """The fields of an `Endpoint`, checked; see `endpoint`."""
    if not url.startswith(("http://", "https://")):
        shown = url.rsplit("@", 1)[-1].partition("?")[0]  # without a password or key that it holds
        raise LensSkillsError(f"an endpoint's url begins with http:// or https://, not {shown!r}.")
    if urlsplit(url).query or urlsplit(url).fragment:
        raise LensSkillsError(
            "an endpoint's url ends before '?' and '#': what follows would stand in the log of "
            "every request. Give a key by api_key_env=."
        )
    if not (timeout > 0 and retries >= 0 and wait >= 0):
        raise LensSkillsError("timeout is above 0, retries and wait are 0 or more.")
    try:
        from openai import Omit, OpenAI
    except ImportError as error:
        raise LensSkillsError(
            "an endpoint is asked through the openai client, which is not installed: "
            "pip install 'lens-skills[judge]'."
        ) from error
    key = "" if api_key_env is None else _key_in(api_key_env)
    folder = None if cache is None else Path(cache)
    if folder is not None:
        with writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
    base, login = _without_login(url.rstrip("/").removesuffix("/chat/completions"))
    # Its own retries are off: they would not share the budget with answers of the wrong form.
    client = OpenAI(
        base_url=base,
        api_key=key or "none",
        timeout=timeout,
        max_retries=0,
    )
    # Of what the client would take from the environment, nothing is sent to other endpoints.
    unsaid = ("OpenAI-Organization", "OpenAI-Project", *(() if key else ("Authorization",)))
    headers: dict[str, Any] = {name: Omit() for name in unsaid} | login
    price = price_per_token
    return {
        "url": f"{base}/chat/completions",
        "body": {"model": model} | ({} if temperature is None else {"temperature": temperature}),
        "client": client,
        "headers": headers,
        "retries": retries,
        "wait": wait,
        "cache": folder,
        "prices": price if isinstance(price, tuple) else (price, price),
    }


def _key_in(variable: str) -> str:
    """The key that an environment variable holds; no error repeats it, or what may be it."""
    if not _VARIABLE.fullmatch(variable):
        raise LensSkillsError(
            "api_key_env is the name of the environment variable that holds the key, such as "
            "OPENAI_API_KEY. What was given is no such name (and is not repeated here: it may be "
            "the key itself). Put the key into a variable and give the variable's name."
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        usual = variable.isupper() and len(variable) <= 40  # no key that looks like a name
        named = variable if usual else "that api_key_env names"
        raise LensSkillsError(f"the environment variable {named} is not set.")
    if not (key.isascii() and key.isprintable()):
        raise LensSkillsError(
            f"the key in the environment variable {variable} holds a line break, a control "
            "character or a letter outside ASCII, which no request can carry. Copy it anew."
        )
    return key


class Unanswered(Exception):
    """A request without a usable reply; ``final`` where asking again cannot help."""

    def __init__(self, reason: str, *, final: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.final, self.wait = final, wait


class Nonsense(Exception):
    """A reply that is no answer to the question, and what is wrong with it."""


class NoAnswer(Exception):
    """A question that stays without an answer after all attempts, and why."""


@dataclass(eq=False, repr=False, kw_only=True)
class Endpoint:
    """A language model that is asked over the network; made by `endpoint`."""

    url: str
    body: dict[str, Any]
    client: Any
    headers: dict[str, Any]
    retries: int
    wait: float
    cache: Path | None
    prices: tuple[float, float]
    memory: dict[str, str] | None = None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    silent: int = 0

    @property
    def model(self) -> str:
        """What the model is called there."""
        return str(self.body["model"])

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.model} at {public_url(self.url)}"

    def start(self) -> None:
        """A new round: an endpoint that was down is asked again."""
        self.silent = 0

    def report(self) -> dict[str, Any]:
        """What was asked so far: requests, failures, answers from the cache, tokens, cost."""
        counts, (reading, writing) = self.counts, self.prices
        cost = counts["prompt_tokens"] * reading + counts["completion_tokens"] * writing
        return {"model": self.body["model"], "url": public_url(self.url), **counts, "cost": cost}

    def answer(
        self, messages: Sequence[Message], read: Callable[[str], Answer], again: str
    ) -> Answer:
        """The answer to a question, as ``read`` makes it of the reply.

        Args:
            messages: The question.
            read: Raises `Nonsense` for a reply of the wrong form, which is then asked for again.
            again: What is added to the question in that case.

        Raises:
            NoAnswer: After all attempts, or after `GIVE_UP` questions without a reply.
        """
        asked = {**self.body, "messages": list(messages)}
        kept = self._kept(asked)
        if kept is not None:
            try:
                found = read(kept)
            except Nonsense:
                pass  # of another version: asked anew
            else:
                self.counts["from_cache"] += 1
                return found
        if self.silent >= GIVE_UP:
            raise NoAnswer(
                f"not asked: {public_url(self.url)} did not answer {GIVE_UP} times in a row. Run "
                "this again when it is back; what is done stays."
            )
        reason, wrong_form = "", False
        for attempt in range(self.retries + 1):
            question = asked
            if wrong_form:
                # The same question once more, so that a fixed temperature may answer otherwise.
                more = {"role": "user", "content": again}
                question = {**asked, "messages": [*messages, more]}
            try:
                content = self._ask(question)
            except Unanswered as error:
                self.counts["failed_requests"] += 1
                reason, wrong_form = str(error), False
                if error.final:
                    break
                if attempt < self.retries:
                    time.sleep(min(LONGEST_WAIT, max(error.wait, self.wait * 2**attempt)))
                continue
            self.silent = 0
            try:
                found = read(content)
            except Nonsense as error:
                reason, wrong_form = f"nonsense: {error}", True
                continue
            self._keep(asked, content)
            return found
        if not wrong_form:
            self.silent += 1
        raise NoAnswer(f"{reason} (asked {attempt + 1} times)")

    def _without_key(self, text: str) -> str:
        """What an endpoint said, without a secret that it repeats; before anything is cut off."""
        for secret in self._secrets():
            text = text.replace(secret, "[key]")
        return text

    def _secrets(self) -> list[str]:
        """The key and the login as they are and as they are quoted in JSON, a page, an address."""
        held = {self.client.api_key}
        if isinstance(coded := self.headers.get("Authorization"), str):
            coded = coded.removeprefix("Basic ")
            login = base64.b64decode(coded).decode()
            held |= {coded, login, login.partition(":")[2]}
        # "none" stands for no key, and less than four letters for none that is secret.
        quoted = {said(one) for one in held - {"none"} if len(one) > 3 for said in _QUOTED}
        return sorted(quoted, key=len, reverse=True)  # a part of another one after it

    def _ask(self, asked: Mapping[str, Any]) -> str:
        """The content of one reply."""
        self.counts["requests"] += 1
        from openai import APIConnectionError, APIStatusError

        try:
            chat = self.client.chat.completions.with_raw_response
            raw = chat.create(**asked, extra_headers=self.headers).content
        except APIStatusError as error:
            said, status = self._without_key(error.response.text)[:300].strip(), error.status_code
            again = status in (408, 409, 425, 429) or status >= 500
            wait = _seconds(error.response.headers.get("Retry-After"))
            raise Unanswered(f"HTTP {status} {said}".strip(), final=not again, wait=wait) from error
        except APIConnectionError as error:  # refused, reset, timed out, cut short
            cause = error.__cause__ or error
            said = self._without_key(f"{type(cause).__name__}: {cause}")
            raise Unanswered(said) from error
        try:
            reply = json.loads(raw)
            usage = reply.get("usage") or {}
            for name in ("prompt_tokens", "completion_tokens"):
                self.counts[name] += int(usage.get(name) or 0)
            return self._without_key(str(reply["choices"][0]["message"]["content"] or ""))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            said = self._without_key(raw.decode("utf-8", "replace"))[:80]
            raise Unanswered(f"no chat completion in the reply: {said!r}") from error

    def _key(self, asked: Mapping[str, Any]) -> str:
        key = json.dumps([CACHE_FORMAT, self.url, asked], sort_keys=True).encode()
        return hashlib.sha256(key).hexdigest()[:32]

    def _kept(self, asked: Mapping[str, Any]) -> str | None:
        key = self._key(asked)
        if self.memory is not None and key in self.memory:
            return self.memory[key]
        if self.cache is None:
            return None
        try:
            return str(json.loads((self.cache / f"{key}.json").read_text())["content"])
        except (OSError, ValueError, LookupError, TypeError):
            return None  # not there, or damaged: asked anew

    def _keep(self, asked: Mapping[str, Any], content: str) -> None:
        key = self._key(asked)
        if self.memory is not None:
            self.memory[key] = content
        if self.cache is not None:
            kept = {"format": CACHE_FORMAT, "content": content, "asked": asked}
            write_file(self.cache / f"{key}.json", json.dumps(kept, indent=1).encode())


@content.register
def content_of(value: Endpoint) -> Any:
    """What tells an endpoint from another: who is asked and how, not what was asked so far."""
    return {"kind": type(value).__name__, "url": public_url(value.url), **value.body}


def _without_login(url: str) -> tuple[str, dict[str, str]]:
    """An address without the user and password in it, which go into a header that nothing logs."""
    parts = urlsplit(url)
    login, found, host = parts.netloc.rpartition("@")
    if not found:
        return url, {}
    coded = base64.b64encode(unquote(login).encode()).decode()
    return parts._replace(netloc=host).geturl(), {"Authorization": f"Basic {coded}"}


def public_url(url: str) -> str:
    """An address without the user, password and query it may hold."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rsplit('@', 1)[-1]}{parts.path}"


def _seconds(said: str | None) -> float:
    """What a Retry-After header asks for; dates and nonsense count as nothing."""
    try:
        seconds = float(said or 0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
