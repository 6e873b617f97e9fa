"""`Hearing`: one sweep over all neurons on trial and the controls beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import Metric, Position
from lens_skills.causal.edits import Edit
from lens_skills.causal.effects import Effects
from lens_skills.causal.measurement import measure_effects
from lens_skills.causal.units import parse_units
from lens_skills.example import Example
from lens_skills.methods.trial import Trial, draw_controls, judge, threshold
from lens_skills.models import Lens


@dataclass(frozen=True, eq=False)
class Hearing:
    """The effects of the neurons on trial, and what is held against them.

    Attributes:
        effects: Of each neuron on trial alone.
        controls: |mean effect| of random other neurons of the same layers.
        delta: The smallest effect that counts.
        declared: Whether the user chose it.
        removes: Whether the edit takes a neuron's work away.
        seed: Of the bootstrap.
    """

    effects: Effects
    controls: Float[Tensor, " control"]
    delta: float
    declared: bool
    removes: bool
    seed: int

    def of(self, neurons: Int[Tensor, "k 2"]) -> Trial:
        """The words of one list of neurons, all of them swept."""
        place = {name: row for row, name in enumerate(self.effects.names)}
        names = [f"L{layer}N{neuron}" for layer, neuron in neurons.tolist()]
        return self.judge(names, self.effects.total[[place[name] for name in names]])

    def judge(self, names: Sequence[str], total: Float[Tensor, "k example"]) -> Trial:
        """The words of one list of anything whose effects are known."""
        return judge(
            names,
            total,
            self.effects.groups,
            self.controls,
            delta=self.delta,
            removes=self.removes,
            seed=self.seed,
        )


def hear(
    lens: Lens,
    examples: Sequence[Example],
    tried: Int[Tensor, "neuron 2"],
    everyone: Int[Tensor, "unit 2"],
    do: Edit,
    *,
    metric: Metric,
    at: str,
    position: Position,
    delta: float | None,
    n_controls: int,
    removes: bool,
    seed: int,
    batch_size: int,
    progress: bool | None,
) -> Hearing:
    """The hearing of some neurons: each edited alone, and random others of their layers.

    Args:
        lens: The model.
        examples: The intervene split.
        tried: (layer, neuron) of all on trial, each once.
        everyone: Of all there are.
        do: The edit.
        metric: What it may change.
        at, position: Where.
        delta: The smallest effect that counts (None: the controls' 95th percentile).
        n_controls: How many controls, at most.
        removes: Whether the edit takes a neuron's work away.
        seed, batch_size, progress: As in `sweep`.
    """
    controls = draw_controls(tried, everyone, n_controls, seed=seed)
    units = parse_units(lens, torch.cat([tried, controls]), at=at)
    effects = measure_effects(
        lens,
        examples,
        [(unit,) for unit in units],
        do,
        metric=metric,
        position=position,
        names=[unit.name for unit in units],
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    among = effects.total[len(tried) :].mean(dim=1).abs()
    return Hearing(
        effects=effects,
        controls=among,
        delta=threshold(among) if delta is None else delta,
        declared=delta is not None,
        removes=removes,
        seed=seed,
    )
