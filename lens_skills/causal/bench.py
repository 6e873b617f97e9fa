"""`Bench`: one model, metric and position, on which every measurement of a verdict is taken."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lens_skills.activations import Metric, Position
from lens_skills.causal.edits import Edit
from lens_skills.causal.effects import Effects
from lens_skills.causal.measurement import measure_effects
from lens_skills.causal.refusals import check_finite
from lens_skills.causal.units import Unit
from lens_skills.example import Example
from lens_skills.models import Lens


@dataclass(frozen=True)
class Bench:
    """What all measurements of one verdict share.

    Attributes:
        lens, metric, position, seed: As in `measure_effects`.
        checkpoint: A folder in which every measurement resumes under its own name.
        options: Passed on: ``batch_size``, ``progress``.
    """

    lens: Lens
    metric: Metric
    position: Position
    seed: int
    checkpoint: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def measure(
        self,
        examples: Sequence[Example],
        sets: Sequence[tuple[Unit, ...]],
        do: Edit,
        *,
        names: Sequence[str],
        part: str,
        direct: bool = False,
    ) -> Effects:
        """The effects of the sets; ``part`` names this measurement in the checkpoint.

        Raises:
            LensSkillsError: An effect that is not finite (which neuron, which example).
        """
        effects = measure_effects(
            self.lens,
            examples,
            sets,
            do,
            metric=self.metric,
            position=self.position,
            names=names,
            direct=direct,
            seed=self.seed,
            checkpoint=None if self.checkpoint is None else self.checkpoint / part,
            **self.options,
        )
        check_finite(effects.total, effects.names, examples)
        return effects
