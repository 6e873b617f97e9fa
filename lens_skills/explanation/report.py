"""`Shortcuts`: which strong neurons are shortcuts, in words, with the evidence."""

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
from lens_skills.explanation.shortcut import SHORTCUT, WORDS, Shortcut
from lens_skills.folder import read_folder, write_folder


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
