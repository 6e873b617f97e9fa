"""`partial_r`: what is left of one metric's correlations once another's are taken out."""

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.scoring.scores import Scores

# Of a metric's variance; where less is left, the two metrics are one.
_LEFT = 1e-9


def partial_r(scores: Scores, metric: str, given: str) -> Float[Tensor, "pos unit"]:
    """The partial r of each neuron with a metric, given another metric of the same pass.

    r_am.g = (r_am - r_ag r_mg) / sqrt((1 - r_ag²) (1 - r_mg²)), which is the correlation of what
    the least-squares lines on g leave of a and of m. It needs no second pass: confidence given the
    label and the label given confidence come from the same scores. 0 where nothing is left of a
    neuron. For other columns than metrics, or several: `score(…, given=…)`, which has a null too.

    Args:
        scores: With both metrics, and nothing partialled out already.
        metric: Whose r.
        given: The metric to take out.

    Raises:
        LensSkillsError: No such metric, one metric for both, a pass with ``given=``, or two
            metrics of which one is a linear function of the other.

    Assumes: a linear effect of what is taken out.
    """
    r, other = scores[metric].r, scores[given].r
    if scores.provenance.get("given"):
        raise LensSkillsError(
            f"these scores are partial already, given {', '.join(scores.provenance['given'])}. "
            "Score without given=, or name all columns there."
        )
    pair = torch.stack([scores.values[metric].double(), scores.values[given].double()])
    between = torch.corrcoef(pair)[0, 1]
    if float(1 - between**2) < _LEFT:
        raise LensSkillsError(
            f"{metric!r} is a linear function of {given!r} in these {scores.n_examples} examples, "
            "so nothing is left of it. Take examples on which the two differ."
        )
    left = 1 - other**2
    scale = (left * (1 - between**2)).clamp(min=_LEFT**2).rsqrt()
    return torch.where(left > _LEFT, (r - other * between) * scale, 0.0).clamp(-1, 1)
