"""What a method cannot do is refused with the way out, and left out of a comparison with a word."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lens_skills as ls
from lens_skills.activations.activation_reader import ActivationReader
from lens_skills.errors import LensSkillsError
from lens_skills.ranking import METHODS, compare_methods, rank

PLURAL, PLACE, DIGIT = "label:plural", "label:place", "covariate:digit"
DIFFERENTIATING = ("taylor", "gradient", "prediction", "exact", "specific", "specific_exact")
TWO = ("predictivity", "smd", "auroc", "l1")
CLASSES = ("f", "information", "probeless", "lape")


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(LensSkillsError) as error:
        rank(*args, **options)
    return str(error.value)


@pytest.mark.parametrize("method", ["pearson", *TWO])
def test_categories_where_numbers_are_needed(tiny: Any, nouns: ls.Task, method: str) -> None:
    said = refusal(tiny, nouns, PLACE, method=method)
    assert "'label:place' has 3 categories" in said
    assert "'label:place=cabinet'" in said
    assert "f, information, probeless, lape" in said
    assert rank(tiny, nouns, "label:place=cabinet", method=method).metric == "label:place=cabinet"


@pytest.mark.parametrize("method", [*TWO, *CLASSES])
def test_numbers_where_classes_are_needed(tiny: Any, nouns: ls.Task, method: str) -> None:
    said = refusal(tiny, nouns, DIGIT, method=method)
    assert "is continuous" in said
    assert "split='median'" in said
    assert "pearson" in said
    found = rank(tiny, nouns, DIGIT, method=method, split="median")
    assert found.metric.startswith("covariate:digit above")
    # The same as a label that says so.
    middle = float(torch.tensor([e.covariates["digit"] for e in nouns]).double().quantile(0.5))
    above = np.array([float(e.covariates["digit"] > middle) for e in nouns])
    same = rank(tiny, nouns, above, method=method)
    torch.testing.assert_close(found.score, same.score, rtol=0, atol=0, equal_nan=True)


def test_a_method_that_needs_a_gate(
    tiny: Any, nouns: ls.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ActivationReader, "gated", property(lambda self: False))
    said = refusal(tiny, nouns, PLURAL, method="lape")
    assert "gate=False" in said
    assert rank(tiny, nouns, PLURAL, method="lape", gate=False).n_ranked > 0


def test_other_sites_have_no_gate(tiny: Any, nouns: ls.Task) -> None:
    said = refusal(tiny, nouns, PLURAL, method="lape", at="hook_resid_post")
    assert "has none at hook_resid_post" in said
    found = rank(tiny, nouns, PLURAL, method="auroc", at="hook_resid_post")
    assert len(found.score) == 4 * 32


@pytest.mark.parametrize("method", DIFFERENTIATING)
def test_metrics_without_a_gradient(tiny: Any, nouns: ls.Task, method: str) -> None:
    assert "is a column of the task" in refusal(tiny, nouns, PLURAL, method=method)
    assert "metric='logit_diff'" in refusal(tiny, nouns, PLURAL, method=method)
    said = refusal(tiny, nouns, np.arange(len(nouns)) % 3, method=method)
    assert "is a column of the task" in said

    def mine(logits: Any, examples: Any) -> Any:
        return (logits[:, 7] > logits[:, 8]).double() + torch.arange(len(examples)) % 2

    said = refusal(tiny, nouns, mine, method=method)
    assert "has no gradient" in said
    assert "logit_diff()" in said


def test_gradients_of_chat_prompts(tiny: Any, nouns: ls.Task) -> None:
    assert rank(tiny, nouns, "logit_diff", method="taylor", chat=True).n_ranked > 0
    assert rank(tiny, nouns, PLURAL, chat=True).n_ranked > 0


def test_unknown_methods_and_several_positions(tiny: Any, nouns: ls.Task) -> None:
    said = refusal(tiny, nouns, PLURAL, method="pearsn")
    assert "no method 'pearsn'" in said
    assert all(name in said for name in METHODS)
    for position in (["last", -2], "all"):
        assert "Name one" in refusal(tiny, nouns, PLURAL, position=position)
    assert rank(tiny, nouns, PLURAL, position="mean").position == "mean"
    assert rank(tiny, nouns, PLURAL, position=-2).position == "-2"
    assert "pools tokens" in refusal(tiny, nouns, "logit_diff", method="taylor", position="mean")
    assert "Ask for 1 or more" in str(_raised(lambda: rank(tiny, nouns, PLURAL).top(0)))


def _raised(call: Any) -> Exception:
    with pytest.raises(LensSkillsError) as error:
        call()
    return error.value


def test_metrics_nothing_can_be_ranked_by(tiny: Any, nouns: ls.Task) -> None:
    one = nouns.where(plural=1)
    assert "has one value only" in refusal(tiny, one, PLURAL)
    assert "takes one metric" in refusal(tiny, nouns, [PLURAL, DIGIT])
    assert "too few" in refusal(tiny, nouns[:3], PLURAL)
    lone = ls.Task("lone", [*nouns.where(plural=0), *nouns.where(plural=1)[:1]])
    assert "1 of 25 examples" in refusal(tiny, lone, PLURAL)
    assert "no split 'mean'" in refusal(tiny, nouns, DIGIT, split="mean")


def test_a_table_ranks_as_the_model_does(tiny: Any, nouns: ls.Task, tmp_path: Path) -> None:
    table = ls.capture(tiny, nouns, tmp_path / "table", dtype="float32")
    for method in ("pearson", "auroc", "probeless"):
        here, there = (rank(source, nouns, PLURAL, method=method) for source in (table, tiny))
        torch.testing.assert_close(here.score, there.score, rtol=1e-6, atol=1e-6)
    assert "gate=False" in refusal(table, nouns, PLURAL, method="lape")
    assert "a table is not" in refusal(table, nouns, "label:plural", method="taylor")
    assert "not hook_resid_post" in refusal(table, nouns, PLURAL, at="hook_resid_post")
    assert "holds no layer 99" in refusal(table, nouns, PLURAL, layers=[1, 99])


def test_what_cannot_rank_is_left_out_with_the_reason(tiny: Any, nouns: ls.Task) -> None:
    explore, intervene = nouns.split(0.34, 0.66, seed=0)
    asked: dict[str, Any] = {"intervene": intervene, "k": 3}

    def first_choice(logits: Any, examples: Any) -> Any:
        return (logits.argmax(-1) % 2).double()

    found = compare_methods(tiny, explore, PLACE, causal_metric=first_choice, delta=0.1, **asked)
    assert set(found.left_out) == {"pearson", *TWO, *DIFFERENTIATING, "relevance"}
    assert {row.method for row in found.rows} == {*CLASSES, "random", "rotated basis"}
    assert "left out: auroc needs numbers" in repr(found)
    with pytest.raises(LensSkillsError, match="was left out: taylor: the metric"):
        found["taylor"]
    with pytest.raises(LensSkillsError, match="no method 'mine' here"):
        found["mine"]
    said = _raised(lambda: compare_methods(tiny, explore, PLACE, methods=["pearson"], **asked))
    assert "no method can rank here: pearson needs numbers" in str(said)


def test_a_comparison_refuses_what_would_mislead(tiny: Any, nouns: ls.Task) -> None:
    explore, intervene = nouns.split(0.34, 0.66, seed=0)
    asked: dict[str, Any] = {"methods": ["pearson"], "k": 3}

    def said(*splits: Any, **options: Any) -> str:
        first, second = splits or (explore, intervene)
        return str(_raised(lambda: compare_methods(tiny, first, PLURAL, intervene=second,
                                           **asked | options)))  # fmt: skip

    assert "explore and intervene share" in said(intervene, intervene)
    assert "no examples to intervene on" in said(explore, [])
    assert "known before the model runs" in said(causal_metric=PLURAL)
    assert "pools tokens" in said(position="mean")
    assert "no method 'smdd'" in said(methods=["smdd"])
    assert "named twice" in said(methods=["smd", "smd"])
    assert "both must be 1 or more" in said(k=0)
    assert "compares with single neurons" in said(controls=ls.controls(sets=5))
    assert "19 other neurons" in said(controls=ls.controls(neurons=20), delta=1e-9)
    few = str(_raised(lambda: compare_methods(tiny, intervene, PLURAL, intervene=explore, **asked)))
    assert "4 groups to try neurons on, but an interval needs 8 at least" in few
    assert "rank(" in few
    again = compare_methods(tiny, intervene, PLURAL, intervene=intervene, exploratory=True, **asked)
    assert again.exploratory
    with pytest.raises(LensSkillsError, match="names no neuron as 'decoy'"):
        again.against({"skill": ["L1N1"], "decoy": []})
    assert repr(again).startswith("EXPLORATORY")
