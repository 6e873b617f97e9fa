"""`ioi`: who receives the thing, when two people were named and one of them gave it?"""

import itertools
import random
from functools import partial

from lens_skills.data import Example
from lens_skills.tasks.task import Task, Texts, check_number
from lens_skills.tasks.word_lists import NAMES

TEMPLATES = {
    "went": "Then {first} and {second} went to the {place}. {giver} gave a {object} to",
    "met": "When {first} and {second} met at the {place}, {giver} handed a {object} to",
    "after": "After {first} and {second} left the {place}, {giver} passed a {object} to",
    "argued": "Yesterday {first} and {second} argued at the {place}. {giver} threw a {object} to",
    "while": "While {first} and {second} were at the {place}, {giver} offered a {object} to",
    "afternoon": "One day {first} and {second} saw the {place}, and {giver} sent a {object} to",
}

PLACES = ("store", "school", "park", "station", "office", "garden", "beach", "market")
OBJECTS = ("book", "drink", "ring", "bag", "letter", "ball", "hat", "phone")


def ioi(n: int = 500, seed: int = 0) -> Task:
    """A Task of indirect objects: "Then Mary and John ... John gave a book to" -> " Mary".

    Each pair of names comes in all four forms: either may give (the answer is the other), and
    either may be named first. Label ``io_first`` (1: the receiver is named first, ABBA; 0: BABA).
    Covariates: ``template``, ``indirect_object``, ``subject``, ``place``, ``object``,
    ``n_words``. The corrupted twin names the other person as the giver, so the foil is right
    there. The group is the pair of names, the kind the receiver's name. `Task.paraphrases`: every
    example in each of the other sentences.

    Source: the task of Wang et al. 2022 (arXiv 2211.00593), in our own sentences.

    Args:
        n: Number of examples; a multiple of 4 keeps every pair complete.
        seed: Which pairs meet which sentences, places and objects.

    Raises:
        LensSkillsError: fewer than one or more examples asked for than there are.

    >>> task = ioi(8)
    >>> len(task.groups), task.column("io_first").tolist()
    (2, [1, 0, 1, 0, 1, 0, 1, 0])
    >>> task[0].answer == " " + task.column("indirect_object")[0]
    True
    """
    generator = random.Random(seed)
    pairs = list(itertools.combinations(NAMES, 2))
    most = 4 * len(pairs) * len(TEMPLATES)
    check_number("ioi", n, most)
    generator.shuffle(pairs)
    examples: list[Example] = []
    wordings: dict[str, dict[str, Texts]] = {
        f"sentence +{on}": {} for on in range(1, len(TEMPLATES))
    }
    for unit in range(-(-n // 4)):
        turn, index = divmod(unit, len(pairs))
        pair = pairs[index]
        # A pair that comes again meets another template, so no prompt comes twice.
        first_template = index + turn
        template = list(TEMPLATES)[first_template % len(TEMPLATES)]
        place, thing = generator.choice(PLACES), generator.choice(OBJECTS)
        prompts = [
            partial(sentence.format, place=place, object=thing)
            for sentence in _from(list(TEMPLATES.values()), first_template)
        ]
        for receiver, giver in (pair, pair[::-1]):
            for io_first in (1, 0):
                first, second = (receiver, giver) if io_first else (giver, receiver)
                named = {"first": first, "second": second}
                (text, twin), *others = [
                    (prompt(**named, giver=giver), prompt(**named, giver=receiver))
                    for prompt in prompts
                ]
                name = f"{receiver}-{giver}-{'ABBA' if io_first else 'BABA'}-{turn}"
                for wording, texts in zip(wordings, others, strict=True):
                    wordings[wording][name] = texts
                examples.append(
                    Example(
                        id=name,
                        prompt=text,
                        answer=f" {receiver}",
                        foil=f" {giver}",
                        corrupted=twin,
                        labels={"io_first": io_first},
                        covariates={
                            "template": template,
                            "indirect_object": receiver,
                            "subject": giver,
                            "place": place,
                            "object": thing,
                            "n_words": len(text.split()),
                        },
                        group=" ".join(sorted(pair)),
                        kind=receiver,
                    )
                )
    return Task("ioi", examples[:n], wordings=wordings)


def _from(items: list[str], start: int) -> list[str]:
    """The items in turn, from the one at ``start`` on.

    >>> _from(["a", "b", "c"], 4)
    ['b', 'c', 'a']
    """
    place = start % len(items)
    return items[place:] + items[:place]
