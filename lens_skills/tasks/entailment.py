"""`pose_pairs`: premises and hypotheses as a Task that asks whether the one follows."""

import hashlib
import re
import string
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lens_skills.errors import LensSkillsError
from lens_skills.example import Example, Value
from lens_skills.tasks.task import Task

HEURISTICS = ("lexical_overlap", "subsequence", "constituent")

# Ends in a word and not in a space: the answers begin with one, as tokenizers join it to the word.
WORDING = (
    "Premise: {premise}\nHypothesis: {hypothesis}\n"
    "Question: Does the hypothesis follow from the premise? Yes or No?\nAnswer:"
)
"""The default prompt; another may use the slots {premise}, {hypothesis} and {claim}."""

# Entailed first. With their space one token each in the tokenizers of GPT-2, Llama and SmolLM2.
ANSWERS = (" Yes", " No")
"""The default verbaliser: the answer where the hypothesis follows, and where it does not."""

BETWEEN = "\n\n"
"""What stands between two demonstrations, and between the last one and the question."""

_SLOTS = ("premise", "hypothesis", "claim")
_NEGATIONS = frozenset({"no", "not", "never", "nobody", "none", "neither", "nor", "without"})


@dataclass(frozen=True)
class Pair:
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
    pairs: Sequence[Pair],
    *,
    demonstrations: Sequence[Pair] = (),
    wording: str = WORDING,
    answers: tuple[str, str] = ANSWERS,
    group: str = "subcase",
) -> Task:
    """A Task that asks of every pair whether the hypothesis follows from the premise.

    Labels: ``entailment`` (0/1); ``lexical_overlap``, ``subsequence``, ``constituent`` (0/1, one of
    them 1) and their name ``heuristic``. Covariates: ``subcase``, the pairs' own columns,
    ``n_words_premise``, ``n_words_hypothesis``, ``overlap`` (words in both over words in either)
    and ``negation`` (0/1). The foil is the other answer; the kind is the sub-case.

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
    >>> pair = Pair("a", *texts, True, "subsequence", "adverb")
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

    def ask(pair: Pair) -> str:
        return wording.format(
            premise=pair.premise, hypothesis=pair.hypothesis, claim=claim(pair.hypothesis)
        )

    before = "".join(
        ask(pair) + answers[0 if pair.entailed else 1] + BETWEEN for pair in demonstrations
    )
    examples = []
    for pair in pairs:
        answer, foil = answers if pair.entailed else answers[::-1]
        labels: dict[str, Value] = {"entailment": int(pair.entailed), "heuristic": pair.heuristic}
        labels |= {rule: int(rule == pair.heuristic) for rule in HEURISTICS}
        examples.append(
            Example(
                id=pair.id,
                prompt=before + ask(pair),
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
    return Task(name, examples)


def claim(hypothesis: str) -> str:
    """A hypothesis as part of a sentence: no full stop, no first capital.

    >>> claim("The cook slept.")
    'the cook slept'
    """
    bare = hypothesis.rstrip().removesuffix(".")
    return bare[:1].lower() + bare[1:]


def words(sentence: str) -> list[str]:
    """The words of a sentence in lower case, without punctuation.

    >>> words("If it rains, the cook sleeps.")
    ['if', 'it', 'rains', 'the', 'cook', 'sleeps']
    """
    return re.findall(r"[\w'’-]+", sentence.lower())


def demonstrate(pairs: Sequence[Pair], shots: int, *, seed: int) -> list[Pair]:
    """Pairs to show with their answers: as many that follow as not, from different sub-cases.

    The odd one follows. Which come, and in what order, depends on the seed and the pairs' ids.

    Raises:
        LensSkillsError: A negative number, or more than there are.
    """
    order = drawn(pairs, seed=f"{seed} shots")
    found: list[Pair] = []
    for entailed, wanted in ((True, -(-shots // 2)), (False, shots // 2)):
        # The first of every sub-case, then the second of every one, and so on.
        turns: dict[str, int] = defaultdict(int)
        ranked: list[tuple[int, int, Pair]] = []
        for place, pair in enumerate(order):
            if pair.entailed == entailed:
                ranked.append((turns[pair.subcase], place, pair))
                turns[pair.subcase] += 1
        if not 0 <= wanted <= len(ranked):
            raise LensSkillsError(
                f"shots={shots}: there are {len(ranked)} pairs whose answer is "
                f"{'yes' if entailed else 'no'} to choose demonstrations from."
            )
        found += [pair for _, _, pair in sorted(ranked, key=lambda row: row[:2])[:wanted]]
    return drawn(found, seed=f"{seed} order")


def drawn(pairs: Sequence[Pair], *, seed: str) -> list[Pair]:
    """The pairs in an order that depends on the seed and their ids alone."""
    return sorted(pairs, key=lambda p: hashlib.sha256(f"{seed}/{p.id}".encode()).digest())


def _covariates(pair: Pair) -> dict[str, Value]:
    premise, hypothesis = words(pair.premise), words(pair.hypothesis)
    either = set(premise) | set(hypothesis)
    return {
        "subcase": pair.subcase,
        **pair.columns,
        "n_words_premise": len(premise),
        "n_words_hypothesis": len(hypothesis),
        "overlap": len(set(premise) & set(hypothesis)) / max(len(either), 1),
        "negation": int(any(w in _NEGATIONS or w.endswith("n't") for w in either)),
    }


def _check_wording(wording: str, answers: tuple[str, str]) -> None:
    try:
        slots = [slot for _, slot, _, _ in string.Formatter().parse(wording) if slot is not None]
    except ValueError as error:
        raise LensSkillsError(f"wording={wording!r} is no template: {error}.") from None
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
