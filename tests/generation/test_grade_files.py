"""Grades from a file: found by id, or by text and topic; several rows averaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.generation.grade_files import from_file
from lens_skills.generation.graded import Ungraded


def example(id: str = "a", topic: str | None = "Knots") -> Example:
    return Example(id=id, prompt="Write.", covariates={} if topic is None else {"topic": topic})


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


def test_the_released_format(tmp_path: Path) -> None:
    """student, topic, text, grades; one text graded more than once."""
    row = {"student": "s", "topic": "Knots", "text": "A bowline\nholds. "}
    grader = from_file(
        lines(
            tmp_path / "graded.jsonl",
            {**row, "grades": {"metaphor": 0.0, "red herring": 1.0}},
            {**row, "grades": {"metaphor": 1.0}},
            {**row, "topic": "Sewing", "grades": {"metaphor": 0.25, "folk": None}},
        )
    )
    assert grader(" A bowline holds.", example()) == {"metaphor": 0.5, "red herring": 1.0}
    assert grader("A bowline holds.", example(topic="Sewing")) == {"metaphor": 0.25}
    for text, topic in [("Another.", "Knots"), ("A bowline holds.", "Chess")]:
        with pytest.raises(Ungraded, match=r"no grade of this text"):
            grader(text, example(topic=topic))
    with pytest.raises(Ungraded):  # it stands for two topics, and this example names none
        grader("A bowline holds.", example(topic=None))


def test_the_released_file_itself(shared_data: Path) -> None:
    path = shared_data / "skill_mix" / "graded.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    grader = from_file(path)
    for row in rows:
        found = grader(row["text"], example(topic=row["topic"]))
        assert set(row["grades"]) <= set(found)
        assert all(0 <= value <= 1 for value in found.values())


def test_by_id_and_only_for_the_text_that_was_graded(tmp_path: Path) -> None:
    grader = from_file(
        lines(
            tmp_path / "g.jsonl",
            {"id": "a", "text": "One.", "grades": {"pun": 1}},
            {"id": "b", "grades": {"pun": 0}},
        )
    )
    assert grader("One.", example("a")) == {"pun": 1}
    assert grader("whatever", example("b")) == {"pun": 0}
    with pytest.raises(Ungraded, match="another text"):
        grader("Two.", example("a"))


def test_a_text_without_a_topic_goes_by_itself(tmp_path: Path) -> None:
    grader = from_file(lines(tmp_path / "g.jsonl", {"text": "One.", "grades": {"pun": 1}}))
    assert grader("One.", example()) == grader("One.", example(topic=None)) == {"pun": 1}


def test_csv_with_one_column_per_skill(tmp_path: Path) -> None:
    path = tmp_path / "g.csv"
    path.write_text('id,Comment,text,pun,red herring\na,?,"One,\ntwo.",1,\nb,,Three.,0.5,0\n')
    grader = from_file(path)
    assert grader("One, two.", example("a")) == {"pun": 1}
    assert grader("Three.", example("b")) == {"pun": 0.5, "red herring": 0}
    assert grader.__name__ == "g.csv"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("g.jsonl", '{"id": "a", "grades": {"x": 1}}\n\n{', "line 3 is not JSON"),
        ("g.jsonl", '{"id": "a"}', "line 1: no 'grades'"),
        ("g.jsonl", "[1]", "line 1 is no JSON object"),
        ("g.jsonl", '{"topic": "T", "text": " ", "grades": {"x": 1}}', "line 1: neither an id"),
        ("g.jsonl", '{"id": "a", "grades": {"x": "good"}}', "line 1: the grade of 'x' is 'good'"),
        ("g.jsonl", '{"id": "a", "grades": {"x": NaN}}', "line 1: the grade of 'x' is nan"),
        ("g.jsonl", "\n", "holds no grades"),
        ("g.csv", 'id,text,x\na,"1\n2",1\nb,t,high\n', "line 4: the grade of 'x' is 'high'"),
        ("g.csv", "id,x\na,1\nb\n", "line 3: 1 cell, where line 1 has 2"),
        ("g.csv", "id,x\na,1,2\n", "line 2: 3 cells, where line 1 has 2"),
        ("g.csv", 'id,x\na,1\nb,"2\n', "line 3: unexpected end of data"),
        ("g.txt", "", "read from a .jsonl or .csv file"),
    ],
)
def test_a_malformed_file_names_the_line(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(LensSkillsError, match=message):
        from_file(tmp_path / name)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LensSkillsError, match="cannot read"):
        from_file(tmp_path / "gone.jsonl")
    (tmp_path / "bytes.csv").write_bytes(b"id,x\n\xff\xfe,1\n")
    with pytest.raises(LensSkillsError, match="cannot read"):
        from_file(tmp_path / "bytes.csv")
