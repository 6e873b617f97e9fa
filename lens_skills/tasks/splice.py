"""`splice`: texts made of pieces of several tasks, one after another, to be cut apart again."""

import random
from collections.abc import Mapping, Sequence

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError

LabelledText = list[tuple[str, str]]
"""A text as its pieces in order: (skill, words) pairs."""

FEWEST_SKILLS = 2


def splice(
    tasks: Mapping[str, Sequence[Example]], n: int, *, pieces: int = 3, seed: int = 0
) -> list[LabelledText]:
    """Texts of several examples each, of which it is known where one skill ends and another begins.

    A piece is an example's prompt with its answer, without the space around it; pieces are joined
    by one space, which belongs to the later one. The skills of a text are drawn so that no two
    neighbours are alike; where there are as many pieces as tasks or fewer, all differ. No example
    is used twice.

    Args:
        tasks: The examples by the name of their skill. To keep groups apart, splice the parts of
            `Task.split`, each for itself.
        n: How many texts.
        pieces: How many examples make one.
        seed: Of the draws.

    Returns:
        One list of (skill, words) per text; the words joined are the text.

    Raises:
        LensSkillsError: Fewer than two tasks, fewer than two pieces, or too few examples.

    >>> from lens_skills import tasks
    >>> sums, verbs = tasks.arithmetic("+")[:20], tasks.agreement(n=32)
    >>> [skill for skill, words in splice({"sums": sums, "verbs": verbs}, 4, pieces=2)[0]]
    ['verbs', 'sums']
    """
    if not isinstance(tasks, Mapping) or len(tasks) < FEWEST_SKILLS:
        raise LensSkillsError(
            "splice takes two tasks or more, by the name of their skill, such as "
            "{'sums': ls.tasks.arithmetic('+'), 'verbs': ls.tasks.agreement()}."
        )
    if n < 1 or pieces < 2:
        raise LensSkillsError(f"n={n}, pieces={pieces}: one text of two pieces is the least.")
    random_ = random.Random(seed)
    wanted = [_skills(list(tasks), pieces, random_) for _ in range(n)]
    left = {}
    for name, examples in tasks.items():
        texts = list(dict.fromkeys(_words(example) for example in examples))
        needed = sum(skills.count(name) for skills in wanted)
        if len(texts) < needed:
            raise LensSkillsError(
                f"{n:,} texts of {pieces} pieces take {needed:,} different examples of {name!r}, "
                f"which has {len(texts):,}. Ask for fewer texts, or give a larger task."
            )
        left[name] = random_.sample(texts, needed)
    return [
        [
            (skill, f"{' ' if place else ''}{left[skill].pop()}")
            for place, skill in enumerate(skills)
        ]
        for skills in wanted
    ]


def _skills(names: Sequence[str], pieces: int, random_: random.Random) -> list[str]:
    if pieces <= len(names):
        return random_.sample(names, pieces)
    drawn = [random_.choice(names)]
    while len(drawn) < pieces:
        drawn.append(random_.choice([name for name in names if name != drawn[-1]]))
    return drawn


def _words(example: Example) -> str:
    return f"{example.prompt}{example.answer or ''}".strip()
