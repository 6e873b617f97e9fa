"""Progress of long loops: bars on a terminal, a line a minute elsewhere."""

import io
import sys
from contextlib import suppress

import pytest

from lens_skills import progress as module
from lens_skills.progress import Progress, close_all, in_words, progress
from lens_skills.settings import config


class Stream(io.StringIO):
    """A stderr that is a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


class NotebookStream(Stream):
    """What a kernel has for a stderr, by the module it comes from."""


NotebookStream.__module__ = "ipykernel.iostream"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list: set it to let time pass."""
    now = [1000.0]
    monkeypatch.setattr(module, "_clock", lambda: now[0])
    monkeypatch.setattr(module, "_open", [])
    monkeypatch.setattr(module, "_line", {"last": 0.0, "ended": -1e9})
    return now


def stderr(monkeypatch: pytest.MonkeyPatch, terminal: bool = False, kind: type = Stream) -> Stream:
    stream = kind(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def run(clock: list[float], n: int, seconds: float, verb: str = "sweep") -> None:
    for _ in progress(range(n), n, verb, "effects"):
        clock[0] += seconds


def test_a_pipe_gets_one_plain_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    stream = stderr(monkeypatch)
    run(clock, 30, 10)  # five minutes
    lines = stream.getvalue().splitlines()
    assert lines == [
        "sweep: 6 of 30 effects, 60 s passed, 4 min left",
        "sweep: 12 of 30 effects, 2 min passed, 3 min left",
        "sweep: 18 of 30 effects, 3 min passed, 2 min left",
        "sweep: 24 of 30 effects, 4 min passed, 60 s left",
        "sweep: 30 of 30 effects, 5 min passed",
    ]
    assert "\r" not in stream.getvalue()


def test_nothing_is_said_of_what_takes_less_than_a_minute(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    stream = stderr(monkeypatch)
    run(clock, 59, 1)
    clock[0] += 60  # the user's own time, between two calls
    run(clock, 59, 1)
    assert stream.getvalue() == ""


def test_short_loops_of_one_verb_add_up_to_minutes(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    stream = stderr(monkeypatch)
    for _ in range(6):
        run(clock, 30, 1)
        clock[0] += 2
    assert len(stream.getvalue().splitlines()) == 3  # of three minutes and a bit


def test_loops_inside_one_another_share_the_line(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    stream = stderr(monkeypatch)
    with Progress(4, "stability", "runs") as outer:
        for _ in range(4):
            run(clock, 6, 10, "score")
            outer.update()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[1] == (
        "stability: 1 of 4 runs, 2 min passed, 6 min left; score: 6 of 6 effects, 60 s passed"
    )


def test_what_was_done_before_does_not_count_for_the_speed(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    stream = stderr(monkeypatch)
    with Progress(100, "write", "texts", done=40) as bar:
        bar.skip(10)
        clock[0] += 60
        bar.update(10)
    assert stream.getvalue() == "write: 60 of 100 texts, 60 s passed, 4 min left\n"


@pytest.mark.parametrize(
    ("shown", "terminal", "kind", "seen"),
    [
        (None, False, Stream, "line"),
        (True, False, Stream, "line"),
        (False, False, Stream, ""),
        (None, True, Stream, "bar"),
        (False, True, Stream, ""),
        (None, False, NotebookStream, ""),
        (True, False, NotebookStream, "bar"),
    ],
)
def test_where_what_is_shown(
    monkeypatch: pytest.MonkeyPatch,
    clock: list[float],
    shown: bool | None,
    terminal: bool,
    kind: type,
    seen: str,
) -> None:
    stream = stderr(monkeypatch, terminal, kind)
    with config(progress=shown):
        run(clock, 2, 60)
    text = stream.getvalue()
    assert ("\r" in text, "min" in text and "\r" not in text) == (seen == "bar", seen == "line")


def test_a_bar_that_is_broken_off_ends_its_line(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    stream = stderr(monkeypatch, terminal=True)
    with suppress(KeyboardInterrupt), Progress(5, "sweep") as bar:
        bar.update()
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("\n")
    left = progress(range(3), 3, "sweep")  # a generator that nobody closes
    next(left)
    close_all()
    assert stream.getvalue().endswith("\n")
    assert module._open == []


def test_of_bars_inside_one_another_the_outermost_stays(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    stream = stderr(monkeypatch, terminal=True)
    with Progress(2, "outer") as outer:
        for _ in range(2):
            run(clock, 3, 1, "inner")
            outer.update()
    last = stream.getvalue().rstrip("\n").split("\n")[-1].split("\r")[-1]
    assert "outer: 100%" in last
    assert "inner" not in last


def test_no_loop_of_the_package_has_a_bar_of_its_own() -> None:
    from tests.test_architecture import PACKAGE, files

    others = [path.name for path in files(PACKAGE) if "import tqdm" in path.read_text("utf-8")]
    assert others == ["progress.py"]


def test_times_are_said_in_two_figures() -> None:
    assert [in_words(s) for s in (59.6, 99, 101, 5999, 6001)] == [
        "60 s", "99 s", "2 min", "100 min", "1.7 h",
    ]  # fmt: skip
