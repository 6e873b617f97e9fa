"""Methods of `rank` that read a model's own answers: which neurons tell right from wrong ones.

`cett` compares the neurons' contributions in the two classes one by one; `h_neurons` is the sparse
probe over the neurons of all layers, of which few have a coefficient.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.ranking.own_answers import OwnAnswers

SHARES = (0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.0625)
"""Penalties tried by ``"h_neurons"``, as shares of the smallest one that leaves no neuron."""

FOLDS = 5
"""Of the groups, by which the penalty is chosen."""

_STEP = 400  # neurons that enter the fit at a time
_LOOSE = 0.02  # of the penalty: by so much a neuron outside the fit may pull and stay outside
_FLAT = 1e-6  # of its mean: a contribution that varies less is constant to float32 rounding


@dataclass(frozen=True, eq=False)
class AnswerContributions:
    """Own answers with the class of each.

    Attributes:
        own: The answers, and each neuron's mean CETT on their tokens and on all others.
        high: Whether the metric is 1 there (``"correct"``: whether the answer is right).
        groups: Each answer's group: folds share none.
        seed: Of a solver's order.
    """

    own: OwnAnswers
    high: Bool[Tensor, " row"]
    groups: Sequence[str]
    seed: int


def cett(values: AnswerContributions) -> Float[Tensor, " unit"]:
    """Cohen's d = (c̄_1 - c̄_0) / s of the CETT on the answer's tokens; NaN where it is constant.

    c̄_1 is the mean over the answers where the metric is 1, s² = Σ_c Σ (c - c̄_c)² / (n - 2). The
    CETT is the paper's; that one neuron at a time is ranked by d is ours.

    Does not show: that a neuron knows what is right. Harder problems have longer answers, of other
    digits, and neurons that see the digits see that too.
    """
    high, low = values.own.answer[values.high], values.own.answer[~values.high]
    found = torch.full((values.own.answer.shape[1],), torch.nan, dtype=torch.float64)
    for start in range(0, len(found), 1 << 14):  # in float64 some neurons at a time
        part = slice(start, start + (1 << 14))
        one, zero = high[:, part].double(), low[:, part].double()
        square = (one - one.mean(0)).square().sum(0) + (zero - zero.mean(0)).square().sum(0)
        spread = (square / (len(one) + len(zero) - 2)).sqrt()
        level = torch.maximum(one.mean(0), zero.mean(0))
        d = (one.mean(0) - zero.mean(0)) / spread
        found[part] = torch.where(spread > _FLAT * level, d, torch.nan)
    return found


def h_neurons(values: AnswerContributions) -> Float[Tensor, " unit"]:
    """Coefficient in `fit_detector`, log-odds of class 1 per standard deviation; NaN where none.

    With ``"correct"`` a negative coefficient is one of the paper's H-neurons: the neuron
    contributes more in wrong answers.

    Does not show: that a neuron without a coefficient knows nothing; its twin may have it.
    """
    found = fit_detector(values).coefficients
    return torch.where(found == 0, torch.nan, found)


@dataclass(frozen=True, eq=False)
class Detector:
    """A sparse probe on contributions.

    Attributes:
        coefficients: Of each neuron, per standard deviation of its CETT; 0 for most.
        mean, spread: What each neuron's CETT is standardised by.
        intercept: The log-odds where every neuron is at its mean.
        penalty: The λ that was chosen.
        losses: By λ, descending: mean held-out log-loss (nats) over the folds.
    """

    coefficients: Float[Tensor, " unit"]
    mean: Float[Tensor, " unit"]
    spread: Float[Tensor, " unit"]
    intercept: float
    penalty: float
    losses: dict[float, float]

    def log_odds(self, contributions: Float[Tensor, "row unit"]) -> Float[Tensor, " row"]:
        """Of class 1 in each row."""
        used = self.coefficients.nonzero()[:, 0]
        values = (contributions[:, used].double() - self.mean[used]) / self.spread[used]
        return values @ self.coefficients[used] + self.intercept


def fit_detector(values: AnswerContributions, *, others: bool = True) -> Detector:
    """The paper's probe: answers of class 0 against those of class 1 and against all other tokens.

    argmin over w, b of Σ_i v_i log-loss_i + λ Σ |w|, over rows of four kinds: mean CETT on the
    answer's tokens and on all others, of both classes. Each kind weighs a quarter in all; CETT is
    standardised by the mean and standard deviation of these rows. λ is the one of `SHARES` (of the
    smallest λ that leaves no neuron) with the lowest mean held-out loss over `FOLDS` folds that
    share no group; each fold standardises, and finds its own smallest λ, without what it holds out.
    The sign is turned, so that a positive coefficient goes with class 1.

    Args:
        values: The answers.
        others: Whether the other tokens take part ("3-vs-1" in the released code, "the strategy
            used in our paper"); False for the answers of one class against the other's ("1-vs-1").
            With them a neuron may have a coefficient because it tells answers from prompts.

    Source: Gao et al. 2025, arXiv 2512.01797, and its released code: mean CETT, three kinds of rows
    against wrong answers, L1, liblinear. There rows are drawn to equal numbers instead of weighed,
    nothing is standardised, and λ is also chosen by what suppressing the neurons does.

    Raises:
        LensSkillsError: Fewer than two groups, or no varying neuron.
    """
    rows = _Rows(values, others)
    n_folds = min(FOLDS, len(set(values.groups)))
    if n_folds < 2:
        raise LensSkillsError(
            "all answers are of one group, so no penalty can be tried on others. Give examples of "
            f"several groups, {FOLDS} at least."
        )
    from sklearn.model_selection import GroupKFold

    losses = np.zeros(len(SHARES))
    for inside, outside in GroupKFold(n_folds).split(values.high, groups=values.groups):
        if len(values.high[inside].unique()) < 2:
            continue
        fit = _Fit(rows, torch.from_numpy(inside), values.seed)
        for place, (used, weights, intercept) in enumerate(fit.path(SHARES)):
            losses[place] += fit.loss(used, weights, intercept, torch.from_numpy(outside)) / n_folds
    fit = _Fit(rows, torch.arange(len(values.high)), values.seed)
    best = int(losses.argmin())
    used, weights, intercept = fit.path(SHARES[: best + 1])[-1]
    coefficients = torch.zeros(rows.n_units, dtype=torch.float64)
    coefficients[used] = -weights
    return Detector(
        coefficients=coefficients,
        mean=fit.mean,
        spread=fit.spread,
        intercept=-intercept,
        penalty=SHARES[best] * fit.most,
        losses={share * fit.most: float(loss) for share, loss in zip(SHARES, losses, strict=True)},
    )


class _Rows:
    """The four kinds of rows: answers of both classes, then the same examples' other tokens."""

    def __init__(self, values: AnswerContributions, others: bool) -> None:
        self.others = others
        self.parts = (values.own.answer, values.own.other)
        self.low = ~values.high
        self.n_units = values.own.answer.shape[1]

    def weights(self, chosen: Tensor) -> Float[Tensor, "part row"]:
        """What each row of the chosen examples weighs; 1 in all, and each kind alike."""
        here = torch.zeros(len(self.low), dtype=torch.bool)
        here[chosen] = True
        kinds = [here & self.low, here & ~self.low]
        one = sum(kind.double() / max(1, int(kind.sum())) for kind in kinds)
        assert isinstance(one, Tensor)
        one = one / sum(bool(kind.any()) for kind in kinds)
        return torch.stack([one / 2, one / 2] if self.others else [one, torch.zeros_like(one)])

    @property
    def truth(self) -> Float[Tensor, "part row"]:
        """1 for an answer of class 0, else 0."""
        return torch.stack([self.low.double(), torch.zeros(len(self.low), dtype=torch.float64)])


Solution = tuple[Tensor, Tensor, float]
"""The neurons with a coefficient, their coefficients, and the intercept."""


class _Fit:
    """Probes on some examples, over a path of penalties.

    The whole problem never goes to the solver: neurons enter where the loss pulls at them by more
    than the penalty, until none outside does (the optimality condition of the whole problem).
    """

    def __init__(self, rows: _Rows, chosen: Tensor, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.weight = rows.weights(chosen)
        self.mean = self._product(self.weight)
        square = torch.zeros_like(self.mean)
        for part, weight in zip(rows.parts, self.weight, strict=True):
            here = weight.nonzero()[:, 0]
            for start in range(0, rows.n_units, 1 << 14):
                some = slice(start, start + (1 << 14))
                centred = part[here, some].double() - self.mean[some]
                square[some] += weight[here] @ centred.square()
        spread = square.sqrt()
        self.flat = spread <= _FLAT * self.mean.abs()
        if bool(self.flat.all()):
            raise LensSkillsError("no neuron's contribution varies over these answers.")
        self.spread = spread.masked_fill(self.flat, torch.inf)
        share = float((self.weight * rows.truth).sum())
        self.most = float(self._pull(torch.full_like(self.weight, share)).abs().max())

    def _product(self, weight: Float[Tensor, "part row"]) -> Float[Tensor, " unit"]:
        """Σ_i weight_i x_i over rows of both parts."""
        total = torch.zeros(self.rows.n_units, dtype=torch.float64)
        for part, one in zip(self.rows.parts, weight, strict=True):
            here = one.nonzero()[:, 0]
            total += (one[here].float() @ part[here]).double()
        return total

    def _pull(self, chance: Float[Tensor, "part row"]) -> Float[Tensor, " unit"]:
        """-∂loss/∂w of every neuron, where the rows have this chance of being told."""
        residual = self.weight * (self.rows.truth - chance)
        return (self._product(residual) - residual.sum() * self.mean) / self.spread

    def _values(self, used: Tensor) -> Float[Tensor, "row used"]:
        """Standardised contributions of some neurons, answers first."""
        both = torch.cat([part[:, used] for part in self.rows.parts]).double()
        return (both - self.mean[used]) / self.spread[used]

    def path(self, shares: Sequence[float]) -> list[Solution]:
        """The solutions at these shares of `most`, descending."""
        found: list[Solution] = []
        used = torch.zeros(0, dtype=torch.long)
        for share in shares:
            penalty = share * self.most
            weights, intercept = self._solve(used, penalty)
            while True:
                odds = (self._values(used) @ weights + intercept).view(2, -1)
                pull = self._pull(odds.sigmoid()).abs()
                pull[used] = 0
                beyond = (pull > penalty * (1 + _LOOSE)).nonzero()[:, 0]
                if len(beyond) == 0:
                    break
                strongest = pull[beyond].argsort(descending=True, stable=True)[:_STEP]
                used = torch.cat([used, beyond[strongest]])
                weights, intercept = self._solve(used, penalty)
            used, weights = used[weights != 0], weights[weights != 0]
            found.append((used, weights, intercept))
        return found

    def _solve(self, used: Tensor, penalty: float) -> tuple[Tensor, float]:
        if len(used) == 0:
            share = float((self.weight * self.rows.truth).sum())
            return torch.zeros(0, dtype=torch.float64), float(np.log(share / (1 - share)))
        here = (self.weight > 0).flatten()
        probe = l1_probe(1 / penalty, self.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is left to converge is below `_LOOSE`
            probe.fit(
                self._values(used)[here].numpy(),
                self.rows.truth.flatten()[here].numpy(),
                sample_weight=self.weight.flatten()[here].numpy(),
            )
        return torch.from_numpy(probe.coef_[0].copy()), float(probe.intercept_[0])

    def loss(self, used: Tensor, weights: Tensor, intercept: float, outside: Tensor) -> float:
        """Mean log-loss of other examples, each of their kinds weighing alike (nats)."""
        weight = self.rows.weights(outside)
        odds = (self._values(used) @ weights + intercept).view(2, -1)
        wrong = torch.where(self.rows.truth > 0, -odds, odds)
        return float((weight * torch.nn.functional.softplus(wrong)).sum())


def l1_probe(strength: float, seed: int, *, tolerance: float = 1e-5) -> Any:
    """scikit-learn's L1 probe with C = ``strength`` and an intercept that is hardly penalised."""
    from sklearn.linear_model import LogisticRegression

    options: dict[str, Any] = {"penalty": "l1"}
    if LogisticRegression().penalty == "deprecated":  # scikit-learn 1.8 renamed it
        options = {"l1_ratio": 1.0}
    return LogisticRegression(
        **options, solver="liblinear", C=strength, intercept_scaling=100, tol=tolerance,
        max_iter=1000, random_state=seed,
    )  # fmt: skip
