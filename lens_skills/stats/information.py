"""Entropy and mutual information: how much of one thing another tells, whatever its shape.

Counted in equal-width bins, for many units and features at once; for two continuous variables
the estimator of Kraskov, Stögbauer and Grassberger (scikit-learn's).
"""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.errors import LensSkillsError

N_BINS = 8
"""Equal-width bins an activation is cut into, unless asked otherwise."""


def entropy(codes: Int[Tensor, "*unit row"]) -> Float[Tensor, "*unit"]:
    """Entropy of each row of codes in bits, H = -Σ p log2 p with p the share of each code.

    Codes are whole numbers from 0 on; the estimate is the plug-in one, never above the truth on
    average.

    Source: Shannon 1948; as a diagnostic of memorisation, Bansal et al. 2022 (arXiv 2210.09404).

    >>> entropy(torch.tensor([0, 1, 1, 0])).item()
    1.0
    """
    flat = codes.reshape(-1, codes.shape[-1])
    n_codes = int(flat.max()) + 1
    offset = torch.arange(len(flat))[:, None] * n_codes
    counts = torch.bincount((flat + offset).flatten(), minlength=len(flat) * n_codes)
    return _entropy(counts.reshape(len(flat), n_codes)).reshape(codes.shape[:-1])


def equal_width_codes(
    x: Float[Tensor, "*unit row"], *, n_bins: int = N_BINS
) -> Int[Tensor, "*unit row"]:
    """The bin, 0 to ``n_bins`` - 1, of each value between its unit's smallest and largest.

    A unit that never changes is in bin 0 throughout.

    >>> equal_width_codes(torch.tensor([0.0, 1.0, 4.0]), n_bins=4).tolist()
    [0, 1, 3]
    """
    if n_bins < 2:
        raise LensSkillsError(f"n_bins={n_bins}: at least 2 bins are needed to tell values apart.")
    x = x.double()
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    width = torch.where(high > low, high - low, 1.0)
    return ((x - low) / width * n_bins).long().clamp(max=n_bins - 1)


def binned_information(
    x: Float[Tensor, "unit row"], y_codes: Int[Tensor, " row"], *, n_bins: int = N_BINS
) -> Float[Tensor, " unit"]:
    """Mutual information of each unit with the codes, in bits: H(x) + H(y) - H(x, y).

    ``x`` is cut into equal-width bins of its own range. The plug-in estimate is never negative; of
    unrelated things it is about (bins - 1)(codes - 1) / (2 ln 2 · rows), so it needs a null.

    >>> binned_information(torch.tensor([[0.0, 0.0, 5.0, 5.0]]), torch.tensor([0, 0, 1, 1])).item()
    1.0
    """
    n_codes = int(y_codes.max()) + 1
    columns = torch.nn.functional.one_hot(y_codes, n_codes)
    inside = indicators(equal_width_codes(x, n_bins=n_bins), n_bins)
    return information_of_columns(inside, columns.to(inside), [n_codes])[:, 0]


def indicators(codes: Int[Tensor, "unit row"], n_codes: int) -> Float[Tensor, "unit code row"]:
    """1 where a row has the code, else 0 (float32, which counts exactly up to 16 million).

    >>> indicators(torch.tensor([[1, 0]]), 2).tolist()
    [[[0.0, 1.0], [1.0, 0.0]]]
    """
    return rearrange(
        torch.nn.functional.one_hot(codes, n_codes).float(), "unit row code -> unit code row"
    ).contiguous()


def information_of_columns(
    inside: Float[Tensor, "unit bin row"], columns: Float[Tensor, "row column"], sizes: list[int]
) -> Float[Tensor, "unit feature"]:
    """Mutual information, in bits, of binned units with features laid side by side as 0/1 columns.

    Feature f owns the next ``sizes[f]`` columns, exactly one of which is 1 in each row.

    Args:
        inside: Which bin each unit is in, from `indicators`.
        columns: The classes of all features.
        sizes: How many classes each feature has.
    """
    n_units, n_bins, n_rows = inside.shape
    counts = rearrange(inside, "unit bin row -> (unit bin) row") @ columns
    # Counts are whole numbers: n log2 n is looked up.
    terms = _log_term(torch.arange(n_rows + 1))
    found = rearrange(terms[counts.long()], "(unit bin) column -> unit bin column", bin=n_bins)
    feature = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    joint = torch.zeros(n_units, len(sizes), dtype=torch.float64)
    joint.index_add_(1, feature, found.sum(1))
    classes = torch.zeros(len(sizes), dtype=torch.float64)
    classes.index_add_(0, feature, terms[columns.sum(0).long()])
    bins = terms[inside.sum(-1).long()].sum(-1, keepdim=True)
    # Σ n_xy log(n_xy n / (n_x n_y)) / n, the sums over x and y taken apart.
    return ((joint - bins - classes + terms[n_rows]) / n_rows).clamp(min=0.0)


def kraskov_information(
    x: Float[Tensor, " row"], y: Float[Tensor, " row"], *, k: int = 3, seed: int = 0
) -> float:
    """Mutual information of two continuous variables in nats, from distances to neighbours.

    scikit-learn's: ψ(n) + ψ(k) - ⟨ψ(n_x + 1) + ψ(n_y + 1)⟩, where n_x and n_y count the points
    nearer in that variable than the k-th neighbour is in both (the larger of the two distances).
    Variables are first divided by their standard deviation; a jitter of 1e-10, drawn with
    ``seed``, breaks ties. Estimates below 0 are returned as 0.

    Source: Kraskov, Stögbauer & Grassberger 2004, equation 8.

    Raises:
        LensSkillsError: No more rows than neighbours.

    >>> line = torch.linspace(0, 1, 200)
    >>> kraskov_information(line, line) > 3
    True
    """
    # Imported here: scikit-learn takes a second to load and --help must not wait for it.
    from sklearn.feature_selection import mutual_info_regression

    if len(x) <= k:
        raise LensSkillsError(
            f"{len(x)} rows are too few for {k} neighbours each. Give more, or a smaller k."
        )
    column, target = x.double().numpy()[:, None], y.double().numpy()
    return float(mutual_info_regression(column, target, n_neighbors=k, random_state=seed)[0])


def _entropy(counts: Int[Tensor, "unit code"]) -> Float[Tensor, " unit"]:
    n_rows = counts.sum(-1)
    return n_rows.double().log2() - _log_term(counts).sum(-1) / n_rows


def _log_term(counts: Tensor) -> Tensor:
    """n log2 n, 0 where n is 0."""
    counts = counts.double()
    return torch.special.xlogy(counts, counts) / np.log(2)
