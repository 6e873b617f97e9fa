"""`column_features`: every label and covariate of a task as features."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from lens_skills.errors import LensSkillsError
from lens_skills.example import Example, Value
from lens_skills.explanation.feature import Feature, each_value

FAMILY = "columns"
MOST_CATEGORIES = 24
"""A column of more categories is rather a name than a property."""

# Labels that say how the input looks, not what is right.
_SURFACE_LABELS = ("heuristic", "lexical_overlap", "subsequence", "constituent", "io_first")
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
            surface = name not in labels or name in _SURFACE_LABELS
            found += of_column(name, _reader(name), examples, surface=surface, family=FAMILY)
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
    distinct = sorted({value for value in values if value is not None}, key=_order)
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


def _order(value: Value) -> tuple[bool, Value]:
    return isinstance(value, str), value


def _reader(name: str) -> Callable[[Any], Value | None]:
    return lambda example: example.column(name)
