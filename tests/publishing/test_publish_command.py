"""`lens-skills publish` of a run, and `lens-skills check` by somebody else."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import lens_skills as ls
from lens_skills.cli import app
from lens_skills.errors import LensSkillsError
from lens_skills.results import write_asked
from lens_skills.studies import Study
from lens_skills.tasks import Task
from tests.models.conftest import IMPLEMENTATIONS

CHOSEN = ("--text", "text", "--label", "plural")


def shell(*arguments: object) -> Result:
    with ls.config():
        return CliRunner().invoke(app.app, [str(part) for part in arguments])


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("published")
    rows = [
        {"text": f"{opening} {noun}{'s' * plural}", "plural": plural}
        for noun in ("key", "girl", "boy", "author", "doctor", "friend", "cat", "dog")
        for opening in ("The", "See the", "By the", "Near a", "To the", "Of the")
        for plural in (0, 1)
    ]
    pd.DataFrame(rows).to_csv(place / "mine.csv", index=False)
    model = ("--model", tiny_folder)
    said = shell("score", place / "mine.csv", *CHOSEN, "--metric", "label:plural",
                 "--permutations", 39, *model, "--out", place / "run")  # fmt: skip
    assert said.exit_code == 0, said.output
    said = shell("select", place / "run")
    assert said.exit_code == 0, said.output
    return place / "run"


@pytest.mark.filterwarnings("ignore:plurals. published from float32:RuntimeWarning")
def test_published_by_one_and_checked_by_another(
    run: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    said = shell("publish", run, "--licence", "CC0-1.0", "--name", "plurals", "--citation", "Me")
    assert said.exit_code == 0, said.output
    assert "nothing is known of effects" in said.stderr
    assert f"written to {run / 'neuron-set'}" in said.stderr
    theirs = ls.NeuronSet.load(shutil.copytree(run / "neuron-set", tmp_path / "theirs"))
    assert theirs.name == "plurals"
    assert theirs.names == ls.load(run)["selection-label_plural"].names
    bridge = ("--implementation", "bridge")
    checked = shell("check", tmp_path / "theirs", "--model", tiny_folder, *bridge)
    assert checked.exit_code == 0, checked.output
    assert "plurals fits" in checked.stdout
    plain = json.loads(
        shell("check", tmp_path / "theirs", "--model", tiny_folder, *bridge, "--json").stdout
    )
    assert plain["format"] == "lens-skills/check"
    assert plain["results"]["check"]["implementation"] == [IMPLEMENTATIONS[0], "bridge"]
    rounded = shell("check", tmp_path / "theirs", "--model", tiny_folder, "--dtype", "bfloat16")
    assert rounded.exit_code == 0, rounded.output
    assert "warning: published from float32, read in bfloat16" in rounded.stdout
    other = shell("check", tmp_path / "theirs", "--model", "arithmetic-small")
    assert other.exit_code == 1
    assert "is not the model 'plurals' was published with" in other.stderr


def test_what_cannot_be_published_is_said(run: Path, tmp_path: Path) -> None:
    assert "no run in" in shell("publish", tmp_path, "--licence", "CC0-1.0").stderr
    assert shell("publish", run).exit_code == 2  # no licence
    said = shell("publish", run, "--licence", "CC0-1.0", "--name", "a/b")
    assert "holds a separator of paths" in said.stderr
    assert "no NeuronSet in" in shell("check", tmp_path).stderr


# What `demo` writes, and what `Study.save` does.


def nothing(found: Study) -> Study:
    each = ("neurons", "position", "r_explore", "r_confirm", "p", "q", "mean", "std")
    none = {name: getattr(found.selection, name)[:0] for name in each}
    empty = replace(found.selection, **none)
    return replace(found, selection=empty, verdict=None, no_verdict="nothing was confirmed")


@pytest.fixture
def demo(
    found: Study, task: Task, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setattr("lens_skills.tasks.open_task", {"endings": task}.__getitem__)
    folder = tmp_path / "figures"
    asked = {"--seed": 0, "--model": str(tiny_folder), "--dtype": None, "task": "endings"}
    for name, one in (("agreement", found), ("arithmetic", nothing(found))):
        write_asked(one.save(folder / name / "study"), asked)
    return folder


@pytest.mark.parametrize("inside", [".", "agreement", "agreement/study"])
def test_a_demo_is_published_by_its_folder(
    demo: Path, found: Study, task: Task, tiny_hooked: Any, tiny_folder: Path, inside: str
) -> None:
    said = shell("publish", demo / inside, "--licence", "CC0-1.0", "--json")
    assert said.exit_code == 0, said.output
    target = demo / "agreement" / "neuron-set"
    plain = json.loads(said.stdout)
    assert plain["written"] == [str(target)]
    assert plain["results"]["neuron_set"]["n_rows"] == len(found.selection)
    empty = "nothing was confirmed in arithmetic: there is no set of it"
    assert (empty in plain["notes"]) == (inside == ".")
    theirs = ls.NeuronSet.load(target)
    by_hand = ls.NeuronSet.of(found, tiny_hooked, task, licence="CC0-1.0", name="agreement")
    assert len(theirs.task or ()) == 160 > sum(map(len, (found.explore, found.confirm))) + 24
    assert theirs.document == by_hand.document
    tried = [row for row in theirs.document["components"] if row["verdict"]]
    assert len(tried) == 3
    assert all(row["verdict"]["low"] <= row["verdict"]["effect"] for row in tried)
    checked = shell("check", target, "--model", tiny_folder, "--json")
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["results"]["check"]["exact"] is True
    assert shell("show", demo).exit_code == 0  # a set beside the studies is shown as they are


def test_several_studies_are_a_set_each(demo: Path, found: Study) -> None:
    found.save(demo / "again" / "study")
    said = shell("publish", demo, "--licence", "CC0-1.0", "--model", "arithmetic-small")
    assert said.exit_code == 1
    assert "the result is of other weights" in said.stderr
    shutil.copy(demo / "agreement" / ".study-asked.json", demo / "again")
    for option in (("--name", "verbs"), ("--push", "user/verbs")):
        said = shell("publish", demo, "--licence", "CC0-1.0", *option)
        assert said.exit_code == 1
        assert f"{option[0]} is of one set, and {demo} holds 2" in said.stderr
        assert f"lens-skills publish {demo / 'again'}" in said.stderr
    assert not list(demo.rglob("neurons.json"))
    said = shell("publish", demo, "--licence", "CC0-1.0", "--out", demo / "sets", "--json")
    assert said.exit_code == 0, said.output
    assert set(json.loads(said.stdout)["results"]) == {"again", "agreement"}
    written = sorted(path.parent.name for path in demo.rglob("neurons.json"))
    assert written == ["again", "agreement"]
    assert ls.NeuronSet.load(demo / "sets" / "again").name == "again"


def test_a_study_saved_in_python_is_published_with_what_it_holds(
    found: Study, tiny_hooked: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    place = found.save(tmp_path / "mine")
    said = shell("publish", place, "--licence", "CC0-1.0", "--model", tiny_folder)
    assert said.exit_code == 0, said.output
    theirs = ls.NeuronSet.load(tmp_path / "mine-neuron-set")
    assert theirs.name == "mine"
    held = [*found.explore, *found.confirm, *(found.intervene or ())]
    assert theirs.task is not None
    assert list(theirs.task) == held
    assert theirs.task.recipe == (
        "0.4 of all #0, seed 0 + 0.2 of all #1, seed 0 + 24 of 0.4 of all #2, seed 0, seed 0"
    )
    with pytest.raises(LensSkillsError, match="is no Task"):
        ls.NeuronSet.of(found.selection, tiny_hooked, licence="CC0-1.0")


def test_studies_that_cannot_be_published_are_said(demo: Path, found: Study) -> None:
    licence = ("--licence", "CC0-1.0")
    said = shell("publish", demo / "arithmetic", *licence)
    assert said.exit_code == 1
    assert "nothing was confirmed in arithmetic, and that is the result" in said.stderr
    said = shell("publish", demo, *licence, "--metric", "label:plurl")
    assert "is a study of 'label:plural', not 'label:plurl'. Did you mean" in said.stderr
    record = demo / "agreement" / ".study-asked.json"
    record.write_text(record.read_text().replace('"format": 1', '"format": 7'))
    said = shell("publish", demo, *licence)
    assert said.exit_code == 1
    assert "has format 7; this version of lens-skills reads 1. Update lens-skills" in said.stderr
    assert not list(demo.rglob("neurons.json"))
    for name in ("result.json", "result.safetensors"):
        whole = (demo / "agreement" / "study" / name).read_bytes()
        (demo / "agreement" / "study" / name).write_bytes(whole[: len(whole) // 2])
        said = shell("publish", demo, *licence)
        assert said.exit_code == 1
        assert "is damaged" in said.stderr
        (demo / "agreement" / "study" / name).write_bytes(whole)
