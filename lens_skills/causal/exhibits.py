"""The further tables of a verdict: classes, the sum of singles, choice of ablation, controls."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.causal.comparison import Comparison
from lens_skills.causal.controls import Controls
from lens_skills.causal.edits import Edit, ablate
from lens_skills.causal.effects import Effects
from lens_skills.causal.estimates import Classes, Estimates, estimate, estimate_classes
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.stats.corrections import rank_p

Row = dict[str, Any]
MOST_CLASSES = 6


def find_classes(examples: Sequence[Example], by: Sequence[str] | None) -> Classes:
    """Which examples belong to which value of each column.

    By default every label with two to six values, two groups of examples in each.

    Raises:
        LensSkillsError: A column that was named and that not all examples have, or that has a
            single value.
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
        if by is not None or (
            None not in values and 2 <= len(names) <= MOST_CLASSES and min(groups) >= 2
        ):
            found[column] = members
    return found


def class_rows(effects: Effects, classes: Classes, **draws: int) -> tuple[Row, ...]:
    """Effect of every set in every class: name column value n effect low high."""
    found = estimate_classes(effects.total, effects.groups, classes, **draws)
    return tuple(
        {"name": name, "column": column, "value": value, "n": int(classes[column][value].sum())}
        | _effect(part, place)
        for column, members in found.items()
        for value, part in members.items()
        for place, name in enumerate(effects.names)
    )


def set_rows(effects: Effects, **draws: int) -> tuple[Row, ...]:
    """The set, the sum of its neurons each alone, and their difference: name effect low high.

    A difference of the set's own sign says that the neurons back each other up.
    """
    together, alone = effects.total[-1], effects.total[:-1].sum(dim=0)
    numbers = torch.stack([together, alone, together - alone])
    found = estimate(numbers, effects.groups, **draws)
    names = ("set", "sum of singles", "set - sum of singles")
    return tuple({"name": name} | _effect(found, place) for place, name in enumerate(names))


def effect_rows(effects: Effects, **draws: int) -> tuple[Row, ...]:
    """One row per set: name do n effect low high."""
    found = estimate(effects.total, effects.groups, **draws)
    return tuple(
        {"name": name, "do": effects.do, "n": len(effects.clean)} | _effect(found, place)
        for place, name in enumerate(effects.names)
    )


def control_rows(effects: Effects, comparison: Comparison) -> tuple[Row, ...]:
    """The set among each kind of control: kind controls mean low high p.

    ``low`` and ``high`` are the 5th and 95th percentile of the controls.
    """
    observed = effects.total[-1:].mean(dim=1).abs()
    kinds = {"matched": comparison.set_effect, "important": comparison.strict_effect}
    return tuple(_control_row(kind, observed, found) for kind, found in kinds.items() if len(found))


def match_rows(sets: Controls | None) -> tuple[Row, ...]:
    """How alike controls and candidates are: feature candidates controls smd."""
    return () if sets is None else sets.match


def other_ablations(do: Edit) -> tuple[Edit, ...]:
    """The other ways to ablate that need no more than ``do`` has: zero, mean, resample.

    >>> [edit.name for edit in other_ablations(ablate("mean"))]
    ['zero ablation']
    """
    if do.kind not in ("zero", "mean", "resample"):
        return ()
    edits = [ablate("zero")]
    if do.over is not None:
        edits.append(ablate("mean", over=do.over))
        if not hasattr(do.over, "provenance"):  # results hold means, but no donors
            edits.append(ablate("resample", over=do.over))
    return tuple(edit for edit in edits if edit.kind != do.kind)


def _control_row(kind: str, observed: Float[Tensor, "1"], found: Float[Tensor, " control"]) -> Row:
    return {
        "kind": kind,
        "controls": len(found),
        "mean": float(found.mean()),
        "low": float(found.double().quantile(0.05)),
        "high": float(found.double().quantile(0.95)),
        "p": float(rank_p(observed, found.abs())),
    }


def _effect(found: Estimates, place: int) -> Row:
    return {
        "effect": float(found.mean[place]),
        "low": float(found.low[place]),
        "high": float(found.high[place]),
    }
