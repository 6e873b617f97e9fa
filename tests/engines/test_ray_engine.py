"""Under Ray: the numbers of one process, workers that die, and what is refused."""

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import lens_skills as ls
from lens_skills import settings
from lens_skills.engines import ray_engine
from lens_skills.engines.ray_worker import Source, Worker
from lens_skills.errors import LensSkillsError
from lens_skills.models.origins import Origin
from lens_skills.results import versions

ROOT = Path(__file__).resolve().parents[2]
LOST = 1e-12
MARK = "LENS_SKILLS_RAY_RUN_OF"

pytestmark = pytest.mark.slow
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="needs Ray: pip install 'lens-skills[ray]' (the test extra has it)",
)


@pytest.fixture(scope="module")
def found(tiny_folder: Path) -> dict[str, Any]:
    """What `ray_run` found, all of it from one Ray."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", MARK: str(os.getpid())}
    env.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "tests.engines.ray_run", str(tiny_folder)]
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, ran.stderr[-3000:]
    deadline = time.monotonic() + 20
    while (left := marked()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return {**json.loads(lines[-1].removeprefix("FOUND ")), "left": left}


def marked() -> list[str]:
    """The processes that the run has started, directly or not, and that are still there."""
    mark, found = f"{MARK}={os.getpid()}".encode(), []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environment.read_bytes().split(b"\0"):
                found.append((environment.parent / "cmdline").read_text().replace("\0", " "))
    return found


@needs_ray
@pytest.mark.parametrize(
    "what", ["score", "rank", "in memory", "table", "rows of a table", "rank a table", "shell"]
)
def test_the_numbers_are_those_of_one_process(found: dict[str, Any], what: str) -> None:
    assert found["workers"] == 2
    assert found["origin"]
    assert found[what] <= LOST


@needs_ray
@pytest.mark.parametrize("what", ["verify", "generate"])
def test_verdicts_and_texts_are_those_of_one_process(found: dict[str, Any], what: str) -> None:
    assert found[what] == 0


@needs_ray
@pytest.mark.parametrize(("what", "bound"), [("score", LOST), ("sweep", 0)])
def test_a_killed_node_costs_a_shard_and_no_number(
    found: dict[str, Any], what: str, bound: float
) -> None:
    again, workers = found[f"{what}, again"]
    assert again >= 1
    assert workers >= 1
    assert found[f"{what}, a node killed"] <= bound


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
def test_workers_write_the_table_of_one_process(found: dict[str, Any]) -> None:
    assert found["captured"] == [0, 8]  # to the bit, in a file for each shard


@needs_ray
def test_no_process_outlives_the_run(found: dict[str, Any]) -> None:
    assert found["left"] == []


@needs_ray
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("other weights", "has other weights"),
        ("too many GPUs", "need more GPUs than the cluster has (0)"),
        ("changed shard", "is another one ("),
        ("no shard", "Put the folder at this place on every machine"),
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
    with pytest.raises(LensSkillsError, match=f"(?s){complaint}"):
        ls.config(**options)


@pytest.mark.parametrize("package", ["torch", "transformer-lens"])
def test_a_worker_with_other_versions_is_refused(package: str) -> None:
    """What a worker says that has a package of another version than is asked for, or none."""
    asked = {**versions(), package: "0.0.1"}
    worker = Worker(threads=1, on_gpu=False)
    complaint = rf"has {package} {re.escape(versions()[package])}, and 0\.0\.1 is asked for"
    with pytest.raises(LensSkillsError, match=complaint):
        worker.begin(Source(None, None, "", asked))
    with pytest.raises(LensSkillsError, match=r"has jax None, and 1\.0 is asked for"):
        worker.begin(Source(None, None, "", {**versions(), "jax": "1.0"}))


def test_a_worker_without_the_file_is_refused(tmp_path: Path) -> None:
    origin = Origin(str(tmp_path / "gone"), "hooked", "float32", None, ())
    with pytest.raises(LensSkillsError) as refused:
        Worker(threads=1, on_gpu=False).begin(Source(origin, None, "0" * 16, versions()))
    assert "cannot open the model, load_model(" in str(refused.value)
    assert "Put the file at this place on every machine" in str(refused.value)


@needs_ray
def test_a_cluster_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def other(**options: Any) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.3")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", other)
    monkeypatch.setattr(ray_engine, "_reach", lambda address: None)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(
        LensSkillsError, match=r"of another version of Ray .* started with: Ray: 2\.9\.3\."
    ):
        ray_engine.begin()
