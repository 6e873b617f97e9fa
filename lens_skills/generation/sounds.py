"""How words sound where they begin and where they end, as far as spelling tells."""

import re

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
