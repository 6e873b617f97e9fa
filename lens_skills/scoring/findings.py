"""From the sums of a finished pass to `Scores`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.scoring.association import ROUNDING, Association
from lens_skills.scoring.columns import Columns
from lens_skills.scoring.gates import Thresholds
from lens_skills.scoring.scores import Scores
from lens_skills.stats.corrections import (
    TIE,
    false_discovery_q,
    family_p,
    family_threshold,
    pooled_p,
)
from lens_skills.stats.intervals import fisher_interval
from lens_skills.stats.moments import Moments

# From this many draws on, a neuron's p comes from its own draws; below, the draws of all neurons
# are pooled, because 100 draws cannot tell a p of 0.001 from one of 0.01.
OWN_DRAWS = 999


def collect(
    moments: Moments,
    columns: Columns,
    *,
    values: Mapping[str, Float[Tensor, " row"]],
    units: tuple[Int[Tensor, " unit"], Int[Tensor, " unit"]],
    whole_layers: bool,
    positions: tuple[str, ...],
    rotations: Sequence[Float[Tensor, "width width"]],
    site: str,
    examples: Sequence[Example],
    predictivity: Mapping[str, Float[Tensor, " flat"]],
    exploratory: bool,
    provenance: Mapping[str, Any],
) -> Scores:
    """Everything the sums say, metric by metric, so that one metric's draws are held at a time."""
    moments = _to_cpu(moments)
    layout = columns.layout
    n_pos = len(positions)
    # The size of a layer is known only where all of it was scored.
    floor = _rounding(moments, units[0], n_pos) if whole_layers else None
    association = Association(moments, layout, floor)
    constant = association.constant
    # A neuron that is constant at one of several positions counts 0 there; it is left out only
    # where it is constant at all of them.
    excluded = rearrange(constant, "(pos unit) -> pos unit", pos=n_pos).all(0)
    kept, left_out = [], {}
    for place, name in enumerate(layout.metrics):
        spread = (moments.column_square[place] / moments.weight).sqrt()
        if float(spread) <= 1e-12 * max(1.0, float(moments.column_mean[place].abs())):
            left_out[name] = f"it is {float(values[name][0]):g} for every example here"
        elif association.metric_square(place) <= 1e-9 * float(moments.column_square[place]):
            left_out[name] = "the covariates partialled out determine it"
        else:
            kept.append(name)
    if not kept:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise LensSkillsError(f"no metric varies, so nothing can be correlated ({reasons}).")
    control_max = _control_max(association)
    found: dict[str, list[Tensor]] = {"r": [], "low": [], "high": []}
    chances: dict[str, list[Tensor]] = {"p": [], "p_family": [], "q": []}
    thresholds, null_max, rotated = {}, {}, {}
    n_groups = len({example.group for example in examples})
    for name in kept:
        place = layout.metrics.index(name)
        r = association.correlations(slice(place, place + 1))[0].clamp(-1, 1)
        scheme = columns.schemes[name]
        n_rows = n_groups if scheme == "between" else len(examples)
        low, high = fisher_interval(r, n_rows, n_given=layout.n_given)
        for key, tensor in {"r": r, "low": low, "high": high}.items():
            found[key].append(tensor)
        bar = None
        if layout.n_draws:
            null = association.null(name).abs_()
            null_max[name] = null.max(dim=1).values
            bar = family_threshold(null_max[name])
            p = _own_p(r.abs(), null, constant)
            chances["p"].append(p)
            chances["p_family"].append(family_p(r.abs(), null_max[name]))
            q = torch.ones_like(p)
            q[~constant] = false_discovery_q(p[~constant])
            chances["q"].append(q)
            del null
        if rotations:
            turned = [association.rotated(place, q, k) for k, q in enumerate(rotations)]
            rotated[name] = torch.stack(turned)
        thresholds[name] = Thresholds(
            permutation=bar,
            control=None if control_max is None else family_threshold(control_max),
            rotated=float(rotated[name].abs().max()) if rotations else None,
        )

    def shaped(tensors: list[Tensor]) -> Tensor:
        return rearrange(
            torch.stack(tensors), "metric (pos unit) -> metric pos unit", pos=n_pos
        ).contiguous()

    def by_position(flat: Float[Tensor, " flat"]) -> Float[Tensor, "pos unit"]:
        return rearrange(flat, "(pos unit) -> pos unit", pos=n_pos).contiguous()

    class_means, smd = _by_class(moments, kept, layout.metrics, values)
    drawn = {key: shaped(parts) if parts else None for key, parts in chances.items()}
    return Scores(
        metrics=tuple(kept),
        layer=units[0],
        neuron=units[1],
        positions=positions,
        r=shaped(found["r"]),
        low=shaped(found["low"]),
        high=shaped(found["high"]),
        p=drawn["p"],
        p_family=drawn["p_family"],
        q=drawn["q"],
        thresholds=thresholds,
        null_max=null_max,
        control_max={} if control_max is None else dict.fromkeys(kept, control_max),
        rotated_r=rotated,
        mean=by_position(moments.unit_mean),
        std=by_position((moments.square / moments.weight).sqrt()),
        class_means={
            name: rearrange(m, "side (pos unit) -> side pos unit", pos=n_pos).contiguous()
            for name, m in class_means.items()
        },
        smd={name: by_position(flat) for name, flat in smd.items()},
        predictivity={k: by_position(v) for k, v in predictivity.items() if k in kept},
        values={name: numbers.clone() for name, numbers in values.items()},
        excluded=excluded,
        site=site,
        n_examples=len(examples),
        n_groups=n_groups,
        example_ids=tuple(example.id for example in examples),
        groups=tuple(sorted({example.group for example in examples})),
        excluded_metrics=left_out,
        exploratory=exploratory,
        provenance=dict(provenance),
    )


def _rounding(moments: Moments, layers: Int[Tensor, " unit"], n_pos: int) -> Float[Tensor, " flat"]:
    """The standard deviation that rounding alone may give each unit, by position and layer."""
    size = (moments.square / moments.weight + moments.unit_mean**2).sqrt()
    size = rearrange(size, "(pos unit) -> pos unit", pos=n_pos)
    floor = torch.empty_like(size)
    for layer in layers.unique():
        here = layers == layer
        floor[:, here] = ROUNDING * size[:, here].median(dim=1, keepdim=True).values
    return rearrange(floor, "pos unit -> (pos unit)")


def _own_p(
    strength: Float[Tensor, " unit"], null: Float[Tensor, "draw unit"], constant: Tensor
) -> Float[Tensor, " unit"]:
    """Permutation p of each unit: (1 + #{null >= |r|}) / (1 + n)."""
    if len(null) >= OWN_DRAWS:
        above = (null >= strength * (1 - TIE)).sum(0)
        p = (1 + above).double() / (1 + len(null))
    else:
        p = pooled_p(strength, null, n_left_out=int(constant.sum()))
    return torch.where(constant, 1.0, p)


def _control_max(association: Association) -> Float[Tensor, " draw"] | None:
    """Largest |r| of each coin thrown per input type."""
    if association.layout.n_controls == 0:
        return None
    return association.correlations(association.layout.controls).abs_().max(dim=1).values


def _by_class(
    moments: Moments,
    names: Sequence[str],
    order: tuple[str, ...],
    values: Mapping[str, Float[Tensor, " row"]],
) -> tuple[dict[str, Float[Tensor, "side unit"]], dict[str, Float[Tensor, " unit"]]]:
    """Class means and standardised mean difference of 0/1 metrics, out of the same sums.

    With a share s of ones, mean_1 - mean_0 = S_mx / (W s (1 - s)); the within-class sum of squares
    is S_xx less what the class means explain (Cohen's d with the pooled std).
    """
    means, differences = {}, {}
    for name in names:
        metric = values[name]
        if not bool(((metric == 0) | (metric == 1)).all()):
            continue
        place = order.index(name)
        share = float(moments.column_mean[place])
        size = float(moments.column_square[place])
        difference = moments.cross[place] / size
        low = moments.unit_mean - share * difference
        means[name] = torch.stack([low, low + difference])
        within = (moments.square - difference * moments.cross[place]).clamp(min=0)
        pooled = (within / max(moments.weight - 2, 1)).sqrt()
        differences[name] = torch.where(pooled > 0, difference / pooled.clamp(min=1e-300), 0.0)
    return means, differences


def _to_cpu(moments: Moments) -> Moments:
    return Moments(
        weight=moments.weight,
        column_mean=moments.column_mean.cpu(),
        unit_mean=moments.unit_mean.cpu(),
        gram=moments.gram.cpu(),
        column_square=moments.column_square.cpu(),
        cross=moments.cross.cpu(),
        square=moments.square.cpu(),
        rotated_square=moments.rotated_square.cpu(),
    )
