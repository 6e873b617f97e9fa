"""`ScoreTally`: what a scoring pass adds up: the sums, the metrics it reads, what fires."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lens_skills.activations.activation_reader import ActivationReader
from lens_skills.activations.stream import Batch
from lens_skills.activations.tally import Tally
from lens_skills.scoring.design_matrix import DesignMatrix
from lens_skills.scoring.predictivity import FiringCounts
from lens_skills.stats.moments import Moments, RunningMoments


@dataclass(frozen=True, eq=False)
class ScorePart:
    """What a scoring pass adds up over some batches.

    Attributes:
        moments: The sums.
        places: Of the examples that were read, among all.
        values: Of each metric, for these examples.
        firing: With a baseline: `FiringCounts`' numbers.
    """

    moments: Moments
    places: Int[Tensor, " example"]
    values: dict[str, Tensor]
    firing: FiringCounts | None


class ScoreTally(Tally):
    """The sums of a scoring pass.

    Attributes:
        running: The sums.
        values: Of each metric, for all examples; 0 where the pass was to read it and did not.
        firing: With a baseline: how often each unit exceeds its threshold.
    """

    def __init__(
        self,
        columns: DesignMatrix,
        names: Sequence[str],
        values: dict[str, Tensor],
        sums: Callable[..., RunningMoments],
        thresholds: Tensor | None,
        places: Int[Tensor, " here"] | None,
        device: torch.device | str | None,
    ) -> None:
        """``sums(device=…)`` begins them; ``places`` are those of the examples among all."""
        self.columns, self.names, self.values, self.sums = columns, names, values, sums
        self.thresholds, self.places = thresholds, places
        self.scale: tuple[Tensor | None, Tensor | None] = None, None
        self.read: list[Tensor] = []
        self.running: Any = None if device is None else sums(device=device)
        self.firing = None if thresholds is None else FiringCounts(thresholds, len(names))

    def absorb(self, source: ActivationReader, batch: Batch) -> None:
        """Adds a batch."""
        index = batch.index if self.places is None else self.places[batch.index]
        for name, numbers in batch.metrics.items():
            self.values[name][index] = numbers
        own = {name: numbers[index] for name, numbers in self.values.items()}
        means, weights, residuals = source.rows(batch)
        self.running.absorb(
            self.columns.of(index, own), means, weights=weights, residuals=residuals
        )
        if self.firing is not None:
            self.firing.absorb(means, torch.stack([own[name] for name in self.names], dim=1))
        self.read.append(index)

    @property
    def ready(self) -> bool:
        """Whether the scale of the units is known: that of the first rows, for all."""
        return self.running.origin is not None

    def empty(self) -> "ScoreTally":
        """One that has seen nothing, on the same scale."""
        other = ScoreTally(
            self.columns, self.names, self.values, self.sums, self.thresholds, self.places, None
        )
        other.scale = self.running.origin.cpu(), self.running.scale.cpu()
        return other

    def begun(self, device: torch.device | str) -> "ScoreTally":
        """A new one like this, whose sums stand on a device."""
        values = {name: numbers.clone() for name, numbers in self.values.items()}
        other = ScoreTally(
            self.columns, self.names, values, self.sums, self.thresholds, self.places, device
        )
        origin, scale = self.scale
        assert origin is not None
        assert scale is not None
        other.running.origin, other.running.scale = origin.to(device), scale.to(device)
        return other

    def finished(self) -> ScorePart:
        """The sums as they are sent back."""
        places = torch.cat(self.read)
        values = {name: numbers[places] for name, numbers in self.values.items()}
        return ScorePart(self.running.freeze().to("cpu"), places, values, self.firing)

    def merge(self, part: ScorePart) -> None:
        """Adds what another one has finished."""
        self.running.merge(part.moments)
        for name, numbers in part.values.items():
            self.values[name][part.places] = numbers
        if self.firing is not None and part.firing is not None:
            self.firing.merge(part.firing)
