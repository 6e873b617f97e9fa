"""`word_features`: what can be said of any text: length, words, and the kinds of its characters."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lens_skills.example import Example
from lens_skills.explanation.feature import Feature, flag

FAMILY = "text"
_MOST_WORDS = 16  # so many single words are looked for
_MOST_ENDINGS = 24  # and so many different last words
_RARE = 0.04  # a word of fewer prompts is no feature of the task


def word_features(examples: Sequence[Example]) -> list[Feature]:
    """Length, the last word, single words, digits, capitals and punctuation; on the surface.

    The words looked for are those whose presence varies most over the examples.
    """
    found = [
        _number("characters of the prompt", lambda e: len(e.prompt)),
        _number("words of the prompt", lambda e: len(e.prompt.split())),
        _number("digits in the prompt", lambda e: sum(c.isdigit() for c in e.prompt)),
        _number("capitals in the prompt", lambda e: sum(c.isupper() for c in e.prompt)),
        _number(
            "punctuation marks in the prompt",
            lambda e: sum(c in string.punctuation for c in e.prompt),
        ),
        Feature("kind of the last character", "category", _last_kind, True, FAMILY),
    ]
    endings = {_last(example) for example in examples}
    if len(endings) <= _MOST_ENDINGS:
        found.append(Feature("the last word", "category", _last, True, FAMILY))
    counts = Counter(word for example in examples for word in set(_words(example)))
    shares = {word: count / len(examples) for word, count in counts.items()}
    varied = sorted(
        (word for word, share in shares.items() if _RARE <= share <= 1 - _RARE),
        key=lambda word: (abs(shares[word] - 0.5), word),
    )
    return found + [_says(word) for word in varied[:_MOST_WORDS]]


def _says(word: str) -> Feature:
    return flag(f"says {word!r}", lambda e: word in _words(e), family=FAMILY)


def _number(name: str, read: Any) -> Feature:
    return Feature(name, "number", read, True, FAMILY)


def _words(example: Any) -> list[str]:
    return re.findall(r"[\w'’-]+", example.prompt.lower())


def _last(example: Any) -> str:
    words = _words(example)
    return words[-1] if words else ""


def _last_kind(example: Any) -> str:
    last = example.prompt[-1:]
    if last.isspace():
        return "space"
    if last.isdigit():
        return "digit"
    return "letter" if last.isalpha() else "punctuation"
