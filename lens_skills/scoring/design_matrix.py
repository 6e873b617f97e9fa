"""The columns of a scoring pass: metrics, covariates, and the draws of its null hypotheses.

Every statistic of the pass is a product of these columns with the neurons, so that one matrix
product per batch is all the work, however many permutations are drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import Metric
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.scoring.covariates import covariate_columns
from lens_skills.stats.multiple_testing import (
    Scheme,
    choose_scheme,
    constant_in_groups,
    permutation_draws,
    signs,
)


@dataclass
class ColumnLayout:
    """Where each kind of column stands.

    Base columns come first: metrics, then covariates. Then, per metric known beforehand, its
    draws; then the control task's coins; then, where a metric is computed by the pass itself, the
    group signs alone, times each such metric, and times each covariate.
    """

    metrics: tuple[str, ...]
    n_given: int
    n_draws: int
    n_controls: int
    permuted: tuple[str, ...]
    flipped: tuple[str, ...]
    n_groups: int
    starts: dict[str, int] = field(default_factory=dict)
    n_columns: int = 0

    def __post_init__(self) -> None:
        place = len(self.metrics) + self.n_given
        for name in self.permuted:
            self.starts[f"draws/{name}"], place = place, place + self.n_draws
        self.starts["controls"], place = place, place + self.n_controls
        if self.flipped:
            self.starts["signs"], place = place, place + self.n_draws
            for name in self.flipped:
                self.starts[f"signs/{name}"], place = place, place + self.n_draws
            for given in range(self.n_given):
                self.starts[f"signs/given{given}"], place = place, place + self.n_draws
        self.n_columns = place

    @property
    def n_base(self) -> int:
        return len(self.metrics) + self.n_given

    def draws(self, name: str) -> slice:
        """The columns of one block of draws."""
        return slice(self.starts[name], self.starts[name] + self.n_draws)

    @property
    def controls(self) -> slice:
        return slice(self.starts["controls"], self.starts["controls"] + self.n_controls)


class DesignMatrix:
    """Builds the columns of each batch of one pass.

    ``known`` are the values of metrics known beforehand, ``given`` the covariates to partial out,
    ``exchange`` a scheme for all metrics or ``"auto"``.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        known: Mapping[str, Float[Tensor, " row"]],
        examples: Sequence[Example],
        *,
        given: Sequence[str],
        exchange: str,
        n_draws: int,
        n_controls: int,
        seed: int,
    ) -> None:
        self.examples, self.seed = examples, seed
        self.given = covariate_columns(examples, given)
        groups = [example.group for example in examples]
        self.schemes: dict[str, str] = {}
        permuted: dict[str, Int[Tensor, "row draw"]] = {}
        self.residuals: dict[str, Float[Tensor, " row"]] = {}
        for metric in metrics:
            if not metric.known:
                self.schemes[metric.name] = "signs"
                continue
            values = known[metric.name]
            residual = self._residual(values)
            scheme = choose_scheme(residual, groups) if exchange == "auto" else exchange
            self.schemes[metric.name] = scheme
            self.residuals[metric.name] = residual
            if n_draws:
                _check_between(scheme, residual, groups, metric.name)
            if n_draws and scheme != "signs" and scheme not in permuted:
                # One set of draws serves all metrics that trade alike.
                which: Scheme = scheme  # type: ignore[assignment]
                permuted[scheme] = permutation_draws(groups, n_draws, which, seed=seed)
        self.permuted = permuted
        self.layout = ColumnLayout(
            metrics=tuple(metric.name for metric in metrics),
            n_given=self.given.shape[1],
            n_draws=n_draws,
            n_controls=n_controls,
            permuted=tuple(name for name, scheme in self.schemes.items() if scheme != "signs"),
            flipped=tuple(name for name, scheme in self.schemes.items() if scheme == "signs"),
            n_groups=len(set(groups)),
        )

    def of(
        self, index: Int[Tensor, " batch"], values: Mapping[str, Float[Tensor, " batch"]]
    ) -> Float[Tensor, "batch column"]:
        """The columns of the examples at ``index``, whose metrics are ``values``."""
        layout, given = self.layout, self.given[index]
        here = [self.examples[place] for place in index.tolist()]
        parts = [torch.stack([values[name] for name in layout.metrics], dim=1), given]
        if layout.n_draws:
            parts += [
                self.residuals[name][self.permuted[self.schemes[name]][index].long()]
                for name in layout.permuted
            ]
        kinds = [example.kind for example in here]
        if layout.n_controls:
            parts.append(
                signs(kinds, layout.n_controls, seed=self.seed, purpose="control").double()
            )
        if layout.flipped and layout.n_draws:
            keys = [example.group for example in here]
            coins = signs(keys, layout.n_draws, seed=self.seed, purpose="null").double()
            parts.append(coins)
            parts += [coins * values[name][:, None] for name in layout.flipped]
            parts += [coins * column[:, None] for column in given.T]
        return torch.cat([part.double() for part in parts], dim=1)

    def _residual(self, values: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """What the covariates leave of a metric (Freedman & Lane 1983 permute this)."""
        design = torch.cat([torch.ones(len(values), 1, dtype=torch.float64), self.given], dim=1)
        # From the right: from the left it would be a matrix of examples by examples.
        fitted = design @ (torch.linalg.pinv(design) @ values.double())
        return values.double() - fitted


def _check_between(
    scheme: str, residual: Float[Tensor, " row"], groups: Sequence[str], name: str
) -> None:
    if scheme == "between" and not constant_in_groups(residual, groups):
        raise LensSkillsError(
            f"{name!r} varies inside groups, so whole groups cannot trade it. Use "
            "exchange='within' or exchange='signs'."
        )
