"""`Bench`: one model, metric and position, on which every measurement of a verdict is taken."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lens_skills.activations import BATCH_SIZE, Metric, Position
from lens_skills.causal.baseline import Baseline, measure_baseline
from lens_skills.causal.edits import Edit
from lens_skills.causal.effects import Effects
from lens_skills.causal.measurement import measure_effects
from lens_skills.causal.refusals import check_finite
from lens_skills.causal.units import Unit, sites_of
from lens_skills.example import Example
from lens_skills.models import Lens


@dataclass(frozen=True)
class Bench:
    """What all measurements of one verdict share.

    Attributes:
        lens, metric, position, seed: As in `measure_effects`.
        checkpoint: A folder in which every measurement resumes under its own name; a finished one
            is kept until the verdict is there.
        options: Passed on: ``batch_size``, ``progress``.
        baselines: Means and standard deviations of splits read so far: one pass over a split
            serves every measurement.
    """

    lens: Lens
    metric: Metric
    position: Position
    seed: int
    checkpoint: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    baselines: dict[tuple[Any, ...], Baseline] = field(default_factory=dict)

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
            self._informed(do, sets),
            metric=self.metric,
            position=self.position,
            names=names,
            direct=direct,
            seed=self.seed,
            checkpoint=None if self.checkpoint is None else self.checkpoint / part,
            keep=True,
            **self.options,
        )
        check_finite(effects.total, effects.names, examples)
        return effects

    def _informed(self, do: Edit, sets: Sequence[tuple[Unit, ...]]) -> Edit:
        """The edit with the baseline of its split in place of the split."""
        if do.kind not in ("mean", "noise", "steer") or not isinstance(do.over, Sequence):
            return do
        sites = sites_of([unit for units in sets for unit in units])
        # All layers: controls of other layers ask for the same split again.
        wanted = {site: range(self.lens.n_layers) for site in sites}
        key = id(do.over), *sorted(wanted)
        if key not in self.baselines:
            self.baselines[key] = measure_baseline(
                self.lens,
                do.over,
                wanted,
                position=self.position,
                answers=bool(self.metric.reads - {"logits"}),
                batch_size=self.options.get("batch_size", BATCH_SIZE),
            )
        return replace(do, over=self.baselines[key])

    def clear(self) -> None:
        """Deletes the checkpoints of the measurements: the verdict is there."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        for part in self.checkpoint.iterdir():
            if (part / "sweep.json").exists():
                shutil.rmtree(part)
        if not any(self.checkpoint.iterdir()):
            self.checkpoint.rmdir()
