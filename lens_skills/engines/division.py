"""Work divided into shards: what a shard is, who runs it, and in which order parts are added.

A `Job` is the work of one pass, an `Engine` runs its shards anywhere. A shard is a run of the
pass's own units of work (batches; batches by stacks of edits), so that every batch holds the
examples that it holds when nothing is divided, and its numbers are the same to the bit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

from lens_skills import settings
from lens_skills.errors import RunError
from lens_skills.models import ModelAdapter

Tick = Callable[[int], None]
"""Told how much more of a shard is done, in the unit of its size."""

SHARDS = 4
"""So many shards for each worker: what a worker that dies had begun is done again elsewhere."""


@runtime_checkable
class Job(Protocol):
    """The work of one pass, sent to every worker once."""

    def open(self, adapter: Any) -> Any:
        """What all shards share: the examples in tokens, for one. Called once in a worker.

        ``adapter`` is a `ModelAdapter`, or None for work that needs no model.
        """
        ...

    def run(self, opened: Any, shard: range, tick: Tick) -> Any:
        """The numbers of one shard, on the CPU."""
        ...


@dataclass(frozen=True)
class Finished:
    """A shard that is done.

    Attributes:
        number: Which one.
        part: Its numbers.
        worker: Who did it, as ``node/process``.
        seconds: What it took there.
        waited: From when it was given out until its numbers were here.
        tries: How often it was given out.
    """

    number: int
    part: Any
    worker: str
    seconds: float
    waited: float
    tries: int


@runtime_checkable
class Engine(Protocol):
    """Runs the shards of jobs."""

    def n_shards(self) -> int:
        """How many shards to cut a pass into."""
        ...

    def stop(self) -> None:
        """Ends all workers."""
        ...

    def run(
        self,
        adapter: ModelAdapter | None,
        job: Job,
        shards: Sequence[range],
        sizes: Sequence[int],
        *,
        verb: str,
        unit: str,
        done: int = 0,
        total: int | None = None,
    ) -> Iterator[Finished]:
        """The shards as they are finished, in any order.

        Args:
            adapter: The model, as it is read here; None for work that needs none.
            job: The work.
            shards: Which of the pass's units of work each one holds.
            sizes: How large each one is, in ``unit``.
            verb, unit: What the bar says.
            done, total: What was done before, and of how much (default: of all that is here).
        """
        ...


@contextmanager
def ended_by_interrupt(engine: Engine | None) -> Iterator[None]:
    """Ctrl-C inside ends the workers, wherever in the pass it comes."""
    try:
        yield
    except KeyboardInterrupt:
        if engine is not None:
            engine.stop()
        raise


def refuse_divided(verb: str, why: str) -> None:
    """Nothing; raises where another engine is asked for than this process.

    Raises:
        RunError: A verb whose passes are not divided.
    """
    if settings.engine() != "local":
        raise RunError(
            f"{verb} is not divided under engine={settings.engine()!r}: {why} Run it with "
            "ls.config(engine='local')."
        )


def cut(units: range, n_shards: int) -> list[range]:
    """Some units of work, cut into shards of like length; none is empty.

    >>> cut(range(3, 10), 3)
    [range(3, 6), range(6, 8), range(8, 10)]
    >>> cut(range(2), 8)
    [range(0, 1), range(1, 2)]
    """
    n = min(n_shards, len(units))
    if n == 0:
        return []
    least, more = divmod(len(units), n)
    starts = [units.start + k * least + min(k, more) for k in range(n + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


def in_order(finished: Iterable[Finished]) -> Iterator[Finished]:
    """Shards from the first to the last: sums then do not depend on who was faster.

    >>> [each.number for each in in_order(Finished(n, None, "", 0, 0, 1) for n in (1, 2, 0))]
    [0, 1, 2]
    """
    waiting: dict[int, Finished] = {}
    following = 0
    for each in finished:
        waiting[each.number] = each
        while following in waiting:
            yield waiting.pop(following)
            following += 1
