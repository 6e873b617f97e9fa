"""The table of speed in ``docs/howto/many_machines.md``: two workers of Ray against one process."""

from collections.abc import Mapping
from typing import Any

VERBS = {
    "score": "`score`, SmolLM2-135M, {:.0f} examples",
    "sweep": "`sweep`, arithmetic-small, all neurons, {:.0f} examples",
}


def speed(numbers: Mapping[str, Any]) -> list[list[str]]:
    """Both verbs: seconds, the speed-up with its range, what a shard takes more."""
    head = [
        "what",
        "one process, one thread",
        "two workers, one thread each",
        "times faster than one thread",
        "each shard more",
        "sent, and back a shard",
        "largest difference",
    ]
    rows = []
    for verb, words in VERBS.items():
        if f"{verb}_speedup" not in numbers:
            continue
        own = {key.removeprefix(f"{verb}_"): value for key, value in numbers.items()}
        off = own["difference"]
        rows.append(
            [
                words.format(own["examples"]),
                f"{own['one_seconds']:.1f} s",
                f"{own['ray_seconds']:.1f} s",
                f"{own['speedup']:.2f} ({own['speedup_low']:.2f} to {own['speedup_high']:.2f})",
                f"{own['overhead_ms']:.0f} ms (most {own['overhead_most_ms']:.0f} ms)",
                f"{size(own['job_bytes'])}, {size(own['part_bytes'])}",
                f"{off:.0e}" if off else "0",
            ]
        )
    return [head, *rows]


def size(n: float) -> str:
    """Bytes in kB, or in MB from one on.

    >>> size(2_500_000)
    '2.5 MB'
    """
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.1f} kB"
