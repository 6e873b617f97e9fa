"""`DoseResponse`: a set's effect at several strengths, with the damage done elsewhere."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lens_skills.folder import fields_of, read_folder, write_folder
from lens_skills.stats.bootstrap import FEW_GROUPS, cluster_interval


@dataclass(frozen=True, eq=False)
class DoseResponse:
    """What steering a set by each dose does to a metric, and to text that is none of its business.

    Attributes:
        names: The units of the set, steered together.
        doses: In each unit's own standard deviation; positive raises the activation.
        effects: Edited minus clean metric of every example, in the metric's unit.
        low, high: 95 % interval of the mean effect of each dose, by group.
        slope: Least-squares change of the metric per standard deviation, over all doses.
        slope_low, slope_high: Its 95 % interval, by group.
        monotonicity: Spearman's correlation of the dose and the mean effect, -1 to 1; 0 where
            the mean effect is the same at all doses.
        damage: KL(clean ‖ edited) in nats per token of each neutral text, steered everywhere.
        clean: The metric without an edit.
        example_ids, groups: Of the examples, in order.
        metric, unit: What was measured.
        over: The split of the standard deviations, in words.
        site, position: Where the set was steered.
        provenance: Model, task, seed and versions behind the numbers.
    """

    names: tuple[str, ...]
    doses: Float[Tensor, " dose"]
    effects: Float[Tensor, "dose example"]
    low: Float[Tensor, " dose"]
    high: Float[Tensor, " dose"]
    slope: float
    slope_low: float
    slope_high: float
    monotonicity: float
    damage: Float[Tensor, "dose text"]
    clean: Float[Tensor, " example"]
    example_ids: tuple[str, ...]
    groups: tuple[str, ...]
    metric: str
    unit: str
    over: str
    site: str
    position: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row per dose: dose effect low high damage damage_low damage_high."""
        low, high = cluster_interval(self.damage, [str(text) for text in range(self.n_texts)])
        return pd.DataFrame(
            {
                "dose": self.doses.numpy(),
                "effect": self.effects.mean(1).numpy(),
                "low": self.low.numpy(),
                "high": self.high.numpy(),
                "damage": self.damage.mean(1).numpy(),
                "damage_low": low.clamp(min=0).numpy(),
                "damage_high": high.numpy(),
            }
        )

    @property
    def n_texts(self) -> int:
        """How many neutral texts the damage was measured on."""
        return self.damage.shape[1]

    def __repr__(self) -> str:
        named = ", ".join(self.names[:3]) + (" …" if len(self.names) > 3 else "")
        lines = [
            f"{self.metric} against dose · {named} ({len(self.names)} units) · {self.site} at "
            f"{self.position} · {len(self.example_ids):,} examples in "
            f"{len(set(self.groups)):,} groups",
            f"  slope {self.slope:+.3g} [{self.slope_low:+.3g}, {self.slope_high:+.3g}] "
            f"{self.unit} per std over {self.over}; monotonicity {self.monotonicity:+.2f}",
            f"  {'dose':>5}  {'effect':>8}  {'95 % interval':<20}  damage (nats per token)",
        ]
        for dose, effect, low, high, damage, *_ in self.frame().itertuples(index=False):
            interval = f"[{low:+.3g}, {high:+.3g}]"
            lines.append(f"  {dose:>+5g}  {effect:>+8.3g}  {interval:<20}  {damage:.3g}")
        if len(set(self.groups)) < FEW_GROUPS:
            lines.append(f"  fewer than {FEW_GROUPS} groups: the intervals cover less than 95 %")
        return "\n".join(lines)

    def save(self, folder: str | Path) -> Path:
        """Writes ``dose_response.safetensors`` and ``dose_response.json``."""
        return write_folder(Path(folder), "dose_response", *fields_of(self))

    @classmethod
    def load(cls, folder: str | Path) -> "DoseResponse":
        """The curve that `save` wrote."""
        tensors, plain = read_folder(Path(folder), "dose_response")
        for name in ("names", "example_ids", "groups"):
            plain[name] = tuple(plain[name])
        return cls(**tensors, **plain)
