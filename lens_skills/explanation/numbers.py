"""`number_features`: what can be said of an arithmetic problem."""

from collections.abc import Callable, Sequence
from typing import Any

from lens_skills.example import Example
from lens_skills.explanation.feature import Feature, each_value, flag

READ = (
    "op", "carry", "even", "digits", "operand_a", "operand_b", "result", "negative",
    "result_digits", "first_digit", "last_digit", "ones_a", "ones_b", "same_operands",
    "answer_is_operand", "foil_is_operand", "contains_zero",
)  # fmt: skip
"""The columns of an arithmetic task, which these features say in words."""

FAMILY = "arithmetic"
_OPERATIONS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
_MOST_VALUES = 20  # beyond it, a number's values are looked at by digit, range and remainder only

Number = Callable[[Any], int]


def number_features(examples: Sequence[Example]) -> list[Feature]:
    """The features of operands and results; none where an example states no such problem.

    Operands, either operand, the order and equality of the two are on the surface; the operation,
    the result with its digits and remainders, and the carry define the task.
    """
    if any(example.column(name) is None for example in examples for name in READ[:7]):
        return []

    def column(name: str) -> Number:
        return lambda example: int(example.column(name))

    a, b, result = column("operand_a"), column("operand_b"), column("result")
    found = [*_of_number("a", a, examples, True), *_of_number("b", b, examples, True)]
    digits = range(10)

    def either(test: Callable[[int], bool]) -> Callable[[Any], bool]:
        return lambda example: test(a(example)) or test(b(example))

    for digit in digits:
        found.append(_surface(f"an operand is {digit}", either(lambda n, d=digit: n == d)))
    for digit in digits:
        found.append(
            _surface(f"an operand ends in {digit}", either(lambda n, d=digit: n % 10 == d))
        )
    found += [
        _surface("the operands are equal", lambda e: a(e) == b(e)),
        _surface("a is larger than b", lambda e: a(e) > b(e)),
        _surface("a digit is 0", lambda e: "0" in f"{a(e)}{b(e)}"),
        _number("the larger operand", lambda e: max(a(e), b(e)), True),
        _number("the smaller operand", lambda e: min(a(e), b(e)), True),
        _surface("the answer is an operand", lambda e: result(e) in (a(e), b(e))),
        _surface("the foil is an operand", lambda e: e.column("foil_is_operand") == 1),
    ]
    found += _of_number("the result", result, examples, False)
    found += [
        flag(f"the operation is {word}", _is_op(sign), surface=False, family=FAMILY)
        for sign, word in _OPERATIONS.items()
    ]
    found += [
        Feature("the operation", "category", lambda e: e.column("op"), False, FAMILY),
        flag("a column carries", lambda e: e.column("carry"), surface=False, family=FAMILY),
        flag("the result is negative", lambda e: result(e) < 0, surface=False, family=FAMILY),
    ]
    return found


def _of_number(
    name: str, number: Number, examples: Sequence[Example], surface: bool
) -> list[Feature]:
    """Its size, parity, values, digits, remainders and tens."""
    values = sorted({number(example) for example in examples})
    options = {"surface": surface, "family": FAMILY}
    found = [
        _number(name, number, surface),
        flag(f"{name} is odd", lambda e: number(e) % 2, surface=surface, family=FAMILY),
    ]
    if len(values) <= _MOST_VALUES:
        found += each_value(name, number, values, **options)
        found.append(Feature(f"{name}, each value", "category", number, surface, FAMILY))
    found += each_value(name, lambda e: abs(number(e)) % 10, range(10), verb="ends in", **options)
    leading = {int(str(abs(value))[0]) for value in values}
    found += each_value(
        name, lambda e: int(str(abs(number(e)))[0]), sorted(leading), verb="begins with", **options
    )
    lengths = {len(str(abs(value))) for value in values}
    for length in sorted(lengths):
        found.append(
            flag(
                f"{name} has {length} digit{'s' if length > 1 else ''}",
                lambda e, n=length: len(str(abs(number(e)))) == n,
                surface=surface,
                family=FAMILY,
            )
        )
    for modulus in (3, 4, 5):
        found.append(
            Feature(
                f"{name} modulo {modulus}",
                "category",
                lambda e, m=modulus: number(e) % m,
                surface,
                FAMILY,
            )
        )
    low, high = values[0], values[-1]
    if high - low > 20:
        for start in range(low // 10 * 10, min(high, 99) + 1, 10):
            found.append(
                flag(
                    f"{name} is in {start} to {start + 9}",
                    lambda e, s=start: s <= number(e) < s + 10,
                    surface=surface,
                    family=FAMILY,
                )
            )
    else:
        middle = (low + high + 1) // 2
        found.append(
            flag(
                f"{name} is {middle} or more", lambda e: number(e) >= middle, surface=surface,
                family=FAMILY,
            )
        )  # fmt: skip
    return found


def _surface(name: str, holds: Callable[[Any], Any]) -> Feature:
    return flag(name, holds, surface=True, family=FAMILY)


def _number(name: str, read: Number, surface: bool) -> Feature:
    return Feature(name, "number", read, surface, FAMILY)


def _is_op(sign: str) -> Callable[[Any], bool]:
    return lambda example: example.column("op") == sign
