"""Conjunctions: the planted one is found, the sentence says it, and is read back as it was."""

import itertools
import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lens_skills import tasks
from lens_skills.explanation import feature_bank
from lens_skills.explanation.conjunctions import (
    SentenceReader,
    Term,
    _needed,
    _Table,
    best_conjunctions,
    conditions_of,
    in_words,
)
from tests.explanation.problems import problems

TASKS: dict[str, Any] = {
    "arithmetic": problems,
    "agreement": tasks.agreement,
    "ioi": lambda: tasks.ioi()[:150],
}


def found(activation: torch.Tensor, task: Any, bank: Any, **options: Any) -> Any:
    groups = [example.group for example in task]
    settings = {"seed": 0, **options}
    (terms,) = best_conjunctions(activation[None], bank, bank.values(task), groups, **settings)
    return terms


@pytest.mark.parametrize("name", TASKS)
def test_a_sentence_says_what_it_was_made_of(name: str) -> None:
    """Every condition, alone and in conjunctions, holds of the same examples when read again."""
    task = TASKS[name]()
    bank = feature_bank(task)
    values = bank.values(task)
    usable = bank.only(*(one for one in bank.names if not values[one].isna().any()))
    conditions = conditions_of(usable, values)
    reader, draw = SentenceReader(usable), random.Random(0)
    sets = [[Term(one, negated)] for one in conditions for negated in (False, True)] + [
        [Term(one, draw.random() < 0.5) for one in draw.sample(conditions, 3)] for _ in range(60)
    ]
    for terms in sets:
        expected = torch.ones(len(task), dtype=torch.bool)
        for term in terms:
            expected &= term.condition.holds(values) ^ term.negated
        sentence = in_words(terms)
        assert reader.holds(reader.read(sentence), values) == expected.tolist(), sentence


def test_a_conjunction_of_two_is_the_best_of_all_pairs() -> None:
    task = problems()
    bank = feature_bank(task).only(
        "an operand is 5", "the operation is plus", "the result is odd", "a is odd", "a", "b"
    )
    values = bank.values(task)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=len(task)))
    met = (values["the operation is plus"] == 1) & (values["a is odd"] == 0)
    activation = 2.0 * torch.tensor(met.tolist()).double() + 0.5 * noise
    terms = found(activation, task, bank)
    assert in_words(terms) == "Fires where the operation is plus and not where a is odd."
    columns = [
        (one.text, negated, one.holds(values).numpy() ^ negated)
        for one in conditions_of(bank, values)
        for negated in (False, True)
    ]
    best = max(
        itertools.combinations(columns, 2),
        key=lambda pair: np.nan_to_num(
            np.corrcoef(activation, pair[0][2] & pair[1][2])[0, 1]
            if 6 <= (pair[0][2] & pair[1][2]).sum() <= len(task) - 6
            else -1
        ),
    )
    both = best[0][2] & best[1][2]
    assert both.tolist() == met.tolist()  # no other pair is as good, over all of them


def test_a_single_feature_gets_no_terms_beside_it() -> None:
    task = problems()
    bank = feature_bank(task)
    five = torch.tensor(bank.values(task)["an operand is 5"].tolist()).double()
    random = np.random.default_rng(1)
    for _ in range(5):
        noise = torch.from_numpy(random.normal(size=len(task)))
        assert in_words(found(five + 0.3 * noise, task, bank)) == "Fires where an operand is 5."


def test_nothing_fits_what_is_noise() -> None:
    """Of 100 neurons of noise about one in forty is given a sentence: a one-sided 2.5 %."""
    task = problems()
    bank = feature_bank(task)
    noise = torch.from_numpy(np.random.default_rng(2).normal(size=(100, len(task))))
    groups = [example.group for example in task]
    made = list(best_conjunctions(noise, bank, bank.values(task), groups, seed=0))
    assert sum(terms is not None for terms in made) <= 9  # binomial(100, .025), 1 in 2,000 above


def test_what_a_stranger_writes_is_read_by_the_names_in_it() -> None:
    task = problems()
    bank = feature_bank(task)
    reader = SentenceReader(bank)

    def read(sentence: str) -> list[tuple[str, bool]]:
        return [(term.condition.text, term.negated) for term in reader.read(sentence)]

    assert read("It is strong when An Operand is 5, but not where the result is odd!") == [
        ("an operand is 5", False), ("the result is odd", True)
    ]  # fmt: skip
    assert read("Fires where the moon is full.") == []
    assert read("the result is 12") == [("the result is 12", False)]
    assert read("a is below 3") == [("a is below 3", False)]  # the bound, not "a is" anything
    assert read("an operand is 55") == []


def test_of_two_that_say_the_same_the_plainer_is_kept() -> None:
    """The prompt is short exactly where the operation is plus."""
    task = problems()
    bank = feature_bank(task)
    values = bank.values(task)
    assert ((values["characters of the prompt"] < 26) == values["the operation is plus"]).all()
    plus = torch.tensor(values["the operation is plus"].tolist()).double()
    noise = torch.from_numpy(np.random.default_rng(3).normal(size=len(task)))
    assert in_words(found(plus + noise, task, bank)) == "Fires where the operation is plus."


def test_a_cut_is_where_the_sentence_says() -> None:
    task = problems()[::3]
    odd = {example.id: 1.23456789 * k for k, example in enumerate(task)}
    bank = feature_bank(task, extra={"weight": lambda e: odd[e.id]}).only("weight")
    values = pd.DataFrame(bank.values(task))
    reader = SentenceReader(bank)
    for condition in conditions_of(bank, values):
        (term,) = reader.read(f"Fires where {condition.text}.")
        assert term.condition.value == condition.value
        assert term.condition.test == condition.test


def test_a_term_that_changes_nothing_is_left_out() -> None:
    task = problems()
    bank = feature_bank(task).only("an operand is 2", "a is 2")
    table = _Table(conditions_of(bank, bank.values(task)), bank.values(task))
    terms = {(term.condition.text, term.negated): k for k, term in enumerate(table.terms)}
    either, first = terms["an operand is 2", False], terms["a is 2", False]
    assert _needed([either, first], table.columns) == [first]
    assert _needed([either], table.columns) == [either]
    other = terms["a is 2", True]
    assert _needed([either, other], table.columns) == [either, other]
