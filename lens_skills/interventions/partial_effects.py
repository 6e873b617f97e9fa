"""`fill`: the effects of a sweep, batch after batch and stack after stack, here or in shards.

`PartialEffects` is the sheet that they fill in. A shard is a run of pairs of a batch and a stack of
sets, the units that a checkpoint counts; each is measured with the same rows side by side as when
nothing is divided, so that its effects are the same to the bit on equal processors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills import engines
from lens_skills.activations.forward import Encoded
from lens_skills.checkpoints import Checkpoint
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.batched_edits import EditStack
from lens_skills.interventions.effect_engine import DirectPath, EffectEngine, SweepSpec
from lens_skills.interventions.row_budget import OutOfColumns
from lens_skills.models import ModelAdapter
from lens_skills.models.memory import out_of_memory, release
from lens_skills.progress import Progress


@dataclass(eq=False)
class PartialEffects:
    """The effects measured so far.

    Attributes:
        clean, total, direct: As in `Effects`; zero where nothing was measured yet. ``direct`` is
            None as soon as one part does not define it.
        whole: Why full passes were run, where they were.
        done: How many parts (a batch and a stack of sets) are finished.
    """

    clean: Float[Tensor, " example"]
    total: Float[Tensor, "set example"]
    direct: Float[Tensor, "set example"] | None
    whole: str | None = None
    done: int = 0

    @classmethod
    def begun(
        cls, n_sets: int, n_examples: int, direct: bool, saved: Checkpoint | None
    ) -> "PartialEffects":
        """What was kept, else zeros (what an empty set does); raises if it is another sweep's."""
        kept = None if saved is None else saved.read()
        if kept is None:
            total = torch.zeros(n_sets, n_examples, dtype=torch.float64)
            clean = torch.zeros(n_examples, dtype=torch.float64)
            return cls(clean, total, torch.zeros_like(total) if direct else None)
        tensors, plain = kept
        return cls(tensors["clean"], tensors["total"], tensors.get("direct"), **plain["sheet"])

    def keep(self, saved: Checkpoint, *, now: bool = False) -> None:
        """Saves the sheet if the last save is long enough ago, or at once."""
        if not now and not saved.due():
            return
        saved.write(*self.packed())

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As tensors and plain values, for a checkpoint."""
        tensors = {"clean": self.clean, "total": self.total}
        if self.direct is not None:
            tensors["direct"] = self.direct
        return tensors, {"sheet": {"whole": self.whole, "done": self.done}}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sweep that is ready to be measured, on one model."""

    spec: SweepSpec
    ordered: Sequence[list[Encoded]]
    stacks: Sequence[EditStack]


Prepare = Callable[[ModelAdapter], Prepared]


def fill(
    ready: Prepared,
    prepare: Prepare,
    sheet: PartialEffects,
    names: Sequence[str],
    saved: Checkpoint | None,
) -> None:
    """Fills the sheet in, where `lens_skills.config` says; ``prepare`` makes a worker's own."""
    engine = engines.chosen(ready.spec.adapter)
    sizes = [len(stack.places) * len(batch) for batch in ready.ordered for stack in ready.stacks]
    if engine is None or len(sizes) - sheet.done < 2:
        _fill_here(ready, sheet, names, saved)
        return
    shards = engines.cut(range(sheet.done, len(sizes)), engine.n_shards())
    shape = (sheet.total.shape[0], len(sheet.clean), sheet.direct is not None)
    done = sum(sizes[: sheet.done])
    found = engine.run(
        ready.spec.adapter,
        _Shards(prepare, names, shape),
        shards,
        [sum(sizes[shard.start : shard.stop]) for shard in shards],
        verb="sweep", unit="effects", done=done, total=sum(sizes),
    )  # fmt: skip
    try:
        with engines.ended_by_interrupt(engine):
            for each in engines.in_order(found):
                each.part.enter(sheet, ready.spec)
                sheet.done = shards[each.number].stop
                if saved is not None:
                    sheet.keep(saved)
    except BaseException:
        if saved is not None and sheet.done:
            sheet.keep(saved, now=True)
        raise


@dataclass(frozen=True, eq=False)
class EffectPart:
    """The effects of one shard.

    Attributes:
        clean: Places of examples, and their clean metric.
        cells: Places of sets and of examples, and their total and direct effects.
        direct: Whether direct effects are known for all of them.
        whole: Why full passes were run.
        rows: Columns and MiB at once, how often memory ran out.
    """

    clean: tuple[list[int], Tensor]
    cells: list[tuple[list[int], list[int], Tensor, Tensor | None]]
    direct: bool
    whole: str | None
    rows: tuple[int, float, int]

    def enter(self, sheet: PartialEffects, spec: SweepSpec) -> None:
        """Writes them into the sheet of all."""
        examples, clean = self.clean
        sheet.clean[examples] = clean
        sheet.whole = sheet.whole or self.whole
        for sets, columns, total, direct in self.cells:
            where = torch.tensor(sets)[:, None], torch.tensor(columns)
            sheet.total[where] = total
            if sheet.direct is not None and direct is not None:
                sheet.direct[where] = direct
        if not self.direct:
            sheet.direct = None
        most, mib, halved = self.rows
        spec.rows.most, spec.rows.mib = max(spec.rows.most, most), max(spec.rows.mib, mib)
        spec.rows.halved += halved


@dataclass(frozen=True, eq=False)
class _Shards:
    """The shards of a sweep; ``shape`` is that of its sheet."""

    prepare: Prepare
    names: Sequence[str]
    shape: tuple[int, int, bool]

    def open(self, adapter: ModelAdapter) -> Prepared:
        return self.prepare(adapter)

    def run(self, opened: Prepared, shard: range, tick: Callable[[int], None]) -> EffectPart:
        n_sets, n_examples, direct = self.shape
        sheet = PartialEffects.begun(n_sets, n_examples, direct, None)
        n_stacks = len(opened.stacks)
        rows = opened.spec.rows
        rows.most, rows.mib, rows.halved = 0, 0.0, 0
        examples: list[int] = []
        cells = []
        for place in range(shard.start // n_stacks, -(-shard.stop // n_stacks)):
            batch = opened.ordered[place]
            first = max(0, shard.start - place * n_stacks)
            stop = min(n_stacks, shard.stop - place * n_stacks)
            work = _Sweep(
                opened.spec, opened.stacks[:stop], sheet, self.names, None, _Ticking(tick)
            )
            work.measure(batch, first)
            index = [item.index for item in batch]
            examples += index
            cells += [(list(stack.places), index) for stack in opened.stacks[first:stop]]
        known = sheet.direct
        full = []
        for sets, columns in cells:
            where = torch.tensor(sets)[:, None], torch.tensor(columns)
            full.append(
                (sets, columns, sheet.total[where], None if known is None else known[where])
            )
        found = rows.most, rows.mib, rows.halved
        clean = examples, sheet.clean[examples]
        return EffectPart(clean, full, not direct or known is not None, sheet.whole, found)


class _Ticking(Progress):
    """A loop in a worker, which tells how far it is."""

    def __init__(self, tick: Callable[[int], None]) -> None:
        super().__init__(0, "sweep", shown=False)
        self._tick = tick

    def update(self, n: int = 1) -> None:
        self._tick(n)

    def skip(self, n: int) -> None:
        self._tick(n)


def _fill_here(
    ready: Prepared, sheet: PartialEffects, names: Sequence[str], saved: Checkpoint | None
) -> None:
    """One batch after another and one stack of sets after another."""
    spec, ordered, stacks = ready.spec, ready.ordered, ready.stacks
    n_sets = sum(len(stack.places) for stack in stacks)
    total = n_sets * sum(map(len, ordered))
    with Progress(total, "sweep", "effects") as bar:
        work = _Sweep(spec, stacks, sheet, names, saved, bar)
        try:
            for place, batch in enumerate(ordered):
                finished = sheet.done - place * len(stacks)
                if finished >= len(stacks) > 0:
                    bar.skip(n_sets * len(batch))
                    continue
                finished = max(finished, 0)
                bar.skip(len(batch) * sum(len(stack.places) for stack in stacks[:finished]))
                work.measure(batch, finished)
        except BaseException:
            # An interruption (or a failure in a late part) does not lose the finished parts.
            if saved is not None and sheet.done:
                sheet.keep(saved, now=True)
            raise


@dataclass(frozen=True, eq=False)
class _Sweep:
    """Stacks of sets, and the sheet that their effects on one batch after another fill in."""

    spec: SweepSpec
    stacks: Sequence[EditStack]
    sheet: PartialEffects
    names: Sequence[str]
    saved: Checkpoint | None
    bar: Progress

    def measure(self, batch: Sequence[Encoded], finished: int, *, last: bool = True) -> None:
        """The stacks from ``finished`` on; in two halves of the batch where memory runs out.

        Of two halves the ``last`` one says what is done.
        """
        sheet = self.sheet
        try:
            engine = EffectEngine(self.spec, batch)
            sheet.clean[[item.index for item in batch]] = engine.clean
            sheet.whole = sheet.whole or engine.whole
            path = None if sheet.direct is None else DirectPath.of(engine)
            for stack in self.stacks[finished:]:
                self._fill(engine, path, stack)
                finished += 1
                if last:
                    sheet.done += 1
                    if self.saved is not None:
                        sheet.keep(self.saved)
            return
        except Exception as error:
            if not isinstance(error, OutOfColumns) and not out_of_memory(error):
                raise
            if len(batch) == 1:
                raise LensSkillsError(
                    f"memory ran out at one set of neurons on one example, {batch[0].id!r}. Leave "
                    "it out, close what else holds memory, or use a smaller model."
                ) from error
        engine = path = None  # their memory is needed
        release(self.spec.adapter.device)
        half = len(batch) // 2
        self.spec.rows.tell(f"{len(batch)} examples did not fit; {half} are run at once")
        self.measure(batch[:half], finished, last=False)
        self.measure(batch[half:], finished, last=last)

    def _fill(self, engine: EffectEngine, path: DirectPath | None, stack: EditStack) -> None:
        """One stack of sets on one batch, in parts that fit into memory, averaged over draws."""
        rows, examples = self.spec.rows, [item.index for item in engine.batch]
        start, few = 0, rows.trial(engine.shape, engine.columns)
        try:
            if 0 < few < len(stack.places):
                tried = partial(self._part, engine, path, stack.part(0, few))
                rows.run(engine.shape, engine.columns, few, tried)
            while start < len(stack.places):
                part = stack.part(start, start + engine.n_sets())
                measure = partial(self._part, engine, path, part)
                found = rows.run(engine.shape, engine.columns, len(part.places), measure)
                if found is None:
                    continue
                effects, direct = found
                where = torch.tensor(part.places)[:, None], torch.tensor(examples)
                _refuse_non_finite(effects, part, engine, self.names)
                self.sheet.total[where] = effects
                if direct is None:
                    self.sheet.direct = None
                elif self.sheet.direct is not None:
                    self.sheet.direct[where] = direct
                start += len(part.places)
                self.bar.note(str(rows))
                self.bar.update(effects.numel())
        except OutOfColumns:
            self.bar.skip(-start * len(examples))
            raise

    def _part(
        self, engine: EffectEngine, path: DirectPath | None, part: EditStack
    ) -> tuple[Float[Tensor, "set example"], Float[Tensor, "set example"] | None]:
        """Total and direct effects of some sets; the direct ones None where one is not known."""
        draws = range(self.spec.change.n_draws)
        total = torch.stack([engine.measure(part, draw) for draw in draws]).mean(0)
        if self.sheet.direct is None or path is None:
            return total, None
        found = [path.measure(part, draw) for draw in draws]
        known = [direct for direct in found if direct is not None]
        return total, torch.stack(known).mean(0) if len(known) == len(found) else None


def _refuse_non_finite(
    effects: Float[Tensor, "set example"],
    stack: EditStack,
    engine: EffectEngine,
    names: Sequence[str],
) -> None:
    wrong = (~torch.isfinite(effects)).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise LensSkillsError(
            f"the effect of {names[stack.places[row]]} on {engine.spec.metric.name!r} is "
            f"{float(effects[row, column])} for example {engine.batch[column].id!r}. Leave the "
            "unit or the example out, or choose a milder edit."
        )
