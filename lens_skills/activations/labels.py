"""Columns of the task as metrics: numbers as they are, categories one against the rest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations.metrics import Metric
from lens_skills.activations.readout import Readout
from lens_skills.errors import LensSkillsError

MOST_CATEGORIES = 12
"""Beyond this a column is rather a name than a property, and is not split into categories."""


@dataclass(frozen=True)
class Column(Metric):
    """A metric that is a column of the task.

    Attributes:
        column: Its name.
        kind: ``labels`` or ``covariates``.
    """

    column: str = ""
    kind: str = "labels"

    def by_category(self, examples: Sequence[Any]) -> tuple[Metric, ...]:
        """The column itself, or one 0/1 metric per category where there are three or more.

        Raises:
            LensSkillsError: More categories than `MOST_CATEGORIES`.
        """
        # A missing value is left to the reading of the column, which names the example.
        values = [getattr(example, self.kind).get(self.column) for example in examples]
        categories = _categories(values)
        if len(categories) <= 2 or not any(isinstance(value, str) for value in values):
            return (self,)
        if len(categories) > MOST_CATEGORIES:
            raise LensSkillsError(
                f"{self.column!r} has {len(categories)} categories ({', '.join(categories[:3])}, "
                f"…), more than {MOST_CATEGORIES}, to be one metric each. Name those you want, "
                f"each against the rest: '{self.kind[:-1]}:{self.column}={categories[0]}'; or "
                "give the examples a column of fewer."
            )
        return tuple(
            replace(
                column_metric(f"{self.column}={category}", self.kind),
                name=f"{self.name}={category}",
            )
            for category in categories
        )


def label(name: str) -> Metric:
    """A label of the task as a metric, or one of its categories against the rest.

    Numbers stay as they are and two categories are 0 and 1 (in sorted order). A label of three to
    twelve categories becomes one 0/1 metric each where it is asked for (``score``, ``evaluate``,
    …), called ``label:rule=a``, ``label:rule=b`` and so on; ``label("rule=a")`` is one of them
    alone.

    >>> label("plural").name
    'label:plural'
    """
    return column_metric(name, "labels")


def covariate(name: str) -> Metric:
    """A covariate of the task, read like a label."""
    return column_metric(name, "covariates")


def column_metric(name: str, kind: str) -> Column:
    """A column of the labels or of the covariates."""
    return Column(f"{kind[:-1]}:{name}", _reader(name, kind), frozenset(), "column", name, kind)


def column_values(
    examples: Sequence[Any], name: str, kind: str = "column"
) -> Float[Tensor, " row"]:
    """A column of the examples as numbers; two categories become 0 and 1 in sorted order.

    ``"rule=a"`` is 1 where the column ``rule`` is ``a``, else 0, unless a column is called so.

    Raises:
        LensSkillsError: A missing column, more than two categories, or a category that no example
            has.

    >>> from lens_skills.example import Example
    >>> rules = [Example(name, "x", labels={"rule": name}) for name in "abc"]
    >>> column_values(rules, "rule=b").tolist()
    [0.0, 1.0, 0.0]
    """
    column, _, category = name.rpartition("=")
    # A column's own name goes first, whatever signs it holds.
    whole = not column or any(_value(example, name, kind) is not None for example in examples)
    values = [_present(example, name if whole else column, kind) for example in examples]
    categories = _categories(values)
    if not whole:
        if category not in categories:
            raise LensSkillsError(
                f"no example here has {column} {category!r}: it is {', '.join(categories[:12])}"
                f"{', …' if len(categories) > 12 else ''}. Name one of these, or give examples "
                "of both sides."
            )
        return torch.tensor([float(str(value) == category) for value in values]).double()
    if any(isinstance(value, str) for value in values):
        if len(categories) > 2:
            prefix = "" if kind == "column" else f"{kind[:-1]}:"
            raise LensSkillsError(
                f"{name!r} has {len(categories)} categories ({', '.join(categories[:5])}, …); a "
                f"metric is one number. Name one, against the rest: "
                f"'{prefix}{name}={categories[0]}'."
            )
        return torch.tensor([categories.index(str(value)) for value in values]).double()
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def _reader(name: str, kind: str) -> Callable[[Readout | None, Sequence[Any]], Tensor]:
    return lambda readout, examples: column_values(examples, name, kind)


def _categories(values: Sequence[Any]) -> list[str]:
    return sorted({str(value) for value in values if value is not None})


def _value(example: Any, name: str, kind: str) -> Any:
    return example.column(name) if kind == "column" else getattr(example, kind).get(name)


def _present(example: Any, name: str, kind: str) -> Any:
    value = _value(example, name, kind)
    if value is None:
        found = sorted({*example.labels, *example.covariates})
        raise LensSkillsError(
            f"example {example.id!r} has no {'' if kind == 'column' else kind[:-1] + ' '}"
            f"{name!r}. It has: {', '.join(found) or 'no columns'}."
        )
    return value
