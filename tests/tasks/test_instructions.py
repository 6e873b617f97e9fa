"""instructions: spans that are there once, groups that share nothing, things that tell nothing."""

from collections import Counter
from itertools import combinations
from typing import Any

import pytest

from lens_skills.errors import LensSkillsError
from lens_skills.tasks import instructions, open_task
from lens_skills.tasks.instructions import LIGHT, PER_TYPE, ROOMS, SURFACES, THINGS, TYPES, VERBS
from lens_skills.tasks.word_lists import words

FILLERS = ("recipient", "surface", "room")
SPANS = ("verb", "argument", "matched", *FILLERS)
WAYS = (
    {},
    {"seed": 1},
    {"types": ("open", "bring"), "n_tasks": (1, 2)},
    {"types": TYPES[2:], "seed": 2},
)


@pytest.mark.parametrize("how", WAYS)
def test_every_span_is_in_its_prompt_once(how: dict[str, Any]) -> None:
    for example in instructions(**how):
        for name in SPANS:
            text = str(example.column(name))
            assert text == "" or example.prompt.count(text) == 1, (name, example.prompt)
        assert example.answer == f" {example.column('argument')}"
        assert example.prompt.count(str(example.foil)) == (example.column("n_tasks") != 1)
        assert (example.column("matched") != "") == (example.column("n_tasks") == 3)
        first = {"bring": "recipient", "place": "surface", "search": "room"}
        for kind, name in first.items():
            assert (example.column(name) != "") == (example.column("type") == kind)


def test_groups_share_no_verb_no_thing_no_place_no_name_and_no_template() -> None:
    task = instructions(seed=3)
    assert len(task.groups) == 24
    held_by: dict[str, set[Any]] = {group: set() for group in task.groups}
    frames: dict[str, set[str]] = {group: set() for group in task.groups}
    for example in task:
        held = [example.column(name) for name in ("verb", "argument", *FILLERS)]
        held_by[example.group] |= {word for word in held if word}
        text = example.prompt.partition(" The thing")[0]
        for part in str(example.column("tasks")).split("; "):
            thing, _, filler = part.partition(": ")[2].partition(" -> ")
            verb = next(v for v in example.group.split(", ") if f"{v} the {thing}" in text)
            ends = [tail + filler for tail in (" to ", " on the ", " in the ") if filler]
            clause = f"{verb} the {thing}"
            clause += next((end for end in ends if clause + end in text), "")
            text = text.replace(clause, "…")
        if example.column("n_tasks") == 2:
            frames[example.group].add(text)
    for one, other in combinations(held_by.values(), 2):
        assert not one & other
    assert {len(found) for found in frames.values()} == {1}
    assert len(set.union(*frames.values())) == 24


def test_things_say_nothing_of_the_type() -> None:
    task = instructions()
    for group in task.groups:
        met = Counter((e.kind, e.answer) for e in task if e.group == group)
        assert len(met) == 9
        assert set(met.values()) == {5}
    assert set(Counter(task.column("type")).values()) == {180}
    assert set(Counter(zip(task.column("type"), task.column("n_tasks"), strict=True)).values()) == {
        36,
        72,
    }


def test_no_word_says_the_type() -> None:
    every = [verb for verbs in VERBS.values() for verb in verbs]
    assert len(set(every)) == len(every) == len(TYPES) * PER_TYPE
    heads: dict[str, set[str]] = {}
    for kind, verbs in VERBS.items():
        assert not any(name in verb for verb in verbs for name in TYPES)
        for verb in verbs:
            heads.setdefault(verb.split()[0], set()).add(kind)
        assert sum(verb.split()[0] in LIGHT for verb in verbs) == 3, kind
    for head, kinds in heads.items():
        assert (len(kinds) >= 3) == (head in LIGHT), head
        assert len(kinds) == 1 or head in LIGHT
    assert len({*THINGS, *SURFACES, *ROOMS}) == 72 + 24 + 24


def test_the_twin_has_the_things_exchanged() -> None:
    for example in instructions(seed=4):
        assert example.corrupted is not None
        assert example.answer is not None
        assert example.foil is not None
        mark = " \0"
        back = example.corrupted.replace(example.answer, mark).replace(example.foil, example.answer)
        assert back.replace(mark, example.foil) == example.prompt
        if example.column("n_tasks") != 1:
            assert Counter(words(example.corrupted)) == Counter(words(example.prompt))


def test_the_twin_of_verbs_asks_for_the_foil() -> None:
    things, verbs = instructions(), instructions(twin="verb")
    assert [e.prompt for e in things] == [e.prompt for e in verbs]
    for one in verbs:
        if one.column("n_tasks") == 1:
            assert one.corrupted is None
            continue
        assert one.corrupted is not None
        assert f"{one.column('verb')} the{one.foil}" in one.corrupted
        assert f"{one.column('verb')} the{one.answer}" in one.prompt


def test_shuffled_keeps_each_heads_types() -> None:
    task = instructions()
    light = task.where(light=1)
    assert (task.where(light=0).column("type") == task.where(light=0).column("shuffled")).all()
    same = (light.column("type") == light.column("shuffled")).mean()
    assert 0.15 < same < 0.4
    for head in LIGHT:
        part = light.where(head=head)
        assert Counter(part.column("type")) == Counter(part.column("shuffled"))
        assert len(Counter(part.column("type"))) >= 3


def test_the_same_seed_makes_the_same_task() -> None:
    assert instructions(seed=5).fingerprint() == instructions(seed=5).fingerprint()
    assert instructions(seed=5).fingerprint() != instructions(seed=6).fingerprint()
    assert open_task("instructions").fingerprint() == instructions().fingerprint()


def test_fewer_examples_are_of_all_groups_and_verbs() -> None:
    task = instructions(72)
    assert len(task.groups) == 24
    assert len(set(task.column("kind"))) == 72
    assert [e.id for e in task] == [e.id for e in instructions()][:72]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"types": ("bring", "clena")}, r"no type 'clena'. Did you mean 'clean'.* There are 6: "),
        ({"types": ("bring",)}, "two types or more"),
        ({"types": ("bring", "bring")}, "each named once"),
        ({"types": ()}, "two types or more"),
        ({"types": ("bring", "open")}, "3 tasks of different types want as many types, and 2"),
        ({"n_tasks": 4}, "1, 2 or 3 tasks"),
        ({"n_tasks": ()}, "1, 2 or 3 tasks"),
        ({"n": 71}, "24 groups of 3 verbs want 72 examples or more"),
        ({"n": 1081}, r"there are 1,080\. Ask for less"),
        ({"twin": "thing"}, "'argument' or 'verb'"),
    ],
)
def test_what_cannot_be_made_is_said(how: dict[str, Any], said: str) -> None:
    with pytest.raises(LensSkillsError, match=said):
        instructions(**how)
