"""A worker, or a node with its worker, is killed in the middle of a pass under Ray: what is left.

    python benchmarks/ray_deaths.py --save     # some minutes
    python benchmarks/ray_deaths.py --quick    # two verbs; Ray looks for dead nodes more often

Two nodes of Ray on this machine, each of one processor and one worker that holds the model. As soon
as the first shard of a call is done, the worker of the second node is killed (SIGKILL), or that
node's raylet and all that it started. The numbers are held against those of one process.
"""

import importlib
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from faults import difference, numbers_of
from timing import arguments, run_parts, table

import lens_skills as ls
from lens_skills.engines import ray_engine
from lens_skills.engines.division import Finished

OFTEN = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 5,
}
"""Ray's own settings, with which it sees within two seconds that a node is dead, and waits for one
that is only busy."""


class TwoNodes:
    """A cluster of two nodes on this machine, at ``RAY_ADDRESS`` while it is open."""

    def __init__(self, system: dict[str, Any] | None = None) -> None:
        self.system = system
        self.second: Any = None

    def __enter__(self) -> "TwoNodes":
        from ray.cluster_utils import Cluster

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")
        self.asked = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 256 << 20}
        head = self.asked if self.system is None else {**self.asked, "_system_config": self.system}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.before = os.environ.get("RAY_ADDRESS")
        os.environ["RAY_ADDRESS"] = str(self.cluster.address)
        self.complete()
        return self

    def complete(self) -> None:
        """The second node is there, again if it was killed."""
        if self.second is None:
            self.second = self.cluster.add_node(wait=True, **self.asked)

    def worker(self) -> int:
        """The process of the second node's worker."""
        (pool,) = ray_engine._pools
        pids = {int(member.name.split("/")[1]) for member in pool.members if member.name}
        (here,) = pids & set(_started_by(self._raylet()))
        return here

    def kill_node(self) -> None:
        """The second node's raylet is killed, and all that it started."""
        raylet = self._raylet()
        for pid in (raylet, *_started_by(raylet)):
            os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def _raylet(self) -> int:
        return self.second.all_processes["raylet"][0].process.pid

    def __exit__(self, *_: object) -> None:
        import ray

        ray_engine.stop()
        ray.shutdown()
        self.cluster.shutdown()
        if self.before is None:
            os.environ.pop("RAY_ADDRESS", None)
        else:
            os.environ["RAY_ADDRESS"] = self.before


def _started_by(pid: int) -> list[int]:
    """The processes below one, which it or they have started."""
    own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    for thread in Path(f"/proc/{pid}/task").iterdir():
        own += [int(child) for child in (thread / "children").read_text().split()]
    own = sorted({*own})
    return [*own, *(each for child in own for each in _started_by(child))]


@dataclass
class Death:
    """What a death cost.

    Attributes:
        finished: The shards, as they were finished after it or before.
        sizes: Of all shards that were given out, in the pass's units.
        again: How much was given out a second time.
        noticed: Seconds from the kill until Ray said so.
    """

    finished: list[Finished] = field(default_factory=list)
    sizes: int = 0
    again: int = 0
    shards_again: int = 0
    noticed: float = 0.0


@contextmanager
def killed_after_one_shard(kill: Callable[[], None]) -> Iterator[Death]:
    """Inside, the first shard that is finished is followed by a kill."""
    found, run, lose = Death(), ray_engine.RayEngine.run, ray_engine._Pool.lose
    at: list[float] = []

    def watched(
        self: Any,
        adapter: Any,
        job: Any,
        shards: Sequence[range],
        sizes: Sequence[int],
        **rest: Any,
    ) -> Iterator[Finished]:
        found.sizes += sum(sizes)
        for each in run(self, adapter, job, shards, sizes, **rest):
            if not at:
                at.append(time.monotonic())
                kill()
            if each.tries > 1:
                found.again += sizes[each.number]
                found.shards_again += 1
            found.finished.append(each)
            yield each

    def lost(self: Any, member: Any) -> None:
        found.noticed = found.noticed or time.monotonic() - at[0]
        lose(self, member)

    ray_engine.RayEngine.run = watched  # type: ignore[method-assign]
    ray_engine._Pool.lose = lost  # type: ignore[method-assign]
    try:
        yield found
    finally:
        ray_engine.RayEngine.run = run  # type: ignore[method-assign]
        ray_engine._Pool.lose = lose  # type: ignore[method-assign]


def warm(work: Callable[[], Any], n: int = 2) -> None:
    """All workers have their model open."""
    while True:
        work()
        (pool,) = ray_engine._pools
        if sum(bool(member.name) for member in pool.members) == n:
            return


def sent_bytes(value: Any) -> int:
    """How large a value is as Ray sends it."""
    pickled: Any = importlib.import_module("ray.cloudpickle")
    return len(pickled.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))


def calls(model: Any) -> dict[str, Callable[[], Any]]:
    """The divided verbs."""
    task = ls.tasks.few(ls.tasks.arithmetic("+", digits=(1, 2)), 480)
    few = ls.tasks.few(ls.tasks.arithmetic("+", digits=1), 72)
    explore, confirm = few.split(0.5, 0.5, seed=0)
    against = {"do": ls.ablate("mean", over=explore), "controls": ls.controls(5, neurons=21)}
    return {
        "score": lambda: ls.score(model, task, metrics=["label:carry", "correct"], n_rotations=0),
        "rank": lambda: ls.rank(model, task, "label:carry", method="information", gate=False),
        "sweep": lambda: ls.sweep(
            model, confirm, [f"L1N{n}" for n in range(64)], do=ls.ablate("zero"),
            metric="logit_diff",
        ),
        "verify": lambda: ls.verify(model, confirm, ["L1N3", "L2N63"], n_draws=200, **against),
        "generate": lambda: ls.generate(model, task, max_new_tokens=3),
    }  # fmt: skip


def deaths(names: Sequence[str], *, often: bool) -> dict[str, float]:
    """Every verb, with a worker and with a node killed."""
    ls.config(progress=False, batch_size=8)
    model = ls.load_model("arithmetic-small")
    every = {name: call for name, call in calls(model).items() if name in names}
    wanted = {name: numbers_of(call()) for name, call in every.items()}
    found: dict[str, float] = {}
    with TwoNodes(OFTEN if often else None) as nodes, ls.config(engine="ray", workers=2):
        for name, call in every.items():
            for what in ("worker", "node"):
                nodes.complete()
                warm(every[name])
                kill = nodes.kill_node if what == "node" else _killing(nodes.worker())
                with killed_after_one_shard(kill) as death:
                    off = difference(wanted[name], numbers_of(call()))
                key = f"{name}_{what}"
                found |= {
                    f"{key}_shards": len(death.finished), f"{key}_again": death.shards_again,
                    f"{key}_lost": death.again / death.sizes, f"{key}_difference": off,
                    f"{key}_noticed": death.noticed, f"{key}_survived": off <= 1e-12,
                }  # fmt: skip
                shown = {k.removeprefix(f"{key}_"): f"{v:.3g}" for k, v in found.items()
                         if k.startswith(key)}  # fmt: skip
                table(f"{name}: a {what} is killed", shown)
    return found


def _killing(pid: int) -> Callable[[], None]:
    return lambda: os.kill(pid, signal.SIGKILL)


def main() -> None:
    """The part asked for."""
    asked = arguments(__doc__, quick="score and sweep").parse_args()
    torch.set_num_threads(1)
    names = ["score", "sweep"] if asked.quick else ["score", "rank", "sweep", "verify", "generate"]
    run_parts({"": lambda: deaths(names, often=asked.quick)}, asked)


if __name__ == "__main__":
    main()
