"""The tables of ``docs/howto/long_runs.md``: what was done to long calls, and what was left."""

from collections.abc import Mapping
from typing import Any

FAULTS = {
    "disk_full": "the disk is full while tensors are written",
    "file_too_large": "the system breaks off a file at 2 kB",
    "cut_short": "a kept file is cut to its half",
    "one_byte_changed": "one byte of a kept file is changed",
    "emptied": "a kept file is emptied",
    "a_file_not_copied": "a kept file is missing",
    "other_arguments": "the same folder, another batch size",
    "a_second_run": "a second process in the folder of a running one",
    "clock_set_back": "the clock is set back by a day in between",
}


def kills(numbers: Mapping[str, Any]) -> list[list[str]]:
    """Every verb: how often it was killed, and what the same call then made of it."""
    head = [
        "verb",
        "killed",
        "went on to the same numbers",
        "largest difference",
        "run again, most",
    ]
    verbs = [key.removesuffix("_kills") for key in numbers if key.endswith("_kills")]
    rows = [
        [
            f"`{verb}`",
            f"{numbers[f'{verb}_kills']:.0f} times",
            f"{numbers[f'{verb}_survived']:.0f}",
            f"{numbers[f'{verb}_difference']:g}",
            f"{numbers[f'{verb}_lost']:.0%}".replace("%", " %"),
        ]
        for verb in verbs
    ]
    return [head, *rows]


def others(numbers: Mapping[str, Any]) -> list[list[str]]:
    """Every other fault: how often it ended in a clear refusal and, mended, in the same numbers."""
    head = ["what was done", "times", "ended well", "largest difference"]
    rows = [
        [
            words,
            f"{numbers[f'fault_{fault}']:.0f}",
            f"{numbers[f'fault_{fault}_survived']:.0f}",
            f"{numbers[f'fault_{fault}_difference']:g}",
        ]
        for fault, words in FAULTS.items()
        if f"fault_{fault}" in numbers
    ]
    return [head, *rows]
