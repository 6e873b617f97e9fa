"""The benchmark of skill hits runs on two tasks of the smallest model, and its page is complete."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lens_skills.ranking import METHODS

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

benchmark: Any = import_module("leaderboard_skills")
page: Any = import_module("leaderboard_skills_page")
skill_tasks: Any = import_module("skill_tasks")


def test_two_tasks_and_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: METHODS[name] for name in ("taylor", "prediction", "specific")}
    monkeypatch.setattr(benchmark, "METHODS", few)
    given = ["--quick", "--model", "arithmetic-small", "--tasks", "minus_one_digit"]
    given += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "page")]
    board = benchmark.main(benchmark.arguments(given))
    assert set(board["method"]) == {"taylor", "prediction", "specific", "random"}
    text = (tmp_path / "page" / "README.md").read_text(encoding="utf-8")
    assert "minus_one_digit" in text
    assert str(tmp_path) not in text
    rows: Any = pd.read_csv(tmp_path / "page" / "table_tasks.csv")
    for k in page.KS:
        assert (rows[f"skill_{k}"] <= rows[f"causal_{k}"]).all()
        assert rows[f"recall_{k}"].between(0, 1).all()
    assert (tmp_path / "page" / "skill_hits.png").exists()


def test_differences_are_paired() -> None:
    rows = pd.DataFrame(
        {"key": list("abab"), "method": ["x", "x", "y", "y"], "skill_10": [5, 3, 4, 0]}
    )
    found = page.difference(rows, "x", "y", "skill_10")
    assert found | {"difference": 2.0, "more": 2, "tasks": 2, "ratio": 2.0} == found


WORDS = ("capitals", "languages", "antonyms", "past_tense", "plurals", "comparatives", "pronouns")


@pytest.mark.parametrize("name", WORDS)
def test_word_tasks_have_twins_foils_and_groups(name: str) -> None:
    task = skill_tasks.TASKS[name](None)
    assert len(task) >= 100
    assert len(task.groups) >= 24
    assert all(e.answer != e.foil and e.corrupted and e.corrupted != e.prompt for e in task)
