"""`RayEngine`: shards given to workers that each hold the model, and done again where one dies.

The workers stay from one pass to the next, as long as the model is the same; an interruption or a
failure ends them all.
"""

import builtins
import contextlib
import os
import socket
import time
import uuid
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lens_skills import settings
from lens_skills.engines.division import SHARDS, Finished, Job
from lens_skills.engines.ray_worker import Assignment, Reading, Source, Worker
from lens_skills.errors import LensSkillsError, RunError
from lens_skills.models import ModelAdapter, as_adapter
from lens_skills.models.origins import origin_of
from lens_skills.progress import Progress
from lens_skills.results import versions

TRIES = 3
"""So often a shard is given out before its pass fails."""

OBJECT_STORE = 512 << 20
"""Bytes of shared memory for what goes between the processes of a Ray that is started here."""

START = 600.0
"""Seconds until a worker must have opened the model."""

_POLL = 0.25  # seconds between two looks at how far all are
_CORES = 4  # of a worker on a machine without GPUs, where nothing is said


@dataclass(eq=False)
class _Member:
    """One worker, as it is seen from here."""

    actor: Any
    begun: Any  # what says that its model is open
    name: str = ""
    asked: Any = None  # how far it is
    n_done: int = 0


@dataclass(eq=False)
class _Pool:
    """The workers of one model.

    Attributes:
        model, fingerprint, asked: What they were started for.
        job: Of the Ray they run in.
        source: The model, as they get it.
        members: All that are alive.
        deaths: How many were not.
    """

    model: Any
    fingerprint: str
    asked: tuple[Any, ...]
    job: Any
    source: Any
    threads: int
    cpus: float
    gpus: float
    wanted: int
    members: list[_Member] = field(default_factory=list)
    deaths: int = 0

    def fits(self, adapter: ModelAdapter | None, fingerprint: str) -> bool:
        """Whether its workers hold this model, if any, and are as many as are asked for."""
        import ray

        return (
            ray.is_initialized()
            and self.job == ray.get_runtime_context().get_job_id()
            and (
                adapter is None
                or (self.model() is adapter.model and self.fingerprint == fingerprint)
            )
            and self.asked == settings.worker_options()
        )

    def fill(self) -> None:
        """Starts as many workers as are missing."""
        import ray

        kind = ray.remote(Worker).options(
            num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0, max_concurrency=2
        )
        while len(self.members) < self.wanted:
            actor = kind.remote(self.threads, self.gpus > 0)
            self.members.append(_Member(actor, actor.begin.remote(self.source)))

    def lose(self, member: _Member) -> None:
        """A worker is dead, or what it found is lost: another one is started."""
        import ray

        with contextlib.suppress(Exception):
            ray.kill(member.actor, no_restart=True)
        self.members.remove(member)
        self.deaths += 1
        self.fill()

    def end(self) -> None:
        """Ends all workers."""
        import ray

        if ray.is_initialized():
            for member in self.members:
                with contextlib.suppress(Exception):
                    ray.kill(member.actor, no_restart=True)
        self.members = []


_pools: list[_Pool] = []
_started_here: list[Any] = []


def stop() -> None:
    """Ends all workers, and Ray where it was started here."""
    while _pools:
        _pools.pop().end()
    if _started_here:
        import ray

        _started_here.clear()
        ray.shutdown()


class RayEngine:
    """Runs the shards of jobs on the workers of a Ray cluster, or of one that it starts here."""

    def n_shards(self) -> int:
        """How many shards to cut a pass into."""
        begin()
        return SHARDS * _sizes()[0]

    def stop(self) -> None:
        """Ends all workers, and Ray where it was started here."""
        stop()

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
        """The shards as they are finished; see `Engine`.

        Raises:
            RunError: What a shard itself raises; a shard whose workers died `TRIES` times;
                workers that cannot open the model, or for which there is no place.
        """
        pool = _pool_of(adapter)
        options = settings.in_force() | {"engine": "local", "progress": False}
        reading = None if adapter is None else Reading.of(adapter)
        given = _put(Assignment(job, reading, options), "what this pass needs")
        whole = done + sum(sizes) if total is None else total
        work = _Work(pool, shards, sizes, verb, uuid.uuid4().hex, given)
        complete = False
        try:
            with Progress(whole, verb, unit, done=done) as bar:
                yield from work.finish(bar)
            complete = True
        finally:
            if not complete:  # Ctrl-C, a failure, or nobody wants the rest
                stop()


@dataclass(eq=False)
class _Work:
    """The shards of one pass: to do, under way, done."""

    pool: _Pool
    shards: Sequence[range]
    sizes: Sequence[int]
    verb: str
    name: str
    given: Any
    tries: Counter[int] = field(default_factory=Counter)
    shown: int = 0

    def finish(self, bar: Progress) -> Iterator[Finished]:
        """All shards, as they are finished."""
        import ray

        todo = deque(range(len(self.shards)))
        running: dict[Any, tuple[_Member, int, float]] = {}
        complete, waited = 0, time.monotonic()
        while todo or running:
            busy = {id(member) for member, _, _ in running.values()}
            for member in self.pool.members:
                if todo and member.name and id(member) not in busy:
                    number = todo.popleft()
                    self.tries[number] += 1
                    ref = member.actor.run.remote(self.name, self.given, self.shards[number])
                    member.n_done, member.asked = 0, None
                    running[ref] = member, number, time.perf_counter()
            starting = {member.begun: member for member in self.pool.members if not member.name}
            ready, _ = ray.wait([*running, *starting], num_returns=1, timeout=_POLL)
            for ref in ready:
                if ref in starting:
                    self._begun(ref, starting[ref])
                    continue
                member, number, since = running.pop(ref)
                found = self._got(ref, number)
                if found is None:
                    self.pool.lose(member)
                    todo.appendleft(number)
                    continue
                for text, kind in found["said"].items():
                    warnings.warn(text, _kind(kind), stacklevel=2)
                complete += self.sizes[number]
                took = time.perf_counter() - since
                yield Finished(
                    number, found["part"], member.name, found["seconds"], took, self.tries[number]
                )
            if running or ready:
                waited = time.monotonic()
            elif time.monotonic() - waited > START:
                raise RunError(
                    f"Ray found no place for a worker with {self.pool.cpus:g} cores and "
                    f"{self.pool.gpus:g} GPUs in {START:.0f} s, or it has not opened the model "
                    "yet. `ray status` says what is free; ls.config(workers=…, worker_cpus=…, "
                    "worker_gpus=…) asks for other ones."
                )
            under_way = sum(self._progress(member, n) for member, n, _ in running.values())
            now = complete + under_way
            if now > self.shown:
                bar.update(now - self.shown)
                self.shown = now

    def _begun(self, ref: Any, member: _Member) -> None:
        """A worker has its model, or is dead."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            member.name = ray.get(ref)
        except RayTaskError as error:
            raise _cause(error) from None
        except RayError as error:
            self.pool.lose(member)
            if self.pool.deaths > TRIES * self.pool.wanted:
                raise RunError(
                    f"{self.pool.deaths} workers died, the last one before its model was open: "
                    f"{_line(error)} Does the model fit into the memory of a worker?"
                ) from error

    def _got(self, ref: Any, number: int) -> dict[str, Any] | None:
        """What a worker found; None where it died."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            return ray.get(ref)
        except RayTaskError as error:
            raise _cause(error) from None
        except RayError as error:
            if self.tries[number] < TRIES:
                return None
            shard = self.shards[number]
            raise RunError(
                f"shard {number + 1} of {len(self.shards)} of {self.verb} (parts {shard.start} to "
                f"{shard.stop - 1}) was given to {TRIES} workers, and each died: {_line(error)} "
                "What is done is kept where there is a checkpoint=. Smaller batches need less "
                "memory: ls.config(batch_size=…)."
            ) from error

    def _progress(self, member: _Member, number: int) -> int:
        """How much of its shard a worker has done, as far as it said."""
        import ray
        from ray.exceptions import RayError

        if member.asked is not None and ray.wait([member.asked], timeout=0)[0]:
            with contextlib.suppress(RayError):
                member.n_done = min(ray.get(member.asked), self.sizes[number])
            member.asked = None
        if member.asked is None:
            member.asked = member.actor.done.remote()
        return member.n_done


def begin() -> None:
    """Ray is there: the one that was started by hand, RAY_ADDRESS's, or one of its own here.

    Raises:
        RunError: No cluster at RAY_ADDRESS, or one of another version of Ray or Python.
    """
    settings.check_engine("ray")
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        try:
            _reach(address)
            ray.init(address=address, **quiet)
        except Exception as error:
            raise RunError(
                f"no Ray cluster answers at RAY_ADDRESS={address}, or it is of another version of "
                f"Ray or Python than here (Ray {ray.__version__}): {_said(error)} Start it with "
                "`ray start --head`, or unset RAY_ADDRESS for workers on this machine."
            ) from error
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE,
        _node_ip_address="127.0.0.1",  # nothing but this machine is asked for anything
        **quiet,
    )
    _started_here.append(True)


def _reach(address: str) -> None:
    """Nothing; raises OSError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _sizes() -> tuple[int, int, float, float]:
    """Workers, threads of each, and what each one takes of the cluster: cores and GPUs.

    Raises:
        RunError: More GPUs than the cluster has.
    """
    import ray

    workers, threads, gpus = settings.worker_options()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores, found = sum(node.get("CPU", 0) for node in nodes), sum(n.get("GPU", 0) for n in nodes)
    if gpus is None:
        gpus = 1.0 if found else 0.0
    if gpus * (workers or 1) > found:
        raise RunError(
            f"{workers or 1} workers with worker_gpus={gpus:g} need more GPUs than the cluster "
            f"has ({found:g}). Ask for fewer, or for worker_gpus=0."
        )
    if workers is None:
        workers = int(found / gpus) if gpus else max(min(2, int(cores)), int(cores) // _CORES, 1)
    by_node = -(-workers // max(len(nodes), 1))
    share = min(cores / workers, max((node.get("CPU", 0) for node in nodes), default=1) / by_node)
    cpus = float(threads) if threads else float(int(share)) if share >= 1 else share
    return workers, threads or max(1, int(share)), cpus, float(gpus)


def _pool_of(adapter: ModelAdapter | None) -> _Pool:
    """The workers that hold this model, if any: those of the last pass, or new ones."""
    import ray

    begin()
    fingerprint = "" if adapter is None else as_adapter(adapter.model).fingerprint()
    if _pools and _pools[-1].fits(adapter, fingerprint):
        return _pools[-1]
    while _pools:
        _pools.pop().end()
    origin = None if adapter is None else origin_of(adapter.model)
    made = None if adapter is None or origin else adapter.model
    source = Source(origin, made, fingerprint, versions())
    workers, threads, cpus, gpus = _sizes()
    pool = _Pool(
        model=_no_model if adapter is None else weakref.ref(adapter.model),
        fingerprint=fingerprint,
        asked=settings.worker_options(),
        job=ray.get_runtime_context().get_job_id(),
        source=_put(source, "a model that was made in memory"),
        threads=threads,
        cpus=cpus,
        gpus=gpus,
        wanted=workers,
    )
    _pools.append(pool)
    pool.fill()
    return pool


def _no_model() -> None:
    """What stands for the reference to a model where workers hold none."""


def _put(value: Any, what: str) -> Any:
    """A value in the store of all workers."""
    import ray

    try:
        return ray.put(value)
    except Exception as error:
        raise RunError(
            f"{what} cannot be sent to the workers: {_line(error)} A model can be saved to a "
            "folder and opened from there; a function must stand in a module or hold only plain "
            "values."
        ) from error


def _cause(error: Any) -> BaseException:
    """What was raised in the worker."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception) and type(cause).__module__.split(".")[0] != "ray":
        return cause
    return LensSkillsError(f"a worker failed: {_line(error)}")


def _line(error: BaseException) -> str:
    """The first line of an error, as the end of a sentence."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text.rstrip('.')}."


def _said(error: BaseException) -> str:
    """All that an error says, on one line, as the end of a sentence; of a long one its start."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300].rstrip('.')}."


def _kind(name: str) -> type[Warning]:
    found = getattr(builtins, name, UserWarning)
    return found if isinstance(found, type) and issubclass(found, Warning) else UserWarning
