"""From the sums of a finished pass to `Scores`: r, intervals, and what chance makes of them.

`partial_r`: what is left of one metric's correlations once another's are taken out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import family_of
from lens_skills.data import Example, field_of
from lens_skills.errors import LensSkillsError
from lens_skills.scoring.control_task import OWN_DRAWS, ControlTask, unit_blocks
from lens_skills.scoring.design_matrix import ColumnLayout, DesignMatrix
from lens_skills.scoring.scores import Scores
from lens_skills.stats.effect_tests import FEWEST_GROUPS, effective_groups
from lens_skills.stats.moments import Moments
from lens_skills.stats.multiple_testing import (
    TIE,
    PooledDraws,
    false_discovery_q,
    family_threshold,
    rank_p,
)
from lens_skills.stats.random_directions import among_directions
from lens_skills.stats.rotations import Rotation

# A unit whose standard deviation is below this share of its mean is constant to float32 rounding.
_CONSTANT = 1e-6

# The same against the typical size (median root mean square) of the units computed with it, whose
# rounding it shares. Measured on SmolLM2: rounding moved constant neurons by up to 8e-5 of that,
# while the least a varying neuron varied by was 13e-5.
ROUNDING = 1e-4


def collect(
    moments: Moments,
    columns: DesignMatrix,
    *,
    values: Mapping[str, Float[Tensor, " row"]],
    units: tuple[Int[Tensor, " unit"], Int[Tensor, " unit"]],
    whole_layers: bool,
    positions: tuple[str, ...],
    rotations: Sequence[Rotation],
    site: str,
    examples: Sequence[Example],
    predictivity: Mapping[str, Float[Tensor, " flat"]],
    exploratory: bool,
    notes: Sequence[str],
    provenance: Mapping[str, Any],
) -> Scores:
    """Everything the sums say, metric by metric, so that one metric's draws are held at a time."""
    moments = _to_cpu(moments)
    layout = columns.layout
    n_pos = len(positions)
    # The size of a layer is known only where all of it was scored.
    floor = _rounding(moments, units[0], n_pos) if whole_layers else None
    association = Correlations(moments, layout, floor)
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
    notes = list(notes)
    parts: dict[str, dict[str, Tensor]] = {}
    null_max, control_max, rotated = {}, {}, {}
    for name in kept:
        place = layout.metrics.index(name)
        r = association.correlations(slice(place, place + 1))[0].clamp(-1, 1)
        low, high = association.interval(r, name, values[name], columns)
        of_metric = {"r": r, "low": low, "high": high}
        if layout.n_draws:
            of_metric["p"], null_max[name] = _own_p(association, name, r.abs())
            if columns.schemes[name] != "signs":
                notes += _unreachable(name, columns)
        if layout.n_kinds or layout.n_kind_signs:
            task = ControlTask.of(association, columns, name, values[name])
            of_metric["p_control"], control_max[name] = task.p(r.abs(), constant)
        if rotations:
            turned = [association.rotated(place, q, k) for k, q in enumerate(rotations)]
            rotated[name] = torch.stack(turned)
            width = rotations[0].width
            excess, p = among_directions(
                rearrange(r, "(block width) -> block width", width=width),
                rearrange(rotated[name], "k (block width) -> block (k width)", width=width),
            )
            of_metric["excess"] = rearrange(excess, "block width -> (block width)")
            of_metric["p_basis"] = torch.where(
                constant, 1.0, rearrange(p, "block width -> (block width)")
            )
        parts[name] = of_metric
    thresholds: dict[str, float | None] = dict.fromkeys(kept)
    for family in families(kept):
        if layout.n_draws:
            # The draws are shared, so the largest of the family in each draw is one more maximum.
            largest = torch.stack([null_max[name] for name in family]).max(dim=0).values
            for name in family:
                null_max[name] = largest
                thresholds[name] = family_threshold(largest)
                parts[name]["p_family"] = rank_p(parts[name]["r"].abs(), largest)
        for p, q in (("p", "q"), ("p_control", "q_control"), ("p_basis", "q_basis")):
            if p in parts[family[0]]:
                together = torch.stack([parts[name][p][~constant] for name in family])
                adjusted = false_discovery_q(together.flatten()).reshape(together.shape)
                for name, numbers in zip(family, adjusted, strict=True):
                    parts[name][q] = torch.ones_like(parts[name][p])
                    parts[name][q][~constant] = numbers

    def by_position(flat: Float[Tensor, "*any flat"]) -> Float[Tensor, "*any pos unit"]:
        return rearrange(flat, "... (pos unit) -> ... pos unit", pos=n_pos).contiguous()

    class_means, smd = _by_class(moments, kept, layout.metrics, values)
    arrays: dict[str, Any] = {
        key: by_position(torch.stack([parts[name][key] for name in kept]))
        if key in parts[kept[0]]
        else None
        for key in _PER_NEURON
    }
    return Scores(
        metrics=tuple(kept),
        layer=units[0],
        neuron=units[1],
        positions=positions,
        **arrays,
        thresholds=thresholds,
        null_max=null_max,
        control_max=control_max,
        rotated_r=rotated,
        mean=by_position(moments.unit_mean),
        std=by_position((moments.square / moments.weight).sqrt()),
        class_means={name: by_position(flat) for name, flat in class_means.items()},
        smd={name: by_position(flat) for name, flat in smd.items()},
        predictivity={k: by_position(v) for k, v in predictivity.items() if k in kept},
        values={name: numbers.clone() for name, numbers in values.items()},
        excluded=excluded,
        site=site,
        n_examples=len(examples),
        n_groups=len(set(columns.groups)),
        effective_groups=effective_groups(columns.groups),
        example_ids=tuple(field_of(examples, "id")),
        groups=tuple(sorted(set(columns.groups))),
        notes=tuple(dict.fromkeys(notes)),
        excluded_metrics=left_out,
        exploratory=exploratory,
        provenance=dict(provenance),
    )


_PER_NEURON = (
    "r",
    "low",
    "high",
    "p",
    "p_family",
    "q",
    "p_control",
    "q_control",
    "excess",
    "p_basis",
    "q_basis",
)


def families(names: Sequence[str]) -> list[list[str]]:
    """Metrics that are one question: the categories of one label, ``label:rule=a`` and the others.

    >>> families(["label:rule=a", "correct", "label:rule=b"])
    [['label:rule=a', 'label:rule=b'], ['correct']]
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(family_of(name), []).append(name)
    return list(found.values())


# With fewer arrangements than these no p reaches 5 %.
_FEWEST_ARRANGEMENTS = 20


def _unreachable(name: str, columns: DesignMatrix) -> list[str]:
    """A sentence where what may trade is arranged in so few ways that no p of 5 % is possible."""
    draws = columns.permuted[columns.schemes[name]]
    values = columns.residuals[name]
    n_draws = min(draws.shape[1], _ARRANGEMENTS_SEEN)
    if n_draws < 2 * _FEWEST_ARRANGEMENTS:
        return []
    # Two arrangements are one where they have one product with random numbers; |r| of an
    # arrangement and of its negative are one too.
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(len(values), generator=random, dtype=torch.float64)
    product = torch.zeros(n_draws, dtype=torch.float64)
    for start in range(0, len(values), _ROWS_SEEN):
        rows = torch.arange(start, min(start + _ROWS_SEEN, len(values)))
        product += weights[rows] @ values[draws[rows][:, :n_draws].long()]
    size = float(values.norm()) or 1.0
    ways = len(torch.unique((product.abs() / size).round(decimals=9)))
    if ways >= _FEWEST_ARRANGEMENTS:
        return []
    n_groups = len(set(columns.groups))
    return [
        f"{name}: {n_groups} groups can be arranged in about {ways} ways, so no p of 5 % is "
        "possible; more groups, or more of the rarer value, would help"
    ]


_ARRANGEMENTS_SEEN, _ROWS_SEEN = 200, 1 << 13


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
    association: "Correlations", name: str, strength: Float[Tensor, " unit"]
) -> tuple[Float[Tensor, " unit"], Float[Tensor, " draw"]]:
    """Permutation p of each unit, (1 + #{null >= |r|}) / (1 + n), and each draw's largest |r|."""
    n_draws, constant = association.layout.n_draws, association.constant
    largest = torch.zeros(n_draws, dtype=torch.float64)
    pooled, above = PooledDraws(), torch.zeros(len(strength), dtype=torch.long)
    for units in unit_blocks(len(strength), n_draws):
        null = association.null(name, units).abs_()
        largest = torch.maximum(largest, null.amax(dim=1))
        if n_draws >= OWN_DRAWS:
            above[units] = (null >= strength[units] * (1 - TIE)).sum(0)
        else:
            pooled.add(null.clamp_(max=1.0))
    if n_draws >= OWN_DRAWS:
        p = (1 + above).double() / (1 + n_draws)
    else:
        p = pooled.p(strength, n_left_out=int(constant.sum()) * n_draws)
    return torch.where(constant, 1.0, p), largest


def _by_class(
    moments: Moments,
    names: Sequence[str],
    order: tuple[str, ...],
    values: Mapping[str, Float[Tensor, " row"]],
) -> tuple[dict[str, Float[Tensor, "value unit"]], dict[str, Float[Tensor, " unit"]]]:
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
    sums = {name: value for name, value in vars(moments).items() if isinstance(value, Tensor)}
    return replace(moments, **{name: value.cpu() for name, value in sums.items()})


@dataclass(frozen=True)
class Correlations:
    """Partial correlations, given the covariates, out of the moments of one pass.

    With r(c, x | Z) = (S_cx - S_cZ S_ZZ⁻¹ S_Zx) / sqrt(S_cc|Z S_xx|Z), S being centred sums.
    Without covariates this is Pearson's r. ``floor`` is the standard deviation that rounding alone
    may give each unit.
    """

    moments: Moments
    layout: ColumnLayout
    floor: Float[Tensor, " unit"] | None = None

    @property
    def given(self) -> slice:
        return slice(len(self.layout.metrics), self.layout.n_base)

    @cached_property
    def slopes(self) -> Float[Tensor, "given column"]:
        """Slopes of every column on the covariates."""
        within = self.moments.gram[self.given, self.given]
        return torch.linalg.solve(within, self.moments.gram[:, self.given].T)

    @cached_property
    def unit_square(self) -> Float[Tensor, " unit"]:
        """What the covariates leave of each unit's sum of squares."""
        return self._left(self.moments.square, self.moments.cross[self.given])

    def _left(
        self, square: Float[Tensor, " unit"], cross: Float[Tensor, "given unit"]
    ) -> Float[Tensor, " unit"]:
        if cross.shape[0] == 0:
            return square
        within = self.moments.gram[self.given, self.given]
        explained = einsum(
            cross, torch.linalg.solve(within, cross), "given unit, given unit -> unit"
        )
        return (square - explained).clamp(min=0)

    @cached_property
    def constant(self) -> Bool[Tensor, " unit"]:
        """Units that do not vary, or not beyond what the covariates explain."""
        spread = (self.moments.square / self.moments.weight).sqrt()
        flat = spread <= _CONSTANT * self.moments.unit_mean.abs()
        if self.floor is not None:
            flat = flat | (spread <= self.floor)
        return flat | (self.unit_square <= 1e-9 * self.moments.square)

    def metric_square(self, place: int) -> float:
        """What the covariates leave of a metric's sum of squares."""
        return float(self.column_square(slice(place, place + 1))[0])

    def column_square(self, which: slice) -> Float[Tensor, " column"]:
        square = self.moments.column_square[which]
        if self.layout.n_given == 0:
            return square
        across = self.moments.gram[which, self.given]
        slopes = self.slopes[:, which]
        return (square - einsum(across, slopes, "column given, given column -> column")).clamp(
            min=0
        )

    def numerators(
        self,
        which: slice,
        units: slice = slice(None),
        *,
        cross: Float[Tensor, "any unit"] | None = None,
    ) -> Float[Tensor, "column unit"]:
        """S_cx given the covariates, for some columns (``cross``: in another basis of units)."""
        cross = self.moments.cross if cross is None else cross
        if self.layout.n_given == 0:
            return cross[which, units]
        return cross[which, units] - self.slopes[:, which].T @ cross[self.given, units]

    @cached_property
    def unit_scale(self) -> Float[Tensor, " unit"]:
        """1 / sqrt(S_xx|Z) of each unit; 0 where it is constant, so that its r is 0."""
        return _inverse_root(self.unit_square, self.constant)

    def correlations(
        self, which: slice, units: slice = slice(None)
    ) -> Float[Tensor, "column unit"]:
        """r of some columns with units; 0 where the unit or the column is constant."""
        square = self.column_square(which)
        scale = rearrange(_inverse_root(square, square <= 0), "column -> column 1")
        return (self.numerators(which, units) * self.unit_scale[units]).mul_(scale)

    def null(self, name: str, units: slice = slice(None)) -> Float[Tensor, "draw unit"]:
        """r of a metric with units, in each draw of its null hypothesis."""
        layout = self.layout
        place = layout.metrics.index(name)
        if name in layout.flipped:
            # The column ε (m - m̄) is ε m - m̄ ε, and m̄ is known when the pass is over.
            numerators = torch.sub(
                self.moments.cross[layout.block(f"signs/{name}"), units],
                self.moments.cross[layout.block("signs"), units],
                alpha=float(self.moments.column_mean[place]),
            )
        elif name in layout.residuals_flipped:
            numerators = self.numerators(layout.block(f"draws/{name}"), units)
        else:
            return self.correlations(layout.block(f"draws/{name}"), units)
        # The norm is the metric's own: flipping signs does not change it.
        return (numerators * self.unit_scale[units]).mul_(self.metric_square(place) ** -0.5)

    def interval(
        self,
        r: Float[Tensor, " unit"],
        name: str,
        values: Float[Tensor, " row"],
        columns: DesignMatrix,
        *,
        level: float = 0.95,
    ) -> tuple[Float[Tensor, " unit"], Float[Tensor, " unit"]]:
        """Ends of the interval of each r, groups being what is independent.

        On Fisher's z, whose influence function is ψ = (m x - r (m² + x²) / 2) / (1 - r²) for
        standardised m and x; its standard error is the root of Σ_g (Σ_{i in g} ψ_i)², enlarged by
        what large groups take from their own residuals (`DesignMatrix.shrinkage`, as CR3 does),
        and its degrees of freedom the effective number of groups less one. Of more than 32 groups
        that sum is estimated from 32 random signs. With covariates, or several tokens an example,
        the part of m² and x² is taken as for normal numbers.

        [-1, 1] below `FEWEST_GROUPS` groups, and where nothing is known.
        """
        from scipy.stats import t as student

        layout, moments = self.layout, self.moments
        if not layout.n_marks or len(set(columns.groups)) < FEWEST_GROUPS:
            return torch.full_like(r, -1.0), torch.full_like(r, 1.0)
        place = layout.metrics.index(name)
        marks = layout.block("marks")
        rows = columns.centred(name, values)
        shares = rows.square() / rows.square().sum()
        own = rearrange(columns.mark_sums(shares), "mark -> mark 1")
        weight = rearrange(moments.column_mean[marks] * moments.weight, "mark -> mark 1")
        total = torch.empty_like(r)
        for units in unit_blocks(len(r), layout.n_marks):
            products = self.numerators(layout.block(f"marks/{name}"), units)
            if not columns.partial:
                mean = float(moments.column_mean[place])
                products = torch.sub(products, moments.cross[marks, units], alpha=mean)
            products = products * (self.metric_square(place) ** -0.5 * self.unit_scale[units])
            left = (1 - r[units].square()).clamp(min=1e-12)
            if moments.squares is None:
                influence = (products - r[units] * own) / left.sqrt()
            else:
                assert moments.origin is not None
                step = (moments.unit_mean - moments.origin)[units]
                squares = moments.squares[:, units] - step * (
                    2 * moments.cross[marks, units] + step * weight
                )
                squares *= self.unit_scale[units].square()
                influence = products.sub_(squares.add_(own).mul_(r[units] / 2)).div_(left)
            total[units] = influence.square().sum(0)
        freedom = max(effective_groups(columns.groups) - 1, 1.0)
        if not columns.marks_by_group:
            total, freedom = total / layout.n_marks, min(freedom, float(layout.n_marks))
        half = float(student.ppf((1 + level) / 2, freedom)) * total.sqrt() * columns.shrinkage(rows)
        # What the covariates have fitted away of either side.
        half = half * ((len(rows) - 1) / max(len(rows) - 1 - layout.n_given, 1)) ** 0.5
        z = torch.atanh(r.clamp(-1 + 1e-15, 1 - 1e-15))
        return torch.tanh(z - half), torch.tanh(z + half)

    def rotated(self, place: int, rotation: Rotation, which: int) -> Float[Tensor, " unit"]:
        """r of a metric with every direction of a rotated basis of the standardised units."""
        base = slice(0, self.layout.n_base)
        assert self.moments.scale is not None
        cross = rotation.turn((self.moments.cross[base] / self.moments.scale).float()).double()
        square = self._left(self.moments.rotated_square[which], cross[self.given])
        numerators = self.numerators(slice(place, place + 1), cross=cross)[0]
        r = numerators * _inverse_root(square, square <= 0) * self.metric_square(place) ** -0.5
        return r.clamp(-1, 1)


def _inverse_root(
    square: Float[Tensor, "*shape"], constant: Bool[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    return torch.where(constant, 0.0, square.clamp(min=1e-300).rsqrt())


# Of a metric's variance; where less is left, the two metrics are one.
_LEFT = 1e-9


def partial_r(scores: Scores, metric: str, given: str) -> Float[Tensor, "pos unit"]:
    """The partial r of each neuron with a metric, given another metric of the same pass.

    r_am.g = (r_am - r_ag r_mg) / sqrt((1 - r_ag²) (1 - r_mg²)), which is the correlation of what
    the least-squares lines on g leave of a and of m. It needs no second pass: confidence given the
    label and the label given confidence come from the same scores. 0 where nothing is left of a
    neuron. For other columns than metrics, or several: `score(…, given=…)`, which has a null too.

    Args:
        scores: With both metrics, and nothing partialled out already.
        metric: Whose r.
        given: The metric to take out.

    Raises:
        LensSkillsError: No such metric, one metric for both, a pass with ``given=``, or two
            metrics of which one is a linear function of the other.

    Assumes: a linear effect of what is taken out.
    """
    r, other = scores[metric].r, scores[given].r
    if scores.provenance.get("given"):
        raise LensSkillsError(
            f"these scores are partial already, given {', '.join(scores.provenance['given'])}. "
            "Score without given=, or name all columns there."
        )
    pair = torch.stack([scores.values[metric].double(), scores.values[given].double()])
    between = torch.corrcoef(pair)[0, 1]
    if float(1 - between**2) < _LEFT:
        raise LensSkillsError(
            f"{metric!r} is a linear function of {given!r} in these {scores.n_examples} examples, "
            "so nothing is left of it. Take examples on which the two differ."
        )
    left = 1 - other**2
    scale = (left * (1 - between**2)).clamp(min=_LEFT**2).rsqrt()
    return torch.where(left > _LEFT, (r - other * between) * scale, 0.0).clamp(-1, 1)
