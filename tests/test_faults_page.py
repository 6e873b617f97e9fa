"""The tables of what was done to long calls: every verb was killed, and none was lost."""

import inspect
import json
import sys
from pathlib import Path

import lens_skills as ls

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from faults_page import FAULTS, kills, others  # noqa: E402
from ray_deaths_page import deaths  # noqa: E402

NUMBERS = json.loads((BENCHMARKS / "results" / "faults.json").read_text(encoding="utf-8"))
# Their passes and parts are those of `continual`, of any verb, and of `score`.
OF_OTHERS = {"finetune", "stability", "score_part"}


def test_every_verb_that_goes_on_was_killed() -> None:
    public = {name: getattr(ls, name) for name in ls.__all__}
    resumed = {
        name
        for name, verb in public.items()
        if inspect.isfunction(verb) and "checkpoint" in inspect.signature(verb).parameters
    }
    head, *rows = kills(NUMBERS)
    assert {row[0].strip("`") for row in rows} == resumed - OF_OTHERS
    assert all(len(row) == len(head) for row in rows)


def test_all_went_on_to_the_same_numbers() -> None:
    assert NUMBERS["kills"] == NUMBERS["kills_survived"] >= 50
    assert {value for key, value in NUMBERS.items() if key.endswith("_difference")} == {0}
    _, *rows = others(NUMBERS)
    assert len(rows) == len(FAULTS)
    assert all(times == well for _, times, well, _ in rows)


def test_no_death_under_ray_cost_a_number() -> None:
    numbers = json.loads((BENCHMARKS / "results" / "ray_deaths.json").read_text(encoding="utf-8"))
    head, *rows = deaths(numbers)
    assert len(rows) == 10  # five verbs, a worker and a node
    assert all(len(row) == len(head) for row in rows)
    for key, value in numbers.items():
        if key.endswith("_survived"):
            assert value == 1, key
        if key.endswith("_again"):
            assert value >= 1, key
        if key.endswith("_difference"):
            assert value <= (0 if key.startswith(("sweep", "verify", "generate")) else 1e-12), key
