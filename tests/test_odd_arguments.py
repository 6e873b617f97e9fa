"""Odd values for the arguments of the public functions: a result or a `LensSkillsError`."""

import subprocess
import sys
from pathlib import Path

import pytest

import lens_skills as ls
from lens_skills.errors import LensSkillsError

ROOT = Path(__file__).resolve().parents[1]
CALLS = 60  # python -m tests.odd_arguments tries every value for every argument


@pytest.mark.slow
def test_no_odd_value_ends_in_an_error_of_a_library() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.odd_arguments", str(CALLS)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    assert "'refused'" in ran.stdout


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ls.ablate(3), "ablate(): kind must be a text, not 3."),
        (lambda: ls.clamp(to="high"), "clamp(): to must be a number, not 'high'."),
        (lambda: ls.controls(sets=True), "controls(): sets must be a whole number, not True."),
        (lambda: ls.load(None), "a text or a Path or several of: text, Path, not None."),
        (lambda: ls.score(None, "task", metrics=()), "several of: Example, not 'task'."),
        (lambda: ls.score(None, ["a"], metrics=()), "several of: Example, not a list of str."),
        (lambda: ls.confidence("tpo"), "'top' or 'answer' or 'margin' or 'entropy', not 'tpo'."),
    ],
)  # fmt: skip
def test_what_was_given_and_what_it_takes_are_said(call: object, said: str) -> None:
    with pytest.raises(LensSkillsError) as error:
        call()  # type: ignore[operator]
    assert str(error.value).endswith(said)
