"""The control task of a metric: what a neuron reaches that knows input types and nothing else.

The metric's own mean per type is dealt anew among the types, and its residuals among the examples
of a type. What keeps its r under this is not the metric but what a prompt is about.

Source: Hewitt & Liang 2019 (arXiv 1909.03368), random labels per input type; here matched to each
metric in how much of it lies between types.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills.scoring.design_matrix import DesignMatrix
from lens_skills.stats.multiple_testing import TIE, PooledDraws

# From this many draws on, a neuron's p comes from its own draws; below, the draws of all neurons
# are pooled, because 100 draws cannot tell a p of 0.001 from one of 0.01.
OWN_DRAWS = 999

# Of so few own draws a p is not told well from a smaller one.
_COUNTED = 20

_NUMBERS = 1 << 22  # draws times units whose noise is held at once

_CACHED = 1 << 16  # numbers worked on together


def unit_blocks(n_units: int, n_rows: int) -> Iterator[slice]:
    """Units a few at a time: as many as a core's cache holds with so many numbers each."""
    few = max(_CACHED // max(n_rows, 1), 1)
    for start in range(0, n_units, few):
        yield slice(start, min(start + few, n_units))


@dataclass(frozen=True)
class ControlTask:
    """r of every unit in each draw of a metric's control task, out of the sums of one pass.

    Attributes:
        weights: Of each column of ``sums`` in each draw.
        sums: Per input type (or sign), what the covariates leave of its products with the units.
        scale: Of each draw: 1 over the norm of what the covariates leave of the drawn metric.
        within: Standard deviation of r that dealing the residuals within types adds to each unit.
        unit_scale: 1 over the norm of each unit.
    """

    weights: Float[Tensor, "draw column"]
    sums: Float[Tensor, "column unit"]
    scale: Float[Tensor, "draw 1"]
    within: Float[Tensor, " unit"] | None
    unit_scale: Float[Tensor, " unit"]
    seed: int

    @classmethod
    def of(
        cls,
        association: Any,
        columns: DesignMatrix,
        name: str,
        values: Float[Tensor, " row"],
    ) -> "ControlTask":
        """The control task of one metric, whose values are ``values``; see the module."""
        layout, moments = columns.layout, association.moments
        place = layout.metrics.index(name)
        size = association.metric_square(place)
        if layout.n_kind_signs:
            sums = association.numerators(layout.block(f"kind signs/{name}"))
            if not columns.partial:
                plain = association.numerators(layout.block("kind signs"))
                sums = sums - float(moments.column_mean[place]) * plain
            n = layout.n_kind_signs
            return cls(
                weights=torch.eye(n, dtype=torch.float64),
                sums=sums,
                scale=torch.full((n, 1), size**-0.5, dtype=torch.float64),
                within=None,
                unit_scale=association.unit_scale,
                seed=columns.seed,
            )
        kinds = layout.block("kinds")
        rows = columns.centred(name, values)
        counts = torch.bincount(columns.kind_codes, minlength=layout.n_kinds).double()
        means = torch.zeros(layout.n_kinds, dtype=torch.float64)
        means.index_add_(0, columns.kind_codes, rows).div_(counts)
        left = float((rows - means[columns.kind_codes]).square().sum())
        # An example read at several tokens counts as often.
        weight = moments.column_mean[kinds] * moments.weight
        left *= moments.weight / len(rows)
        random = np.random.default_rng(columns.seed)
        order = np.argsort(random.random((columns.n_controls, layout.n_kinds)), axis=1)
        dealt = means[torch.from_numpy(order)]
        square = (dealt**2) @ weight - (dealt @ weight) ** 2 / moments.weight + left
        if layout.n_given:
            across = dealt @ moments.gram[kinds, association.given]
            within = moments.gram[association.given, association.given]
            square = square - (across @ torch.linalg.inv(within) * across).sum(1)
        sums = association.numerators(kinds)
        noise = None
        if left > 1e-9 * size:
            share = rearrange(weight.rsqrt(), "kind -> kind 1")
            between = torch.empty_like(moments.square)
            for units in unit_blocks(len(between), layout.n_kinds):
                between[units] = (moments.cross[kinds, units] * share).square_().sum(0)
            inside = (moments.square - between).clamp(min=0)
            # Variance of the sum of two sets of numbers dealt to each other, within types.
            free = max(moments.weight - layout.n_kinds, 1.0)
            noise = (left * inside / free).sqrt() * association.unit_scale
        return cls(
            weights=dealt,
            sums=sums,
            scale=rearrange(square.clamp(min=1e-300).rsqrt(), "draw -> draw 1"),
            within=noise,
            unit_scale=association.unit_scale,
            seed=columns.seed,
        )

    def blocks(self, n_units: int) -> Iterator[tuple[slice, Float[Tensor, "draw unit"]]]:
        """|r| in each draw, of a few units at a time: as many as a core's cache holds."""
        n_draws = len(self.weights)
        # Ties with the observed r are told in the last bits, which few draws do not look at.
        kind = torch.float64 if n_draws >= OWN_DRAWS else torch.float32
        weights, scale = (self.weights * self.scale).to(kind), self.scale.to(kind)
        step = max(_NUMBERS // n_draws, 1)
        for start in range(0, n_units, step):
            stop, noise = min(start + step, n_units), None
            if self.within is not None:
                generator = torch.Generator().manual_seed(self.seed + start)
                noise = torch.randn(n_draws, stop - start, generator=generator)
                noise = noise.to(kind).mul_(scale)
            for block in unit_blocks(stop - start, n_draws):
                units = slice(start + block.start, start + block.stop)
                drawn = weights @ (self.sums[:, units] * self.unit_scale[units]).to(kind)
                if noise is not None:
                    assert self.within is not None
                    drawn.addcmul_(self.within[units].to(kind), noise[:, block])
                yield units, drawn.abs_()

    def p(
        self, strength: Float[Tensor, " unit"], constant: Tensor
    ) -> tuple[Float[Tensor, " unit"], Float[Tensor, " draw"]]:
        """p of each unit's |r|, and the largest |r| of any unit in each draw.

        Each |r| is divided by the root mean square of the unit's draws (a draw's by that of the
        others), and p is counted among the draws of all units together: how much a neuron knows of
        types differs between neurons; what chance makes of it, in its own standard deviations,
        hardly does. With `OWN_DRAWS` or more, p is counted among the unit's own draws instead,
        unless fewer than 20 of them reach it.
        """
        n_draws, n_units = len(self.weights), len(strength)
        largest = torch.zeros(n_draws, dtype=torch.float64)
        pooled, own = PooledDraws(), torch.empty(n_units, dtype=torch.float64)
        count = torch.zeros(n_units, dtype=torch.long)
        for units, drawn in self.blocks(n_units):
            largest = torch.maximum(largest, drawn.amax(dim=1).double())
            if n_draws >= OWN_DRAWS:
                count[units] = (drawn >= strength[units] * (1 - TIE)).sum(0)
            own[units] = drawn.square().sum(0)
            # x over the root mean square of the other draws grows with x over the norm of all,
            # which lies in [0, 1].
            pooled.add(drawn.div_(own[units].clamp(min=1e-30).sqrt().to(drawn)).clamp_(max=1.0))
        square = strength.square() * n_draws / own.clamp(min=1e-30)
        share = (square / (n_draws - 1 + square)).sqrt()
        p = pooled.p(share, n_left_out=int(constant.sum()) * n_draws)
        if n_draws >= OWN_DRAWS:
            counted = (1 + count).double() / (1 + n_draws)
            p = torch.where(count < _COUNTED, torch.minimum(p, counted), counted)
        return torch.where(constant, 1.0, p), largest.clamp(max=1.0)
