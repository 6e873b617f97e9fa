"""Under Ray: the numbers of one process, workers that die, and what is refused."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lens_skills as ls
from lens_skills import settings
from lens_skills.errors import LensSkillsError

ROOT = Path(__file__).resolve().parents[2]
LOST = 1e-12

pytestmark = pytest.mark.slow
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="needs Ray: pip install 'lens-skills[ray]' (the test extra has it)",
)


@pytest.fixture(scope="module")
def found(tiny_folder: Path) -> dict[str, Any]:
    """What `ray_run` found, all of it from one Ray."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "tests.engines.ray_run", str(tiny_folder)]
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, ran.stderr[-3000:]
    return json.loads(lines[-1].removeprefix("FOUND "))


@needs_ray
@pytest.mark.parametrize("what", ["score", "rank", "in memory"])
def test_the_numbers_are_those_of_one_process(found: dict[str, Any], what: str) -> None:
    assert found["workers"] == 2
    assert found["origin"]
    assert found[what] <= LOST


@needs_ray
def test_a_shard_of_a_dead_worker_is_done_by_another(found: dict[str, Any]) -> None:
    assert found["once"] == [[0, 1], [1, 2], [2, 1], [3, 1]]  # the second was given out twice


@needs_ray
def test_a_shard_that_kills_every_worker_is_named(found: dict[str, Any]) -> None:
    assert "shard 2 of 4 of try (parts 1 to 1) was given to 2 workers, and" in found["always"]


@needs_ray
def test_an_interruption_ends_the_workers(found: dict[str, Any]) -> None:
    assert "score was stopped" in found["interrupted"]
    assert found["alive after it"] == {}


@needs_ray
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no file", "cannot open the model, load_model("),
        ("other weights", "has other weights"),
        ("too many GPUs", "need more GPUs than the cluster has (0)"),
        ("no cluster", "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1"),
    ],
)
def test_what_cannot_be_is_refused(found: dict[str, Any], what: str, said: str) -> None:
    assert said in found[what]


def test_ray_absent_or_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    with pytest.raises(LensSkillsError, match=r"needs Ray, .* pip install 'lens-skills\[ray\]'"):
        ls.config(engine="ray")
    monkeypatch.setattr(settings, "find_spec", lambda name: object())
    for number in ("2.9.3", "3.0.0"):
        monkeypatch.setattr(settings, "version", lambda name, number=number: number)
        with pytest.raises(LensSkillsError, match=f"and here is {number}"):
            ls.config(engine="ray")
    monkeypatch.setattr(settings, "version", lambda name: "2.60.0rc1")
    with ls.config(engine="ray"):
        assert settings.engine() == "ray"
    assert settings.engine() == "local"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"engine": "dask"}, "engine must be 'local' or 'ray', not 'dask'"),
        ({"workers": 0}, "workers must be a whole number from 1 on"),
        ({"worker_gpus": 1.5}, "worker_gpus must be a whole number or a share"),
        ({"worker_gpus": -1}, "worker_gpus must be"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LensSkillsError, match=complaint):
        ls.config(**options)
