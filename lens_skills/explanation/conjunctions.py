"""Conjunctions of features that say where a neuron fires: found, put into words, and read again.

`best_conjunctions` finds one for each neuron, `in_words` makes a sentence of it, and
`SentenceReader` says of any example whether a sentence holds, from its words alone.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.data import halves
from lens_skills.explanation.feature_bank import FeatureBank
from lens_skills.explanation.features import value_order
from lens_skills.stats.correlation import correlate, standardise

MOST_TERMS = 3
"""Of a conjunction: a sentence of more is not read."""

_PLAIN = ("flag", "category", "number")
_CUTS = (0.1, 0.25, 0.5, 0.75, 0.9)  # quantiles at which a number is cut in two
_BEAM = 4  # conjunctions that are tried further at each length
_FEWEST_ROWS, _FEWEST_SHARE = 5, 0.02  # of rows on either side of a conjunction
_NEGATED = re.compile(r"\b(not (where )?|except where )$", re.IGNORECASE)
_GAIN = 0.01  # of the variance, out of fold, that a further term must add


@dataclass(frozen=True)
class Condition:
    """Something that an example meets or does not: one feature, and what is asked of it.

    Attributes:
        text: In words that follow "where": ``"an operand is 5"``, ``"a is 3 or more"``.
        feature: The feature's name.
        test: ``"is"`` (of a flag: holds), ``"reads"`` (of a category, as it is written), ``"from"``
            (this number or more) or ``"below"``.
        value: What a category is, or where a number is cut; 1 of a flag.
    """

    text: str
    feature: str
    test: str
    value: Any

    def holds(self, values: pd.DataFrame) -> Bool[Tensor, " row"]:
        """Whether each row of the features' values meets it."""
        column = values[self.feature]
        if self.test == "is":
            found = [value == self.value for value in column]
        elif self.test == "reads":
            found = [str(value).casefold() == self.value.casefold() for value in column]
        else:
            numbers = column.astype(float).to_numpy()
            found = (
                numbers >= self.value if self.test == "from" else numbers < self.value
            ).tolist()
        return torch.tensor(found, dtype=torch.bool)


@dataclass(frozen=True)
class Term:
    """A condition of a conjunction, or that it is not met."""

    condition: Condition
    negated: bool = False


def in_words(terms: Sequence[Term]) -> str:
    """A conjunction as a sentence, what is met before what is not.

    >>> five = Condition("an operand is 5", "an operand is 5", "is", 1)
    >>> odd = Condition("the result is odd", "the result is odd", "is", 1)
    >>> in_words([Term(odd, negated=True), Term(five)])
    'Fires where an operand is 5 and not where the result is odd.'
    >>> in_words([Term(odd, negated=True)])
    'Fires except where the result is odd.'
    """
    ordered = sorted(terms, key=lambda term: term.negated)
    without = "not" if any(not term.negated for term in terms) else "except"
    said = [f"{without} where" if term.negated else "where" for term in ordered]
    words = [f"{way} {term.condition.text}" for way, term in zip(said, ordered, strict=True)]
    return f"Fires {' and '.join(words)}."


def conditions_of(bank: FeatureBank, values: pd.DataFrame) -> list[Condition]:
    """What can be asked of each feature, by its values on these rows.

    A flag: that it holds. A category: each of its values. A number: that it is at or above, or
    below, one of the values at its 10th, 25th, 50th, 75th and 90th percentile.
    """
    found: dict[str, Condition] = {}
    # The plainest words come first: of two that say the same here the first is kept.
    for feature in sorted(bank, key=lambda one: _PLAIN.index(one.kind)):
        column = values[feature.name]
        if feature.kind == "flag":
            made = [Condition(feature.name, feature.name, "is", 1)]
        elif feature.kind == "category":
            levels = sorted(set(column), key=value_order)
            made = [
                Condition(f"{feature.name} is {level}", feature.name, "reads", str(level))
                for level in levels
            ]
        else:
            numbers = column.astype(float).to_numpy()
            # As they are written, so that the sentence alone says where the cut is.
            cuts = {float(f"{cut:.6g}") for cut in np.quantile(numbers, _CUTS, method="higher")}
            made = [
                Condition(f"{feature.name} is {how}", feature.name, test, cut)
                for cut in sorted(cuts)
                if (numbers >= cut).any() and (numbers < cut).any()
                for how, test in ((f"{cut:.6g} or more", "from"), (f"below {cut:.6g}", "below"))
            ]
        for condition in made:
            found.setdefault(condition.text, condition)
    return list(found.values())


def best_conjunctions(
    activations: Float[Tensor, "neuron row"],
    bank: FeatureBank,
    values: pd.DataFrame,
    groups: Sequence[str],
    *,
    seed: int,
) -> Iterator[tuple[Term, ...] | None]:
    """For each neuron the conjunction on which it is highest; None where none fits.

    Terms are added one after the other (a beam of four, at most three terms), each time those with
    the largest correlation of the activation with the conjunction. How many there are is decided
    between two halves of the groups: what is grown on one is measured on the other, and a further
    term must add 1 % of the variance there. A conjunction fits where the 95 % interval (over
    groups) of that correlation out of fold is above 0.

    Args:
        activations: On the rows of the half that is fitted on.
        bank: The features, none missing on these rows.
        values: Of the features, one row each.
        groups: Of the rows.
        seed: Of the two halves.
    """
    table = _Table(conditions_of(bank, values), values)
    folds = halves(groups, seed=seed)
    for row in activations:
        yield _of_neuron(row, table, groups, folds)


class _Table:
    """All terms (met and not) as columns of 0 and 1, of those alike the first."""

    def __init__(self, conditions: Sequence[Condition], values: pd.DataFrame) -> None:
        kept: dict[bytes, tuple[Term, Tensor]] = {}
        for negated in (False, True):
            for one in conditions:
                met = one.holds(values) ^ negated
                kept.setdefault(met.numpy().tobytes(), (Term(one, negated), met))
        self.terms = [term for term, _ in kept.values()]
        self.columns = torch.stack([met for _, met in kept.values()], dim=1).float()


def _of_neuron(
    activation: Float[Tensor, " row"],
    table: _Table,
    groups: Sequence[str],
    folds: tuple[Int[Tensor, " first"], Int[Tensor, " second"]],
) -> tuple[Term, ...] | None:
    outside = torch.zeros(MOST_TERMS, len(activation), dtype=torch.float64)
    for fitted, other in (folds, folds[::-1]):
        grown = _grown(activation[fitted], table.columns[fitted])
        for length in range(MOST_TERMS):
            chosen = grown[min(length, len(grown) - 1)] if grown else []
            met = table.columns[other][:, chosen].prod(1).double()
            # Centred in its fold, so that the two may be put together.
            outside[length, other] = met - met.mean() if chosen else 0.0
    centred = activation.double().clone()
    for part in folds:
        centred[part] -= centred[part].mean()
    r = (standardise(outside) @ standardise(centred[None])[0]) / len(centred)
    length = 0
    for more in range(1, MOST_TERMS):
        if float(r[more]) > 0 and float(r[more] ** 2 - r[length].clamp(min=0) ** 2) >= _GAIN:
            length = more
    found = correlate(centred[None], outside[length], groups)
    grown = _grown(activation, table.columns)
    if not grown or not float(found.low[0]) > 0:
        return None
    return tuple(
        table.terms[place] for place in _needed(grown[min(length, len(grown) - 1)], table.columns)
    )


def _needed(chosen: list[int], columns: Float[Tensor, "row term"]) -> list[int]:
    """The terms without those that change nothing: "an operand is 2" beside "a is 2"."""
    for place in chosen:
        rest = [other for other in chosen if other != place]
        if rest and torch.equal(columns[:, rest].prod(1), columns[:, chosen].prod(1)):
            return _needed(rest, columns)
    return chosen


def _grown(
    activation: Float[Tensor, " row"], columns: Float[Tensor, "row term"]
) -> list[list[int]]:
    """The best conjunction of one term, of two, and so on, as places of columns."""
    n = len(activation)
    least = max(_FEWEST_ROWS, _FEWEST_SHARE * n)
    centred = (activation - activation.mean()).float()
    beam: list[tuple[float, list[int], Tensor]] = [(0.0, [], torch.ones(n))]
    best: list[list[int]] = []
    for _ in range(MOST_TERMS):
        found: dict[tuple[int, ...], tuple[float, list[int], Tensor]] = {}
        for before, chosen, met in beam:
            count = met @ columns
            spread = (count * (n - count)).clamp(min=1e-9).sqrt()
            score = ((centred * met) @ columns) / spread
            enough = (count >= least) & (n - count >= least)
            score = torch.where(enough, score, -torch.inf)
            for place in score.topk(min(_BEAM, len(score))).indices.tolist():
                value = float(score[place])
                # Of no use: what says no more than the conjunction without it.
                if value > before * (1 + 1e-6) and value > 0:
                    key = tuple(sorted([*chosen, place]))
                    found.setdefault(key, (value, [*chosen, place], met * columns[:, place]))
        if not found:
            break
        beam = sorted(found.values(), key=lambda one: -one[0])[:_BEAM]
        best.append(beam[0][1])
    return best


class SentenceReader:
    """What a sentence says in the words of a bank, and whether it holds of an example.

    Read are the names of flags ("an operand is 5"), the values of categories ("the last word is
    keys") and bounds of numbers ("n words is 12 or more", "… is below 12"); the longest first,
    letters of either size; all together must hold, and one behind "not", "not where" or "except
    where" must not.
    """

    def __init__(self, bank: FeatureBank) -> None:
        self.bank = bank

    def read(self, sentence: str) -> tuple[Term, ...]:
        """The terms that stand in a sentence; none where it says nothing in the bank's words."""
        spans = [
            (match.start(), match.end(), feature.name, feature.kind, match.group("value"))
            for feature, pattern in self._patterns
            for match in pattern.finditer(sentence)
        ]
        taken: list[tuple[int, int]] = []
        found: list[tuple[int, Term]] = []
        for start, end, name, kind, value in sorted(spans, key=lambda s: (s[0] - s[1], s[0])):
            if any(start < stop and begin < end for begin, stop in taken):
                continue
            taken.append((start, end))
            negated = _NEGATED.search(sentence[:start]) is not None
            found.append((start, Term(self._condition(name, kind, value), negated)))
        return tuple(term for _, term in sorted(found, key=lambda one: one[0]))

    def holds(self, terms: Sequence[Term], values: pd.DataFrame) -> list[bool]:
        """Whether all terms hold, of each row of the features' values."""
        met = torch.ones(len(values), dtype=torch.bool)
        for term in terms:
            met &= term.condition.holds(values) ^ term.negated
        return met.tolist()

    @cached_property
    def _patterns(self) -> list[tuple[Any, re.Pattern[str]]]:
        found = []
        for feature in self.bank:
            name = re.escape(feature.name)
            number = r" is (?P<value>(?:below )?-?[\d.]*\d(?:e[+-]?\d+)?(?: or more)?)"
            ends = {"flag": "(?P<value>)", "category": " is (?P<value>.+?)", "number": number}
            # A category's value ends where a sentence or the next term begins.
            next_term = r"(?=\.?$| and (?:not |except )?where )"
            tail = next_term if feature.kind == "category" else r"(?!\w)"
            text = rf"(?<!\w){name}{ends[feature.kind]}{tail}"
            found.append((feature, re.compile(text, re.IGNORECASE)))
        return found

    def _condition(self, name: str, kind: str, value: str) -> Condition:
        if kind == "flag":
            return Condition(name, name, "is", 1)
        if kind == "number":
            number = float(value.removeprefix("below ").removesuffix(" or more"))
            test = "below" if value.startswith("below") else "from"
            # A bare number is that number: at or above it, and it is whole.
            if not value.startswith("below") and not value.endswith(" or more"):
                test = "is"
            return Condition(f"{name} is {value}", name, test, number)
        return Condition(f"{name} is {value}", name, "reads", value)
