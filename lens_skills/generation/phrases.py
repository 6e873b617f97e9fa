"""Turns of phrase by which some skills are known, as patterns over a text."""

import re

from lens_skills.generation.prose import plain

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
