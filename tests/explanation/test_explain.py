"""`explain` on the tiny model: the planted feature is found, numbers are the model's own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lens_skills as ls
from lens_skills.activations import evaluate
from lens_skills.errors import LensSkillsError
from lens_skills.explanation import Explanations, explain, feature_bank
from lens_skills.models import as_adapter
from tests.explanation.problems import ANSWER, DECOY, SHORTCUT, problems, with_shortcut
from tests.planted import planted

OPTIONS: dict[str, Any] = {"n_permutations": 99}
WITHOUT: dict[str, Any] = {"n_permutations": 0}


@pytest.fixture(scope="module")
def why(tiny: Any) -> Explanations:
    task = problems()
    with with_shortcut(tiny, task):
        return explain(tiny, task, [SHORTCUT, DECOY, "L3N1"], **OPTIONS)


def test_what_drives_a_planted_neuron_is_found(why: Explanations) -> None:
    for name in (SHORTCUT, DECOY):
        best = why[name].best
        assert best is not None
        assert best["feature"] == "an operand is 5"
        assert best["direction"] == 1
        assert best["variance_explained"] > 0.2
        assert max(best["p"], best["p_top"], best["p_information"]) <= 0.05
        assert best["overlap_top"] > 0.8
        assert "an operand is 5" in why[name].accepted
        assert best["lift"] == pytest.approx(best["overlap_top"] / best["base"], abs=1e-4)
    assert "higher where an operand is 5" in repr(why)


def test_what_a_planted_neuron_writes_is_found(why: Explanations) -> None:
    writes, nothing = why[SHORTCUT].writes, why[DECOY].writes
    assert writes is not None
    assert nothing is not None
    assert writes.promoted[0][0] == ANSWER
    assert f"promotes {ANSWER!r}" in repr(why[SHORTCUT])
    assert {logit for _, logit in nothing.promoted} == {0.0}


def test_activations_are_the_models_own_token_by_token(tiny: Any) -> None:
    task = problems()[::9]
    why = explain(tiny, task, ["L1N3"], **WITHOUT)
    adapter = as_adapter(tiny)
    one = why["L1N3"]
    for row in (0, 5, len(task) - 1):
        tokens = torch.tensor([adapter.encode(task[row].prompt)])
        _, cache = tiny.run_with_cache(tokens)
        values = cache["blocks.1.mlp.hook_post"][0, :, 3]
        assert one.activation[row].item() == pytest.approx(values[-1].item(), abs=1e-5)
    strongest = one.top[0]
    assert strongest.activation == pytest.approx(one.activation.max().item())
    assert [e.activation for e in one.top] == sorted(one.activation.tolist(), reverse=True)[:5]
    assert [e.activation for e in one.bottom] == sorted(one.activation.tolist())[:5]
    tokens = adapter.encode(strongest.prompt)
    _, cache = tiny.run_with_cache(torch.tensor([tokens]))
    np.testing.assert_allclose(
        strongest.values, cache["blocks.1.mlp.hook_post"][0, 1:, 3].detach(), atol=1e-5
    )
    assert strongest.tokens == tuple(map(adapter.decode, tokens[1:]))
    assert "".join(strongest.tokens) == strongest.prompt


def test_it_is_saved_and_read_back(why: Explanations, tmp_path: Path) -> None:
    again = Explanations.load(why.save(tmp_path / "why"))
    assert repr(again) == repr(why)
    assert again.frame().equals(why.frame())
    assert again.features.equals(why.features)
    assert again[SHORTCUT].top == why[SHORTCUT].top
    assert again[SHORTCUT].writes == why[SHORTCUT].writes
    assert torch.equal(again["L3N1"].activation, why["L3N1"].activation)
    assert again[DECOY].values["a"].tolist() == why[DECOY].values["a"].tolist()
    assert again.provenance["model_fingerprint"] == why.provenance["model_fingerprint"]


def test_tables_hold_every_feature(why: Explanations) -> None:
    features = why[SHORTCUT].features
    assert set(features["feature"]) == set(why.features["feature"])
    assert features["explained_fitted"].is_monotonic_decreasing
    assert len(why.frame()) == 3 * len(features)
    assert list(why) == [SHORTCUT, DECOY, "L3N1"]
    assert SHORTCUT in why
    assert why.n_fitted + why.n_held == 300
    assert why[SHORTCUT].feature("a is 5")["kind"] == "flag"


def test_scores_and_selections_name_neurons(tiny: Any) -> None:
    task = problems()[::3]
    found = ls.score(tiny, task, metrics={"sure": ls.confidence()}, n_permutations=0)
    why = explain(tiny, task, found["sure"].top(2), **WITHOUT)
    (unit,) = found["sure"].top(1)
    layer, neuron = unit.layer, unit.index
    assert next(iter(why)) == f"L{layer}N{neuron}"
    assert why.frame()["p"].isna().all()
    assert "p =" not in repr(why)


def test_the_order_of_the_examples_changes_nothing(tiny: Any) -> None:
    task = problems()[::4]
    bank = feature_bank(task)
    turned = task[::-1]
    one = explain(tiny, task, ["L0N7"], features=bank, **OPTIONS).frame()
    other = explain(tiny, turned, ["L0N7"], features=bank, **OPTIONS).frame()
    columns = ["explained_fitted", "variance_explained", "overlap_top", "information", "base"]
    merged = one.merge(other, on="feature")
    for name in columns:
        np.testing.assert_allclose(merged[f"{name}_x"], merged[f"{name}_y"], atol=1e-4)


def test_a_neuron_that_is_never_active_is_said_to_be(tiny: Any) -> None:
    task = problems()[::5]
    direction = torch.zeros(tiny.cfg.d_model, dtype=torch.float64)
    with planted(tiny, 1, 4, direction=direction, writes=0.0):
        why = explain(tiny, task, ["L1N4", "L1N5"], **WITHOUT)
        assert "never active" in why["L1N4"].note
        assert why["L1N4"].rows == ()
        assert why["L1N5"].rows
        assert any("1 of 2 neurons are never active" in note for note in why.notes)
        assert set(why.frame()["name"]) == {"L1N5"}
        with pytest.raises(LensSkillsError, match="L1N4 and all others named here are never"):
            explain(tiny, task, ["L1N4"], **OPTIONS)


def test_a_label_in_disguise_is_warned_of(tiny: Any) -> None:
    task = problems()[::4]
    bank = feature_bank(task, extra={"my rule": lambda e: e.column("result") % 2 == 0})
    with pytest.warns(RuntimeWarning, match=r"'my rule' is the label even in disguise"):
        why = explain(tiny, task, ["L0N1"], features=bank, **WITHOUT)
    assert any("η² = 1.00" in note for note in why.notes)
    marked = feature_bank(
        task, extra={"my rule": lambda e: e.answer[-1] in "02468"}, task_defining=["my rule"]
    )
    explain(tiny, task, ["L0N1"], features=marked, **WITHOUT)


def test_the_card_says_where_another_feature_explains_more(why: Explanations) -> None:
    """Ranked on one half, measured on the other: the first need not be the best there."""
    one = why[SHORTCUT]
    best = one.best
    assert best is not None
    assert best["ranked_first"] > 0.5
    assert "ranked first in" in repr(one)
    assert "not settled" not in repr(one)
    second = dict(one.rows[1]) | {"variance_explained": 0.9, "low": 0.8, "high": 0.95}
    turned = replace(one, rows=(one.rows[0], second, *one.rows[2:]))
    assert turned.leader == second
    text = " ".join(repr(turned).split())
    assert f"here {second['feature']} explains more (90% [80%, 95%])" in text
    assert "which of them comes first is not settled" in text
    close = replace(one, rows=(dict(best) | {"ranked_first": 0.4}, *one.rows[1:]))
    assert "in 40% of resamples of the other half: others may be as good" in " ".join(
        repr(close).split()
    )


def test_below_eight_groups_no_interval_is_printed(tiny: Any) -> None:
    task = problems()[::3]
    few = [replace(e, group=str(row % 14)) for row, e in enumerate(task)]
    found = explain(tiny, few, ["L0N1"], **WITHOUT)
    assert found["L0N1"].rows[0]["low"] is None
    assert any("groups that a p or an interval takes" in note for note in found.notes)
    assert "[" not in repr(found["L0N1"]).split("promotes")[0]


def test_the_metric_is_held_against_the_features(tiny: Any) -> None:
    task = problems()[::4]
    sure = evaluate(tiny, task, [ls.confidence()])["confidence"].tolist()
    known = {example.id: value for example, value in zip(task, sure, strict=True)}
    bank = feature_bank(task, extra={"told": lambda e: known[e.id]}).only("told", "a is odd")
    with pytest.warns(RuntimeWarning, match="'told' is the metric confidence in disguise"):
        why = explain(tiny, task, ["L0N1"], features=bank, metric=ls.confidence(), **WITHOUT)
    assert why.disguises["column"].tolist() == ["metric confidence"]
    assert why["L0N1"].feature("told")["stands_for"] == "metric confidence"
    assert why.features["stands_for"].tolist() == ["metric confidence", ""]


def test_a_feature_that_is_constant_here_is_left_out_and_said(tiny: Any) -> None:
    bank = feature_bank(problems())
    part = problems().where(op="+")
    why = explain(tiny, part, ["L0N1"], features=bank, **WITHOUT)
    assert why.left_out["the operation is minus"] == "it is constant on these examples"
    assert any("features were left out" in note for note in why.notes)
    with pytest.raises(LensSkillsError, match="none of the 1 features can be used"):
        explain(tiny, part, ["L0N1"], features=bank.only("the operation is minus"), **OPTIONS)


def test_refusals(tiny: Any) -> None:
    task = problems()
    with pytest.raises(LensSkillsError, match="the task is empty"):
        explain(tiny, [], ["L0N1"])
    with pytest.raises(LensSkillsError, match="leave 6 to fit"):
        explain(tiny, task[:12], ["L0N1"])
    few = [replace(example, group=str(row % 8)) for row, example in enumerate(task[:80])]
    with pytest.raises(
        LensSkillsError, match=r"4 groups .* needs 8 at least.*or say n_permutations=0"
    ):
        explain(tiny, few, ["L0N1"])
    with pytest.raises(LensSkillsError, match="no unit 'N12'"):
        explain(tiny, task, ["N12"])
    with pytest.raises(LensSkillsError, match="is more than one number per token"):
        explain(tiny, task, ["L0H1"])
    with pytest.raises(LensSkillsError, match="none were named"):
        explain(tiny, task, [])
    with pytest.raises(LensSkillsError, match="several numbers per example"):
        explain(tiny, task, ["L0N1"], position=[-1, -2])
    why = explain(tiny, task[::5], ["L0N1"], **WITHOUT)
    with pytest.raises(LensSkillsError, match="'L0N2' was not explained"):
        why["L0N2"]
    with pytest.raises(LensSkillsError, match="not tested for a feature 'x'"):
        why["L0N1"].feature("x")
