"""How much rankings agree: over all neurons, and among their strongest."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from lens_skills.methods.ranking import Ranking


def spearman(rankings: Sequence[Ranking]) -> Float[Tensor, "method other"]:
    """Spearman's correlation of the strengths over all neurons, -1 to 1.

    Neurons a method does not rank share its last place.
    """
    ranks = np.stack([rankdata(ranking.strength.numpy()) for ranking in rankings])
    return torch.from_numpy(np.atleast_2d(np.corrcoef(ranks)))


def jaccard(rankings: Sequence[Ranking], k: int) -> Float[Tensor, "method other"]:
    """Of the neurons two methods name among their k strongest, the share both name (0 to 1)."""
    sets = [set(ranking.names(k)) for ranking in rankings]
    shares = [[len(a & b) / max(len(a | b), 1) for b in sets] for a in sets]
    return torch.tensor(shares, dtype=torch.float64)
