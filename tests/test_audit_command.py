"""`lens-skills audit`: of a task of one's own, and of a run, without a search of neurons."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import lens_skills as ls
from lens_skills.cli import app
from lens_skills.cli.runs import joined

FEW = ("--delta", 0.5, "--control-sets", 0, "--control-neurons", 25, "--permutations", 39)


def shell(*arguments: object) -> Result:
    with ls.config():
        return CliRunner().invoke(app.app, [str(part) for part in arguments])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Sentences about sixteen nouns, with and without an s."""
    nouns = [f"{size} {noun}" for size in ("old", "new", "red", "wet")
             for noun in ("key", "girl", "boy", "author")]  # fmt: skip
    rows = [
        {"text": f"{opening} {noun}{'s' * plural}", "verb": " are" if plural else " is",
         "other": " is" if plural else " are", "plural": plural, "noun": noun}
        for noun in nouns for plural in (0, 1) for opening in ("The", "See the")
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "mine.csv", index=False)
    return tmp_path / "mine.csv"


def test_of_a_table_of_ones_own(table: Path, tiny_folder: Path, tmp_path: Path) -> None:
    columns = ("--text", "text", "--answer", "verb", "--foil", "other", "--label", "plural")
    model, out = ("--model", tiny_folder), tmp_path / "claims"
    asked = ("audit", table, "L1N2", "L2N3", *columns, "--group", "noun", *FEW, *model)
    result = shell(*asked, "--out", out)
    assert result.exit_code == 0, result.output
    found = ls.load(out / "audit-L1N2_L2N3")
    assert result.stdout == f"{found!r}\n"
    assert {row["metric"] for row in found.claims} == {"label:plural", "logit_diff"}
    assert {row["name"] for row in found.claims} == {"L1N2", "L2N3"}
    drawn = {path.stem for path in (out / "figures").glob("*.pdf")}
    assert "effect_forest-audit-L1N2_L2N3" in drawn
    assert len(pd.read_csv(out / "audit-L1N2_L2N3.csv")) == 4
    assert result.stderr.endswith(f"next: lens-skills show {out}\n")
    assert f"{found!r}\n" in shell("show", out).stdout
    assert "Nothing was run" in shell(*asked, "--out", out).stderr
    other = shell(*asked[:-2], "--seed", 1, *model, "--out", out).stderr
    assert "--seed was 0, not 1" in other


def test_a_task_needs_a_folder_to_write(table: Path) -> None:
    said = shell("audit", table, "L1N2", "--text", "text").stderr
    assert "mine.csv is no run. Of a task, say where to write: --out FOLDER" in said


def test_many_names_are_a_short_name_of_a_file() -> None:
    assert joined(["L1N2"]) == "L1N2"
    many = [f"L1N{place}" for place in range(300)]
    assert joined(many).startswith("L1N0+299-more-")
    assert len(joined(many)) < 40
    assert joined(many) != joined(many[:-1]) != joined([*many[:-1], "L1N999"])


def test_a_claim_and_a_head_that_the_model_lacks(
    table: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    asked: tuple[Any, ...] = ("--text", "text", "--answer", "verb", "--out", tmp_path / "x", *FEW)
    for name, why in (("L9N1", "L9N1"), ("L0H9", "L0H9")):
        result = shell("audit", table, name, *asked, "--model", tiny_folder)
        assert (result.exit_code, result.stdout) == (1, "")
        assert why in result.stderr
    said = shell("audit", table, "L0N1", *asked, "--claim", "label:plural").stderr
    assert "no label 'plural'" in said
