"""The table of the neighbouring papers: rows are checked before they are shown."""

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def beside() -> Iterator[None]:
    """The scripts are modules of each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield


@pytest.fixture
def page(beside: None) -> Any:
    return importlib.import_module("neighbours_page")


@pytest.fixture
def row(page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A row that is right, with its script."""
    monkeypatch.setattr(page, "ROOT", tmp_path)
    (tmp_path / "benchmarks/neighbours").mkdir(parents=True)
    (tmp_path / "benchmarks/neighbours/one.py").touch()
    return {
        "neighbour": "2005.00723 counting",
        "verb": "ls.score",
        "works_if": "R² > 0",
        "measured": "R² of counts | of means",
        "value": -0.25,
        "low": -0.5,
        "high": 0.125,
        "met": False,
        "model": "arithmetic-small",
        "groups": "5 seeds",
        "command": "python benchmarks/neighbours/one.py --save",
        "cpu_minutes": 4.06,
    }


def test_every_committed_row_is_whole(page: Any) -> None:
    for name, rows in page.read_neighbours().items():
        assert page.problems(rows) == [], name
        assert (ROOT / "figures/neighbours" / f"{name}.md").exists(), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": "0.9"}, "value is '0.9'"),
        ({"low": True}, "low is True"),
        ({"high": math.nan}, "high is nan"),
        ({"low": None}, "one end of the interval"),
        ({"low": 1.0}, "do not rise"),
        ({"met": "yes"}, "met is 'yes'"),
        ({"met": 1}, "met is 1"),
        ({"cpu_minutes": None}, "cpu_minutes is None"),
        ({"cpu_minutes": -1}, "cpu_minutes is -1"),
        ({"measured": ""}, "measured is no text"),
        ({"groups": 5}, "groups is no text"),
        ({"neighbour": "1234.56789 x"}, "no neighbour"),
        ({"command": "python benchmarks/neighbours/other.py"}, "no script"),
        ({"command": "python elsewhere/one.py"}, "no script"),
        ({"measured": "see /var/x"}, "a path of a machine"),
    ],
)
def test_a_row_that_is_not_right_is_named(
    page: Any, row: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    assert page.problems([row]) == []
    (wrong,) = page.problems([row, row | change])
    assert wrong.startswith("row 2: ")
    assert said in wrong


def test_a_field_that_is_missing_is_named(page: Any, row: dict[str, Any]) -> None:
    for name in page.FIELDS:
        less = {key: value for key, value in row.items() if key != name}
        assert page.problems([less]) == [f"row 1: lacks {name}"]
    assert page.problems([row | dict.fromkeys(("value", "low", "high", "met"))]) == []


@pytest.mark.parametrize("text", ["{}", "[]", "[1]", "null"])
def test_a_file_without_rows_is_refused(page: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "neighbours_one.json").write_text(text)
    with pytest.raises(ValueError, match=r"neighbours_one.json: no rows"):
        page.read_neighbours(tmp_path)


def test_the_table_shows_rows_in_the_order_of_the_papers(
    page: Any, row: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "neighbours_one.json"
    file.write_text(
        json.dumps([row, row | {"met": None, "value": None, "low": None, "high": None}])
    )
    measured = page.read_neighbours(tmp_path)
    head, *lines = page.neighbours(measured, tmp_path)
    assert len(head) == len(lines[0]) == 7
    assert len(lines) == len(page.NEIGHBOURS) + 1
    shown = [line for line in lines if "2005.00723" in line[0]]
    words = "R² of counts \\| of means (arithmetic-small; 5 seeds)"
    assert shown[0][1:] == [
        "`ls.score`",
        "R² > 0",
        f"**-0.25 [-0.5, 0.125]**: {words}",
        "**no**",
        "`python benchmarks/neighbours/one.py --save`",
        "4.1",
    ]
    assert shown[1][3:5] == [words, "undecided"]
    assert all(line[3] == "not measured" for line in lines if line not in shown)
    assert "figures" not in shown[0][0]
    (tmp_path / "figures/neighbours").mkdir(parents=True)
    (tmp_path / "figures/neighbours/one.md").touch()
    linked = page.neighbours(measured, tmp_path)
    assert any("[counting](../figures/neighbours/one.md)" in line[0] for line in linked)


def test_the_other_results_are_read_without_them(row: dict[str, Any], tmp_path: Path) -> None:
    pages = importlib.import_module("render_docs")
    (tmp_path / "neighbours_one.json").write_text(json.dumps([row]))
    assert pages.read_results(tmp_path) == {}
