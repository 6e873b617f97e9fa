"""A user's story: a run that is killed three times, finished, published, checked by another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that are forked for it")
def test_a_run_killed_three_times_is_finished_published_and_checked_by_another() -> None:
    """In a process of its own: who forks must not have computed on several threads before."""
    ran = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "shell_kills.py", "--quick"], cwd=ROOT,
        capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["kills"] == found["kills_same"] == 2, ran.stderr
    assert (found["story_kills"], found["story_difference"], found["story_exact"]) == (5, 0, 1)
    assert found["story_tried"] == found["story_overlap"] == 3
