"""Common English words the generated tasks are built from, and the words of a sentence."""

import re
from functools import cache
from importlib.resources import files


@cache
def neutral_texts() -> tuple[str, ...]:
    """Sixty plain sentences on many subjects, shipped with the project.

    >>> len(neutral_texts())
    60
    """
    text = files("lens_skills.tasks").joinpath("neutral.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def words(sentence: str) -> list[str]:
    """The words of a sentence in lower case, without punctuation.

    >>> words("If it rains, the cook sleeps.")
    ['if', 'it', 'rains', 'the', 'cook', 'sleeps']
    """
    return re.findall(r"[\w'’-]+", sentence.lower())


NEGATIONS = frozenset({"no", "not", "never", "nobody", "none", "neither", "nor", "without"})


def _with_plurals(nouns: str) -> tuple[tuple[str, str], ...]:
    """Singular and plural of each noun: in -s, or as written behind a stroke."""
    pairs = [noun.partition("/") for noun in nouns.split()]
    return tuple((one, many or f"{one}s") for one, _, many in pairs)


# The subjects: 80 concrete nouns, no plural that looks like its singular.
SUBJECTS = _with_plurals(
    "key book car dog cat horse bird chair table window door lamp box/boxes bottle cup plate "
    "knife/knives letter picture phone camera computer machine engine train truck boat ship bike "
    "plane tree flower leaf/leaves stone apple egg cake shoe shirt hat coat bag ring "
    "watch/watches clock mirror painting guitar ball toy doll pen paper map sign flag wheel "
    "bench/benches statue cow pig duck rabbit snake mouse/mice wolf/wolves child/children man/men "
    "woman/women baby/babies singer dancer writer farmer soldier nurse driver pilot artist king"
)

# The attractors share no noun with the subjects: else a subject of one split would be read as an
# attractor in another.
THINGS = _with_plurals(
    "house wall bridge garden building fence gate tower shop farm hill rock tent cabin barn pond"
)

PEOPLE = _with_plurals(
    "boy girl teacher student doctor lawyer friend guest player worker tourist judge actor "
    "visitor neighbor queen"
)

# First names that common tokenizers hold as one token after a space.
NAMES = (
    "Mary", "John", "Tom", "Anna", "James", "Sarah", "David", "Emma", "Paul", "Laura",
    "Mark", "Alice", "Peter", "Jane", "Jack", "Lisa", "Mike", "Kate", "Adam", "Maria",
    "Dan", "Amy", "Steve", "Rachel", "Chris", "Helen", "Ben", "Susan", "Sam", "Julia",
    "Kevin", "Karen", "Robert", "Linda", "Simon", "Ruth", "Joe", "Sara", "George", "Rose",
)  # fmt: skip
