"""`Target`: the metric neurons are ranked by, and the kind it is of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import Metric, evaluate, known_values, parse_metric, parse_metrics
from lens_skills.activations.labels import Column
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import SoftPrompt

Kind = Literal["binary", "categorical", "continuous"]
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
    kind: Kind
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
    batch_size: int = 32,
    chat: bool = False,
    progress: bool | None = None,
) -> Target:
    """The metric of every example, with its kind.

    What the model itself says (``correct``, ``confidence``) costs one pass of its own.

    Args:
        model: Asked only where the metric reads the model's output.
        examples: The examples neurons are ranked on.
        metric: As in `score`. A label of three categories or more stays whole.
        split: ``"median"``: above the median or not, which makes a continuous metric binary.
        prompt, batch_size, chat, progress: As in `evaluate`.

    Raises:
        LensSkillsError: Several metrics, a metric with one value only or with a class of fewer
            than `FEWEST` examples.
    """
    if len(examples) < 4:
        raise LensSkillsError(f"{len(examples)} examples are too few to rank by; 4 at least.")
    if split not in (None, "median"):
        raise LensSkillsError(f"no split {split!r} of a metric. Say split='median', or leave it.")
    parts = parse_metrics(metric, examples)
    if len(parts) > 1 and isinstance(metric, str):
        return _categorical(metric, parts, examples)
    found = parse_metric(metric, examples, asked="ranking neurons")
    if found.known:
        values = known_values([found], examples)[found.name]
    else:
        options: dict[str, Any] = {"batch_size": batch_size, "chat": chat, "progress": progress}
        values = evaluate(model, examples, found, prompt=prompt, **options)[found.name]
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
