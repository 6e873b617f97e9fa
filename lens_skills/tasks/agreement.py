"""`agreement`: does the verb agree with its subject, whatever noun stands between them?"""

import random
from collections.abc import Sequence

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.tasks.task import Task, Texts, check_number
from lens_skills.tasks.word_lists import PEOPLE, SUBJECTS, THINGS

VERBS = {"be": (" is", " are"), "was": (" was", " were"), "have": (" has", " have")}
DISTRACTORS = ("none", "same", "different")

# Per template: the prompt with an attractor, the prompt without, and the words that fill their
# slots. Both have the same number of words, so length tells nothing about the distractor; all
# inner verbs are past tense and all other words have no number, so only the subject (and the
# attractor) says singular or plural.
TEMPLATES = {
    "preposition": (
        "The {subject} {fill} the {attractor}",
        "The {subject} {fill} over there",
        (("near", "right"), ("behind", "somewhere"), ("beside", "way"), ("by", "just")),
    ),
    "subject relative": (
        "The {subject} that {fill} the {attractor}",
        "The {subject} that {fill} from there",
        (
            ("touched", "came"),
            ("reached", "fell"),
            ("faced", "disappeared"),
            ("passed", "returned"),
        ),
    ),
    "object relative": (
        "The {subject} that the {attractor} {fill}",
        "The {subject} that you {fill} yesterday",
        (("saw", "saw"), ("found", "found"), ("liked", "liked"), ("remembered", "remembered")),
    ),
    "lead-in": (
        "{fill} the {subject} next to the {attractor}",
        "{fill} the {subject} from right over there",
        (("Today", "Today"), ("Perhaps", "Perhaps"), ("Clearly", "Clearly"), ("Now", "Now")),
    ),
}

FILLS = 4

# Other wordings: the filling that many further on, what stands before the sentence, and before
# the subject. None of these words has a number.
WORDINGS = {
    "words": (1, "", ""),
    "other words": (2, "", ""),
    "adverb": (0, "Apparently, ", ""),
    "adjective": (0, "", "other "),
}
UNITS_BY_DEFAULT = 2 * len(SUBJECTS)


def agreement(
    n: int | None = None,
    seed: int = 0,
    *,
    distractors: Sequence[str] = DISTRACTORS,
    verbs: Sequence[str] = tuple(VERBS),
) -> Task:
    """A Task of subject-verb number agreement: "The key near the cabins" -> " is", not " are".

    Label ``plural`` (0/1, of the subject). Covariates: ``distractor``, ``attractor_plural`` (0
    where there is no attractor), ``attractor``, ``template``, ``verb``, ``noun``, ``n_words``.
    The corrupted twin is the same prompt with the subject in the other number; it is itself in
    the task, and asks for the foil. The group is the noun; the kind is the subject's word form,
    so a control task gives "key" and "keys" each a random label. `Task.paraphrases`: other words
    in the same template (twice), an adverb before it, an adjective. Prompts end before the verb,
    without a space; answers begin with one, because tokenizers join a space to the word after it.

    Args:
        n: Number of examples; None takes two per noun, number and kind of distractor (960).
        seed: Which nouns meet which templates, verbs and attractors.
        distractors: Any of "none", "same", "different": the number of the noun in between.
        verbs: Any of "be" (is/are), "was" (was/were), "have" (has/have).

    Raises:
        LensSkillsError: unknown distractor or verb, or more examples asked for than there are.

    >>> task = agreement()
    >>> len(task), len(task.groups), task.column("plural").mean()
    (960, 80, np.float64(0.5))
    >>> one = task.where(distractor="different", noun="key")[0]
    >>> one.corrupted != one.prompt, {one.answer, one.foil} in [{" is", " are"}, {" was", " were"},
    ...                                                         {" has", " have"}]
    (True, True)
    """
    distractors = _known("distractor", distractors, DISTRACTORS)
    verbs = _known("verb", verbs, tuple(VERBS))
    per_unit = 2 * len(distractors)
    most = len(SUBJECTS) * len(TEMPLATES) * FILLS * per_unit
    n = UNITS_BY_DEFAULT * per_unit if n is None else n
    check_number("agreement", n, most, f"examples with distractors {distractors}")
    generator = random.Random(seed)
    subjects = generator.sample(SUBJECTS, len(SUBJECTS))
    examples: list[Example] = []
    wordings: dict[str, dict[str, Texts]] = {name: {} for name in WORDINGS}
    for unit in range(-(-n // per_unit)):
        examples += _unit(unit, subjects, distractors, verbs, generator, wordings)
    return Task("agreement", examples[:n], wordings=wordings)


def _unit(
    unit: int,
    subjects: Sequence[tuple[str, str]],
    distractors: Sequence[str],
    verbs: Sequence[str],
    generator: random.Random,
    wordings: dict[str, dict[str, Texts]],
) -> list[Example]:
    """Both numbers of one noun with every distractor, all else the same: twins of each other."""
    turn, place = divmod(unit, len(subjects))
    subject = subjects[place]
    # Each noun meets a new template every turn and a new filling every round of templates: no
    # prompt comes twice, and templates and verbs are spread evenly over the nouns.
    template = list(TEMPLATES)[(place + turn) % len(TEMPLATES)]
    fill = (place + turn // len(TEMPLATES)) % FILLS
    verb = verbs[(place // len(TEMPLATES) + turn) % len(verbs)]
    attractor = generator.choice(PEOPLE if template == "object relative" else THINGS)
    with_attractor, without, fills = TEMPLATES[template]

    def prompt(
        plural: int, attractor_plural: int | None, on: int = 0, before: str = "", other: str = ""
    ) -> str:
        noun, words = other + subject[plural], fills[(fill + on) % FILLS]
        if attractor_plural is None:
            text = without.format(subject=noun, fill=words[1])
        else:
            text = with_attractor.format(
                subject=noun, fill=words[0], attractor=attractor[attractor_plural]
            )
        return before + text[0].lower() + text[1:] if before else text

    examples = []
    for distractor in distractors:
        for plural in (0, 1):
            number = {"none": None, "same": plural, "different": 1 - plural}[distractor]
            text, name = prompt(plural, number), f"{subject[plural]}-{turn}-{distractor}"
            for wording, how in WORDINGS.items():
                twins = (prompt(plural, number, *how), prompt(1 - plural, number, *how))
                wordings[wording][name] = twins
            examples.append(
                Example(
                    id=name,
                    prompt=text,
                    answer=VERBS[verb][plural],
                    foil=VERBS[verb][1 - plural],
                    corrupted=prompt(1 - plural, number),
                    labels={"plural": plural},
                    covariates={
                        "distractor": distractor,
                        "attractor_plural": number or 0,
                        "attractor": "" if number is None else attractor[0],
                        "template": template,
                        "verb": verb,
                        "noun": subject[0],
                        "n_words": len(text.split()),
                    },
                    group=subject[0],
                    kind=subject[plural],
                )
            )
    return examples


def _known(what: str, asked: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """The choices asked for, in their usual order, or an error that lists the known ones."""
    asked = (asked,) if isinstance(asked, str) else tuple(asked)
    unknown = [choice for choice in asked if choice not in known]
    if unknown or not asked:
        which = repr(unknown[0]) if unknown else "given"
        raise LensSkillsError(f"agreement: no {what} {which}. Choose from {', '.join(known)}.")
    return tuple(choice for choice in known if choice in asked)
