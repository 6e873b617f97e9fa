"""The columns that ``given=`` partials out, and what of a metric they leave for a curve.

A number's effect need not be a straight line, nor the same in every category. So a number of few
values becomes one column per value, any other number a cubic spline, and ``"a*b"`` all products
of the two: what is then called "the same, given length" is so for any smooth effect of length.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills.data import Example, Value, cells_of, field_of
from lens_skills.errors import LensSkillsError, did_you_mean
from lens_skills.stats.effect_tests import FEWEST_GROUPS

FEW_VALUES = 12
"""A number of at most so many values, which come twice on average, has a column for each."""

FOLDS = 5


@dataclass(frozen=True)
class Block:
    """The columns of one covariate, or of the products of several.

    Attributes:
        name: As the user wrote it: ``length``, or ``length*rule``.
        how: What was made of it, in words.
        columns: One row per example; redundant ones are still in it.
    """

    name: str
    how: str
    columns: Float[np.ndarray, "row column"]


def covariate_columns(
    examples: Sequence[Example], given: Sequence[str]
) -> Float[Tensor, "row given"]:
    """Covariates as columns that, with a constant, are independent: mean 0, std 1, orthogonal.

    * A category, or a number of at most `FEW_VALUES` values that come twice on average: one 0/1
      column per value, the first left out.
    * Any other number: a cubic B-spline with one inner knot at the median (4 columns; R's
      ``bs(x, df = 4)``).
    * ``"a*b"``: the columns of a, those of b, and all their products (R's ``a * b``), unless a
      column is called so. Any number of names.

    Only what the columns span matters to a partial r; they are orthogonal so that they can be
    inverted. What repeats earlier columns is dropped.

    Args:
        examples: One row each.
        given: Names of labels or covariates, or products of them.

    Raises:
        LensSkillsError: An example lacks a covariate, or its number is not finite; or so many
            columns that nothing is left of the examples (which covariate takes how many).

    >>> lengths = [Example(str(n), "x", covariates={"length": n}) for n in range(40)]
    >>> covariate_columns(lengths, ["length"]).shape
    torch.Size([40, 4])
    """
    blocks = _blocks(examples, given)
    # Column by column, orthogonal to a constant and to those before it.
    basis = np.full((len(examples), 1), 1 / math.sqrt(len(examples)))
    takes = {block.name: 0 for block in blocks}
    for block in blocks:
        for column in block.columns.T:
            left = column - basis @ (basis.T @ column)
            left = left - basis @ (basis.T @ left)
            size = np.linalg.norm(left)
            if size > 1e-8 * max(float(np.linalg.norm(column)), 1e-300):
                basis = np.column_stack([basis, left / size])
                takes[block.name] += 1
                if basis.shape[1] >= len(examples):
                    break
    n_columns = basis.shape[1] - 1
    if blocks and n_columns + 2 >= len(examples):
        shares = ", ".join(
            f"{block.name!r} takes {takes[block.name]} ({block.how})" for block in blocks
        )
        raise LensSkillsError(
            f"{n_columns} covariate columns leave nothing of {len(examples)} examples: {shares}. "
            "Partial out fewer, or use more examples."
        )
    scaled = torch.from_numpy(basis[:, 1:].T.copy()) * math.sqrt(len(examples))
    return rearrange(scaled, "given row -> row given").contiguous()


def left_nonlinear(
    values: Float[Tensor, " row"], examples: Sequence[Example], given: Sequence[str]
) -> float:
    """How much of what the columns leave of a metric its covariates still tell, 0 to 1.

    The metric is regressed on `covariate_columns`; what is left is predicted from the covariates
    themselves by randomised trees (Geurts et al. 2006), for groups of examples that the trees have
    not seen, in 5 folds. Returned is R² = 1 - Σ(left - predicted)² / Σ left², at least 0. About 0
    for an effect that the columns hold; above 0.05 a partial r may still be the covariates', for
    instance by an interaction that ``"a*b"`` would name.

    It does not show that nothing is left: the trees find what so many examples show, and what is
    each group's own (a word) they cannot predict for other groups.

    Args:
        values: The metric's, one per example.
        examples: One row each.
        given: As in `covariate_columns`.

    Returns:
        R², or NaN where there are fewer than 8 groups, too few to learn from some and test on
        others. 0 where nothing of the metric is left.
    """
    # Imported here: scikit-learn takes a second to load and --help must not wait for it.
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.model_selection import GroupKFold

    names = list(dict.fromkeys(part for name in given for part in _parts(examples, name)))
    groups = field_of(examples, "group")
    if not names:
        return 0.0
    if len(set(groups)) < FEWEST_GROUPS:
        return math.nan
    design = covariate_columns(examples, given).numpy()
    metric = values.double().numpy()
    metric = metric - metric.mean()
    left = metric - design @ (design.T @ metric) / len(metric)
    if (left**2).sum() <= 1e-16 * (metric**2).sum():
        return 0.0
    raw = np.column_stack([_raw(examples, name) for name in names])
    predicted = np.zeros_like(left)
    for train, test in GroupKFold(FOLDS, shuffle=True, random_state=0).split(raw, groups=groups):
        trees = ExtraTreesRegressor(100, min_samples_leaf=5, max_features=1.0, random_state=0)
        predicted[test] = trees.fit(raw[train], left[train]).predict(raw[test])
    return max(0.0, 1 - float(((left - predicted) ** 2).sum() / (left**2).sum()))


def _blocks(examples: Sequence[Example], given: Sequence[str]) -> list[Block]:
    """Each covariate once, in order, products after what they are made of."""
    blocks: dict[str, Block] = {}
    for name in given:
        parts = _parts(examples, name)
        for part in parts:
            if part not in blocks:
                blocks[part] = _one(examples, part)
        for size in range(2, len(parts) + 1):
            for several in combinations(parts, size):
                product = "*".join(several)
                if product not in blocks:
                    blocks[product] = _product([blocks[part] for part in several])
    return list(blocks.values())


def _parts(examples: Sequence[Example], name: str) -> tuple[str, ...]:
    """The covariates that a name is the product of: a column's own name goes first."""
    if "*" not in name or any(value is not None for value in cells_of(examples, name)):
        return (name,)
    return tuple(dict.fromkeys(part.strip() for part in name.split("*")))


def _one(examples: Sequence[Example], name: str) -> Block:
    from sklearn.preprocessing import SplineTransformer

    values = list(_present(examples, name))
    is_category = any(isinstance(value, str) for value in values)
    found: list[Value] = sorted({str(v) for v in values} if is_category else set(values))
    if is_category or (len(found) <= FEW_VALUES and 2 * len(found) <= len(values)):
        plain = [str(value) if is_category else value for value in values]
        rows = np.array([[float(value == other) for other in found[1:]] for value in plain])
        how = f"{len(found)} {'categories' if is_category else 'values'}"
        return Block(name, how, rows.reshape(len(values), len(found) - 1))
    numbers = np.array(values, dtype=np.float64)[:, None]
    spline = SplineTransformer(n_knots=3, degree=3, knots="quantile", include_bias=False)
    if (knots := np.quantile(numbers, [0, 0.5, 1])).min() == knots.max():
        return Block(name, "one value", np.zeros((len(values), 0)))
    if len(set(knots)) < 3:
        # Half of the examples share one end: a knot there would be none.
        spline = SplineTransformer(n_knots=3, degree=3, knots="uniform", include_bias=False)
    # A spline of huge or tiny numbers is that of the same numbers at a common scale.
    scaled = (numbers - knots[0]) / (knots[2] - knots[0])
    return Block(name, "spline", spline.fit_transform(scaled))


def _product(blocks: Sequence[Block]) -> Block:
    columns = blocks[0].columns
    for block in blocks[1:]:
        pairs = np.einsum("ra,rb->rab", columns, block.columns)
        columns = pairs.reshape(len(pairs), -1)
    return Block("*".join(block.name for block in blocks), "products", columns)


def _present(examples: Sequence[Example], name: str) -> Iterator[Value]:
    for row, value in enumerate(cells_of(examples, name)):
        if value is None:
            example = examples[row]
            found = dict.fromkeys([*example.labels, *example.covariates])
            raise LensSkillsError(
                f"example {example.id!r} has no {name!r} to partial out."
                f"{did_you_mean(name, found)} It has: {', '.join(found) or 'no columns'}."
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise LensSkillsError(
                f"the covariate {name!r} is {value} for example {examples[row].id!r}."
            )
        yield value


def _raw(examples: Sequence[Example], name: str) -> Float[np.ndarray, "row column"]:
    """A covariate as trees read it: a number as it is, a category as a column for each."""
    values = list(_present(examples, name))
    if not any(isinstance(value, str) for value in values):
        return np.array(values, dtype=np.float64)[:, None]
    names = np.array([str(value) for value in values])
    found, counts = np.unique(names, return_counts=True)
    # The most frequent suffice: trees learn little from the others, and slowly.
    often = found[np.argsort(-counts, kind="stable")[:50]]
    return (names[:, None] == often).astype(np.float64)
