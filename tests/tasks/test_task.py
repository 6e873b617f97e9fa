"""A Task is a checked, frozen sequence that is also a table."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.tasks import Task, few


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
    assert task[1:5:2].split_name == "2 of 6 examples by place"
    assert task[1:5:2].recipe == "all[1:5:2]"
    assert task[1:5].split_name == "examples 2 to 5"
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
    odd = task.where(even=0)

    def is_late(example: Example) -> bool:
        return example.id > "e2"

    assert task.where(even=1).split_name == "3 of 6 where even=1"
    assert odd.where(is_late).split_name == "3 of 6 where even=0: 2 of 3 filtered by is_late"
    both = task.where(is_late, even=1, size=[0.0, 1.0, 2.0, 3.0]).split_name
    assert both == "1 of 6 where even=1 and size=[0.0, 1.0, 2.0, … (4)], filtered by is_late"
    assert task.where(lambda e: True).split_name == "6 of 6 filtered by a function"
    assert task.where(partial(is_late)).split_name == "3 of 6 filtered by partial"
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
        assert word in " ".join(text.split())


def grouped(sizes: Sequence[int]) -> Task:
    """Groups of these sizes, of two kinds each, with one in three labelled."""
    examples = [
        Example(
            f"g{group}-{place}", "x", group=f"g{group}", kind=f"g{group}/{place % 2}",
            labels={"rare": int(place % 3 == 0)},
        )
        for group, size in enumerate(sizes) for place in range(size)
    ]  # fmt: skip
    return Task("grouped", examples)


@pytest.mark.parametrize("n", [1, 7, 12, 40, 41, 119, 120, 500])
def test_few_are_as_many_as_asked_from_all_groups(n: int) -> None:
    """16 groups, some small: neither a group more than it must, nor an example more than asked."""
    task = grouped([12] * 8 + [3] * 8)
    found = few(task, n, seed=1)
    assert len(found) == min(n, len(task))
    assert len(found.groups) == min(n, 16)
    counts = Counter(example.group for example in found)
    most = max(counts.values())
    assert all(counts[g] >= min(most - 1, 3 if int(g[1:]) >= 8 else 12) for g in task.groups)
    ids = [example.id for example in task]
    assert [e.id for e in found] == sorted((e.id for e in found), key=ids.index)


def test_few_keep_kinds_and_labels_within_a_group() -> None:
    found = few(grouped([12] * 5), 20, seed=3)
    for group in found.groups:
        mine = [example for example in found if example.group == group]
        assert Counter(example.kind[-1] for example in mine) == {"0": 2, "1": 2}
        assert Counter(example.labels["rare"] for example in mine) == {0: 2, 1: 2}


def test_few_of_many_groups_keep_the_labels_even() -> None:
    """More groups than asked for, each of one label, one label rare: as many of each as can be."""
    examples = [
        Example(f"e{n}", "x", labels={"rare": int(n % 10 == 0)}, group=f"g{n}") for n in range(283)
    ]
    for seed in range(3):
        found = few(Task("t", examples), 40, seed=seed)
        assert len(found) == 40
        assert Counter(e.labels["rare"] for e in found) == {0: 20, 1: 20}


def test_few_follow_the_seed_and_say_what_they_are() -> None:
    task = grouped([6] * 6)
    explore, _ = task.split(0.5, 0.5, names=("explore", "confirm"))
    found = few(explore, 4, seed=1)
    assert found.split_name == "4 examples of the explore split"
    assert found == few(explore, 4, seed=1)
    assert found != few(explore, 4, seed=2)
    assert few(task, 36) is task
    assert few(task, 4).split_name == "4 examples"
    with pytest.raises(LensSkillsError, match="ask for 1 example or more"):
        few(task, 0)
