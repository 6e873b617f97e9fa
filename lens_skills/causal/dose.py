"""`dose_response`: what steering a set does, dose by dose, to a metric and to neutral text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Position, parse_metrics
from lens_skills.causal.baseline import describe_source, edited_positions, measure_baseline
from lens_skills.causal.curve import DoseResponse
from lens_skills.causal.edits import steer
from lens_skills.causal.measurement import measure_effects
from lens_skills.causal.neutral import neutral_texts, text_damage
from lens_skills.causal.units import parse_units, sites_of
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import as_lens
from lens_skills.scoring.provenance import examples_hash, versions
from lens_skills.stats.bootstrap import cluster_interval

DOSES = (-4.0, -2.0, 0.0, 1.0, 2.0, 4.0)


def dose_response(
    model: Any,
    examples: Sequence[Example],
    units: Any,
    *,
    doses: Sequence[float] = DOSES,
    metric: Any = "logit_diff",
    position: Position = "last",
    over: Any = None,
    neutral: Sequence[str] | None = None,
    at: str = DEFAULT_SITE,
    seed: int = 0,
) -> DoseResponse:
    """The effect of steering a set by each dose, its slope, and the damage done elsewhere.

    At dose d every unit of the set is moved by d of its own standard deviations, all at once. The
    slope is that of least squares, Σ_d (d − d̄) e_d / Σ_d (d − d̄)², per example, then averaged.

    Args:
        model: A HookedTransformer or TransformerBridge.
        examples: What the effect is measured on.
        units: The set: names, rows, or a `Selection`.
        doses: In standard deviations; at least two different ones.
        metric: Any metric; see `parse_metrics`.
        position: One position, or ``"all"``.
        over: Where the standard deviations come from: a split or `Scores`. None takes those of the
            `Selection`, or else of the examples themselves.
        neutral: Texts to measure the damage on, steered at every token by the same amount; None
            takes the project's own sixty sentences.
        at: The site of what is named as a neuron.
        seed: Of the bootstrap.

    Intervals are those of `cluster_interval`; the slope's is that of the per-example slopes.

    Does not show: that the model itself goes there; few activations lie beyond 4 std.

    Raises:
        LensSkillsError: Fewer than two doses, a list of positions, units the model lacks.
    """
    lens = as_lens(model)
    amounts = _check_doses(doses)
    if len(edited_positions(position).labels) > 1:
        raise LensSkillsError("dose_response steers at one position, or at 'all'; not at a list.")
    found = parse_units(lens, units, at=at)
    if not found:
        raise LensSkillsError("no units to steer: the set is empty.")
    if over is None:
        over = units if getattr(units, "std", None) is not None else examples
    sites = sites_of(found)
    # Measured once, for all doses.
    # Prompts end where they end in the pass that measures the effect.
    answers = any(bool(watched.reads - {"logits"}) for watched in parse_metrics(metric))
    baseline = measure_baseline(lens, over, sites, position=position, answers=answers)
    # Dose 0 changes nothing and needs no pass.
    given = [place for place, dose in enumerate(amounts) if dose != 0]
    edits = [steer(by=amounts[place], over=baseline) for place in given]
    measured = [
        measure_effects(lens, examples, [found], edit, metric=metric, position=position, seed=seed)
        for edit in edits
    ]
    effects = torch.zeros(len(amounts), len(examples), dtype=torch.float64)
    effects[given] = torch.cat([one.total.double() for one in measured])
    first = measured[0]
    low, high = cluster_interval(effects, first.groups, seed=seed)
    slopes = slope_of(torch.tensor(amounts, dtype=torch.float64), effects)
    slope_low, slope_high = cluster_interval(slopes, first.groups, seed=seed)
    changes = [edit.bind(lens, (), sites, position=position) for edit in edits]
    texts = neutral_texts() if neutral is None else tuple(neutral)
    damage = torch.zeros(len(amounts), len(texts), dtype=torch.float64)
    damage[given] = text_damage(lens, texts, found, changes)
    return DoseResponse(
        names=tuple(unit.name for unit in found),
        doses=torch.tensor(amounts, dtype=torch.float64),
        effects=effects,
        low=low,
        high=high,
        slope=float(slopes.mean()),
        slope_low=float(slope_low),
        slope_high=float(slope_high),
        monotonicity=_monotonicity(amounts, effects.mean(1).tolist()),
        damage=damage,
        clean=first.clean,
        example_ids=first.example_ids,
        groups=first.groups,
        metric=first.metric,
        unit=first.unit,
        over=describe_source(over),
        site=", ".join(sites),
        position=first.position,
        provenance={
            "model": lens.name,
            "model_fingerprint": lens.fingerprint(),
            "task": getattr(examples, "name", "examples"),
            "split": getattr(examples, "split_name", "all"),
            "examples": examples_hash(examples),
            "neutral": "shipped" if neutral is None else len(texts),
            "seed": seed,
            "versions": versions(),
        },
    )


def slope_of(
    doses: Float[Tensor, " dose"], effects: Float[Tensor, "dose example"]
) -> Float[Tensor, " example"]:
    """The least-squares slope of each example's effect against the dose.

    >>> slope_of(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[0.0], [3.0], [6.0]])).tolist()
    [3.0]
    """
    centred = doses - doses.mean()
    return einsum(centred, effects, "dose, dose example -> example") / (centred**2).sum()


def _check_doses(doses: Sequence[float]) -> list[float]:
    amounts = [float(dose) for dose in doses]
    if len(set(amounts)) < 2 or len(set(amounts)) < len(amounts) or not np.isfinite(amounts).all():
        raise LensSkillsError(
            f"doses must be two or more different finite numbers, not {amounts}: a slope needs a "
            "contrast. For a single strength use sweep or verify with do=steer(by=…)."
        )
    return sorted(amounts)


def _monotonicity(doses: Sequence[float], means: Sequence[float]) -> float:
    if max(means) == min(means):
        return 0.0
    # Spearman's correlation is Pearson's of the ranks.
    return float(np.corrcoef(rankdata(doses), rankdata(means))[0, 1])
