"""`lens-skills publish` of a run, and `lens-skills check` by somebody else."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import lens_skills as ls
from lens_skills.cli import app
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
