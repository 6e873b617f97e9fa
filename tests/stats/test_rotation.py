"""A random rotation is orthogonal, seeded and uniform, and turns every block alike."""

import numpy as np
import pytest
import torch
from scipy import stats

from lens_skills.stats.moments import random_rotation, rotate


@pytest.mark.parametrize("width", [1, 2, 17, 64])
def test_a_rotation_is_orthogonal(width: int) -> None:
    q = random_rotation(width, seed=0).double()
    torch.testing.assert_close(q @ q.T, torch.eye(width).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(q.T @ q, torch.eye(width).double(), rtol=0, atol=1e-5)


def test_the_seed_alone_decides() -> None:
    torch.manual_seed(1)
    first = random_rotation(8, seed=5)
    torch.manual_seed(2)
    torch.testing.assert_close(first, random_rotation(8, seed=5), rtol=0, atol=0)
    assert not torch.allclose(first, random_rotation(8, seed=6))


def test_rotations_leave_the_global_seed_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    random_rotation(8, seed=0)
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)


def test_rotations_are_uniform() -> None:
    """The corner entry of a Haar matrix has (x² of) a Beta(1/2, (d-1)/2) distribution, no bias.

    Without the signs of R's diagonal the entry's sign is fixed by the QR algorithm.
    """
    entries = np.array([random_rotation(4, seed=seed)[0, 0].item() for seed in range(600)])
    assert stats.kstest(entries**2, stats.beta(0.5, 1.5).cdf).pvalue > 0.01
    assert stats.binomtest(int((entries > 0).sum()), len(entries)).pvalue > 0.01


def test_every_block_is_turned_by_the_same_matrix() -> None:
    random = np.random.default_rng(0)
    units = random.normal(size=(7, 3 * 5))
    q = random_rotation(5, seed=0)
    turned = rotate(torch.from_numpy(units), q).numpy()
    for block in range(3):
        here = slice(5 * block, 5 * block + 5)
        np.testing.assert_allclose(turned[:, here], units[:, here] @ q.double().numpy(), atol=1e-12)


def test_rotating_and_back_is_the_identity() -> None:
    units = torch.randn(6, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = random_rotation(8, seed=1)
    torch.testing.assert_close(rotate(rotate(units, q), q.T), units, rtol=0, atol=1e-6)
