"""`nli`: our own premises and hypotheses, three shallow rules crossed with what is true."""

import random
from collections.abc import Iterator

from lens_skills.errors import LensSkillsError
from lens_skills.tasks.entailment import (
    ANSWERS,
    HEURISTICS,
    WORDING,
    Pair,
    demonstrate,
    pose_pairs,
)
from lens_skills.tasks.nli_patterns import FILLS, INTRANSITIVE, NOUNS, PATTERNS, TRANSITIVE
from lens_skills.tasks.task import Task

SUBCASES = sum(len(cell) for sides in PATTERNS.values() for cell in sides.values())
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
    if not 1 <= n <= SUBCASES * MOST:
        raise LensSkillsError(f"nli(n={n}): there are 1 to {SUBCASES * MOST} examples.")
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


def _generate(rounds: int, generator: random.Random) -> list[list[Pair]]:
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
) -> Iterator[Pair]:
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
        yield Pair(
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
