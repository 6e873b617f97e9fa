"""What a text copies from the prompt it was written for, and what it says itself."""

import re

from lens_skills.generation.prose import plain, words

COPIED_WORDS = 5
"""From how many words on a run that stands in the prompt too counts as copied from it."""
SENTENCE_WORDS = 3
"""The same where the run is a whole sentence there and here."""
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_PART = re.compile(r"[^.!?:\n]+[.!?:]*")
_OPENS, _CLOSES = "\"'([", "\"'.,;:!?)]"


def own_words(text: str, prompt: str) -> str:
    """The text without what it copies from its prompt.

    Cut out are runs of five words or more that stand in the prompt in the same order, whatever
    their case and the marks between them, and sentences of three words or more that the prompt
    has as sentences. Shorter runs are kept: English repeats them by itself. Each cut ends a line,
    so that what stood before and after it is not read as one sentence.

    >>> own_words("The bees buzz and the gate creaks! Wool is warm.", "The bees buzz and the gate")
    '\\ncreaks! Wool is warm.'
    """
    whole = plain(text)
    spans = [match.span() for match in _WORD.finditer(whole)]
    found, there = _tokens(whole), _tokens(plain(prompt))
    runs = _runs(there)
    cut = [False] * len(found)
    for start, run in enumerate(zip(*(found[i:] for i in range(COPIED_WORDS)), strict=False)):
        if run in runs:
            cut[start : start + COPIED_WORDS] = [True] * COPIED_WORDS
    said = {tuple(_tokens(part)) for part in _PART.findall(plain(prompt))}
    for part in _PART.finditer(whole):
        its = [place for place, (begin, _) in enumerate(spans) if begin in range(*part.span())]
        if len(its) >= SENTENCE_WORDS and tuple(found[place] for place in its) in said:
            for place in its:
                cut[place] = True
    return _without(whole, spans, cut)


def _tokens(text: str) -> list[str]:
    return [match.lower() for match in _WORD.findall(text)]


def _runs(there: list[str]) -> set[tuple[str, ...]]:
    return set(zip(*(there[i:] for i in range(COPIED_WORDS)), strict=False))


def _without(text: str, spans: list[tuple[int, int]], cut: list[bool]) -> str:
    """The text without the words that are cut, and the marks that belong to them."""
    kept, at, place = [], 0, 0
    while place < len(spans):
        if not cut[place]:
            place += 1
            continue
        last = place
        while last + 1 < len(spans) and cut[last + 1]:
            last += 1
        begin, end = spans[place][0], spans[last][1]
        while begin > at and text[begin - 1] in _OPENS:
            begin -= 1
        while end < len(text) and (text[end] in _CLOSES or text[end].isspace()):
            end += 1
        kept += [text[at:begin], "\n"]
        at, place = end, last + 1
    return "".join([*kept, text[at:]])


def copied(text: str, prompt: str) -> float:
    """Share of the text's runs of four words that stand in the prompt (0 to 1).

    >>> copied("The bees buzz and the gate creaks.", "Example: The bees buzz and the gate creaks.")
    1.0
    """

    def runs(of: str) -> list[tuple[str, ...]]:
        some = words(of)
        return list(zip(some, some[1:], some[2:], some[3:], strict=False))

    found, there = runs(text), set(runs(prompt))
    return sum(run in there for run in found) / len(found) if found else 0.0
