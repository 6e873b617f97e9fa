"""`Shortcuts`: which strong neurons are shortcuts, in a word each, with the numbers behind it.

`Shortcut` is one neuron, or the neurons of one feature: the feature, and what ablating them does;
`word_for` is the rule that turns the numbers into the word.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.cards import card_lines
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
    """A mean effect of ablating a neuron or set, edited minus clean, among its matched controls.

    Attributes:
        value, low, high: With its 95 % interval over groups, in the metric's unit.
        low90, high90: The 90 % interval, for the test of equivalence.
        p: Of this neuron: (1 + controls at least as large) / (1 + controls).
        q: Benjamini–Hochberg of p over the neurons and sets tried.
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
        value, low, high = (self.rounded(x) for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}], q = {self.q:.2g}, δ {self.delta:.2g}"

    def rounded(self, value: float) -> str:
        """A number of the metric with as many digits as δ can tell apart."""
        digits = min(max(math.ceil(-math.log10(self.delta)), 0), 9) if self.delta > 0 else 3
        return f"{value:+.{digits}f}"


@dataclass(frozen=True)
class Shortcut:
    """What is known of one neuron, or of the neurons of one feature ablated together.

    Attributes:
        name: Such as ``"L17N635"``; of a set ``"3 that raise it where an operand is 5"``.
        members: The neurons of a set; of one neuron, none.
        word: One of `WORDS`, and ``why`` where the word alone does not say it.
        r: Correlation with the metric on confirm; of a set the mean of its neurons' |r|.
        r_explore: The same on explore, for which they were selected; None where they were named.
        feature: The surface feature that explains most of it; "" where none does.
        condition: When it holds, in words: "an operand is 5", "b is 4.5 or more".
        explained: Share of the held-out variance it explains; of a set the mean of its neurons.
        p: Of that, family-wise over the features of this neuron; of a set the largest.
        q: Benjamini–Hochberg of p over the neurons tried; None where no null was drawn.
        task_feature: The best feature that defines the task, and the share it explains; "" of a
            set.
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
        n_controls: Matched neurons of the same layer; of a set, random sets of the same layers.
    """

    name: str
    word: str
    why: str
    r: float
    feature: str
    condition: str
    explained: float | None
    p: float | None
    q: float | None
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
    members: tuple[str, ...] = ()
    r_explore: float | None = None

    def row(self) -> dict[str, Any]:
        """One flat row."""
        flat: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, ControlledEffect):
                prefix = "" if name == "difference" else "all_"
                flat |= {f"{prefix}{part}": number for part, number in vars(value).items()}
            elif name == "members":
                flat[name] = " ".join(value)
            elif name != "difference":
                flat[f"{name}_explained" if name in ("p", "q") else name] = value
        return flat

    def lines(self, metric: str, n_features: int) -> list[str]:
        """The word and the numbers behind it, line by line."""
        first, *said = self.sentences(metric, n_features)
        found = card_lines(f"{self.name} · {first}")
        for text in said:
            found += card_lines(text, indent=2)
        return found

    def sentences(self, metric: str, n_features: int) -> list[str]:
        """The word, and the numbers behind it."""
        said = [self.word + (f": {self.why}" if self.why else "")]
        if not self.feature:
            best = (
                f" (best that defines the task: {self.task_feature})" if self.task_feature else ""
            )
            said.append(f"no surface feature explains it{best}; r = {self.r:+.2f} with {metric}")
        else:
            if self.members:
                said.append(f"neurons: {', '.join(self.members)}")
            whose = "their variance, on average" if self.members else "its variance"
            told = f"{self.feature} explains {self.explained:.0%} of {whose}"
            if self.q is not None:
                told += f": q = {self.q:.2g} (p = {self.p:.2g} over its {n_features} features)"
                told = told.replace(": q = ", "; at most: q = ") if self.members else told
            said.append(told)
            does = (
                f"mean |r| = {self.r:.2f} with {metric}: where {self.condition} they "
                if self.members
                else f"r = {self.r:+.2f} with {metric}: where {self.condition} it "
            )
            told = (
                does + ("raise" if self.raises else "lower") + f"{'' if self.members else 's'} it"
            )
            if self.n_right is not None:
                told += f"; of such examples {self.n_right} are right and {self.n_wrong} wrong"
            said.append(told)
        others = "matched sets" if self.members else "matched neurons"
        if self.difference is not None:
            there, elsewhere = (
                self.difference.rounded(effect or 0.0)
                for effect in (self.effect_present, self.effect_absent)
            )
            said.append(
                f"ablated: {there} there ({self.n_present:,}), {elsewhere} elsewhere "
                f"({self.n_absent:,})"
            )
            said.append(f"difference {self.difference} beside {self.n_controls} {others}")
        else:
            said.append(f"ablated: {self.effect} beside {self.n_controls} {others}")
        return said


def word_for(
    tied: bool,
    difference: ControlledEffect | None,
    effect: ControlledEffect,
    larger_with_feature: bool,
) -> tuple[str, str]:
    """The word, and why where the word alone does not say it.

    ``tied``: a surface feature explains the neuron. ``difference`` is None where too few examples
    or groups have the feature, or lack it.
    """
    if not tied:
        if effect.matters:
            return UNEXPLAINED, ""
        return (NEITHER, "") if effect.is_small else (UNDECIDED, "the effect is not settled")
    if difference is None:
        return UNDECIDED, "too few examples or groups with the feature, or without"
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
        sets: The neurons of one feature together, one `Shortcut` each, the largest first.
        explanations: Of the neurons and of the members of sets; None after loading (they are saved
            by themselves).
        effects: What ablating each neuron, then each set, does to each example of intervene.
        present: Whether the condition of each holds there.
        example_ids: Of intervene.
        metric: What the neurons are strong for, and ``causal_metric``: what was measured while
            they were ablated.
        unit: Of the causal metric.
        do: The edit.
        notes: What a reader must know before quoting a number.
        provenance: Model, task, splits, seed and versions.
        clean: The mean of the causal metric without ablation; None where no neuron was tried.
        n_groups, n_features: Groups of intervene; features each neuron was held against.
        disguises: Features that say what a label or the metric says, as in `Explanations`: those of
            the metric were left out, those of a label counted as defining the task.
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
    clean: float | None = None
    n_groups: int = 0
    n_features: int = 0
    disguises: pd.DataFrame = field(default_factory=pd.DataFrame)
    sets: tuple[Shortcut, ...] = ()

    def __getitem__(self, name: str) -> Shortcut:
        for one in self.tried:
            if one.name == name:
                return one
        raise LensSkillsError(
            f"{name!r} was not tested. These were: {', '.join(one.name for one in self.tried)}."
        )

    def __len__(self) -> int:
        return len(self.tried)

    @property
    def tried(self) -> tuple[Shortcut, ...]:
        """The neurons, then the sets."""
        return (*self.neurons, *self.sets)

    @property
    def said(self) -> str:
        """What was tried, in words: "5 neurons", "1 neuron and 2 sets"."""
        parts = [(len(self.neurons), "neuron"), (len(self.sets), "set")]
        return " and ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in parts if n)

    @property
    def confirmed(self) -> list[str]:
        """The neurons and sets that are shortcuts."""
        return [one.name for one in self.tried if one.word == SHORTCUT]

    @property
    def counts(self) -> dict[str, int]:
        """How many neurons and sets got each word."""
        return {word: sum(one.word == word for one in self.tried) for word in WORDS}

    def frame(self) -> pd.DataFrame:
        """One row per neuron, then per set; ``value low high p q delta`` are of the difference,
        those that begin with ``all_`` of the effect on all examples."""
        return pd.DataFrame([one.row() for one in self.tried])

    def examples(self) -> pd.DataFrame:
        """One row per neuron or set and example of intervene: name id present effect."""
        names = [one.name for one in self.tried]
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
        n = len(self)
        lines = card_lines(
            f"Shortcuts behind {self.metric} of {about.get('model', '')} on "
            f"{about.get('task', '')}: {counted or 'no neuron was tested'}"
        )
        if n:
            unit = f" {self.unit}" if self.unit else ""
            clean = "" if self.clean is None else f" (clean mean {self.clean:.3g}{unit})"
            lines += card_lines(
                f"{self.do}; effects: ablated less clean, on {self.causal_metric}{clean}", indent=2
            )
            lines += card_lines(
                f"in brackets: 95 % intervals over {self.n_groups:,} groups, each by itself; q: "
                f"Benjamini–Hochberg over the {self.said} tried; δ: the smallest effect that "
                "matters",
                indent=2,
            )
        for one in self.tried:
            lines += one.lines(self.metric, self.n_features)
        for note in self.notes:
            lines += card_lines(f"note: {note}")
        return "\n".join(lines)


def no_shortcuts(metric: str, note: str, provenance: Mapping[str, Any]) -> Shortcuts:
    """The report on no neuron, and why there is none."""
    nothing = torch.zeros(0, 0, dtype=torch.float64)
    return Shortcuts(
        (), None, nothing, nothing, (), metric, "", "", "nothing removed", (note,), provenance
    )
