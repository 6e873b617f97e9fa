"""Answers by their option: as MMLU, ARC, BoolQ, SST, PIQA and the hub's data sets give them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lens_skills import tasks
from lens_skills.errors import LensSkillsError

MMLU = [
    {"q": "2 + 2 =", "choices": ["one", "two", "three", "four"], "answer": 3},
    {"q": "1 + 0 =", "choices": ["one", "two", "three", "four"], "answer": 0},
]


@pytest.mark.parametrize("kind", ["rows", "frame", "jsonl", "json", "parquet", "csv", "dataset"])
def test_the_index_of_a_choice_in_every_kind_of_table(kind: str, tmp_path: Path) -> None:
    source: Any = tmp_path / f"mmlu.{kind}"
    frame = pd.DataFrame(MMLU)
    if kind == "rows":
        source = MMLU
    elif kind == "frame":
        source = frame
    elif kind == "parquet":
        frame.to_parquet(source)
    elif kind == "csv":
        frame.assign(choices=frame["choices"].map(json.dumps)).to_csv(source, index=False)
    elif kind == "dataset":
        source = pytest.importorskip("datasets").Dataset.from_list(MMLU)
    else:
        source.write_text("\n".join(map(json.dumps, MMLU)) if kind == "jsonl" else json.dumps(MMLU))
    task = tasks.table(source, prompt="{q}\nA. {choices[0]}\nAnswer:", answer="answer",
                       options="choices", join=" ") if kind != "csv" else tasks.table(
        source, prompt="q", answer="answer", options="choices", join=" ")  # fmt: skip
    assert [e.answer for e in task] == [" four", " one"]
    assert task[0].options == (" one", " two", " three", " four")
    assert task[0].foil is None
    assert [e.covariates["answer_position"] for e in task] == [3, 0]


def ask(rows: Any, options: Any, **more: Any) -> list[tuple[str | None, str | None]]:
    rows = [{"q": "x", **row} for row in rows] if isinstance(rows, list) else rows
    return [
        (e.answer, e.foil)
        for e in tasks.table(rows, prompt="q", answer="a", options=options, **more)
    ]


def test_numbers_count_from_where_the_rows_say() -> None:
    two = ("{o1}", "{o2}")
    rows = [{"o1": "p", "o2": "q", "a": a} for a in ("1", "2", "1")]  # WinoGrande
    assert ask(rows, two) == [("p", "q"), ("q", "p"), ("p", "q")]
    rows = [{"o1": "p", "o2": "q", "a": a} for a in (1, 0)]  # PIQA, COPA
    assert ask(rows, two) == [("q", "p"), ("p", "q")]
    rows = [{"o1": "p", "o2": "q", "a": 1}]
    with pytest.raises(LensSkillsError, match=r"'q' by its index .*'p' by its number .*both fit"):
        ask(rows, two)
    assert ask(rows, two, answer_by="number") == [("p", "q")]
    assert ask(rows, two, answer_by="index") == [("q", "p")]
    with pytest.raises(LensSkillsError, match=r"row 1 .*answer '2' is not among"):
        ask([{"o1": "p", "o2": "q", "a": a} for a in (0, 2)], two)


@pytest.mark.parametrize(
    "cell",
    [
        {"text": ["sun", "moon", "sea"], "label": ["A", "B", "C"]},
        {"text": np.array(["sun", "moon", "sea"]), "label": np.array(["A", "B", "C"])},
        [{"text": t, "label": n} for t, n in zip(["sun", "moon", "sea"], "ABC", strict=True)],
        {"A": "sun", "B": "moon", "C": "sea"},
        ["sun", "moon", "sea"],
    ],
)
def test_letters(cell: Any) -> None:
    assert ask([{"o": cell, "a": "B"}], "o", join=" ") == [(" moon", None)]
    assert ask([{"o": cell, "a": "c"}], "o") == [("sea", None)]
    with pytest.raises(LensSkillsError, match=r"row 0 .*'E' is not among the options"):
        ask([{"o": cell, "a": "E"}], "o")


def test_names_of_options_go_before_their_places() -> None:
    cell = {"text": ["sun", "moon"], "label": ["1", "2"]}  # as some rows of ARC
    assert ask([{"o": cell, "a": "1"}], "o") == [("sun", "moon")]
    nested = [{"q": {"stem": "x", "o": cell}, "a": "2"}]
    task = tasks.table(nested, prompt="{q[stem]}", answer="a", options="{q[o]}")
    assert task[0].answer == "moon"


def test_true_and_false() -> None:
    rows = [{"a": True}, {"a": False}]
    said = {True: " yes", False: " no"}
    assert ask(rows, said) == [(" yes", " no"), (" no", " yes")]
    for order in ((" yes", " no"), (" no", " yes")):  # never by place
        assert ask(rows, order) == [(" yes", " no"), (" no", " yes")]
    with pytest.raises(LensSkillsError, match="say which is which"):
        ask(rows, (" right", " wrong"))
    assert ask([{"a": 0}, {"a": 1}], {0: " bad", 1: " good"})[0] == (" bad", " good")  # SST
    assert ask([{"a": 0}, {"a": 1}], (" bad", " good"))[1] == (" good", " bad")
    with pytest.raises(LensSkillsError, match=r"row 0 .*'2' is not among .*called 0, 1"):
        ask([{"a": 2}], {0: " bad", 1: " good"})


def test_texts_stay_texts() -> None:
    assert ask([{"a": "1", "o": ["1", "0"]}], "o") == [("1", "0")]
    assert ask([{"a": "A", "o": ["B", "A"]}], "o") == [("A", "B")]
    with pytest.raises(LensSkillsError, match="'1' by its text, and '0' by its index"):
        ask([{"a": 1, "o": ["1", "0"]}], "o")
    assert ask([{"a": None, "o": ["p", "q"]}, {"a": "q", "o": ["p", "q"]}], "o")[0] == (None, None)
    with pytest.raises(LensSkillsError, match="no list of texts"):
        ask([{"a": 2, "o": ["p", None, "q"]}], "o")  # an index would name another option
    assert ask([{"a": 0, "o": ["p", "q", None]}], "o") == [("p", "q")]


def test_class_labels_are_read_as_their_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"q": datasets.Value("string"), "a": datasets.ClassLabel(names=["neg", "neutral", "pos"])}
    )
    data = datasets.Dataset.from_dict({"q": ["x", "y", "z"], "a": [2, 0, 1]}, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    for source in (data, data.with_format("numpy"), tmp_path / "a.parquet"):
        task = tasks.table(source, prompt="q", answer=" {a}", labels="a")
        assert [(e.answer, e.labels["a"]) for e in task][:2] == [(" pos", "pos"), (" neg", "neg")]
        named = ask(source, (" bad", " so", " good"))
        assert [answer for answer, _ in named] == [" good", " bad", " so"]
    bare = datasets.Dataset.from_dict({"q": ["x"], "a": [-1]}, features=features)
    with pytest.raises(LensSkillsError, match="label 'a' is missing in 1 of 1"):
        tasks.table(bare, prompt="q", labels="a")
    with pytest.raises(LensSkillsError, match=r"read once: pass list\(data.take"):
        tasks.table(data.to_iterable_dataset(), prompt="q")


def test_join_stands_between_prompt_and_every_continuation() -> None:
    rows = [{"a": "The key ", "b": "The keys\n", "yes": "is", "no": " are"}]
    task = tasks.pairs(rows, clean="a", corrupted="b", answer="yes", foil="no", join=" ")
    assert (task[0].prompt, task[0].corrupted) == ("The key", "The keys")
    assert (task[0].answer, task[0].foil) == (" is", " are")
