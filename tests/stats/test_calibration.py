"""The reliability table and its expected calibration error, against a loop by hand."""

import math

import numpy as np
import pytest
import torch

from lens_skills.stats.calibration import calibrate


def by_hand(confidence: list[float], correct: list[bool], n_bins: int) -> list[tuple]:
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    for row, value in enumerate(confidence):
        bins[min(math.floor(value * n_bins), n_bins - 1)].append(row)
    return [
        (
            np.mean([confidence[row] for row in rows]) if rows else 0.0,
            np.mean([correct[row] for row in rows]) if rows else 0.0,
            len(rows),
        )
        for rows in bins
    ]


@pytest.mark.parametrize("n_bins", [1, 5, 10, 15])
def test_the_table_is_what_a_loop_finds(n_bins: int) -> None:
    random = np.random.default_rng(0)
    confidence = random.beta(5, 2, size=500)
    confidence[:3] = (0.0, 1.0, 0.5)  # the ends belong to the first and the last bin
    correct = random.uniform(size=500) < confidence**2
    table = calibrate(torch.from_numpy(confidence), torch.from_numpy(correct), n_bins=n_bins)
    expected = by_hand(confidence.tolist(), correct.tolist(), n_bins)
    frame = table.frame()
    np.testing.assert_allclose(frame[["confidence", "accuracy", "count"]], expected, atol=1e-12)
    np.testing.assert_allclose(frame["low"], np.arange(n_bins) / n_bins, atol=1e-12)
    np.testing.assert_allclose(frame["high"], np.arange(1, n_bins + 1) / n_bins, atol=1e-12)
    error = sum(count / 500 * abs(a - c) for c, a, count in expected)
    assert table.error == pytest.approx(error, abs=1e-12)


def test_a_calibrated_model_has_no_error_and_a_boaster_has_all() -> None:
    sure = torch.full((8,), 0.75)
    right = torch.tensor([True, True, True, False] * 2)
    assert calibrate(sure, right).error == pytest.approx(0.0, abs=1e-12)
    assert calibrate(torch.ones(8), torch.zeros(8, dtype=torch.bool)).error == pytest.approx(1.0)
