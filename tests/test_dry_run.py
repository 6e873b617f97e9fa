"""``--dry-run``: what a command would take, and nothing made."""

import json
from pathlib import Path

import pytest

from lens_skills.estimation import small_runs
from tests.test_cli import OPTIONS, QUICK, printed, shell


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures no longer than it must."""
    for name in ("_SHORT", "_LONG", "_TELLING"):
        monkeypatch.setattr(small_runs, name, 0.01)


@pytest.fixture(scope="module")
def scored(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dry") / "run"
    printed("score", "agreement", *QUICK, *OPTIONS, "--out", folder, "--model", tiny_folder)
    return folder


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs" / "new"
    asked = ["score", "agreement", *QUICK, *OPTIONS, "--out", out, "--model", tiny_folder]
    told = shell(*asked, "--dry-run")
    assert told.exit_code == 0, told.output
    assert told.stdout.startswith("score, told beforehand")
    for word in ("time", "memory", "disk"):
        assert f"\n  {word}" in told.stdout
    assert "nothing was made" in told.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_as_json(tiny_folder: Path, tmp_path: Path) -> None:
    asked = ["score", "agreement", *QUICK, *OPTIONS, "--out", tmp_path / "x"]
    told = json.loads(printed(*asked, "--model", tiny_folder, "--dry-run", "--json"))
    found = told["results"]["score"]
    assert found["kind"] == "Estimate"
    assert found["low"] <= found["seconds"] <= found["high"]


def test_a_dry_run_of_a_step_leaves_the_run_as_it_was(scored: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in scored.rglob("*"))
    told = shell("explain", scored, "--neuron", "L0N1", "--dry-run")
    assert told.exit_code == 0, told.output
    assert told.stdout.startswith("explain, told beforehand")
    assert sorted((path, path.stat().st_mtime_ns) for path in scored.rglob("*")) == before


def test_a_dry_run_refuses_what_the_run_would(tiny_folder: Path, tmp_path: Path) -> None:
    asked = ["score", "agreement", "--metric", "label:plurl", "--out", tmp_path / "x"]
    told = shell(*asked, "--model", tiny_folder, "--dry-run")
    assert told.exit_code == 1
    assert "plurl" in told.stderr


def test_a_dry_run_looks_at_the_place_and_its_room(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["score", "agreement", *QUICK, *OPTIONS, "--model", tiny_folder, "--dry-run"]
    (tmp_path / "file").write_text("")
    told = shell(*asked, "--out", tmp_path / "file" / "run")
    assert told.exit_code == 1
    assert "is a file" in told.stderr

    class Full:
        free = 1000

    monkeypatch.setattr("lens_skills.cli.console.shutil.disk_usage", lambda place: Full)
    told = shell(*asked, "--out", tmp_path / "run")
    assert told.exit_code == 1
    assert "0 MB are free there" in told.stderr
