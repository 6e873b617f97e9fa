"""Rows of a measurement that are measured once: kept in a file, and read from there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def kept_rows(path: Path, measure: Callable[[], Any]) -> Any:
    """What is in the file; measured and written where there is none."""
    if not path.exists():
        found = measure()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))
