"""`Shortcut`: one neuron's case: its feature, what that implies, and what knocking it out does.

`Shortcuts`: which strong neurons are shortcuts, in words, with the evidence.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.explanation.explanations import Explanations
from lens_skills.results import read_folder, write_folder

SHORTCUT = "shortcut"


TIED = "tied to the feature, not causal"


EVERYWHERE = "tied to the feature, causal with and without it"


UNEXPLAINED = "causal, but no surface feature explains it"


NEITHER = "neither tied to a surface feature nor causal"


UNDECIDED = "undecided"


WORDS = (SHORTCUT, TIED, EVERYWHERE, UNEXPLAINED, NEITHER, UNDECIDED)


@dataclass(frozen=True)
class KnockoutEffect:
    """A mean effect of knocking a neuron out, edited minus clean, among its matched controls.

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
        return (self.low > self.delta or self.high < -self.delta) and self.q <= 0.05

    @property
    def is_small(self) -> bool:
        """Whether the 90 % interval lies within delta (two one-sided tests)."""
        return -self.delta <= self.low90 and self.high90 <= self.delta

    def __repr__(self) -> str:
        return (
            f"{self.value:+.3g} [{self.low:+.3g}, {self.high:+.3g}], p = {self.p:.2g}, "
            f"q = {self.q:.2g}"
        )


@dataclass(frozen=True)
class Shortcut:
    """The case of one neuron.

    Attributes:
        name: Such as ``"L17N635"``.
        word: One of `WORDS`, and ``why`` where the word alone does not say it.
        r: Correlation with the metric on confirm.
        feature: The surface feature that explains most of it; "" where none does.
        condition: When it holds, in words: "an operand is 5", "b is 4.5 or more".
        explained: Share of the held-out variance it explains; ``p`` of that over all features.
        rival: The best feature that defines the task, and the share it explains.
        raises: Whether, by its r and where it is active, it goes with a higher metric where the
            condition holds (else a lower one).
        n_associated: Examples of intervene where the condition holds, and ``n_others``.
        helps, fools: Of the examples of confirm where it holds: the model is right, and wrong.
            None without answers.
        helped, fooled: Of those of intervene, right and wrong, whose metric the knock-out moves
            against ``raises``: what the neuron did there.
        difference: Of the knock-out's effect: with the condition less without.
        effect: Of the knock-out on all examples.
        associated, others: Its mean on either part.
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
    rival: str
    rival_explained: float | None
    raises: bool
    n_associated: int
    n_others: int
    helps: int | None
    fools: int | None
    helped: int | None
    fooled: int | None
    difference: KnockoutEffect | None
    effect: KnockoutEffect
    associated: float | None
    others: float | None
    n_controls: int

    def row(self) -> dict[str, Any]:
        """The case as one flat row."""
        flat: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, KnockoutEffect):
                prefix = "" if name == "difference" else "all_"
                flat |= {f"{prefix}{part}": number for part, number in vars(value).items()}
            elif name not in ("difference", "p"):
                flat[name] = value
            elif name == "p":
                flat["p_explained"] = value
        return flat

    def lines(self, metric: str) -> list[str]:
        """What the case rests on, line by line."""
        found = [f"{self.name} · {self.word}" + (f": {self.why}" if self.why else "")]
        if not self.feature:
            best = f" (best that defines the task: {self.rival})" if self.rival else ""
            found.append(f"  no surface feature explains it{best}; r = {self.r:+.2f} with {metric}")
        else:
            found.append(
                f"  {self.feature}: {self.explained:.0%} of its variance held out; "
                f"r = {self.r:+.2f} with {metric}"
            )
            side = "raises" if self.raises else "lowers"
            told = f"  so where {self.condition} it {side} {metric}"
            if self.helps is not None:
                told += f"; of such examples {self.helps} are right and {self.fools} wrong"
            found.append(told)
        if self.difference is not None:
            found.append(
                f"  knocked out: {self.associated:+.3g} there ({self.n_associated:,}), "
                f"{self.others:+.3g} elsewhere ({self.n_others:,}); difference {self.difference} "
                f"against {self.n_controls} matched neurons (δ {self.difference.delta:.2g})"
            )
        else:
            found.append(f"  knocked out: {self.effect} against {self.n_controls} matched neurons")
        return found

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> "Shortcut":
        """The case from plain values, its effects as mappings."""
        effects = {
            name: KnockoutEffect(**plain[name]) if plain[name] is not None else None
            for name in ("difference", "effect")
        }
        return cls(**{**plain, **effects})  # type: ignore[arg-type]


def ruling(
    tied: bool, difference: KnockoutEffect | None, effect: KnockoutEffect, side: bool
) -> tuple[str, str]:
    """The word and its reason.

    Args:
        tied: Whether a surface feature explains the neuron.
        difference: Of the knock-out's effect between examples with the feature and without; None
            where one of the two has too few.
        effect: Of the knock-out on all examples.
        side: Whether the knock-out does more with the feature than without.
    """
    if not tied:
        if effect.matters:
            return UNEXPLAINED, ""
        return (NEITHER, "") if effect.is_small else (UNDECIDED, "the effect is not settled")
    if difference is None:
        return UNDECIDED, "too few examples with the feature, or without"
    if difference.matters:
        if side:
            return SHORTCUT, ""
        return UNDECIDED, "it does more where the feature is absent"
    if difference.is_small:
        return (EVERYWHERE, "") if effect.matters else (TIED, "")
    if difference.q > 0.05:
        return UNDECIDED, f"matched neurons differ as much (q = {difference.q:.2g})"
    return UNDECIDED, "the difference is not settled: more examples would"


@dataclass(frozen=True, eq=False)
class Shortcuts:
    """The cases of some neurons that are strong for a metric; printing it shows each.

    Attributes:
        cases: One `Shortcut` per neuron, strongest r first.
        why: The explanations behind them; None after loading (they are saved by themselves).
        effects: What knocking each neuron out does to each example of intervene.
        present: Whether each neuron's condition holds there.
        example_ids: Of intervene.
        metric: What the neurons are strong for, and ``watched``: what the knock-out was seen on.
        unit: Of the watched metric.
        do: The edit.
        notes: What a reader must know before quoting a number.
        provenance: Model, task, splits, seed and versions.
    """

    cases: tuple[Shortcut, ...]
    why: Explanations | None
    effects: Float[Tensor, "neuron example"]
    present: Float[Tensor, "neuron example"]
    example_ids: tuple[str, ...]
    metric: str
    watched: str
    unit: str
    do: str
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Shortcut:
        for case in self.cases:
            if case.name == name:
                return case
        raise LensSkillsError(
            f"no case of {name!r}. There are: {', '.join(case.name for case in self.cases)}."
        )

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def confirmed(self) -> list[str]:
        """The neurons that are shortcuts."""
        return [case.name for case in self.cases if case.word == SHORTCUT]

    @property
    def counts(self) -> dict[str, int]:
        """How many neurons got each word."""
        return {word: sum(case.word == word for case in self.cases) for word in WORDS}

    def frame(self) -> pd.DataFrame:
        """One row per neuron; ``value low high p q delta`` are of the difference, those that begin
        with ``all_`` of the effect on all examples."""
        return pd.DataFrame([case.row() for case in self.cases])

    def examples(self) -> pd.DataFrame:
        """One row per neuron and example of intervene: name id present effect."""
        names = [case.name for case in self.cases]
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
            f"{about.get('task', '')}: {counted or 'no neuron was tried'}",
            f"{self.do}; effects on {self.watched}" + (f" ({self.unit})" if self.unit else ""),
        ]
        for case in self.cases:
            lines += case.lines(self.metric)
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def save(self, folder: str | Path) -> Path:
        """Writes ``shortcuts.safetensors`` and ``shortcuts.json``; whole or not at all."""
        plain = {
            name: getattr(self, name)
            for name in ("example_ids", "metric", "watched", "unit", "do", "notes")
        }
        plain |= {"cases": [asdict(case) for case in self.cases], "provenance": {**self.provenance}}
        tensors = {"effects": self.effects.contiguous(), "present": self.present.contiguous()}
        return write_folder(Path(folder), "shortcuts", tensors, plain)

    @classmethod
    def load(cls, folder: str | Path) -> "Shortcuts":
        """The shortcuts that `save` wrote, without their explanations."""
        tensors, plain = read_folder(Path(folder), "shortcuts")
        cases = tuple(Shortcut.of_plain(case) for case in plain.pop("cases"))
        plain |= {name: tuple(plain[name]) for name in ("example_ids", "notes")}
        return cls(cases=cases, why=None, **tensors, **plain)


def no_shortcuts(metric: str, note: str, provenance: Mapping[str, Any]) -> Shortcuts:
    """The report on no neuron, and why there is none."""
    nothing = torch.zeros(0, 0, dtype=torch.float64)
    return Shortcuts(
        (), None, nothing, nothing, (), metric, "", "", "nothing removed", (note,), provenance
    )
