"""What all benchmarks share: interleaved timing, a table, and one JSON object as the last line."""

import json
import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(
    ways: Mapping[str, Callable[[], object]], *, rounds: int = 5, warm_up: bool = True
) -> dict[str, float]:
    """Median seconds of each way, run in turn so that a noisy machine is noisy for all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values() if warm_up else ():  # unmeasured: first calls allocate
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def table(title: str, rows: Mapping[str, str]) -> None:
    """Prints aligned lines under a title."""
    width = max(len(name) for name in rows)
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}", flush=True)


def report(figures: Mapping[str, float]) -> None:
    """Prints the figures as one JSON object, flat, on the last line."""
    print(json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()}))
