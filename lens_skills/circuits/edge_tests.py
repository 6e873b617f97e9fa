"""What the effect of an edge is called: beyond, within or neither of ±ε of the whole effect.

`edge_statistics` measures edges, `RandomEdges` draws others of the same grain, and `decide` gives
every tested edge its word against both. Exact patching is deterministic and nearly every edge
carries something, so "the effect is not 0" would only say that the pairs were enough.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.circuits.graph import Edge, Node, senders_of
from lens_skills.circuits.path_patching import Path
from lens_skills.models.sublayers import ModelWeights
from lens_skills.stats.effect_tests import beyond, cluster_interval, cluster_p, equivalent
from lens_skills.stats.multiple_testing import false_discovery_q, rank_p

ALPHA = 0.05
EPSILON = 0.01
"""Of the total: the smallest effect of an edge that matters, unless declared."""

N_RANDOM = 100
"""Random edges per stage; 40 at least, and these cost little beside proposing."""


def p_within(
    values: Float[Tensor, "edge example"], groups: Sequence[str], delta: float
) -> Float[Tensor, " edge"]:
    """Two-sided p of each mean lying within ±``delta``: 1 where it does.

    The cluster t test of the mean being delta away from 0, on the side where it is; the p of the
    least favourable effect within the bounds.

    >>> p_within(torch.tensor([[0.1, 0.2, 0.1]]), list("abc"), 1.0).item()
    1.0
    """
    mean = values.double().mean(1)
    side = torch.where(mean < 0, -1.0, 1.0).double()
    p = cluster_p(values.double() * side[:, None] - delta, groups)
    return torch.where(mean.abs() > delta, p, 1.0)


def edge_statistics(
    edges: Sequence[Edge],
    effects: Float[Tensor, "edge example"],
    groups: Sequence[str],
    total: float,
    delta: float,
    *,
    n_draws: int = 2000,
    seed: int = 0,
) -> list[Edge]:
    """The edges with effect, share of the total (None where that is 0), interval and p.

    ``p`` is of an effect within ±``delta``. ``verdict`` says what the edge alone says:
    ``"confirmed"`` where its 95 % interval is wholly beyond ±delta, ``"negligible"`` where two
    one-sided tests at 5 % put it within (the 90 % interval), else ``"undecided"``.
    """
    if not edges:
        return []
    low, high = cluster_interval(effects, groups, n_draws=n_draws, seed=seed)
    low90, high90 = cluster_interval(effects, groups, level=0.9, n_draws=n_draws, seed=seed)
    p = p_within(effects, groups, delta)
    out, within = beyond(low, high, delta) != 0, equivalent(low90, high90, delta)
    return [
        replace(
            edge,
            low=float(low[k]),
            high=float(high[k]),
            p=float(p[k]),
            verdict="confirmed" if out[k] else "negligible" if within[k] else "undecided",
        )
        for k, edge in enumerate(mean_effects(edges, effects, total))
    ]


def mean_effects(
    edges: Sequence[Edge], effects: Float[Tensor, "edge example"], total: float
) -> list[Edge]:
    """The edges with effect and share alone: too few groups say no more."""
    mean = effects.double().mean(1).tolist()
    return [
        replace(edge, effect=value, share=value / total if total else None)
        for edge, value in zip(edges, mean, strict=True)
    ]


def grain(edge: Edge) -> str:
    """What sends: ``"neuron"``, or ``"whole"`` (a token, a head, an MLP, the scale of a norm).

    >>> grain(Edge(Node(1, "neuron", 3, "-1"), Node(2, "mlp", None, "-1"), "in", "x", 0.0))
    'neuron'
    """
    return "neuron" if edge.sender.kind == "neuron" else "whole"


def rank_among(edges: Sequence[Edge], random: Sequence[Edge]) -> Float[Tensor, " edge"]:
    """p of each |effect| among those of the random edges of its stage and grain.

    (1 + #{random >= it}) / (1 + #random), a conformal p-value: uniform at most where the edge is
    itself one picked at random. Without any random edge to compare with, 1.
    """
    p = torch.ones(len(edges), dtype=torch.float64)
    kinds = {(edge.stage, grain(edge)) for edge in edges}
    for kind in kinds:
        here = [k for k, edge in enumerate(edges) if (edge.stage, grain(edge)) == kind]
        null = [edge.strength for edge in random if (edge.stage, grain(edge)) == kind]
        if null:
            own = torch.tensor([edges[k].strength for k in here], dtype=torch.float64)
            p[here] = rank_p(own, torch.tensor(null, dtype=torch.float64))
    return p


def decide(
    edges: Sequence[Edge], random: Sequence[Edge], *, n_stages: int, alpha: float = ALPHA
) -> list[Edge]:
    """The edges with ``q``, ``p_random`` and their words.

    Confirmed needs three things: an interval wholly beyond ±δ; q, Benjamini-Hochberg of p over
    the edges of the same stage, at most alpha / n_stages; and p_random, `rank_among` of the edge,
    at most alpha, so that of edges picked at random no more than alpha can be confirmed. What
    falls short of one is undecided. (A q over those ranks could not fall below 5 % for the one
    strong edge of a list: its p is at least 1 / (1 + #random).)

    A later stage looks where an earlier one confirmed, on the same pairs. The false discovery
    proportion of all stages together is at most the sum of theirs, so alpha is split beforehand
    over as many stages as were asked for, whatever the earlier ones find (a stage's own rate holds
    given the edges it tests).
    """
    found: list[Edge] = list(edges)
    ranks = rank_among(edges, random)
    for stage in {edge.stage for edge in edges}:
        here = [k for k, edge in enumerate(edges) if edge.stage == stage]
        p = torch.tensor([1.0 if edges[k].p is None else edges[k].p for k in here])
        q = false_discovery_q(p.double())
        for k, one, other in zip(here, q.tolist(), ranks[here].tolist(), strict=True):
            verdict = edges[k].verdict
            if verdict == "confirmed" and not (one <= alpha / n_stages and other <= alpha):
                verdict = "undecided"
            found[k] = replace(edges[k], q=one, p_random=other, verdict=verdict)
    return found


def decide_random(edges: Sequence[Edge], random: Sequence[Edge]) -> list[Edge]:
    """The random edges with the word each would have had among the tested ones of its stage.

    It would have been confirmed where its interval is beyond ±δ and it is as extreme as an edge
    that was: p no larger than the largest, |effect| no smaller than the smallest of the confirmed
    ones of its stage and grain.
    """
    found = []
    for edge in random:
        kind = edge.stage, grain(edge)
        like = [one for one in edges if one.confirmed and (one.stage, grain(one)) == kind]
        passes = (
            bool(like)
            and (edge.p or 0.0) <= max(one.p or 0.0 for one in like)
            and edge.strength >= min(one.strength for one in like)
        )
        falls = edge.verdict == "confirmed" and not passes
        found.append(replace(edge, verdict="undecided") if falls else edge)
    return found


class RandomEdges:
    """Edges picked at random: the receiver and channel of a proposed one, from another sender.

    A neuron is replaced by another of its layer; a head by another of its layer, an MLP by that
    of another layer, the nearest that is free; a token, which is alone in its column, by the
    nearest head or MLP. None has been tested, and none comes twice.
    """

    def __init__(self, weights: ModelWeights, *, seed: int) -> None:
        self.weights, self.adapter = weights, weights.adapter
        self._random = np.random.default_rng(seed)

    def draw(self, edges: Sequence[Edge], n: int, taken: set[Path]) -> list[Edge]:
        """At most ``n`` of them, the mix of grains that of ``edges``; fewer where no more are free.

        ``taken`` are the edges of this target that are not to be drawn; those drawn are added.
        """
        likes = [edge for edge in edges if edge.sender.kind != "norm"]
        found: list[Edge] = []
        exhausted: set[Path] = set()
        while len(found) < n and len(exhausted) < len({one.key for one in likes}):
            for place in self._random.permutation(len(likes)).tolist():
                like = likes[place]
                if len(found) == n or like.key in exhausted:
                    continue
                sender = self._another(like, taken)
                if sender is None:
                    exhausted.add(like.key)
                    continue
                edge = replace(like, sender=sender, proposed=0.0)
                taken.add(edge.key)
                found.append(edge)
        return found

    def _another(self, like: Edge, taken: set[Path]) -> Node | None:
        sender, receiver = like.sender, like.receiver

        def free(node: Node) -> bool:
            return (node, receiver, like.channel) not in taken

        if sender.kind == "neuron":
            layer = self._random.permutation(self.adapter.d_mlp).tolist()
            return next((n for k in layer if free(n := replace(sender, index=k))), None)
        parallel = self.weights.parallel
        whole = senders_of(receiver, self.adapter.n_heads, parallel=parallel)
        alike = [node for node in whole if node.kind == sender.kind and free(node)]
        alike = alike or [node for node in whole if free(node)]
        if not alike:
            return None
        near = min(abs(node.layer - sender.layer) for node in alike)
        nearest = [node for node in alike if abs(node.layer - sender.layer) == near]
        return nearest[int(self._random.integers(len(nearest)))]
