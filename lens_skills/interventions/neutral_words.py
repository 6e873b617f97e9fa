"""Neutral texts that break off before a word, and the log-probability of that word."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import Metric
from lens_skills.activations.metrics import Readout
from lens_skills.data import Example
from lens_skills.tasks.word_lists import neutral_texts


def _log_probability(readout: Readout, _: Any) -> Float[Tensor, " example"]:
    assert readout.answer is not None, "every text has its next word as answer"
    return readout.answer.log_probability


NEXT_WORD = Metric("log-probability of the next word", _log_probability, frozenset({"answer"}),
                   "nats")  # fmt: skip


def last_words() -> list[Example]:
    """The project's neutral texts without their last word, which is the answer.

    >>> last_words()[0].answer
    ' stones'
    """
    texts = []
    for number, text in enumerate(neutral_texts()):
        start, word = text.rstrip(" .!?").rsplit(" ", 1)
        texts.append(Example(f"text {number}", start, answer=f" {word}"))
    return texts


def next_words() -> tuple[list[Example], list[Example]]:
    """Places in the neutral texts to predict the next word, two in each; two halves of the texts.

    >>> [len(half) for half in next_words()]
    [60, 60]
    """
    halves: tuple[list[Example], list[Example]] = ([], [])
    for number, text in enumerate(neutral_texts()):
        words = text.rstrip(" .!?").split(" ")
        for end in (len(words) // 2, len(words) - 1):
            start = " ".join(words[:end])
            halves[number % 2].append(
                Example(f"text {number}/{end}", start, answer=f" {words[end]}",
                        group=f"text {number}")
            )  # fmt: skip
    return halves
