"""Correlations: Pearson's r with an interval over groups, Spearman's; ranks and percentiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.stats.effect_tests import cluster_error
from lens_skills.stats.intervals import logit_interval


def rank_agreement(estimate: Float[Tensor, " unit"], exact: Float[Tensor, " unit"]) -> float:
    """Spearman's rank correlation of an estimate with the exact effects (-1 to 1).

    >>> rank_agreement(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 40.0]))
    1.0

    Raises:
        LensSkillsError: Fewer than three units, or all alike: nothing to rank.
    """
    if len(estimate) < 3:
        raise LensSkillsError(f"{len(estimate)} units cannot be ranked. Sweep three or more.")
    if estimate.unique().numel() < 2 or exact.unique().numel() < 2:
        raise LensSkillsError("all units are alike, so there is nothing to rank.")
    return round(float(spearman(torch.stack([estimate, exact]))[0, 1]), 12)


def spearman(rows: Float[Tensor, "row unit"]) -> Float[Tensor, "row other"]:
    """Spearman's rank correlation (-1 to 1) of every two rows; NaN for one that does not vary.

    >>> spearman(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]))[0, 1].item()
    -1.0
    """
    # Imported here: SciPy's statistics take a second to load and --help must not wait for them.
    from scipy.stats import rankdata

    return torch.from_numpy(np.atleast_2d(np.corrcoef(rankdata(rows.double().numpy(), axis=1))))


def area_under_curve(
    values: Float[Tensor, "row *unit"], truth: Float[Tensor, " row"]
) -> Float[Tensor, "*unit"]:
    """AUROC: P(value of a true row > of a false one) + P(equal) / 2; NaN with one class only.

    From the rank sum R of the true: (R - n_1 (n_1 + 1) / 2) / (n_1 n_0), ties given their mean
    rank; with ``truth`` 0 or 1, in float64.

    >>> area_under_curve(torch.tensor([0.1, 0.7, 0.7]), torch.tensor([0, 1, 0]).double()).item()
    0.75
    """
    # Imported here: SciPy's statistics take a second to load and --help must not wait for them.
    from scipy.stats import rankdata

    n_true = float(truth.sum())
    ranks = torch.from_numpy(rankdata(values.numpy(), axis=0))
    return (truth @ ranks - n_true * (n_true + 1) / 2) / (n_true * (len(truth) - n_true))


def area_influence(
    values: Float[Tensor, " row"], truth: Bool[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """How far each row moves the AUROC: DeLong's components, whose mean is 0.

    Of a true row (the share of false ones below it - AUROC) / (share of true rows), of a false row
    likewise; ties count half.

    Source: DeLong, DeLong & Clarke-Pearson 1988.

    >>> moved = area_influence(torch.tensor([2.0, 1.0, 3.0]), torch.tensor([True, False, False]))
    >>> [round(each, 3) for each in moved.tolist()]
    [0.0, 0.75, -0.75]
    """
    above = torch.sign(values[truth][:, None] - values[~truth][None]).double() / 2 + 0.5
    area, share = above.mean(), truth.double().mean()
    influence = torch.zeros(len(truth), dtype=torch.float64)
    influence[truth] = (above.mean(1) - area) / share
    influence[~truth] = (above.mean(0) - area) / (1 - share)
    return influence


def area_interval(
    values: Float[Tensor, " row"],
    truth: Bool[Tensor, " row"],
    groups: Sequence[str],
    *,
    level: float = 0.95,
) -> tuple[float, float]:
    """Lower and upper end of the interval of an AUROC over groups, within [0, 1].

    `logit_interval` with the cluster-robust standard error of `area_influence`, over the smaller
    of the numbers of groups with a true and with a false row.

    NaN where one of the two is in fewer than two groups.

    Source: DeLong, DeLong & Clarke-Pearson 1988; clustered, Obuchowski 1997.
    Assumes: independent groups, 30 or more.

    >>> values, truth = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([False, False, True, True])
    >>> low, high = area_interval(values, truth, ["a", "b", "c", "d"])
    >>> round(low, 3), high
    (0.158, 1.0)
    """
    sides = truth.tolist()
    m = min(len({g for g, yes in zip(groups, sides, strict=True) if yes is side})
            for side in (True, False))  # fmt: skip
    error = float(cluster_error(area_influence(values, truth)[None], list(groups))[0])
    area = float(area_under_curve(values, truth.double()))
    return logit_interval(area, error, m, level=level)


@dataclass(frozen=True, eq=False)
class GroupedCorrelation:
    """Correlations of several units with one column, over grouped rows.

    Attributes:
        r: Pearson's r; 0 for a unit that does not vary.
        low, high: Ends of the interval.
    """

    r: Float[Tensor, " unit"]
    low: Float[Tensor, " unit"]
    high: Float[Tensor, " unit"]


def correlate(
    values: Float[Tensor, "unit row"],
    column: Float[Tensor, " row"],
    groups: Sequence[str],
    *,
    level: float = 0.95,
) -> GroupedCorrelation:
    """Pearson's r of each unit with the column, and its interval over groups.

    The standard error of r is that of the mean of its influence values z_x z_y - r (z_x² + z_y²)/2,
    cluster-robust; the interval is symmetric in Fisher's z, with Student's t of groups - 1 degrees
    of freedom.

    Source: the influence function of r is Devlin, Gnanadesikan & Kettenring 1975; Fisher 1921.
    Assumes: independent groups, 30 or more.

    >>> line = torch.arange(4.0)
    >>> correlate(line[None], line, ["a", "b", "c", "d"]).r.item()
    1.0
    """
    # Imported here: SciPy's statistics take a second to load and --help must not wait for them.
    from scipy.stats import t as student

    x, y = standardise(values), standardise(column[None])[0]
    r = (x * y).mean(1).clamp(-1, 1)
    influence = x * y - r[:, None] / 2 * (x.square() + y.square())
    error = cluster_error(influence, list(groups))
    # In z an r has the error dz = dr / (1 - r²); an r of 1 has none.
    flat = 1 - r.square() <= 1e-12
    reach = float(student.ppf((1 + level) / 2, max(len(set(groups)) - 1, 1)))
    half = reach * error / (1 - r.square()).clamp(min=1e-12)
    z = torch.atanh(r.clamp(-1 + 1e-15, 1 - 1e-15))
    low = torch.where(flat, r, torch.tanh(z - half))
    high = torch.where(flat, r, torch.tanh(z + half))
    return GroupedCorrelation(r, low, high)


def standardise(values: Float[Tensor, "unit row"]) -> Float[Tensor, "unit row"]:
    """Each row at mean 0 and population variance 1; a constant one is 0 throughout.

    >>> standardise(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    centred = values.double() - values.double().mean(1, keepdim=True)
    spread = centred.square().mean(1, keepdim=True).sqrt()
    size = values.double().abs().amax(1, keepdim=True)
    return torch.where(spread > 1e-9 * size, centred / spread.clamp(min=1e-300), 0.0)


def average_linkage(distance: np.ndarray) -> Float[Tensor, "merge 4"]:
    """SciPy's tree of average linkage on the distances of every two, each 0 from itself.

    >>> average_linkage(np.array([[0.0, 0.5], [0.5, 0.0]])).tolist()
    [[0.0, 1.0, 0.5, 2.0]]
    """
    # Imported here: SciPy's statistics take a second to load and --help must not wait for them.
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    np.fill_diagonal(distance, 0)
    return torch.from_numpy(linkage(squareform(distance, checks=False), "average"))


def percentiles(
    values: Float[Tensor, " unit"], population: Float[Tensor, " neuron"]
) -> Float[Tensor, " unit"]:
    """The share of the population below each value, ties counting half; 0 to 1.

    >>> percentiles(torch.tensor([2.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])).item()
    0.375
    """
    ordered = np.sort(population.double().numpy())
    wanted = values.double().numpy()
    below = np.searchsorted(ordered, wanted, side="left")
    upto = np.searchsorted(ordered, wanted, side="right")
    return torch.from_numpy((below + upto) / 2 / len(ordered))
