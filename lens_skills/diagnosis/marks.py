"""Balanced accuracy, F1 and AUROC of a two-class prediction, with intervals over groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.stats.bootstrap import cluster_error
from lens_skills.stats.shares import share_interval

MARKS = ("balanced_accuracy", "f1", "auroc")


@dataclass(frozen=True)
class Mark:
    """One number between 0 and 1 with its interval."""

    value: float
    low: float
    high: float


def marks_of(
    score: Float[Tensor, " example"],
    truth: Bool[Tensor, " example"],
    groups: Sequence[str],
    *,
    level: float = 0.95,
) -> dict[str, Mark]:
    """Each mark of a prediction that says yes where ``score`` > 0.

    ``balanced_accuracy``: mean of the shares right among true and among false, chance 0.5.
    ``f1``: 2 TP / (2 TP + FP + FN). ``auroc``: P(score of a true one > of a false one), ties
    counting half.
    The intervals are value ± t se with the cluster-robust standard error of the mark's influence
    values (for AUROC, DeLong's components), Student's t of groups - 1 degrees of freedom, within
    [0, 1]. Where all are right the error is 0, and the exact interval of the share right stands
    in for it.

    Source: DeLong, DeLong & Clarke-Pearson 1988; clustered, Obuchowski 1997.
    Assumes: independent groups, 30 or more.

    >>> score, truth = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([True, True, False])
    >>> marks_of(score, truth, ["a", "b", "c"])["auroc"].value
    1.0
    """
    # Imported here: SciPy's statistics take a second to load and --help must not wait for them.
    from scipy.stats import t as student

    said, yes = score > 0, truth.double()
    share = float(yes.mean())
    right = (said == truth).double()
    rates = [float(right[truth].mean()), float(right[~truth].mean())]
    balanced = yes * (right - rates[0]) / share + (1 - yes) * (right - rates[1]) / (1 - share)
    hits, whole = 2 * (said & truth).double(), said.double() + yes
    f1 = float(hits.sum() / whole.sum())
    above = torch.sign(score[truth][:, None] - score[~truth][None]).double() / 2 + 0.5
    auroc = float(above.mean())
    component = torch.zeros_like(yes)
    component[truth] = (above.mean(1) - auroc) / share
    component[~truth] = (above.mean(0) - auroc) / (1 - share)
    values = {"balanced_accuracy": sum(rates) / 2, "f1": f1, "auroc": auroc}
    influences = {
        "balanced_accuracy": balanced / 2,
        "f1": (hits - f1 * whole) / whole.mean(),
        "auroc": component,
    }
    reach = float(student.ppf((1 + level) / 2, max(len(set(groups)) - 1, 1)))
    exact = share_interval(right[None], groups, level=level)
    found = {}
    for name, value in values.items():
        half = reach * float(cluster_error(influences[name][None], groups)[0])
        low, high = max(0.0, value - half), min(1.0, value + half)
        if half == 0:
            low, high = min(value, float(exact[0][0])), max(value, float(exact[1][0]))
        found[name] = Mark(value, low, high)
    return found
