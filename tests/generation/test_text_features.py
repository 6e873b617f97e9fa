"""What a text copies from its prompt shows no skill; what it says itself does."""

import csv
from pathlib import Path

import pytest

from lens_skills.data import Example
from lens_skills.generation.rule_graders import detectors
from lens_skills.generation.text_features import own_words
from lens_skills.tasks import skill_mix
from lens_skills.tasks.skill_mix import Skill, own_skills

FRESH = Path(__file__).with_name("fresh_texts.csv")


def asked(skill: str) -> Example:
    return skill_mix([skill], ["Chess"], k=1)[0]


@pytest.mark.parametrize("skill", own_skills(), ids=lambda skill: skill.name)
@pytest.mark.parametrize(
    "form", ["{}", "Here: {}", "“{}”", "Example: {}\nChess is old.", "{upper}"]
)
def test_the_prompts_example_said_again_does_not_count(skill: Skill, form: str) -> None:
    text = form.format(skill.example, upper=skill.example.upper())
    assert detectors(text, asked(skill.name))[skill.name] == 0
    elsewhere = Example(id="a", prompt="Write about chess.")
    assert detectors(skill.example, elsewhere)[skill.name] == 1


@pytest.mark.parametrize("skill", own_skills(), ids=lambda skill: skill.name)
def test_the_prompts_definition_said_again_does_not_count(skill: Skill) -> None:
    assert detectors(f"{skill.definition} Chess!", asked(skill.name))[skill.name] == float(
        skill.name == "exclamation"
    )


def test_a_copy_with_another_subject_is_a_copy() -> None:
    text = "The board lay as flat as a mirror."
    assert detectors(text, asked("simile"))["simile"] == 0
    assert detectors(text, asked("rhyme"))["simile"] == 1


@pytest.mark.parametrize(
    ("skill", "text"),
    [
        ("simile", "The lake lay as flat as a table. The king waited like a spider."),
        ("exclamation", "What a move! What a sunset over the board!"),
        ("tricolon", "They packed kings, queens and pawns."),
        ("dialogue", '"We should leave the pawn," said the master.'),
        ("onomatopoeia", "The clock goes tick-tock and the gate creaks."),
        ("causal explanation", "The game closed because the king had moved."),
        ("repetition", "They waited, waited and waited for the move."),
    ],
)
def test_own_words_on_the_pattern_of_the_example_count(skill: str, text: str) -> None:
    assert detectors(text, asked(skill))[skill] == 1


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("", ""),
        ("One two three four five", ""),
        ("one, two: three -- FOUR (five)", ""),
        ("One two three four", "One two three four"),  # four words are English, not a copy
        ("One two three four six five", "One two three four six five"),
        ("Ah, one two three four five, and six.", "Ah, and six."),
        ("He said “one two three four five” twice.", "He said twice."),
        ("Don't stop here! Seven.", "Seven."),  # a whole sentence of the prompt
        ("Don't stop here at all!", "Don't stop here at all!"),
        ("Stop it! Seven.", "Stop it! Seven."),  # two words are a turn of speech
    ],
)
def test_what_is_left(text: str, left: str) -> None:
    prompt = "Count: one two three four five. Don’t stop here. Stop it!"
    assert own_words(text, prompt).split() == left.split()


def test_a_cut_joins_nothing() -> None:
    prompt = "Say: a long way to the sea, or not."
    text = "The wind -- a long way to the sea -- fell. Then a long way to the sea it rose."
    assert own_words(text, prompt).count("\n") == 2
    assert "fell. Then it" not in " ".join(own_words(text, prompt).split("\n")[:1])


def test_texts_without_a_copy_are_read_as_they_are() -> None:
    text = "It’s late — and “cold”."
    assert own_words(text, "Write.") == 'It\'s late -- and "cold".'


def rows() -> list[dict[str, str]]:
    with FRESH.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rates_on_texts_written_from_the_definitions_alone() -> None:
    """Two positives and two near misses per skill and round, written before the rules were read.

    ``before``: what the rules said at first. ``mended``: after they were mended on round 1 only,
    so that round 2 is the rate to expect of texts nobody tuned on: 32 of 40 found, 4 of 40 false
    alarms. Afterwards round 2 was mended on too, and is no measure any more.
    """
    found = {
        (number, column, shown): sum(
            row[column] == "1" for row in rows() if (row["round"], row["shown"]) == (number, shown)
        )
        for number in "12"
        for column in ("before", "mended")
        for shown in "10"
    }
    assert [found["1", "before", shown] for shown in "10"] == [33, 2]
    assert [found["2", "before", shown] for shown in "10"] == [32, 4]
    assert [found["1", "mended", shown] for shown in "10"] == [40, 0]
    assert [found["2", "mended", shown] for shown in "10"] == [32, 4]


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row['skill']} {row['text'][:20]}")
def test_what_the_rules_say_now(row: dict[str, str]) -> None:
    """Exaggeration has no form: the one positive that is still missed is said here."""
    missed = row["text"].startswith("Her smile could light up")
    grade = detectors(row["text"], Example(id="a", prompt="Write."))[row["skill"]]
    assert grade == (0 if missed else int(row["shown"]))
