"""`--features`: a run whose units are a dictionary's features, as the API has them."""

import json
from pathlib import Path

import pytest
import torch

import lens_skills as ls
from lens_skills.cli.runs import Run
from tests.test_shell import shell

MODEL = ("--model", "arithmetic-small")
SCORE = ("score", "arithmetic:+-:2", "--limit", 120, "--metric", "label:op", *MODEL)
QUICK = ("--permutations", 39)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dictionaries: one that fits, one of a block the model lacks, one of another width."""
    folder = tmp_path_factory.mktemp("dictionaries")
    draw = torch.Generator().manual_seed(0)
    enc, dec = (torch.randn(shape, generator=draw) / 12 for shape in ((128, 24), (24, 128)))
    ls.Dictionary(enc, dec, "blocks.1.hook_resid_post").save(folder / "sae")
    ls.Dictionary(enc, dec, "blocks.9.hook_resid_post").save(folder / "deep")
    narrow = torch.eye(64)
    ls.Dictionary(narrow, narrow, "blocks.1.hook_resid_post").save(folder / "narrow")
    return folder


@pytest.fixture(scope="module")
def run(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shell") / "run"
    asked = shell(*SCORE, *QUICK, "--features", folders / "sae", "--out", folder)
    assert asked.exit_code == 0, asked.output
    return folder


def test_scores_are_those_of_the_api(run: Path, folders: Path) -> None:
    opened = Run.load(run)
    assert opened.request.features == (str(folders / "sae"),)
    model = ls.with_features(ls.load_model("arithmetic-small"), ls.load_dictionary(folders / "sae"))
    own = ls.score(model, opened.splits()[0], metrics="label:op", at="features", n_permutations=39)
    found = opened.scores()
    assert found.n_units == 24
    assert torch.equal(found.r, own.r)
    assert found.provenance["model_fingerprint"] == own.provenance["model_fingerprint"]


def test_later_steps_go_on_with_the_features(run: Path, folders: Path) -> None:
    for step in (("select", run, "--top", 10), ("sweep", run, "--limit", 12)):
        asked = shell(*step, "--json")
        assert asked.exit_code == 0, asked.output
        assert "L1F" in asked.stdout
    model = ls.with_features(ls.load_model("arithmetic-small"), ls.load_dictionary(folders / "sae"))
    task = ls.tasks.arithmetic("+", n=40)
    ls.NeuronSet.of(["L1F3"], model, task, licence="MIT").save(run.parent / "set")
    check = ("check", run.parent / "set", *MODEL)
    assert shell(*check, "--features", folders / "sae").exit_code == 0
    bare = shell(*check)
    assert bare.exit_code == 1
    assert "is read at 'features', which it has not" in " ".join(bare.output.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--features", "{0}/none"), "no folder {0}/none: an SAE is a folder of cfg.json"),
        (("--features", "{0}/deep"), "is of layer 9, and arithmetic-small has layers 0 to 3"),
        (("--features", "{0}/narrow"), "has 128 there: it was trained on another model"),
        (("--at", "features"), "needs the dictionary whose features they are: --features"),
        (("--features", "{0}/sae", "--at", "mlp.hook_post"), "--at mlp.hook_post reads no feat"),
        (("--features", "{0}/sae", "--features", "b={0}/sae"), "Say --at features"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: tuple[str, ...], said: str, folders: Path, tmp_path: Path
) -> None:
    given = [option.format(folders) for option in options]
    asked = shell(*SCORE, *given, "--out", tmp_path / "run")
    assert asked.exit_code == 1
    assert said.format(folders) in " ".join(asked.output.split())
    assert not (tmp_path / "run" / "explore").exists()


def test_a_run_keeps_its_features(run: Path, folders: Path) -> None:
    other = shell(*SCORE, *QUICK, "--out", run)
    assert other.exit_code == 1
    assert "features was" in " ".join(other.output.split())
    again = shell("audit", run, "L1F3", "--features", folders / "sae")
    assert again.exit_code == 1
    assert "says its own features" in " ".join(again.output.split())
    written = json.loads((run / "run.json").read_text())
    del written["features"]  # as runs without features were once written
    older = run.parent / "older"
    older.mkdir()
    (older / "run.json").write_text(json.dumps(written))
    assert Run.load(older).request.features == ()
