"""A Task is a checked, frozen sequence that is also a table."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.tasks import Task


def numbered(n: int = 6) -> Task:
    return Task(
        "numbers",
        [
            Example(
                id=f"e{i}",
                prompt=f"number {i}",
                answer=str(i),
                labels={"even": int(i % 2 == 0)},
                covariates={"size": i / 2, "word": "ab"[i % 2]},
            )
            for i in range(n)
        ],
    )


def test_it_is_a_sequence() -> None:
    task = numbered()
    assert len(task) == len(list(task)) == 6
    assert task[2].id == "e2"
    assert task[-1] is task.examples[5]
    assert [e.id for e in task[1:5:2]] == ["e1", "e3"]
    assert isinstance(task[:2], Task)
    assert task[1:5:2].split_name == "all[1:5:2]"
    assert task[2] in task
    assert task == numbered()
    assert task != task[:5]
    assert len({task, numbered(), task[:5]}) == 2
    with pytest.raises(IndexError):
        task[6]
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.name = "other"  # type: ignore[misc]


def test_an_empty_slice_is_refused() -> None:
    with pytest.raises(LensSkillsError, match="no examples"):
        numbered()[3:3]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"answer": ""}, "empty text"),
        ({"answer": " a", "foil": " a"}, "equals the answer"),
        ({"answer": " a", "options": (" b", " c")}, "not among the options"),
        ({"answer": " a", "options": ("a", " b")}, "spaces included"),
        ({"options": ("a", "a")}, "repeat"),
        ({"labels": {"x": np.int64(3)}}, "int64"),
        ({"labels": {"x": None}}, "NoneType"),
        ({"labels": {"x": float("nan")}}, "nan"),
        ({"covariates": {"x": float("inf")}}, "inf"),
    ],
)
def test_a_bad_example_is_refused_by_name(fields: dict[str, Any], complaint: str) -> None:
    good = Example(id="good", prompt="x", answer=" a", foil=" b", options=(" a", " b"))
    Task("t", [good])
    bad = Example(id="bad", prompt="x")
    for name, value in fields.items():  # past the type check that is on in the tests alone
        object.__setattr__(bad, name, value)
    with pytest.raises(LensSkillsError, match=f"'bad'.*{complaint}"):
        Task("t", [good, bad])


def test_duplicate_ids_are_refused() -> None:
    twice = [Example(id="a", prompt="x"), Example(id="b", prompt="x"), Example(id="a", prompt="y")]
    with pytest.raises(LensSkillsError, match="'a' is used by 2"):
        Task("t", twice)


def test_no_answer_is_not_an_empty_answer() -> None:
    assert Task("t", [Example(id="a", prompt="x")])[0].answer is None


def test_columns() -> None:
    task = numbered()
    assert task.column_names == ("even", "size", "word")
    assert task.column("even").tolist() == [1, 0, 1, 0, 1, 0]
    assert task.column("size").dtype == np.float64
    assert task.column("word").dtype == object
    assert task.column("answer").tolist() == list("012345")
    with pytest.raises(LensSkillsError, match=r"'evn'. Did you mean 'even'.*even, size, word"):
        task.column("evn")


def test_a_column_some_examples_lack_names_them() -> None:
    task = Task("t", [*numbered(), Example(id="bare", prompt="x")])
    with pytest.raises(
        LensSkillsError, match="1 of 7 examples have no 'even', the first is 'bare'"
    ):
        task.column("even")


def test_frame_holds_what_the_examples_hold() -> None:
    task = numbered()
    frame = task.frame()
    assert len(frame) == 6
    assert frame.columns.tolist()[:3] == ["id", "prompt", "answer"]
    for name in ("even", "size", "word"):
        assert frame[name].tolist() == task.column(name).tolist()
    named = Task("t", [Example(id="a", prompt="x", labels={"prompt": 1})]).frame()
    assert named[["prompt", "column:prompt"]].iloc[0].tolist() == ["x", 1]


def test_where() -> None:
    task = numbered()
    assert [e.id for e in task.where(even=1)] == ["e0", "e2", "e4"]
    assert [e.id for e in task.where(lambda e: e.id > "e2", even=1)] == ["e4"]
    assert [e.id for e in task.where(size={0.5, 1.0})] == ["e1", "e2"]
    assert "even=1" in task.where(even=1).split_name
    with pytest.raises(LensSkillsError, match="no example of 6 is left where even=7"):
        task.where(even=7)
    with pytest.raises(LensSkillsError, match="no column"):
        task.where(odd=1)


def test_fingerprint_is_of_the_content_alone() -> None:
    task = numbered()
    assert task.fingerprint() == Task("renamed", task.examples, "elsewhere").fingerprint()
    changes: list[dict[str, Any]] = [
        {"prompt": "y"}, {"answer": "y"}, {"foil": "y"}, {"labels": {"even": 0}}, {"kind": "k"},
        {"covariates": {}}, {"group": "g"}, {"options": ("0", "1")}, {"corrupted": "y"},
    ]  # fmt: skip
    changed = {
        Task("t", [dataclasses.replace(task[0], **change), *task[1:]]).fingerprint()
        for change in changes
    }
    assert len(changed | {task.fingerprint(), task[::-1].fingerprint()}) == len(changes) + 2


def test_repr_is_short() -> None:
    text = repr(numbered(1000))
    assert len(text) < 200
    for word in ("numbers", "1,000 examples", "1,000 groups", "even", "'number 0' -> '0'"):
        assert word in text
