"""arithmetic: right by Python's own arithmetic, columns right by schoolbook columns."""

import re
from collections import Counter
from fractions import Fraction

import pytest

from lens_skills import tasks
from lens_skills.errors import LensSkillsError
from lens_skills.tasks.arithmetic import columns, parse

EVERY = tasks.arithmetic("+-*/", (1, 2, 3, 5), n=3000, options=True)


def solve(prompt: str) -> tuple[int, str, int, Fraction]:
    match = re.fullmatch(r"\nQ: What is (\d+) (plus|minus|times|divided by) (\d+)\?\nA: ", prompt)
    assert match is not None
    a, b, word = int(match[1]), int(match[3]), match[2]
    result = {
        "plus": lambda: Fraction(a + b),
        "minus": lambda: Fraction(a - b),
        "times": lambda: Fraction(a * b),
        "divided by": lambda: Fraction(a, b),
    }[word]()
    return a, word, b, result


def test_answers_are_right() -> None:
    for e in EVERY:
        a, _, b, result = solve(e.prompt)
        assert e.answer == str(result)
        assert (e.covariates["operand_a"], e.covariates["operand_b"]) == (a, b)
        assert e.covariates["result"] == result
        assert e.labels["even"] == (result % 2 == 0)
        assert e.group == f"{min(a, b)},{max(a, b)}"
        assert e.kind == str(a)


def test_the_foil_is_as_long_and_differs_in_the_first_digit_alone() -> None:
    for e in EVERY:
        assert e.answer is not None
        assert e.foil is not None
        assert len(e.foil) == len(e.answer)
        assert str(int(e.foil)) == e.foil  # no leading zero, no minus zero
        changed = [i for i, (x, y) in enumerate(zip(e.answer, e.foil, strict=True)) if x != y]
        assert changed == [int(e.answer.startswith("-"))]
        assert abs(int(e.answer[changed[0]]) - int(e.foil[changed[0]])) == 1


def test_the_foil_does_not_tell_the_parity_of_the_answer() -> None:
    """Up as often as down for even and for odd results, where both ways are open."""
    open_both = EVERY.where(lambda e: e.covariates["first_digit"] in range(2, 9))
    for even in (0, 1):
        part = open_both.where(even=even)
        up = sum(abs(int(e.foil or 0)) > abs(int(e.answer or 0)) for e in part) / len(part)
        assert abs(up - 0.5) < 4 * 0.5 / len(part) ** 0.5


def carries(a: int, op: str, b: int) -> bool:
    """Schoolbook: does any column carry or borrow?"""
    if op == "/":
        return carries(b, "*", a // b)
    if op == "-":
        a, b = max(a, b), min(a, b)
    x, y = [int(d) for d in str(a)[::-1]], [int(d) for d in str(b)[::-1]]
    y_padded = y + [0] * (len(x) - len(y))
    if op == "-":
        return any(p < q for p, q in zip(x, y_padded, strict=True))
    if op == "+":
        x_padded = x + [0] * (len(y) - len(x))
        return any(p + q > 9 for p, q in zip(x_padded, y_padded, strict=True))
    totals = [0] * (len(x) + len(y))
    for i, p in enumerate(x):
        for j, q in enumerate(y):
            totals[i + j] += p * q
    return any(total > 9 for total in totals)


def test_columns_by_the_schoolbook() -> None:
    for e in EVERY:
        a, op, b = (e.column(name) for name in ("operand_a", "op", "operand_b"))
        assert isinstance(a, int)
        assert isinstance(op, str)
        assert isinstance(b, int)
        result = int(e.answer or "")
        known = columns(a, op, b)
        assert known["carry"] == carries(a, op, b), e.id
        assert known["first_digit"] == int(str(abs(result))[0])
        assert known["last_digit"] == abs(result) % 10
        assert known["result_digits"] == len(str(abs(result)))
        assert known["negative"] == (result < 0)
        assert known["answer_is_operand"] == (e.answer in (str(a), str(b)))
        assert known["foil_is_operand"] == (e.foil in (str(a), str(b)))
        assert known["contains_zero"] == any(d == "0" for d in str(a) + str(b))
        assert (known["ones_a"], known["ones_b"]) == (int(str(a)[-1]), int(str(b)[-1]))
        assert known["same_operands"] == (str(a) == str(b))
        assert all(type(value) in (int, str) for value in known.values())


def test_one_digit_is_exhaustive() -> None:
    task = tasks.arithmetic()
    assert Counter(task.column("op")) == {"+": 100, "-": 100, "*": 100, "/": 23}
    asked = {solve(e.prompt)[:3] for e in task}
    assert len(asked) == 323
    for a in range(10):
        for b in range(10):
            assert (a, "plus", b) in asked
            assert ((a, "divided by", b) in asked) == (b > 0 and a > 0 and a % b == 0)


def test_pairs_share_a_group_over_all_operations() -> None:
    task = tasks.arithmetic()
    groups = {e.id: e.group for e in task}
    assert groups["3+4"] == groups["4+3"] == groups["3*4"] == groups["4-3"] != groups["3+5"]
    alone = tasks.arithmetic(group_by_pair=False)
    assert len(alone.groups) == len(alone)


@pytest.mark.parametrize(
    ("ops", "digits", "n", "cells"),
    [
        ("+-*", (1, 2), 2000, {1: 300, 2: 1700}),
        ("+/", (1,), 50, {1: 50}),
        ("/", (1, 2), 100, {1: 23, 2: 77}),
        ("+-*/", 4, None, {4: 4000}),
        ("+-*/", 2, None, {2: 3200}),
    ],
)
def test_sizes(ops: str, digits: int | tuple[int, ...], n: int | None, cells: dict) -> None:
    task = tasks.arithmetic(ops, digits, n)
    assert Counter(task.column("digits").tolist()) == cells
    assert len({e.prompt for e in task}) == len(task)
    assert Counter(e.column("op") for e in task).keys() == set(ops)


def test_operands_have_the_digits_asked_for() -> None:
    for e in tasks.arithmetic("+-*/", (3,), 800):
        a, word, b, result = solve(e.prompt)
        assert 100 <= a <= 999
        assert result.denominator == 1
        assert 100 <= b <= 999 or (word == "divided by" and b <= 999)


def test_labels_are_what_varies() -> None:
    assert list(tasks.arithmetic()[0].labels) == ["op", "carry", "even"]
    sums = tasks.arithmetic("+")
    assert list(sums[0].labels) == ["carry", "even"]
    assert sums[0].covariates["op"] == "+"


def test_options_hold_the_answer_and_the_foil() -> None:
    places: Counter[int] = Counter()
    for e in EVERY:
        assert e.answer is not None
        assert e.foil in e.options
        places[e.options.index(e.answer)] += 1
    assert min(places[place] for place in range(3)) > 0.1 * len(EVERY)
    assert tasks.arithmetic()[0].options == ()


def test_seed() -> None:
    draw = lambda **kind: tasks.arithmetic("+/", (2, 3), 200, **kind).fingerprint()  # noqa: E731
    assert draw(seed=1) == draw(seed=1) != draw(seed=2)
    # Another operation beside it changes no sum.
    alone = tasks.arithmetic("+", (2,), 100)
    beside = tasks.arithmetic("+-", (2,), 200).where(op="+")
    assert [e.id for e in alone] == [e.id for e in beside]


def test_bad_requests() -> None:
    with pytest.raises(LensSkillsError, match="choose one or more of"):
        tasks.arithmetic("%")
    with pytest.raises(LensSkillsError, match="choose one or more of"):
        tasks.arithmetic("")
    with pytest.raises(LensSkillsError, match="1 to 9"):
        tasks.arithmetic(digits=0)
    with pytest.raises(LensSkillsError, match="1 to 323"):
        tasks.arithmetic(n=324)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is 3 plus 4?", "8"),
        ("What is 3 plus 4", "7"),
        ("What is 7 divided by 2?", "3"),
        ("What is 7 divided by 0?", "0"),
        ("What is three plus 4?", "7"),
        ("What is 3 plus 4?", None),
    ],
)
def test_what_is_no_problem(question: str, answer: str | None) -> None:
    assert parse(question, answer) is None
