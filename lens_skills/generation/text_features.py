"""A text as sentences, clauses, words and sounds, for the rules that grade it.

`own_words` and `copied` tell what a text says itself from what it copies from its prompt; sounds
are told as far as spelling tells them.
"""

import re
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")

# Words that carry grammar and no matter.
SMALL = frozenset(
    re.findall(
        r"\w+",
        "a an the and or but nor so yet if then than as of in on at to by for from with into onto "
        "over under up down out off about after before is are was were be been being am do does "
        "did done have has had having will would can could shall should may might must not no it "
        "its he she they them his her hers their theirs this that these those there here we us our "
        "you your i me my who whom whose which what when where why how all any each some just very "
        "too also",
    )
)

_ABBREVIATION = re.compile(r"\b(Mr|Mrs|Ms|Dr|St|Prof|vs|etc|e\.g|i\.e|No)\.", re.IGNORECASE)

# An opening quote has no space behind it and a closing one none before: quotes in quotes, which
# models are fond of, are then not read inside out.
_QUOTED = re.compile(r"(?<!\w)\"(?=\S)([^\"\n]*[^\"\s])\"(?!\w)")


def plain(text: str) -> str:
    """The text with straight quotes and plain dashes.

    >>> plain("It’s “new” — here")
    'It\\'s "new" -- here'
    """
    text = re.sub(r"[‘’]", "'", text)  # noqa: RUF001 (curly quotes are what is replaced)
    return re.sub(r"\s*—\s*|\s+–\s+", " -- ", re.sub(r"[“”]", '"', text))


def sentences(text: str) -> list[str]:
    """The text's sentences, their marks left on; a line end ends one too.

    >>> sentences("Dr. Bee flew. Did it? Yes!")
    ['Dr. Bee flew.', 'Did it?', 'Yes!']
    """
    marked = _ABBREVIATION.sub(r"\1\0", plain(text))
    parts = re.split(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]*[A-Z0-9])|\n+", marked)
    return [part.replace("\0", ".").strip() for part in parts if part and part.strip(" .")]


def clauses(text: str) -> list[str]:
    """The text's sentences, cut at commas, semicolons, colons and dashes too.

    >>> clauses("It came, it saw; it left.")
    ['It came', 'it saw', 'it left.']
    """
    found = [part for sentence in sentences(text) for part in re.split(r"[,;:]\s|--", sentence)]
    return [part.strip() for part in found if part.strip()]


def words(text: str) -> list[str]:
    """The words in lower case, apostrophes inside them kept.

    >>> words("Don't stop, Ann-Marie!")
    ["don't", 'stop', 'ann', 'marie']
    """
    return re.findall(r"[a-z]+(?:'[a-z]+)?", plain(text).lower())


def content(text: str) -> list[str]:
    """The words that carry matter, cut to a stem.

    >>> content("The bells are ringing")
    ['bell', 'ring']
    """
    kept = [word.split("'")[0] for word in words(text) if word not in SMALL]
    return [re.sub(r"(?<=\w{3})(ing|ed|es|s|e)$", "", word) for word in kept]


def runs(items: Sequence[Item], n: int) -> list[tuple[Item, ...]]:
    """Every n items that stand next to one another.

    >>> runs("abcd", 3)
    [('a', 'b', 'c'), ('b', 'c', 'd')]
    """
    return list(zip(*(items[start:] for start in range(n)), strict=False))


def unquoted(text: str) -> str:
    """The text without what stands in double quotes.

    >>> unquoted('He said "you go" and left.')
    'He said  and left.'
    """
    return _QUOTED.sub("", plain(text))


def quotations(text: str) -> list[str]:
    """What stands in double quotes.

    >>> quotations('“Go,” she said.')
    ['Go,']
    """
    return _QUOTED.findall(plain(text))


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
    given = set(runs(there, COPIED_WORDS))
    cut = [False] * len(found)
    for start, run in enumerate(runs(found, COPIED_WORDS)):
        if run in given:
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
    found, there = runs(words(text), 4), set(runs(words(prompt), 4))
    return sum(run in there for run in found) / len(found) if found else 0.0


# The sound a word begins with, where its first letter does not tell; "" for a vowel.
_SOUNDS = {
    "kn": "n", "wr": "r", "ph": "f", "gn": "n", "ps": "s", "who": "h", "wh": "w", "hour": "",
    "hon": "", "heir": "", "sh": "sh", "ch": "ch", "th": "th", "ce": "s", "ci": "s", "cy": "s",
    "c": "k", "q": "k", "uni": "", "eu": "",
}  # fmt: skip

# Endings that grammar makes alike, and -ough, which is said in many ways.
_DULL = r"(ing|ed|ly|ions?|ness|ment|ity|ers?|es|ough|ous|able|ance|ence|al|ic|ive|y)$"

# Endings that are spelled apart and said alike, in nearly all words.
_ALIKE = {
    spelling: group.split()[0]
    for group in (
        "ore oor oar", "ight ite", "ane ain", "ale ail", "eet eat ete", "eel eal", "een ean",
        "eam eem", "are air", "ew ue oo", "ee ea", "ote oat", "oke oak", "ode oad", "ole oal",
        "ade aid",
    )
    for spelling in group.split()
}  # fmt: skip

# Words of everyday that are not said as they are spelled, under an ending they rhyme with.
_SAID = {
    word: ending
    for ending, some in {
        "uv": "love above glove dove shove of", "ove": "stove drove grove cove wove",
        "oov": "move prove remove improve", "um": "come some become from", "ome": "home dome",
        "un": "one done none won son ton", "ed": "said bread head dead dread thread",
        "are": "bear wear tear pear swear there where their prayer",
        "ew": "you do to two who through shoe into", "ee": "me be he she we key",
        "ord": "word", "ood": "food mood",
        "ud": "blood flood", "uud": "good stood wood could would should",
        "oh": "go so no ago know snow flow blow grow show slow low throw though although",
        "ow": "now how cow brow bow allow", "ay": "they grey weigh",
        "igh": "high sky fly by my why cry dry try eye lie die tie goodbye sigh",
    }.items()
    for word in some.split()
}  # fmt: skip


def onset(word: str) -> str:
    """The consonant sound a word begins with, "" for a vowel.

    >>> onset("knight"), onset("phone"), onset("hour")
    ('n', 'f', '')
    """
    for length in (4, 3, 2, 1):
        if word[:length] in _SOUNDS:
            return _SOUNDS[word[:length]]
    return "" if word[0] in "aeiou" else word[0]


def rhymes(first: str, second: str) -> bool:
    """Different words alike from their last vowels on, endings that grammar makes aside.

    >>> rhymes("door", "more"), rhymes("night", "night"), rhymes("running", "singing")
    (True, False, False)
    >>> rhymes("love", "move"), rhymes("love", "above")
    (False, True)
    """
    if first.endswith(second) or second.endswith(first):
        return False
    if all(len(word) > 4 and re.search(_DULL, word) for word in (first, second)):
        return False
    tails = [re.search(r"[aeiouy]+[^aeiouy]*(?:e?s?)$", word) for word in (first, second)]
    one, other = (
        _SAID.get(word, _ALIKE.get(tail[0], tail[0]) if tail else "")
        for word, tail in zip((first, second), tails, strict=True)
    )
    return one == other and len(one) >= 2
