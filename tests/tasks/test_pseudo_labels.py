"""`pseudo_label`: against logits by hand, loops over thresholds, and simulated confidence."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lens_skills as ls
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.stats.intervals import share_interval
from lens_skills.tasks import PseudoLabels, Task, pseudo_label
from lens_skills.tasks.pseudo_labels import _confident_without_own_group, _threshold

EVEN = {str(n): 1 - n % 2 for n in range(19)}


@pytest.fixture(scope="module")
def model() -> Any:
    return ls.load_model("arithmetic-small")


@pytest.fixture(scope="module")
def parts() -> tuple[Task, Task]:
    few, rest = ls.tasks.arithmetic("+", options=True).split(0.2, 0.8)
    return few, rest


@pytest.fixture(scope="module")
def found(model: Any, parts: tuple[Task, Task]) -> PseudoLabels:
    return pseudo_label(model, *parts, label="even", values=EVEN)


def test_the_answer_is_the_likeliest_choice_and_its_share_the_confidence(
    model: Any, parts: tuple[Task, Task], found: PseudoLabels
) -> None:
    tokens = model.tokenizer
    for place in (0, 7, 40):
        example = parts[1][place]
        read = tokens.encode(example.prompt)
        log_p = {}
        for option in example.options:
            text = tokens.encode(example.prompt + option)
            logits = model(torch.tensor([text]))[0].detach().log_softmax(-1)
            at = range(len(read) - 1, len(text) - 1)
            log_p[option] = sum(float(logits[k, text[k + 1]]) for k in at)
        best = max(log_p, key=lambda option: log_p[option])
        share = np.exp(log_p[best]) / sum(np.exp(value) for value in log_p.values())
        assert found.answers[place] == best
        assert float(found.confidence[place]) == pytest.approx(share, abs=1e-4)


def test_what_is_labelled_and_counted(parts: tuple[Task, Task], found: PseudoLabels) -> None:
    few, rest = parts
    task = found.task
    assert found.n_saved == len(task) - len(few) == int((found.confidence >= found.threshold).sum())
    assert next(iter(task)).labels == few[0].labels
    own = task.where(pseudo=1)
    gold = {example.id: example for example in rest}
    assert [e.labels["even"] for e in own] == [EVEN[e.answer] for e in own]
    right = sum(e.labels["even"] == gold[e.id].labels["even"] for e in own) / len(own)
    assert right > 0.95
    assert set(own[0].options) == set(gold[own[0].id].options)
    frame = found.frame()
    assert frame["kept"].sum() == found.n_saved
    assert frame["even"].notna().sum() == found.n_saved
    card = repr(found)
    assert f"{found.n_saved} labels saved by {len(few)} labels" in card
    assert "the model's own errors" in card


def test_labels_and_answers_of_the_texts_are_never_read(
    model: Any, parts: tuple[Task, Task], found: PseudoLabels
) -> None:
    hidden = [replace(e, answer=None, foil=None, labels={}) for e in parts[1]]
    blind = pseudo_label(model, parts[0], hidden, label="even", values=EVEN)
    assert blind.answers == found.answers
    torch.testing.assert_close(blind.confidence, found.confidence)
    swapped = [replace(e, answer=e.foil, foil=e.answer, options=()) for e in parts[1]]
    plain = [replace(e, options=()) for e in parts[1]]
    one, other = (
        pseudo_label(model, parts[0], texts, label="even", values=EVEN)
        for texts in (swapped, plain)
    )
    assert one.answers == other.answers
    bare = [replace(e, options=()) for e in hidden]
    told = pseudo_label(model, parts[0], bare, label="even")
    assert set(told.answers) <= {e.answer for e in parts[0]}


def test_saved_and_read_back(tmp_path: Path, found: PseudoLabels) -> None:
    again = ls.load(found.save(tmp_path / "pseudo"))
    assert repr(again) == repr(found)
    assert again.task.fingerprint() == found.task.fingerprint()


def test_the_threshold_is_the_lowest_that_is_right_often_enough() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        n = int(random.integers(4, 20))
        confidence = torch.from_numpy(random.integers(1, 8, size=n) / 8)
        right = torch.from_numpy(random.uniform(size=n) < confidence.numpy())
        accuracy = float(random.choice([0.7, 0.9, 1.0]))
        passing = [
            float(c)
            for c in confidence
            if int((confidence >= c).sum()) >= 4
            and float(right[confidence >= c].double().mean()) >= accuracy
        ]
        wanted = min(passing, default=None)
        assert _threshold(confidence, right, accuracy) == wanted
        groups = [str(int(k)) for k in random.integers(0, 6, size=n)]
        kept = _confident_without_own_group(confidence, right, groups, accuracy)
        for place in range(n):
            rest = torch.tensor([g != groups[place] for g in groups])
            own = _threshold(confidence[rest], right[rest], accuracy)
            assert bool(kept[place]) == (own is not None and float(confidence[place]) >= own)


def simulated(skill: float, n: int, seed: int) -> tuple[Any, float, float, float] | None:
    """θ, the interval, and what answers beyond θ are truly worth: half sure, half guessing."""
    random = np.random.default_rng(seed)
    sure = random.uniform(size=n) < 0.5
    confidence = torch.from_numpy(np.where(sure, 0.9, 0.5) + random.uniform(-0.1, 0.1, size=n))
    right = torch.from_numpy(random.uniform(size=n) < np.where(sure, skill, 0.5))
    groups = [str(k) for k in range(n)]
    threshold = _threshold(confidence, right, 0.9)
    kept = _confident_without_own_group(confidence, right, groups, 0.9)
    if threshold is None or int(kept.sum()) < 4:
        return None
    theirs = [group for group in groups if kept[int(group)]]
    low, high = map(float, share_interval(right[kept].double(), theirs))
    unsure = min(max((0.6 - threshold) / 0.2, 0.0), 1.0)
    truth = (skill + unsure * 0.5) / (1 + unsure)
    return threshold, low, high, truth


def test_a_model_that_guesses_is_seldom_believed_and_a_skilled_one_is() -> None:
    guesses = [simulated(0.5, 20, seed) for seed in range(150)]
    believed = np.mean([one is not None and one[1] > 0.5 for one in guesses])
    assert believed < 0.05
    skilled = [simulated(0.98, 40, seed) for seed in range(150)]
    assert np.mean([one is not None and one[1] > 0.5 for one in skilled]) > 0.8
    covered = [one[1] <= one[3] <= one[2] for one in skilled if one is not None]
    assert np.mean(covered) > 0.9


def test_what_cannot_be_labelled_is_refused(model: Any, parts: tuple[Task, Task]) -> None:
    few, rest = parts
    ask: dict[str, Any] = {"label": "even", "values": EVEN}
    with pytest.raises(LensSkillsError, match="3 labelled examples: 4 at least"):
        pseudo_label(model, few[:3], rest, **ask)
    odd = [e for e in few if e.labels["even"] == 0]
    with pytest.raises(LensSkillsError, match=r"one class only \(even: 0\)"):
        pseudo_label(model, odd, rest, **ask)
    with pytest.raises(LensSkillsError, match="20 examples are labelled and unlabelled both"):
        pseudo_label(model, few, [*rest, *few], **ask)
    with pytest.raises(LensSkillsError, match="no label 'odd'"):
        pseudo_label(model, few, rest, label="odd")
    with pytest.raises(LensSkillsError, match="of 1 groups"):
        pseudo_label(model, [replace(e, group="g") for e in few], rest, **ask)
    with pytest.raises(LensSkillsError, match="a share above 0"):
        pseudo_label(model, few, rest, accuracy=90.0, **ask)
    with pytest.raises(LensSkillsError, match="task is empty"):
        pseudo_label(model, few, [], **ask)
    crossed = [replace(e, labels={"even": k % 2}) for k, e in enumerate([*few, *few[:1]])]
    with pytest.raises(LensSkillsError, match="does not follow from the answer"):
        pseudo_label(model, crossed, rest, label="even")
    with pytest.raises(LensSkillsError, match="no answer to 80 texts is confident"):
        pseudo_label(model, few, rest, label="even", values={"x": 1})
    bare = [Example(id="bare", prompt=rest[0].prompt)]
    many = [replace(e, answer=few[0].answer, options=(), foil=None) for e in few]
    with pytest.raises(LensSkillsError, match="names no choices"):
        pseudo_label(model, many, bare, **ask)


def test_a_model_without_the_skill_is_refused(model: Any) -> None:
    few, rest = ls.tasks.arithmetic("*", digits=(2,), n=60, options=True).split(0.4, 0.6)
    with pytest.raises(LensSkillsError, match="its answers are no labels"):
        pseudo_label(model, few, rest, label="even", values={})
    sure = ls.tasks.arithmetic("+", options=True)
    with pytest.raises(LensSkillsError, match="guessing in 60%: nothing shows"):
        pseudo_label(model, [*sure[:3], *sure[30:32]], sure[40:60], label="even", values=EVEN)


def test_how_right_is_measured_by_thresholds_found_without_the_own_group(
    model: Any, parts: tuple[Task, Task], found: PseudoLabels, monkeypatch: Any
) -> None:
    module = sys.modules[_threshold.__module__]

    def some(n: int) -> Any:
        return lambda known, right, groups, accuracy: torch.arange(len(known)) < n

    monkeypatch.setattr(module, "_confident_without_own_group", some(9))
    assert pseudo_label(model, *parts, label="even", values=EVEN).n_confident == 9
    monkeypatch.setattr(module, "_confident_without_own_group", some(3))
    with pytest.raises(LensSkillsError, match="its answers are no labels"):
        pseudo_label(model, *parts, label="even", values=EVEN)
