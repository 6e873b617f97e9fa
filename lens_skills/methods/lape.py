"""LAPE: in how few of the classes a neuron's gate opens at all."""

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.methods.method import CLASSES, Method
from lens_skills.methods.sums import Sums

SHARE = 0.95


def lape(sums: Sums) -> Float[Tensor, " unit"]:
    """Entropy of the firing rates over the classes, in nats (0 to ln K); the lowest is strongest.

    p_c = how often the gate is open in class c; entropy of p_c / Σ p_c. A neuron is ranked only
    where some p_c is among the largest 5 % of all rates (of all neurons and classes): one that
    fires once in all has entropy 0. Others are NaN.

    The sign is that of the *gate*: act(gate) has it, act(gate) · up does not. Where a tie at the
    95th percentile would leave no neuron (with few examples it may be 1), rates at it count.
    """
    assert sums.fired is not None, "the gate was not read"
    rate = sums.fired / sums.size[:, None]
    total = rate.sum(0)
    share = rate / total.clamp(min=1e-300)
    entropy = -torch.special.xlogy(share, share).sum(0)
    # torch.quantile refuses more than 16 million numbers; the k-th value is what the paper takes.
    place = max(1, round(rate.numel() * SHARE))
    bar = rate.flatten().kthvalue(place).values
    active = (rate > bar).any(0)
    if not bool(active.any()):
        active = (rate >= bar).any(0) & (total > 0)
    return torch.where(active, entropy, torch.nan)


LAPE = Method(
    name="lape",
    of=lape,
    about="entropy over the classes of how often the gate is open; lowest first",
    source="Tang et al. 2024, arXiv 2402.16438, and its released code (the 95 % bar)",
    takes=CLASSES,
    reads="firing",
    unit="nats",
    lowest=True,
)
