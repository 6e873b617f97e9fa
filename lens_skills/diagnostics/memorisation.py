"""`memorisation`: whether neurons take many values or few, and tell the same or different things.

The entropy of each neuron and the mutual information of every two, beside random neurons of the
same layers.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Position
from lens_skills.activations.activation_reader import (
    NeuronValues,
    read_neurons,
    refuse_constant,
)
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.control_neurons import random_neurons, with_layer_controls
from lens_skills.models import Chat, SoftPrompt
from lens_skills.progress import progress
from lens_skills.results import Result
from lens_skills.stats.information import entropy, equal_width_codes, kraskov_information
from lens_skills.stats.multiple_testing import false_discovery_q, rank_p

MOST = 200
"""Neurons beyond which the pairs, whose number is the square of theirs, take too long."""

FEWEST_EXAMPLES = 30
MOST_BINS = 10_000
N_BINS = 100
KINDS = {"shortcut": "few values, shared", "example": "many values, its own"}
"""What a neuron's entropy and information say together."""

PAIRS = 200  # of each random set, drawn; of the neurons asked about all are taken


@dataclass(frozen=True, eq=False)
class Memorisation(Result):
    """Entropy and mutual information of a set of neurons, beside random ones of the same layers.

    Attributes:
        table: One row per neuron: name, layer, ``entropy`` over equal-width bins (bits),
            ``information``: its mean mutual information with the others (nats). With controls also
            ``shortcut_p``: the larger of two rank p among random neurons of its layer, for an
            entropy as low and for an information as high; ``example_p``: the same the other way
            round; ``shortcut_q``, ``example_q``: Benjamini-Hochberg over the neurons.
        controls: One row per random neuron of the same layers that the p are among: name, layer,
            entropy, and information with the set.
        entropy, information: Means over the neurons.
        random_entropy, random_information: The same of random sets of as many neurons.
        n_bins, n_examples: What it was measured with.
        provenance: Model, task.
    """

    table: pd.DataFrame
    controls: pd.DataFrame
    entropy: float
    information: float
    random_entropy: Float[Tensor, " draw"]
    random_information: Float[Tensor, " draw"]
    n_bins: int
    n_examples: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row per neuron; see the attributes."""
        return self.table.copy()

    def carriers(self, kind: str = "shortcut") -> list[str]:
        """The neurons that show a pattern by themselves, the smallest p first (q <= 0.05).

        Args:
            kind: ``"shortcut"``: few values that the other neurons of the set share;
                ``"example"``: many values, its own.

        Raises:
            LensSkillsError: Another kind; no controls to tell by.
        """
        if kind not in KINDS:
            raise LensSkillsError(f"kind={kind!r}: choose one of {', '.join(KINDS)}.")
        if not len(self.controls):
            raise LensSkillsError(
                "no neuron was tried by itself: give memorisation(..., n_controls=99)."
            )
        rows = self.table.loc[self.table[f"{kind}_q"] <= 0.05].sort_values(f"{kind}_p")
        return [str(name) for name in rows["name"]]

    @property
    def p(self) -> dict[str, float]:
        """The rank of each mean among the random sets, towards lower and higher."""
        ranks = {}
        for name in ("entropy", "information"):
            value = torch.tensor(getattr(self, name), dtype=torch.float64)
            null = getattr(self, f"random_{name}")
            ranks[f"{name}_low"] = float(rank_p(-value, -null))
            ranks[f"{name}_high"] = float(rank_p(value, null))
        return ranks

    @property
    def word(self) -> str:
        """What the two say together, by the paper's reading, at a rank p of 0.05."""
        p, n = self.p, len(self.random_entropy)
        if 1 / (1 + n) > 0.05:
            return f"undecided: {n} random sets cannot tell (19 can)"
        if p["entropy_low"] <= 0.05 and p["information_high"] <= 0.05:
            return "few values, shared: as where a shortcut is memorised"
        if p["entropy_high"] <= 0.05 and p["information_low"] <= 0.05:
            return "many values, each its own: as where examples are memorised"
        apart = [
            f"{name} {'below' if end == 'low' else 'above'} random neurons'"
            for name in ("entropy", "information")
            for end in ("low", "high")
            if p[f"{name}_{end}"] <= 0.05
        ]
        if apart:
            return f"neither pattern: {' and '.join(apart)}"
        return "like random neurons of these layers"

    def __repr__(self) -> str:
        def line(name: str, unit: str) -> str:
            null = getattr(self, f"random_{name}")
            return (
                f"  {name} {getattr(self, name):.3f} {unit}, {len(null)} random sets "
                f"{float(null.min()):.3f} to {float(null.max()):.3f}"
            )

        lines = [
            f"{len(self.table)} neurons on {self.n_examples:,} examples: {self.word}",
            line("entropy", f"bits ({self.n_bins} bins)"),
            line("information", "nats, mean over pairs"),
        ]
        if len(self.controls):
            lines += [self._told(kind, words) for kind, words in KINDS.items()]
        lines.append("  a diagnostic of how, not a proof that anything is memorised")
        return "\n".join(lines)

    def _told(self, kind: str, words: str) -> str:
        """Which neurons show a pattern by themselves, in a line."""
        names, per_layer = self.carriers(kind), self.controls.groupby("layer").size().min()
        shown = ", ".join(names[:5]) + (f", … ({len(names) - 5} more)" if len(names) > 5 else "")
        least = float(self.table.loc[:, f"{kind}_p"].min())
        return (
            f"  {words}: {len(names)} of {len(self.table)} by themselves (q <= 0.05 among "
            f"{per_layer} random neurons of the layer; smallest p {least:.2g})"
            f"{': ' + shown if names else ''}"
        )


def memorisation(
    model: Any,
    examples: Sequence[Example],
    neurons: Any,
    *,
    n_bins: int = N_BINS,
    k: int = 3,
    n_draws: int = 19,
    n_controls: int = 0,
    at: str = DEFAULT_SITE,
    position: Position | None = None,
    prompt: SoftPrompt | None = None,
    chat: Chat = False,
    seed: int = 0,
) -> Memorisation:
    """Entropy of each neuron and mutual information of every two, beside random neurons'.

    H = -Σ p log2 p over equal-width bins of each neuron's own range; information by the estimator
    of Kraskov et al. Shortcut memorisation was seen to go with low H and high information, the
    memorisation of examples with high H and low information.

    Args:
        model: A model, or an `ActivationTable` (its layers hold the random neurons too).
        examples: What they are read on.
        neurons: At most `MOST`.
        n_bins: Bins for H.
        k: Neighbours for the information.
        n_draws: Random sets of as many neurons of the same layers.
        n_controls: Random neurons of each layer that every neuron is tried among by itself; 0:
            none is, 19 are the fewest for a p of 0.05, and 99 or more leave room for q. They cost
            n_controls x layers x neurons pairs.
        at, position, prompt, chat: As in `redundancy`.
        seed: Of the draws.

    Raises:
        LensSkillsError: Fewer than two neurons, more than `MOST`, fewer than 30 examples, a neuron
            that does not vary, 1 to 18 controls, a layer that holds too few others.

    Assumes: of a neuron's own p, that it is a random draw of its layer given the other neurons of
    the set; being the larger of two p, it is exact or conservative.

    Does not show: that anything is memorised, nor that a carrier is used.

    >>> import lens_skills as ls
    >>> model, task = ls.load_model("arithmetic-small"), ls.tasks.arithmetic("+")
    >>> found = ls.memorisation(model, task, ["L2N1", "L2N5", "L2N9"], n_draws=2, n_controls=19)
    >>> found.frame().columns.tolist()[:4]
    ['name', 'layer', 'entropy', 'information']

    Source: Bansal et al. 2022 (arXiv 2210.09404); Kraskov et al. 2004.
    """
    if k < 1 or not 2 <= n_bins <= MOST_BINS or n_draws < 1:
        raise LensSkillsError(
            f"k={k}, n_bins={n_bins}, n_draws={n_draws}: a neighbour, two bins and a random set "
            f"are the least, {MOST_BINS:,} bins the most."
        )
    where: dict[str, Any] = {"at": at, "position": position, "prompt": prompt, "chat": chat}
    found = read_neurons(model, examples, neurons, **where)
    n = len(found.neurons)
    if not 2 <= n <= MOST:
        raise LensSkillsError(
            f"{n:,} neurons make {n * (n - 1) // 2:,} pairs: 2 to {MOST} neurons are taken. Give "
            "the strongest, e.g. .top(50), or ls.redundancy's representatives."
        )
    if len(examples) < FEWEST_EXAMPLES:
        raise LensSkillsError(
            f"{len(examples)} examples are too few for an entropy over {n_bins} bins and a mutual "
            f"information: give {FEWEST_EXAMPLES} or more."
        )
    refuse_constant(found)
    drawn = [
        random_neurons(found.neurons, n, width=found.width, seed=seed + draw)
        for draw in range(n_draws)
    ]
    pool = torch.unique(torch.cat(drawn), dim=0) if drawn else found.neurons
    others = read_neurons(model, examples, pool, **where)
    place = {tuple(row): spot for spot, row in enumerate(pool.tolist())}
    own_h = entropy(equal_width_codes(found.values, n_bins=n_bins))
    own_mi = pairwise(found.values, k)
    layer = found.neurons[:, 0]
    table = pd.DataFrame(
        {"name": found.names, "layer": layer.numpy(), "entropy": own_h, "information": own_mi}
    )
    controls = pd.DataFrame({"name": [], "layer": [], "entropy": [], "information": []})
    if n_controls:
        rows = with_layer_controls(found.neurons, n_controls, width=found.width, seed=seed)[n:]
        beside = read_neurons(model, examples, rows, **where)
        controls, p = _tried_alone(found, beside, own_h, own_mi, n_bins=n_bins, k=k)
        for kind in KINDS:
            table[f"{kind}_p"] = p[kind].numpy()
            table[f"{kind}_q"] = false_discovery_q(p[kind]).numpy()
    h, mi = [], []
    for rows in progress(drawn, len(drawn), "memorisation", "draws"):
        values = others.values[[place[tuple(row)] for row in rows.tolist()]]
        h.append(float(entropy(equal_width_codes(values, n_bins=n_bins)).mean()))
        mi.append(mean_information(values, k, seed=seed))
    return Memorisation(
        table=table,
        controls=controls,
        entropy=float(own_h.mean()),
        information=float(own_mi.mean()),
        random_entropy=torch.tensor(h, dtype=torch.float64),
        random_information=torch.tensor(mi, dtype=torch.float64),
        n_bins=n_bins,
        n_examples=len(examples),
        provenance=found.about,
    )


def _tried_alone(
    found: NeuronValues,
    others: NeuronValues,
    own_h: Float[Tensor, " neuron"],
    own_mi: Float[Tensor, " neuron"],
    *,
    n_bins: int,
    k: int,
) -> tuple[pd.DataFrame, dict[str, Float[Tensor, " neuron"]]]:
    """The random neurons, and each neuron's p of either kind among those of its layer.

    A random neuron's information is with the set less the neuron it is compared with, so that the
    two are alike in all but which neuron they are of.
    """
    h = entropy(equal_width_codes(others.values, n_bins=n_bins))
    n = len(found.neurons)
    shared = torch.zeros(len(others.neurons), n, dtype=torch.float64)
    for row in progress(range(len(shared)), len(shared), "memorisation", "random neurons"):
        for column in range(n):
            shared[row, column] = kraskov_information(others.values[row], found.values[column], k=k)
    p = {kind: torch.ones(n, dtype=torch.float64) for kind in KINDS}
    for place in range(n):
        alike = others.neurons[:, 0] == found.neurons[place, 0]
        without = (shared[alike].sum(1) - shared[alike, place]) / (n - 1)
        for kind, sign in (("shortcut", 1), ("example", -1)):
            low = rank_p(-sign * own_h[place], -sign * h[alike])
            high = rank_p(sign * own_mi[place], sign * without)
            p[kind][place] = torch.maximum(low, high)
    rows = pd.DataFrame(
        {
            "name": others.names,
            "layer": others.neurons[:, 0].numpy(),
            "entropy": h.numpy(),
            "information": shared.mean(1).numpy(),
        }
    )
    return rows, p


def pairwise(values: Float[Tensor, "neuron example"], k: int) -> Float[Tensor, " neuron"]:
    """Each neuron's mean Kraskov information with the others, in nats."""
    n = len(values)
    total = torch.zeros(n, dtype=torch.float64)
    for i, j in combinations(range(n), 2):
        nats = kraskov_information(values[i], values[j], k=k)
        total[i] += nats
        total[j] += nats
    return total / (n - 1)


def mean_information(values: Float[Tensor, "neuron example"], k: int, *, seed: int) -> float:
    """The mean Kraskov information over pairs, of `PAIRS` drawn ones where there are more."""
    pairs = list(combinations(range(len(values)), 2))
    drawn = random.Random(seed).sample(pairs, min(PAIRS, len(pairs)))
    return sum(kraskov_information(values[i], values[j], k=k) for i, j in drawn) / len(drawn)
