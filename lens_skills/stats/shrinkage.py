"""Empirical-Bayes shrinkage of the same effects measured in several tasks.

z_nt ~ N(θ_nt, s_t²), θ_nt ~ N(μ_n, τ_t²), μ_n ~ N(0, ω²) for every neuron n and task t: ω is how
much neurons differ in what the tasks have in common, τ_t in what is a task's own.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError


@dataclass(frozen=True)
class SharedPrior:
    """What effects look like over neurons and tasks, by marginal likelihood.

    Attributes:
        common: ω, the standard deviation of μ_n over the neurons.
        own: τ_t of each task, the standard deviation of θ_nt about μ_n.
        log_likelihood: Of all z, the neurons taken for independent.
    """

    common: float
    own: tuple[float, ...]
    log_likelihood: float


def fit_shared_prior(
    z: Float[Tensor, "task unit"], variances: Float[Tensor, " task"]
) -> SharedPrior:
    """ω and the τ_t under which the z are most likely, given their sampling variances.

    A unit's z are N(0, ω² 11ᵀ + diag(τ_t² + s_t²)), so the likelihood depends on the z only
    through their second moments M: log L = -N/2 (T log 2π + log |Σ| + tr Σ⁻¹M). It is maximised
    with its gradient over the variances, none of them below 0, from several starts.

    Args:
        z: The effects, for instance atanh r: finite; one row per task, two tasks at least.
        variances: s_t² of each task, above 0.

    Raises:
        LensSkillsError: Fewer than two tasks, numbers that are not finite, a variance of 0.

    Assumes: for the likelihood, independent units. Correlated ones leave the estimates
    consistent as tasks grow, and no more precise than the number of independent ones allows.

    >>> prior = fit_shared_prior(torch.tensor([[0.5, -0.5], [0.5, -0.5]]), torch.full((2,), 0.01))
    >>> round(prior.common, 1), [round(own, 1) for own in prior.own]
    (0.5, [0.0, 0.0])
    """
    from scipy.optimize import minimize

    n_tasks, n_units = z.shape
    if n_tasks < 2 or n_units == 0:
        raise LensSkillsError(
            f"{n_tasks} tasks of {n_units} units: what tasks have in common takes two tasks and a "
            "unit that varies in all."
        )
    if not bool(torch.isfinite(z).all()) or not bool((variances > 0).all()):
        raise LensSkillsError("effects must be finite, and their sampling variances above 0.")
    moments = (z.double() @ z.double().T / n_units).numpy()
    noise = variances.double().numpy()
    scale = float(np.diag(moments).mean()) or 1.0
    ones = np.ones((n_tasks, n_tasks))

    def loss(parts: np.ndarray) -> tuple[float, np.ndarray]:
        sigma = scale * (parts[0] * ones + np.diag(parts[1:])) + np.diag(noise)
        inverse = np.linalg.inv(sigma)
        slope = inverse - inverse @ moments @ inverse
        value = np.linalg.slogdet(sigma)[1] + np.trace(inverse @ moments)
        return float(value), scale * np.concatenate([[slope.sum()], np.diag(slope)])

    # What moments alone say, and two starts far from it: the surface may have two hills.
    off = (moments.sum() - np.trace(moments)) / (n_tasks * (n_tasks - 1))
    common = max(off, 0.0) / scale
    own = np.clip((np.diag(moments) - noise) / scale - common, 1e-3, None)
    starts = [
        np.concatenate([[max(common, 1e-3)], own]),
        np.concatenate([[0.5], np.full(n_tasks, 1e-3)]),
        np.concatenate([[1e-3], np.full(n_tasks, 0.5)]),
    ]
    found = [
        minimize(
            loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * (1 + n_tasks),
            options={"ftol": 1e-14, "gtol": 1e-10},
        )
        for start in starts
    ]  # fmt: skip
    best = min(found, key=lambda fit: float(fit.fun))
    sds = np.sqrt(scale * best.x)
    whole = n_tasks * float(np.log(2 * np.pi)) + float(best.fun)
    return SharedPrior(float(sds[0]), tuple(map(float, sds[1:])), -n_units / 2 * whole)


def posterior(
    z: Float[Tensor, "task unit"], variances: Float[Tensor, " task"], prior: SharedPrior
) -> tuple[Float[Tensor, " unit"], Float[Tensor, " unit"]]:
    """Mean and standard deviation of θ_n of the first task, given a unit's z in every task.

    The other tasks make the prior of the first: of μ_n, precision-weighted about 0; then θ is
    drawn from its own z towards that by s² / (s² + its prior's variance). A z that is NaN was not
    measured and tells nothing.

    >>> prior = SharedPrior(0.5, (0.0, 0.0), 0.0)
    >>> mean, sd = posterior(torch.tensor([[0.2], [0.6]]), torch.tensor([0.25, 0.25]), prior)
    >>> round(mean.item(), 3), round(sd.item(), 3)
    (0.267, 0.289)
    """
    z, noise = z.double(), variances.double()
    spread = torch.tensor(prior.own, dtype=torch.float64).square() + noise
    seen = torch.isfinite(z)
    weights = seen / spread[:, None]
    values = torch.where(seen, z, 0.0)
    common = prior.common**2
    others = common * weights[1:].sum(0)
    expected = common * (weights[1:] * values[1:]).sum(0) / (1 + others)
    width = common / (1 + others) + prior.own[0] ** 2
    # Where the first task's own z is missing, nothing moves it from what the others say.
    share = torch.where(seen[0], width / (width + noise[0]), 0.0)
    mean = expected + share * (values[0] - expected)
    return mean, (width * (1 - share)).sqrt()
