"""The calibration table: its rows and their rates, on few data sets."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lens_skills.stats.intervals import wilson_interval

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Any]:
    """The script and its rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("calibration")


def rows() -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return [row.key for row in importlib.import_module("calibration_rows").ROWS]


def test_a_bar_is_written_as_it_is_held(benchmark: Any) -> None:
    row = importlib.import_module("calibration_rows").Row
    cases = {
        (0.0, 0.05): ("≤ .05", 0.05, 0.051),
        (0.9, 1.0): ("≥ .9", 0.9, 0.89),
        (0.93, 0.98): (".93–.98", 0.95, 0.99),
        (0.0, 0.0): ("0", 0.0, 0.001),
        (0.0, 1.0): ("–", 0.5, 1.1),
    }
    for (low, high), (text, inside, outside) in cases.items():
        bar = row("key", "what", low, high)
        assert bar.bar == text
        assert bar.holds(inside)
        assert not bar.holds(outside)


def test_every_row_has_its_simulation_and_no_other(benchmark: Any) -> None:
    assert sorted(benchmark.simulations()) == sorted(rows())


@pytest.mark.slow
@pytest.mark.parametrize("key", rows())
def test_a_row_is_near_its_bar(benchmark: Any, key: str) -> None:
    """Few data sets: a rate is refused only where it is surely beyond its bar."""
    row = next(row for row in benchmark.ROWS if row.key == key)
    hits, n = benchmark.simulations()[key](20 * row.times)
    assert 0 <= hits <= n
    low, high = wilson_interval(hits / n, n, level=0.999)
    assert low <= row.high, f"{hits} of {n}: {row.what}"
    assert high >= row.low, f"{hits} of {n}: {row.what}"


def test_figures_are_a_rate_with_its_interval(benchmark: Any) -> None:
    row = next(row for row in benchmark.ROWS if row.key == "large")
    low, high = wilson_interval(0.25, 40)
    assert benchmark.figures(row, 10, 40, "now") == {
        "large_now": 0.25,
        "large_now_low": low,
        "large_now_high": high,
        "large_now_n": 40,
    }


def test_rows_that_were_not_run_again_are_kept(benchmark: Any, tmp_path: Path) -> None:
    assert benchmark.kept(tmp_path) == {}
    entry = {"command": "python", "large_now": 0.1, "large_before_n": 40}
    (tmp_path / "calibration.json").write_text(json.dumps(entry))
    assert benchmark.kept(tmp_path) == {"large_now": 0.1, "large_before_n": 40}


def test_the_page_shows_every_row(benchmark: Any) -> None:
    pages = importlib.import_module("render_docs")
    numbers = {"large_before": 0.32, "large_before_low": 0.3, "large_before_high": 0.34}
    numbers |= {"large_now": 0.01, "large_now_low": 0.0, "large_now_high": 0.02}
    table = pages.calibration({"calibration": {**numbers, "large_now_n": 20_000}})
    assert len(table.splitlines()) == 2 + len(benchmark.ROWS)
    wanted = "| ≤ .05 | 0.320 [0.300, 0.340] | **0.010 [0.000, 0.020]** | 20,000 neurons |"
    assert wanted in table
    assert "| – | – |" in table
