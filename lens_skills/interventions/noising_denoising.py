"""What of the gap between clean and corrupted prompts a set carries: noising and denoising."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lens_skills.activations.components import Component
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.baselines import Change
from lens_skills.interventions.control_neurons import ComponentTable
from lens_skills.interventions.edits import patch
from lens_skills.interventions.effects import Effects, Measure
from lens_skills.interventions.verdict import Rows
from lens_skills.stats.effect_estimates import estimate
from lens_skills.stats.effect_tests import ClusteredRatio, ratio_interval

SUFFICIENT = 0.5
"""A set is called sufficient where the interval of its denoised share lies above this."""


def pair_rows(
    measure: Measure,
    examples: Sequence[Example],
    sets: Sequence[tuple[Component, ...]],
    names: Sequence[str],
    *,
    n_draws: int = 2000,
    seed: int = 0,
) -> Rows:
    """Shares of the clean–corrupted gap per set: name what share low high sufficient.

    ``"noising"``: the set's corrupted activations in the clean run, (clean - noised) / gap, the
    share that is lost without it. ``"denoising"``: its clean activations in the corrupted run,
    (denoised - corrupted) / gap, the share it restores by itself. Both are ratios of means, and
    the metric is that of the clean prompt's answer throughout; 1 is the whole gap, and neither is
    bound to [0, 1]. Only denoising can show that a set is *sufficient*.

    Raises:
        LensSkillsError: An example without a corrupted twin; a gap whose interval includes 0.

    Source: Zhang & Nanda 2023 (arXiv 2309.16042), section 2; Heimersheim & Nanda 2024
    (arXiv 2404.15255), section 2 (noising is about necessity, denoising about sufficiency).
    """
    without = [example.id for example in examples if example.corrupted is None]
    if without:
        raise LensSkillsError(
            f"example {without[0]!r} has no corrupted twin ({len(without)} of {len(examples)} lack "
            "one), so it can be neither noised nor denoised. Leave pairs= out."
        )
    twins = _twins(examples)
    noised = measure(examples, sets, patch("corrupted"), names=names)
    denoised = measure(twins, sets, patch("corrupted"), names=names)
    gap = noised.clean - denoised.clean
    shares = {"noising": -noised.total, "denoising": denoised.total}
    return _share_rows(shares, gap, noised, noised.names, n_draws=n_draws, seed=seed)


def corrupted_gap(
    measure: Measure, examples: Sequence[Example], clean: Float[Tensor, " example"]
) -> Float[Tensor, " example"] | None:
    """Clean less corrupted metric of each example; None where some have no corrupted twin."""
    if any(example.corrupted is None for example in examples):
        return None
    twins = _twins(examples)
    return clean - measure(twins, [()], patch("corrupted"), names=["none"]).clean


def _twins(examples: Sequence[Example]) -> list[Example]:
    return [
        replace(example, prompt=str(example.corrupted), corrupted=example.prompt)
        for example in examples
    ]


def preservation_row(
    measure: Measure,
    change: Change,
    examples: Sequence[Example],
    candidates: Sequence[Component],
    table: ComponentTable,
    *,
    n_draws: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """What of the metric is left when all other units of the candidates' kinds are edited.

    Mean edited metric over mean clean metric. This is *preservation*: it needs every other part of
    the model (attention, the units of other kinds) and does not show sufficiency.

    Raises:
        LensSkillsError: A clean metric whose interval includes 0.
    """
    kept = set(table.places(candidates).tolist())
    others = tuple(unit for place, unit in enumerate(table.units) if place not in kept)
    found = measure(examples, [others], change, names=["all others"])
    name = "set" if len(candidates) > 1 else candidates[0].name
    left = {"preservation": found.clean[None] + found.total}
    (row,) = _share_rows(left, found.clean, found, [name], n_draws=n_draws, seed=seed)
    return row


def _share_rows(
    changes: Mapping[str, Float[Tensor, "set example"]],
    gap: Float[Tensor, " example"],
    effects: Effects,
    names: Sequence[str],
    n_draws: int,
    seed: int,
) -> Rows:
    """Each kind of change over the gap, per set; raises where the gap's interval includes 0."""
    found = estimate(gap[None], effects.groups, n_draws=n_draws, seed=seed)
    low, high = float(found.low), float(found.high)
    if low <= 0 <= high:
        raise LensSkillsError(
            f"a share of {effects.metric} means nothing here: what it would be divided by is "
            f"{float(found.mean):+.3g} [{low:+.3g}, {high:+.3g}], which includes 0. Use more "
            "examples, or a metric the model tells clean from corrupted by."
        )
    rows: list[dict[str, Any]] = []
    for what, change in changes.items():
        whole = gap.expand_as(change)
        shares = ClusteredRatio.of(change, whole, effects.groups).value
        ends = ratio_interval(change, whole, effects.groups, n_draws=n_draws, seed=seed)
        for name, share, low, high in zip(names, shares, *ends, strict=True):
            sufficient = what == "denoising" and float(low) > SUFFICIENT
            row = {"name": name, "what": what, "share": float(share), "low": float(low)}
            rows.append(row | {"high": float(high), "sufficient": sufficient})
    return tuple(rows)
