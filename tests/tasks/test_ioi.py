"""ioi: the receiver is the one who did not give; the twin names the other giver."""

import re
from collections import Counter
from importlib import import_module

import pytest

from lens_skills import tasks
from lens_skills.errors import LensSkillsError
from lens_skills.tasks.ioi import TEMPLATES
from lens_skills.tasks.word_lists import NAMES

TASK = tasks.ioi()


def names(prompt: str) -> list[str]:
    return [word for word in re.findall(r"\w+", prompt) if word in NAMES]


def receiver(prompt: str) -> str:
    """Independent of the templates: the name that stands only once."""
    (once,) = [name for name, count in Counter(names(prompt)).items() if count == 1]
    return once


def test_answers_foils_and_twins() -> None:
    for e in TASK:
        assert e.corrupted is not None
        assert e.answer == " " + receiver(e.prompt)
        assert e.foil == " " + receiver(e.corrupted)
        assert names(e.prompt)[:2] == names(e.corrupted)[:2]
        assert names(e.prompt)[2] != names(e.corrupted)[2]
        assert len(e.prompt.split()) == len(e.corrupted.split()) == e.covariates["n_words"]
        assert e.labels["io_first"] == (names(e.prompt)[0] == e.covariates["indirect_object"])
        assert e.group == " ".join(sorted(names(e.prompt)[:2]))
        assert e.kind == e.covariates["indirect_object"]


def test_every_pair_is_complete_and_its_twins_are_in_the_task() -> None:
    assert len(TASK) == 500
    assert set(Counter(e.group for e in TASK).values()) == {4}
    assert TASK.column("io_first").mean() == 0.5
    prompts = {e.prompt: e for e in TASK}
    for e in TASK:
        twin = prompts[e.corrupted or ""]
        assert (twin.answer, twin.foil, twin.corrupted) == (e.foil, e.answer, e.prompt)
    assert set(TASK.column("template")) == set(TEMPLATES)


def test_all_there_are_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    # The file by its name: lens_skills.tasks.ioi is the function.
    monkeypatch.setattr(import_module("lens_skills.tasks.ioi"), "NAMES", NAMES[:6])
    most = 4 * 15 * len(TEMPLATES)
    task = tasks.ioi(most, seed=2)
    assert len({e.prompt for e in task}) == len(task) == 360
    with pytest.raises(LensSkillsError, match="1 to 360"):
        tasks.ioi(most + 1)


def test_seed() -> None:
    assert tasks.ioi(20, seed=1).fingerprint() == tasks.ioi(20, seed=1).fingerprint()
    assert tasks.ioi(20, seed=1).fingerprint() != tasks.ioi(20, seed=2).fingerprint()
    assert len(tasks.ioi(7)) == 7
