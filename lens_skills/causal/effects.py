"""`Effects`: what an intervention on each of many sets of units does to a metric, per example."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Effects:
    """Change of a metric under an intervention: edited minus clean, in the metric's unit.

    Attributes:
        names: One name per set, such as ``"L17N635"`` or ``"top 10"``.
        clean: The metric of each example without the intervention.
        total: Edited minus clean; the mean over draws where the edit draws at random.
        direct: The part that reaches the answer without passing a later layer: the edit's write
            to the residual stream read through the clean pass's own final norm. None where it was
            not asked for or the metric does not allow it.
        example_ids, groups: Of the examples, in order.
        metric, unit: What was measured.
        do: The intervention in words, such as ``"mean ablation over agreement, 0.4 of all #1"``.
        site, position: Where it acts.
        provenance: Model, task, split, seed and versions behind the numbers.
    """

    names: tuple[str, ...]
    clean: Float[Tensor, " example"]
    total: Float[Tensor, "set example"]
    direct: Float[Tensor, "set example"] | None
    example_ids: tuple[str, ...]
    groups: tuple[str, ...]
    metric: str
    unit: str
    do: str
    site: str
    position: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row per set: name, mean effect, its standard deviation over examples, direct."""
        columns: dict[str, Any] = {
            "name": list(self.names),
            "effect": self.total.mean(dim=1).numpy(),
            "std": self.total.std(dim=1, correction=0).numpy(),
        }
        if self.direct is not None:
            columns["direct"] = self.direct.mean(dim=1).numpy()
        return pd.DataFrame(columns)
