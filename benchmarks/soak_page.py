"""The table of ``docs/howto/long_runs.md``: memory while 100,000 examples go through a verb."""

from collections.abc import Mapping
from typing import Any

VERBS = ("score", "rank", "sweep", "capture", "generate")


def memory(numbers: Mapping[str, Any]) -> list[list[str]]:
    """Every verb: resident memory on the way, and the slope of a line through it."""
    head = [
        "verb",
        "examples",
        "before",
        "at a fifth of the way",
        "at the end of the pass",
        "growth for 10,000 examples",
        "with the result",
    ]
    rows = [
        [
            f"`{verb}`",
            f"{numbers[f'{verb}_examples']:,.0f}",
            *(f"{numbers[f'{verb}_{when}_mb']:,.0f} MB" for when in ("before", "warm", "end")),
            f"{numbers[f'{verb}_slope_mb']:+.2f} MB",
            f"{numbers[f'{verb}_after_mb']:,.0f} MB",
        ]
        for verb in VERBS
        if f"{verb}_examples" in numbers
    ]
    return [head, *rows]
