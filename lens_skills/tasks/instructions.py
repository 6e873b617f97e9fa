"""`instructions`: household instructions of one to three tasks, each with its argument."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError, did_you_mean
from lens_skills.tasks.task import Task
from lens_skills.tasks.word_lists import NAMES


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Nine verbs and three phrases of each type. The phrases begin with one of five verbs that begin
# phrases of other types too, so that their first word does not say the type. No type's own name is
# among them, and no verb is part of another word of the sentences.
VERBS = {
    "bring": (
        *("deliver", "carry", "hand", "pass", "send", "transport", "forward", "ship", "return"),
        *("take over", "give back", "make a gift of"),
    ),
    "clean": (
        *("wipe", "scrub", "wash", "dust", "polish", "rinse", "sponge", "scour", "sanitize"),
        *("take a cloth to", "give a shower to", "put a shine on"),
    ),
    "discard": (
        *("toss", "dump", "scrap", "trash", "ditch", "junk", "jettison", "chuck out", "dispose of"),
        *("get rid of", "make rubbish of", "give the boot to"),
    ),
    "open": (
        *("unlock", "unseal", "undo", "uncover", "pry apart", "pop", "crack", "unzip", "unfasten"),
        *("take the lid off", "get the seal off", "put a key into"),
    ),
    "place": (
        *("lay", "set", "leave", "deposit", "rest", "position", "stow", "park", "stand"),
        *("put down", "give a home to", "make room for"),
    ),
    "search": (
        *("find", "locate", "seek", "trace", "spot", "hunt for", "scout for", "ferret out"),
        *("detect", "take a look around for", "get on the trail of", "make a quest for"),
    ),
}
TYPES = tuple(VERBS)
ASKED = {"search": "search for"}
PER_TYPE = 12
PER_GROUP = 3
LIGHT = ("take", "give", "make", "put", "get")

# All can be carried, cleaned, opened, put somewhere, looked for and thrown away, so that a thing
# says nothing of the task.
THINGS = _words(
    "jar bottle suitcase chest basket envelope purse wallet cooler thermos toolbox dispenser crate "
    "cauldron parcel umbrella novel laptop folder notebook backpack carton package album trunk "
    "barrel pouch packet sack briefcase hamper casket tub flask canteen satchel hatbox locket "
    "binder diary magazine jug kettle decanter terrarium lantern cage safe lunchbox shoebox keg "
    "tureen vial drum bag coffer duffel valise portfolio canister capsule pillbox parasol ledger "
    "atlas scroll brochure map locker cabinet clutch ampoule"
)
SURFACES = _words(
    "table desk shelf counter bench floor stool sofa bed chair porch windowsill mantel rug dresser "
    "sideboard stairs platform ledge piano tray mat patio hearth"
)
ROOMS = _words(
    "kitchen garage attic basement bedroom hallway office library garden shed closet pantry "
    "bathroom laundry nursery cellar lobby study workshop barn courtyard greenhouse lounge "
    "loft"
)
OPENERS = (
    ("Next, ", "."),
    ("Please ", "."),
    ("Could you ", "?"),
    ("I need you to ", "."),
    ("Your job is to ", "."),
    ("Now ", "."),
    ("When you can, ", "."),
    ("Today you should ", "."),
)
CONNECTORS = (", then ", " and ", ", and after that ")


class Clause(NamedTuple):
    """One task of an instruction: its type, its verb, and the words behind its thing."""

    type: str
    verb: str
    role: str
    filler: str

    def text(self, thing: str) -> str:
        tails = {"recipient": " to ", "surface": " on the ", "room": " in the ", "": ""}
        return f"{self.verb} the {thing}{tails[self.role]}{self.filler}"


@dataclass(frozen=True)
class Household:
    """Words that stand together and with no others: verbs of other types, things, a template."""

    types: tuple[str, ...]
    verbs: tuple[str, ...]
    things: tuple[str, ...]
    fillers: tuple[tuple[str, str, str], ...]
    opener: tuple[str, str]
    connector: str

    @property
    def name(self) -> str:
        return ", ".join(self.verbs)

    def clause(self, place: int, turn: int) -> Clause:
        role, *two = self.fillers[place]
        return Clause(self.types[place], self.verbs[place], role, two[turn % 2])

    def sentence(self, clauses: Sequence[Clause], things: Sequence[str]) -> str:
        before, end = self.opener
        tasks = zip(clauses, things, strict=True)
        return before + self.connector.join(clause.text(thing) for clause, thing in tasks) + end


def instructions(
    n: int | None = None,
    seed: int = 0,
    *,
    types: Sequence[str] = TYPES,
    n_tasks: int | Sequence[int] = (1, 2, 3),
    twin: str = "argument",
) -> Task:
    """A Task of instructions with several tasks: "Please wipe the jar and hand the map to Anna."

    One example per instruction and task in it: the prompt is the instruction and a question for
    that task's thing, "The thing to clean is the", the answer is " jar", the foil another thing.
    Label ``type`` (of several categories, so ``"label:type"`` is one 0/1 metric per type).

    Spans, as covariates to read at with `span`: ``verb`` ("wipe", "take a look around for"),
    ``argument`` (the thing), ``matched`` (in instructions of three tasks the thing that is neither
    answer nor foil; else empty), ``recipient``, ``surface``, ``room`` (empty where the task has
    none). Others: ``head``, the verb's first word; ``light`` (1: the head begins phrases of other
    types too, so it does not say the type); ``shuffled``, the types shuffled among examples of the
    same head, a control for what the head alone says; ``n_tasks``; ``asked``, which task of the
    instruction; ``instruction``, a number of its own; ``tasks``, all types with their arguments;
    ``n_words``.

    The group is a household: three verbs of three types, three things, names, places and a
    template that no other group has, so in another split all of them are unseen (openings and
    connectives alone come in several). Every verb of a group meets each of its things equally
    often: a thing says nothing of its task. The kind is the verb.

    Args:
        n: Number of examples; None takes all there are (1,080 with the defaults). In turns over
            the groups, at least three each.
        seed: Which verbs, things and templates make a group, and the shuffle.
        types: Two or more of "bring", "clean", "discard", "open", "place", "search".
        n_tasks: How many tasks an instruction has: any of 1, 2, 3.
        twin: What differs in the corrupted twin, where the foil is right: "argument", the two
            things have changed places (of one task: the thing is the foil), or "verb", the two
            verbs have, with what belongs to them (of one task: no twin).

    Raises:
        LensSkillsError: An unknown or repeated type, fewer than two, more tasks than types, or
            more or fewer examples asked for than can be made.

    Source: after tagE's setting, instructions with several tasks and their arguments (arXiv
    2310.15605); sentences, types and words are ours, and nobody said them to a robot.

    Does not show: That a model understands instructions as people give them.

    >>> task = instructions()
    >>> len(task), len(task.groups)
    (1080, 24)
    >>> one = task.where(n_tasks=2)[0]
    >>> one.prompt.count(one.answer) == one.prompt.count(one.foil) == 1
    True
    """
    types, counts = _types(types), _counts(n_tasks)
    generator = random.Random(seed)
    households = _households(types, generator)
    if max(counts) > len(households[0].types):
        raise LensSkillsError(
            f"instructions(n_tasks={n_tasks}): {max(counts)} tasks of different types want as many "
            f"types, and {len(types)} are given: {', '.join(types)}."
        )
    if twin not in ("argument", "verb"):
        raise LensSkillsError(f"instructions(twin={twin!r}): choose 'argument' or 'verb'.")
    examples: list[Example] = []
    for turn in range(PER_GROUP):
        for orders in _orders(len(households[0].types), turn, counts):
            for household in households:
                examples += _examples(household, orders, turn, twin, len(examples))
    least = PER_GROUP * len(households)
    n = len(examples) if n is None else n
    if not least <= n <= len(examples):
        raise LensSkillsError(
            f"instructions(n={n}): {len(households)} groups of {len(households[0].types)} verbs "
            f"want {least} examples or more, and there are {len(examples):,}. "
            f"{'Ask for less' if n > least else 'Ask for more, or name fewer types'}."
        )
    return Task("instructions", _shuffled(examples[:n], generator))


def _types(types: Sequence[str]) -> tuple[str, ...]:
    asked = (types,) if isinstance(types, str) else tuple(types)
    for name in asked:
        if name not in TYPES:
            raise LensSkillsError(
                f"instructions: no type {name!r}.{did_you_mean(str(name), TYPES)} There are "
                f"{len(TYPES)}: {', '.join(TYPES)}."
            )
    if len(asked) < 2 or len(set(asked)) < len(asked):
        raise LensSkillsError(
            f"instructions(types={asked}): two types or more are told apart, each named once."
        )
    return tuple(name for name in TYPES if name in asked)


def _counts(n_tasks: int | Sequence[int]) -> tuple[int, ...]:
    asked = (n_tasks,) if isinstance(n_tasks, int) else tuple(n_tasks)
    if not asked or any(count not in (1, 2, 3) for count in asked):
        raise LensSkillsError(
            f"instructions(n_tasks={n_tasks}): an instruction has 1, 2 or 3 tasks."
        )
    return tuple(sorted(set(asked)))


def _households(types: tuple[str, ...], generator: random.Random) -> list[Household]:
    """Every verb in one household, and in each as many types as there can be, three at most."""
    size = min(PER_GROUP, len(types))
    verbs = {name: generator.sample(VERBS[name], PER_TYPE) for name in types}
    things, names = generator.sample(THINGS, len(THINGS)), generator.sample(NAMES, 2 * PER_TYPE)
    surfaces, rooms = (generator.sample(words, len(words)) for words in (SURFACES, ROOMS))
    fillers = {"bring": ("recipient", names), "place": ("surface", surfaces)}
    fillers["search"] = ("room", rooms)
    templates = [(opener, connector) for opener in OPENERS for connector in CONNECTORS]
    generator.shuffle(templates)
    found = []
    for opener, connector in templates[: PER_TYPE * len(types) // size]:
        # The types with most verbs left: so all run out together.
        mixed = generator.sample(types, len(types))
        chosen = sorted(mixed, key=lambda name: -len(verbs[name]))[:size]
        given = []
        for name in chosen:
            role, words = fillers.get(name, ("", None))
            given.append((role, words.pop(), words.pop()) if words else ("", "", ""))
        found.append(
            Household(
                tuple(chosen),
                tuple(verbs[name].pop() for name in chosen),
                tuple(things.pop() for _ in range(PER_GROUP)),
                tuple(given),
                opener,
                connector,
            )
        )
    return found


Order = tuple[tuple[int, ...], int]
"""The verbs of an instruction by their places, and by how much its things are shifted."""


def _orders(size: int, turn: int, counts: Sequence[int]) -> list[Order]:
    """The instructions of one turn: over three turns each verb meets each thing equally often."""
    ring = [(turn + step) % size for step in range(size)]
    pairs = [(place, (place + 1) % size) for place in range(size)] if size > 2 else [(0, 1), (1, 0)]
    made: dict[int, list[Order]] = {
        1: [((place,), turn) for place in range(size)],
        2: [(pair if turn % 2 else pair[::-1], turn + 1) for pair in pairs],
        3: [(tuple(ring), turn + 2), (tuple(ring[::-1]), turn + 1)] if size > 2 else [],
    }
    return [order for count in counts for order in made[count]]


def _examples(
    household: Household, order: Order, turn: int, twin: str, before: int
) -> list[Example]:
    """One example per task of an instruction."""
    places, shift = order
    clauses = [household.clause(place, turn) for place in places]
    things = [household.things[(place + shift) % PER_GROUP] for place in places]
    text, count = household.sentence(clauses, things), len(places)
    examples = []
    for spot, (clause, thing) in enumerate(zip(clauses, things, strict=True)):
        other = (spot + 1) % count
        foil = things[other] if count > 1 else household.things[(places[0] + shift + 1) % PER_GROUP]
        question = f" The thing to {ASKED.get(clause.type, clause.type)} is the"
        corrupted: str | None = None
        if twin == "argument":
            moved = {thing: foil, foil: thing}
            corrupted = household.sentence(clauses, [moved.get(word, word) for word in things])
        elif count > 1:
            exchanged = list(clauses)
            exchanged[spot], exchanged[other] = clauses[other], clauses[spot]
            corrupted = household.sentence(exchanged, things)
        head = clause.verb.split()[0]
        matched = [word for word in things if word not in (thing, foil)]
        roles = {
            role: clause.filler if role == clause.role else ""
            for role in ("recipient", "surface", "room")
        }
        examples.append(
            Example(
                id=f"{before + spot:04d}-{clause.type}-{clause.verb}",
                prompt=text + question,
                answer=f" {thing}",
                foil=f" {foil}",
                corrupted=None if corrupted is None else corrupted + question,
                labels={"type": clause.type},
                covariates={
                    "verb": clause.verb,
                    "argument": thing,
                    "matched": matched[0] if matched else "",
                    **roles,
                    "head": head,
                    "light": int(head in LIGHT),
                    "n_tasks": count,
                    "asked": spot + 1,
                    "instruction": f"{before:04d}",
                    "tasks": "; ".join(
                        f"{each.type}: {word}{f' -> {each.filler}' if each.filler else ''}"
                        for each, word in zip(clauses, things, strict=True)
                    ),
                    "n_words": len((text + question).split()),
                },
                group=household.name,
                kind=clause.verb,
            )
        )
    return examples


def _shuffled(examples: Sequence[Example], generator: random.Random) -> list[Example]:
    """With the covariate ``shuffled``: the types of all examples of one head, dealt anew."""
    rows: dict[str, list[int]] = defaultdict(list)
    for place, example in enumerate(examples):
        rows[str(example.covariates["head"])].append(place)
    dealt: dict[int, str] = {}
    for places in rows.values():
        types = [str(examples[place].labels["type"]) for place in places]
        generator.shuffle(types)
        dealt |= dict(zip(places, types, strict=True))
    return [
        replace(example, covariates={**example.covariates, "shuffled": dealt[place]})
        for place, example in enumerate(examples)
    ]
