"""`SparseProbe`: how well few neurons tell a label, against how many there are."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from jaxtyping import Int
from torch import Tensor

from lens_skills.stats.bootstrap import FEW_GROUPS

FEW = 8
"""Up to so many neurons are few; a label that takes more is distributed over them."""


@dataclass(frozen=True, eq=False)
class SparseProbe:
    """Held-out scores of logistic probes on the k best neurons.

    Attributes:
        neurons: (layer, index) rows, in the order in which the probes take them.
        table: One row per k, and k = 0 for no neuron. ``balanced_accuracy``, ``f1``, ``auroc``
            with ``_low`` and ``_high`` on the test split; ``random``, ``random_low``,
            ``random_high``: mean and extremes of the balanced accuracy of probes on k random
            neurons; ``control``: balanced accuracy on random labels; ``selectivity``: what the
            label has over it. ``bits``: of the training labels given k neurons, cross-validated;
            ``description``: bits + k log2 M.
        chosen: The k of the shortest description; 0 where no neuron pays for itself.
        n_candidates: M, the neurons that could be taken.
        label: What is told.
        shared_kinds: Share of test examples whose kind, which carries the control label, was
            trained on; where it is low, the control task cannot be learned by heart.
        order_from: Where the order comes from, in words.
        n_train, n_test, n_groups: Examples, and groups of the test split.
        site, position: Where the neurons were read.
        provenance: Model, task.
    """

    neurons: Int[Tensor, "neuron 2"]
    table: pd.DataFrame
    chosen: int
    n_candidates: int
    label: str
    shared_kinds: float
    order_from: str
    n_train: int
    n_test: int
    n_groups: int
    site: str
    position: str
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names such as ``L17N635``, in the probes' order."""
        return [f"L{layer}N{neuron}" for layer, neuron in self.neurons.tolist()]

    @property
    def word(self) -> str:
        """Whether the label is in one neuron, few, or distributed, by the shortest description."""
        most = int(self.table["k"].max())
        if self.chosen == 0:
            return "no neuron pays for itself"
        if self.chosen == 1:
            return "one neuron"
        if self.chosen == most:
            return f"distributed: {most:,} or more neurons"
        kind = "few" if self.chosen <= FEW else "distributed"
        return f"{kind}: {self.chosen:,} neurons"

    def frame(self) -> pd.DataFrame:
        """One row per k; see the attributes."""
        return self.table.copy()

    def __repr__(self) -> str:
        lines = [
            f"{self.label}: {self.word} (shortest description, of {self.n_candidates:,})",
            f"trained on {self.n_train:,}, tried on {self.n_test:,} examples in {self.n_groups:,} "
            f"other groups · {self.site} at {self.position} · {self.order_from}",
            "    k  balanced accuracy      AUROC   random  control    bits + neurons",
        ]
        for row in self.table.to_dict("records"):
            mark = " *" if row["k"] == self.chosen else "  "
            if row["k"] == 0:
                lines.append(f"{mark}{0:>3}  {0.5:.2f} by chance{'':>33}{row['description']:9.0f}")
                continue
            lines.append(
                f"{mark}{row['k']:>3}  {row['balanced_accuracy']:.2f} "
                f"[{row['balanced_accuracy_low']:.2f}, {row['balanced_accuracy_high']:.2f}]"
                f"      {row['auroc']:.2f}     {row['random']:.2f}     {row['control']:.2f}"
                f"   {row['bits']:.0f} + {row['description'] - row['bits']:.0f} = "
                f"{row['description']:.0f}"
            )
        if self.shared_kinds < 0.5:
            lines.append(
                f"  only {self.shared_kinds:.0%} of the test examples are of a kind that was "
                "trained on: the control task is near chance for that reason"
            )
        if self.n_groups < FEW_GROUPS:
            lines.append(f"  fewer than {FEW_GROUPS} groups: the intervals are too narrow")
        lines.append("  what a probe can tell need not be used by the model")
        return "\n".join(lines)
