"""The table of ``docs/howto/long_runs.md``: commands of the shell, killed and typed again."""

from collections.abc import Mapping
from typing import Any


def commands(numbers: Mapping[str, Any]) -> list[list[str]]:
    """Every command: how often it was killed, and what it left when it was typed again."""
    names = [key.removesuffix("_kills") for key in numbers if key.endswith("_kills")]
    return [
        ["command", "killed", "the same numbers", "largest difference", "run again, most"],
        *(
            [
                f"`{name.replace('_', '-')}`",
                f"{numbers[f'{name}_kills']:.0f} times",
                f"{numbers[f'{name}_same']:.0f}",
                f"{numbers[f'{name}_difference']:.1g}",
                f"{numbers[f'{name}_lost']:.0%}".replace("%", " %"),
            ]
            for name in names
            if name != "story"
        ),
    ]
