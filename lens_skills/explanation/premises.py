"""`premise_features`: what a shallow reader sees in a premise and a hypothesis."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from lens_skills.example import Example
from lens_skills.explanation.feature import Feature, flag

_PAIR = re.compile(r"Premise: (.*)\n+Hypothesis: (.*)\n*")
_NEGATIONS = frozenset({"no", "not", "never", "nobody", "none", "neither", "nor", "without"})
FAMILY = "premises"

Reading = Callable[[list[str], list[str]], Any]


def premise_features(examples: Sequence[Example]) -> list[Feature]:
    """Overlap, order, length and negation; none where an example shows no premise and hypothesis.

    Read from the prompt's last "Premise: …" and "Hypothesis: …". All are on the surface.
    """
    if not all(_PAIR.search(example.prompt) for example in examples):
        return []

    def of(name: str, read: Reading) -> Feature:
        return flag(name, lambda e: read(*_words(e)), family=FAMILY)

    def number(name: str, read: Reading) -> Feature:
        return Feature(name, "number", lambda e: float(read(*_words(e))), True, FAMILY)

    return [
        of("all words of the hypothesis are in the premise", lambda p, h: set(h) <= set(p)),
        of("the hypothesis stands in the premise as it is", _stands_in),
        of("the hypothesis keeps the order of the premise", _in_order),
        of("the premise ends like the hypothesis", lambda p, h: p[-len(h) :] == h),
        of("both begin with the same two words", lambda p, h: p[:2] == h[:2]),
        of("the premise has a negation", lambda p, h: bool(set(p) & _NEGATIONS)),
        of("the hypothesis has a negation", lambda p, h: bool(set(h) & _NEGATIONS)),
        number("words of the premise", lambda p, h: len(p)),
        number("words of the hypothesis", lambda p, h: len(h)),
        number("words that only the premise has", lambda p, h: len(set(p) - set(h))),
        number("share of the hypothesis in the premise", lambda p, h: _share(h, p)),
    ]


def _words(example: Any) -> tuple[list[str], list[str]]:
    premise, hypothesis = _PAIR.findall(example.prompt)[-1]
    return _split(premise), _split(hypothesis)


def _split(text: str) -> list[str]:
    return re.findall(r"[\w'’-]+", text.lower())


def _stands_in(premise: list[str], hypothesis: list[str]) -> bool:
    return f" {' '.join(hypothesis)} " in f" {' '.join(premise)} "


def _in_order(premise: list[str], hypothesis: list[str]) -> bool:
    """Whether the hypothesis is the premise with words left out."""
    rest = iter(premise)
    return all(word in rest for word in hypothesis)


def _share(words: list[str], others: list[str]) -> float:
    return sum(word in others for word in words) / max(len(words), 1)
