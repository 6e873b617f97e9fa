"""Whether the arguments of a public function are of the kinds that its signature names.

As users mean them, which the checkers of types do not: numpy's numbers are numbers, True is no
count, and one text is not several.
"""

import math
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from inspect import Parameter, signature
from numbers import Integral, Real
from os import PathLike
from typing import Any, Literal, Union, get_args, get_origin

from lens_skills.errors import LensSkillsError

_MANY = (Sequence, Collection, Iterable)
# Whole numbers that count something, and seeds: below 0 there are none, whatever the function.
_COUNT = re.compile(r"(n_\w+|k|draws|epochs|batch_size|most|depth|top|max_new_tokens|sets|seed)$")
_WORDS = {
    bool: "True or False",
    float: "a number",
    int: "a whole number",
    str: "a text",
    type(None): "None",
}


def check_arguments(
    function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """Nothing; raises where an argument is of a kind that its parameter does not take.

    What a signature leaves open (``Any``) is the function's own to judge, and so are ranges.

    Raises:
        LensSkillsError: The parameter, what it takes and what it was given.
    """
    hints = _hints(function)
    names = [
        name
        for name, parameter in signature(function).parameters.items()
        if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD
    ]
    for name, value in [*zip(names, args, strict=False), *options.items()]:
        if name in hints and not _fits(value, hints[name]):
            raise LensSkillsError(
                f"{function.__name__}(): {name} must be {' or '.join(_said(hints[name]))}, not "
                f"{_shown(value)}."
            )
        if isinstance(value, Real) and not math.isfinite(value):
            raise LensSkillsError(f"{function.__name__}(): {name}={value} is not a finite number.")
        if isinstance(value, Real) and value < 0 and _COUNT.match(name):
            raise LensSkillsError(f"{function.__name__}(): {name}={value} is less than 0.")


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function)


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return any(value is one or (type(value) is type(one) and value == one) for one in inner)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if hint is type(None):
        return value is None
    if origin is tuple:
        fixed = inner if inner[-1:] != (...,) else inner[:1] * len(value or ())
        return isinstance(value, tuple | list) and all(map(_fits, value, fixed))
    if origin is Callable or hint is Callable:
        return callable(value)
    if origin in _MANY:
        if hasattr(value, "shape"):  # an array holds numbers, and tables and rows are read as such
            return value.ndim == 1 and inner[0] in (int, float, bool, Any)
        return _is_many(value) and all(_fits(one, inner[0]) for one in _first(value))
    if origin is Mapping or origin is dict:
        return isinstance(value, Mapping) and all(_fits(one, inner[0]) for one in _first(value))
    if isinstance(hint, type) and hint.__module__.split(".")[0] != "jaxtyping":
        return isinstance(value, PathLike | hint) if _is_path(hint) else isinstance(value, hint)
    return True  # a tensor of some shape, or Any


def _is_many(value: Any) -> bool:
    """Whether it is several things: not one text, and not a table that names its columns."""
    counted = hasattr(value, "__len__") or isinstance(value, Iterable)
    return counted and not isinstance(value, str | bytes | Mapping)


def _first(value: Any) -> list[Any]:
    """Some things of a collection; of what may be read only once, none."""
    if isinstance(value, Sequence | Mapping | set | frozenset):
        return [one for one, _ in zip(value, range(3), strict=False)]
    return []


def _is_path(hint: type) -> bool:
    return hasattr(hint, "__fspath__")


def _said(hint: Any) -> list[str]:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return list(dict.fromkeys(word for one in inner for word in _said(one)))
    if origin is Literal:
        return [repr(one) for one in inner]
    if origin is tuple or origin in _MANY:
        kinds = [word.removeprefix("an ").removeprefix("a ") for word in _said(inner[0])]
        return [f"several of: {', '.join(kinds)}"]
    if origin in (Mapping, dict):
        return ["a dict"]
    if origin is Callable or hint is Callable:
        return ["a function"]
    if hint in _WORDS:
        return [_WORDS[hint]]
    name = getattr(hint, "__name__", str(hint).removeprefix("typing."))
    return [f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"]


def _shown(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, str | int | float | type(None)):
        return f"{value!r:.60}"
    if isinstance(value, list | tuple) and value:
        return f"a {kind} of {type(value[0]).__name__}"
    return f"{'an empty' if isinstance(value, list | tuple | dict) and not value else 'a'} {kind}"
