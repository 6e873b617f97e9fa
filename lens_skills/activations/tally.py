"""`add_up`: what one pass adds up over its batches, here or in shards on other machines.

A `Tally` is what is added up. Its parts are those of whole batches, in the batches of a pass that
is not divided; added, they are that pass's sums but for the order of the additions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lens_skills import engines
from lens_skills.activations.activation_reader import ActivationReader
from lens_skills.activations.activation_table import ActivationTable
from lens_skills.activations.stream import Batch
from lens_skills.models import ModelAdapter


class Tally(ABC):
    """What is added up over the batches of a pass."""

    @abstractmethod
    def absorb(self, source: ActivationReader, batch: Batch) -> None:
        """Adds a batch."""

    @property
    def ready(self) -> bool:
        """Whether enough was seen for others to add on the same scale."""
        return True

    @abstractmethod
    def empty(self) -> "Tally":
        """One that has seen nothing, on the same scale, to be sent to workers."""

    @abstractmethod
    def begun(self, device: torch.device | str) -> "Tally":
        """A new one like this, whose sums stand on a device."""

    @abstractmethod
    def finished(self) -> Any:
        """The sums as they are sent back, on the CPU."""

    @abstractmethod
    def merge(self, part: Any) -> None:
        """Adds what another one has `finished`."""


def add_up(
    source: ActivationReader,
    tally: Tally,
    *,
    skip: int = 0,
    layers: Sequence[int] | None = None,
    gate: bool = False,
    verb: str = "read",
    keep: Callable[[int], None] = lambda done: None,
) -> None:
    """Adds all batches of a pass to a tally, where `lens_skills.config` says.

    Args:
        source: What is read.
        tally: What is added up.
        skip: How many batches it holds already.
        layers, gate: As in `ActivationReader.batches`.
        verb: What the bar says.
        keep: Told after each batch, or shard, how many batches the tally holds.
    """
    engine = engines.chosen(source.adapter)
    with engines.ended_by_interrupt(engine):
        _add_up(engine, source, tally, skip, layers, gate, verb, keep)


def _add_up(
    engine: engines.Engine | None,
    source: ActivationReader,
    tally: Tally,
    skip: int,
    layers: Sequence[int] | None,
    gate: bool,
    verb: str,
    keep: Callable[[int], None],
) -> None:
    done, own = skip, None
    if engine is not None:
        if source.table is not None:
            source.table.check_unchanged()
        own = source.sizes()
        if done == len(own):
            return
    if engine is None or own is None or not (skip and tally.ready):
        for batch in source.batches(skip=skip, layers=layers, gate=gate):
            tally.absorb(source, batch)
            done += 1
            keep(done)
            if engine is not None and tally.ready:
                break
    if engine is None or own is None or done == len(own):
        return
    shards = engines.cut(range(done, len(own)), engine.n_shards())
    table = None if source.table is None else source.table.to_send()
    job = _TallyJob(table, source.recipe(), tally.empty(), layers, gate)
    sizes = [sum(own[shard.start : shard.stop]) for shard in shards]
    found = engine.run(
        source.adapter, job, shards, sizes,
        verb=verb, unit="examples", done=sum(own[:done]), total=sum(own),
    )  # fmt: skip
    for each in engines.in_order(found):
        tally.merge(each.part)
        keep(shards[each.number].stop)


@dataclass(frozen=True)
class _TallyJob:
    """The batches of a shard, added up by themselves."""

    table: ActivationTable | None
    recipe: dict[str, Any]
    empty: Tally
    layers: Sequence[int] | None
    gate: bool

    def open(self, adapter: ModelAdapter | None) -> ActivationReader:
        if self.table is not None:
            self.table.check_unchanged()
        return ActivationReader(adapter if self.table is None else self.table, **self.recipe)

    def run(self, opened: ActivationReader, shard: range, tick: engines.Tick) -> Any:
        tally = self.empty.begun(opened.device)
        for batch in opened.batches(
            skip=shard.start, stop=shard.stop, layers=self.layers, gate=self.gate, progress=False
        ):
            tally.absorb(opened, batch)
            tick(len(batch.index))
        return tally.finished()
