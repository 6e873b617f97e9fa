"""Which features say what a label or the metric says: η² of every column on every feature.

What such a feature explains of a neuron is the label (or the metric) by another name.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills.data import Example
from lens_skills.explanation.feature_bank import FeatureBank, FeatureMatrix
from lens_skills.explanation.feature_tests import Fit
from lens_skills.explanation.features import SURFACE_LABELS, value_order

DISGUISED = 0.8
"""From this η² on a feature stands for the column: what it explains cannot be told from it."""

_MOST_CLASSES = 12  # of a label; beyond them it is rather a name
_DIGITS = 6  # of an η²: more are noise


def eta_squared(
    targets: Float[Tensor, "target row"], design: FeatureMatrix
) -> Float[Tensor, "target feature"]:
    """Share of each target's variance that each feature accounts for, adjusted, 0 to 1.

    The variance between the classes of a flag or a category; of a number the larger of R² of the
    line and the variance between its eight equal-width bins. Adjusted for K classes on n rows:
    1 - (1 - η²)(n - 1) / (n - K), at least 0. A target that does not vary has 0.

    Source: Fisher's correlation ratio, adjusted as R² (Theil 1961).
    Does not show: which way round: a feature finer than a label accounts for all of it.
    """
    targets = targets.double()
    classes = design.classes.double()
    count = classes.sum(0)
    n_rows = len(classes)
    owner = torch.repeat_interleave(torch.tensor(design.n_classes))
    centred = targets - targets.mean(1, keepdim=True)
    total = centred.square().sum(1)
    varies = total > 1e-18 * targets.square().sum(1).clamp(min=1e-300)
    each = (centred @ classes).square() / count.clamp(min=1)
    between = torch.zeros(len(targets), len(design.features), dtype=torch.float64)
    between.index_add_(1, owner, each)
    share = between / rearrange(total.clamp(min=1e-300), "target -> target 1")
    n_classes = torch.zeros(len(design.features), dtype=torch.float64)
    n_classes.index_add_(0, owner, (count > 0).double())
    adjusted = 1 - (1 - share) * (n_rows - 1) / (n_rows - n_classes).clamp(min=1)
    is_number = torch.tensor([feature.kind == "number" for feature in design.features])
    line = Fit.of(targets, design).explained
    found = torch.where(is_number, torch.maximum(adjusted, line), adjusted)
    return torch.where(varies[:, None], found, 0.0).clamp(0, 1)


def label_columns(task: Sequence[Example]) -> dict[str, np.ndarray]:
    """The labels as numbers: of two values one column, of three to twelve one per value as well.

    Named as a reader would: ``"label even"``, ``"label op=+"``. Labels that say how the input
    looks (a heuristic) and those that an example lacks are left out.
    """
    found: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(name for example in task for name in example.labels):
        values = [example.labels.get(name) for example in task]
        if name in SURFACE_LABELS or any(value is None for value in values):
            continue
        known = [value for value in values if value is not None]
        distinct = sorted(set(known), key=value_order)
        is_text = any(isinstance(value, str) for value in distinct)
        if not is_text:
            found[f"label {name}"] = np.array(known, dtype=float)
        elif len(distinct) == 2:
            found[f"label {name}"] = np.array([value == distinct[1] for value in known], float)
        if 2 < len(distinct) <= _MOST_CLASSES:
            for one in distinct:
                found[f"label {name}={one}"] = np.array([value == one for value in known], float)
    return found


def disguises(
    bank: FeatureBank, values: pd.DataFrame, columns: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """The features that stand for a column: its η² on them is `DISGUISED` or more.

    Args:
        bank: Features of any kind.
        values: Of the features on some examples; those with a value missing or one only are left
            out.
        columns: Labels, a metric: one number per example each.

    Returns:
        One row per feature and column, largest η² first: feature surface family column eta_squared.

    >>> from lens_skills.explanation.features import Feature
    >>> mine = FeatureBank((Feature("mine", "flag", len),))
    >>> label = {"label odd": np.array([0.0, 1.0, 1.0])}
    >>> disguises(mine, pd.DataFrame({"mine": [1, 0, 0]}), label)["eta_squared"].tolist()
    [1.0]
    """
    usable = [
        feature
        for feature in bank
        for column in [values.loc[:, feature.name]]
        if not column.isna().any() and column.nunique() > 1
    ]
    rows: list[list[object]] = []
    if usable and columns:
        design = FeatureMatrix.of(usable, values)
        numbers = torch.from_numpy(np.stack(list(columns.values())).astype(float))
        share = eta_squared(numbers, design)
        for target, place in (share >= DISGUISED).nonzero().tolist():
            one = usable[place]
            value = round(float(share[target, place]), _DIGITS)
            rows.append([one.name, one.surface, one.family, list(columns)[target], value])
    frame = pd.DataFrame(rows, columns=["feature", "surface", "family", "column", "eta_squared"])
    frame = frame.astype({"surface": bool, "eta_squared": float})
    return frame.sort_values("eta_squared", ascending=False, kind="stable", ignore_index=True)


def stands_for(found: pd.DataFrame) -> dict[str, str]:
    """Of each feature in a table of `disguises` the column it stands for most."""
    return dict(zip(found["feature"][::-1], found["column"][::-1], strict=True))


def told(found: pd.DataFrame, most: int = 3) -> str:
    """The features of a table of `disguises` in words: ``'says +' (label op=+, η² 1.00)``."""
    rows = found.drop_duplicates("feature")
    some = [
        f"{row['feature']!r} ({row['column']}, η² {row['eta_squared']:.2f})"
        for row in rows.head(most).to_dict("records")
    ]
    return ", ".join(some) + (f" and {len(rows) - most} more" if len(rows) > most else "")
