"""`Fit`: what each feature predicts of each neuron, from one half of the examples."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.explanation.design import Design


@dataclass(frozen=True, eq=False)
class Fit:
    """A neuron's activation as a function of one feature, for every neuron and feature.

    Attributes:
        coefficients: Per column: of a flag and a number the sign of the slope, of a class how far
            its mean is from the mean of all (0 for one without examples).
        explained: Share of the variance explained, adjusted for the number of classes.
    """

    coefficients: Float[Tensor, "neuron column"]
    explained: Float[Tensor, "neuron feature"]

    @classmethod
    def of(cls, activations: Float[Tensor, "neuron row"], design: Design) -> "Fit":
        """The fit of a design on the same rows.

        A flag explains 1 - [(1 - q) Var(a | 0) + q Var(a | 1)] / Var(a), with q the share of 1s; a
        category the same over its classes; a number R² of the line. Adjusted, R² of K classes on n
        rows is 1 - (1 - R²)(n - 1) / (n - K).

        Source: Gurnee et al. 2024 (arXiv 2401.12181) for the flag.
        """
        columns = design.columns
        n_rows = len(columns)
        centred = activations - activations.mean(1, keepdim=True)
        variance = (centred**2).sum(1)
        cross = centred @ columns
        single = _single(design)
        offset = columns - columns.mean(0)
        square = (offset**2).sum(0)
        count = columns.sum(0)
        # Σ over classes n_c (mean_c - mean)² = Σ cross² / n_c; of one column cross² / Σ(x - x̄)².
        weight = torch.where(single, _inverse(square), _inverse(count))
        between = design.per_feature(cross**2 * weight)
        explained = between * _inverse(variance)[:, None]
        n_levels = design.per_feature((count > 0).double())
        freedom = torch.where(design.per_feature(single.double()) > 0, 2.0, n_levels)
        adjusted = 1 - (1 - explained) * (n_rows - 1) / (n_rows - freedom).clamp(min=1)
        coefficients = torch.where(single, cross.sign(), cross * _inverse(count))
        return cls(coefficients, adjusted)

    def agreement(
        self,
        centred: Float[Tensor, "neuron row"],
        design: Design,
        columns: Float[Tensor, "row column"],
        spread: Float[Tensor, "neuron feature"] | None = None,
    ) -> Float[Tensor, "neuron feature"]:
        """Pearson r of each neuron with what each feature predicts, on other rows.

        Args:
            centred: Activations less their mean, divided by the root of their sum of squares.
            design: Whose columns they are.
            columns: The features there, perhaps exchanged.
            spread: Σ prediction² where columns of a feature overlap (signed ones do); by default
                every row has one class.
        """
        weights = self.coefficients.to(columns)
        product = design.per_feature(weights * (centred.to(columns) @ columns))
        if spread is None:
            spread = design.per_feature(weights**2 * (columns**2).sum(0))
        mean = design.per_feature(weights * columns.sum(0))
        varies = spread.to(columns) - mean**2 / len(columns)
        return product * _inverse(varies.clamp(min=0), floor=1e-9).sqrt()


def predicted_square(
    fit: Fit, design: Design, columns: Float[Tensor, "row column"]
) -> Float[Tensor, "neuron feature"]:
    """Σ over rows of the squared prediction, for centred columns that overlap within a feature."""
    weights = fit.coefficients.to(columns)
    total = weights.new_zeros(len(weights), len(design.features))
    for feature in design.owner.unique().tolist():
        mine = design.owner == feature
        part = columns[:, mine]
        gram = part.T @ part
        total[:, feature] = ((weights[:, mine] @ gram) * weights[:, mine]).sum(1)
    return total


def halves(groups: list[str], *, seed: int) -> tuple[Int[Tensor, " first"], Int[Tensor, " second"]]:
    """The rows of two halves that share no group, as even as the groups allow.

    >>> first, second = halves(["a", "a", "b", "b"], seed=0)
    >>> len(first), len(second)
    (2, 2)
    """
    generator = torch.Generator().manual_seed(seed)
    names = sorted(set(groups))
    order = [names[place] for place in torch.randperm(len(names), generator=generator).tolist()]
    sizes = {name: groups.count(name) for name in names} if len(names) < 50 else _sizes(groups)
    # The largest first, each to the smaller half: the order among equals is the draw's.
    order.sort(key=lambda name: -sizes[name])
    counts, home = [0, 0], {}
    for name in order:
        side = int(counts[1] < counts[0])
        home[name] = side
        counts[side] += sizes[name]
    side = torch.tensor([home[name] for name in groups])
    return (side == 0).nonzero()[:, 0], (side == 1).nonzero()[:, 0]


def standardised(activations: Float[Tensor, "neuron row"]) -> Float[Tensor, "neuron row"]:
    """Rows less their mean, of length 1 (0 where they do not vary)."""
    centred = activations - activations.mean(1, keepdim=True)
    length = (centred**2).sum(1).sqrt()
    silent: Bool[Tensor, " neuron"] = length <= 1e-9 * activations.abs().amax(1)
    return centred * rearrange(torch.where(silent, 0.0, _inverse(length)), "neuron -> neuron 1")


def _sizes(groups: list[str]) -> dict[str, int]:
    from collections import Counter

    return Counter(groups)


def _single(design: Design) -> Bool[Tensor, " column"]:
    """Columns of flags and numbers, which stand alone."""
    alone = torch.tensor([feature.kind != "category" for feature in design.features])
    return alone[design.owner]


def _inverse(x: Float[Tensor, "*x"], *, floor: float = 1e-30) -> Float[Tensor, "*x"]:
    """1 / x, and 0 where x is 0."""
    return torch.where(x > floor, 1 / x.clamp(min=floor), 0.0)
