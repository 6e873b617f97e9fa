"""`lens-skills study` is `score`, `select` and `verify` in one, and the run goes on from it."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import lens_skills as ls
from lens_skills.cli import app

SCORED = ("agreement", "--limit", 160, "--permutations", 39, "--seed", 3)
TRIED = ("--delta", 0.5, "--most", 2, "--control-sets", 0, "--control-neurons", 25)


def shell(*arguments: object) -> Result:
    with ls.config():
        return CliRunner().invoke(app.app, [str(part) for part in arguments])


@pytest.fixture(scope="module")
def ran(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same in one call and in steps; whatever beats chance a little passes for confirmed."""
    folder, opened = tmp_path_factory.mktemp("studied"), ls.load_model(tiny_folder)
    real = importlib.import_module("lens_skills.scoring.select").select

    def lenient(explored: Any, confirmed: Any, **_: Any) -> Any:
        none = torch.zeros_like(explored.scores.r)
        everything = replace(explored.scores, p_family=none, p_control=None)
        return real(everything[explored.metric], confirmed, grade="C", fdr=0.999)

    model = ("--model", tiny_folder)
    said = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lens_skills.models.load_model", lambda *_, **__: opened)
        for room in ("lens_skills.studies", "lens_skills.cli.runs"):
            patch.setattr(importlib.import_module(room), "select", lenient)
        one, steps = folder / "one", folder / "steps"
        asked = ("--metric", "label:plural", "--metric", "confidence", "--intervene", 16)
        said["study"] = shell("study", *SCORED, *asked, *TRIED, "--out", one, *model)
        both = ("--metric", "label:plural", "--metric", "confidence")
        said["score"] = shell("score", *SCORED, *both, "--out", steps, *model)
        said["select"] = shell("select", steps)
        said["verify"] = shell("verify", steps, "--limit", 16, *TRIED)
        said["again"] = shell("study", *SCORED, *asked, *TRIED, "--out", one, *model)
    return {"one": one, "steps": steps, "said": said}


def test_the_study_is_what_the_steps_find(ran: dict[str, Any]) -> None:
    for name in ("study", "score", "select", "verify"):
        assert ran["said"][name].exit_code == 0, ran["said"][name].output
    study = ls.load(ran["one"] / "study")
    assert ran["said"]["study"].stdout == f"{study!r}\n"
    assert len(study.verdict.singles) == 2
    names = ["explore", "confirm-label_plural", "selection-label_plural", "verdict-label_plural"]
    for name in names:
        one, steps = (ls.load(ran[way] / name) for way in ("one", "steps"))
        assert repr(one) == repr(steps), name
        assert one.frame().equals(steps.frame()), name
    tables = ["evidence-label_plural.csv", "verdict-label_plural.csv"]
    for name in tables:
        assert (ran["one"] / name).read_text() == (ran["steps"] / name).read_text()
    assert (ran["one"] / "figures" / "attrition-label_plural.csv").exists()


def test_what_a_study_has_done_is_not_done_again(
    ran: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lens_skills.models.load_model", lambda *_, **__: pytest.fail("opened"))
    assert "holds this study. Nothing was run" in ran["said"]["again"].stderr
    one = ran["one"]
    for command, then in (
        (["select", one], f"next: lens-skills verify {one} --metric label:plural\n"),
        (["verify", one, "--limit", 16, *TRIED], f"next: lens-skills explain {one} --metric "),
    ):
        result = shell(*command)
        assert result.exit_code == 0, result.output
        assert "Nothing was run" in result.stderr
        assert then in result.stderr
    other = shell("verify", one, "--limit", 16, *TRIED[:-1], 30)
    assert "--control-neurons was 25, not 30" in other.stderr


def test_the_strongest_is_what_a_dose_is_given_to(
    ran: dict[str, Any],
) -> None:
    verdict = ls.load(ran["one"] / "verdict-label_plural")
    strongest = max(verdict.singles, key=lambda ruling: abs(ruling.effect)).name
    result = shell("dose", ran["one"], "--limit", 12, "--by", -2, "--by", 2)
    assert result.exit_code == 0, result.output
    curve = ls.load(ran["one"] / f"dose-{strongest}")
    assert (curve.names, curve.doses.tolist()) == ((strongest,), [-2.0, 2.0])
    assert (ran["one"] / "figures" / f"dose_response-{strongest}.pdf").exists()


def test_nothing_confirmed_is_explained_next(ran: dict[str, Any]) -> None:
    """The words of a run without a verdict lead past `verify`, which would refuse."""
    place = ran["steps"] / "selection-label_plural"
    whole = ls.load(place)
    parts = ("neurons", "position", "r_explore", "r_confirm", "p", "q", "mean", "std")
    replace(whole, **{name: getattr(whole, name)[:0] for name in parts}).save(place)
    said = shell("select", ran["steps"]).stderr
    assert said.endswith(f"next: lens-skills explain {ran['steps']} --metric label:plural\n")
