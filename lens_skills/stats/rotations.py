"""Random orthonormal bases of a layer's units: is the neuron basis special, or any as good?

Source: the excess over a rotated basis, Gurnee et al. 2024 (arXiv 2401.12181).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rotation:
    """A basis whose directions each mix all units of a part of a layer.

    Attributes:
        order: The units, part after part.
        matrices: One for each size of a part, orthogonal, float32; parts of one size share it, and
            so do all layers: a fixed rotation of a layer is as random as another.
    """

    order: Int[Tensor, " width"]
    matrices: tuple[Float[Tensor, "_ _"], ...]

    @classmethod
    def of(cls, width: int, *, seed: int) -> "Rotation":
        """Haar-random over layers of at most 6,144 units.

        A wider layer is cut at random into parts of equal sizes (to one unit): the time and memory
        of one matrix grow with the cube and the square of the width, 32,768 features would take
        hours and 4 GB, and a direction that mixes thousands of units is as random as one that mixes
        all. ``seed`` alone decides.

        >>> Rotation.of(3, seed=0).turn(torch.ones(1, 6)).shape
        torch.Size([1, 6])
        """
        n_parts = -(-width // WIDEST)
        sizes = sorted({-(-width // n_parts), width // n_parts}, reverse=True)
        order = torch.arange(width)
        if n_parts > 1:
            order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
        return cls(order, tuple(haar_matrix(size, seed=seed) for size in sizes))

    @property
    def width(self) -> int:
        """Units of a layer."""
        return len(self.order)

    def parts(self) -> Iterator[tuple[slice, Float[Tensor, "_ _"]]]:
        """Where each part stands in `order`, and its matrix: the larger ones first."""
        start, small = 0, len(self.matrices[-1])
        n_parts = -(-self.width // len(self.matrices[0]))
        n_large = self.width - n_parts * small if len(self.matrices) > 1 else n_parts
        for part in range(n_parts):
            matrix = self.matrices[0 if part < n_large else -1]
            yield slice(start, start + len(matrix)), matrix
            start += len(matrix)

    def turn(self, units: Float[Tensor, "row unit"]) -> Float[Tensor, "row unit"]:
        """The units with every block of `width` (one layer at one position) rotated alike."""
        blocks = rearrange(units, "row (block width) -> row block width", width=self.width)
        if len(self.matrices[0]) < self.width:
            blocks = blocks[..., self.order.to(units.device)]
        turned = torch.cat(
            [blocks[..., place] @ matrix.to(units) for place, matrix in self.parts()], dim=-1
        )
        return rearrange(turned, "row block turned -> row (block turned)")

    def direction(self, column: int) -> Float[Tensor, " width"]:
        """One direction, of length 1, in the units' own basis."""
        vector = torch.zeros(self.width)
        for place, matrix in self.parts():
            if column < place.stop:
                vector[self.order[place]] = matrix[:, column - place.start]
                break
        return vector


WIDEST = 6144
"""Of a wider layer the directions of a rotated basis mix a part each."""


@lru_cache(maxsize=4)
def haar_matrix(size: int, *, seed: int) -> Float[Tensor, "size size"]:
    """One orthogonal matrix, uniform over all of them (Haar), in float32.

    Source: Mezzadri 2007, "How to generate random matrices from the classical compact groups":
    QR of a Gaussian matrix, with the signs of R's diagonal moved into Q.

    >>> q = haar_matrix(8, seed=0)
    >>> torch.allclose(q @ q.T, torch.eye(8), atol=1e-5)
    True
    """
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator))
    return q * torch.sign(torch.diagonal(r))
