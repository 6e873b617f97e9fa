"""`detectors`: twenty ways of writing, each found in a text by a rule of its own.

A rule sees form, not meaning: it says whether a text has what the skill's definition names, and
neither whether it is done well nor what the text is about. Metaphor, irony, humour and fallacies
have no such form; leave those to people or to a language model (`judge`).
"""

import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from lens_skills.data import Example
from lens_skills.generation.text_features import (
    SMALL,
    clauses,
    content,
    onset,
    own_words,
    plain,
    quotations,
    rhymes,
    runs,
    sentences,
    unquoted,
    words,
)

NUMBER = (
    r"(?:\d[\d,.]*|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|"
    r"forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million)"
)

_THINGS = r"(?:times|years|reasons|miles|lifetimes|suns)"

_WORLD = r"in the (?:whole |entire )?(?:world|universe|galaxy)"

_SHARE = (
    r"half|two[ -]thirds|a third|a quarter|three[ -]quarters|most|the majority|one[ -]third|"
    r"one[ -]quarter|one[ -]half"
)

_PEOPLE = r"people|adults|children|americans|households|men|women|students"

_EXPERTS = (
    r"experts?|scientists?|researchers?|doctors?|historians?|professors?|engineers?|scholars?|"
    r"studies|a study|research|surveys?|a survey|\w+ (?:university|institute|association|society|"
    r"organi[sz]ation)"
)

_SAY = (
    r"agree|says?|said|shows?|suggests?|recommends?|believes?|finds?|found|confirms?|argues?|"
    r"warns?|reports?|claims?|proves?|(?:has|have) (?:shown|found|proved|proven)|notes?|"
    r"points? out|stress(?:es)?"
)


def _any(*forms: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{form})" for form in forms), re.IGNORECASE)


PHRASES: dict[str, re.Pattern[str]] = {
    "hyperbole": _any(
        rf"\b(?:a|ten|a hundred|a thousand) (?:million|thousand|billion) {_THINGS}\b(?! old| ago)",
        rf"\b(?:a zillion|a million and one|millions and millions)\b|\ba hundred {_THINGS} over",
        r"\b(?:weigh(?:s|ed)? a ton|cost(?:s|ed)? (?:me )?(?:a fortune|the earth))\b",
        r"\b(?:bored|starved|starving|scared|worked|frozen|freezing|tickled) to death\b",
        r"\bdying of (?:hunger|thirst|boredom)\b|\bcould eat a horse\b|\bto the moon and back\b",
        rf"\b(?:best|worst|greatest|most \w+|\w{{2,}}est)(?: \w+){{0,3}} (?:of all time|{_WORLD}|"
        r"in (?:human )?history|ever (?:made|seen|known|lived|built))\b",
        rf"\b(?:everyone|everybody|nobody|no one|nothing) {_WORLD}\b|\bnever in a million\b",
        r"\b(?:take|took|takes|last|lasts|lasted) forever\b|\bfor all eternity\b",
        r"\bforever and (?:a day|ever)\b|\benough to (?:wake the dead|move mountains)\b",
        r"\b(?:nearly|almost|practically) (?:died|dying) (?:of|from) \w+",
        r"\bsleep for a (?:week|month|year)\b|\binfinitely (?:more|better)\b",
    ),
    "statistical claim": _any(
        rf"\d ?%|\b{NUMBER}[ -]per ?cent\b",
        rf"\b{NUMBER} (?:out of|in) (?:every )?{NUMBER}\b(?! (?:hours|days|years|minutes|the)\b)",
        rf"\b(?:{_SHARE}) of (?:all|the (?:population|people|world|country)|(?:\w+ )?"
        rf"(?:{_PEOPLE}))\b",
        rf"\b(?:on average|average of|averages),? [^.]{{0,30}}?\b{NUMBER}\b",
    ),
    "comparison": _any(
        r"\b(?:more|less|fewer) (?!than)\w+(?: \w+)? than\b",
        rf"\b(?:more|less) than (?!{NUMBER}\b|a (?:dozen|few|hundred|thousand|million)|half|ever|"
        r"just|enough|that\b|meets)\w+",
        r"\b(?!(?:rather|other|later|another|whether|either|neither|ever|over|after|never) )"
        rf"(?:\w{{2,}}er|worse|farther) than (?!{NUMBER}\b|usual|expected|ever)",
    ),
    "onomatopoeia": _any(
        r"\b(?:buzz|hiss|whoosh|splash|swish|crunch|squelch)(?:es|ed|ing)?\b",
        r"\b(?:clang|clank|creak|chirp|quack|meow|clink|thump|murmur|moo|squeak|hum)(?:s|ed|ing)?\b",
        r"\b(?:sizzl|clatter|crackl|rustl|jingl|rumbl|gurgl)(?:e|es|s|ed|ing)?\b|\bcreaky\b",
        r"\b(?:thud|plop)(?:s|ded|ped)?\b|\bwhirr?(?:s|red|ring)?\b|\bwoof\b",
        r"\b(?:tick|clip|click|drip|pitter|ding)[- ](?:tock|clop|clack|drop|patter|dong)\b",
        r"\b(?:boom|bang|pop|crash|snap|zoom|crack)!",
    ),
    "causal explanation": _any(
        r"\bbecause\b|\b(?:due|owing|thanks) to\b|\bas a result\b|\b(?:that|this|which) is why\b",
        r"\bcaused by\b|\b(?:it|they|he|she|which|that|heat|rain|wind|\w+s) causes? (?!of\b)\w",
        r"\b(?:leads?|led) to (?!the (?:town|city|river|house|sea|door))|\bresult(?:s|ed) in\b",
        r"\bthe reason (?:is|was|for|why|that)\b",
        # Since with a clause behind it; not of time, which has been told by "has" or "ever".
        r"(?:^|[.!?]\s)(?:(?!\b(?:has|have|ever|long|years|time)\b|'ve\b)[^.!?])*?\bsince "
        r"(?:the|a|an|it|its|he|his|she|her|they|their|we|our|there|this|that)\b[^.,;!?]{0,40}?"
        r"\b(?:is|are|was|were|had|has|have|can|could|cannot|will|would|does|do|did)\b",
    ),
    "appeal to authority": _any(
        rf"\b(?:{_EXPERTS})(?: (?!to\b)\w+){{0,3}}? (?:{_SAY})\b",
        r"\baccording to (?!plan|the (?:rules|plan|weather|time|map)|size|need|taste|your|how)\w+",
    ),
    "direct address": _any(
        r"(?<!thank )\b(?:you|your|yours|yourself|you're|you'll|you've|dear reader)\b"
    ),
    "rhetorical question": _any(
        r"\bwho (?:knew|knows|cares|needs|wants|says|could|would|can|doesn't|wouldn't|hasn't|isn't)"
        r"\b",
        r"\b(?:isn't|aren't|wasn't|doesn't|don't|didn't|wouldn't|couldn't|shouldn't|haven't|can't) "
        r"(?:it|that|this|they|we|you|there|life|everyone|the)\b",
        r"\bwhat(?:'s| is) the (?:point|use|harm)\b",
        r"\bwhat (?:more|else|better) (?:could|can|do|way)\b",
        r"\bwhat (?:is|are|was|were|would) [^?]{2,60} (?:without|if not|compared to)\b",
        r"\bwhy (?:bother|not|on earth|would anyone|should anyone|else)\b|\bwhere would we be\b",
        r"\bhow (?:could|can) (?:anyone|anybody|one|we not|you not|it be)\b|\bis there anything\b",
        r"\b(?:have you ever|ever wondered|what could be)\b",
        r"\bcould (?:anything|anyone|anybody|there) be\b|\bdo (?:we|you|I) really (?:need|want)\b",
    ),
}


def turns(skill: str, text: str) -> bool:
    """Whether the text has one of the skill's turns of phrase.

    >>> turns("causal explanation", "It fell because of the wind.")
    True
    """
    return PHRASES[skill].search(plain(text)) is not None


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
        for row in runs(some, 3):
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
        if any(a[0] == b[0] == c[0] and a[0] not in _ARTICLES for a, b, c in runs(starts, 3)):
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


RULES: dict[str, Callable[[str], bool]] = {skill: partial(turns, skill) for skill in PHRASES} | {
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
