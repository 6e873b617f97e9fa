"""`Ranking`: every neuron's number by one method."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.errors import LensSkillsError


@dataclass(frozen=True, eq=False)
class Ranking:
    """Every neuron's number by one method; which are strongest, and in which direction.

    Does not show: that a neuron causes anything. `compare` asks that.

    Attributes:
        method, metric: What ranked, and by what.
        layer, neuron: What each unit is.
        score: The method's number, with its sign where the method has one; NaN where it ranks the
            unit not at all (it does not vary, or the method chose others).
        strength: Larger is stronger, whatever the number means; -inf where it is not ranked.
        unit: What the number is measured in.
        about: What the number is, in a line.
        source: Where the method is from.
        site, position: Where the neurons were read.
        n_examples: On how many examples.
        seconds: What the method took: its pass over the split and its own arithmetic.
        provenance: Model, task, split, seed and versions behind the numbers.
    """

    method: str
    metric: str
    layer: Int[Tensor, " unit"]
    neuron: Int[Tensor, " unit"]
    score: Float[Tensor, " unit"]
    strength: Float[Tensor, " unit"]
    unit: str
    about: str
    source: str
    site: str
    position: str
    n_examples: int
    seconds: float
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def n_ranked(self) -> int:
        """How many units the method ranks at all."""
        return int((self.strength > -torch.inf).sum())

    def order(self, k: int) -> Int[Tensor, " unit"]:
        """Places of the k strongest units, the strongest first; fewer where fewer are ranked."""
        if k < 1:
            raise LensSkillsError(f"the {k} strongest neurons? Ask for 1 or more.")
        found = self.strength.argsort(descending=True, stable=True)
        return found[: min(k, self.n_ranked)]

    def top(self, k: int) -> Int[Tensor, "k2 2"]:
        """The k strongest neurons as (layer, neuron), the strongest first."""
        order = self.order(k)
        return torch.stack([self.layer[order], self.neuron[order]], dim=1)

    def names(self, k: int) -> list[str]:
        """The k strongest neurons' names, such as ``"L17N635"``."""
        return [f"L{layer}N{neuron}" for layer, neuron in self.top(k).tolist()]

    def frame(self) -> pd.DataFrame:
        """One row per neuron, the strongest first: layer neuron name score strength rank."""
        order = self.strength.argsort(descending=True, stable=True)
        layer, neuron = self.layer[order].numpy(), self.neuron[order].numpy()
        names = [f"L{a}N{b}" for a, b in zip(layer, neuron, strict=True)]
        return pd.DataFrame(
            {
                "layer": layer,
                "neuron": neuron,
                "name": names,
                "score": self.score[order].numpy(),
                "strength": self.strength[order].numpy(),
                "rank": range(1, len(order) + 1),
            }
        )

    def __repr__(self) -> str:
        head = (
            f"{self.method} by {self.metric} · {self.site} at {self.position} · "
            f"{len(self.layer):,} neurons · {self.n_examples:,} examples"
        )
        lines = [head, f"  {self.about} ({self.source})"]
        if self.n_ranked < len(self.layer):
            lines.append(f"  {len(self.layer) - self.n_ranked:,} neurons are not ranked")
        for place in self.order(3).tolist() if self.n_ranked else []:
            name = f"L{int(self.layer[place])}N{int(self.neuron[place])}"
            lines.append(f"  {name}: {float(self.score[place]):.4g} {self.unit}".rstrip())
        lines.append("  a ranking is no evidence of an effect; ls.compare(…) tries the strongest")
        return "\n".join(lines)
