"""The key of an endpoint is in the header of a request, and nowhere else."""

import html
import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lens_skills.cli.app import app
from lens_skills.cli.console import Call
from lens_skills.cli.runs import Run, RunRequest
from lens_skills.contents import content
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


QUOTED = [
    str, lambda said: json.dumps({"error": said}), html.escape, quote,
    lambda said: json.dumps({"error": said}).replace("/", "\\/"),
]  # fmt: skip


@pytest.mark.parametrize("form", QUOTED)
def test_a_secret_that_a_reply_quotes_is_left_out(
    form: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk/4711&<'x y>")
    login = server.url.replace("http://", "http://me:pass%2F4711%26x@")
    for told in (asked(server), endpoint(login, model="m", retries=0)):
        header: list[str] = []

        def repeat(handler: Any, header: list[str] = header) -> None:
            header.append(handler.headers["Authorization"])
            said = f"{header[0]} pass/4711&x" if header[0].startswith("Basic") else header[0]
            handler.reply(form(said).encode(), 401, {})

        server.script = [repeat]
        with pytest.raises(NoAnswer) as failed:
            told.answer([], lambda text: text, "again")
        assert "[key]" in str(failed.value)
        assert "4711" not in str(failed.value)
        assert header[0].split()[1] not in str(failed.value)


@pytest.mark.parametrize("end", ["?key=sk-4711", "#sk-4711", "/chat/completions?key=sk-4711"])
def test_a_key_in_an_address_is_refused_because_requests_are_logged(end: str) -> None:
    with pytest.raises(LensSkillsError, match=r"ends before '\?'.*api_key_env=") as refused:
        endpoint(f"http://localhost/v1{end}", model="m")
    assert "4711" not in str(refused.value)


def test_the_shell_repeats_no_login_of_an_address(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    call = Call(args=["explain", "run", "--describer", f"http://me:{KEY}@localhost/v1"])
    assert KEY not in call.command
    assert "http://[login]@localhost/v1" in call.command
    assert Call(args=["score", "a@b", "--out", "x@y"]).command == "lens-skills score a@b --out x@y"
    run = Run.create(tmp_path / "run", RunRequest("agreement", ("label:plural",))).folder
    for given in (f"http://me:{KEY}@localhost/v1", f"me:{KEY}@localhost/v1"):
        with pytest.raises(SystemExit):
            app(["explain", str(run), "--describer", given], prog_name="lens-skills")
    assert KEY not in "".join(capfd.readouterr())
    assert not any(KEY.encode() in path.read_bytes() for path in run.rglob("*.*"))


def test_what_a_checkpoint_writes_of_an_endpoint_tells_it_apart_and_holds_no_secret(
    server: Server,
) -> None:
    login = server.url.replace("http://", f"http://me:{KEY}@")
    one, again = (endpoint(login, model="m", api_key_env="JUDGE_KEY") for _ in range(2))
    one.answer([], lambda text: text, "again")
    assert content(one) == content(again)
    assert KEY not in json.dumps(content(one))
    skills = [
        content(judge(server.url, model=model, skills=some, api_key_env="JUDGE_KEY"))
        for model, some in (("m", SKILLS), ("m", SKILLS[:1]), ("n", SKILLS))
    ]
    assert len({json.dumps(each) for each in (*skills, content(one))}) == 4
