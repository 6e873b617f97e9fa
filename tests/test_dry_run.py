"""``--dry-run``: what a command would take, and nothing made."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lens_skills.estimation import small_runs
from tests.test_cli import run as typed


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SHORT", "_LONG", "_TELLING"):
        monkeypatch.setattr(small_runs, name, 0.01)
