"""`detectors`: twenty ways of writing, each found in a text by a rule of its own.

A rule sees form, not meaning: it says whether a text has what the skill's definition names, and
neither whether it is done well nor what the text is about. Metaphor, irony, humour and fallacies
have no such form; leave those to people or to a judge.
"""

import re
from collections.abc import Callable
from itertools import pairwise

from lens_skills.example import Example
from lens_skills.generation.copying import own_words
from lens_skills.generation.phrases import PHRASES, turns
from lens_skills.generation.prose import (
    SMALL,
    clauses,
    content,
    plain,
    quotations,
    sentences,
    unquoted,
    words,
)
from lens_skills.generation.sounds import onset, rhymes

_ARTICLES = {"the", "a", "an"}
_BE = {"is", "are", "was", "were"}
_RELATIVE = {"which", "who", "whom", "whose", "where", "when"}
_PRONOUNS = {"i", "he", "she", "it", "they", "we", "you", "this", "that", "there"}
_RANKS = (
    r"(first|firstly|first of all|to begin|to start|start by|begin by)",
    r"(then|next|second|secondly|after that|afterwards)",
    r"(finally|lastly|at last|in the end|third|thirdly)",
)


def _finds(pattern: str, text: str, *, case: bool = False) -> bool:
    return re.search(pattern, plain(text), 0 if case else re.IGNORECASE) is not None


def alliteration(text: str) -> bool:
    """Three different words of matter in a row that begin with one consonant sound."""
    for clause in clauses(text):
        some = [word for word in words(clause) if word not in SMALL and len(word) > 2]
        for row in zip(some, some[1:], some[2:], strict=False):
            sounds, stems = {onset(word) for word in row}, {content(word)[0] for word in row}
            if len(stems) == 3 and len(sounds) == 1 and sounds != {""}:
                return True
    return False


def anaphora(text: str) -> bool:
    """Neighbouring sentences or clauses that begin with the same two words, or three with one."""
    for parts in (sentences(text), clauses(text)):
        starts = [found[:2] for part in parts if len(found := words(part)) > 2]
        if any(a == b for a, b in pairwise(starts)):
            return True
        triples = zip(starts, starts[1:], starts[2:], strict=False)
        if any(a[0] == b[0] == c[0] and a[0] not in _ARTICLES for a, b, c in triples):
            return True
    return False


def rhetorical_question(text: str) -> bool:
    """A question whose form expects no answer: who wouldn't …?, what's the point …?, isn't it?"""
    asked = [s for s in sentences(text) if s.rstrip("\"')").endswith("?")]
    return any(turns("rhetorical question", question) for question in asked)


def simile(text: str) -> bool:
    """Like a …, or as … as …, where neither is a verb or a turn of speech."""
    usual = (
        r"well|soon|long|far|much|many|few|little|often|early|late|possible|such|same|not|a|an|the"
    )
    if _finds(rf"\bas (?!(?:{usual})\b)\w+(?: and \w+)? as (?!possible|usual|ever|\d)", text):
        return True
    liked = (
        r"\b(?:I|you|we|they|people|to|would|will|do|don't|not|really|also|always|who|things?|"
        r"something|anything|feel|look) like\b"
    )
    if _finds(r"\b(look|looks|looked|feel|feels|felt|sounds|sounded) like an? \w+", text):
        return True
    left = re.sub(liked, " ", plain(text), flags=re.IGNORECASE)
    odd = r"that|this|it|to|any|other|many|most|no|those|these|so|what"
    if _finds(rf"\b(is|are|was|were|be|been|being) like (?!(?:{odd})\b)[a-z]\w+", left):
        return True
    return _finds(r"\blike (a|an|the|tiny|little|two) (?!(lot|one)\b)\w+", left)


def modus_ponens(text: str) -> bool:
    """If P then Q; P said again; therefore …: the condition comes back before the conclusion.

    Not where the conclusion says P: Q, therefore P, is the fallacy of that form.
    """
    parts = sentences(text)
    for place, sentence in enumerate(parts):
        opening = re.search(r"\bif ([^,;]+?)(?:, | then )(.*)", sentence, re.IGNORECASE)
        condition = set(content(opening[1])) if opening else set()
        follows = set(content(opening[2])) if opening else set()
        so_far = ""
        for later in parts[place + 1 :]:
            end = re.search(r"\b(therefore|hence|thus|consequently|so|it follows)\b", later, re.I)
            again = condition & set(content(so_far + " " + later[: end.start() if end else None]))
            if end and condition and len(again) * 2 >= len(condition):
                said = set(content(later[end.end() :]))
                return len(said & (condition - follows)) <= len(said & (follows - condition))
            so_far += " " + later
    return False


def tricolon(text: str) -> bool:
    """A list of three or more words or short phrases: a, b and c."""
    item = r"[\w'-]+(?: [\w'-]+){0,3}"
    openers = {"on", "in", "at", "when", "if", "after", "before", "by", "however", "yes", "no"}
    for sentence in sentences(text):
        for found in re.finditer(rf"({item}), ({item}),? (?:and|or) ({item})", sentence):
            items = [words(part) for part in found.groups()]
            head = sentence[: found.end(1)]
            # What opens a sentence before a comma is no item, and neither is a clause after "and".
            opens = "," not in head and bool(openers & set(words(head)[:1]))
            inner = {items[1][0], items[2][0]} if all(items) else _PRONOUNS
            clause = bool(_BE & set(items[1])) and not _BE & set(items[0])
            if not opens and not clause and not inner & (_PRONOUNS | _RELATIVE):
                return True
    return False


def dialogue(text: str) -> bool:
    """Two words or more in double quotes that end in a mark, or stand by a verb of saying.

    A line that is one quotation and nothing else is not enough: models put whole texts in quotes.
    """
    said = (
        r"\b(said|says|asked|asks|replied|cried|shouted|whispered|answered|told|exclaimed|warned|"
        r"added|explained|muttered|yelled)\b"
    )
    single = r"(?<!\w)'[A-Z]([^'\n]|(?<=\w)'(?=\w))+[.,!?]'(?!\w)"
    marked = 0
    for line in plain(text).splitlines():
        spoken = [part for part in quotations(line) if len(words(part)) >= 2]
        ends = [part for part in spoken if part.rstrip()[-1] in ".,!?"]
        marked += len(ends)
        told = words(unquoted(line))
        spoken += re.findall(single, line)
        if (ends and told) or (spoken and _finds(said, unquoted(line))):
            return True
    return marked >= 2


def exclamation(text: str) -> bool:
    """An exclamation mark after a word, where a sentence ends."""
    return _finds(r"[a-z]['\"]?!+['\")]*(\s+['\"(]*[A-Z]|\s*$|['\"] )", text, case=True)


def rhyme(text: str) -> bool:
    """Two lines or clauses, neighbours or every other one, that end in the same sound."""
    for parts in (sentences(text), clauses(text)):
        ends = [found[-1] for part in parts if len(found := words(part)) >= 2]
        near = [*pairwise(ends), *zip(ends, ends[2:], strict=False)]
        if any(rhymes(first, second) for first, second in near):
            return True
    return False


def antithesis(text: str) -> bool:
    """Not … but …, or it isn't …, it's …: a thing denied and its opposite put in its place."""
    small = r"to|for|with|by|in|on|from|of|about|because"
    if _finds(
        rf"(\bnot|n't)\b[^.;!?]*?\b({small})\b [^.;!?]{{1,40}}?,? but (?:rather )?\2\b", text
    ):
        return True
    verb = r"(do|does|did|can|could|will|would|should|have|has|had|may|might)"
    text = re.sub(rf"\b{verb} not\b", " ", plain(text), flags=re.IGNORECASE)
    new = rf"(?!({'|'.join(sorted(_PRONOUNS))}|if|when|{verb})\b)"
    # "Not only" and "not just" deny nothing.
    text = re.sub(r"(\bnot|n't) (only|just|merely|simply)\b", " ", text, flags=re.IGNORECASE)
    nots = r"(?:\bnot|\b(?:is|are|was|were)n't)"
    return _finds(rf"{nots} [^.;!?]{{2,60}}?,? but (?:rather |also )?{new}\w", text) or _finds(
        r"\b(isn't|aren't|wasn't|is not|are not) [^.;!?,]{2,40}[,;.] (it|they|he|she)"
        r"('s|'re| is| are| was) ",
        text,
    )


def repetition(text: str) -> bool:
    """A word at once again: never, never; on and on; and not a slip (had had, that that)."""
    again = r"\b([a-z]{2,})(?:, | -- |! |\. |-| | and )\1\b"
    slips = {"had", "that", "is", "the", "to", "of", "in", "and", "bye", "an", "so"}
    found = re.finditer(again, plain(text), re.IGNORECASE)
    # A name may be made of one word twice.
    named = r"([A-Z]\w+)-\1"
    return any(m[1].lower() not in slips and not re.match(named, m[0]) for m in found)


def parenthesis(text: str) -> bool:
    """Two words or more in brackets, or between two dashes, within a sentence."""
    asides = re.findall(r"(?<=\s)\(([^()\n]+)\)| --? ([^\n]+?) --? ", plain(text))
    return any(len(words(inside)) >= 2 for pair in asides for inside in pair)


def chronological_order(text: str) -> bool:
    """Two markers of different ranks (first, then, finally), each where a clause begins."""
    starts = [re.sub(r"^(and|but) ", "", part.lower()) for part in clauses(text)]
    other = r"(?! (again|and foremost|class|prize|place|of its kind|to)\b)"
    hits = [any(re.match(rf"{form}\b{other}", part) for part in starts) for form in _RANKS]
    return sum(hits) >= 2


def direct_address(text: str) -> bool:
    """You or your, outside quoted speech."""
    return turns("direct address", unquoted(text))


def _by_phrase(skill: str) -> Callable[[str], bool]:
    return lambda text: turns(skill, text)


RULES: dict[str, Callable[[str], bool]] = {skill: _by_phrase(skill) for skill in PHRASES} | {
    rule.__name__.replace("_", " "): rule
    for rule in (
        alliteration, anaphora, rhetorical_question, simile, modus_ponens, tricolon, dialogue,
        exclamation, rhyme, antithesis, repetition, parenthesis, chronological_order,
        direct_address,
    )
}  # fmt: skip


def detectors(text: str, example: Example) -> dict[str, float]:
    """1 or 0 for each of the twenty skills of `tasks.skill_mix`, asked for or not.

    What the text copies from its prompt does not count (`own_words`): a prompt of `skill_mix`
    holds an example of every skill it asks for, which small models like to repeat.

    >>> from lens_skills import Example
    >>> found = detectors("Bees buzz, buzz, buzz!", Example(id="a", prompt="Write."))
    >>> sorted(skill for skill, shown in found.items() if shown)
    ['exclamation', 'onomatopoeia', 'repetition']
    """
    own = own_words(text, example.prompt)
    return {skill: float(rule(own)) for skill, rule in RULES.items()}
