"""A judge behind an endpoint: a local server that fails in every way a real one does."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.generation import Graded, grade
from lens_skills.generation.graded import Written
from lens_skills.generation.llm_judge import GIVE_UP, Judge, judge, read_answer
from lens_skills.tasks.skill_mix import Skill
from tests.local_server import Server

SKILLS = [Skill("pun", "Plays with two meanings.", "I was board."), "simile"]
GOOD = '{"pun": 1, "simile": 0.5}'


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(GOOD)
    yield server
    server.stop()


def ask(server: Server, **options: Any) -> Judge:
    settings = {"model": "m", "skills": SKILLS, "timeout": 5.0, "wait": 0.01, "retries": 2}
    return judge(server.url, **{**settings, **options})


def texts(n: int = 3) -> Graded:
    examples = [
        Example(id=f"e{i}", prompt="Write.", labels={"pun": 1}, covariates={"topic": "Wool"})
        for i in range(n)
    ]
    written = [Written(f"Text {i}.", [1], True, [-1.0, -1.0], [1.0, 1.0]) for i in range(n)]
    return Graded.of(examples, written, {})


def test_the_judge_reads_text_topic_and_definitions_and_grades(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "hush")  # of another endpoint
    graded = grade(texts(), ask(server))
    assert graded.grades["pun"].tolist() == [1, 1, 1]
    assert graded.grades["simile"].tolist() == [0.5] * 3
    assert graded.problems == ()
    assert server.paths == ["/v1/chat/completions"] * 3
    assert (server.seen[0]["model"], server.seen[0]["temperature"]) == ("m", 0.0)
    said = server.seen[1]["messages"][-1]["content"]
    for part in ("Text 1.", "Wool", "pun: Plays with two meanings.", "simile: One thing"):
        assert part in said
    assert "Authorization" not in server.headers[0]
    assert "hush" not in server.headers[0].values()


def test_without_skills_it_grades_each_examples_labels(server: Server) -> None:
    server.script = ['{"pun": 0}']
    graded = grade(texts(1), ask(server, skills=None, temperature=None))
    assert graded.grades["pun"].tolist() == [0]
    assert "temperature" not in server.seen[0]


def test_the_key_goes_into_the_header_and_nowhere_else(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "hush")
    judged = ask(server, api_key_env="JUDGE_KEY", cache=tmp_path / "cache")
    graded = grade(texts(1), judged)
    assert server.headers[0]["Authorization"] == "Bearer hush"
    graded.save(tmp_path / "graded")
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) == 3
    assert not any(b"hush" in path.read_bytes() for path in kept)
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(LensSkillsError, match="JUDGE_KEY is not set"):
        ask(server, api_key_env="JUDGE_KEY")


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_a_busy_endpoint_is_asked_again(server: Server, status: int) -> None:
    server.script = [(status, {}), (status, {}), GOOD]
    judged = ask(server)
    graded = grade(texts(1), judged)
    assert graded.grades["pun"].tolist() == [1]
    assert (judged.counts["requests"], judged.counts["failed_requests"]) == (3, 2)


def test_waits_double_and_follow_what_the_endpoint_asks_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.script = [(503, {}), (503, {}), (429, {"Retry-After": "7"}), (503, {}), (503, {})]
    server.script += [(429, {"Retry-After": "9999"}), GOOD]
    judged = ask(server, retries=3, wait=1.0)
    grade(texts(2), judged)
    assert waits == [1, 2, 7, 1, 60]


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_is_not_repeated(server: Server, status: int) -> None:
    server.script = [(status, {})]
    graded = grade(texts(1), ask(server))
    assert len(server.seen) == 1
    assert graded.problems[0].reason.startswith(f"HTTP {status} busy")


def hang(handler: Any) -> None:
    """A good answer, too late: whoever waits for it asks once."""
    time.sleep(0.6)
    with contextlib.suppress(OSError):
        content = json.dumps({"choices": [{"message": {"content": GOOD}}]})
        handler.reply(content.encode(), 200, {})


def cut(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    handler.wfile.flush()
    handler.connection.close()


def no_completion(handler: Any) -> None:
    handler.reply(b'{"object": "error"}', 200, {})


def page(handler: Any) -> None:
    handler.reply(b"<html>welcome</html>", 200, {})


@pytest.mark.parametrize("failure", [hang, cut, no_completion, page])
def test_a_reply_that_does_not_come_is_asked_for_again(
    server: Server, failure: Callable[[Any], None]
) -> None:
    server.script = [failure, GOOD]
    graded = grade(texts(1), ask(server, timeout=0.2))
    assert graded.grades["pun"].tolist() == [1]
    assert len(server.seen) == 2


def test_nonsense_is_asked_for_again_and_then_recorded(server: Server) -> None:
    server.script = ["As a poet I cannot say.", GOOD]
    graded = grade(texts(1), ask(server))
    assert graded.grades["simile"].tolist() == [0.5]
    first, second = (seen["messages"] for seen in server.seen)
    assert second[:-1] == first  # the same question, and a word on the form of its answer
    assert "one JSON object" in second[-1]["content"]

    server.script = ['{"pun": 1, "simile": "very"}', '{"pun": 17}', "null"]
    graded = grade(texts(1), ask(server))
    assert graded.grades["pun"].tolist() == [1]  # what was said well is kept
    assert "simile" not in graded.grades
    assert graded.problems[0].reason == "nonsense: no JSON object in 'null' (asked 3 times)"


def test_a_dead_endpoint_is_left_alone_and_asked_again_later(server: Server) -> None:
    server.script = [GOOD, (500, {})]
    judged = ask(server, retries=1)
    first = grade(texts(8), judged)
    assert first.grades["pun"].isnan().tolist() == [False, *[True] * 7]
    assert len(server.seen) == 1 + 2 * GIVE_UP
    reasons = [problem.reason for problem in first.problems]
    assert reasons[0] == "HTTP 500 busy (asked 2 times)"
    assert reasons[GIVE_UP].startswith("not asked")
    server.script = [(400, {}), GOOD]  # this time the first text fails
    again = grade(first, judged)
    assert not again.grades["pun"].isnan().any()
    assert [problem.id for problem in again.problems] == ["e0"]


def test_nobody_there(tmp_path: Path) -> None:
    server = Server(GOOD)
    server.stop()
    graded = grade(texts(2), ask(server, retries=1))
    assert graded.grades == {}
    assert "refused" in graded.problems[0].reason
    assert "2 problems" in repr(graded)
    assert Graded.load(graded.save(tmp_path / "graded")).problems == graded.problems


def test_what_was_answered_is_not_asked_again(server: Server, tmp_path: Path) -> None:
    server.script = [GOOD, GOOD, (500, {})]
    first = grade(texts(3), ask(server, cache=tmp_path, retries=0))
    assert first.grades["pun"].isnan().tolist() == [False, False, True]
    server.script, server.seen = ['{"pun": 0, "simile": 0}'], []
    judged = ask(server, cache=tmp_path)
    again = grade(texts(3), judged)
    assert again.grades["pun"].tolist() == [1, 1, 0]
    assert len(server.seen) == 1
    assert judged.report()["from_cache"] == 2
    # Another model, another question: nothing of the cache fits.
    grade(texts(3), ask(server, cache=tmp_path, model="other"))
    grade(texts(3), ask(server, cache=tmp_path, skills=["rhyme"], retries=0))
    assert len(server.seen) == 7
    for file in tmp_path.glob("*.json"):
        file.write_text("{")  # damaged: asked anew
    grade(texts(3), ask(server, cache=tmp_path))
    assert len(server.seen) == 10


def test_the_cost_is_reported_with_the_grades(server: Server) -> None:
    server.script = ["what?", GOOD]
    graded = grade(texts(2), ask(server, price_per_token=(0.5, 10.0)))
    (report,) = graded.provenance["graders"].values()
    assert (report["requests"], report["prompt_tokens"], report["completion_tokens"]) == (
        3,
        300,
        21,
    )
    assert report["cost"] == 300 * 0.5 + 21 * 10
    assert ask(server, price_per_token=2.0).prices == (2.0, 2.0)


def test_without_the_client_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(LensSkillsError, match=r"pip install 'lens-skills\[judge\]'"):
        judge("http://x", model="m")


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(LensSkillsError, match="begins with http"):
        judge("file:///etc", model="m")
    with pytest.raises(LensSkillsError, match="timeout"):
        judge("http://x", model="m", timeout=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(LensSkillsError, match="cannot be written"):
        judge("http://x", model="m", cache=tmp_path / "file")
    assert judge("http://x/chat/completions/", model="m").url == "http://x/chat/completions"
    graded = grade(
        Graded.of([Example(id="a", prompt="x")], [Written("t", [1], True, [0.0], [0.0])], {}),
        judge("http://127.0.0.1:9", model="m"),
    )
    assert "names no skills" in graded.problems[0].reason


@pytest.mark.parametrize(
    ("content", "grades", "complaint"),
    [
        ('{"a": 1, "b": 0}', {"a": 1, "b": 0}, ""),
        ('```json\n{"a": true, "b": "No"}\n```', {"a": 1, "b": 0}, ""),
        ('Note {x}. So: {"b": "0.5", "a": 1, "c": 9} {"a": 0}', {"a": 1, "b": 0.5}, ""),
        ('{"a": 2, "b": -0.1}', {}, "'a' is 2; 'b' is -0.1"),
        ('{"a": null, "b": NaN}', {}, "'a' is None; 'b' is nan"),
        ('{"a": [1], "b": 1}', {"b": 1}, "'a' is [1]"),
        ("[1, 2]", {}, "no JSON object in '[1, 2]'"),
        ("", {}, "no JSON object in ''"),
    ],
)
def test_what_an_answer_says(content: str, grades: dict[str, float], complaint: str) -> None:
    assert read_answer(content, ["a", "b"]) == (grades, complaint)
