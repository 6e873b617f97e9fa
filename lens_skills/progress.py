"""How far a long loop is: a bar on a terminal, one plain line a minute in a pipe or a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

from lens_skills import settings

MINUTE = 60.0
_PAUSE = 10.0  # seconds without any loop, after which a new minute begins
_clock = time.monotonic
_open: list["Progress"] = []  # the outermost first
_line = {"last": 0.0, "ended": -_PAUSE}
_books: list["_Book"] = []  # the innermost `time_by_unit` is kept
Each = TypeVar("Each")


class Progress:
    """One loop that takes long, from its first to its last unit of work.

    On a terminal, a bar with the time left; of loops inside one another only the outermost stays.
    Elsewhere one line a minute on stderr, the first after a minute: what is done, of how much, the
    time it took and the time left at the speed so far. `lens_skills.config(progress=False)` shows
    neither; in a notebook there is a bar where ``progress=True`` asks for one.

    Args:
        total: How much work there is.
        verb: What is done.
        unit: Of the work, in the plural.
        done: How much of it was done before (of a run that is resumed).
        shown: False for a loop that is never shown.
    """

    def __init__(
        self, total: int, verb: str, unit: str = "", *, done: int = 0, shown: bool = True
    ) -> None:
        self.total, self.verb, self.unit = total, verb, unit
        self.done = self._before = done
        self._note = ""
        self._began = _clock()
        self._kind = _kind() if shown else ""
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if _books:
            _books[-1].begin(self)
        if self._kind == "bar":
            self._bar = tqdm(
                total=self.total,
                initial=self.done,
                desc=self.verb,
                unit=f" {self.unit}" if self.unit else "it",
                unit_scale=self.total >= 10_000,
                leave=not _open,
                file=sys.stderr,
            )
        if self._kind:
            now = _clock()
            if not _open and now - _line["ended"] >= _PAUSE:
                _line["last"] = now
            _open.append(self)
        return self

    def update(self, n: int = 1) -> None:
        """So much more is done."""
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
        elif self._kind == "lines":
            now = _clock()
            if now - _line["last"] >= MINUTE:
                _line["last"] = now
                print("; ".join(each.line(now) for each in _open), file=sys.stderr, flush=True)

    def skip(self, n: int) -> None:
        """So much was done before, which says nothing of the speed."""
        self._before += n
        self.done += n
        if self._bar is not None:
            self._bar.update(n)

    def note(self, text: str) -> None:
        """A few words behind the bar or in the line, until the next ones."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def line(self, now: float) -> str:
        """``sweep: 1,200 of 46,080 effects, 2 min passed, 75 min left``."""
        spent, new = now - self._began, self.done - self._before
        unit = f" {self.unit}" if self.unit else ""
        text = f"{self.verb}: {self.done:,} of {self.total:,}{unit}, {in_words(spent)} passed"
        if new > 0 and self.done < self.total:
            text += f", {in_words(spent * (self.total - self.done) / new)} left"
        return f"{text} ({self._note})" if self._note else text

    def close(self) -> None:
        """The loop is over, or broken off: what is printed next begins a line of its own."""
        if _books:
            _books[-1].end(self)
        if self._bar is not None:
            self._bar.close()
        if self in _open:
            _open.remove(self)
            _line["ended"] = _clock()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def progress(items: Iterable[Each], total: int, verb: str, unit: str = "") -> Iterator[Each]:
    """The items of a loop, one unit of work each.

    >>> list(progress("ab", 2, "read", "letters"))
    ['a', 'b']
    """
    with Progress(total, verb, unit) as shown:
        for item in items:
            yield item
            shown.update()


class _Book:
    """Processor seconds inside loops by the unit of the innermost one; "" outside of any."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.running: list[Progress] = []
        self.since = time.process_time()

    def count(self) -> None:
        """The time since the last call goes to the loop that runs."""
        now, unit = time.process_time(), self.running[-1].unit if self.running else ""
        self.seconds[unit] = self.seconds.get(unit, 0.0) + now - self.since
        self.since = now

    def begin(self, loop: "Progress") -> None:
        self.count()
        self.running.append(loop)

    def end(self, loop: "Progress") -> None:
        self.count()
        if loop in self.running:
            self.running.remove(loop)


@contextmanager
def time_by_unit() -> Iterator[dict[str, float]]:
    """Where a ``with`` goes: processor seconds by the unit of the loop that ran, "" for none.

    Filled in when the block ends; loops count whether they are shown or not.

    >>> with time_by_unit() as seconds:
    ...     items = list(progress("ab", 2, "read", "letters"))
    >>> sorted(seconds)
    ['', 'letters']
    """
    book = _Book()
    _books.append(book)
    try:
        yield book.seconds
    finally:
        book.count()
        _books.remove(book)


def close_all() -> None:
    """Every loop is over: after an interruption, before anything is said of it."""
    for each in reversed(list(_open)):
        each.close()


def in_words(seconds: float) -> str:
    """A time as it is said, in two figures or so.

    >>> [in_words(s) for s in (0.42, 8.3, 75, 600, 5400, 9000)]
    ['0.4 s', '8 s', '75 s', '10 min', '90 min', '2.5 h']
    """
    if seconds < 1:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _kind() -> str:
    """How a loop is shown here: ``bar``, ``lines`` or not at all."""
    hidden = settings.hides_progress()
    if hidden:
        return ""
    if sys.stderr is None:  # a program without a console
        return ""
    if sys.stderr.isatty():
        return "bar"
    notebook = type(sys.stderr).__module__.startswith("ipykernel")
    if notebook:
        return "bar" if hidden is False else ""
    return "lines"
