"""Shrinkage across tasks: SciPy's normal density and a grid, conditioning by hand, simulations."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from lens_skills.errors import LensSkillsError
from lens_skills.stats.shrinkage import SharedPrior, fit_shared_prior, posterior


def drawn(
    n_units: int, common: float, own: list[float], noise: list[float], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """θ and z, ``task unit``."""
    random = np.random.default_rng(seed)
    theta = common * random.normal(size=n_units) + np.array(own)[:, None] * random.normal(
        size=(len(own), n_units)
    )
    return theta, theta + np.sqrt(noise)[:, None] * random.normal(size=theta.shape)


def likelihood(z: np.ndarray, noise: list[float], common: float, own: list[float]) -> float:
    sigma = common**2 + np.diag(np.square(own) + noise)
    return float(multivariate_normal(np.zeros(len(own)), sigma).logpdf(z.T).sum())


def test_the_fit_is_the_most_likely_of_a_grid() -> None:
    noise = [0.05, 0.02]
    _, z = drawn(60, 0.3, [0.1, 0.2], noise, seed=0)
    fit = fit_shared_prior(torch.from_numpy(z), torch.tensor(noise))
    steps = np.linspace(0, 0.6, 25)
    best = max(likelihood(z, noise, a, [b, c]) for a in steps for b in steps for c in steps)
    assert fit.log_likelihood == pytest.approx(likelihood(z, noise, fit.common, list(fit.own)))
    assert best - 1e-6 <= fit.log_likelihood < best + 0.1


@pytest.mark.parametrize("n_tasks", [2, 3, 5])
def test_the_posterior_is_the_normal_one_given_all_tasks(n_tasks: int) -> None:
    noise = [0.05, 0.01, 0.02, 0.03, 0.01][:n_tasks]
    own = [0.1, 0.2, 0.0, 0.3, 0.1][:n_tasks]
    _, z = drawn(30, 0.3, own, noise, seed=1)
    mean, sd = posterior(torch.from_numpy(z), torch.tensor(noise), SharedPrior(0.3, (*own,), 0.0))
    about = 0.3**2 + np.diag(np.square(own))
    gain = about[0] @ np.linalg.inv(about + np.diag(noise))
    assert mean.numpy() == pytest.approx(gain @ z)
    assert sd.square().numpy() == pytest.approx(about[0, 0] - gain @ about[:, 0])


def test_what_was_not_measured_tells_nothing() -> None:
    z, noise = torch.tensor([[0.4, np.nan], [np.nan, 0.4]]), torch.tensor([0.1, 0.1])
    mean, sd = posterior(z, noise, SharedPrior(0.3, (0.1, 0.2), 0.0))
    width = 0.3**2 + 0.1**2
    assert mean[0].item() == pytest.approx(0.4 * width / (width + 0.1))
    told = 0.3**2 / (0.3**2 + 0.2**2 + 0.1)
    assert mean[1].item() == pytest.approx(0.4 * told)
    assert sd[1].item() ** 2 == pytest.approx(0.3**2 * (1 - told) + 0.1**2)


def test_intervals_cover_and_sharing_helps() -> None:
    noise, hits, errors = [1 / 17, 1 / 100, 1 / 100], [], []
    for seed in range(40):
        theta, z = drawn(500, 0.2, [0.1, 0.1, 0.15], noise, seed=seed)
        rows, variances = torch.from_numpy(z), torch.tensor(noise)
        mean, sd = posterior(rows, variances, fit_shared_prior(rows, variances))
        apart = np.abs(mean.numpy() - theta[0])
        hits.append(np.mean(apart <= 1.96 * sd.numpy()))
        errors.append([np.square(apart).mean(), np.square(z[0] - theta[0]).mean()])
    assert 0.94 < np.mean(hits) < 0.96
    shared, own = np.mean(errors, axis=0)
    # In theory 0.0138 and 0.0588.
    assert shared < 0.016 < 0.055 < own


def test_tasks_that_have_nothing_in_common_share_nothing() -> None:
    noise = [1 / 17, 1 / 100]
    commons = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        z = np.sqrt(noise)[:, None] * random.normal(size=(2, 2000)) + random.normal(
            scale=0.2, size=(2, 2000)
        )
        commons.append(fit_shared_prior(torch.from_numpy(z), torch.tensor(noise)).common)
    assert np.mean(np.square(commons)) < 0.05 * 0.2**2


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(LensSkillsError, match="two tasks"):
        fit_shared_prior(torch.ones(1, 5), torch.ones(1))
    with pytest.raises(LensSkillsError, match="above 0"):
        fit_shared_prior(torch.ones(2, 5), torch.zeros(2))
    with pytest.raises(LensSkillsError, match="finite"):
        fit_shared_prior(torch.full((2, 5), torch.nan), torch.ones(2))
