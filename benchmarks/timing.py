"""What all benchmarks share: interleaved timing, a table, and numbers as JSON.

A benchmark prints its numbers as one flat JSON object, last. With ``--save`` they are also kept in
``benchmarks/results``, one file for each part, with the command, the date, the machine and the
versions; ``python benchmarks/render_docs.py`` writes the pages from those files. A ratio is called
``<what>_vs_<baseline>`` and is larger when *what* is better.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
LIBRARIES = ("torch", "transformer-lens", "transformers", "numpy", "scipy", "scikit-learn")


def interleaved(
    ways: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 5,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each way, run in turn so that a noisy machine is noisy for all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values() if warm_up else ():  # unmeasured: first calls allocate
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            start = clock()
            way()
            seconds[name].append(clock() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def table(title: str, rows: Mapping[str, str]) -> None:
    """Prints aligned lines under a title."""
    width = max(len(name) for name in rows)
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}", flush=True)


def report(figures: Mapping[str, float]) -> None:
    """Prints the figures as one JSON object, flat, on the last line."""
    print(json.dumps(rounded(figures)))


def arguments(description: str | None, *, quick: str = "") -> argparse.ArgumentParser:
    """A parser with ``--save``, and with ``--quick`` where there is a smoke run to describe."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--save", action="store_true", help="keep the numbers for the pages")
    if quick:
        parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def run_parts(
    parts: Mapping[str, Callable[[], Mapping[str, float]]],
    asked: argparse.Namespace,
    *,
    only: str | None = None,
) -> None:
    """Runs the parts asked for (None: all), keeps each one's numbers if asked to, reports all."""
    if asked.save and getattr(asked, "quick", False):
        raise SystemExit("a smoke run is no measurement: --quick and --save do not go together")
    figures: dict[str, float] = {}
    for name, part in parts.items():
        if only in (None, name):
            found = part()
            figures |= found
            if asked.save:
                save(name, found)
    report(figures)


def save(part: str, figures: Mapping[str, float], *, folder: Path = RESULTS) -> Path:
    """Keeps numbers as ``<script>_<part>.json`` (``<script>.json`` where the part is empty)."""
    script = Path(sys.argv[0]).resolve()
    script = script.relative_to(RESULTS.parent) if RESULTS.parent in script.parents else script
    options = [word for word in sys.argv[1:] if word != "--save"]
    about = {
        "command": " ".join(["python", f"benchmarks/{script}", *options]),
        "measured": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
    }
    path = folder / f"{'_'.join(filter(None, (*script.with_suffix('').parts, part)))}.json"
    path.write_text(json.dumps(about | rounded(figures), indent=2) + "\n", encoding="utf-8")
    return path


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """Counts as they are, other numbers to four significant digits."""
    return {
        name: int(value) if float(value).is_integer() else float(f"{value:.4g}")
        for name, value in figures.items()
    }


def machine() -> str:
    """Cores, family of the processor, class of memory; the accelerator, where there is one."""
    import torch

    cpu = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.exists():
        lines = about.read_text(encoding="utf-8").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        cpu = named[0] if named else cpu
    parts = [f"{os.cpu_count()} cores", cpu]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        gigabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        parts.append(f"{2 ** (int(gigabytes) - 1).bit_length()} GB class")
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def versions() -> str:
    """Of Python and of the libraries that do the work."""
    found = [f"{name} {metadata.version(name)}" for name in LIBRARIES]
    return ", ".join([f"Python {platform.python_version()}", *found])
