"""What of a task and a bank can be used to explain neurons, and what is to be said of the rest."""

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.explanation.bank import FeatureBank, disguised
from lens_skills.explanation.findings import ALPHA
from lens_skills.stats.bootstrap import FEW_GROUPS

_FEWEST_GROUPS = 8  # of the measured half: below it exchanging groups hardly gives p <= 0.05
_FEWEST = 10  # examples per half


def check_halves(
    sides: tuple[Int[Tensor, " fitted"], Int[Tensor, " held"]], groups: Sequence[str], n_draws: int
) -> tuple[Int[Tensor, " fitted"], Int[Tensor, " held"]]:
    """The halves; raises where they are too small to measure on, or to draw a null from."""
    n_groups = len({groups[row] for row in sides[1].tolist()})
    if min(map(len, sides)) < _FEWEST or n_groups < 2:
        raise LensSkillsError(
            f"{len(groups)} examples in {len(set(groups))} groups leave {len(sides[0])} to fit "
            f"features on and {len(sides[1])} to measure them on; {_FEWEST} of each are the least. "
            "Give more examples."
        )
    if n_draws and n_groups < _FEWEST_GROUPS:
        raise LensSkillsError(
            f"{n_groups} groups in the half that is measured are too few for a null: exchanging "
            f"whole groups needs {_FEWEST_GROUPS} at least. Give more groups, or say "
            "n_permutations=0 and read no p."
        )
    return sides


def usable(
    bank: FeatureBank, values: pd.DataFrame, sides: tuple[Tensor, Tensor]
) -> tuple[list[str], dict[str, str]]:
    """The features that vary on both halves, and why the others do not serve."""
    kept, left_out = [], {}
    for name in bank.names:
        column = values[name]
        if column.isna().any():
            left_out[name] = f"it has no value for {int(column.isna().sum())} examples"
        elif any(column.iloc[side.numpy()].nunique() < 2 for side in sides):
            whole = column.nunique() < 2
            left_out[name] = f"it is constant on {'these examples' if whole else 'one half'}"
        else:
            kept.append(name)
    return kept, left_out


def remarks(
    task: Sequence[Example],
    bank: FeatureBank,
    values: pd.DataFrame,
    left_out: Mapping[str, str],
    active: Bool[Tensor, " neuron"],
    n_groups: int,
    n_draws: int,
    kept: Sequence[str],
) -> list[str]:
    """What a reader must know before quoting a number; warns of labels in disguise."""
    notes = []
    if silent := int((~active).sum()):
        notes.append(f"{silent} of {len(active)} neurons are never active on these examples")
    if left_out:
        some = ", ".join(repr(name) for name in list(left_out)[:4])
        notes.append(
            f"{len(left_out)} features were left out, as they cannot be used here: {some}"
            + (", …" if len(left_out) > 4 else "")
            + " (see left_out)"
        )
    labels = {
        f"label {name!r}": np.array([float(e.labels[name]) for e in task])
        for name in {name for e in task for name in e.labels}
        if all(not isinstance(e.labels.get(name), str | None) for e in task)
    }
    mine = [name for name in kept if bank[name].family == "yours" and bank[name].surface]
    for name, (label, r) in disguised(labels, values, mine).items():
        text = (
            f"the feature {name!r} is the {label} in disguise (r = {r:+.2f}): what it explains is "
            "the task. Mark it so: feature_bank(…, task_defining=[…])"
        )
        warnings.warn(text, RuntimeWarning, stacklevel=3)
        notes.append(text)
    if n_draws and n_groups < FEW_GROUPS:
        notes.append(f"{n_groups} groups on the measured half are few: p is coarse")
    n_tests = int(active.sum()) * len(kept)
    if n_draws:
        needed = math.ceil(n_tests / (ALPHA * (1 + n_draws)) - 1e-9)
        if needed > 1:
            notes.append(
                f"the smallest p is {1 / (1 + n_draws):.2g}: q <= {ALPHA} takes {needed:,} of "
                f"{n_tests:,} tests at it"
            )
    return notes
