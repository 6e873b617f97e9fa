"""The tables of a verdict: classes, the set and the sum of its neurons, other edits, controls."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.control_effects import ControlEffects
from lens_skills.interventions.effects import Effects
from lens_skills.interventions.verdict import Rows, mean_and_ends
from lens_skills.stats.effect_estimates import Classes, estimate, estimate_classes
from lens_skills.stats.effect_tests import FEWEST_GROUPS
from lens_skills.stats.multiple_testing import rank_p

MOST_CLASSES = 6


def find_classes(examples: Sequence[Example], by: Sequence[str] | None) -> Classes:
    """Which examples belong to which value of each column.

    By default every label with two to six values, `FEWEST_GROUPS` groups of examples in each.

    Raises:
        LensSkillsError: A column that was named and that not all examples have, that has a single
            value, or one of whose values has fewer groups.
    """
    columns = (
        sorted({name for example in examples for name in example.labels}) if by is None else by
    )
    found: dict[str, dict[str, Tensor]] = {}
    for column in columns:
        values = [example.column(column) for example in examples]
        names = sorted({str(value) for value in values if value is not None})
        members = {name: torch.tensor([str(value) == name for value in values]) for name in names}
        if by is not None and (None in values or len(names) < 2):
            raise LensSkillsError(
                f"the examples cannot be told apart by {column!r}: "
                + ("some have none." if None in values else f"all are {', '.join(names)}.")
            )
        groups = [
            len({examples[int(place)].group for place in mask.nonzero()})
            for mask in members.values()
        ]
        if by is not None and min(groups) < FEWEST_GROUPS:
            name = names[groups.index(min(groups))]
            raise LensSkillsError(
                f"the examples with {column} = {name} are of {min(groups)} groups; an interval "
                f"needs {FEWEST_GROUPS} at least. Leave {column!r} out of by=, or give more groups."
            )
        if by is not None or (
            None not in values and 2 <= len(names) <= MOST_CLASSES and min(groups) >= FEWEST_GROUPS
        ):
            found[column] = members
    return found


def class_rows(effects: Effects, classes: Classes, **draws: Any) -> Rows:
    """Effect of every set in every class: name column value n effect low high."""
    found = estimate_classes(
        effects.total, effects.groups, classes, shares=effects.of_shares, **draws
    )
    return tuple(
        {"name": name, "column": column, "value": value, "n": int(classes[column][value].sum())}
        | mean_and_ends(part, place)
        for column, members in found.items()
        for value, part in members.items()
        for place, name in enumerate(effects.names)
    )


def set_rows(effects: Effects, **draws: Any) -> Rows:
    """The set, the sum of its neurons each alone, and their difference: name effect low high.

    A difference of the set's own sign says that the neurons back each other up.
    """
    together, alone = effects.total[-1], effects.total[:-1].sum(dim=0)
    numbers = torch.stack([together, alone, together - alone])
    found = estimate(numbers, effects.groups, **draws)
    names = ("set", "sum of singles", "set - sum of singles")
    rows = [{"name": name} | mean_and_ends(found, place) for place, name in enumerate(names)]
    if effects.of_shares:  # sums of shares are none
        exact = estimate(effects.total[-1:], effects.groups, shares=True)
        rows[0] |= mean_and_ends(exact, 0)
    return tuple(rows)


def effect_rows(effects: Effects, **draws: Any) -> Rows:
    """One row per set: name do n effect low high."""
    found = estimate(effects.total, effects.groups, shares=effects.of_shares, **draws)
    return tuple(
        {"name": name, "do": effects.do, "n": len(effects.clean)} | mean_and_ends(found, place)
        for place, name in enumerate(effects.names)
    )


def control_rows(effects: Effects, compared: ControlEffects) -> Rows:
    """The set among each kind of control: kind controls mean low high p.

    ``low`` and ``high`` are the 5th and 95th percentile of the controls.
    """
    observed = effects.total[-1:].mean(dim=1).abs()
    kinds = {"matched": compared.set_effect, "important": compared.strict_effect}
    return tuple(
        {
            "kind": kind,
            "controls": len(found),
            "mean": float(found.mean()),
            "low": float(found.double().quantile(0.05)),
            "high": float(found.double().quantile(0.95)),
            "p": float(rank_p(observed, found.abs())),
        }
        for kind, found in kinds.items()
        if len(found)
    )
