"""Passes divided among two workers of Ray on this machine, against one process.

    python benchmarks/engine_ray.py --save     # five minutes, two cores that are free
    python benchmarks/engine_ray.py --quick    # a smoke run on few examples

`score` on the bundled SmolLM2, `sweep` on arithmetic-small. One thread for each worker, and one for
the process they are compared with. Workers have their model open before the clock starts; what that
takes is measured apart. A death costs what ``benchmarks/ray_deaths.py`` measures.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from ray_deaths import sent_bytes
from timing import arguments, run_parts, table

import lens_skills as ls
from lens_skills.engines import ray_engine
from lens_skills.engines.division import Finished

SUMS = ("r", "low", "high", "mean", "std", "p_family")
TIMES = 3
EXAMPLES = {"score": 1_920, "sweep": 256}
FEW = {"score": 176, "sweep": 16}


def main() -> None:
    """The part asked for."""
    asked = arguments(__doc__, quick="few examples, once").parse_args()
    sizes, times = (FEW, 1) if asked.quick else (EXAMPLES, TIMES)
    run_parts({"": lambda: measured(sizes, times)}, asked)


def calls(sizes: dict[str, int]) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Each verb as it is timed, and a short call that opens the workers."""
    smol, agreement = ls.load_model(), ls.tasks.agreement()
    small, sums = ls.load_model("arithmetic-small"), ls.tasks.arithmetic(digits=(1, 2))
    zero = ls.ablate("zero")

    def score(n: int) -> Any:
        return ls.score(smol, agreement[:n], metrics="label:plural", n_rotations=0)

    def sweep(n: int, *neurons: Any) -> Any:
        return ls.sweep(small, sums[:n], *neurons, do=zero, metric="logit_diff")

    few = [f"L1N{n}" for n in range(8)]
    return {
        "score": (lambda: score(sizes["score"]), lambda: score(160)),
        "sweep": (lambda: sweep(sizes["sweep"]), lambda: sweep(64, few)),
    }


def measured(sizes: dict[str, int], times: int) -> dict[str, float]:
    """Seconds, ratios, bytes and differences."""
    torch.set_num_threads(1)
    ls.config(progress=False, batch_size=16)
    found: dict[str, float] = {"workers": 2, "repeats": times}
    finished, opened, sent = watched()
    for name, (work, short) in calls(sizes).items():
        seconds: dict[str, list[float]] = {"one": [], "ray": []}
        here = there = None
        for _ in range(times):
            took, here = clocked(work)
            seconds["one"].append(took)
            with ls.config(engine="ray", workers=2, worker_cpus=1):
                while len(set(opened)) < 2:
                    short()
                finished.clear()
                sent.clear()
                took, there = clocked(work)
                seconds["ray"].append(took)
        ratios = [a / b for a, b in zip(seconds["one"], seconds["ray"], strict=True)]
        own = [each.waited - each.seconds for each in finished]
        found |= {
            f"{name}_examples": sizes[name],
            f"{name}_one_seconds": statistics.median(seconds["one"]),
            f"{name}_ray_seconds": statistics.median(seconds["ray"]),
            f"{name}_speedup": statistics.median(ratios),
            f"{name}_speedup_low": min(ratios),
            f"{name}_speedup_high": max(ratios),
            f"{name}_shards": len(finished),
            f"{name}_in_shards_seconds": sum(each.seconds for each in finished),
            f"{name}_overhead_ms": 1000 * statistics.median(own),
            f"{name}_overhead_most_ms": 1000 * max(own),
            f"{name}_part_bytes": statistics.median(sent_bytes(each.part) for each in finished),
            f"{name}_job_bytes": sum(sent),
            f"{name}_open_seconds": max(opened.values()),
            f"{name}_difference": difference(here, there),
        }
        shown = {k.removeprefix(f"{name}_"): f"{v:.4g}" for k, v in found.items()
                 if k.startswith(f"{name}_")}  # fmt: skip
        table(name, shown)
        opened.clear()
    ray_engine.stop()
    return found


def clocked(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call takes, and what it gives."""
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


def watched() -> tuple[list[Finished], dict[str, float], list[int]]:
    """Shards as they are finished, workers with the seconds until they were open, bytes sent."""
    finished: list[Finished] = []
    opened: dict[str, float] = {}
    sent: list[int] = []
    run, begun, put = ray_engine.RayEngine.run, ray_engine._Work._begun, ray_engine._put
    fill = ray_engine._Pool.fill
    since: list[float] = []

    def runs(self: Any, *args: Any, **options: Any) -> Any:
        for each in run(self, *args, **options):
            finished.append(each)
            yield each

    def begins(self: Any, ref: Any, member: Any) -> None:
        begun(self, ref, member)
        if member.name:
            opened[member.name] = time.perf_counter() - since[-1]

    def fills(self: Any) -> None:
        since.append(time.perf_counter())
        fill(self)

    def puts(value: Any, what: str) -> Any:
        sent.append(sent_bytes(value))
        return put(value, what)

    ray_engine.RayEngine.run = runs  # type: ignore[method-assign]
    ray_engine._Work._begun = begins  # type: ignore[method-assign]
    ray_engine._Pool.fill = fills  # type: ignore[method-assign]
    ray_engine._put = puts
    return finished, opened, sent


def difference(one: Any, two: Any) -> float:
    """The largest absolute difference of two results' numbers."""
    names = [name for name in (*SUMS, "total", "clean") if getattr(one, name, None) is not None]
    return max(float((getattr(one, n) - getattr(two, n)).abs().max()) for n in names)


if __name__ == "__main__":
    main()
