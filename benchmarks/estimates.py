"""What `estimate` tells beforehand against what the same call then takes: time, memory, disk.

Each case runs in a process of its own, a copy of this one with the model already open: first the
estimate, then the call. ``told_vs_measured`` is 1 where the estimate is right, 2 where the call
took half of what was told. Beside seconds of the clock, which whatever else runs on the machine
changes between the two, the same in processor seconds.
"""

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from timing import arguments, run_parts, table

import lens_skills as ls
from lens_skills.estimation.measuring import PeakMemory

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
FLOOR, SMALL = 16e6, 0.05e6  # bytes of memory, of disk, below which nobody asks


def small_cases() -> Iterator[tuple[str, Call]]:
    """On arithmetic-small."""
    model = ls.load_model("arithmetic-small")
    task = ls.tasks.arithmetic("+-", digits=2, n=2400)
    explore, confirm, intervene = task.split(0.4, 0.2, 0.4, seed=0)
    some = ls.tasks.few
    neurons = [f"L{layer}N{7 * layer + 3}" for layer in range(3)]
    yield "score", ("score", (model, task), {"metrics": ["label:carry", "correct"]})
    yield "rank", ("rank", (model, task, "label:carry"), {"method": "auroc"})
    yield "preflight", ("preflight", (model, task), {})
    yield "sweep", ("sweep", (model, some(intervene, 40)),
                    {"do": ls.ablate("zero"), "metric": "logit_diff"})  # fmt: skip
    yield "verify", ("verify", (model, some(intervene, 64), neurons),
                     {"do": ls.ablate("mean", over=explore),
                      "controls": ls.controls(100, neurons=100)})  # fmt: skip
    yield "prescreen", ("prescreen", (model, explore), {"metric": "logit_diff"})
    yield "explain", ("explain", (model, explore, neurons), {})
    yield "sparse probe", ("sparse_probe", (model, explore, confirm), {"metric": "label:carry"})
    carry, none = task.where(carry=1), task.where(carry=0)
    twins = [replace(one, corrupted=two.prompt) for one, two in zip(carry, none, strict=False)]
    pairs = some(ls.equal_length_pairs(model, ls.Task("pairs", twins)), 160)
    yield "circuit", ("circuit", (model, pairs, "L2N121"), {"metric": "confidence"})
    yield "fit prompt", ("fit_prompt", (model, some(explore, 400)),
                         {"epochs": 16, "patience": 16})  # fmt: skip
    yield "generate", ("generate", (model, some(explore, 400)), {"max_new_tokens": 12})
    yield "memorisation", ("memorisation", (model, explore, neurons), {})

    def strongest(part: Any) -> Any:
        return ls.score(model, part, metrics="label:carry")["label:carry"].top(20)

    yield "stability", ("stability", (strongest, some(task, 600)), {"n": 4, "among": 1536})
    yield "study", ("study", (model, task), {"metric": "label:carry",
                    "controls": ls.controls(40, neurons=100)})  # fmt: skip


def default_cases() -> Iterator[tuple[str, Call]]:
    """On SmolLM2, the default model."""
    model = ls.load_model()
    task = ls.tasks.agreement()
    explore, _, intervene = task.split(0.4, 0.2, 0.4, seed=0)
    some = ls.tasks.few
    yield "score, SmolLM2", ("score", (model, some(explore, 240)), {"metrics": ["label:plural"]})
    yield "capture, SmolLM2", ("capture", (model, some(explore, 240)), {"path": "runs/table"})
    every = [f"L{layer}N{index}" for layer in range(0, 30, 6) for index in range(80)]
    yield "sweep, SmolLM2", ("sweep", (model, some(intervene, 32), every),
                             {"do": ls.ablate("zero"), "metric": "logit_diff"})  # fmt: skip
    yield "prescreen, SmolLM2", ("prescreen", (model, some(explore, 96)), {"metric": "logit_diff"})


def told_and_measured(call: Call) -> dict[str, float]:
    """The estimate of a call, then the call."""
    verb, args, options = call
    told = ls.estimate(verb, *args, **options)
    with tempfile.TemporaryDirectory() as folder:
        if "path" in options:
            options = options | {"path": f"{folder}/table"}
        with PeakMemory() as used:
            began, cpu = time.perf_counter(), time.process_time()
            result = getattr(ls, verb)(*args, **options)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        several = result if isinstance(result, tuple) else (result,)
        for place, one in enumerate(several):
            if hasattr(one, "save"):
                one.save(f"{folder}/{place}")
        disk = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    return {
        "told_s": told.seconds, "low_s": told.low, "high_s": told.high, "measured_s": seconds,
        "told_cpu_s": told.seconds / told.waited, "measured_cpu_s": cpu,
        "told_mb": told.memory / 1e6, "measured_mb": used.peak / 1e6,
        "told_disk_mb": (told.disk or 0) / 1e6, "measured_disk_mb": disk / 1e6,
        "measuring_s": told.measuring,
    }  # fmt: skip


def in_a_copy(call: Call) -> dict[str, float]:
    """`told_and_measured` in a copy of this process, which leaves no memory behind."""
    ours, theirs = multiprocessing.Pipe()
    child = os.fork()
    if child == 0:
        try:
            theirs.send(told_and_measured(call))
        except BaseException:
            traceback.print_exc()
        finally:
            theirs.close()
            os._exit(0)
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        raise RuntimeError(f"{call[0]} failed; see above") from error
    finally:
        os.waitpid(child, 0)


def compare(cases: Iterator[tuple[str, Call]], only: str | None) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, call in cases:
        if only is not None and only not in name:
            continue
        found = in_a_copy(call)
        ratios = {
            "time": found["told_s"] / found["measured_s"],
            "cpu_time": found["told_cpu_s"] / found["measured_cpu_s"],
            "memory": (found["told_mb"] + FLOOR / 1e6) / (found["measured_mb"] + FLOOR / 1e6),
            "disk": (found["told_disk_mb"] + SMALL / 1e6)
            / (found["measured_disk_mb"] + SMALL / 1e6),
        }
        key = name.replace(", ", "_").replace(" ", "_").lower()
        figures |= {f"{key}_{what}_told_vs_measured": ratio for what, ratio in ratios.items()}
        figures |= {f"{key}_{what}": value for what, value in found.items()}
        rows = {
            "time": f"{found['told_s']:.1f} s ({found['low_s']:.1f} to {found['high_s']:.1f}), "
            f"took {found['measured_s']:.1f}: {ratios['time']:.2f}",
            "processor time": f"{found['told_cpu_s']:.1f} s, took {found['measured_cpu_s']:.1f}: "
            f"{ratios['cpu_time']:.2f}",
            "memory": f"{found['told_mb']:.0f} MB, took {found['measured_mb']:.0f}: "
            f"{ratios['memory']:.2f}",
            "disk": f"{found['told_disk_mb']:.2f} MB, took {found['measured_disk_mb']:.2f}: "
            f"{ratios['disk']:.2f}",
            "measuring took": f"{found['measuring_s']:.1f} s",
        }
        table(name, rows)
    ends = {
        what: [v for k, v in figures.items() if k.endswith(f"{part}_told_vs_measured")]
        for what, part in (("time", "_cpu_time"), ("memory", "_memory"), ("disk", "_disk"))
    }
    for what, ratios_of in ends.items():
        figures[f"{what}_smallest_ratio"] = min(ratios_of)
        figures[f"{what}_largest_ratio"] = max(ratios_of)
        figures[f"{what}_within_2"] = sum(0.5 <= r <= 2 for r in ratios_of)
    return figures | {"n_cases": len(ends["time"])}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("part", nargs="?", choices=["small", "default"])
    parser.add_argument("--only", help="cases with this in their name")
    asked = parser.parse_args()
    ls.config(progress=False)
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "small": lambda: compare(small_cases(), asked.only),
        "default": lambda: compare(default_cases(), asked.only),
    }
    run_parts(parts, asked, only=asked.part)


if __name__ == "__main__":
    main()
