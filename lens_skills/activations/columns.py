"""Columns of a task as numbers: two categories, one against the rest, or categories in order."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.data import cells_of
from lens_skills.errors import LensSkillsError, did_you_mean

_ORDERED = re.compile(r"^(?P<column>.+):ordered=\[(?P<order>.*)\]$", re.DOTALL)


_READ_AS = re.compile(r"^(?P<column>.+):(?P<kind>number|classes)$", re.DOTALL)

MOST_CATEGORIES = 12
"""Beyond this a column is rather a name than a property, and is not split into categories."""


def reading_of(examples: Sequence[Any], name: str, kind: str) -> tuple[str, bool]:
    """The column behind ``name``, and whether each of its values is a metric of its own.

    Texts are categories. Whole numbers of a label are class ids where there are 3 to 12 of them,
    the lowest -1, 0 or 1 and none above 12; others are numbers: years, measurements, counts that
    do not begin there, covariates. ``name:number`` and ``name:classes`` say so.

    >>> from lens_skills.data import Example
    >>> stars = [Example(str(n), "x", labels={"stars": n, "year": 1990 + n}) for n in range(5)]
    >>> [reading_of(stars, name, "labels")[1] for name in ("stars", "year", "stars:number")]
    [True, False, False]
    """
    said = _said(examples, name, kind)
    column, asked = (name, None) if said is None else said
    cells: list[Any] = cells_of(examples, column, kind)
    values = [value for value in cells if value is not None]
    categories = set(values)
    if len(categories) <= 2 or asked == "number":
        return column, False
    if asked == "classes" or any(isinstance(value, str) for value in values):
        return column, True
    whole = kind == "labels" and all(type(value) is int for value in values)
    low, high = (min(values), max(values)) if whole else (0, 0)
    return column, (
        whole and len(categories) <= MOST_CATEGORIES and abs(low) <= 1 and high <= MOST_CATEGORIES
    )


def ordered_name(name: str, order: Sequence[Any]) -> str:
    """How a column is written whose categories have an order, from the lowest.

    Raises:
        LensSkillsError: Fewer than two categories, one named twice, or one that holds a comma or
            a bracket and so cannot be written in a list.

    >>> ordered_name("level", ["low", "high"])
    'level:ordered=[low, high]'
    """
    texts = [str(value).strip() for value in order]
    if wrong := [text for text in texts if not text or set(text) & set(",[]")]:
        raise LensSkillsError(
            f"{wrong[0]!r} cannot stand in the order of {name!r}, which is written with commas and "
            "brackets. Give the examples a column of numbers instead."
        )
    if len(texts) < 2 or len(set(texts)) < len(texts):
        raise LensSkillsError(
            f"the order of {name!r} is [{', '.join(texts)}]: name two categories or more, each "
            "once, from the lowest."
        )
    return f"{name}:ordered=[{', '.join(texts)}]"


def family_of(metric: str) -> str:
    """The label whose category a metric is: what its p is family-wise over; else its own name.

    >>> family_of("label:rule=a"), family_of("label:level:ordered=[low, high]")
    ('label:rule', 'label:level:ordered=[low, high]')
    """
    column, _, category = metric.rpartition("=")
    return metric if not column or not category or _ORDERED.match(metric) else column


def column_values(
    examples: Sequence[Any], name: str, kind: str = "column"
) -> Float[Tensor, " row"]:
    """A column of the examples as numbers; two categories become 0 and 1 in sorted order.

    ``"rule=a"`` is 1 where the column ``rule`` is ``a``, else 0;
    ``"level:ordered=[low, middle, high]"`` is 0, 1 and 2. A column that is itself called so goes
    first.

    Raises:
        LensSkillsError: A missing column, more than two categories without an order, a category
            that no example has, or one that an order leaves out.

    >>> from lens_skills.data import Example
    >>> rules = [Example(name, "x", labels={"rule": name}) for name in "abc"]
    >>> column_values(rules, "rule=b").tolist()
    [0.0, 1.0, 0.0]
    >>> column_values(rules, "rule:ordered=[c, b, a]").tolist()
    [2.0, 1.0, 0.0]
    """
    said = _said(examples, name, kind)
    if said is not None and said[1] == "number":
        values = _all_present(examples, said[0], kind)
        if texts := [value for value in values if isinstance(value, str)]:
            raise LensSkillsError(f"{name!r}: {said[0]} is {texts[0]!r}, no number.")
        return torch.tensor([float(value) for value in values], dtype=torch.float64)
    name = name if said is None else said[0]
    # A column's own name goes first, whatever signs it holds.
    cells = cells_of(examples, name, kind)
    whole = any(value is not None for value in cells)
    ordered = _ORDERED.match(name)
    if ordered and not whole:
        return _ranks(examples, ordered["column"], ordered["order"].split(","), kind)
    column, _, category = name.rpartition("=")
    whole = whole or not column
    column, cells = (name, cells) if whole else (column, cells_of(examples, column, kind))
    values = _all_present(examples, column, kind, cells)
    if whole and not any(isinstance(value, str) for value in values):
        return torch.tensor([float(value) for value in values], dtype=torch.float64)
    categories = categories_of(values)
    if not whole:
        if category not in categories:
            raise LensSkillsError(
                f"no example here has {column} {category!r}: it is {', '.join(categories[:12])}"
                f"{', …' if len(categories) > 12 else ''}.{did_you_mean(category, categories)} "
                "Name one of these, or give examples of both sides."
            )
        return torch.tensor([float(str(value) == category) for value in values]).double()
    if len(categories) > 2:
        prefix = "" if kind == "column" else f"{kind[:-1]}:"
        raise LensSkillsError(
            f"{name!r} has {len(categories)} categories ({', '.join(categories[:5])}, …); a "
            f"metric is one number. Name one, against the rest: "
            f"'{prefix}{name}={categories[0]}'; or, where they have an order, all from the "
            f"lowest: '{prefix}{name}:ordered=[{categories[0]}, …]'."
        )
    return torch.tensor([categories.index(str(value)) for value in values]).double()


def categories_of(values: Sequence[Any]) -> list[str]:
    """The distinct values as texts, sorted (numbers by size); missing ones left out."""
    found = {value for value in values if value is not None}
    texts = any(isinstance(value, str) for value in found)
    return [str(value) for value in sorted(found, key=str if texts else None)]


def _said(examples: Sequence[Any], name: str, kind: str) -> tuple[str, str] | None:
    """The column and how it is to be read, where the name says so and is no column's own."""
    match = _READ_AS.match(name)
    if match is None or any(value is not None for value in cells_of(examples, name, kind)):
        return None
    return match["column"], match["kind"]


def _ranks(
    examples: Sequence[Any], column: str, order: Sequence[str], kind: str
) -> Float[Tensor, " row"]:
    ordered_name(column, order)
    place = {text.strip(): rank for rank, text in enumerate(order)}
    ranks = []
    for row, cell in enumerate(_all_present(examples, column, kind)):
        value = str(cell).strip()
        if value not in place:
            raise LensSkillsError(
                f"example {examples[row].id!r} has {column} {value!r}, which the order "
                f"[{', '.join(place)}] leaves out.{did_you_mean(value, place)} Name it at its "
                "place, or leave the example out."
            )
        ranks.append(place[value])
    return torch.tensor(ranks, dtype=torch.float64)


def _all_present(
    examples: Sequence[Any], name: str, kind: str, cells: Sequence[Any] | None = None
) -> Sequence[Any]:
    """The cells of a column; raises where an example has none."""
    cells = cells_of(examples, name, kind) if cells is None else cells
    row = next((row for row, value in enumerate(cells) if value is None), None)
    if row is not None:
        example = examples[row]
        # What is asked for may be a covariate where a label was named, and the other way round.
        known = dict.fromkeys(example.labels, "label")
        known |= {each: "covariate" for each in example.covariates if each not in known}
        near = [name] if name in known else get_close_matches(name, known, n=1)
        hint = "".join(f" Did you mean {f'{known[each]}:{each}'!r}?" for each in near)
        found = sorted({*example.labels, *example.covariates})
        raise LensSkillsError(
            f"example {example.id!r} has no {'' if kind == 'column' else kind[:-1] + ' '}"
            f"{name!r}.{hint} It has: {', '.join(found) or 'no columns'}."
        )
    return cells
