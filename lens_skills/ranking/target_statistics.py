"""`Target`, the metric neurons are ranked by, and `ClassSums`, what one pass adds up beside it.

The sums are enough for every method that needs no stored activations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import Metric, known_values, parse_metric
from lens_skills.activations.activation_reader import metric_values, metrics_of
from lens_skills.activations.metrics import Column
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, SoftPrompt
from lens_skills.scoring.correlations import ROUNDING
from lens_skills.stats.moments import Moments

TargetKind = Literal["binary", "categorical", "continuous"]


FEWEST = 2
"""Examples a class must have: one alone has no spread."""


@dataclass(frozen=True, eq=False)
class Target:
    """What neurons are ranked by.

    Attributes:
        name: Of the metric.
        kind: ``"binary"``: 0 and 1. ``"categorical"``: three classes or more, without an order.
            ``"continuous"``: any other numbers.
        values: One number per example; for a categorical target the code of its class.
        classes: Names of the classes in the order of their codes; none for a continuous target.
        known: Whether it is a column of the task, which no gradient can reach.
        metric: What reads it, None for a categorical one.
    """

    name: str
    kind: TargetKind
    values: Float[Tensor, " row"]
    classes: tuple[str, ...]
    known: bool
    metric: Metric | None

    @property
    def codes(self) -> Int[Tensor, " row"]:
        """The class of each example."""
        assert self.classes, "a continuous target has no classes"
        return self.values.long()

    @property
    def membership(self) -> Float[Tensor, "row category"]:
        """1 where the example is of the class; no column for a continuous target."""
        if not self.classes:
            return torch.zeros(len(self.values), 0, dtype=torch.float64)
        return torch.nn.functional.one_hot(self.codes, len(self.classes)).double()


def target_of(
    model: Any,
    examples: Sequence[Example],
    metric: Any,
    *,
    split: str | None = None,
    prompt: SoftPrompt | None = None,
    chat: Chat = False,
) -> Target:
    """The metric of every example, with its kind.

    What the model itself says (``correct``, ``confidence``) costs one pass of its own.

    Args:
        model: Asked only where the metric reads the model's output.
        examples: The examples neurons are ranked on.
        metric: As in `score`. A label of three categories or more stays whole.
        split: ``"median"``: above the median or not, which makes a continuous metric binary.
        prompt, chat: As in `evaluate`.

    Raises:
        LensSkillsError: Several metrics, a metric with one value only or with a class of fewer
            than `FEWEST` examples.
    """
    if len(examples) < 4:
        raise LensSkillsError(f"{len(examples)} examples are too few to rank by; 4 at least.")
    if split not in (None, "median"):
        raise LensSkillsError(f"no split {split!r} of a metric. Say split='median', or leave it.")
    parts = list(metrics_of(model, metric, examples))
    if len(parts) > 1 and isinstance(metric, str):
        return _categorical(metric, parts, examples)
    if len(parts) != 1:
        parse_metric(metric, examples, asked="ranking neurons")  # says why not
    (found,) = parts
    if found.known:
        values = known_values([found], examples)[found.name]
    else:
        values = metric_values(model, examples, found, prompt=prompt, chat=chat)[found.name]
    distinct = values.unique()
    if len(distinct) < 2:
        raise LensSkillsError(
            f"{found.name!r} has one value only here (always {float(values[0]):g}). Rank by it on "
            "examples that hold both."
        )
    name, kind, classes = found.name, "continuous", ()
    if len(distinct) == 2 and split is None:
        kind, classes = "binary", tuple(f"{float(value):g}" for value in distinct)
        values = (values == distinct[1]).double()
    elif split == "median":
        middle = float(values.quantile(0.5))
        name, kind = f"{name} above {middle:.3g}", "binary"
        classes = (f"at most {middle:.3g}", f"above {middle:.3g}")
        values = (values > middle).double()
    target = Target(name, kind, values.double(), classes, found.known, found)
    return _checked(target)


def _categorical(name: str, parts: Sequence[Metric], examples: Sequence[Example]) -> Target:
    assert all(isinstance(part, Column) for part in parts), "only a column has categories"
    columns = torch.stack(list(known_values(parts, examples).values()))
    codes = rearrange(columns, "category row -> row category").argmax(1)
    classes = tuple(part.name.removeprefix(f"{name}=") for part in parts)
    return _checked(Target(name, "categorical", codes.double(), classes, True, None))


def _checked(target: Target) -> Target:
    if target.classes:
        sizes = torch.bincount(target.codes, minlength=len(target.classes))
        if int(sizes.min()) < FEWEST:
            raise LensSkillsError(
                f"{target.name!r} is {target.classes[int(sizes.argmin())]!r} for "
                f"{int(sizes.min())} of {len(target.values)} examples; {FEWEST} at least are "
                "needed of each class. Use a larger split."
            )
    return target


_CONSTANT = 1e-6  # of its mean: a neuron that varies less is constant to float32 rounding


@dataclass(frozen=True, eq=False)
class ClassSums:
    """Means, squares and products of every unit with the target, by class.

    Attributes:
        target: What is ranked by.
        mean: Of each unit.
        square: Σ (x - x̄)² of each unit.
        cross: Σ (y - ȳ)(x - x̄) with the target's numbers.
        class_cross: Σ (1_c - share_c)(x - x̄) with the membership of each class.
        target_square: Σ (y - ȳ)².
        size: Examples of each class.
        n_rows: Examples.
        fired: How often the gate of each unit was open, by class; None where it was not read.
        width: Units of one layer, which stand together.
    """

    target: Target
    mean: Float[Tensor, " unit"]
    square: Float[Tensor, " unit"]
    cross: Float[Tensor, " unit"]
    class_cross: Float[Tensor, "category unit"]
    target_square: float
    size: Float[Tensor, " category"]
    n_rows: int
    fired: Float[Tensor, "category unit"] | None
    width: int

    @classmethod
    def of(
        cls,
        target: Target,
        parts: Sequence[Moments],
        fired: Sequence[Tensor],
        width: int,
    ) -> "ClassSums":
        """The sums of finished passes whose columns were the target and its classes.

        Each pass read some of the layers, one group after another.
        """
        return cls(
            target=target,
            mean=torch.cat([part.unit_mean for part in parts]).cpu(),
            square=torch.cat([part.square for part in parts]).cpu(),
            cross=torch.cat([part.cross[0] for part in parts]).cpu(),
            class_cross=torch.cat([part.cross[1:] for part in parts], dim=1).cpu(),
            target_square=float(parts[0].column_square[0]),
            size=target.membership.sum(0),
            n_rows=len(target.values),
            fired=torch.cat(list(fired), dim=1) if fired else None,
            width=width,
        )

    @property
    def class_mean(self) -> Float[Tensor, "category unit"]:
        """Mean activation in each class: x̄ + Σ (1_c - share_c)(x - x̄) / n_c."""
        return self.mean + self.class_cross / rearrange(self.size, "category -> category 1")

    @property
    def between(self) -> Float[Tensor, " unit"]:
        """Σ_c n_c (x̄_c - x̄)²: what the classes explain of each unit's square."""
        return (self.class_cross**2 / rearrange(self.size, "category -> category 1")).sum(0)

    @property
    def within(self) -> Float[Tensor, " unit"]:
        """What the classes leave of it."""
        return (self.square - self.between).clamp(min=0)

    @property
    def constant(self) -> Bool[Tensor, " unit"]:
        """Units that do not vary beyond rounding; no method ranks them."""
        spread = (self.square / self.n_rows).sqrt()
        size = (self.square / self.n_rows + self.mean**2).sqrt()
        layers = rearrange(size, "(layer unit) -> layer unit", unit=self.width)
        floor = ROUNDING * layers.median(dim=1, keepdim=True).values.expand_as(layers)
        flat = spread <= rearrange(floor, "layer unit -> (layer unit)")
        return flat | (spread <= _CONSTANT * self.mean.abs())
