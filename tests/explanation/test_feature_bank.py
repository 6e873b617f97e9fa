"""The bank: what it says of each task, what it leaves out, and what it refuses."""

import numpy as np
import pandas as pd
import pytest

from lens_skills import tasks
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.explanation import Feature, feature_bank
from lens_skills.tasks import Task


@pytest.fixture(scope="module")
def sums() -> Task:
    return tasks.arithmetic("+-*", digits=(1,))


def test_arithmetic_is_said_in_words_that_hold_of_every_problem(sums: Task) -> None:
    bank = feature_bank(sums)
    values = bank.values(sums)
    a, b = (sums.column(f"operand_{side}").astype(int) for side in "ab")
    result = sums.column("result").astype(int)
    wanted = {
        "a": a,
        "b is 5": b == 5,
        "an operand is 5": (a == 5) | (b == 5),
        "a is odd": a % 2,
        "b modulo 3": b % 3,
        "the operands are equal": a == b,
        "a is larger than b": a > b,
        "the larger operand": np.maximum(a, b),
        "the answer is an operand": (result == a) | (result == b),
        "the result": result,
        "the result ends in 4": abs(result) % 10 == 4,
        "the result is in 20 to 29": (result >= 20) & (result < 30),
        "the result has 1 digit": abs(result) < 10,
        "the operation is minus": sums.column("op") == "-",
        "the distance of the operands": abs(a - b),
        "zeros that end the result": (result % 10 == 0) & (result != 0),
    }
    for name, column in wanted.items():
        np.testing.assert_array_equal(values[name].to_numpy(), column.astype(int), err_msg=name)
    surface = {feature.name for feature in bank if feature.surface}
    assert {"a", "an operand is 5", "the answer is an operand"} <= surface
    assert "same as 'the result has 1 digit'" in bank.left_out["a column carries"]
    assert not surface & {
        "the result",
        "the result has 1 digit",
        "the operation",
        "the result is odd",
    }


def test_of_two_features_that_say_the_same_the_first_stays(sums: Task) -> None:
    bank = feature_bank(sums)
    assert bank.left_out["a ends in 5"] == "it says the same as 'a is 5' here"
    assert bank.left_out["the operation is divided by"] == "it is constant here"
    assert not set(bank.names) & set(bank.left_out)
    values = bank.values(sums)
    patterns = {tuple(pd.factorize(values[name])[0]) for name in bank.names}
    numbers = sum(feature.kind == "number" for feature in bank)
    assert len(patterns) >= len(bank) - numbers
    mine = feature_bank(sums, extra={"five first": lambda e: e.column("operand_a") == 5})
    assert mine.names[0] == "five first"
    assert "a is 5" not in mine.names


def test_digits_and_carries_of_longer_operands() -> None:
    task = tasks.arithmetic("+-*", digits=(1, 2), n=600)
    values = feature_bank(task).values(task)
    for row, example in enumerate(task):
        a, b, result = (example.column(name) for name in ("operand_a", "operand_b", "result"))
        op, low, high = example.column("op"), min(a, b), max(a, b)
        if op == "+":
            carried = (a + b) // 10 - a // 10 - b // 10, (a + b) // 100 - a // 100 - b // 100
        elif op == "-":
            carried = (int(high % 10 < low % 10),)
        else:
            partial = [(x * y, 0) for x in map(int, str(a)) for y in map(int, str(b))]
            lost = sum(x for x, _ in partial) - sum(map(int, str(result)))
            carried = (lost // 9,)
        assert values["columns that carry"][row] == sum(carried)
        assert values["an operand repeats a digit"][row] == any(
            n > 10 and n % 11 == 0 for n in (a, b)
        )
        assert values["the operands end in the same digit"][row] == ((a - b) % 10 == 0)
        assert values["b ends in a larger digit than a"][row] == (b % 10 > a % 10)
        assert values["b begins with a larger digit than a"][row] == (str(b)[0] > str(a)[0])
        assert values["an operand is 10"][row] == (10 in (a, b))
    assert values["columns that carry"].max() > 2


def test_premises_are_read_from_the_prompt() -> None:
    task = tasks.nli(120)
    bank = feature_bank(task)
    values = bank.values(task)
    assert (values["heuristic is constituent"] == task.column("constituent")).all()
    assert bank["heuristic is constituent"].surface
    assert not bank["entailment"].surface
    assert (values["the premise has a negation"] == task.column("negation")).all()
    texts = [e.prompt.removeprefix("Premise: ").split("\nHypothesis: ") for e in task]
    for row, (premise, rest) in enumerate(texts):
        first, second = (
            text.lower().replace(".", "").replace(",", "").split()
            for text in (premise, rest.split("\n")[0])
        )
        assert values["words of the premise"][row] == len(first)
        assert values["words that only the premise has"][row] == len({*first} - {*second})
        stands = any(first[at : at + len(second)] == second for at in range(len(first)))
        assert values["the hypothesis stands in the premise as it is"][row] == stands


@pytest.mark.parametrize("make", [tasks.agreement, tasks.ioi, lambda: tasks.nli(240)])
def test_every_task_has_a_bank(make) -> None:
    task = make()
    bank = feature_bank(task)
    values = bank.values(task)
    assert len(bank) >= 15
    assert not values.isna().any().any()
    assert all(values[name].nunique() > 1 for name in bank.names)
    assert {f.surface for f in bank} == {True, False} or task.name == "ioi"
    assert str(len(bank)) in repr(bank)


def test_any_text_has_length_words_and_characters() -> None:
    texts = ["One cat.", "Two dogs ran", "A cat and 3 dogs", "Dogs", "the cat sat", "dogs 12"]
    task = Task("texts", [Example(id=text, prompt=text) for text in texts])
    values = feature_bank(task).values(task)
    assert values["characters of the prompt"].tolist() == [len(text) for text in texts]
    assert values["says 'cat'"].tolist() == [1, 0, 1, 0, 1, 0]
    assert values["digits in the prompt"].tolist() == [0, 0, 1, 0, 0, 2]
    kinds = ["punctuation", "letter", "letter", "letter", "letter", "digit"]
    assert values["kind of the last character"].tolist() == kinds


def test_features_of_the_user(sums: Task) -> None:
    bank = feature_bank(
        sums,
        extra={
            "ten": lambda e: e.answer == "10",
            "letters": lambda e: ["x", "yy", "z"][e.column("operand_a") % 3],
            "mine": "covariate:first_digit",
            "told": "label:carry",
            "made": Feature("other", "number", lambda e: np.float64(e.column("operand_a") ** 2)),
        },
        task_defining=["ten"],
    )
    assert bank["ten"].kind == "flag"
    assert not bank["ten"].surface
    assert bank["letters"].kind == "category"
    assert "letters is yy" in bank.names
    assert bank["mine"].kind == "number"
    assert not bank["told"].surface
    assert bank["made"].read(sums[30]) == 9.0
    assert bank.only("ten", "mine").names == ("ten", "mine")
    assert "ten" not in bank.without("ten").names
    assert bank[:2].names == bank.names[:2]
    assert list(bank.frame().columns) == ["feature", "kind", "surface", "family"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra": {"x": "covariate:operant"}}, "'x' reads 'covariate:operant', which no example"),
        ({"extra": {"x": "prompt:a"}}, "Write 'label:name'"),
        ({"extra": {"x": 3}}, "the feature 'x' is a int"),
        ({"extra": {"x": lambda e: None}}, "'x' has no value for 300 of 300 examples"),
        ({"extra": {"x": lambda e: [1]}}, "of type list"),
        ({"extra": {"x": lambda e: e.id}}, "'x' has too many categories"),
        ({"task_defining": ["the moon"]}, "'the moon', which is no feature"),
    ],
)
def test_refusals(sums: Task, options: dict, message: str) -> None:
    with pytest.raises(LensSkillsError, match=message):
        feature_bank(sums, **options)


def test_an_unknown_feature_is_answered_with_the_nearest(sums: Task) -> None:
    bank = feature_bank(sums)
    with pytest.raises(LensSkillsError, match="Did you mean 'an operand is 5'"):
        bank["an operand is 5?"]
    with pytest.raises(LensSkillsError, match="It was left out: it says the same as 'a is 5'"):
        bank["a ends in 5"]
    with pytest.raises(LensSkillsError, match="the task is empty"):
        feature_bank([])
