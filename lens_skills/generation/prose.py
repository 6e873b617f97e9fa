"""A text as its sentences, clauses and words, for rules that look for ways of writing."""

import re

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
