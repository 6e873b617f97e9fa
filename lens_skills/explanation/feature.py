"""`Feature`: one thing that can be said of an example before a model reads it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from lens_skills.example import Value

Kind = Literal["flag", "number", "category"]


@dataclass(frozen=True)
class Feature:
    """A named property of examples.

    Attributes:
        name: In words that complete a sentence: "a is 5", "an operand is 5", "n words".
        kind: ``"flag"`` (0 or 1), ``"number"`` (read along a line) or ``"category"`` (each value on
            its own).
        read: Its value for an example; None where it has none.
        surface: Whether it is on the surface of the input, so that a neuron tied to it is no sign
            of the skill; else it defines the task (a label, the result, a carry).
        family: Where it comes from: arithmetic, premises, columns, text, yours.
    """

    name: str
    kind: Kind
    read: Callable[[Any], Value | None]
    surface: bool = True
    family: str = "yours"


def flag(
    name: str, holds: Callable[[Any], Any], *, surface: bool = True, family: str = "yours"
) -> Feature:
    """A 0/1 feature of a condition."""
    return Feature(name, "flag", lambda example: int(bool(holds(example))), surface, family)


def each_value(
    name: str,
    read: Callable[[Any], Value | None],
    values: Iterable[Value],
    *,
    surface: bool = True,
    family: str = "yours",
    verb: str = "is",
) -> list[Feature]:
    """A 0/1 feature per value: "a is 3", "a is 4", …

    >>> [feature.name for feature in each_value("a", len, [1, 2])]
    ['a is 1', 'a is 2']
    """

    def equals(value: Value) -> Callable[[Any], bool]:
        return lambda example: read(example) == value

    return [
        flag(f"{name} {verb} {value}", equals(value), surface=surface, family=family)
        for value in values
    ]
