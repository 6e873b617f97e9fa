"""What published claims are tried on; a trial of sets finds a planted one, and no decoy."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lens_skills as ls
from lens_skills.data import Example
from lens_skills.models import with_soft_prompt
from tests.planted import planted

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from claims import recipes, texts  # noqa: E402
from claims.trial import ANSWER, try_sets  # noqa: E402


def test_every_meaning_stands_in_every_language_and_breaks_off_before_a_word() -> None:
    task = texts.sentences()
    assert len(set(task.groups)) == 24
    for place in range(24):
        here = [example for example in task if example.group == f"meaning {place}"]
        assert {example.labels["language"] for example in here} == set(texts.LANGUAGES)
    whole = texts.PARALLEL.replace("\n", " ")
    for example in task:
        answer = example.answer or ""
        assert answer
        assert answer.strip() in whole
        assert answer.startswith(" ") == (example.labels["language"] != "Chinese")


def test_the_class_of_the_last_token_is_pythons_own() -> None:
    source = 'def f(count):\n    return count + 12 if "a b" else None\n'
    found = [(kind, before.split("\n")[-1], after) for kind, before, after in texts._cuts(source)]
    assert ("keyword", "def", " f") in found
    assert ("number", "    return count + 12", " if") in found
    assert ("string", '    return count + 12 if "a b"', " else") in found
    assert ("name", "    return count", " +") in found
    assert ("operator", "def f(", "count") in found


def test_capitals_are_in_every_wording_with_a_foil_of_another_country() -> None:
    task = texts.capitals(texts.WORDINGS[0], ["France", "Peru", "Iran"])
    assert [example.answer for example in task] == [" Paris", " Lima", " Tehran"]
    assert [example.foil for example in task] == [" Lima", " Tehran", " Paris"]


def test_an_answer_that_joins_its_prompt_is_left_out(tiny: Any) -> None:
    task = ls.Task(
        "joined",
        [
            Example("kept", "the keys are", answer=" the", group="a"),
            Example("joined", "the key", answer="s are", group="b"),
        ],
    )
    kept = recipes.told_apart(with_soft_prompt(tiny, None, False), task)
    assert [example.id for example in kept] == ["kept"]


def prompts(ending: str) -> list[Example]:
    words = [
        "the keys",
        "the cats",
        "a boy",
        "dogs",
        "my hat",
        "it",
        "her book",
        "we",
        "he",
        "cars",
    ]
    return [
        Example(f"{ending} {place}", f"{word}{ending}", answer=" the", group=str(place))
        for place, word in enumerate(words)
    ]


def test_a_planted_set_hurts_its_own_task_alone_and_a_decoy_nothing(tiny: Any) -> None:
    """The neuron fires after " are" and writes the answer; the decoy's set writes nothing much."""
    tokenizer = tiny.tokenizer
    ends = [tokenizer.encode(word, add_special_tokens=False) for word in (" are", " is")]
    (answer,) = tokenizer.encode(" the", add_special_tokens=False)
    writes = 3 * torch.nn.functional.normalize(tiny.W_U[:, answer].detach(), dim=0)
    tasks = {"are": prompts(" are"), "is": prompts(" is")}
    sets = {"are": ["L2N7"], "is": ["L0N3"]}
    with planted(tiny, 2, 7, *ends, strength=5.0, writes=writes):
        trial = try_sets(tiny, tasks, sets, ls.ablate("zero"), seed=0)
        plain = ls.sweep(
            tiny, tasks["are"], ["L2N7"], do=ls.ablate("zero"), metric=ANSWER
        ).total.mean()  # fmt: skip
    rows = trial.rows.set_index("set")
    assert float(rows.loc["are", "effect"]) == pytest.approx(float(plain), abs=1e-5)
    assert trial.hurts == trial.specific == ["are"]
    assert float(rows.loc["are", "p_random"]) == pytest.approx(1 / 20)
    assert float(trial.matrix.effect[0, 0]) == pytest.approx(float(plain), abs=1e-5)
    assert abs(float(trial.matrix.effect[1].mean())) < abs(float(plain)) / 10
    word, said = recipes.of_sets(trial, "task")
    assert word == recipes.PARTLY
    assert said.startswith("1 of 2 sets hurt their own task")


def test_a_random_set_has_as_many_of_each_layer_and_none_of_the_set(tiny: Any) -> None:
    import numpy as np
    from claims.trial import random_set

    from lens_skills.activations.components import parse_components

    adapter = with_soft_prompt(tiny, None, False)
    names = ["L0N1", "L0N2", "L2N5"]
    units = parse_components(adapter, names)
    for seed in range(20):
        drawn = random_set(adapter, units, set(names), np.random.default_rng(seed))
        assert len(set(drawn)) == 3
        assert not set(drawn) & set(names)
        assert [name[:2] for name in drawn] == ["L0", "L0", "L2"]
