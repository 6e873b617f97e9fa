"""`nli`: our own premises and hypotheses, three shallow rules crossed with what is true.

First how any pairs of sentences become a Task that asks whether the one follows (`pose_pairs`,
which `hans` uses too), then the sixty sub-cases of our own and the words for their slots.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lens_skills.data import Example, Value, in_turns
from lens_skills.errors import LensSkillsError
from lens_skills.tasks.task import Task, Texts, by_digest, check_number
from lens_skills.tasks.templates import template_slots
from lens_skills.tasks.word_lists import NEGATIONS, words

HEURISTICS = ("lexical_overlap", "subsequence", "constituent")

# Ends in a word and not in a space: the answers begin with one, as tokenizers join it to the word.
WORDING = (
    "Premise: {premise}\nHypothesis: {hypothesis}\n"
    "Question: Does the hypothesis follow from the premise? Yes or No?\nAnswer:"
)
"""The default prompt; another may use the slots {premise}, {hypothesis} and {claim}."""

WORDINGS = {
    "claim": ("{premise}\nQuestion: Does it follow from this that {claim}? Yes or No?\nAnswer:"),
    "statement": (
        "Text: {premise}\nStatement: {hypothesis}\n"
        "Question: Given the text, is the statement certainly true? Yes or No?\nAnswer:"
    ),
    "conclude": (
        "Suppose that this is true: {premise}\nCan one conclude the following? {hypothesis}\n"
        "Yes or No?\nAnswer:"
    ),
}
"""Others that ask the same, for the same answers."""

# Entailed first. With their space one token each in the tokenizers of GPT-2, Llama and SmolLM2.
ANSWERS = (" Yes", " No")
"""The default verbaliser: the answer where the hypothesis follows, and where it does not."""

BETWEEN = "\n\n"
"""What stands between two demonstrations, and between the last one and the question."""

_SLOTS = ("premise", "hypothesis", "claim")


@dataclass(frozen=True)
class SentencePair:
    """A premise, a hypothesis, whether it follows, and which shallow rule says it does.

    ``columns`` are covariates of its own (a template, a set of nouns), any of which can make the
    groups finer.
    """

    id: str
    premise: str
    hypothesis: str
    entailed: bool
    heuristic: str
    subcase: str
    columns: Mapping[str, str] = field(default_factory=dict)


def pose_pairs(
    name: str,
    pairs: Sequence[SentencePair],
    *,
    demonstrations: Sequence[SentencePair] = (),
    wording: str = WORDING,
    answers: tuple[str, str] = ANSWERS,
    group: str = "subcase",
) -> Task:
    """A Task that asks of every pair whether the hypothesis follows from the premise.

    Labels: ``entailment`` (0/1); ``lexical_overlap``, ``subsequence``, ``constituent`` (0/1, one of
    them 1) and their name ``heuristic``. Covariates: ``subcase``, the pairs' own columns,
    ``n_words_premise``, ``n_words_hypothesis``, ``overlap`` (words in both over words in either)
    and ``negation`` (0/1). The foil is the other answer; the kind is the sub-case.
    `Task.paraphrases`: three other wordings of the usual question.

    Args:
        name: The task's.
        pairs: At least one.
        demonstrations: Answered pairs that stand before every question.
        wording: The prompt, with the slots {premise}, {hypothesis} and {claim}: the hypothesis
            without its full stop, and without its first capital.
        answers: What is said where the hypothesis follows, and where it does not.
        group: ``"subcase"``, or a column of the pairs that divides each sub-case further.

    Raises:
        LensSkillsError: A wording without its slots, answers that are equal or empty, an unknown
            column.

    >>> texts = "The cook slept soundly.", "The cook slept."
    >>> pair = SentencePair("a", *texts, True, "subsequence", "adverb")
    >>> task = pose_pairs("one", [pair], wording="{premise} Is it true that {claim}?")
    >>> task[0].prompt, task[0].answer, task[0].foil
    ('The cook slept soundly. Is it true that the cook slept?', ' Yes', ' No')
    """
    _check_wording(wording, answers)
    known = ("subcase", *(pairs[0].columns if pairs else ()))
    if group not in known:
        raise LensSkillsError(
            f"{name}(group={group!r}): group by one of {', '.join(map(repr, known))}."
        )

    def ask(pair: SentencePair, words: str) -> str:
        return words.format(
            premise=pair.premise, hypothesis=pair.hypothesis, claim=claim(pair.hypothesis)
        )

    def prompts(words: str) -> dict[str, str]:
        before = "".join(
            ask(pair, words) + answers[0 if pair.entailed else 1] + BETWEEN
            for pair in demonstrations
        )
        return {pair.id: before + ask(pair, words) for pair in pairs}

    asked = prompts(wording)
    # A wording or answers of one's own may ask something else.
    others = WORDINGS if (wording, tuple(answers)) == (WORDING, ANSWERS) else {}
    examples = []
    for pair in pairs:
        answer, foil = answers if pair.entailed else answers[::-1]
        labels: dict[str, Value] = {"entailment": int(pair.entailed), "heuristic": pair.heuristic}
        labels |= {rule: int(rule == pair.heuristic) for rule in HEURISTICS}
        examples.append(
            Example(
                id=pair.id,
                prompt=asked[pair.id],
                answer=answer,
                foil=foil,
                options=tuple(answers),
                labels=labels,
                covariates=_covariates(pair),
                group=pair.subcase
                if group == "subcase"
                else f"{pair.subcase} {pair.columns[group]}",
                kind=pair.subcase,
            )
        )
    wordings: dict[str, dict[str, Texts]] = {
        other: {key: (text, None) for key, text in prompts(words).items()}
        for other, words in others.items()
    }
    return Task(name, examples, wordings=wordings)


def claim(hypothesis: str) -> str:
    """A hypothesis as part of a sentence: no full stop, no first capital.

    >>> claim("The cook slept.")
    'the cook slept'
    """
    bare = hypothesis.rstrip().removesuffix(".")
    return bare[:1].lower() + bare[1:]


def demonstrate(pairs: Sequence[SentencePair], shots: int, *, seed: int) -> list[SentencePair]:
    """Pairs to show with their answers: as many that follow as not, from different sub-cases.

    The odd one follows. Which come, and in what order, depends on the seed and the pairs' ids.

    Raises:
        LensSkillsError: A negative number, or more than there are.
    """
    order = sorted(pairs, key=by_digest(f"{seed} shots"))
    found: list[SentencePair] = []
    for entailed, wanted in ((True, -(-shots // 2)), (False, shots // 2)):
        some = [pair for pair in order if pair.entailed == entailed]
        if not 0 <= wanted <= len(some):
            raise LensSkillsError(
                f"shots={shots}: there are {len(some)} pairs whose answer is "
                f"{'yes' if entailed else 'no'} to choose demonstrations from."
            )
        found += in_turns(some, lambda pair: pair.subcase)[:wanted]
    return sorted(found, key=by_digest(f"{seed} order"))


def _covariates(pair: SentencePair) -> dict[str, Value]:
    premise, hypothesis = words(pair.premise), words(pair.hypothesis)
    either = set(premise) | set(hypothesis)
    return {
        "subcase": pair.subcase,
        **pair.columns,
        "n_words_premise": len(premise),
        "n_words_hypothesis": len(hypothesis),
        "overlap": len(set(premise) & set(hypothesis)) / max(len(either), 1),
        "negation": int(any(w in NEGATIONS or w.endswith("n't") for w in either)),
    }


def _check_wording(wording: str, answers: tuple[str, str]) -> None:
    slots = template_slots(wording, f"wording={wording!r} is no template")
    unknown = [slot for slot in slots if slot not in _SLOTS]
    if unknown or "premise" not in slots or not {"hypothesis", "claim"} & set(slots):
        raise LensSkillsError(
            f"wording={wording!r} "
            + (f"has the unknown slot {{{unknown[0]}}}" if unknown else "lacks a slot")
            + ". Write {premise}, and {hypothesis} or {claim}."
        )
    if len(answers) != 2 or answers[0] == answers[1] or not all(answers):
        raise LensSkillsError(
            f"answers={answers!r}: give two different texts, the one that says that the "
            "hypothesis follows first."
        )
    if wording[-1].isspace() and answers[0][0].isspace():
        raise LensSkillsError(
            f"the wording ends in {wording[-1]!r} and the answer {answers[0]!r} begins with a "
            "space, which no text does. Leave one of them out."
        )


# Four sets, so that groups can be made finer than a sub-case; all plurals end in -s.
NOUNS = (
    ("baker", "sailor", "poet", "guard", "clerk", "hunter"),
    ("nurse", "farmer", "painter", "pilot", "priest", "cook"),
    ("singer", "dancer", "plumber", "miner", "chef", "knight"),
    ("teacher", "driver", "gardener", "waiter", "soldier", "butler"),
)

# Past and participle are one form, and who does it to whom matters.
TRANSITIVE = (
    "greeted", "praised", "warned", "teased", "hugged", "chased", "blamed", "ignored", "pushed",
    "annoyed",
)  # fmt: skip

INTRANSITIVE = (
    "laughed", "smiled", "sneezed", "danced", "sang", "yawned", "cried", "left", "arrived", "slept",
)  # fmt: skip

# Slots other than people and verbs.
FILLS = {
    "adjective": ("tall", "young", "clever", "tired", "honest", "famous"),
    "near": ("near", "behind", "beside", "opposite"),
    "place": ("in the garden", "at the station", "on the bridge", "in the kitchen"),
    "time": ("before noon", "on Monday", "last night", "after lunch"),
    "manner": ("quietly", "suddenly", "slowly", "politely"),
    "goal": ("win the prize", "please the crowd", "keep the job", "end the quarrel"),
    "lasting": ("laughed", "danced", "slept", "sang", "cried", "smiled"),
    "sweetly": ("sang the song", "read the letter", "drank the milk", "ate the soup"),
    "believed": ("believed", "suspected", "feared"),
    "watched": ("watched", "washed", "answered", "followed", "taught"),
    "trained": ("trained", "washed", "dressed", "taught"),
}

# Slots: {a} {b} {c} people, {as} the first in the plural, {was} agrees with it; {v} {w} something
# done to someone, {i} {j} something done alone; the others of FILLS. Every word of a hypothesis
# stands in its premise; under "subsequence" without a gap; under "constituent" as a clause of its
# own; and each heading holds only what the next one does not.
PATTERNS: dict[str, dict[bool, dict[str, tuple[str, str]]]] = {
    "lexical_overlap": {
        True: {
            "passive_to_active": ("the {a} {was} {v} by the {b}", "the {b} {v} the {a}"),
            "around_preposition": ("the {a} {near} the {b} {v} the {c}", "the {a} {v} the {c}"),
            "around_relative": ("the {a} who {i} {v} the {b}", "the {a} {v} the {b}"),
            "inside_relative": ("the {a} whom the {b} {v} {i}", "the {b} {v} the {a}"),
            "second_object": ("the {a} {v} the {b} and the {c}", "the {a} {v} the {c}"),
            "first_subject": ("the {a} and the {b} {i}", "the {a} {i}"),
            "second_verb": ("the {a} {i} and {v} the {b}", "the {a} {v} the {b}"),
            "around_adverb": ("the {a} {manner} {v} the {b}", "the {a} {v} the {b}"),
            "cleft_subject": ("it was the {a} who {v} the {b}", "the {a} {v} the {b}"),
            "not_only": ("not only the {a} but also the {b} {v} the {c}", "the {a} {v} the {c}"),
        },
        False: {
            "swapped": ("the {a} {v} the {b}", "the {b} {v} the {a}"),
            "passive_as_active": ("the {a} {was} {v} by the {b}", "the {a} {v} the {b}"),
            "object_of_preposition": ("the {a} {near} the {b} {v} the {c}", "the {b} {v} the {a}"),
            "swapped_in_relative": ("the {a} who {v} the {b} {i}", "the {b} {v} the {a}"),
            "joined_subjects": ("the {a} and the {b} {v} the {c}", "the {a} {v} the {b}"),
            "verb_of_relative": ("the {a} {v} the {b} who {w} the {c}", "the {a} {w} the {c}"),
            "subject_of_relative": ("the {a} whom the {b} {v} {w} the {c}", "the {a} {v} the {b}"),
            "crossed_verbs": ("the {a} {i} and the {b} {j}", "the {a} {j}"),
            "cleft_object": ("it was the {a} whom the {b} {v}", "the {a} {v} the {b}"),
            "instead": ("the {a} {v} the {b} instead of the {c}", "the {a} {v} the {c}"),
        },
    },
    "subsequence": {
        True: {
            "adjective": ("{adjective} {as} {i}", "{as} {i}"),
            "second_subject": ("the {a} and the {b} {i}", "the {b} {i}"),
            "first_object": ("the {a} {v} the {b} and the {c}", "the {a} {v} the {b}"),
            "place": ("the {a} {v} the {b} {place}", "the {a} {v} the {b}"),
            "relative_on_object": ("the {a} {v} the {b} who {i}", "the {a} {v} the {b}"),
            "adverb": ("the {a} {i} {manner}", "the {a} {i}"),
            "time": ("the {a} {v} the {b} {time}", "the {a} {v} the {b}"),
            "understood_object": ("the {a} {sweetly}", "the {a} {sweetly:verb}"),
            "purpose": ("the {a} {v} the {b} in order to {goal}", "the {a} {v} the {b}"),
            "comparison": ("the {a} {lasting} longer than the {b}", "the {a} {lasting}"),
        },
        False: {
            "preposition_on_subject": ("the {a} {near} the {b} {i}", "the {b} {i}"),
            "relative_on_subject": ("the {a} who {v} the {b} {i}", "the {b} {i}"),
            "clause_as_object": ("the {a} {believed} the {b} {i}", "the {a} {believed} the {b}"),
            "unmarked_clause": ("while the {a} {watched} the {b} {i}", "the {a} {watched} the {b}"),
            "agent_on_subject": ("the {a} {v} by the {b} {i}", "the {b} {i}"),
            "participle_as_verb": ("the {a} {trained} {place} {i}", "the {a} {trained} {place}"),
            "friend_of": ("the friend of the {a} {i}", "the {a} {i}"),
            "nobody": ("nobody {near} the {a} {i}", "the {a} {i}"),
            "neither": ("neither the {a} nor the {b} {i}", "the {b} {i}"),
            "everyone_but": ("everyone but the {a} {i}", "the {a} {i}"),
        },
    },
    "constituent": {
        True: {
            "because": ("because the {a} {i}, the {b} {v} the {c}", "the {a} {i}"),
            "after": ("after the {a} {v} the {b}, the {c} {i}", "the {a} {v} the {b}"),
            "although": ("although the {a} {i}, the {b} {v} the {c}", "the {b} {v} the {c}"),
            "once": ("once the {a} {v} the {b}, the {c} {i}", "the {c} {i}"),
            "knew_that": ("the {a} knew that the {b} {i}", "the {b} {i}"),
            "forgot_that": ("the {a} forgot that the {b} {v} the {c}", "the {b} {v} the {c}"),
            "noticed_that": ("the {a} noticed that the {b} {i}", "the {b} {i}"),
            "and_before": ("the {a} {i}, and the {b} {v} the {c}", "the {a} {i}"),
            "and_after": ("the {a} {i}, and the {b} {v} the {c}", "the {b} {v} the {c}"),
            "luckily": ("luckily, the {a} {v} the {b}", "the {a} {v} the {b}"),
        },
        False: {
            "if": ("if the {a} {i}, the {b} {v} the {c}", "the {a} {i}"),
            "unless": ("unless the {a} {v} the {b}, the {c} {i}", "the {a} {v} the {b}"),
            "after_if": ("if the {a} {i}, the {b} {v} the {c}", "the {b} {v} the {c}"),
            "after_unless": ("unless the {a} {v} the {b}, the {c} {i}", "the {c} {i}"),
            "claimed_that": ("the {a} claimed that the {b} {i}", "the {b} {i}"),
            "hoped_that": ("the {a} hoped that the {b} {v} the {c}", "the {b} {v} the {c}"),
            "doubted_that": ("the {a} doubted that the {b} {i}", "the {b} {i}"),
            "or_before": ("the {a} {i}, or the {b} {v} the {c}", "the {a} {i}"),
            "or_after": ("the {a} {i}, or the {b} {v} the {c}", "the {b} {v} the {c}"),
            "perhaps": ("perhaps, the {a} {v} the {b}", "the {a} {v} the {b}"),
        },
    },
}

SUBCASES = sum(len(cell) for truths in PATTERNS.values() for cell in truths.values())
EACH = 12  # examples of a sub-case by default
MOST = 100  # that every sub-case has words for


def nli(
    n: int | None = None,
    seed: int = 0,
    *,
    wording: str = WORDING,
    answers: tuple[str, str] = ANSWERS,
    shots: int = 0,
    group: str = "subcase",
) -> Task:
    """A Task of generated sentence pairs: does the hypothesis follow from the premise?

    Three rules (all words of the hypothesis are in the premise; they stand there without a gap;
    they are a clause of it) call every pair entailed. Each is crossed with the truth, ten sub-cases
    to a cell, so that rule, answer and model's answer can be told apart. Whether a pair is
    entailed follows from its sub-case's grammar, with any words. Columns: see `pose_pairs`, with
    the covariate ``noun_set``.

    The group is the sub-case, 60 in all, because the sub-case decides both the rule and the answer:
    two sentences of one pattern are one observation of either, whatever their nouns.

    Args:
        n: Number of examples; None takes 12 of each sub-case (720). Multiples of 60 are balanced.
        seed: Which words, and which demonstrations.
        wording: The prompt: see `pose_pairs`.
        answers: What is said where the hypothesis follows, and where it does not.
        shots: Answered demonstrations before every question, with balanced answers and from
            different sub-cases; none of them is in the task.
        group: ``"subcase"``, or ``"noun_set"`` to divide each sub-case by its nouns: 240 groups,
            but a test then counts what one sub-case says several times.

    Raises:
        LensSkillsError: More examples than there are, or a wording without its slots.

    Source: the design, not the sentences, is that of McCoy et al. 2019 (arXiv 1902.01007).

    >>> task = nli()
    >>> len(task), len(task.groups), task.column("entailment").mean()
    (720, 60, np.float64(0.5))
    >>> task.where(subcase="swapped")[0].answer, task.where(subcase="time")[0].answer
    (' No', ' Yes')
    """
    n = SUBCASES * EACH if n is None else n
    check_number("nli", n, SUBCASES * MOST)
    if not 0 <= shots <= SUBCASES:
        raise LensSkillsError(f"nli(shots={shots}): show 0 to {SUBCASES} demonstrations.")
    rounds = -(-n // SUBCASES)
    # Demonstrations are of rounds of their own, so that the task stays as balanced as without.
    more = 1 if shots else 0
    generated = _generate(rounds + more, random.Random(seed))
    pairs = [pair for turn in generated[:rounds] for pair in turn]
    spare = [pair for turn in generated[rounds:] for pair in turn]
    return pose_pairs(
        "nli",
        pairs[:n],
        demonstrations=demonstrate(spare, shots, seed=seed),
        wording=wording,
        answers=answers,
        group=group,
    )


def _generate(rounds: int, generator: random.Random) -> list[list[SentencePair]]:
    """One pair of every sub-case per round; rules and answers alternate within it."""
    order = [
        (rule, entailed, name)
        for place in range(SUBCASES // 6)
        for rule in HEURISTICS
        for entailed in (True, False)
        for name in [list(PATTERNS[rule][entailed])[place]]
    ]
    streams = {name: _pairs(rule, entailed, name, generator) for rule, entailed, name in order}
    return [[next(streams[name]) for _, _, name in order] for _ in range(rounds)]


def _pairs(
    heuristic: str, entailed: bool, subcase: str, generator: random.Random
) -> Iterator[SentencePair]:
    """Pairs of one sub-case without end, none twice, the noun sets in turn."""
    templates = PATTERNS[heuristic][entailed][subcase]
    seen: set[str] = set()
    number = generator.randrange(len(NOUNS))
    while True:
        noun_set = number % len(NOUNS)
        premise, hypothesis = _fill(templates, NOUNS[noun_set], generator)
        if premise in seen:
            continue
        seen.add(premise)
        number += 1
        yield SentencePair(
            id=f"{subcase}-{len(seen)}",
            premise=premise,
            hypothesis=hypothesis,
            entailed=entailed,
            heuristic=heuristic,
            subcase=subcase,
            columns={"noun_set": str(noun_set)},
        )


def _fill(
    templates: tuple[str, str], nouns: tuple[str, ...], generator: random.Random
) -> tuple[str, str]:
    """Premise and hypothesis with the same words in their slots."""
    people = generator.sample(nouns, 3)
    plural = [generator.random() < 0.5 for _ in people]
    slots = {
        slot: noun + "s" * many for slot, noun, many in zip("abc", people, plural, strict=True)
    }
    slots |= {"as": people[0] + "s", "was": "were" if plural[0] else "was"}
    slots |= dict(zip("vw", generator.sample(TRANSITIVE, 2), strict=True))
    slots |= dict(zip("ij", generator.sample(INTRANSITIVE, 2), strict=True))
    slots |= {slot: generator.choice(words) for slot, words in FILLS.items()}
    slots["sweetly:verb"] = slots["sweetly"].split()[0]
    filled = []
    for template in templates:
        for slot, text in slots.items():
            template = template.replace(f"{{{slot}}}", text)
        filled.append(template[0].upper() + template[1:] + ".")
    return filled[0], filled[1]
