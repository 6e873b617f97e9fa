"""`predictivity`: how well one threshold per neuron tells two classes, over several prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations.activation_reader import ActivationReader
from lens_skills.activations.components import Components, unit_name
from lens_skills.activations.locations import DEFAULT_SITE
from lens_skills.errors import LensSkillsError
from lens_skills.results import Result
from lens_skills.scoring.leakage import check_seeds
from lens_skills.scoring.scores import Scores


@dataclass(frozen=True, eq=False)
class Predictivity(Result):
    """Of every neuron, the mean over prompts of its best position.

    Attributes:
        metric: The 0/1 metric that is told.
        layer, neuron: What each unit is.
        by_seed: Of each prompt, the largest over its positions; 0.5 to 1.
        value: Their mean.
        site, d_head: Where the units are read, and the width of a head.
    """

    metric: str
    layer: Int[Tensor, " unit"]
    neuron: Int[Tensor, " unit"]
    by_seed: Float[Tensor, "seed unit"]
    value: Float[Tensor, " unit"]
    site: str = DEFAULT_SITE
    d_head: int | None = None

    def top(self, k: int) -> Components:
        """The k most predictive units, as any verb takes them."""
        return self._units(self.value.argsort(descending=True, stable=True)[:k])

    def _units(self, order: Int[Tensor, " unit"]) -> Components:
        rows = torch.stack([self.layer[order], self.neuron[order]], dim=1)
        return Components.of(rows, self.site, {"d_head": self.d_head})

    def top_per_layer(self, share: float) -> Components:
        """The most predictive share of each layer's neurons, at least one: the authors' choice."""
        if not 0 < share <= 1:
            raise LensSkillsError(f"a share lies between 0 and 1, not {share}.")
        chosen = []
        for layer in self.layer.unique():
            here = (self.layer == layer).nonzero()[:, 0]
            order = self.value[here].argsort(descending=True, stable=True)
            chosen.append(here[order[: max(1, round(share * len(here)))]])
        return self._units(torch.cat(chosen))

    def frame(self) -> pd.DataFrame:
        """One row per neuron, best first: name layer neuron predictivity lowest highest (seeds)."""
        order = self.value.argsort(descending=True, stable=True)
        columns = {
            "layer": self.layer,
            "neuron": self.neuron,
            "predictivity": self.value,
            "lowest": self.by_seed.amin(dim=0),
            "highest": self.by_seed.amax(dim=0),
        }
        numbers = {name: tensor[order].numpy() for name, tensor in columns.items()}
        return pd.DataFrame({"name": self._units(order).names, **numbers})

    def __repr__(self) -> str:
        lines = [
            f"predictivity of {self.metric} · {len(self.value):,} neurons · mean over "
            f"{len(self.by_seed)} prompts of the best position (0.5 to 1)"
        ]
        lines += [
            f"  {row['name']}: {row['predictivity']:.3f} "
            f"[{row['lowest']:.3f}, {row['highest']:.3f}] over prompts"
            for row in self.frame().head(5).to_dict("records")
        ]
        lines.append(
            "  the best of several positions and neurons: chance alone reaches some of this"
        )
        return "\n".join(lines)


def predictivity(scores_by_seed: Sequence[Scores], metric: str | None = None) -> Predictivity:
    """The predecessor's score of every neuron: mean over prompts of the maximum over positions.

    Pred(N) = mean_P max_p max(Acc, 1 - Acc), where Acc(N, p) is the share of examples told by
    a > b, with b the mean activation on another split. Classes weigh the same here.

    Args:
        scores_by_seed: One pass per prompt, each made with ``baseline=``.
        metric: A 0/1 metric; None for the only one in the scores.

    Raises:
        LensSkillsError: No scores, scores that do not fit together, or no predictivity in them.

    Source: Wang et al. 2022 (arXiv 2211.07349), section 3.
    """
    metric = check_seeds(scores_by_seed, metric)[0].metric
    for place, scores in enumerate(scores_by_seed):
        if metric not in scores.predictivity:
            raise LensSkillsError(
                f"scores #{place} hold no predictivity of {metric!r}. Score a 0/1 metric with "
                "baseline=, the scores of another split under the same prompt."
            )
    by_seed = torch.stack([scores.predictivity[metric].amax(dim=0) for scores in scores_by_seed])
    return Predictivity(
        metric=metric,
        layer=scores_by_seed[0].layer,
        neuron=scores_by_seed[0].neuron,
        by_seed=by_seed,
        value=by_seed.mean(dim=0),
        site=scores_by_seed[0].site,
        d_head=scores_by_seed[0].provenance.get("d_head"),
    )


class FiringCounts:
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

    def merge(self, other: "FiringCounts") -> None:
        """Add the counts of other examples, against the same thresholds."""
        self.fired += other.fired
        self.count += other.count
        self.binary &= other.binary

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


def baseline_means(baseline: Scores, source: ActivationReader) -> Float[Tensor, " unit"]:
    """The baseline's mean activation of each scored unit, positions outermost."""
    wanted = zip(source.layer.tolist(), source.neuron.tolist(), strict=True)
    try:
        chosen = torch.tensor([baseline.places[pair] for pair in wanted])
    except KeyError as error:
        layer, neuron = error.args[0]
        raise LensSkillsError(
            f"the baseline does not hold {unit_name(layer, neuron, source.site.name)}."
        ) from error
    return rearrange(baseline.mean[:, chosen], "pos unit -> (pos unit)")
