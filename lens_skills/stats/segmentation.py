"""Cutting a sequence into runs of states: the cheapest cuts, and how well cuts agree.

The cuts are exact, by dynamic programming; boundaries are compared within a tolerance.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError

Runs = list[tuple[int, int]]
"""The runs of a sequence in order: where each begins, and its state."""


def gaussian_cost(
    values: Float[Tensor, "row unit"],
    mean: Float[Tensor, "state unit"],
    spread: Float[Tensor, "state unit"],
) -> Float[Tensor, "row state"]:
    """-Σ log N(value; mean, spread) over the units, in nats, of each row in each state.

    >>> zero = torch.zeros(1, 1)
    >>> round(gaussian_cost(zero, zero, zero + 1).item(), 4)  # log(2 π) / 2
    0.9189
    """
    normal = torch.distributions.Normal(mean.double(), spread.double())
    return torch.stack([-normal.log_prob(row).sum(1) for row in values.double()])


def cheapest_runs(
    cost: Float[Tensor, "row state"], prices: Sequence[float], *, shortest: int = 1
) -> list[Runs]:
    """For each price of a boundary, the runs of least cost: Σ cost of the rows + price · cuts.

    Exact. Where it costs the same, a run goes on; neighbouring runs differ in their state.

    Args:
        cost: Of each row in each state.
        prices: What one boundary costs, each 0 or more; the runs of each are found in one pass.
        shortest: Rows of a run at least.

    Raises:
        LensSkillsError: Fewer rows than the shortest run has.

    Source: segmental dynamic programming (Bellman 1961; Auger & Lawrence 1989).

    >>> cost = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    >>> cheapest_runs(cost, [1.0, 3.0])
    [[(0, 0), (2, 1)], [(0, 0)]]
    """
    n_rows, n_states = cost.shape
    if n_rows < shortest:
        raise LensSkillsError(f"{n_rows} rows are fewer than the {shortest} of the shortest run.")
    price = np.asarray(prices, dtype=float)
    rows = cost.double().numpy()
    sums = np.concatenate([np.zeros((1, n_states)), rows.cumsum(0)])
    shape = (n_rows + 1, len(price), n_states)
    best, begins = np.full(shape, np.inf), np.zeros(shape, dtype=int)
    for end in range(shortest, n_rows + 1):
        begin = end - shortest
        before = np.zeros(len(price)) if begin == 0 else best[begin].min(1) + price
        opened = before[:, None] + (sums[end] - sums[begin])
        kept = best[end - 1] + rows[end - 1]
        new = opened < kept - 1e-9 * (1 + np.abs(opened))
        best[end] = np.where(new, opened, kept)
        begins[end] = np.where(new, begin, begins[end - 1])
    return [_followed_back(best[:, place], begins[:, place]) for place in range(len(price))]


def _followed_back(best: np.ndarray, begins: np.ndarray) -> Runs:
    runs: Runs = []
    end = len(best) - 1
    while end > 0:
        state = int(best[end].argmin())
        end = int(begins[end, state])
        runs.append((end, state))
    return runs[::-1]


def boundary_f1(found: Sequence[int], true: Sequence[int], *, tolerance: int = 1) -> float:
    """Harmonic mean of precision and recall of boundaries, each matched to one other at most.

    A boundary is right where a true one, not matched yet, lies within ``tolerance``. Two empty
    sets agree: 1.

    >>> boundary_f1([4, 9], [5, 20]), boundary_f1([], [])
    (0.5, 1.0)
    """
    if not found and not true:
        return 1.0
    ours, theirs = sorted(found), sorted(true)
    matched = i = j = 0
    while i < len(ours) and j < len(theirs):
        if abs(ours[i] - theirs[j]) <= tolerance:
            matched, i, j = matched + 1, i + 1, j + 1
        elif ours[i] < theirs[j]:
            i += 1
        else:
            j += 1
    return 2 * matched / (len(ours) + len(theirs))
