"""Passes divided among two workers of Ray on this machine, against one process.

    python benchmarks/engine_ray.py --save     # some minutes, two cores that are free
    python benchmarks/engine_ray.py --quick    # a smoke run on few examples

One thread for each worker, and one for the process they are compared with, which is also timed with
two. Workers have their model open before the clock starts. Then the same pass while one worker is
killed.
"""

import os
import signal
import statistics
import threading
import time
from typing import Any

import torch
from timing import arguments, run_parts

import lens_skills as ls
from lens_skills.engines import ray_engine
from lens_skills.engines.division import Finished

SUMS = ("r", "low", "high", "mean", "std", "p_family")
TIMES = 3


def main() -> None:
    """The part asked for."""
    asked = arguments(__doc__, quick="few examples, once").parse_args()
    run_parts(
        {"": lambda: measured(240 if asked.quick else 1200, 1 if asked.quick else TIMES)}, asked
    )


def measured(n: int, times: int) -> dict[str, float]:
    """Seconds, ratios and differences."""
    ls.config(progress=False, batch_size=16)
    model, task = ls.load_model("arithmetic-small"), ls.tasks.arithmetic(digits=(1, 2))[:n]
    scored: dict[str, Any] = {"metrics": ["label:carry", "correct"], "n_permutations": 19}
    scored |= {"n_controls": 0, "n_rotations": 0}
    swept: dict[str, Any] = {"do": ls.ablate("zero"), "metric": "logit_diff"}

    def score() -> Any:
        return ls.score(model, task, **scored)

    def sweep() -> Any:
        return ls.sweep(model, task[: n // 20], **swept)

    found: dict[str, float] = {"examples": n, "workers": 2, "repeats": times}
    finished = watch_shards()
    for name, work in (("score", score), ("sweep", sweep)):
        seconds: dict[str, list[float]] = {"one": [], "two": [], "ray": []}
        here = there = None
        for _ in range(times):
            for threads, column in ((1, "one"), (2, "two")):
                torch.set_num_threads(threads)
                seconds[column].append(clocked(work))
            torch.set_num_threads(1)
            here = work()
            with ls.config(engine="ray", workers=2):
                work()  # starts the workers
                finished.clear()
                seconds["ray"].append(clocked(work))
                there = work()
        middle = {column: statistics.median(all_) for column, all_ in seconds.items()}
        found |= {f"{name}_{column}_seconds": value for column, value in middle.items()}
        ratios = [a / b for a, b in zip(seconds["one"], seconds["ray"], strict=True)]
        found[f"{name}_speedup"] = statistics.median(ratios)
        found[f"{name}_shards"] = len(finished) / 2
        found[f"{name}_overhead_ms"] = 1000 * statistics.median(
            [each.waited - each.seconds for each in finished]
        )
        found[f"{name}_difference"] = difference(here, there)
    here = score()
    with ls.config(engine="ray", workers=2):
        score()
        finished.clear()
        kill_a_worker()
        there = score()
        found["killed_difference"] = difference(here, there)
        found["killed_again"] = sum(each.tries > 1 for each in finished)
    ray_engine.stop()
    return found


def clocked(work: Any) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def watch_shards() -> list[Finished]:
    """A list that every shard is put into as it is finished."""
    found: list[Finished] = []
    run = ray_engine.RayEngine.run

    def watched(self: Any, *args: Any, **options: Any) -> Any:
        for each in run(self, *args, **options):
            found.append(each)
            yield each

    ray_engine.RayEngine.run = watched  # type: ignore[method-assign]
    return found


def kill_a_worker() -> None:
    """One worker is killed as soon as all of them are at work."""
    (pool,) = ray_engine._pools
    pid = int(pool.members[0].name.split("/")[1])

    def when_busy() -> None:
        while not all(member.n_done for member in pool.members):
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    for member in pool.members:
        member.n_done = 0
    threading.Thread(target=when_busy, daemon=True).start()


def difference(one: Any, two: Any) -> float:
    """The largest absolute difference of two results' numbers."""
    names = [name for name in (*SUMS, "total", "clean") if getattr(one, name, None) is not None]
    return max(float((getattr(one, n) - getattr(two, n)).abs().max()) for n in names)


if __name__ == "__main__":
    main()
