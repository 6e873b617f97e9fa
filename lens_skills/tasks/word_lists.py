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

# Singular and plural of the subjects: 80 concrete nouns, no plural that looks like its singular.
SUBJECTS = (
    ("key", "keys"), ("book", "books"), ("car", "cars"), ("dog", "dogs"), ("cat", "cats"),
    ("horse", "horses"), ("bird", "birds"), ("chair", "chairs"), ("table", "tables"),
    ("window", "windows"), ("door", "doors"), ("lamp", "lamps"), ("box", "boxes"),
    ("bottle", "bottles"), ("cup", "cups"), ("plate", "plates"), ("knife", "knives"),
    ("letter", "letters"), ("picture", "pictures"), ("phone", "phones"), ("camera", "cameras"),
    ("computer", "computers"), ("machine", "machines"), ("engine", "engines"), ("train", "trains"),
    ("truck", "trucks"), ("boat", "boats"), ("ship", "ships"), ("bike", "bikes"),
    ("plane", "planes"), ("tree", "trees"), ("flower", "flowers"), ("leaf", "leaves"),
    ("stone", "stones"), ("apple", "apples"), ("egg", "eggs"), ("cake", "cakes"), ("shoe", "shoes"),
    ("shirt", "shirts"), ("hat", "hats"), ("coat", "coats"), ("bag", "bags"), ("ring", "rings"),
    ("watch", "watches"), ("clock", "clocks"), ("mirror", "mirrors"), ("painting", "paintings"),
    ("guitar", "guitars"), ("ball", "balls"), ("toy", "toys"), ("doll", "dolls"), ("pen", "pens"),
    ("paper", "papers"), ("map", "maps"), ("sign", "signs"), ("flag", "flags"), ("wheel", "wheels"),
    ("bench", "benches"), ("statue", "statues"), ("cow", "cows"), ("pig", "pigs"),
    ("duck", "ducks"), ("rabbit", "rabbits"), ("snake", "snakes"), ("mouse", "mice"),
    ("wolf", "wolves"), ("child", "children"), ("man", "men"), ("woman", "women"),
    ("baby", "babies"),
    ("singer", "singers"), ("dancer", "dancers"), ("writer", "writers"), ("farmer", "farmers"),
    ("soldier", "soldiers"), ("nurse", "nurses"), ("driver", "drivers"), ("pilot", "pilots"),
    ("artist", "artists"), ("king", "kings"),
)  # fmt: skip

# The attractors share no noun with the subjects: else a subject of one split would be read as an
# attractor in another.
THINGS = (
    ("house", "houses"), ("wall", "walls"), ("bridge", "bridges"), ("garden", "gardens"),
    ("building", "buildings"), ("fence", "fences"), ("gate", "gates"), ("tower", "towers"),
    ("shop", "shops"), ("farm", "farms"), ("hill", "hills"), ("rock", "rocks"), ("tent", "tents"),
    ("cabin", "cabins"), ("barn", "barns"), ("pond", "ponds"),
)  # fmt: skip

PEOPLE = (
    ("boy", "boys"), ("girl", "girls"), ("teacher", "teachers"), ("student", "students"),
    ("doctor", "doctors"), ("lawyer", "lawyers"), ("friend", "friends"), ("guest", "guests"),
    ("player", "players"), ("worker", "workers"), ("tourist", "tourists"), ("judge", "judges"),
    ("actor", "actors"), ("visitor", "visitors"), ("neighbor", "neighbors"), ("queen", "queens"),
)  # fmt: skip

# First names that common tokenizers hold as one token after a space.
NAMES = (
    "Mary", "John", "Tom", "Anna", "James", "Sarah", "David", "Emma", "Paul", "Laura",
    "Mark", "Alice", "Peter", "Jane", "Jack", "Lisa", "Mike", "Kate", "Adam", "Maria",
    "Dan", "Amy", "Steve", "Rachel", "Chris", "Helen", "Ben", "Susan", "Sam", "Julia",
    "Kevin", "Karen", "Robert", "Linda", "Simon", "Ruth", "Joe", "Sara", "George", "Rose",
)  # fmt: skip
