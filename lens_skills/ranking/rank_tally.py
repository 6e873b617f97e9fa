"""`RankTally`: what a ranking pass adds up: the sums by class, what fires, stored activations."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations.activation_reader import ActivationReader
from lens_skills.activations.stream import Batch
from lens_skills.activations.tally import Tally
from lens_skills.ranking.target_statistics import Target
from lens_skills.stats.moments import Moments, RunningMoments
from lens_skills.stats.rotations import Rotation

Fires = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class RankPart:
    """What a ranking pass adds up over some batches.

    Attributes:
        moments: The sums.
        fired: How often each unit fires, by class.
        places: Of the examples.
        kept: Their activations, where methods need the values; else None.
    """

    moments: Moments
    fired: Float[Tensor, "category unit"]
    places: Int[Tensor, " example"]
    kept: Float[Tensor, "example unit"] | None


class RankTally(Tally):
    """The sums of a ranking pass over some layers, on the CPU."""

    def __init__(
        self,
        target: Target,
        n_units: int,
        *,
        fires: Fires | None,
        rotation: Rotation | None,
        keep: bool,
    ) -> None:
        self.target, self.n_units, self.fires, self.rotation = target, n_units, fires, rotation
        self.columns = torch.cat([target.values[:, None], target.membership], dim=1)
        self.scale: tuple[Tensor | None, Tensor | None] = None, None
        n_rows, n_columns = self.columns.shape
        rotations = None if rotation is None else [rotation]
        self.running = RunningMoments(n_columns, n_units, rotations=rotations)
        self.fired = torch.zeros(n_columns - 1, n_units, dtype=torch.float64)
        self.kept = torch.zeros(n_rows, n_units) if keep else None
        self.read: list[Tensor] = []

    def absorb(self, source: ActivationReader, batch: Batch) -> None:
        """Adds a batch."""
        units = source.rows(batch)[0].cpu()
        self.running.absorb(self.columns[batch.index], units)
        if self.fires is not None:
            watched = units if batch.gate is None else batch.gate.cpu().flatten(1)
            self.fired += self.target.membership[batch.index].T @ self.fires(watched).double()
        if self.kept is not None:
            self.kept[batch.index] = units.float()
        self.read.append(batch.index)

    @property
    def ready(self) -> bool:
        """Whether the scale of the units is known, where they are rotated."""
        return self.rotation is None or self.running.origin is not None

    def empty(self) -> "RankTally":
        """One that has seen nothing, on the same scale."""
        other = self.begun("cpu")
        other.kept = None if self.kept is None else self.kept.new_zeros(0)
        other.scale = self.running.origin, self.running.scale
        return other

    def begun(self, device: torch.device | str) -> "RankTally":
        """A new one like this; its sums stay on the CPU."""
        other = RankTally(
            self.target,
            self.n_units,
            fires=self.fires,
            rotation=self.rotation,
            keep=self.kept is not None,
        )
        other.running.origin, other.running.scale = self.scale
        return other

    def finished(self) -> RankPart:
        """The sums as they are sent back."""
        places = torch.cat(self.read)
        kept = None if self.kept is None else self.kept[places]
        return RankPart(self.running.freeze(), self.fired, places, kept)

    def merge(self, part: RankPart) -> None:
        """Adds what another one has finished."""
        self.running.merge(part.moments)
        self.fired += part.fired
        if self.kept is not None and part.kept is not None:
            self.kept[part.places] = part.kept
