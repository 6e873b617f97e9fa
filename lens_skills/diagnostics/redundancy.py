"""`redundancy`: which neurons do the same, and one of each kind to go on with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Position
from lens_skills.activations.activation_reader import read_neurons, refuse_constant
from lens_skills.activations.components import neuron_names
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, SoftPrompt
from lens_skills.results import Result
from lens_skills.stats.correlation import average_linkage, standardise

MOST = 2_000
"""Neurons beyond which the tree takes long and nobody reads it."""


@dataclass(frozen=True, eq=False)
class Redundancy(Result):
    """Neurons grouped by how alike their activations are.

    Attributes:
        neurons: (layer, index) rows, in the order they were given.
        cluster: The cluster of each, 0 on, the largest first.
        sign: +1 where a neuron goes with its cluster's representative, -1 where it goes against.
        representative: The place of each cluster's medoid: the member with the largest mean
            |r| to the others (of two, the one given first).
        r: Pearson's r of every two.
        linkage: SciPy's average linkage on 1 - |r|.
        threshold: Clusters are cut at this 1 - |r|.
        n_examples, site, position: What it was measured on.
        provenance: Model, task.
    """

    neurons: Int[Tensor, "neuron 2"]
    cluster: Int[Tensor, " neuron"]
    sign: Int[Tensor, " neuron"]
    representative: Int[Tensor, " cluster"]
    r: Float[Tensor, "neuron neuron"]
    linkage: Float[Tensor, "merge 4"]
    threshold: float
    n_examples: int
    site: str
    position: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.representative)

    @property
    def names(self) -> list[str]:
        """Names such as ``L17N635``."""
        return neuron_names(self.neurons, self.site, self.provenance)

    @property
    def representatives(self) -> list[str]:
        """The representatives' names, that of the largest cluster first."""
        return [self.names[place] for place in self.representative.tolist()]

    def members(self, cluster: int) -> list[str]:
        """The names in one cluster, its representative first."""
        if not 0 <= cluster < len(self):
            raise LensSkillsError(f"no cluster {cluster}: there are {len(self)}, from 0.")
        first = int(self.representative[cluster])
        here = (self.cluster == cluster).nonzero()[:, 0].tolist()
        return [self.names[place] for place in sorted(here, key=lambda place: place != first)]

    def frame(self) -> pd.DataFrame:
        """One row per neuron: name layer neuron cluster sign representative r (with it)."""
        first = self.representative[self.cluster]
        return pd.DataFrame(
            {
                "name": self.names,
                "layer": self.neurons[:, 0].numpy(),
                "neuron": self.neurons[:, 1].numpy(),
                "cluster": self.cluster.numpy(),
                "sign": self.sign.numpy(),
                "representative": [self.names[place] for place in first.tolist()],
                "r": self.r[torch.arange(len(self.r)), first].numpy(),
            }
        )

    def __repr__(self) -> str:
        noun = "cluster" if len(self) == 1 else "clusters"
        lines = [
            f"{len(self):,} {noun} of {len(self.neurons):,} neurons (|r| of "
            f"{1 - self.threshold:.2g} or more on average) · {self.n_examples:,} examples · "
            f"{self.site} at {self.position}"
        ]
        for cluster, name in list(enumerate(self.representatives))[:10]:
            inside = (self.cluster == cluster).nonzero()[:, 0].tolist()
            others = [
                f"{'-' if int(self.sign[place]) < 0 else ''}{self.names[place]}"
                for place in inside
                if self.names[place] != name
            ]
            shown = f" with {', '.join(others[:5])}" if others else ""
            more = f", … ({len(others) - 5} more)" if len(others) > 5 else ""
            lines.append(f"  {name}{shown}{more}")
        if len(self) > 10:
            lines.append(f"  … and {len(self) - 10} more clusters in .frame()")
        lines.append("  grouped by |r| on these examples; nothing is tested, and neurons that go")
        lines.append("  together need not do the same")
        return "\n".join(lines)


def redundancy(
    model: Any,
    examples: Sequence[Example],
    neurons: Any,
    *,
    threshold: float = 0.5,
    at: str = DEFAULT_SITE,
    position: Position | None = None,
    prompt: SoftPrompt | None = None,
    chat: Chat = False,
) -> Redundancy:
    """The neurons in clusters of like activations, with a representative each.

    Average linkage on the distance 1 - |r|, cut at ``threshold``: two clusters are one where their
    members' |r| is on average at least 1 - threshold. A neuron and its opposite are alike; the
    sign is kept.

    Args:
        model: A model, or an `ActivationTable`.
        examples: What they are compared on.
        neurons: Names, rows or a `Selection`.
        threshold: 0 to 1.
        at, position: Where they are read; ``"last"`` unless asked otherwise.
        prompt: A soft prompt to read with.
        chat: As in `score`.

    Raises:
        LensSkillsError: Fewer than two neurons or three examples, more than `MOST` neurons, one
            that does not vary.

    Source: clusters of correlated neurons, Dalvi et al. 2020 (arXiv 2004.04010); SciPy does it.
    """
    if not 0 < threshold < 1:
        raise LensSkillsError(f"threshold={threshold}: 1 - |r| lies between 0 and 1.")
    found = read_neurons(
        model, examples, neurons, at=at, position=position, prompt=prompt, chat=chat
    )
    n = len(found.neurons)
    if not 2 <= n <= MOST:
        raise LensSkillsError(
            f"{n:,} neurons: clusters take 2 to {MOST:,}. Give the strongest, e.g. .top(200)."
        )
    if len(examples) < 3:
        raise LensSkillsError(f"{len(examples)} examples: a correlation takes 3 or more.")
    refuse_constant(found)
    unit = standardise(found.values)
    r = (unit @ unit.T / unit.shape[1]).clamp(-1, 1)
    cluster, tree = cluster_by(r, threshold)
    first = medoids(r, cluster)
    sign = r[torch.arange(n), first[cluster]].sign().long()
    return Redundancy(
        neurons=found.neurons,
        cluster=cluster,
        sign=torch.where(sign == 0, 1, sign),
        representative=first,
        r=r,
        linkage=tree,
        threshold=threshold,
        n_examples=len(examples),
        site=found.site,
        position=found.position,
        provenance=found.about,
    )


def cluster_by(
    r: Float[Tensor, "neuron neuron"], threshold: float
) -> tuple[Int[Tensor, " neuron"], Float[Tensor, "merge 4"]]:
    """Each neuron's cluster, the largest cluster first, and the tree they are cut from."""
    # Imported here: SciPy's statistics take a second to load and --help must not wait for them.
    from scipy.cluster.hierarchy import fcluster

    # Rounded, because a matrix product's last digits differ from call to call.
    tree = average_linkage((1 - r.abs()).numpy().round(12))
    flat = fcluster(tree.numpy(), threshold, "distance")
    codes, first, counts = np.unique(flat, return_index=True, return_counts=True)
    # Largest first; of equal ones, whose first member was given first.
    order = {int(codes[place]): rank for rank, place in enumerate(np.lexsort((first, -counts)))}
    return torch.tensor([order[int(code)] for code in flat]), tree


def medoids(
    r: Float[Tensor, "neuron neuron"], cluster: Int[Tensor, " neuron"]
) -> Int[Tensor, " cluster"]:
    """The place of each cluster's member with the largest mean |r| to the others, the first of two.

    >>> r = torch.tensor([[1.0, 0.9, 0.5], [0.9, 1.0, 0.8], [0.5, 0.8, 1.0]])
    >>> medoids(r, torch.tensor([0, 0, 0])).tolist()
    [1]
    """
    n_clusters = int(cluster.max()) + 1
    total = torch.zeros(n_clusters, len(r), dtype=r.dtype).index_add_(0, cluster, r.abs())
    alike = total[cluster, torch.arange(len(r))].round(decimals=12)
    order = np.lexsort((-alike.numpy(), cluster.numpy()))
    return torch.from_numpy(order[np.unique(cluster.numpy()[order], return_index=True)[1]])
