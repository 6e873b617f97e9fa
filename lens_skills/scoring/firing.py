"""How well a neuron's firing beyond a fixed threshold tells two classes apart."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.scoring.scores import Scores
from lens_skills.scoring.units import Units


class Firing:
    """Counts, per class of each 0/1 metric, how often each unit exceeds its threshold.

    Source: predictivity, Wang et al. 2022 (arXiv 2211.07349), section 3; strict ``>``. Classes
    are weighted equally here: at 17 % correct a silent neuron would otherwise score 0.83.
    """

    def __init__(self, thresholds: Float[Tensor, " unit"], n_metrics: int) -> None:
        self.thresholds = thresholds
        self.fired = torch.zeros(2, n_metrics, len(thresholds), dtype=torch.float64)
        self.count = torch.zeros(2, n_metrics, dtype=torch.float64)
        self.binary = torch.ones(n_metrics, dtype=torch.bool)

    def absorb(
        self, units: Float[Tensor, "batch unit"], values: Float[Tensor, "batch metric"]
    ) -> None:
        """Add a batch of units and metric values."""
        values = values.double()
        self.binary &= ((values == 0) | (values == 1)).all(dim=0)
        fires = (units.cpu().double() > self.thresholds).double()
        for place, members in enumerate((1 - values, values)):
            self.fired[place] += rearrange(members, "batch metric -> metric batch") @ fires
            self.count[place] += members.sum(0)

    def predictivity(self, names: Sequence[str]) -> dict[str, Float[Tensor, " unit"]]:
        """max(accuracy, 1 - accuracy) per unit, for each 0/1 metric; 0.5 to 1."""
        found = {}
        for place, name in enumerate(names):
            if bool(self.binary[place]) and bool((self.count[:, place] > 0).all()):
                silent = 1 - self.fired[0, place] / self.count[0, place]
                hits = self.fired[1, place] / self.count[1, place]
                accuracy = (silent + hits) / 2
                found[name] = torch.maximum(accuracy, 1 - accuracy)
        return found


def baseline_means(baseline: Scores, units: Units) -> Float[Tensor, " unit"]:
    """The baseline's mean activation of each scored unit, positions outermost."""
    wanted = zip(units.layer.tolist(), units.neuron.tolist(), strict=True)
    try:
        chosen = torch.tensor([baseline.places[pair] for pair in wanted])
    except KeyError as error:
        layer, neuron = error.args[0]
        raise LensSkillsError(f"the baseline does not hold L{layer}N{neuron}.") from error
    return rearrange(baseline.mean[:, chosen], "pos unit -> (pos unit)")
