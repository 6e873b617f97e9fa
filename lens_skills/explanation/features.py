"""What can be said of an example before a model reads it: `Feature`, and the families of them.

`column_features` of labels and covariates, `number_features` of arithmetic problems,
`pair_features` of a premise and a hypothesis, `word_features` of any text.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lens_skills.data import Example, Value
from lens_skills.errors import LensSkillsError
from lens_skills.tasks.word_lists import NEGATIONS, words

FeatureKind = Literal["flag", "number", "category"]
COLUMN_FAMILY = "columns"
NUMBER_FAMILY = "arithmetic"
PAIR_FAMILY = "premises"
WORD_FAMILY = "text"
Number = Callable[[Any], int]
PairFeature = Callable[[list[str], list[str]], Any]


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
    kind: FeatureKind
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


MOST_CATEGORIES = 24
"""A column of more categories is rather a name than a property."""

SURFACE_LABELS = ("heuristic", "lexical_overlap", "subsequence", "constituent", "io_first")
"""Labels that say how the input looks, not what is right."""

_FEW_VALUES = 12  # a number of so few values is also read value by value


def column_features(examples: Sequence[Example], *, leave: Collection[str] = ()) -> list[Feature]:
    """The labels, which define the task, and the covariates, which are on its surface.

    A column that some examples lack is left out, and so is one of more than `MOST_CATEGORIES`
    categories.

    Args:
        examples: Of one task.
        leave: Columns that another family says in words.
    """
    labels = dict.fromkeys(name for example in examples for name in example.labels)
    covariates = dict.fromkeys(name for example in examples for name in example.covariates)
    found: list[Feature] = []
    for name in dict.fromkeys([*labels, *covariates]):
        if name not in leave:
            surface = name not in labels or name in SURFACE_LABELS
            read = lambda example, name=name: example.column(name)  # noqa: E731
            found += of_column(name, read, examples, surface=surface, family=COLUMN_FAMILY)
    return found


def of_column(
    name: str,
    read: Callable[[Any], Value | None],
    examples: Sequence[Example],
    *,
    surface: bool,
    family: str,
) -> list[Feature]:
    """A column as a flag, as a number and its values, or as a category and each of its values.

    Empty where values are missing, or where categories are too many.

    Raises:
        LensSkillsError: A value that is neither a number nor a text.
    """
    values = [read(example) for example in examples]
    if any(value is None for value in values):
        return []
    for value, example in zip(values, examples, strict=True):
        if not isinstance(value, Value):
            raise LensSkillsError(
                f"the feature {name!r} is {value!r} of type {type(value).__name__} for example "
                f"{example.id!r}. Return a plain bool, int, float or str."
            )
    distinct = sorted({value for value in values if value is not None}, key=value_order)
    if all(isinstance(value, bool) or value in (0, 1) for value in distinct):
        return [Feature(name, "flag", lambda e: int(bool(read(e))), surface, family)]
    options = {"surface": surface, "family": family}
    if not any(isinstance(value, str) for value in distinct):
        found = [Feature(name, "number", read, surface, family)]
        whole = all(float(value).is_integer() for value in distinct)
        if whole and 2 < len(distinct) <= _FEW_VALUES:
            found.append(Feature(f"{name}, each value", "category", read, surface, family))
            found += each_value(name, read, distinct, **options)
        return found
    if len(distinct) > MOST_CATEGORIES:
        return []
    found = each_value(name, read, distinct, **options)
    if len(distinct) > 2:
        found.append(Feature(name, "category", read, surface, family))
    return found


def value_order(value: Value) -> tuple[bool, Value]:
    """Numbers before texts."""
    return isinstance(value, str), value


READ = (
    "op", "carry", "even", "digits", "operand_a", "operand_b", "result", "negative",
    "result_digits", "first_digit", "last_digit", "ones_a", "ones_b", "same_operands",
    "answer_is_operand", "foil_is_operand", "contains_zero",
)  # fmt: skip
"""The columns of an arithmetic task, which these features say in words."""

_OPERATIONS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
_MOST_VALUES = 20  # beyond it, a number's values are looked at by digit, range and remainder only


def number_features(examples: Sequence[Example]) -> list[Feature]:
    """The features of operands and results; none where an example states no such problem.

    Operands, either operand, the order, distance and equality of the two and of their digits are on
    the surface; the operation, the result with its digits and remainders, and the carries define
    the task.
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

    found += [_surface(f"an operand is {d}", either(lambda n, d=d: n == d)) for d in range(11)]
    found += [
        _surface(f"an operand ends in {d}", either(lambda n, d=d: n % 10 == d)) for d in digits
    ]
    found += [
        _surface("the operands are equal", lambda e: a(e) == b(e)),
        _surface("a is larger than b", lambda e: a(e) > b(e)),
        _surface("a digit is 0", lambda e: "0" in f"{a(e)}{b(e)}"),
        _surface("an operand repeats a digit", either(_repeats)),
        _surface("the operands end in the same digit", lambda e: a(e) % 10 == b(e) % 10),
        _surface("b ends in a larger digit than a", lambda e: b(e) % 10 > a(e) % 10),
        _surface("b begins with a larger digit than a", lambda e: f"{b(e)}"[0] > f"{a(e)}"[0]),
        _number_feature("the distance of the operands", lambda e: abs(a(e) - b(e)), True),
        _number_feature("the larger operand", lambda e: max(a(e), b(e)), True),
        _number_feature("the smaller operand", lambda e: min(a(e), b(e)), True),
        _surface("the answer is an operand", lambda e: result(e) in (a(e), b(e))),
        _surface("the foil is an operand", lambda e: e.column("foil_is_operand") == 1),
    ]
    found += _of_number("the result", result, examples, False)
    found += [
        _defining(f"the operation is {word}", lambda e, s=sign: e.column("op") == s)
        for sign, word in _OPERATIONS.items()
    ]
    found += [
        Feature("the operation", "category", lambda e: e.column("op"), False, NUMBER_FAMILY),
        _defining("a column carries", lambda e: e.column("carry")),
        _number_feature("columns that carry", _carries, False),
        _number_feature("zeros that end the result", lambda e: _zeros(result(e)), False),
        _defining("the result is negative", lambda e: result(e) < 0),
    ]
    return found


def _repeats(number: int) -> bool:
    digits = str(abs(number))
    return len(set(digits)) < len(digits)


def _zeros(number: int) -> int:
    digits = str(abs(number))
    return len(digits) - len(digits.rstrip("0")) if number else 0


def _carries(example: Any) -> int:
    """How often a column carries or borrows; of products and quotients, all that columns carry.

    Each ten that is carried takes 9 from the sum of the digits.
    """
    a, b, result = (int(example.column(name)) for name in READ[4:7])
    op = example.column("op")
    parts = {"+": (a, b), "-": (min(a, b), abs(result)), "*": (a, b), "/": (b, result)}[op]
    whole = {"+": result, "-": max(a, b), "*": result, "/": a}[op]
    first, second = (_digit_sum(part) for part in parts)
    return ((first + second if op in "+-" else first * second) - _digit_sum(whole)) // 9


def _digit_sum(number: int) -> int:
    return sum(map(int, str(number)))


def _of_number(
    name: str, number: Number, examples: Sequence[Example], surface: bool
) -> list[Feature]:
    """Its size, parity, values, digits, remainders and tens."""
    values = sorted({number(example) for example in examples})
    options: dict[str, Any] = {"surface": surface, "family": NUMBER_FAMILY}
    found = [
        _number_feature(name, number, surface),
        flag(f"{name} is odd", lambda e: number(e) % 2, **options),
    ]
    if len(values) <= _MOST_VALUES:
        found += each_value(name, number, values, **options)
        found.append(Feature(f"{name}, each value", "category", number, surface, NUMBER_FAMILY))
    found += each_value(name, lambda e: abs(number(e)) % 10, range(10), verb="ends in", **options)
    leading = {int(str(abs(value))[0]) for value in values}
    found += each_value(
        name, lambda e: int(str(abs(number(e)))[0]), sorted(leading), verb="begins with", **options
    )
    for length in sorted({len(str(abs(value))) for value in values}):
        said = f"{name} has {length} digit{'s' if length > 1 else ''}"
        found.append(flag(said, lambda e, n=length: len(str(abs(number(e)))) == n, **options))
    for modulus in (3, 4, 5):
        read = lambda e, m=modulus: number(e) % m  # noqa: E731
        found.append(Feature(f"{name} modulo {modulus}", "category", read, **options))
    low, high = values[0], values[-1]
    if high - low > 20:
        for start in range(low // 10 * 10, min(high, 99) + 1, 10):
            said = f"{name} is in {start} to {start + 9}"
            found.append(flag(said, lambda e, s=start: s <= number(e) < s + 10, **options))
    else:
        middle = (low + high + 1) // 2
        found.append(flag(f"{name} is {middle} or more", lambda e: number(e) >= middle, **options))
    return found


def _surface(name: str, holds: Callable[[Any], Any]) -> Feature:
    return flag(name, holds, surface=True, family=NUMBER_FAMILY)


def _defining(name: str, holds: Callable[[Any], Any]) -> Feature:
    return flag(name, holds, surface=False, family=NUMBER_FAMILY)


def _number_feature(name: str, read: Number, surface: bool) -> Feature:
    return Feature(name, "number", read, surface, NUMBER_FAMILY)


_PAIR = re.compile(r"Premise: (.*)\n+Hypothesis: (.*)\n*")


def pair_features(examples: Sequence[Example]) -> list[Feature]:
    """Overlap, order, length and negation; none where an example shows no premise and hypothesis.

    Read from the prompt's last "Premise: …" and "Hypothesis: …". All are on the surface.
    """
    if not all(_PAIR.search(example.prompt) for example in examples):
        return []

    def of(name: str, read: PairFeature) -> Feature:
        return flag(name, lambda e: read(*_pair_words(e)), family=PAIR_FAMILY)

    def number(name: str, read: PairFeature) -> Feature:
        return Feature(name, "number", lambda e: float(read(*_pair_words(e))), True, PAIR_FAMILY)

    return [
        of("all words of the hypothesis are in the premise", lambda p, h: set(h) <= set(p)),
        of("the hypothesis stands in the premise as it is", _stands_in),
        of("the hypothesis keeps the order of the premise", _in_order),
        of("the premise ends like the hypothesis", lambda p, h: p[-len(h) :] == h),
        of("both begin with the same two words", lambda p, h: p[:2] == h[:2]),
        of("the premise has a negation", lambda p, h: bool(set(p) & NEGATIONS)),
        of("the hypothesis has a negation", lambda p, h: bool(set(h) & NEGATIONS)),
        number("words of the premise", lambda p, h: len(p)),
        number("words of the hypothesis", lambda p, h: len(h)),
        number("words that only the premise has", lambda p, h: len(set(p) - set(h))),
        number("share of the hypothesis in the premise", lambda p, h: _share(h, p)),
    ]


def _pair_words(example: Any) -> tuple[list[str], list[str]]:
    premise, hypothesis = _PAIR.findall(example.prompt)[-1]
    return words(premise), words(hypothesis)


def _stands_in(premise: list[str], hypothesis: list[str]) -> bool:
    return f" {' '.join(hypothesis)} " in f" {' '.join(premise)} "


def _in_order(premise: list[str], hypothesis: list[str]) -> bool:
    """Whether the hypothesis is the premise with words left out."""
    rest = iter(premise)
    return all(word in rest for word in hypothesis)


def _share(words: list[str], others: list[str]) -> float:
    return sum(word in others for word in words) / max(len(words), 1)


_MOST_WORDS = 16  # so many single words are looked for
_MOST_ENDINGS = 24  # and so many different last words
_RARE = 0.04  # a word of fewer prompts is no feature of the task


def word_features(examples: Sequence[Example]) -> list[Feature]:
    """Length, the last word, single words, digits, capitals and punctuation; on the surface.

    The words looked for are those whose presence varies most over the examples.
    """
    found = [
        _word_number("characters of the prompt", lambda e: len(e.prompt)),
        _word_number("words of the prompt", lambda e: len(e.prompt.split())),
        _word_number("digits in the prompt", lambda e: sum(c.isdigit() for c in e.prompt)),
        _word_number("capitals in the prompt", lambda e: sum(c.isupper() for c in e.prompt)),
        _word_number(
            "punctuation marks in the prompt",
            lambda e: sum(c in string.punctuation for c in e.prompt),
        ),
        Feature("kind of the last character", "category", _last_kind, True, WORD_FAMILY),
    ]
    endings = {_last(example) for example in examples}
    if len(endings) <= _MOST_ENDINGS:
        found.append(Feature("the last word", "category", _last, True, WORD_FAMILY))
    counts = Counter(word for example in examples for word in set(words(example.prompt)))
    shares = {word: count / len(examples) for word, count in counts.items()}
    varied = sorted(
        (word for word, share in shares.items() if _RARE <= share <= 1 - _RARE),
        key=lambda word: (abs(shares[word] - 0.5), word),
    )
    return found + [
        flag(f"says {word!r}", lambda e, w=word: w in words(e.prompt), family=WORD_FAMILY)
        for word in varied[:_MOST_WORDS]
    ]


def _word_number(name: str, read: Any) -> Feature:
    return Feature(name, "number", read, True, WORD_FAMILY)


def _last(example: Any) -> str:
    spoken = words(example.prompt)
    return spoken[-1] if spoken else ""


def _last_kind(example: Any) -> str:
    last = example.prompt[-1:]
    if last.isspace():
        return "space"
    if last.isdigit():
        return "digit"
    return "letter" if last.isalpha() else "punctuation"
