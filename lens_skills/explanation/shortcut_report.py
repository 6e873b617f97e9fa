"""`Shortcuts`: which strong neurons are shortcuts, in a word each, with the numbers behind it.

`Shortcut` is one neuron: the feature behind it, what that implies, and what ablating it does;
`word_for` is the rule that turns the numbers into the word.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.explanation.explanations import Explanations
from lens_skills.results import Result
from lens_skills.stats.effect_tests import beyond, equivalent

SHORTCUT = "shortcut"
TIED = "tied to the feature, not causal"
EVERYWHERE = "tied to the feature, causal with and without it"
UNEXPLAINED = "causal, but no surface feature explains it"
NEITHER = "neither tied to a surface feature nor causal"
UNDECIDED = "undecided"
WORDS = (SHORTCUT, TIED, EVERYWHERE, UNEXPLAINED, NEITHER, UNDECIDED)


@dataclass(frozen=True)
class ControlledEffect:
    """A mean effect of ablating a neuron, edited minus clean, among its matched controls.

    Attributes:
        value, low, high: With its 95 % interval, in the metric's unit.
        low90, high90: The 90 % interval, for the test of equivalence.
        p, q: (1 + controls at least as large) / (1 + controls); Benjamini–Hochberg over neurons.
        delta: The smallest that matters.
    """

    value: float
    low: float
    high: float
    low90: float
    high90: float
    p: float
    q: float
    delta: float

    @property
    def matters(self) -> bool:
        """Whether the interval lies beyond delta, and few controls reach as much."""
        return beyond(self.low, self.high, self.delta) != 0 and self.q <= 0.05

    @property
    def is_small(self) -> bool:
        """Whether the 90 % interval lies within delta (two one-sided tests)."""
        return bool(equivalent(self.low90, self.high90, self.delta))

    def __repr__(self) -> str:
        return (
            f"{self.value:+.3g} [{self.low:+.3g}, {self.high:+.3g}], p = {self.p:.2g}, "
            f"q = {self.q:.2g}"
        )


@dataclass(frozen=True)
class Shortcut:
    """What is known of one neuron.

    Attributes:
        name: Such as ``"L17N635"``.
        word: One of `WORDS`, and ``why`` where the word alone does not say it.
        r: Correlation with the metric on confirm.
        feature: The surface feature that explains most of it; "" where none does.
        condition: When it holds, in words: "an operand is 5", "b is 4.5 or more".
        explained: Share of the held-out variance it explains; ``p`` of that over all features.
        task_feature: The best feature that defines the task, and the share it explains.
        raises: Whether, by its r and where it is active, it goes with a higher metric where the
            condition holds (else a lower one).
        n_present: Examples of intervene where the condition holds, and ``n_absent``.
        n_right, n_wrong: Of the examples of confirm where it holds: the model is right, and wrong.
            None without answers.
        n_right_moved, n_wrong_moved: Of those of intervene, right and wrong, whose metric the
            ablation moves against ``raises``: what the neuron did there.
        difference: Of the ablation's effect: with the condition less without.
        effect: Of the ablation on all examples.
        effect_present, effect_absent: Its mean on either part.
        n_controls: Matched neurons of the same layer.
    """

    name: str
    word: str
    why: str
    r: float
    feature: str
    condition: str
    explained: float | None
    p: float | None
    task_feature: str
    task_feature_explained: float | None
    raises: bool
    n_present: int
    n_absent: int
    n_right: int | None
    n_wrong: int | None
    n_right_moved: int | None
    n_wrong_moved: int | None
    difference: ControlledEffect | None
    effect: ControlledEffect
    effect_present: float | None
    effect_absent: float | None
    n_controls: int

    def row(self) -> dict[str, Any]:
        """One flat row."""
        flat: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, ControlledEffect):
                prefix = "" if name == "difference" else "all_"
                flat |= {f"{prefix}{part}": number for part, number in vars(value).items()}
            elif name != "difference":
                flat["p_explained" if name == "p" else name] = value
        return flat

    def lines(self, metric: str) -> list[str]:
        """The word and the numbers behind it, line by line."""
        found = [f"{self.name} · {self.word}" + (f": {self.why}" if self.why else "")]
        with_metric = f"r = {self.r:+.2f} with {metric}"
        if not self.feature:
            best = (
                f" (best that defines the task: {self.task_feature})" if self.task_feature else ""
            )
            found.append(f"  no surface feature explains it{best}; {with_metric}")
        else:
            found.append(
                f"  {self.feature}: {self.explained:.0%} of its variance held out; {with_metric}"
            )
            told = (
                f"  so where {self.condition} it {'raises' if self.raises else 'lowers'} {metric}"
            )
            if self.n_right is not None:
                told += f"; of such examples {self.n_right} are right and {self.n_wrong} wrong"
            found.append(told)
        if self.difference is not None:
            found.append(
                f"  ablated: {self.effect_present:+.3g} there ({self.n_present:,}), "
                f"{self.effect_absent:+.3g} elsewhere ({self.n_absent:,}); difference "
                f"{self.difference} against {self.n_controls} matched neurons "
                f"(δ {self.difference.delta:.2g})"
            )
        else:
            found.append(f"  ablated: {self.effect} against {self.n_controls} matched neurons")
        return found


def word_for(
    tied: bool,
    difference: ControlledEffect | None,
    effect: ControlledEffect,
    larger_with_feature: bool,
) -> tuple[str, str]:
    """The word, and why where the word alone does not say it.

    ``tied``: a surface feature explains the neuron. ``difference`` is None where too few examples
    have the feature, or lack it.
    """
    if not tied:
        if effect.matters:
            return UNEXPLAINED, ""
        return (NEITHER, "") if effect.is_small else (UNDECIDED, "the effect is not settled")
    if difference is None:
        return UNDECIDED, "too few examples with the feature, or without"
    if difference.matters:
        if larger_with_feature:
            return SHORTCUT, ""
        return UNDECIDED, "it does more where the feature is absent"
    if difference.is_small:
        return (EVERYWHERE, "") if effect.matters else (TIED, "")
    if difference.q > 0.05:
        return UNDECIDED, f"matched neurons differ as much (q = {difference.q:.2g})"
    return UNDECIDED, "the difference is not settled: more examples would"


@dataclass(frozen=True, eq=False)
class Shortcuts(Result):
    """What is behind some neurons that are strong for a metric; printing it shows each.

    Attributes:
        neurons: One `Shortcut` each, strongest r first.
        explanations: Of the same neurons; None after loading (they are saved by themselves).
        effects: What ablating each neuron does to each example of intervene.
        present: Whether each neuron's condition holds there.
        example_ids: Of intervene.
        metric: What the neurons are strong for, and ``causal_metric``: what was measured while
            they were ablated.
        unit: Of the causal metric.
        do: The edit.
        notes: What a reader must know before quoting a number.
        provenance: Model, task, splits, seed and versions.
    """

    neurons: tuple[Shortcut, ...]
    explanations: Explanations | None
    effects: Float[Tensor, "neuron example"]
    present: Float[Tensor, "neuron example"]
    example_ids: tuple[str, ...]
    metric: str
    causal_metric: str
    unit: str
    do: str
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Shortcut:
        for one in self.neurons:
            if one.name == name:
                return one
        raise LensSkillsError(
            f"{name!r} was not tested. These were: {', '.join(one.name for one in self.neurons)}."
        )

    def __len__(self) -> int:
        return len(self.neurons)

    @property
    def confirmed(self) -> list[str]:
        """The neurons that are shortcuts."""
        return [one.name for one in self.neurons if one.word == SHORTCUT]

    @property
    def counts(self) -> dict[str, int]:
        """How many neurons got each word."""
        return {word: sum(one.word == word for one in self.neurons) for word in WORDS}

    def frame(self) -> pd.DataFrame:
        """One row per neuron; ``value low high p q delta`` are of the difference, those that begin
        with ``all_`` of the effect on all examples."""
        return pd.DataFrame([one.row() for one in self.neurons])

    def examples(self) -> pd.DataFrame:
        """One row per neuron and example of intervene: name id present effect."""
        names = [one.name for one in self.neurons]
        return pd.DataFrame(
            {
                "name": [name for name in names for _ in self.example_ids],
                "id": list(self.example_ids) * len(names),
                "present": self.present.flatten().bool().numpy(),
                "effect": self.effects.flatten().numpy(),
            }
        )

    def __repr__(self) -> str:
        about = self.provenance
        counted = ", ".join(f"{n} {word}" for word, n in self.counts.items() if n)
        lines = [
            f"Shortcuts behind {self.metric} of {about.get('model', '')} on "
            f"{about.get('task', '')}: {counted or 'no neuron was tested'}",
            f"{self.do}; effects on {self.causal_metric}"
            + (f" ({self.unit})" if self.unit else ""),
        ]
        for one in self.neurons:
            lines += one.lines(self.metric)
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def no_shortcuts(metric: str, note: str, provenance: Mapping[str, Any]) -> Shortcuts:
    """The report on no neuron, and why there is none."""
    nothing = torch.zeros(0, 0, dtype=torch.float64)
    return Shortcuts(
        (), None, nothing, nothing, (), metric, "", "", "nothing removed", (note,), provenance
    )
