"""nli: balanced, each rule holds and no stronger one, splits keep the cross."""

from collections import Counter
from itertools import combinations

import pytest

from lens_skills import tasks
from lens_skills.errors import LensSkillsError
from lens_skills.tasks import Task
from lens_skills.tasks.nli import (
    FILLS,
    HEURISTICS,
    INTRANSITIVE,
    NOUNS,
    PATTERNS,
    TRANSITIVE,
    WORDING,
)

TASK = tasks.nli()
FRACTIONS = (0.2, 0.4, 0.2, 0.2)

# What may stand before a clause, where it does not begin the sentence.
OPENERS = {
    "because", "after", "although", "once", "if", "unless", "that",
}  # fmt: skip


def sentences(prompt: str) -> tuple[str, str]:
    """Premise and hypothesis of the last question."""
    lines = prompt.split("\n")
    premise = [line for line in lines if line.startswith("Premise: ")][-1]
    hypothesis = [line for line in lines if line.startswith("Hypothesis: ")][-1]
    return premise.removeprefix("Premise: "), hypothesis.removeprefix("Hypothesis: ")


def relation(premise: str, hypothesis: str) -> str:
    """The strongest of the three rules that calls the hypothesis entailed, read off the words.

    A clause is what stands between the ends of a sentence, commas, and words that open a clause.
    """

    def pieces(sentence: str) -> list[str]:
        return sentence.lower().rstrip(".").replace(",", " ,").split()

    p, h = pieces(premise), pieces(hypothesis)
    plain = [word for word in p if word != ","]
    if not set(h) <= set(plain):
        return "none"
    inside = [at for at in range(len(plain)) if plain[at : at + len(h)] == h]
    if not inside:
        return "lexical_overlap"
    for at in range(len(p)):
        if p[at : at + len(h)] != h:
            continue
        before, after = p[:at], p[at + len(h) :]
        # A conjunction opens a clause after a comma only: else it joins two people.
        opened = not before or before[-1] == "," or before[-1] in OPENERS
        opened = opened or (before[-1] in ("and", "or") and before[-2] == ",")
        if opened and (not after or after[0] == ","):
            return "constituent"
    return "subsequence"


def test_the_checker_itself() -> None:
    assert relation("The cook who slept left.", "The cook left.") == "lexical_overlap"
    assert relation("The cook and the nurse left.", "The nurse left.") == "subsequence"
    assert relation("The cook left, and the nurse slept.", "The nurse slept.") == "constituent"
    assert relation("The cook knew that the nurse slept.", "The nurse slept.") == "constituent"
    assert relation("The cook left.", "The nurse left.") == "none"


def test_size_and_balance() -> None:
    assert (len(TASK), len(TASK.groups)) == (720, 60)
    cells = Counter((e.labels["heuristic"], e.labels["entailment"]) for e in TASK)
    assert cells == {(rule, side): 120 for rule in HEURISTICS for side in (0, 1)}
    assert set(Counter(e.covariates["subcase"] for e in TASK).values()) == {12}
    assert set(Counter((e.group, e.covariates["noun_set"]) for e in TASK).values()) == {3}
    for n in (60, 300, 1200):
        assert set(Counter(e.covariates["subcase"] for e in tasks.nli(n)).values()) == {n // 60}
    counts = Counter((e.labels["heuristic"], e.labels["entailment"]) for e in tasks.nli(100))
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("task", [TASK, tasks.nli(3000, seed=5)], ids=["default", "many"])
def test_every_pair_stands_in_the_relation_of_its_heuristic(task: Task) -> None:
    for e in task:
        premise, hypothesis = sentences(e.prompt)
        assert relation(premise, hypothesis) == e.labels["heuristic"], e.prompt
        assert [e.labels[rule] for rule in HEURISTICS] == [
            int(rule == e.labels["heuristic"]) for rule in HEURISTICS
        ]
        assert (e.answer, e.foil) == (
            (" Yes", " No") if e.labels["entailment"] else (" No", " Yes")
        )
        assert e.options == (" Yes", " No")
        assert "{" not in e.prompt
        assert premise[0].isupper()
        assert hypothesis[0].isupper()


def test_a_subcase_decides_the_answer_and_is_the_group() -> None:
    for e in TASK:
        assert e.group == e.kind == e.covariates["subcase"]
        assert e.group in PATTERNS[e.labels["heuristic"]][bool(e.labels["entailment"])]
    assert len({e.prompt for e in TASK}) == len(TASK)


def test_words_are_one_thing_each() -> None:
    """No noun in two sets, no verb in two lists that a sentence draws from together."""
    nouns = [noun for nouns in NOUNS for noun in nouns]
    assert len(set(nouns)) == len(nouns) == 24
    pools = [set(TRANSITIVE), set(INTRANSITIVE), set(FILLS["watched"])]
    assert all(not one & other for one, other in combinations(pools, 2))


def test_columns_tell_the_prompt() -> None:
    for e in TASK:
        premise, hypothesis = sentences(e.prompt)
        assert e.covariates["n_words_premise"] == len(premise.split())
        assert e.covariates["n_words_hypothesis"] == len(hypothesis.split())
        p, h = (set(s.lower().strip(".").replace(",", "").split()) for s in (premise, hypothesis))
        assert e.covariates["overlap"] == pytest.approx(len(p & h) / len(p | h))
        assert e.covariates["negation"] == int(e.group in ("nobody", "neither", "not_only"))
        (nouns,) = [
            place for place, nouns in enumerate(NOUNS) if any(f"{n}" in premise for n in nouns)
        ]
        assert e.covariates["noun_set"] == str(nouns)


def test_splits_keep_the_cross_and_subcases_whole() -> None:
    parts = TASK.split(*FRACTIONS, seed=1)
    assert [len(part.groups) for part in parts] == [12, 24, 12, 12]
    for part in parts:
        cells = Counter((e.labels["heuristic"], e.labels["entailment"]) for e in part)
        assert len(cells) == 6
        assert len(set(cells.values())) == 1


def test_groups_can_be_divided_by_nouns() -> None:
    finer = tasks.nli(group="noun_set")
    assert len(finer.groups) == 240
    assert {e.kind for e in finer} == set(TASK.groups)
    with pytest.raises(LensSkillsError, match="group by one of 'subcase', 'noun_set'"):
        tasks.nli(group="premise")


@pytest.mark.parametrize("shots", [1, 4, 7])
def test_demonstrations_are_balanced_answered_and_not_asked(shots: int) -> None:
    task = tasks.nli(shots=shots, seed=3)
    plain = tasks.nli(seed=3)
    assert [e.prompt.split("\n\n")[-1] for e in task] == [e.prompt for e in plain]
    (shown,) = {tuple(e.prompt.split("\n\n")[:-1]) for e in task}
    assert len(shown) == len(set(shown)) == shots
    said = Counter(text.rsplit("Answer:")[1] for text in shown)
    assert said[" Yes"] - said[" No"] == shots % 2
    asked = {sentences(e.prompt)[0] for e in plain}
    truth = {sentences(e.prompt): e.answer for e in tasks.nli(780, seed=3)}
    for text in shown:
        premise, hypothesis = sentences(text)
        assert premise not in asked
        assert text.endswith(str(truth[premise, hypothesis]))
    other = tasks.nli(shots=shots, seed=4)[0].prompt.split("\n\n")[:-1]
    assert other != list(shown)


def test_a_wording_of_ones_own() -> None:
    task = tasks.nli(60, wording="{premise} So {claim},", answers=(" true", " false"))
    one = task.where(subcase="time")[0]
    assert one.prompt.split(" So ")[1][0].islower()
    assert one.prompt.endswith(",")
    assert not one.prompt.endswith(".,")
    assert (one.answer, one.foil) == (" true", " false")
    for wording, words in (
        ("{premise}", "lacks a slot"),
        ("{hypothesis}", "lacks a slot"),
        ("{premise} {claim} {label}", "unknown slot {label}"),
        ("{premise} {", "is no template"),
        (WORDING + " ", "begins with a space"),
    ):
        with pytest.raises(LensSkillsError, match=words):
            tasks.nli(wording=wording)
    for answers in ((" a", " a"), ("", " b")):
        with pytest.raises(LensSkillsError, match="two different texts"):
            tasks.nli(answers=answers)


def test_the_seed_decides() -> None:
    assert tasks.nli(120, seed=1).fingerprint() == tasks.nli(120, seed=1).fingerprint()
    assert tasks.nli(120, seed=1).fingerprint() != tasks.nli(120, seed=2).fingerprint()


def test_numbers_out_of_range() -> None:
    for n in (0, 6001):
        with pytest.raises(LensSkillsError, match="1 to 6000"):
            tasks.nli(n)
    for shots in (-1, 61):
        with pytest.raises(LensSkillsError, match="0 to 60 demonstrations"):
            tasks.nli(shots=shots)
    assert len(tasks.nli(6000, seed=2)) == 6000


def test_the_shell_opens_it() -> None:
    assert tasks.open_task("nli").fingerprint() == TASK.fingerprint()


@pytest.mark.slow
def test_the_verbaliser_is_one_token_of_the_default_model(smollm: object) -> None:
    tokenizer = smollm.tokenizer  # type: ignore[attr-defined]
    for answer in TASK[0].options:
        assert len(tokenizer.encode(answer, add_special_tokens=False)) == 1
