"""`Example`: one prompt and everything known about it before a model has seen it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from lens_skills.errors import LensSkillsError
from lens_skills.stats.permutation import signs

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with its answer, its twin and what is known about it.

    Only ``id`` and ``prompt`` are required: a bare prompt can still be scored on a metric that
    needs no answer (a covariate, the model's entropy).

    Attributes:
        id: Unique within a task; names the example in every error and saved result.
        prompt: The text the model reads, up to but not including the answer.
        answer: The right continuation, exactly as it follows the prompt.
        foil: One wrong continuation of the same kind: the other side of a logit difference.
        options: All continuations a multiple-choice reading allows; contains the answer.
        corrupted: The twin prompt that asks for the foil (same length in words).
        labels: What is to be found in the neurons: one number or category per name.
        covariates: What could explain a hit away: operands, length, template, frequency.
        group: Examples that must not be separated by a split (3+4 and 4+3; the same noun).
        kind: The input type a control task draws its random labels for (an operand, a noun);
            empty means the group.

    >>> Example(id="a", prompt="The key", answer=" is", foil=" are", labels={"plural": 0}).group
    'a'
    """

    id: str
    prompt: str
    answer: str | None = None
    foil: str | None = None
    options: tuple[str, ...] = ()
    corrupted: str | None = None
    labels: Mapping[str, Value] = field(default_factory=dict)
    covariates: Mapping[str, Value] = field(default_factory=dict)
    group: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        # An example without a declared group is its own group; its kind follows its group.
        object.__setattr__(self, "group", self.group or self.id)
        object.__setattr__(self, "kind", self.kind or self.group)
        object.__setattr__(self, "labels", MappingProxyType(dict(self.labels)))
        object.__setattr__(self, "covariates", MappingProxyType(dict(self.covariates)))

    def column(self, name: str) -> Value | None:
        """The label or covariate called ``name``, or None where the example has neither.

        >>> Example(id="a", prompt="x", covariates={"carry": True}).column("carry")
        True
        """
        if name in self.labels:
            return self.labels[name]
        return self.covariates.get(name)

    def problem(self) -> str | None:
        """What is wrong with the example and what to do, or None.

        >>> Example(id="a", prompt="x", answer="").problem()
        'the answer is an empty text. Give the continuation, or None if there is none.'
        """
        if self.answer == "":
            return "the answer is an empty text. Give the continuation, or None if there is none."
        if self.answer is not None and self.answer == self.foil:
            return f"the foil {self.foil!r} equals the answer. Give a wrong continuation."
        if len(set(self.options)) < len(self.options):
            return f"the options {list(self.options)} repeat one. Give each once."
        if self.options and self.answer is not None and self.answer not in self.options:
            return (
                f"the answer {self.answer!r} is not among the options {list(self.options)}. "
                "Options contain the answer, spaces included."
            )
        for kind in ("labels", "covariates"):
            for name, value in getattr(self, kind).items():
                if not isinstance(value, Value):
                    return (
                        f"{name!r} in {kind} is {value!r} of type {type(value).__name__}. "
                        "Give a plain str, int, float or bool."
                    )
                if isinstance(value, float) and not math.isfinite(value):
                    return f"{name!r} in {kind} is {value}. Drop the example or fill the value."
        return None


def halves(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """The examples that propose and those that test: no group is in both.

    Raises:
        LensSkillsError: Fewer than four groups.
    """
    groups = sorted({example.group for example in examples})
    if len(groups) < 4:
        raise LensSkillsError(
            f"{len(groups)} groups of examples, and edges are proposed on one half of them and "
            "tested on the other: at least four are needed, 60 for honest intervals."
        )
    order = {
        group: signs([group], 64, seed=seed, purpose="circuit")[0].tolist() for group in groups
    }
    shuffled = sorted(groups, key=lambda group: order[group])
    chosen = set(shuffled[: len(groups) // 2])
    first = [example for example in examples if example.group in chosen]
    return first, [example for example in examples if example.group not in chosen]
