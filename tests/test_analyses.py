"""The shell's analyses of a run print and write what the API finds."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from lens_skills.circuits import Circuit
from lens_skills.cli import app
from lens_skills.cli.runs import Run, RunRequest
from lens_skills.explanation import Explanations
from lens_skills.scoring import Scores
from lens_skills.settings import config

SCORE = ["--metric", "label:plural", "--limit", "600", "--permutations", "39", "--seed", "0"]


def shell(*arguments: object) -> tuple[int, str, str]:
    with config():  # what a command sets ends with it
        result = CliRunner().invoke(app.app, [str(part) for part in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored run of which nothing was confirmed."""
    folder = tmp_path_factory.mktemp("analyses") / "run"
    code, *_ = shell("score", "agreement", *SCORE, "--out", folder, "--model", tiny_folder)
    assert code == 0
    return folder


def test_explain_takes_the_strongest_where_nothing_is_confirmed(run: Path) -> None:
    code, out, err = shell("explain", run, "--top", 2)
    assert code == 0
    assert "nothing of 'label:plural' is confirmed: the 2 strongest of explore" in err
    kept = Explanations.load(run / "explanations-label_plural")
    strongest = Scores.load(run / "explore")["label:plural"].top(2)
    assert list(kept) == strongest.names
    assert next(iter(kept)) in out
    assert (run / "explanations-label_plural.csv").exists()
    assert list((run / "figures").glob("feature_matrix*.csv"))


def test_explain_in_words(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "run"
    shutil.copytree(run, own, ignore=shutil.ignore_patterns("explanations*", "figures"))
    code, out, _ = shell("explain", own, "--neuron", "L0N1", "--describer", "features")
    assert code == 0
    kept = Explanations.load(own / "explanations-label_plural")
    assert kept.provenance["describer"] == "features"
    assert kept["L0N1"].described is not None
    assert "sentence" in out
    for asked, said in (
        (["--describer-model", "m"], "belong to an endpoint"),
        (["--describer", "http://localhost:1/v1"], "Say --describer-model NAME"),
        (["--describer", "gpt"], "describer= is 'features'"),
    ):
        code, _, err = shell("explain", own, "--neuron", "L0N2", "--top", 1, *asked)
        assert code != 0
        assert said in " ".join(err.split())


def test_compare_methods_writes_its_table(run: Path) -> None:
    asked = ["--method", "pearson", "--method", "auroc", "--k", "3", "--limit", "24"]
    code, out, _ = shell("compare-methods", run, *asked)
    assert code == 0
    table = pd.read_csv(run / "methods-label_plural.csv")
    assert set(table["method"]) == {"pearson", "auroc", "random", "rotated basis"}
    assert "rotated basis" in out
    assert list((run / "figures").glob("method_comparison*.csv"))


@pytest.mark.slow
def test_circuit_of_a_neuron(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RunRequest("agreement", ("label:plural",), limit=360)).folder
    quick = ["--edges", 2, "--depth", 1, "--limit", 20]
    code, out, _ = shell("circuit", run, "--neuron", "L28N907", *quick)
    assert code == 0
    kept = Circuit.load(run / "circuit-L28N907")
    assert kept.target == "L28N907"
    assert "circuit of L28N907" in out
    assert len(pd.read_csv(run / "circuit-L28N907.csv")) == len(kept.edges) > 0
    assert list((run / "figures").glob("circuit*.csv"))
