"""Other wordings: of every example the same question, with the same answer, group and kind."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lens_skills import tasks
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.results import Result
from lens_skills.tasks import Task, few
from lens_skills.tasks.nli import claim
from lens_skills.tasks.word_lists import NAMES, SUBJECTS

BUILT_IN = {
    "agreement": lambda: tasks.agreement(),
    "ioi": lambda: tasks.ioi(200),
    "arithmetic": lambda: tasks.arithmetic("+-*/", digits=(1, 2), n=200),
    "nli": lambda: tasks.nli(120, shots=2),
}


@pytest.fixture(scope="module", params=BUILT_IN)
def task(request: pytest.FixtureRequest) -> Task:
    return BUILT_IN[request.param]()


def test_all_but_the_words_stays(task: Task) -> None:
    others = task.paraphrases()
    assert len(others) >= 3
    for name, other in others.items():
        assert (other.name, other.split_name) == (task.name, f"all, worded as {name!r}")
        assert len({e.prompt for e in other}) == len({e.prompt for e in task})
        for one, two in zip(task, other, strict=True):
            assert one.prompt != two.prompt
            assert (one.corrupted is None) == (two.corrupted is None)
            assert one.prompt[-1].isspace() == two.prompt[-1].isspace()
            words = dict(two.covariates)
            if "n_words" in words:
                assert words["n_words"] == len(two.prompt.split())
                words["n_words"] = one.covariates["n_words"]
            assert replace(two, prompt=one.prompt, corrupted=one.corrupted, covariates=words) == one
    assert all(len(set(prompts)) == len(prompts) for prompts in _prompts(task, others))


def _prompts(task: Task, others: dict[str, Task]) -> list[tuple[str, ...]]:
    """Of each example, its prompts in all wordings."""
    return [tuple(e.prompt for e in row) for row in zip(task, *others.values(), strict=True)]


def test_agreement_still_asks_about_the_same_nouns() -> None:
    nouns = {word for pair in SUBJECTS for word in pair}
    task = tasks.agreement()
    for other in task.paraphrases().values():
        for one, two in zip(task, other, strict=True):
            found = [[w for w in e.prompt.split() if w in nouns] for e in (one, two)]
            assert found[0] == found[1]
            assert two.corrupted is not None
            changed = [
                (a, b)
                for a, b in zip(two.prompt.split(), two.corrupted.split(), strict=True)
                if a != b
            ]
            assert len(changed) == 1
            assert two.kind in changed[0]


def test_ioi_still_asks_for_the_one_named_once() -> None:
    for other in tasks.ioi(200).paraphrases().values():
        for e in other:
            for text, answer in ((e.prompt, e.answer), (e.corrupted or "", e.foil)):
                named = [word.strip(".,") for word in text.split()]
                named = [word for word in named if word in NAMES]
                (once,) = [word for word in named if named.count(word) == 1]
                assert answer == f" {once}"


def test_arithmetic_still_asks_the_same_problem() -> None:
    task = tasks.arithmetic("+-*/")
    signs = {"plus": "+", "minus": "-", "times": "*", "divided": "//", "/": "//"}
    for other in task.paraphrases().values():
        for e in other:
            words = e.prompt.replace("?", " ").replace(".", " ").split()
            known = [signs.get(w, w) for w in words if w in signs or w in "+-*" or w.isdigit()]
            assert str(eval("".join(known))) == e.answer


def test_nli_shows_premise_and_hypothesis_and_its_answers() -> None:
    task = tasks.nli(60)
    for other in task.paraphrases().values():
        for one, two in zip(task, other, strict=True):
            premise, hypothesis = (line.partition(": ")[2] for line in one.prompt.splitlines()[:2])
            assert premise in two.prompt
            assert hypothesis in two.prompt or claim(hypothesis) in two.prompt
            assert "Yes or No?" in two.prompt


def test_parts_of_a_task_keep_their_own_wordings(task: Task) -> None:
    part, _ = task.split(0.5, 0.5, seed=0)
    for some in (part, task[:30], task.where(lambda e: e.group == task[0].group), few(task, 40)):
        for name, other in some.paraphrases().items():
            whole = {e.id: e for e in task.paraphrases()[name]}
            assert list(other) == [whole[e.id] for e in some]


def test_other_answers_than_yes_and_no_take_no_usual_wording() -> None:
    with pytest.raises(LensSkillsError, match="knows one wording only"):
        tasks.nli(60, answers=(" true", " false")).paraphrases()


def test_one_gives_wordings_to_any_task() -> None:
    task = Task("t", [Example(id=k, prompt=f"The {k}", corrupted=f"The {k}s") for k in "ab"])
    with pytest.raises(LensSkillsError, match=r"with_paraphrases\(\{name: function\}\)"):
        task.paraphrases()
    worded = task.with_paraphrases({"now": lambda text: f"Now {text}"})
    worded = worded.with_paraphrases({"then": lambda text: f"Then {text}"})
    assert [e.prompt for e in worded.paraphrases()["now"]] == ["Now The a", "Now The b"]
    assert worded.paraphrases()["then"][1].corrupted == "Then The bs"
    assert worded.fingerprint() == task.fingerprint()
    for bad, complaint in (
        (lambda text: text, "changes no prompt"),
        (lambda text: "" if text.endswith("a") else text + "!", "needs a prompt"),
        (lambda text: text + " ", "must end in a space if and only if"),
    ):
        with pytest.raises(LensSkillsError, match=complaint):
            task.with_paraphrases({"bad": bad})
    with pytest.raises(LensSkillsError, match="'b' has no prompt in it"):
        replace(task, wordings={"half": {"a": ("A", "As")}})


def test_a_table_takes_templates() -> None:
    rows = [{"a": f"key {k}", "b": f"keys {k}", "short": f"k{k}"} for k in range(3)]
    task = tasks.table(rows, prompt="The {a}", paraphrases={"short": "{short}", "some": "Some {a}"})
    assert [e.prompt for e in task.paraphrases()["short"]] == ["k0", "k1", "k2"]
    assert task.paraphrases()["some"][2].prompt == "Some key 2"
    twins = tasks.pairs(rows, clean="a", corrupted="b", paraphrases={"the": ("The {a}", "The {b}")})
    assert twins.paraphrases()["the"][0].corrupted == "The keys 0"
    with pytest.raises(LensSkillsError, match="one for their corrupted twins"):
        tasks.pairs(rows, clean="a", corrupted="b", paraphrases={"the": "The {a}"})
    with pytest.raises(LensSkillsError, match="as there are no twins"):
        tasks.table(rows, prompt="a", paraphrases={"the": ("The {a}", "The {b}")})
    with pytest.raises(LensSkillsError, match="no column 'c'"):
        tasks.table(rows, prompt="a", paraphrases={"the": "The {c}"})
    gaps = [*rows, {"a": "x", "b": "y", "short": None}]
    with pytest.raises(LensSkillsError, match="row 3 has no text for the wording 'short'"):
        tasks.table(gaps, prompt="a", paraphrases={"short": "{short}"})


@dataclass(frozen=True, eq=False)
class Holder(Result):
    task: Task


def test_they_are_saved_with_the_task(tmp_path: Path) -> None:
    task = tasks.agreement(12)
    Holder(task).save(tmp_path / "held")
    again = Holder.load(tmp_path / "held").task
    assert again == task
    assert again.paraphrases() == task.paraphrases()
