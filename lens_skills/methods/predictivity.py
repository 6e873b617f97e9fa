"""Predictivity: how well firing beyond the mean of other examples tells two classes apart."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.methods.method import TWO, Method
from lens_skills.methods.values import Values
from lens_skills.stats.exchange import group_codes


def predictivity(values: Values) -> Float[Tensor, " unit"]:
    """max(accuracy, 1 - accuracy) of "x > b", in [0.5, 1]; 0.5 tells nothing.

    The threshold b of an example is the neuron's mean over the *other* half of the examples
    (random halves that share no group), so none helps to set the threshold it is judged by. The
    accuracy is the mean of both classes': at 17 % correct a silent neuron would else reach 0.83.
    """
    rows = values.activations.double()
    first = halves(values.groups, seed=values.seed)
    threshold = torch.where(first[:, None], rows[~first].mean(0), rows[first].mean(0))
    fires = (rows > threshold).double()
    high = values.target.values == 1
    accuracy = (fires[high].mean(0) + 1 - fires[~high].mean(0)) / 2
    return torch.maximum(accuracy, 1 - accuracy)


def halves(groups: Sequence[str], *, seed: int) -> Bool[Tensor, " row"]:
    """Which examples are in the first half; groups stay whole.

    >>> first = halves(["a", "a", "b", "b"], seed=0)
    >>> int(first.sum()), bool(first[0] == first[1])
    (2, True)
    """
    codes = group_codes(groups)
    n_groups = int(codes.max()) + 1
    order = np.random.default_rng(seed).permutation(n_groups)
    first = torch.from_numpy(order[codes] < (n_groups + 1) // 2)
    if n_groups < 2:  # one group only: its examples are halved, since nothing else can be
        first = torch.arange(len(codes)) % 2 == 0
    return first


PREDICTIVITY = Method(
    name="predictivity",
    of=predictivity,
    about="balanced accuracy of firing beyond the mean of other examples",
    source="Wang et al. 2022, arXiv 2211.07349, section 3 (there unbalanced)",
    takes=TWO,
    reads="values",
    unit="accuracy",
    centre=0.5,
)
