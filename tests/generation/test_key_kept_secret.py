"""The key of an endpoint is in the header of a request, and nowhere else."""

import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lens_skills.errors import LensSkillsError
from lens_skills.generation import endpoint, grade
from lens_skills.generation.endpoint import Endpoint, NoAnswer
from lens_skills.generation.llm_judge import judge
from tests.generation.test_llm_judge import GOOD, SKILLS, texts
from tests.local_server import Server

KEY = "sk-fake-4711-never-to-be-seen"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = Server(GOOD)
    yield server
    server.stop()


def asked(server: Server, **options: Any) -> Endpoint:
    usual = {"model": "m", "api_key_env": "JUDGE_KEY", "retries": 1, "wait": 0.0, "timeout": 5.0}
    return endpoint(server.url, **{**usual, **options})


def echo(handler: Any) -> None:
    """An error that repeats the request's headers, the key across the place where it is cut."""
    said = "x" * 280 + handler.headers["Authorization"]
    handler.reply(said.encode(), 401, {})


def not_json(handler: Any) -> None:
    handler.reply(("y" * 65 + KEY).encode(), 200, {})


@pytest.mark.parametrize("script", [echo, not_json, f"no JSON: {KEY}", (503, {})])
def test_no_error_no_log_and_no_file_has_the_key(
    server: Server,
    script: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.script = [script]
    with caplog.at_level(logging.DEBUG):
        judged = judge(
            server.url, model="m", skills=SKILLS, api_key_env="JUDGE_KEY", retries=1, wait=0.0,
            cache=tmp_path / "cache",
        )  # fmt: skip
        graded = grade(texts(2), judged)
        said = [repr(judged), repr(judged.report()), repr(graded), *map(repr, graded.problems)]
        try:
            judged.answer([{"role": "user", "content": "?"}], lambda text: text, "again")
        except NoAnswer as error:
            said += traceback.format_exception(error)
    graded.save(tmp_path / "graded")
    said += [caplog.text, *capfd.readouterr(), *(repr(vars(one)) for one in caplog.records)]
    said += [path.read_bytes().decode("utf-8", "replace") for path in tmp_path.rglob("*.*")]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    whole = "\n".join(said)
    assert KEY not in whole
    assert KEY[:9] not in whole  # nor its beginning, where a reply was cut


def test_a_reply_that_repeats_the_key_is_kept_without_it(server: Server, tmp_path: Path) -> None:
    server.script = [f"The key is {KEY}."]
    told = asked(server, cache=tmp_path)
    for _ in range(2):  # from the server, from memory
        assert told.answer([], lambda text: text, "again") == "The key is [key]."
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.iterdir())


def test_a_password_in_the_address_is_sent_and_not_logged(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    address = server.url.replace("http://", f"http://me:{KEY}%21@")
    with caplog.at_level(logging.DEBUG):
        told = endpoint(address, model="m", retries=0)
        told.answer([], lambda text: text, "again")
    assert (
        server.headers[0]["Authorization"] == "Basic bWU6c2stZmFrZS00NzExLW5ldmVyLXRvLWJlLXNlZW4h"
    )
    assert KEY not in caplog.text + repr(told) + repr(told.report())
    with pytest.raises(LensSkillsError, match=r"not 'localhost/v1'") as refused:
        endpoint(f"me:{KEY}@localhost/v1?key={KEY}", model="m")
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("name", [KEY, "a1b2c3d4e5f6a1b2c3d4e5f6a1b2c3d4", "A" * 64])
def test_a_key_given_as_the_name_of_its_variable_is_not_repeated(server: Server, name: str) -> None:
    with pytest.raises(LensSkillsError, match="api_key_env") as refused:
        asked(server, api_key_env=name)
    assert name not in str(refused.value)


@pytest.mark.parametrize("held", ["sk-4711\nX-Other: 1", "sk-4711-schlüssel", "sk-4711\x7f"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(
    server: Server, held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", held)
    with pytest.raises(LensSkillsError, match="JUDGE_KEY holds a line break") as refused:
        asked(server)
    assert "4711" not in "".join(traceback.format_exception(refused.value))
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")  # as `$(cat key)` and copying leave it
    asked(server).answer([], lambda text: text, "again")
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
