"""A folder that was damaged is read, or refused with a sentence: nothing else is raised."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lens_skills as ls
from lens_skills.cli.runs import Run, RunRequest
from lens_skills.scoring import select
from tests.folder_damage import damage, read, stopped


@pytest.fixture(scope="module")
def saved(tiny_bridge: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind that is read: results, a run, a table of activations, a checkpoint."""
    place = tmp_path_factory.mktemp("whole")
    options = {"n_permutations": 39}
    request = RunRequest("agreement", ("label:plural",), options=options, limit=96)
    run = Run.create(place / "run", request)
    found = run.explore(tiny_bridge)
    found = replace(found, p_family=torch.zeros_like(found.r), p_control=None)["label:plural"]
    top = found.top(2)
    checked = ls.score(tiny_bridge, run.splits()[1], metrics=["label:plural"], neurons=top)
    chosen = select(found, checked["label:plural"], grade="C", fdr=0.999)
    chosen.save(run.path("selection", "label:plural"))
    chosen.save(place / "selection")
    task = run.splits()[2][:8]
    ls.capture(tiny_bridge, task, place / "table", layers=0)
    ls.preflight(tiny_bridge, task).save(place / "preflight")
    stopped(place / "checkpoint")
    return {path.name: path for path in place.iterdir()}


@pytest.mark.parametrize("kind", ["run", "selection", "table", "preflight", "checkpoint"])
def test_a_damaged_folder_is_read_or_refused(
    kind: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    read(saved[kind])

    @settings(
        max_examples=25 if kind == "run" else 60, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(seed=st.integers(0, 2**32))
    def check(seed: int) -> None:
        copy = tmp_path / "a copy é"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(saved[kind], copy)
        damage(copy, seed)
        read(copy)

    check()


def test_any_change_of_a_number_is_seen(saved: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(saved["selection"], tmp_path / "copy")
    file = copy / "result.json"
    file.write_text(file.read_text().replace('"fdr": 0.999', '"fdr": 0.05'))
    with pytest.raises(ls.LensSkillsError, match="its content is not what was saved"):
        ls.load(copy)


@pytest.mark.parametrize("name", ["", "nowhere", "x" * 300, "a\0b", "a b é", "."])
def test_a_place_that_is_no_result(name: str, tmp_path: Path) -> None:
    for reader in (ls.load, Run.load):
        with pytest.raises(ls.LensSkillsError):
            reader(tmp_path / name)
