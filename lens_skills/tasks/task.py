"""`Task`: examples that ask for one skill, as a table, with splits that keep groups whole."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
import pandas as pd

from lens_skills.cards import fold, showing
from lens_skills.data import Example, in_turns
from lens_skills.errors import LensSkillsError, did_you_mean

MANY_VALUES = 12  # a numeric column with more distinct values is stratified by its quarters
SPLITS = ("explore", "confirm", "intervene")
"""What the splits of a study are for, in the order in which they are made."""

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
Texts = tuple[str, str | None]
"""A prompt and its corrupted twin in one wording."""

FIELDS = ("id", "prompt", "answer", "foil", "corrupted", "group", "kind")


@dataclass(frozen=True, repr=False)
class Task(Sequence[Example]):
    """Examples in order, checked once: a sequence, a table and the source of splits.

    ``task[3]`` is an Example; ``task[:10]`` is a Task, as is all that ``where`` and ``split``
    hand back.

    Attributes:
        name: What the task is called in results and figures.
        examples: The examples, at least one, with unique ids.
        split_name: Where the examples come from, in words: "all", or e.g. "second split".
        recipe: The same so that it can be done again: "0.4 of all #1, seed 0".
        wordings: Other wordings by name: for each example's id its prompt and its twin's, as
            `paraphrases` makes tasks of. Those of other ids are dropped.

    Raises:
        LensSkillsError: no examples; repeated ids or options; options without the answer; an
            answer that is empty or equals the foil; a label or covariate that is no plain finite
            number or text.

    >>> task = Task("verbs", [Example(id="a", prompt="The key", answer=" is", foil=" are")])
    >>> len(task), task[0].answer
    (1, ' is')
    """

    name: str
    examples: Sequence[Example]
    split_name: str = "all"
    recipe: str = "all"
    wordings: Mapping[str, Mapping[str, Texts]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.examples, str) or not isinstance(self.examples, Iterable):
            raise LensSkillsError(f"task {self.name!r}: {self.examples!r:.60} are no examples.")
        object.__setattr__(self, "examples", tuple(self.examples))
        if not self.examples:
            raise LensSkillsError(
                f"task {self.name!r} ({self.split_name}) has no examples. Give at least one."
            )
        if others := [one for one in self.examples if not isinstance(one, Example)]:
            raise LensSkillsError(
                f"task {self.name!r} holds {others[0]!r:.60}, which is no Example. "
                "ls.tasks.table(…) makes examples of a table."
            )
        ids = Counter(example.id for example in self.examples)
        if twice := [key for key, count in ids.items() if count > 1]:
            raise LensSkillsError(
                f"task {self.name!r}: the id {twice[0]!r} is used by {ids[twice[0]]} examples. "
                "Give each example its own id."
            )
        for example in self.examples:
            if problem := example.problem():
                raise LensSkillsError(f"task {self.name!r}, example {example.id!r}: {problem}")
        if not isinstance(self.wordings, Mapping):
            raise LensSkillsError(
                f"task {self.name!r}: wordings are a dict of dicts, not {self.wordings!r:.60}."
            )
        kept = {name: self._worded(name, texts) for name, texts in self.wordings.items()}
        object.__setattr__(self, "wordings", kept)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Task": ...
    def __getitem__(self, index: Any) -> Any:
        """The example at an index, or the Task of a slice.

        >>> task = Task("t", [Example(id=name, prompt="x") for name in "abc"])
        >>> task[-1].id, task[1:].split_name
        ('c', 'examples 2 to 3')
        """
        if not isinstance(index, slice):
            return self.examples[index]
        start, stop, step = index.indices(len(self))
        kept = self.examples[index]
        words = f"examples {start + 1} to {stop}"
        if step != 1:
            words = f"{len(kept):,} of {len(self):,} examples by place"
        stride = "" if step == 1 else f":{step}"
        return self._of(kept, self._part(words), f"{self.recipe}[{start}:{stop}{stride}]")

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def __hash__(self) -> int:
        return hash((self.name, self.split_name, tuple(example.id for example in self.examples)))

    def _repr_html_(self) -> str:
        return str(showing("notebook_view").html(self))

    def __repr__(self) -> str:
        first, labels = self.examples[0], ", ".join(self._names("labels")) or "none"
        # Of a long prompt (shots, a passage), its end: where the answer follows.
        prompt = first.prompt if len(first.prompt) <= 200 else f"… {first.prompt[-200:]}"
        return fold(
            f"Task({self.name!r}, {self.split_name}: {len(self):,} examples in "
            f"{len(self.groups):,} groups, labels {labels}; "
            f"first {prompt!r} -> {first.answer!r})"
        )

    @property
    def groups(self) -> tuple[str, ...]:
        """The distinct groups, in order of first appearance."""
        return tuple(dict.fromkeys(example.group for example in self.examples))

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of all labels, then of all covariates."""
        return tuple(dict.fromkeys(self._names("labels") + self._names("covariates")))

    def column(self, name: str) -> np.ndarray:
        """One value per example of a label, covariate or text field: numbers, else objects.

        Raises:
            LensSkillsError: no such column (the message lists those there are), or some examples
                lack it.

        >>> Task("t", [Example(id="a", prompt="x", labels={"plural": 1})]).column("plural")
        array([1])
        """
        names = self.column_names
        if name not in names:
            if name in FIELDS:
                return column_array([getattr(example, name) for example in self.examples])
            raise LensSkillsError(
                f"task {self.name!r} has no column {name!r}.{did_you_mean(name, names)}"
                f" It has: {', '.join(names) or 'no labels and no covariates'}."
            )
        values = [example.column(name) for example in self.examples]
        if None in values:
            without = self.examples[values.index(None)].id
            raise LensSkillsError(
                f"task {self.name!r}: {values.count(None)} of {len(values)} examples have no "
                f"{name!r}, the first is {without!r}. Keep the others: "
                f"task.where(lambda example: example.column({name!r}) is not None)."
            )
        return column_array(values)

    def frame(self) -> pd.DataFrame:
        """A pandas table, one row per example: the text fields, options, labels, covariates.

        >>> Task("t", [Example(id="a", prompt="x", covariates={"n": 2})]).frame()["n"].tolist()
        [2]
        """
        columns = {name: [getattr(e, name) for e in self.examples] for name in (*FIELDS, "options")}
        for name in self.column_names:
            # A column called like a field keeps its own place beside it.
            columns[f"column:{name}" if name in columns else name] = [
                example.column(name) for example in self.examples
            ]
        return pd.DataFrame(columns)

    def where(self, predicate: Callable[[Example], Any] | None = None, /, **columns: Any) -> "Task":
        """The examples for which the predicate holds and every named column has the value.

        A list, tuple or set of values means any of them.

        Raises:
            LensSkillsError: no example is left, or a column does not exist.

        >>> task = Task("t", [Example(id=str(n), prompt="x", labels={"n": n}) for n in range(4)])
        >>> [example.id for example in task.where(n=[1, 3])]
        ['1', '3']
        """
        keep = np.ones(len(self), dtype=bool)
        words = []
        for name, wanted in columns.items():
            allowed = wanted if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
            keep &= np.array([value in allowed for value in self.column(name)])
            words.append(f"{name}={_briefly(wanted)}")
        by = ""
        if predicate is not None:
            keep &= np.array([bool(predicate(example)) for example in self.examples])
            by = getattr(predicate, "__name__", type(predicate).__name__)
            by = f"filtered by {'a function' if by == '<lambda>' else by}"
        parts = [f"where {' and '.join(words)}" if words else "", by]
        asked = ", ".join(part for part in parts if part)
        chosen = [e for e, kept in zip(self.examples, keep, strict=True) if kept]
        if not chosen:
            raise LensSkillsError(
                f"task {self.name!r}: no example of {len(self):,} is left {asked}."
            )
        within = "" if self.split_name == "all" else f"{self.split_name}: "
        words = f"{within}{len(chosen):,} of {len(self):,} {asked or 'examples'}"
        return self._of(chosen, words, f"{self.recipe} {asked or 'where all'}")

    def split(
        self,
        *fractions: float | int,
        seed: int = 0,
        by: str | Collection[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> tuple["Task", ...]:
        """Disjoint tasks, one per fraction, no group in two of them, label proportions kept close.

        Which examples go where depends on their content and the seed, not on their order. A rest
        below a sum of 1 is left out.

        Args:
            fractions: Share of the examples of each part, positive, at most 1 together.
            seed: Another seed hands the groups out differently.
            by: Columns to stratify on; None takes the labels. A numeric column with more than
                12 distinct values is cut into quarters.

            names: What each part is for, as cards call it: "explore" becomes "explore split".
                None counts them: "first split", "second split".

        Raises:
            LensSkillsError: fractions out of range, another number of names, or too few groups to
                fill every part.

        >>> task = Task("t", [Example(id=str(n), prompt="x", labels={"n": n % 2})
        ...                   for n in range(8)])
        >>> [sorted(part.column("n").tolist()) for part in task.split(0.5, 0.5)]
        [[0, 0, 1, 1], [0, 0, 1, 1]]
        """
        if not fractions or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
            raise LensSkillsError(
                f"split{fractions}: fractions are positive and sum to at most 1, "
                f"e.g. split(0.5, 0.25, 0.25). These sum to {sum(fractions):g}."
            )
        if names is not None and len(names) != len(fractions):
            raise LensSkillsError(
                f"split{fractions}: {len(names)} names for {len(fractions)} parts. Name each."
            )
        columns = self._names("labels") if by is None else (by,) if isinstance(by, str) else by
        groups = [example.group for example in self.examples]
        part = allot(
            groups, [self.column(name) for name in columns], [*map(float, fractions)], seed
        )
        chosen = [
            [e for e, home in zip(self.examples, part, strict=True) if home == number]
            for number in range(len(fractions))
        ]
        if not all(chosen):
            raise LensSkillsError(
                f"split{fractions} of task {self.name!r}: {len(self)} examples in "
                f"{len(self.groups)} groups leave part #{chosen.index([])} empty, as a "
                "group is never divided. Ask for fewer or larger parts, or more examples."
            )
        stratified = "" if by is None else f", by {' '.join(columns)}"
        counted = [*_ORDINALS, *(f"{i + 1}th" for i in range(len(_ORDINALS), len(fractions)))]
        return tuple(
            self._of(
                examples,
                self._part(f"{(names or counted)[i]} split"),
                f"{fraction:g} of {self.recipe} #{i}, seed {seed}{stratified}",
            )
            for i, (examples, fraction) in enumerate(zip(chosen, fractions, strict=True))
        )

    def paraphrases(self) -> "dict[str, Task]":
        """The same examples in other words: a Task for each wording, by its name.

        Ids, answers, labels, groups and kinds stay; prompts, their twins and the covariate
        ``n_words`` change. Other covariates stay, also those that describe the first wording.

        Raises:
            LensSkillsError: The task knows no other wording (and how to give it some).

        >>> from lens_skills.tasks import agreement
        >>> task = agreement().where(noun="key", distractor="different")
        >>> task[0].prompt, task.paraphrases()["adverb"][0].prompt
        ('The key that reached the towers', 'Apparently, the key that reached the towers')
        """
        if not self.wordings:
            raise LensSkillsError(
                f"task {self.name!r} knows one wording only. The tasks agreement, ioi, arithmetic, "
                "nli and hans know others; tasks.table(…, paraphrases={name: template}) takes "
                "them, and task.with_paraphrases({name: function}) gives them to any task."
            )
        return {
            name: replace(
                self,
                examples=[_said(example, *texts[example.id]) for example in self.examples],
                split_name=f"{self.split_name}, worded as {name!r}",
                wordings={},
            )
            for name, texts in self.wordings.items()
        }

    def with_paraphrases(self, wordings: Mapping[str, Callable[[str], str]]) -> "Task":
        """The task, with further wordings: for each name, what makes a prompt of a prompt.

        A twin is reworded by the same function.

        Raises:
            LensSkillsError: A wording that changes no prompt, or makes one empty, or end in a
                space where it did not (the answer begins with one, or does not, accordingly).

        >>> task = Task("t", [Example(id="a", prompt="The key")])
        >>> task = task.with_paraphrases({"adverb": lambda text: f"Now {text.lower()}"})
        >>> task.paraphrases()["adverb"][0].prompt
        'Now the key'
        """
        made = {
            name: {
                e.id: (reword(e.prompt), None if e.corrupted is None else reword(e.corrupted))
                for e in self.examples
            }
            for name, reword in wordings.items()
        }
        return replace(self, wordings={**self.wordings, **made})

    def fingerprint(self) -> str:
        """A sha256 of the examples in their order: equal in every process, whatever the names.

        >>> task = Task("t", [Example(id="a", prompt="x")])
        >>> task.fingerprint() == Task("u", task.examples, "copy").fingerprint()
        True
        """
        digest = hashlib.sha256()
        for e in self.examples:
            row = [getattr(e, name) for name in FIELDS]
            row += [list(e.options), dict(e.labels), dict(e.covariates)]
            digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()

    def preflight(self, model: Any, **options: Any) -> Any:
        """The preflight card of this task on a model: is there a skill to explain?"""
        from lens_skills.tasks.preflight import preflight

        return preflight(model, self, **options)

    def _worded(self, name: str, texts: Mapping[str, Texts]) -> dict[str, Texts]:
        """The texts of one wording, of these examples only."""
        where = f"task {self.name!r}, wording {name!r}"
        missing = [example.id for example in self.examples if example.id not in texts]
        if missing:
            raise LensSkillsError(f"{where}: the example {missing[0]!r} has no prompt in it.")
        kept = {example.id: (*texts[example.id],) for example in self.examples}
        if all(kept[e.id][0] == e.prompt for e in self.examples):
            raise LensSkillsError(f"{where} changes no prompt, so it is no other wording.")
        for example in self.examples:
            for before, after in zip(
                (example.prompt, example.corrupted), kept[example.id], strict=True
            ):
                if (before is None) != (after is None) or after == "":
                    raise LensSkillsError(
                        f"{where}: the example {example.id!r} needs a prompt, and a corrupted "
                        "one if and only if it has one already."
                    )
                if after and before and after[-1].isspace() != before[-1].isspace():
                    raise LensSkillsError(
                        f"{where}: {after!r} must end in a space if and only if the prompt does, "
                        f"{before!r}: its answer {example.answer!r} follows either."
                    )
        return kept

    def _names(self, field: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for e in self.examples for name in getattr(e, field)))

    def _of(self, examples: Sequence[Example], split_name: str, recipe: str) -> "Task":
        return replace(self, examples=examples, split_name=split_name, recipe=recipe)

    def _part(self, words: str) -> str:
        """The words of a part, and what it is a part of where that is not all."""
        return words if self.split_name == "all" else f"{words} of the {self.split_name}"


def _said(example: Example, prompt: str, corrupted: str | None) -> Example:
    """The example in other words, which are counted again where they were."""
    covariates = dict(example.covariates)
    if covariates.get("n_words") == len(example.prompt.split()):
        covariates["n_words"] = len(prompt.split())
    return replace(example, prompt=prompt, corrupted=corrupted, covariates=covariates)


def _briefly(wanted: Any) -> str:
    """A value, or the first three of several, as they are written."""
    if not isinstance(wanted, list | tuple | set | frozenset):
        return repr(wanted)
    several = list(wanted) if isinstance(wanted, list | tuple) else sorted(wanted, key=repr)
    more = f", … ({len(several)})" if len(several) > 3 else ""
    return f"[{', '.join(map(repr, several[:3]))}{more}]"


def check_number(task: str, n: int, most: int, what: str = "examples") -> None:
    """Refuses a number of examples that a task cannot make; ``what`` says of which it has most."""
    if not 1 <= n <= most:
        raise LensSkillsError(f"{task}(n={n}): there are 1 to {most} {what}.")


def few(task: Task, n: int, *, seed: int = 0) -> Task:
    """The task, or exactly ``n`` examples of it, spread over its groups.

    Each group gives an example in turn, then a second one, until there are ``n``: with fewer than
    groups, some of them (by the seed) give none. Within a group its kinds take turns, and within
    these the values of the labels; and where only some groups give one more, these values take
    turns among the groups too.

    Args:
        task: Any.
        n: At most so many, 1 or more.
        seed: Another seed takes others.

    Raises:
        LensSkillsError: ``n`` below 1.

    >>> task = Task("t", [Example(id=f"{g}{k}", prompt="x", group=g) for g in "ab" for k in "123"])
    >>> sorted(example.group for example in few(task, 4))
    ['a', 'a', 'b', 'b']
    """
    if n < 1:
        raise LensSkillsError(f"few(task, {n}): ask for 1 example or more.")
    if len(task) <= n:
        return task
    order = sorted(task, key=by_digest(seed))
    labels = {e.id: tuple(sorted(e.labels.items())) for e in task}
    order = in_turns(order, lambda e: (e.group, e.kind, labels[e.id]))
    order = in_turns(order, lambda e: (e.group, e.kind))
    given: Counter[str] = Counter()
    rounds: dict[int, list[Example]] = {}
    for example in order:
        rounds.setdefault(given[example.group], []).append(example)
        given[example.group] += 1
    spread = (e for turn in sorted(rounds) for e in in_turns(rounds[turn], lambda e: labels[e.id]))
    kept = {e.id for e in itertools.islice(spread, n)}
    chosen = [example for example in task if example.id in kept]
    return task._of(chosen, task._part(f"{n:,} examples"), f"{n} of {task.recipe}, seed {seed}")


def by_digest(seed: Any) -> Callable[[Any], bytes]:
    """A key to sort by: an order that depends on the seed and the ids of the items alone."""
    return lambda item: hashlib.sha256(f"{seed}/{item.id}".encode(errors="surrogatepass")).digest()


def column_array(values: list[Any]) -> np.ndarray:
    """Numbers as a numeric array, anything else as objects (texts keep their type)."""
    if all(isinstance(value, int | float) for value in values):
        return np.array(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def allot(
    groups: Sequence[str], columns: Sequence[np.ndarray], fractions: Sequence[float], seed: int
) -> list[int]:
    """The part each example goes to, len(fractions) for the rest: groups whole, parts alike.

    Every group joins the part where it lowers most the chi-square distance between what the part
    holds and its share of the examples, of each value of each column and of each combination of
    values. The large groups go first, so that the small ones even out what those left uneven.

    Args:
        groups: Per example, what must stay together.
        columns: Per column, its value in each example.
        fractions: The share of each part.
        seed: Decides which of several equally large groups goes first.

    >>> allot(["a", "a", "b", "c"], [], [0.5, 0.5], seed=0)
    [0, 0, 1, 1]
    """
    strata = [_strata(column) for column in columns]
    features = [
        ["", *(f"{i}={v!r}" for i, v in enumerate(values)), f"all={values!r}"]
        for values in (zip(*strata, strict=True) if strata else [()] * len(groups))
    ]
    totals = Counter(feature for row in features for feature in row)
    # What only one example has cannot be spread.
    kept = sorted(name for name in totals if totals[name] > 1) or [""]
    number = {name: index for index, name in enumerate(kept)}
    sizes = Counter(groups)
    # Ties by a digest, because hash() of a text differs between processes.
    order = sorted(
        sizes,
        key=lambda group: (-sizes[group], hashlib.sha256(f"{seed}:{group}".encode()).digest()),
    )
    place = {group: index for index, group in enumerate(order)}
    counts = np.zeros((len(order), len(number)))
    for group, row in zip(groups, features, strict=True):
        for feature in row:
            if feature in number:
                counts[place[group], number[feature]] += 1
    rest = 1 - sum(fractions)
    shares = [*fractions, rest] if rest > 1e-9 else list(fractions)
    target = np.outer(np.array(shares), counts.sum(axis=0))
    held = np.zeros_like(target)
    part = []
    for group in counts:
        # (held + group - target)^2 - (held - target)^2, over the target
        cost = ((2 * (held - target) + group) * group / target).sum(axis=1)
        # Rounded, so that a tie is a tie on every machine and goes to the first part.
        part.append(int(np.argmin(np.round(cost, 9))))
        held[part[-1]] += group
    return [part[place[group]] for group in groups]


def _strata(values: np.ndarray) -> list[Any]:
    """The stratum of each value: the value, or its quarter where a numeric column has many."""
    distinct = set(values.tolist())
    if values.dtype == object or len(distinct) <= MANY_VALUES:
        return values.tolist()
    return np.searchsorted(np.quantile(values, [0.25, 0.5, 0.75]), values).tolist()
