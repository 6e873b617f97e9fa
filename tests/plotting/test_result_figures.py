"""`of`: every figure of results, named so that those of one run do not overwrite one another."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lens_skills.errors import LensSkillsError
from lens_skills.plotting import figures
from lens_skills.plotting.result_figures import drawn
from lens_skills.studies import Study
from tests.plotting.conftest import make_scores, make_selection
from tests.plotting.results import make_curve, make_verdict
from tests.plotting.test_diagnostic_plots import make_regulators

PLURAL = "label_plural"


def run_parts() -> dict[str, Any]:
    """What `lens_skills.load` opens from the folder of a run."""
    other = replace(make_selection(), metric="confidence")
    return {
        "explore": make_scores(),
        f"confirm-{PLURAL}": make_scores(nulls=False),
        "selection-confidence": other,
        f"selection-{PLURAL}": make_selection(),
        "verdict-confidence": make_verdict(4),
        f"verdict-{PLURAL}": make_verdict(6),
        "dose-L2N7": make_curve(),
        f"regulators-{PLURAL}": make_regulators(),
    }


def test_a_run_gives_all_its_figures_each_under_a_name_of_its_own() -> None:
    drawings, without = drawn(run_parts())
    assert without == {}
    names = [drawing.name for drawing in drawings]
    per_metric = ("r_distribution", "layer_profile")
    expected = {f"{kind}-{m}" for kind in per_metric for m in (PLURAL, "confidence", "correct")}
    expected |= {
        f"{kind}-{metric}"
        for kind in ("attrition", "effect_against_r", "effect_against_controls", "effect_forest")
        for metric in (PLURAL, "confidence")
    }
    expected |= {"metric_heatmap-label_plural", "skill_matrix", "dose_response-L2N7"}
    expected |= {f"confidence_regulation-{PLURAL}"}
    assert len(names) == len(set(names))
    assert set(names) - {"reliability"} == expected
    gates = {one.name: one.frame["gate"].tolist() for one in drawings if one.kind == "attrition"}
    assert all("causal" in steps for steps in gates.values())


def test_a_study_is_the_steps_that_it_is() -> None:
    parts = run_parts()
    study = object.__new__(Study)
    held = {"scores": parts["explore"], "selection": make_selection(), "verdict": make_verdict()}
    for name, part in (held | {"metric": "label:plural"}).items():
        object.__setattr__(study, name, part)
    names = [drawing.name for drawing in figures.of(study, metrics=["label:plural"])]
    assert names[:2] == [f"r_distribution-{PLURAL}", f"layer_profile-{PLURAL}"]
    assert {f"attrition-{PLURAL}", f"effect_forest-{PLURAL}"} <= set(names)
    assert not any("confidence" in name for name in names)
    # A run that holds the study beside its steps shows them once.
    beside = [drawing.name for drawing in figures.of({"study": study, **parts})]
    assert beside == [drawing.name for drawing in figures.of(parts)]


def test_one_result_has_its_own_figure() -> None:
    (drawing,) = figures.of(make_regulators())
    assert (drawing.kind, drawing.name) == ("confidence_regulation", "confidence_regulation")
    (drawing,) = figures.of({"regulators-a b": make_regulators()})
    assert drawing.name == "confidence_regulation-a_b-c8687a08"
    verdict = [one.name for one in figures.of({"audit-L0N1": audited()})]
    assert verdict == ["effect_against_controls-audit-L0N1", "effect_forest-audit-L0N1"]
    view = figures.of(make_scores()["confidence"], metrics=["confidence"])
    assert [one.name for one in view][:2] == [
        "r_distribution-confidence",
        "layer_profile-confidence",
    ]


def audited() -> Any:
    class Audit(SimpleNamespace):
        pass

    return Audit(verdict=make_verdict())


def test_what_has_no_figure_says_why() -> None:
    with pytest.raises(LensSkillsError, match="figures are of results, not of a list"):
        figures.of([1])
    with pytest.raises(LensSkillsError, match="nothing to draw"):
        figures.of({f"confirm-{PLURAL}": make_scores()})
    scores = make_scores()
    with pytest.raises(LensSkillsError, match="'entropy'"):
        figures.of(scores, metrics=["entropy"])
