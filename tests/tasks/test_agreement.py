"""agreement: balanced, the verb right by the subject's word, twins that ask for the foil."""

from collections import Counter

import pytest

from lens_skills import tasks
from lens_skills.errors import LensSkillsError
from lens_skills.tasks.word_lists import PEOPLE, SUBJECTS, THINGS

TASK = tasks.agreement()
SINGULAR, PLURAL = {" is", " was", " has"}, {" are", " were", " have"}
NUMBER = {
    word: number for pair in (*SUBJECTS, *THINGS, *PEOPLE) for number, word in enumerate(pair)
}


def nouns(prompt: str) -> list[str]:
    return [word for word in prompt.split() if word in NUMBER]


def test_the_word_list() -> None:
    words = [word for pair in (*SUBJECTS, *THINGS, *PEOPLE) for word in pair]
    assert len(SUBJECTS) == 80
    assert len(set(words)) == len(words)  # no noun is subject here and attractor there


def test_size_and_balance() -> None:
    assert len(TASK) == 960
    cells = Counter(
        (e.labels["plural"], e.covariates["distractor"], e.covariates["template"]) for e in TASK
    )
    assert len(cells) == 2 * 3 * 4
    assert set(cells.values()) == {40}
    assert all(count >= 300 for count in Counter(TASK.column("verb")).values())
    assert {Counter(e.group for e in TASK)[group] for group in TASK.groups} == {12}


@pytest.mark.parametrize("task", [TASK, tasks.agreement(7680, seed=3)], ids=["default", "all"])
def test_the_verb_follows_the_first_noun_and_the_columns_tell_the_prompt(task: tasks.Task) -> None:
    assert len({e.prompt for e in task}) == len(task)
    for e in task:
        assert e.corrupted is not None
        subject, *attractors = nouns(e.prompt)
        plural = NUMBER[subject]
        assert e.labels["plural"] == plural
        assert (e.answer in PLURAL) == bool(plural)
        assert (e.foil in PLURAL) != bool(plural)
        kind = {0: "none"} if not attractors else {0: "different", 1: "same"}
        same = int(bool(attractors) and NUMBER[attractors[0]] == plural)
        assert e.covariates["distractor"] == kind[same]
        assert e.covariates["attractor_plural"] == (NUMBER[attractors[0]] if attractors else 0)
        assert e.covariates["n_words"] == len(e.prompt.split()) <= 8
        assert e.kind == subject
        assert (subject, e.group) in [(pair[plural], pair[0]) for pair in SUBJECTS]
        assert e.prompt == e.prompt.strip()


def test_the_twin_differs_in_the_subject_alone_and_swaps_the_answer() -> None:
    by_prompt = {(e.prompt, e.covariates["verb"]): e for e in TASK}
    for e in TASK:
        assert e.corrupted is not None
        changed = [
            (a, b) for a, b in zip(e.prompt.split(), e.corrupted.split(), strict=True) if a != b
        ]
        assert len(changed) == 1
        assert set(changed[0]) in [set(pair) for pair in SUBJECTS]
        if (twin := by_prompt.get((e.corrupted, e.covariates["verb"]))) is not None:
            assert (twin.answer, twin.foil, twin.corrupted) == (e.foil, e.answer, e.prompt)
    assert all((e.corrupted, e.covariates["verb"]) in by_prompt for e in TASK)


def test_only_the_nouns_carry_number() -> None:
    """Prompts of the two numbers are equal once the nouns are blanked: nothing else tells."""

    def blanked(plural: int) -> Counter[str]:
        return Counter(
            " ".join("_" if word in NUMBER else word for word in e.prompt.split())
            for e in TASK.where(plural=plural)
        )

    assert blanked(0) == blanked(1)


def test_length_tells_nothing_but_the_template() -> None:
    assert len({(e.covariates["template"], e.covariates["n_words"]) for e in TASK}) == 4


def test_choices() -> None:
    task = tasks.agreement(distractors=["different"], verbs=["was"])
    assert len(task) == 320
    assert set(task.column("distractor")) == {"different"}
    assert {e.answer for e in task} == {" was", " were"}
    assert len(tasks.agreement(100)) == 100
    assert tasks.agreement(100, seed=1).fingerprint() == tasks.agreement(100, seed=1).fingerprint()
    assert tasks.agreement(100, seed=1).fingerprint() != tasks.agreement(100, seed=2).fingerprint()


def test_bad_choices() -> None:
    with pytest.raises(LensSkillsError, match=r"no distractor 'odd'. Choose from none, same"):
        tasks.agreement(distractors=["odd"])
    with pytest.raises(LensSkillsError, match="no verb given"):
        tasks.agreement(verbs=[])
    with pytest.raises(LensSkillsError, match="1 to 7680"):
        tasks.agreement(7681)
