"""A folder of results as files for a paper and for Neuronpedia."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

import lens_skills as ls
from lens_skills.circuits import Circuit
from lens_skills.cli import app
from lens_skills.errors import LensSkillsError
from tests.reporting.test_neuronpedia import SCHEMAS
from tests.test_cards import CardMaker, _study, _verdict


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    model = ls.load_model("arithmetic-small")
    examples = ls.activating_examples(
        model, ls.tasks.arithmetic(digits=(1,))[:20], ["L0N1", "L1N1"], lenses=()
    )
    return {"study": _study(), "examples": examples, "circuit": older()}


def older() -> Circuit:
    """A circuit without an example, as an earlier version saved it."""
    return CardMaker(0).fields(Circuit)


def test_a_folder_of_tables_and_neurons(results: dict[str, Any], tmp_path: Path) -> None:
    saved = tmp_path / "run"
    for name, result in results.items():
        result.save(saved / name)
    folder = ls.export(saved, tmp_path / "out", most=2)
    tables = sorted(path.name for path in (folder / "tables").iterdir())
    assert tables == sorted(f"{name}.{kind}" for name in results for kind in ("md", "tex"))
    assert (folder / "tables" / "study.tex").read_text() == results["study"].to_latex(
        most=2, label="tab:study"
    )
    shown = folder / "neuronpedia" / "features"
    names = json.loads((shown / "neurons.json").read_text())
    schema = json.loads((SCHEMAS / "feature-details-schema.json").read_text())
    for name, file in names.items():
        feature = json.loads((shown / file).read_text())
        jsonschema.validate(feature, schema)
        # The verdict of the study tried both.
        assert feature["description"].endswith(f": {results['study'].verdict[name].label}.")
    assert "circuit: an earlier version" in (folder / "left-out.txt").read_text()
    # The shell writes the same.
    asked = ["export", str(saved), "--out", str(tmp_path / "shell"), "--most", "2", "--json"]
    said = json.loads(CliRunner().invoke(app.app, asked).stdout)
    assert said["export"] == {
        "folder": str(tmp_path / "shell"), "tables": 3, "graphs": 0, "neurons": 2,
    }  # fmt: skip
    assert any("an earlier version" in note for note in said["notes"])
    for path in folder.rglob("*.*"):
        other = tmp_path / "shell" / path.relative_to(folder)
        assert other.read_bytes() == path.read_bytes()


def test_a_verdict_alone_says_its_words(results: dict[str, Any], tmp_path: Path) -> None:
    given = {"verdict": _verdict(), "examples": results["examples"]}
    folder = ls.export(given, tmp_path / "out") / "neuronpedia" / "features"
    file = json.loads((folder / "neurons.json").read_text())["L0N1"]
    said = json.loads((folder / file).read_text())["description"]
    ruling = _verdict()["L0N1"]
    assert f"{ruling.effect:+.3g} [{ruling.low:+.3g}".replace("-", "−") in said
    assert said.endswith(f": {ruling.label}.")


def test_a_wrong_request_is_said(results: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(LensSkillsError, match="no result"):
        ls.export({}, tmp_path / "out")
    with pytest.raises(LensSkillsError, match="1 or more, not 0"):
        ls.export(results, tmp_path / "out", most=0)
    assert not (tmp_path / "out").exists()
    heads = replace(results["examples"], site="attn.hook_z")
    folder = ls.export({"heads": heads}, tmp_path / "heads")
    assert "no neurons" in (folder / "left-out.txt").read_text()
    asked = CliRunner().invoke(app.app, ["export", str(tmp_path / "nowhere")])
    assert asked.exit_code == 1
    assert "there is no such folder" in asked.stderr
