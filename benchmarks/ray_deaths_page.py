"""The table of deaths in ``docs/howto/many_machines.md``: what was killed, and what was left."""

from collections.abc import Mapping
from typing import Any

VERBS = ("score", "rank", "sweep", "verify", "generate")
KILLED = {"worker": "a worker", "node": "a node with its worker"}


def deaths(numbers: Mapping[str, Any]) -> list[list[str]]:
    """Every verb with a worker and with a node killed."""
    head = [
        "verb",
        "killed",
        "shards given out again",
        "of the work",
        "noticed after",
        "largest difference",
    ]
    rows = []
    for verb in VERBS:
        for what, words in KILLED.items():
            key = f"{verb}_{what}"
            if f"{key}_shards" not in numbers:
                continue
            again, shards = numbers[f"{key}_again"], numbers[f"{key}_shards"]
            rows.append(
                [
                    f"`{verb}`",
                    words,
                    f"{again:.0f} of {shards:.0f}",
                    f"{numbers[f'{key}_lost']:.0%}".replace("%", " %"),
                    f"{numbers[f'{key}_noticed']:.1f} s",
                    f"{numbers[f'{key}_difference']:.0e}" if numbers[f"{key}_difference"] else "0",
                ]
            )
    return [head, *rows]
