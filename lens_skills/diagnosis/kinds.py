"""`Regulators`: what kind of neuron each hit on a confidence metric is."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.diagnosis.flags import WORDS
from lens_skills.errors import LensSkillsError
from lens_skills.stats.bootstrap import FEW_GROUPS


@dataclass(frozen=True, eq=False)
class Regulators:
    """The confidence diagnostics of some neurons, one row each.

    Attributes:
        neurons: (layer, index) rows.
        table: One row per neuron. ``norm``: ‖w_out‖. ``log_variance``: log10 of the variance over
            the vocabulary of cos(w_out, W). ``null_share``: rho, 0 to 1. ``frequency``: signed
            cosine of the logit write with the frequency direction. Each with its ``_percentile``
            among all neurons of the layer (of |frequency|), 0 to 1. ``r_task``, ``r_neutral`` with
            ``_low``, ``_high``: correlation with the metric at the last prompt token, and at every
            token of neutral text. ``effect``: mean change of the metric under mean ablation, with
            ``_low`` and ``_high``; ``effect_size``: its mean size; ``p_task``: rank of that size
            among random neurons of the layer, ``q_task`` adjusted over the neurons diagnosed.
            ``entropy_size``, ``p_neutral``: the same of the entropy on neutral text.
            ``mediated`` with ``_low``, ``_high``: share of the direct effect on the entropy of
            neutral text that goes through the final norm's scale;
            ``mediated_task``, ``mediated_loss``: of the metric and of the loss, on the task.
            ``unigram``: mean change of KL(prediction ‖ unigram) on neutral text under ablation.
            ``word``, ``why``: what it comes to.
        norms, log_variances: Of every neuron of the model; the cloud the hits stand in.
        layers: The layer of each of those.
        k: How many singular directions count as the null space.
        metric, neutral_metric: What r is with.
        folded: What was multiplied into W_U, in words.
        unigram_from: Where the frequency direction comes from, in words.
        n_examples, n_groups, n_effects, n_texts, n_controls: What was measured on.
        provenance: Model, task, site.
    """

    neurons: Int[Tensor, "neuron 2"]
    table: pd.DataFrame
    norms: Float[Tensor, " all"]
    log_variances: Float[Tensor, " all"]
    layers: Int[Tensor, " all"]
    k: int
    metric: str
    neutral_metric: str
    folded: str
    unigram_from: str
    n_examples: int
    n_groups: int
    n_effects: int
    n_texts: int
    n_controls: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.neurons)

    @property
    def names(self) -> list[str]:
        """Names such as ``L17N635``."""
        return [f"L{layer}N{neuron}" for layer, neuron in self.neurons.tolist()]

    def frame(self) -> pd.DataFrame:
        """One row per neuron, every number and the word; see the attributes."""
        return self.table.copy()

    def __getitem__(self, name: str) -> pd.Series:
        """The row of one neuron.

        Raises:
            LensSkillsError: It was not diagnosed.
        """
        if name not in self.names:
            raise LensSkillsError(f"no {name!r} here. Diagnosed: {', '.join(self.names)}.")
        return self.table.iloc[self.names.index(name)]

    def of(self, word: str) -> list[str]:
        """The names of the neurons that got a word.

        Raises:
            LensSkillsError: A word no flag uses.
        """
        if word not in WORDS:
            raise LensSkillsError(f"no word {word!r}. There are: {', '.join(map(repr, WORDS))}.")
        return self.table.loc[self.table["word"] == word, "name"].tolist()

    def __repr__(self) -> str:
        counts = self.table["word"].value_counts()
        said = ", ".join(f"{counts[word]} {word}" for word in WORDS if word in counts)
        lines = [
            f"{len(self)} neurons · {self.metric} · {self.provenance.get('model', '')}: {said}",
            f"r over {self.n_examples:,} examples in {self.n_groups:,} groups and "
            f"{self.n_texts} neutral texts ({self.neutral_metric}); ablations on "
            f"{self.n_effects} examples, against {self.n_controls} random neurons per layer",
            f"null space: k = {self.k}; {self.folded}; {self.unigram_from}",
        ]
        for row in self.table.head(20).to_dict("records"):
            lines.append(
                f"  {row['name']:<9} {row['word']}: {row['why']}\n"
                f"    ‖w_out‖ {row['norm']:.3g} ({_part(row, 'norm')})  log var "
                f"{row['log_variance']:.2f} ({_part(row, 'log_variance')})  null space "
                f"{row['null_share']:.2f} ({_part(row, 'null_share')})  frequency "
                f"{row['frequency']:+.2f} ({_part(row, 'frequency')})\n"
                f"    r {row['r_task']:+.2f} [{row['r_task_low']:+.2f}, {row['r_task_high']:+.2f}] "
                f"task, {row['r_neutral']:+.2f} [{row['r_neutral_low']:+.2f}, "
                f"{row['r_neutral_high']:+.2f}] neutral  |effect| q = {row['q_task']:.2g} task, "
                f"p = {row['p_neutral']:.2g} neutral  through the norm "
                f"{row['mediated']:.2f} [{row['mediated_low']:.2f}, {row['mediated_high']:.2f}]"
            )
        if len(self) > 20:
            lines.append(f"  … and {len(self) - 20} more in .frame()")
        if min(self.n_groups, self.n_texts) < FEW_GROUPS:
            lines.append(f"  fewer than {FEW_GROUPS} groups or texts: the intervals are too narrow")
        lines.append("  percentiles are within the layer; thresholds stand in diagnosis/flags.py")
        return "\n".join(lines)


def _part(row: dict[str, Any], name: str) -> str:
    """A percentile, in words.

    >>> _part({"norm_percentile": 0.953}, "norm")
    'p95'
    """
    return f"p{100 * row[f'{name}_percentile']:.0f}"


def log10(values: Float[Tensor, " neuron"]) -> Float[Tensor, " neuron"]:
    """The base-10 logarithm; of a variance of 0, that of the smallest number."""
    return values.clamp(min=torch.finfo(torch.float64).tiny).log10()
