"""AUROC: how well a neuron's activation orders the two classes."""

import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from lens_skills.methods.method import TWO, Method
from lens_skills.methods.values import Values


def auroc(values: Values) -> Float[Tensor, " unit"]:
    """P(x of class 1 > x of class 0) + P(equal) / 2, in [0, 1]; 0.5 tells nothing.

    From the rank sum R of class 1: (R - n_1 (n_1 + 1) / 2) / (n_1 n_0), ties given their mean rank.
    """
    member = values.target.values
    n_high = float(member.sum())
    n_low = len(member) - n_high
    ranks = torch.from_numpy(rankdata(values.activations.numpy(), axis=0))
    return (member @ ranks - n_high * (n_high + 1) / 2) / (n_high * n_low)


AUROC = Method(
    name="auroc",
    of=auroc,
    about="chance that the activation is larger in class 1 than in class 0",
    source="Mann & Whitney 1947; Hanley & McNeil 1982",
    takes=TWO,
    reads="values",
    unit="probability",
    signed=True,
    centre=0.5,
)
