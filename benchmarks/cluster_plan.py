"""What a long pass takes on a cluster: simulated from shards here, and held against a run.

    python benchmarks/cluster_plan.py --save    # some minutes
    python benchmarks/cluster_plan.py --quick   # a smoke run: fewer examples, once

`simulate` gives the shards of a pass to workers, event by event: workers open the model, shards
take their time, a node dies with its workers and what they had begun, the one process that asked
adds the parts one after another.

Validated: a small pass under Ray gives the figures (seconds an example, overhead and bytes of a
shard, seconds to add a part), the simulation says what four times as many examples take, with and
without the death of a worker, and the same is measured.

The plan: `PLANS`. What is measured here and what is assumed of GPUs stands beside each figure.
"""

import heapq
import os
import signal
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ray_deaths import killed_after_one_shard, sent_bytes
from timing import arguments, run_parts, table

import lens_skills as ls
from lens_skills.engines import cut, ray_engine
from lens_skills.engines.division import SHARDS
from lens_skills.scoring.score_tally import ScoreTally


@dataclass(frozen=True)
class Work:
    """A pass in shards.

    Attributes:
        shards: Seconds that each takes in a worker.
        first: Seconds of what the asking process reads itself, before.
        begin: Seconds that each worker prepares before its first shard of the pass (the examples
            in tokens).
        more: Seconds that a shard takes beside its own: given out, sent back, noticed.
        merge: Seconds in which the asking process adds a part; meanwhile it gives nothing out.
    """

    shards: Sequence[float]
    first: float = 0.0
    begin: float = 0.0
    more: float = 0.0
    merge: float = 0.0


@dataclass(frozen=True)
class Workers:
    """Who does it.

    Attributes:
        nodes, each: Nodes, and workers of each.
        opening: Seconds in which a worker opens the model; 0: they are open.
        death_rate: Deaths of a node a second, of each.
        at: Seconds at which the first node dies, where that is given.
        back: Seconds from a death until it is noticed and its workers open the model again.
    """

    nodes: int
    each: int
    opening: float = 0.0
    death_rate: float = 0.0
    at: float | None = None
    back: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What came of it: seconds, worker seconds lost, deaths, shards given out again."""

    seconds: float
    lost: float
    deaths: int
    again: int


def simulate(work: Work, workers: Workers, seed: int = 0) -> Outcome:
    """One course of a pass.

    >>> simulate(Work([2.0] * 8), Workers(nodes=2, each=2)).seconds
    4.0
    >>> simulate(Work([2.0] * 8), Workers(nodes=2, each=2, at=1.0, back=1.0))
    Outcome(seconds=6.0, lost=2.0, deaths=1, again=2)
    """
    draw = np.random.default_rng(seed)
    todo = deque(range(len(work.shards)))
    events: list[tuple[float, int, str, int, int]] = []  # when, order, what, whose, which life
    count = iter(range(1 << 62))
    n_workers = workers.nodes * workers.each
    life, holds = [0] * n_workers, dict[int, tuple[int, float]]()
    prepared = [False] * n_workers
    idle: list[int] = []
    now = free = work.first  # when the asking process can give something out
    lost, deaths, again, n_done, end = 0.0, 0, 0, 0, 0.0

    def add(when: float, what: str, whose: int, which: int = 0) -> None:
        heapq.heappush(events, (when, next(count), what, whose, which))

    def dies_after(when: float, node: int) -> None:
        if workers.death_rate:
            add(when + draw.exponential(1 / workers.death_rate), "death", node)

    for worker in range(n_workers):
        add(work.first + workers.opening, "open", worker)
    for node in range(workers.nodes):
        dies_after(0.0, node)
    if workers.at is not None:
        add(workers.at, "death", 0)
    while n_done < len(work.shards):
        now, _, what, whose, which = heapq.heappop(events)
        if what == "death":
            deaths += 1
            mine = range(whose * workers.each, (whose + 1) * workers.each)
            for worker in mine:
                life[worker] += 1
                prepared[worker] = False
                if worker in idle:
                    idle.remove(worker)
                if worker in holds:
                    number, since = holds.pop(worker)
                    todo.appendleft(number)
                    lost, again = lost + max(now - since, 0.0), again + 1
                add(now + workers.back, "open", worker, life[worker])
            dies_after(now + workers.back, whose)
        elif which != life[whose]:
            continue  # of a worker that has died since
        elif what == "done":
            holds.pop(whose)
            n_done += 1
            free = max(free, now) + work.merge
            end = free
            idle.append(whose)
        else:
            idle.append(whose)
        while idle and todo:
            worker, number = idle.pop(0), todo.popleft()
            since = max(now, free)
            took = work.shards[number] + work.more + (0 if prepared[worker] else work.begin)
            prepared[worker] = True
            holds[worker] = number, since
            add(since + took, "done", worker, life[worker])
    return Outcome(end, lost, deaths, again)


@dataclass
class Run:
    """One call of `score` under Ray, as it is clocked.

    Attributes:
        seconds: All of it.
        first, last: Of the asking process, before the shards and behind them.
        sizes: Examples of each shard.
        finished: The shards.
        merge: Seconds to add each part.
        noticed: Seconds until a death was noticed.
        job_bytes: Of what the workers are sent.
    """

    seconds: float
    first: float
    last: float
    sizes: Sequence[int]
    finished: Sequence[Any]
    merge: Sequence[float]
    noticed: float
    job_bytes: int


def clocked(call: Callable[[], Any], *, kill: bool = False) -> Run:
    """A call under Ray; a worker is killed once the other one has finished a shard."""
    with _watched() as seen:
        began = time.perf_counter()
        if kill:
            with killed_after_one_shard(lambda: _kill_another(seen["first_by"])) as death:
                call()
            noticed = death.noticed
        else:
            call()
            noticed = 0.0
        ended = time.perf_counter()
    return Run(
        ended - began, seen["began"] - began, ended - seen["ended"], seen["sizes"],
        seen["finished"], seen["merge"], noticed, seen["job"],
    )  # fmt: skip


@contextmanager
def _watched() -> Iterator[dict[str, Any]]:
    seen: dict[str, Any] = {"finished": [], "merge": [], "job": 0}
    finish, merge, put = ray_engine._Work.finish, ScoreTally.merge, ray_engine._put

    def finishes(self: Any, bar: Any) -> Iterator[Any]:
        seen["began"], seen["sizes"] = time.perf_counter(), self.sizes
        for each in finish(self, bar):
            seen.setdefault("first_by", each.worker)
            seen["finished"].append(each)
            yield each

    def merges(self: Any, given: Any) -> None:
        began = time.perf_counter()
        merge(self, given)
        seen["ended"] = time.perf_counter()
        seen["merge"].append(seen["ended"] - began)

    def puts(value: Any, what: str) -> Any:
        seen["job"] = sent_bytes(value)
        return put(value, what)

    ray_engine._Work.finish = finishes  # type: ignore[method-assign]
    ScoreTally.merge = merges  # type: ignore[method-assign]
    ray_engine._put = puts
    try:
        yield seen
    finally:
        ray_engine._Work.finish = finish  # type: ignore[method-assign]
        ScoreTally.merge = merge  # type: ignore[method-assign]
        ray_engine._put = put


def _kill_another(worker: str) -> None:
    (pool,) = ray_engine._pools
    other = next(member.name for member in pool.members if member.name != worker)
    os.kill(int(other.split("/")[1]), signal.SIGKILL)


@dataclass(frozen=True)
class Figures:
    """What passes of two sizes took here.

    Attributes:
        example: Seconds of a worker for one example.
        first, first_example: Seconds of the asking process before the shards: of any pass, and
            more for each example.
        begin_example: Seconds in which a worker prepares one example of the pass.
        more, merge, last: As in `Work` and `Run`.
        read: Examples that the asking process reads itself.
        part_bytes, job_bytes, job_bytes_example: Of one part; of what workers are sent: of any
            pass, and more for each example.
        open: Seconds until a worker has its model open.
    """

    example: float
    first: float
    first_example: float
    begin_example: float
    more: float
    merge: float
    last: float
    read: int
    part_bytes: float
    job_bytes: float
    job_bytes_example: float
    open: float

    @classmethod
    def of(cls, few: Run, many: Run, sizes: tuple[int, int], opening: float) -> "Figures":
        """From two passes whose workers were open."""
        less, n = sizes
        beginners, rest = _beginners(many)
        per = statistics.median(each.seconds / many.sizes[each.number] for each in rest)
        begins = [each.seconds - per * many.sizes[each.number] for each in beginners]
        first = max(many.first - few.first, 0.0) / (n - less)
        job = (many.job_bytes - few.job_bytes) / (n - less)
        return cls(
            example=per,
            first=many.first - first * n,
            first_example=first,
            begin_example=max(statistics.mean(begins), 0.0) / n,
            more=statistics.median(each.waited - each.seconds for each in rest),
            merge=statistics.median(many.merge),
            last=many.last,
            read=n - sum(many.sizes),
            part_bytes=sent_bytes(many.finished[0].part),
            job_bytes=many.job_bytes - job * n,
            job_bytes_example=job,
            open=opening,
        )

    def predicts(self, n: int, *, dies: bool = False, noticed: float = 0.0) -> float:
        """Seconds of a pass over ``n`` examples with two workers, one of which may die."""
        shards = [self.example * len(one) for one in cut(range(n - self.read), SHARDS * 2)]
        work = Work(
            shards, self.first + self.first_example * n, self.begin_example * n, self.more,
            self.merge,
        )  # fmt: skip
        at = work.first + 0.99 * (work.begin + shards[0] + work.more) if dies else None
        back = noticed + self.open
        return simulate(work, Workers(nodes=2, each=1, at=at, back=back)).seconds + self.last


def _beginners(run: Run) -> tuple[list[Any], list[Any]]:
    """The first shard of each worker, and all others."""
    seen: set[str] = set()
    first, rest = [], []
    for each in run.finished:
        (rest if each.worker in seen else first).append(each)
        seen.add(each.worker)
    return first, rest


def validated(n: int, times: int) -> dict[str, float]:
    """What the simulation says of four times as many examples, against what they take."""
    ls.config(progress=False, batch_size=16)
    model, task = ls.load_model("arithmetic-small"), ls.tasks.arithmetic(digits=(1, 2, 3))
    asked: dict[str, Any] = {"metrics": "label:carry", "n_rotations": 0}
    asked |= {"n_permutations": ASSUMED["permutations"], "n_controls": ASSUMED["controls"]}

    def call(size: int) -> Callable[[], Any]:
        return lambda: ls.score(model, task[:size], **asked)

    small, large = n, 4 * n
    pairs: dict[str, list[tuple[float, float]]] = {"whole": [], "death": []}
    figures: list[Figures] = []
    with ls.config(engine="ray", workers=2, worker_cpus=1):
        opening = _opening(call(small // 2))
        for _ in range(times):
            few, many = clocked(call(small // 2)), clocked(call(small))
            own = Figures.of(few, many, (small // 2, small), opening)
            figures.append(own)
            took = clocked(call(large))
            pairs["whole"].append((own.predicts(large), took.seconds))
            took = clocked(call(large), kill=True)
            told = own.predicts(large, dies=True, noticed=took.noticed)
            pairs["death"].append((told, took.seconds))
            _opening(call(small // 2))  # the new worker
    ray_engine.stop()
    found: dict[str, float] = {"small": small, "large": large, "repeats": times}
    for name, both in pairs.items():
        ratios = [told / took for told, took in both]
        found |= {
            f"{name}_predicted_seconds": statistics.median(told for told, _ in both),
            f"{name}_measured_seconds": statistics.median(took for _, took in both),
            f"{name}_ratio": statistics.median(ratios),
            f"{name}_ratio_low": min(ratios),
            f"{name}_ratio_high": max(ratios),
        }
    for field in Figures.__dataclass_fields__:
        found[f"figure_{field}"] = statistics.median(getattr(one, field) for one in figures)
    columns = model_columns(call(small))
    units = model.cfg.n_layers * model.cfg.d_mlp
    found["state_told_bytes"] = state_bytes(units, *columns)
    found["columns"], found["marks"] = columns
    table("held against a run", {k: f"{v:.4g}" for k, v in found.items()})
    return found


def model_columns(call: Callable[[], Any]) -> tuple[int, int]:
    """The columns that units are multiplied with, and those that their squares are."""
    from lens_skills.stats.moments import RunningMoments

    seen: list[tuple[int, int]] = []
    begin = RunningMoments.__init__

    def begins(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        seen.append((len(self.column_mean), len(self.squares)))

    RunningMoments.__init__ = begins  # type: ignore[method-assign]
    try:
        with ls.config(engine="local"):
            call()
    finally:
        RunningMoments.__init__ = begin  # type: ignore[method-assign]
    return max(seen)


def _opening(call: Callable[[], Any]) -> float:
    """Seconds until both workers have their model open, from when they were asked for."""
    began = time.perf_counter()
    while True:
        call()
        (pool,) = ray_engine._pools
        if all(member.name for member in pool.members):
            return time.perf_counter() - began


@dataclass(frozen=True)
class Model:
    """A model, as its size decides what a pass takes: parameters, blocks, neurons of each."""

    parameters: float
    layers: int
    width: int


MODELS = {"8b": Model(8.0e9, 32, 14_336), "70b": Model(70.6e9, 80, 28_672)}
"""Of the shape of Llama 3."""

ASSUMED = {
    "tokens": 1e9,
    "tokens_per_example": 100,
    "gpus_per_node": 8,
    "gpu_memory_gb": 192,
    "gpu_bf16_flops": 2.25e15,
    "gpu_float64_flops": 40e12,
    "utilisation": 0.3,
    "network_bytes_per_second": 12.5e9,
    "reading_bytes_per_second": 1e9,
    # 419 unexpected interruptions in 54 days of 16,384 GPUs (arXiv 2407.21783, section 3.3.4).
    "deaths_per_gpu_day": 419 / (54 * 16_384),
    "noticed_seconds": 30,
    "metrics": 1,
    "permutations": 100,
    "controls": 199,
}
"""What is not measured here: of GPUs (a B200's data sheet), networks and deaths."""

NODES = (1, 4, 16)
PER_WORKER = (4, 16)
COURSES = 200


def planned(figures: dict[str, float]) -> dict[str, float]:
    """`PLANS`: 10⁹ tokens scored on some nodes of GPUs, a worker on each GPU."""
    found: dict[str, float] = {f"assumed_{name}": value for name, value in ASSUMED.items()}
    for name, model in MODELS.items():
        for nodes in NODES:
            for per_worker in PER_WORKER:
                key = f"{name}_{nodes}_{per_worker}"
                plan = _plan(model, nodes, per_worker, figures)
                found |= {f"{key}_{what}": value for what, value in plan.items()}
                table(key, {what: f"{value:.4g}" for what, value in plan.items()})
    return found


def _plan(model: Model, nodes: int, per_worker: int, figures: dict[str, float]) -> dict[str, float]:
    a, units = ASSUMED, model.layers * model.width
    n = int(a["tokens"] / a["tokens_per_example"])
    each = int(a["gpus_per_node"])
    # Draws of one null and of the control, marks of the interval, as they are measured.
    columns, marks = int(figures["columns"]), int(figures["marks"])
    flops = a["utilisation"] * a["gpu_bf16_flops"]
    forward = 2 * model.parameters * a["tokens_per_example"] / flops
    sums = 2 * units * (columns + marks) / (a["utilisation"] * a["gpu_float64_flops"])
    state = state_bytes(units, columns, marks)
    job = figures["figure_job_bytes_example"] * n
    weights = 2 * model.parameters
    # Adding is of the memory's speed, which is measured; sending of the network's.
    merge = figures["figure_merge"] * state / figures["figure_part_bytes"]
    more = figures["figure_more"] + state / a["network_bytes_per_second"]
    shards = [len(one) * (forward + sums) for one in cut(range(n), per_worker * each * nodes)]
    work = Work(
        shards,
        first=figures["figure_first_example"] * n,
        begin=figures["figure_begin_example"] * n + job / a["network_bytes_per_second"],
        more=more,
        merge=merge,
    )
    opening = weights / a["reading_bytes_per_second"]
    rate = a["deaths_per_gpu_day"] * each / 86_400
    calm = simulate(work, Workers(nodes, each, opening))
    courses = [
        simulate(work, Workers(nodes, each, opening, rate, back=a["noticed_seconds"] + opening), s)
        for s in range(COURSES)
    ]
    seconds = np.array([course.seconds for course in courses])
    busy = sum(shards)
    return {
        "hours": calm.seconds / 3600,
        "hours_high": float(np.quantile(seconds, 0.95)) / 3600,
        "shard_minutes": shards[0] / 60,
        "serial_hours": (work.first + merge * len(shards)) / 3600,
        "deaths": statistics.mean(course.deaths for course in courses),
        "lost_a_death": shards[0] * each / 2 / busy,
        "efficiency": busy / (calm.seconds * nodes * each),
        "network_gb": (len(shards) * state + nodes * (job + each * weights)) / 1e9,
        "state_gb": state / 1e9,
        "weights_gb": weights / 1e9,
        "job_gb": job / 1e9,
    }


def state_bytes(units: int, columns: int, marks: int) -> int:
    """Of the sums of `score`: float64, units times columns, marks, square, mean and origin."""
    return 8 * units * (columns + marks + 4)


def main() -> None:
    """The part asked for."""
    asked = arguments(__doc__, quick="fewer examples, once").parse_args()
    torch.set_num_threads(1)

    def part() -> dict[str, float]:
        n, times = (400, 1) if asked.quick else (1600, 3)
        figures = validated(n, times)
        return {**figures, **planned(figures)}

    run_parts({"": part}, asked)


if __name__ == "__main__":
    main()
