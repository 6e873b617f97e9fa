"""The cheapest cuts against every possible cut; boundaries against the best matching."""

import itertools
import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm

from lens_skills.errors import LensSkillsError
from lens_skills.stats.segmentation import Runs, boundary_f1, cheapest_runs, gaussian_cost


def total(cost: torch.Tensor, runs: Runs, price: float) -> float:
    stops = [begin for begin, _ in runs[1:]] + [len(cost)]
    rows = [
        float(cost[begin:stop, state].sum())
        for (begin, state), stop in zip(runs, stops, strict=True)
    ]
    return sum(rows) + price * (len(runs) - 1)


def every_way(n_rows: int, n_states: int, shortest: int) -> list[Runs]:
    """All segmentations with all states, by listing them."""
    found = []
    for cuts in itertools.product([False, True], repeat=n_rows - 1):
        begins = [0, *(at for at, cut in enumerate(cuts, 1) if cut)]
        lengths = [b - a for a, b in itertools.pairwise([*begins, n_rows])]
        if min(lengths) >= shortest:
            for states in itertools.product(range(n_states), repeat=len(begins)):
                found.append(list(zip(begins, states, strict=True)))
    return found


@pytest.mark.parametrize("shortest", [1, 2, 3])
@pytest.mark.parametrize("n_rows", [3, 6, 8])
def test_no_other_cut_is_cheaper(n_rows: int, shortest: int) -> None:
    prices = [0.0, 0.3, 1.0, 4.0]
    ways = every_way(n_rows, 3, shortest)
    for seed in range(4):
        cost = torch.randn(n_rows, 3, generator=torch.Generator().manual_seed(seed)).double()
        for price, runs in zip(prices, cheapest_runs(cost, prices, shortest=shortest), strict=True):
            assert runs in ways
            best = min(total(cost, way, price) for way in ways)
            assert total(cost, runs, price) == pytest.approx(best, abs=1e-9)
            states = [state for _, state in runs]
            assert all(one != two for one, two in itertools.pairwise(states))


def test_a_dear_boundary_is_never_paid_and_a_sequence_too_short_is_refused() -> None:
    cost = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)).double()
    (runs,) = cheapest_runs(cost, [1e6])
    assert runs == [(0, int(cost.sum(0).argmin()))]
    with pytest.raises(LensSkillsError, match="2 rows are fewer than the 3"):
        cheapest_runs(cost[:2], [1.0], shortest=3)


def test_costs_are_those_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    values, mean = torch.randn(5, 3, generator=generator), torch.randn(2, 3, generator=generator)
    spread = torch.rand(2, 3, generator=generator) + 0.5
    found = gaussian_cost(values, mean, spread)
    for row, state in itertools.product(range(5), range(2)):
        wanted = -norm.logpdf(values[row].numpy(), mean[state].numpy(), spread[state].numpy()).sum()
        assert float(found[row, state]) == pytest.approx(wanted, rel=1e-5)


def test_boundaries_are_matched_as_well_as_can_be() -> None:
    generator = torch.Generator().manual_seed(3)
    for tolerance in (0, 1, 2):
        for _ in range(40):
            found, true = (
                sorted(torch.randperm(14, generator=generator)[:k].tolist())
                for k in torch.randint(1, 6, (2,), generator=generator).tolist()
            )
            near = torch.tensor([[float(abs(a - b) <= tolerance) for b in true] for a in found])
            rows, columns = linear_sum_assignment(-near.numpy())
            matched = float(near[rows, columns].sum())
            precision, recall = matched / len(found), matched / len(true)
            wanted = 2 * precision * recall / (precision + recall) if matched else 0.0
            assert math.isclose(boundary_f1(found, true, tolerance=tolerance), wanted)
    assert boundary_f1([], [3]) == 0.0
