"""Waiting for a page, from outside it: its policy forbids to evaluate texts inside, polls too."""

import time
from typing import Any

PATIENCE = 20.0  # seconds


def until(page: Any, expression: str) -> None:
    """Nothing, once a JavaScript expression is true in the page.

    Raises:
        AssertionError: It is not within `PATIENCE`.
    """
    stop = time.monotonic() + PATIENCE
    while not page.evaluate(f"Boolean({expression})"):
        assert time.monotonic() < stop, f"never true in the page: {expression}"
        page.wait_for_timeout(20)
