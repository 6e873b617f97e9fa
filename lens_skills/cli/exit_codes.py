"""With which code a command ends, beside 0 (done)."""

import signal
from typing import Any

FAILED, MISTYPED, BUG, CUT_OFF, INTERRUPTED, TERMINATED = 1, 2, 70, 141, 130, 143

received: list[int] = []
"""The signals that stopped this process: an exception may hide that it was one."""


def catch_signals() -> None:
    """From now on Ctrl-C, and being told to end, are a ``KeyboardInterrupt`` that is remembered."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(number: int, frame: Any) -> None:
    received.append(number)
    raise KeyboardInterrupt


def stopped_code() -> int:
    """Of a command that was stopped."""
    return TERMINATED if signal.SIGTERM in received else INTERRUPTED
