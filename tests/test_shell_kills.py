"""Commands that were killed and typed again lost no number; a killed run is checked by another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from lens_skills.cli import app

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from shell_kills_page import commands  # noqa: E402

NUMBERS = json.loads((BENCHMARKS / "results" / "shell_kills.json").read_text(encoding="utf-8"))
NOT_KILLED = {"circuit", "demo"}  # twins are wanted, which the task has not; several studies


def test_every_command_that_can_be_finished_was_killed() -> None:
    listed = typer.main.get_command(app.app).commands  # type: ignore[attr-defined]
    made = {name for name, one in listed.items() if any(p.name == "again" for p in one.params)}
    head, *rows = commands(NUMBERS)
    assert {row[0].strip("`") for row in rows} == made - NOT_KILLED
    assert all(len(row) == len(head) for row in rows)


def test_none_of_them_lost_a_number() -> None:
    assert NUMBERS["kills"] == NUMBERS["kills_same"] >= 26
    assert {value for key, value in NUMBERS.items() if key.endswith("_difference")} == {0}
    assert (NUMBERS["story_kills"], NUMBERS["story_exact"]) == (5, 1)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that are forked for it")
def test_a_run_killed_three_times_is_finished_published_and_checked_by_another() -> None:
    """In a process of its own: who forks must not have computed on several threads before."""
    ran = subprocess.run(
        [sys.executable, BENCHMARKS / "shell_kills.py", "--quick"], cwd=ROOT,
        capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["kills"] == found["kills_same"] == 2, ran.stderr
    assert (found["story_kills"], found["story_difference"], found["story_exact"]) == (5, 0, 1)
    assert found["story_tried"] == found["story_overlap"] == 3
