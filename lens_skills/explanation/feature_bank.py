"""`feature_bank`: what can be said of a task's examples, to explain neurons with.

`FeatureMatrix` lays a bank's features on some examples side by side as columns of numbers.
"""

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.cards import card_lines
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.explanation.features import (
    READ,
    Feature,
    column_features,
    number_features,
    of_column,
    pair_features,
    value_order,
    word_features,
)
from lens_skills.stats.information import N_BINS, equal_width_codes


@dataclass(frozen=True, repr=False)
class FeatureBank(Sequence[Feature]):
    """Features of the examples of one task, in the order they were found.

    Attributes:
        features: Each with a name of its own.
        left_out: What was not taken, and why (constant on the task, the same as another).
    """

    features: tuple[Feature, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @overload
    def __getitem__(self, index: int | str) -> Feature: ...
    @overload
    def __getitem__(self, index: slice) -> "FeatureBank": ...
    def __getitem__(self, index: Any) -> Any:
        """A feature by its place or name, or a part of the bank."""
        if isinstance(index, slice):
            return replace(self, features=self.features[index])
        if not isinstance(index, str):
            return self.features[index]
        for feature in self.features:
            if feature.name == index:
                return feature
        near = difflib.get_close_matches(index, [*self.names, *self.left_out], n=1)
        raise LensSkillsError(
            f"no feature {index!r} in this bank."
            + (f" It was left out: {self.left_out[index]}." if index in self.left_out else "")
            + (f" Did you mean {near[0]!r}?" if near and near[0] != index else "")
            + f" It holds {len(self)}; bank.frame() lists them, extra= adds your own."
        )

    def __len__(self) -> int:
        return len(self.features)

    def __iter__(self) -> Iterator[Feature]:
        return iter(self.features)

    @property
    def names(self) -> tuple[str, ...]:
        """The features' names."""
        return tuple(feature.name for feature in self.features)

    def only(self, *names: str) -> "FeatureBank":
        """The bank of the named features alone; raises where one is not there."""
        return replace(self, features=tuple(self[name] for name in names))

    def without(self, *names: str) -> "FeatureBank":
        """The bank without the named features; raises where one is not there."""
        gone = {self[name].name for name in names}
        return replace(self, features=tuple(f for f in self.features if f.name not in gone))

    def values(self, examples: Sequence[Example]) -> pd.DataFrame:
        """One row per example and one column per feature; None where a feature has no value."""
        return pd.DataFrame({f.name: [f.read(example) for example in examples] for f in self})

    def frame(self) -> pd.DataFrame:
        """One row per feature: feature kind surface family."""
        columns = ("name", "kind", "surface", "family")
        rows = [[getattr(feature, name) for name in columns] for feature in self.features]
        return pd.DataFrame(rows, columns=["feature", *columns[1:]])

    def __repr__(self) -> str:
        families = dict.fromkeys(feature.family for feature in self.features)
        parts = [f"{sum(f.family == name for f in self)} {name}" for name in families]
        n_surface = sum(feature.surface for feature in self.features)
        shown = ", ".join(self.names[:6]) + (", …" if len(self) > 6 else "")
        text = (
            f"FeatureBank of {len(self)} ({', '.join(parts)}; {n_surface} on the surface, "
            f"{len(self) - n_surface} define the task): {shown}"
        )
        return "\n".join(card_lines(text))


def feature_bank(
    task: Sequence[Example],
    *,
    extra: Mapping[str, Any] | None = None,
    task_defining: Collection[str] = (),
) -> FeatureBank:
    """What can be said of a task's examples: operands and digits, overlap, words, columns, yours.

    Of arithmetic problems: operands, result, digits, parity, remainders, ranges, carry, equality
    and order. Of premises and hypotheses: overlap, order, length, negation. Of any text: length,
    last word, single words, characters. And every label and covariate. A feature that is constant
    on the task, or says the same as an earlier one, is left out and named in ``left_out``.

    Args:
        task: A Task or examples.
        extra: More features by name: a function of an example, ``"covariate:column"``,
            ``"label:column"`` or ``"column"``; numbers and texts become a number or categories.
            They come first, so of two that say the same yours is kept.
        task_defining: Names of features that define the task and are not on the surface of its
            input; of the bank's own, labels, results and carries are marked so already.

    Raises:
        LensSkillsError: No examples; an unknown column or name; a feature of yours that is missing
            for an example or no plain value.

    >>> from lens_skills import tasks
    >>> bank = feature_bank(tasks.arithmetic("+"), extra={"sum of 10": lambda e: e.answer == "10"})
    >>> bank["an operand is 5"].surface, bank["the result is odd"].surface
    (True, False)
    """
    if len(task) == 0:
        raise LensSkillsError("no examples to find features of: the task is empty.")
    features: list[Feature] = []
    for name, source in (extra or {}).items():
        features += _yours(name, source, task)
    numbers = number_features(task)
    features += numbers + pair_features(task)
    features += column_features(task, leave=READ if numbers else ())
    features += word_features(task)
    unknown = set(task_defining) - {feature.name for feature in features}
    if unknown:
        raise LensSkillsError(
            f"task_defining= names {sorted(unknown)[0]!r}, which is no feature here. "
            "feature_bank(task).frame() lists them."
        )
    kept: dict[str, Feature] = {}
    left_out: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for feature in features:
        key = _pattern([feature.read(example) for example in task], feature.kind)
        if key is None or feature.name in kept:
            left_out.setdefault(feature.name, "it is constant here")
        elif key in seen:
            left_out[feature.name] = f"it says the same as {seen[key]!r} here"
        else:
            seen[key] = feature.name
            surface = feature.surface and feature.name not in task_defining
            kept[feature.name] = replace(feature, surface=surface)
    return FeatureBank(tuple(kept.values()), {k: v for k, v in left_out.items() if k not in kept})


def _yours(name: str, source: Any, task: Sequence[Example]) -> list[Feature]:
    if isinstance(source, Feature):
        return [replace(source, name=name)]
    surface = True
    read: Callable[[Any], Any]
    if isinstance(source, str):
        kind, _, column = source.rpartition(":")
        if kind not in ("", "label", "covariate", "column"):
            raise LensSkillsError(
                f"the feature {name!r} is {source!r}. Write 'label:name', 'covariate:name' or give "
                "a function of an example."
            )
        surface = kind != "label"
        part = {"label": "labels", "covariate": "covariates"}.get(kind)
        known = sorted({key for e in task for key in (*e.labels, *e.covariates)})
        if all(_of_part(example, column, part) is None for example in task):
            raise LensSkillsError(
                f"the feature {name!r} reads {source!r}, which no example has. "
                f"There are: {', '.join(known) or 'no columns'}."
            )
        read = lambda example: _of_part(example, column, part)  # noqa: E731
    elif callable(source):
        read = lambda example: _plain(source(example))  # noqa: E731
    else:
        raise LensSkillsError(
            f"the feature {name!r} is a {type(source).__name__}. Give a function of an example, "
            "such as lambda example: 'x' in example.prompt, or 'covariate:name'."
        )
    missing = [example.id for example in task if read(example) is None]
    if missing:
        raise LensSkillsError(
            f"the feature {name!r} has no value for {len(missing)} of {len(task)} examples (first: "
            f"{missing[0]!r}). Return one for each, or leave those examples out."
        )
    found = of_column(name, read, task, surface=surface, family="yours")
    if not found:
        raise LensSkillsError(
            f"the feature {name!r} has too many categories to explain anything. Give a number, or "
            "fewer categories."
        )
    return found


def _of_part(example: Any, column: str, part: str | None) -> Any:
    return example.column(column) if part is None else getattr(example, part).get(column)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _pattern(values: list[Any], kind: str) -> tuple[Any, ...] | None:
    """What two features share that say the same; None where the values are constant."""
    if any(value is None for value in values) or len(set(values)) < 2:
        return None
    if kind == "number":
        numbers = np.array(values, dtype=float)
        scaled = (numbers - numbers.mean()) / numbers.std()
        return ("number", *np.round(scaled * np.sign(scaled[np.abs(scaled) > 1e-9][0]), 9))
    order = {value: code for code, value in enumerate(dict.fromkeys(values))}
    return ("classes", *(order[value] for value in values))


@dataclass(frozen=True, eq=False)
class FeatureMatrix:
    """Features as columns: one of a flag or a number, one per class of a category.

    Attributes:
        features: Whose columns stand side by side, in this order.
        columns: Their numbers.
        owner: The feature of each column.
        classes: Every feature as 0/1 columns of its classes (a flag has two, a number as many as
            there are bins), for counting.
        n_classes: How many of those each feature has.
        levels: The classes of each feature in words; of a flag and a number, none.
    """

    features: tuple[Feature, ...]
    columns: Float[Tensor, "row column"]
    owner: Int[Tensor, " column"]
    classes: Float[Tensor, "row class"]
    n_classes: list[int]
    levels: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, features: Sequence[Feature], values: pd.DataFrame) -> "FeatureMatrix":
        """The columns of features whose values, none missing, stand in the table."""
        columns: list[np.ndarray] = []
        owner: list[int] = []
        classes: list[Tensor] = []
        sizes: list[int] = []
        levels: list[tuple[Any, ...]] = []
        for place, feature in enumerate(features):
            found = values[feature.name].tolist()
            if feature.kind == "category":
                distinct = sorted(set(found), key=value_order)
                code = {value: number for number, value in enumerate(distinct)}
                codes = torch.tensor([code[value] for value in found])
                mine = np.eye(len(distinct))[codes.numpy()]
                levels.append(tuple(distinct))
            else:
                mine = np.array(found, dtype=float)[:, None]
                numbers = torch.from_numpy(mine[:, 0])
                binary = feature.kind == "flag"
                codes = numbers.long() if binary else equal_width_codes(numbers, n_bins=N_BINS)
                levels.append(())
            n_classes = int(codes.max()) + 1
            columns.append(mine)
            owner += [place] * mine.shape[1]
            classes.append(torch.nn.functional.one_hot(codes, n_classes))
            sizes.append(n_classes)
        return cls(
            tuple(features),
            torch.from_numpy(np.concatenate(columns, axis=1)),
            torch.tensor(owner),
            torch.cat(classes, dim=1).float(),
            sizes,
            tuple(levels),
        )

    def rows(self, where: Int[Tensor, " part"]) -> "FeatureMatrix":
        """The same features on some of the rows."""
        return replace(self, columns=self.columns[where], classes=self.classes[where])

    def per_feature(self, columns: Float[Tensor, "*unit column"]) -> Float[Tensor, "*unit feature"]:
        """Sums over the columns of each feature."""
        total = columns.new_zeros(*columns.shape[:-1], len(self.features))
        return total.index_add_(-1, self.owner, columns)
