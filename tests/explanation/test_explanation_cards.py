"""What `explain`, `shortcuts`, `token_logits` and `preflight` print, at the sizes people have."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch

from lens_skills.activations.excerpts import Excerpt
from lens_skills.explanation import (
    Explanation,
    Explanations,
    Feature,
    FeatureBank,
    Shortcut,
    Shortcuts,
    TokenLogits,
)
from lens_skills.explanation.shortcut_report import SHORTCUT, UNEXPLAINED, ControlledEffect
from lens_skills.tasks.preflight import Competence, Preflight

MODEL, TASK = "HuggingFaceTB/SmolLM2-1.7B-Instruct", "heuristic analysis of sentence pairs"
LONG = "the hypothesis keeps the order of the premise, each value, as the covariate is called here"
PROMPT = "Premise: The doctors near the actor thanked the judge.\nHypothesis: The " + "actor " * 60
NOTE = "384 neurons → 12 associated → 5 confirmed; " + "and there is more to be said of them, " * 4


def feature_row(name: str, **more: Any) -> dict[str, Any]:
    return {
        "feature": name, "kind": "flag", "surface": True, "family": "text",
        "stands_for": "label lexical overlap=neither", "explained_fitted": 0.6123,
        "ranked_first": 0.43, "variance_explained": 0.21234, "low": 0.1, "high": 0.33,
        "direction": 1, "overlap_top": 0.82, "overlap_bottom": 0.1, "base": 0.2, "lift": 4.1,
        "information": 0.31234, "p": 0.001, "q": 0.0123, "p_top": 0.01, "p_bottom": 0.4,
        "p_information": 0.01, "accepted": True,
    } | more  # fmt: skip


def logits(name: str) -> TokenLogits:
    tokens = tuple((f" unbelievably{k}", 12.3456 - k) for k in range(10))
    return TokenLogits(
        name, tokens, tokens, 1.2, "final RMSNorm at a frozen scale, its gain included"
    )


def explanation(name: str = "L17N12635") -> Explanation:
    rows = (
        feature_row(LONG),
        feature_row(f"2 {LONG}", variance_explained=0.4),
        *(feature_row(f"{k} {LONG}") for k in range(3, 120)),
    )
    excerpt = Excerpt("e1", PROMPT, 123.456, ("a",), (1.0,))
    return Explanation(
        name, rows, (excerpt,) * 5, (excerpt,) * 5, logits(name), torch.ones(4), pd.DataFrame()
    )


def explanations() -> Explanations:
    neurons = tuple(explanation(f"L{k}N12635") for k in range(24))
    return Explanations(
        neurons, pd.DataFrame({"feature": [LONG] * 120}), "mlp.hook_post", "last", 1_500, 1_500,
        700, 50, 999, {}, (NOTE, NOTE), {"model": MODEL, "task": TASK},
    )  # fmt: skip


def shortcut(word: str, feature: str = LONG) -> Shortcut:
    effect = ControlledEffect(-0.123456, -0.2345, -0.0123, -0.2, -0.05, 0.0099, 0.0198, 0.0045)
    return Shortcut(
        name="L17N12635", word=word, why="matched neurons differ as much (q = 0.21)" if not feature
        else "", r=0.512, feature=feature, condition=feature, explained=0.6123, p=0.001, q=0.0021,
        task_feature=LONG, task_feature_explained=0.2, raises=True, n_present=1_234, n_absent=2_345,
        n_right=1_200, n_wrong=34, n_right_moved=900, n_wrong_moved=30,
        difference=effect if feature else None, effect=effect, effect_present=-0.3456,
        effect_absent=-0.2222, n_controls=100,
    )  # fmt: skip


def shortcuts() -> Shortcuts:
    return Shortcuts(
        (shortcut(SHORTCUT), shortcut(UNEXPLAINED, "")), None, torch.ones(2, 3), torch.ones(2, 3),
        ("a", "b", "c"), "confidence(kind='top', over='vocabulary')", "logit_diff", "nats",
        "mean ablation over explore split, 1,234 examples", (NOTE, NOTE),
        {"model": MODEL, "task": TASK}, 3.1234, 700, 120,
    )  # fmt: skip


def preflight() -> Preflight:
    ways = ("whole answer", "best of the options", "answer over foil")
    return Preflight(
        TASK, MODEL, 12_345, 700, 312.4,
        tuple(Competence(way, 0.971, 0.95, 0.98, 0.5, f"copying {LONG}") for way in ways),
        {}, {"inside": 0.9, "outside": 0.1}, {f"label:{LONG}": 0.97, "confidence": 0.4},
        {"confidence": 0.4, "answer_probability": 0.5}, ("label:always",), (f"label:{LONG}",),
        {"logit_diff": "", "answer_probability": "is saturated in 50% of the examples",
         "correct": "is 1 in 97% of the examples"},
        0.06, 0.3, None,
    )  # fmt: skip


CARDS: dict[str, Callable[[], Any]] = {
    "bank": lambda: FeatureBank(tuple(Feature(f"{k} {LONG}", "flag", len) for k in range(120))),
    "token logits": lambda: logits("L17N12635"),
    "explanation": explanation,
    "explained by nothing": lambda: replace(explanation(), rows=(feature_row(LONG, p=0.6),)),
    "without a null": lambda: replace(
        explanation(), rows=(feature_row(LONG, p=None, q=None, low=None, high=None),)
    ),
    "never active": lambda: replace(explanation(), rows=(), note="never active on these examples"),
    "explanations": explanations,
    "effect": lambda: shortcut(SHORTCUT).effect,
    "shortcuts": shortcuts,
    "preflight": preflight,
    "preflight of few groups": lambda: replace(
        preflight(), n_groups=5, competences=(Competence("whole answer", 0.9, None, None, 0.5, ""),)
    ),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_fits_eighty_columns_and_names_its_numbers(name: str) -> None:
    card = repr(CARDS[name]())
    longest = max(card.splitlines(), key=len)
    assert len(longest) <= 80, longest
    assert "nan" not in card
    assert "inf" not in card.replace("information", "")
    assert "lambda" not in card
    text = " ".join(card.split())
    # Whoever prints a p says over what, and an interval what it is of.
    if "p = " in text:
        assert "p = 0.6 over its" in text or "over its 1" in text
    if "q = " in text and name != "effect":
        assert "over all neurons and features" in text or "over the 2 neurons tried" in text
    if name in ("explanations", "shortcuts", "preflight"):
        assert "95 % intervals over" in text


def test_numbers_are_rounded_to_what_matters() -> None:
    effect = shortcut(SHORTCUT).effect
    assert repr(effect) == "-0.123 [-0.234, -0.012], q = 0.02, δ 0.0045"
    assert repr(replace(effect, delta=0.5)).startswith("-0.1 [-0.2, -0.0]")
