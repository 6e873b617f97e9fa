"""table and pairs: the same rows from every kind of table, and errors that name row and column."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lens_skills import tasks
from lens_skills.errors import LensSkillsError

ROWS = [
    {"text": "Say 07, then", "word": "07", "wrong": "None", "n": 1, "share": 0.5, "site": "NA"},
    {"text": "Name it", "word": " it", "wrong": "NA", "n": 2, "share": 1.5, "site": "b"},
    {"text": "Une clé", "word": "é", "wrong": "", "n": 3, "share": 2.5, "site": "b"},
]
FRAME = pd.DataFrame(ROWS)


def stored(kind: str, folder: Path) -> Any:
    path = folder / f"rows.{kind}"
    if kind == "csv":
        FRAME.to_csv(path, index=False)
    elif kind == "tsv":
        FRAME.to_csv(path, index=False, sep="\t")
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "parquet":
        FRAME.to_parquet(path)
    elif kind == "frame":
        return FRAME
    elif kind == "rows":
        return ROWS
    elif kind == "dataset":
        return pytest.importorskip("datasets").Dataset.from_list(ROWS)
    return path


@pytest.mark.parametrize(
    "kind", ["csv", "tsv", "jsonl", "json", "parquet", "frame", "rows", "dataset"]
)
def test_every_kind_of_table_gives_the_same_task(kind: str, tmp_path: Path) -> None:
    task = tasks.table(
        stored(kind, tmp_path),
        prompt="text",
        answer="word",
        labels=["n", "site"],
        covariates=["share"],
        name="rows",
    )
    assert [e.prompt for e in task] == ["Say 07, then", "Name it", "Une clé"]
    assert [e.answer for e in task] == ["07", " it", "é"]  # neither numbers nor stripped
    assert task.column("n").tolist() == [1, 2, 3]
    assert task.column("site").tolist() == ["NA", "b", "b"]  # a text, not a gap
    assert task.column("share").tolist() == [0.5, 1.5, 2.5]
    assert [type(v) for v in (*task[0].labels.values(), *task[0].covariates.values())] == [
        int, str, float,
    ]  # fmt: skip
    assert [e.id for e in task] == ["0", "1", "2"]


@pytest.mark.parametrize("kind", ["csv", "frame"])
def test_words_that_look_missing_are_words(kind: str, tmp_path: Path) -> None:
    source = stored(kind, tmp_path)
    task = tasks.table(source, prompt="text", answer="word", foil="wrong")
    assert [e.foil for e in task][:2] == ["None", "NA"]
    assert task[2].foil == (None if kind == "csv" else "")  # an empty cell of a file is a gap
    assert task.name == ("rows" if kind == "csv" else "table")


def test_numbers_are_texts_where_a_text_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "sums.csv").write_text("ask,word,n\n10,07,1\n20,3.50,2\n")
    task = tasks.table(tmp_path / "sums.csv", prompt="ask", answer="word", labels=["n"])
    assert [(e.prompt, e.answer) for e in task] == [("10", "07"), ("20", "3.50")]
    assert task.column("n").tolist() == [1, 2]
    cells = pd.DataFrame({"ask": ["x"], "n": [np.int64(3)], "f": [np.bool_(True)]}, dtype=object)
    labels = tasks.table(cells, prompt="ask", labels=["n", "f"])[0].labels
    assert [type(value) for value in labels.values()] == [int, bool]


def test_templates_and_fields() -> None:
    frame = pd.DataFrame(
        {
            "premise": ["It rains.", "It snows."],
            "claim": ["It is wet.", "It is hot."],
            "gold": ["yes", "no"],
            "family": ["f", "g"],
            "noun": ["rain", "snow"],
            "key": [10, 20],
            "brace": ["{", "}"],
        }
    )
    task = tasks.table(
        frame,
        prompt="{{{brace}}} {premise} Question: {claim} Answer:",
        answer=" {gold}",
        options=[" yes", " {gold}!", " no"],
        group="family",
        kind="noun",
        id="key",
        labels="gold",
    )
    assert task[0].prompt == "{{} It rains. Question: It is wet. Answer:"
    assert task[1].prompt == "{}} It snows. Question: It is hot. Answer:"
    assert task[1].answer == " no"
    assert task[0].options == (" yes", " yes!", " no")
    assert [(e.id, e.group, e.kind) for e in task] == [("10", "f", "rain"), ("20", "g", "snow")]
    assert task[0].labels == {"gold": "yes"}


def test_missing_cells() -> None:
    frame = pd.DataFrame(
        {"text": ["a", "b"], "word": [None, "x"], "number": [7, np.nan], "flag": [True, False]}
    )
    task = tasks.table(frame, prompt="text", answer="word", foil="number", labels=["flag"])
    assert [(e.answer, e.foil) for e in task] == [(None, "7"), ("x", None)]
    assert task[0].labels["flag"] is True
    assert tasks.table(frame, prompt="text", answer=" {word}")[0].answer is None
    with pytest.raises(LensSkillsError, match=r"label 'number' is missing in 1 of 2 .* in row 1"):
        tasks.table(frame, prompt="text", labels=["number"])
    with pytest.raises(LensSkillsError, match=r"covariate 'word' .* in row 0"):
        tasks.table(frame, prompt="text", covariates=["word"])
    with pytest.raises(LensSkillsError, match=r"row 0 .* has no prompt"):
        tasks.table(frame, prompt="word")
    with pytest.raises(LensSkillsError, match=r"row 1 .* has no group"):
        tasks.table(frame, prompt="text", group="number")


@pytest.mark.parametrize("cell", [["a", "b"], ("a", "b"), np.array(["a", "b"]), '["a", "b"]'])
def test_options_in_a_column(cell: Any) -> None:
    frame = pd.DataFrame({"text": ["x"], "all": [cell], "word": ["b"]})
    task = tasks.table(frame, prompt="text", answer="word", options="all")
    assert task[0].options == ("a", "b")


def test_options_that_are_none() -> None:
    with pytest.raises(LensSkillsError, match=r"row 0 .* are no list"):
        tasks.table([{"text": "x", "all": "a, b"}], prompt="text", options="all")
    with pytest.raises(LensSkillsError, match="not among the options"):
        tasks.table([{"text": "x", "w": "c"}], prompt="text", answer="w", options=["a", "b"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"prompt": "txt"}, "no column 'txt' for prompt. Did you mean 'text'.*text, word"),
        ({"prompt": "{txt} ?"}, "no column 'txt' for prompt"),
        ({"prompt": "{text"}, "no column and no template"),
        ({"prompt": "text", "answer": "wrd"}, "no column 'wrd' for answer"),
        ({"prompt": "text", "labels": ["m"]}, "no column 'm' for label"),
        ({"prompt": "text", "options": "al"}, "no column 'al' for options"),
    ],
)
def test_missing_columns(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LensSkillsError, match=complaint):
        tasks.table(FRAME, **arguments)


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("a.jsonl", '{"text": 1}\n{"text"\n', "line 2 is not JSON"),
        ("a.json", '{"text": 1}', "not a list of objects"),
        ("a.json", "[1]", "not a list of objects"),
        ("a.json", "[", "cannot read"),
        ("a.parquet", "no parquet", "cannot read"),
        ("a.csv", "", "cannot read"),
        ("a.csv", "text\n", "no rows"),
        ("a.xlsx", "", "none of .csv"),
    ],
)
def test_bad_files(tmp_path: Path, file: str, text: str, complaint: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(LensSkillsError, match=complaint):
        tasks.table(tmp_path / file, prompt="text")


def test_no_table_at_all(tmp_path: Path) -> None:
    with pytest.raises(LensSkillsError, match="no such file"):
        tasks.table(tmp_path / "none.csv", prompt="text")
    with pytest.raises(LensSkillsError, match=r"keys \['test', 'train'\]: pass one"):
        tasks.table({"train": FRAME, "test": FRAME}, prompt="text")
    with pytest.raises(LensSkillsError, match="not a int"):
        tasks.table(3, prompt="text")


def test_identical_prompts_stay_together() -> None:
    rows = [{"text": text, "g": g} for text, g in [("a", 1), ("b", 1), ("a", 2)]]
    assert [e.group for e in tasks.table(rows, prompt="text")] == ["0", "1", "0"]
    assert [e.group for e in tasks.table(rows, prompt="text", group="g")] == ["1", "1", "2"]


def test_pairs_read_back_what_a_task_holds() -> None:
    task = tasks.agreement(60)
    again = tasks.pairs(
        task.frame(),
        clean="prompt",
        corrupted="corrupted",
        answer="answer",
        foil="foil",
        group="group",
        kind="kind",
        labels=["plural"],
        covariates=["verb", "n_words"],
        name="again",
    )
    fields = ("prompt", "corrupted", "answer", "foil", "group", "kind", "labels")
    for ours, theirs in zip(task, again, strict=True):
        assert [getattr(ours, f) for f in fields] == [getattr(theirs, f) for f in fields]
        assert theirs.covariates["n_words"] == ours.covariates["n_words"]
    assert again.name == "again"


def test_a_pair_and_its_mirror_image_stay_together() -> None:
    rows = [{"a": "x", "b": "y"}, {"a": "y", "b": "x"}, {"a": "x", "b": "z"}]
    assert [e.group for e in tasks.pairs(rows, clean="a", corrupted="b")] == ["0", "0", "2"]
    with pytest.raises(LensSkillsError, match="'B' for corrupted"):
        tasks.pairs(rows, clean="a", corrupted="B")
