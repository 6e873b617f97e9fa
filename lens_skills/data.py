"""`Example`: one prompt and all that is known of it before a model has seen it; draws by group.

`field_of` and `cells_of` read one thing of many examples; of `ExampleColumns` without making any.
"""

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.stats.multiple_testing import signs

Value = str | int | float | bool
Item = TypeVar("Item")

_NO_COLUMNS: Mapping[str, Value] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with its answer, its twin and what is known about it.

    Only ``id`` and ``prompt`` are required: a bare prompt can still be scored on a metric that
    needs no answer (a covariate, the model's entropy).

    Attributes:
        id: Unique within a task; names the example in every error and saved result.
        prompt: The text the model reads, up to but not including the answer.
        answer: The right continuation, exactly as it follows the prompt.
        foil: One wrong continuation of the same kind: the other side of a logit difference.
        options: All continuations a multiple-choice reading allows; contains the answer.
        corrupted: The twin prompt that asks for the foil (same length in words).
        labels: What is to be found in the neurons: one number or category per name.
        covariates: What could explain a neuron away: operands, length, template, frequency.
        group: Examples that must not be separated by a split (3+4 and 4+3; the same noun).
        kind: The input type a control task draws its random labels for (an operand, a noun);
            empty means the group.

    >>> Example(id="a", prompt="The key", answer=" is", foil=" are", labels={"plural": 0}).group
    'a'
    """

    id: str
    prompt: str
    answer: str | None = None
    foil: str | None = None
    options: tuple[str, ...] = ()
    corrupted: str | None = None
    labels: Mapping[str, Value] = field(default_factory=dict)
    covariates: Mapping[str, Value] = field(default_factory=dict)
    group: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        # An example without a declared group is its own group; its kind follows its group.
        for name, follows in (("group", "id"), ("kind", "group")):
            if isinstance(getattr(self, name), str | None) and not getattr(self, name):
                object.__setattr__(self, name, getattr(self, follows))
        for name in ("labels", "covariates"):
            columns = getattr(self, name)
            if not isinstance(columns, Mapping):
                raise LensSkillsError(
                    f"example {self.id!r} has {name} {columns!r:.60}: they are a dict, such as "
                    f"{name}={{'plural': 1}}."
                )
            # All that have none share it: a hundred thousand empty ones would be 20 MB.
            kept = MappingProxyType(dict(columns)) if columns else _NO_COLUMNS
            object.__setattr__(self, name, kept)

    def column(self, name: str) -> Value | None:
        """The label or covariate called ``name``, or None where the example has neither.

        >>> Example(id="a", prompt="x", covariates={"carry": True}).column("carry")
        True
        """
        if name in self.labels:
            return self.labels[name]
        return self.covariates.get(name)

    def problem(self) -> str | None:
        """What is wrong with the example and what to do, or None.

        >>> Example(id="a", prompt="x", answer="").problem()
        'the answer is an empty text. Give the continuation, or None if there is none.'
        """
        for name in ("id", "prompt", "answer", "foil", "corrupted", "group", "kind"):
            if wrong := _no_text(getattr(self, name), name):
                return wrong
        for option in self.options:
            if wrong := _no_text(option, "option") or ("" if option else "an option is empty."):
                return wrong
        if self.answer == "":
            return "the answer is an empty text. Give the continuation, or None if there is none."
        if self.answer is not None and self.answer == self.foil:
            return f"the foil {self.foil!r} equals the answer. Give a wrong continuation."
        if len(set(self.options)) < len(self.options):
            return f"the options {list(self.options)} repeat one. Give each once."
        if self.options and self.answer is not None and self.answer not in self.options:
            return (
                f"the answer {self.answer!r} is not among the options {list(self.options)}. "
                "Options contain the answer, spaces included."
            )
        for kind in ("labels", "covariates"):
            for name, value in getattr(self, kind).items():
                if not isinstance(value, Value):
                    return (
                        f"{name!r} in {kind} is {value!r} of type {type(value).__name__}. "
                        "Give a plain str, int, float or bool."
                    )
                if isinstance(value, str) and (wrong := _no_text(value, name)):
                    return wrong
                if isinstance(value, int) and not -(2**63) <= value < 2**63:
                    return f"{name!r} in {kind} is a number too large. Give it as a text."
                if isinstance(value, float) and not math.isfinite(value):
                    return f"{name!r} in {kind} is {value}. Drop the example or fill the value."
        return None


def _no_text(value: Any, name: str) -> str:
    """What is wrong with a field that is to be a text, or None; "" where nothing is."""
    if value is None and name not in ("id", "prompt"):
        return ""
    if not isinstance(value, str):
        return f"the {name} is {str(value)[:60]} of type {type(value).__name__}. Give a text."
    try:
        if not value.isascii():
            value.encode()
    except UnicodeEncodeError as error:
        return (
            f"the {name} holds half a character, {value[error.start]!r}, at place {error.start}. "
            "Write the character whole."
        )
    return ""


Field = Literal["id", "prompt", "group", "kind"]


class ExampleColumns(Sequence[Example]):
    """Examples that are kept as columns; an `Example` is made only where one is asked for."""

    @abstractmethod
    def field(self, name: Field) -> list[str]:
        """Ids, prompts, groups or kinds, one per example: theirs, not to be changed."""

    @abstractmethod
    def cells(self, name: str, part: str) -> list[Value | None] | None:
        """A column of the ``labels`` or ``covariates``, None where a row has none.

        None in place of the list: no example has such a column.
        """


def field_of(examples: Sequence[Any], name: Field) -> list[str]:
    """The ids, prompts, groups or kinds of the examples.

    >>> field_of([Example("a", "x", group="g"), Example("b", "x")], "group")
    ['g', 'b']
    """
    if isinstance(examples, ExampleColumns):
        return examples.field(name)
    return [getattr(example, name) for example in examples]


def cells_of(examples: Sequence[Any], name: str, kind: str = "column") -> list[Value | None]:
    """A label, a covariate, or either (``"column"``: labels first) of each example, or None.

    >>> cells_of([Example("a", "x", labels={"n": 1}), Example("b", "x")], "n", "labels")
    [1, None]
    """
    if not isinstance(examples, ExampleColumns):
        if kind == "column":
            return [example.column(name) for example in examples]
        return [getattr(example, kind).get(name) for example in examples]
    if kind != "column":
        found = examples.cells(name, kind)
        return [None] * len(examples) if found is None else found
    labels, covariates = (examples.cells(name, part) for part in ("labels", "covariates"))
    if labels is None or covariates is None:
        found = covariates if labels is None else labels
        return [None] * len(examples) if found is None else found
    pairs = zip(labels, covariates, strict=True)
    return [other if own is None else own for own, other in pairs]


def in_turns(items: Sequence[Item], group: Callable[[Item], Any]) -> list[Item]:
    """The first item of every group, then the second of every one, and so on.

    >>> in_turns(["a1", "a2", "b1", "a3"], lambda name: name[0])
    ['a1', 'b1', 'a2', 'a3']
    """
    seen: Counter[Any] = Counter()
    turns = []
    for item in items:
        turns.append(seen[group(item)])
        seen[group(item)] += 1
    return [items[place] for place in sorted(range(len(items)), key=turns.__getitem__)]


def halves(
    groups: Sequence[str], *, seed: int, even: Literal["rows", "groups"] = "rows"
) -> tuple[Int[Tensor, " first"], Int[Tensor, " second"]]:
    """The rows of two random halves that share no group.

    Args:
        groups: Of each row.
        seed: Of the draw.
        even: In what the halves are as even as can be: in rows (the largest groups go first, each
            to the smaller half), or in groups (each draws a place of its own by its name).

    >>> first, second = halves(["a", "a", "b", "b"], seed=0)
    >>> len(first), len(second)
    (2, 2)
    """
    sizes = Counter(groups)
    names = sorted(sizes)
    if even == "groups":
        drawn = {
            name: signs([name], 64, seed=seed, purpose="circuit")[0].tolist() for name in names
        }
        chosen = set(sorted(names, key=lambda name: drawn[name])[: len(names) // 2])
    else:
        generator = torch.Generator().manual_seed(seed)
        order = [names[place] for place in torch.randperm(len(names), generator=generator).tolist()]
        # The order among groups of one size is the draw's.
        order.sort(key=lambda name: -sizes[name])
        chosen, lead = set[str](), 0
        for name in order:
            if lead <= 0:
                chosen.add(name)
            lead += sizes[name] if name in chosen else -sizes[name]
    first = torch.tensor([name in chosen for name in groups], dtype=torch.bool)
    return first.nonzero()[:, 0], (~first).nonzero()[:, 0]
