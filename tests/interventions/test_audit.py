"""Anyone's neurons on one card: what they carry, against three nulls, and what they do."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lens_skills.errors import LensSkillsError
from lens_skills.interventions.audit import Audit, audit
from lens_skills.interventions.control_neurons import controls
from lens_skills.interventions.verdict import NO_EFFECT, SUPPORTS
from lens_skills.scoring import score
from lens_skills.tasks import Task
from tests.interventions.test_verify import ANSWERS, part
from tests.planted import plant

SKILL, DECOY, OTHER = "L1N3", "L1N11", "L1N30"
FAST: dict[str, Any] = {
    "controls": controls(20, neurons=None),
    "n_permutations": 100,
}


@pytest.fixture(scope="module")
def model(tiny_hooked: Any) -> Iterator[Any]:
    def tokens(word: str) -> list[int]:
        return tiny_hooked.tokenizer.encode(word, add_special_tokens=False)

    (singular,), (plural,) = map(tokens, ANSWERS)
    towards = (tiny_hooked.W_U[:, plural] - tiny_hooked.W_U[:, singular]).detach()
    ends = [tokens(" are")[0]], [tokens(" is")[0]]
    undo = [
        plant(tiny_hooked, 1, 3, *ends, writes=towards / towards.norm()),
        plant(tiny_hooked, 1, 11, *ends, writes=0.0),
    ]
    yield tiny_hooked
    for put_back in undo:
        put_back()


@pytest.fixture(scope="module")
def found(model: Any) -> Audit:
    return audit(model, part(3, 240), neurons=[SKILL, DECOY, OTHER], **FAST)


def test_what_a_neuron_carries_and_what_it_does_are_told_apart(found: Audit) -> None:
    claims = {row["name"]: row for row in found.claims if row["metric"] == "label:plural"}
    for name in (SKILL, DECOY):
        assert claims[name]["p_family"] <= 0.05
        assert claims[name]["q_basis"] <= 0.05
    assert claims[OTHER]["q_basis"] > 0.05
    assert found.verdict[SKILL].word == SUPPORTS
    assert found.verdict[DECOY].word == NO_EFFECT
    assert found.verdict[OTHER].word not in (SUPPORTS,)


def test_the_card_holds_both_halves(found: Audit) -> None:
    card = repr(found)
    for text in ("what they carry", "what they do", "p family-wise", SKILL, "δ ="):
        assert text in " ".join(card.split())
    frame = found.frame()
    assert {"name", "metric", "r", "p_family", "q_control", "excess", "word", "effect", "q"} <= set(
        frame.columns
    )
    assert len(frame) == 6  # three neurons, the label and the metric


def test_r_is_that_of_score_and_splits_are_disjoint(model: Any, found: Audit) -> None:
    explore, intervene = part(3, 240).split(0.5, 0.5, seed=0)
    alone = score(model, explore, metrics="label:plural", layers=1, n_permutations=0)
    row = next(row for row in found.claims if row["name"] == SKILL)
    assert row["r"] == pytest.approx(float(alone["label:plural"].r[0, 3]), abs=1e-6)
    assert set(found.verdict.effects.example_ids) == {example.id for example in intervene}
    assert found.explored == "explore split of the part 3"


def test_saved_and_loaded_it_is_the_same(tmp_path: Path, found: Audit) -> None:
    found.save(tmp_path / "audit")
    again = Audit.load(found.save(tmp_path / "audit"))
    assert repr(again) == repr(found)
    assert again.frame().equals(found.frame())


def test_heads_are_audited_by_their_strongest_feature(model: Any) -> None:
    card = audit(model, part(3, 160), neurons=["L2H1"], claims="label:plural", delta=0.5, **FAST)
    (row,) = card.claims
    explore, _ = part(3, 160).split(0.5, 0.5, seed=0)
    alone = score(
        model,
        explore,
        metrics="label:plural",
        at="attn.hook_z",
        layers=2,
        n_permutations=0,
    )["label:plural"]
    assert abs(row["r"]) == pytest.approx(float(alone.r[0, 8:16].abs().max()), abs=1e-6)
    assert card.verdict["L2H1"].n_controls == 15


def test_a_task_without_answers_needs_a_metric(model: Any) -> None:
    bare = Task("bare", [replace(e, answer=None, foil=None) for e in part(3, 80)])
    with pytest.raises(LensSkillsError, match="without an answer"):
        audit(model, bare, neurons=[SKILL], **FAST)
    card = audit(model, bare, neurons=[SKILL], metric="entropy", **FAST)
    assert card.verdict.effects.metric == "entropy"
