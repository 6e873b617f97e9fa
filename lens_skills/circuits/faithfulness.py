"""`faithfulness`: how much of what the whole model does a circuit does alone, and against what.

A `CircuitEvaluation` runs one part of a circuit at several sizes, without each edge and beside
random circuits; what it measures per example becomes shares of the gap between no edge and all
edges: a `Curve` per part, together a `Faithfulness`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import parse_metric
from lens_skills.circuits.discovery import PROPOSALS
from lens_skills.circuits.edge_attribution import target_gradients
from lens_skills.circuits.graph import Circuit, Edge, Node
from lens_skills.circuits.paired_cache import PairedCache, paired_caches
from lens_skills.circuits.run_circuit import CircuitRun, EdgeScheme, RandomCircuits
from lens_skills.circuits.targets import AnswerTarget, Target, upstream_target
from lens_skills.circuits.whole_graph import GraphAreas, area, graph_areas, rank_edges
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, SoftPrompt, with_soft_prompt
from lens_skills.models.identity import check_reading
from lens_skills.models.sublayers import ModelWeights
from lens_skills.results import Result, provenance
from lens_skills.stats.effect_tests import (
    FEW_GROUPS,
    FEWEST_GROUPS,
    ClusteredRatio,
    cluster_interval,
    cluster_p,
    equivalent,
    ratio_interval,
)
from lens_skills.stats.multiple_testing import false_discovery_q

ALPHA = 0.05
EPSILON = 0.1

_ROWS = 4096  # columns of all sets and examples that run at once


@dataclass(frozen=True)
class Share:
    """A share of the gap between the empty and the whole graph, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class Removal:
    """What becomes of the circuit's share when one of its edges is taken out.

    Attributes:
        edge: In words, ``"L9H3@-1 → L17N635@-1 gate"``.
        change: Of the share; below 0: the circuit is worse without the edge.
        q: Benjamini-Hochberg over the circuit's edges.
        matters: q at most 0.05 and an interval without 0.
    """

    edge: str
    change: Share
    q: float
    matters: bool


@dataclass(frozen=True)
class Curve:
    """One part of a circuit alone: upstream (or the behaviour), or downstream.

    Attributes:
        part, target, unit: As in the circuit's `Totals`.
        whole: Mean target with every edge.
        empty: Mean target with none.
        sizes: Numbers of edges, the strongest first; the last is all of them.
        shares: Faithfulness at each size.
        random: The same of each random circuit, draw by draw.
        rest: Share of the gap that is left with all edges but the circuit's (0: complete).
        removals: One per edge; empty where they were not asked for.
        equivalent: Whether the 90 % interval at the last size lies in [1 - ε, 1 + ε].
        n_edges: Of the whole graph, at the grain of tokens, heads' channels and MLPs' gates.
        graph: The whole graph ranked edge by edge, for MIB's areas, where that was asked for.
    """

    part: str
    target: str
    unit: str
    whole: float
    empty: float
    sizes: tuple[int, ...]
    shares: tuple[Share, ...]
    random: tuple[tuple[float, ...], ...]
    rest: Share
    removals: tuple[Removal, ...]
    equivalent: bool
    n_edges: int
    graph: GraphAreas | None = None

    @property
    def last(self) -> Share:
        """Faithfulness of the whole circuit."""
        return self.shares[-1]

    @property
    def p(self) -> float | None:
        """How many random circuits come as near to the whole graph: (1 + #) / (1 + n)."""
        if not self.random:
            return None
        near = sum(abs(1 - row[-1]) <= abs(1 - self.last.value) for row in self.random)
        return (1 + near) / (1 + len(self.random))

    @property
    def matter(self) -> float | None:
        """The share of edges whose removal changes the circuit."""
        if not self.removals:
            return None
        return sum(one.matters for one in self.removals) / len(self.removals)

    @property
    def area(self) -> float:
        """Mean faithfulness over sizes from 1 to the circuit's, on a log axis (trapezoids).

        One size only: its faithfulness.
        """
        return area(np.log(self.sizes), [share.value for share in self.shares])

    @property
    def distance(self) -> float:
        """Mean |1 - faithfulness| likewise; 0 is perfect."""
        return area(np.log(self.sizes), [abs(1 - share.value) for share in self.shares])


@dataclass(frozen=True)
class Faithfulness(Result):
    """A circuit run alone, on examples that need not be those it was found on.

    f = (m(circuit) - m(empty)) / (m(whole) - m(empty)): 0 is what the graph does without an edge,
    1 with all; below 0 and above 1 are possible.

    Attributes:
        curves: Upstream (or the behaviour) and downstream, where the circuit has them.
        n_examples, n_groups: On which it ran.
        n_unrun: Edges that cannot run: a norm's scale is computed anew in every run.
        epsilon: Of the equivalence test.
        notes: What to know before quoting.
        provenance: Model, seed, whether the examples are new to the circuit.
    """

    curves: tuple[Curve, ...]
    n_examples: int
    n_groups: int
    n_unrun: int
    epsilon: float
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Curve]:
        return iter(self.curves)

    def __getitem__(self, part: str) -> Curve:
        """The curve of a part."""
        for curve in self.curves:
            if curve.part == part:
                return curve
        raise LensSkillsError(
            f"no {part!r} part here. It has: {', '.join(curve.part for curve in self.curves)}."
        )

    def frame(self) -> pd.DataFrame:
        """One row per part and size: part target n_edges faithfulness low high random_low …

        ``random_low`` and ``random_high``: the smallest and largest of the random circuits.
        """
        rows = []
        for curve in self.curves:
            for place, (size, share) in enumerate(zip(curve.sizes, curve.shares, strict=True)):
                drawn = [row[place] for row in curve.random]
                rows.append(
                    {
                        "part": curve.part,
                        "target": curve.target,
                        "n_edges": size,
                        "faithfulness": share.value,
                        "low": share.low,
                        "high": share.high,
                        "random_low": min(drawn, default=float("nan")),
                        "random_mean": float(np.mean(drawn)) if drawn else float("nan"),
                        "random_high": max(drawn, default=float("nan")),
                    }
                )
        return pd.DataFrame(rows)

    def removals(self) -> pd.DataFrame:
        """One row per edge of the circuit: part edge change low high q matters."""
        rows = [
            (curve.part, one.edge, *astuple(one.change), one.q, one.matters)
            for curve in self.curves
            for one in curve.removals
        ]
        columns = ["part", "edge", "change", "low", "high", "q", "matters"]
        return pd.DataFrame(rows, columns=columns)

    def __repr__(self) -> str:
        """A card."""
        lines = [f"faithfulness on {self.n_examples} pairs in {self.n_groups} groups"]
        for curve in self.curves:
            size, of = curve.sizes[-1], curve.n_edges
            same = "within" if curve.equivalent else "not within"
            lines += [
                f"{curve.part} · {curve.target}: {curve.empty:+.3g} without an edge, "
                f"{curve.whole:+.3g} with all {of:,} ({curve.unit})",
                f"  {'faithfulness':<13} {curve.last} with {_edges(size)}; {same} "
                f"±{self.epsilon:g} of 1",
                f"  {'over sizes':<13} mean {curve.area:.2f}, mean distance from 1 "
                f"{curve.distance:.2f} (log axis)",
                f"  {'completeness':<13} {curve.rest} is left with all other edges",
            ]
            if curve.graph is not None:
                lines.append(
                    f"  {'MIB':<13} CPR {curve.graph.cpr:.2f}, CMD {curve.graph.cmd:.2f}: all "
                    f"{curve.graph.n_edges:,} edges ranked, 0.001 … 1 kept"
                )
            if curve.p is not None:
                best = max(row[-1] for row in curve.random)
                lines.append(
                    f"  {'equivalence':<13} p = {curve.p:.2g} against {len(curve.random)} random "
                    f"circuits of that size (largest {best:+.2f})"
                )
            if curve.matter is not None:
                lines.append(
                    f"  {'minimality':<13} {curve.matter:.0%} of the edges change it when removed"
                )
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _edges(n: int) -> str:
    return "1 edge" if n == 1 else f"{n:,} edges"


def faithfulness(
    model: Any,
    examples: Sequence[Example],
    circuit: Circuit,
    *,
    metric: Any = None,
    sizes: Sequence[int] | None = None,
    n_random: int = 20,
    removals: bool = True,
    epsilon: float = EPSILON,
    ranked_on: Sequence[Example] = (),
    prompt: SoftPrompt | None = None,
    chat: Chat = False,
    seed: int = 0,
) -> Faithfulness:
    """What a circuit's confirmed edges do when every other edge carries the corrupted prompt.

    Upstream (and for a behaviour): the corrupted prompt, with the clean one entering at the input
    tokens and at senders whose own inputs were not tested, and travelling along the circuit only.
    Downstream: the clean prompt, with the start's activation corrupted and sent along the circuit
    only, until it has left the nodes whose out-edges were tested. Everything is computed anew;
    nothing is linearised. With all edges the first is the clean prompt exactly, and the second
    the start patched whole; with none both are the other end of the gap.

    - **faithfulness** at each size, strongest edges first: (m(circuit) - m(empty)) / (m(whole) -
      m(empty)), a ratio of means with a cluster-bootstrap interval.
    - **completeness**: the share that is left with all edges *but* the circuit's.
    - **minimality**: each edge removed from the circuit in turn.
    - **equivalence**: random circuits of equal size on the same receivers (downstream: from the
      same senders), their senders taken as they are on the clean prompt, which favours them; and
      whether the circuit lies within ``epsilon`` of the whole.

    An edge of a single neuron is left out where the circuit holds that of its whole MLP.

    Args:
        model: The model the circuit was found in.
        examples: Pairs, best others than those the circuit was found on.
        circuit: From `lens_skills.circuit`.
        metric: Of the answer; None: the circuit's own, by its name.
        sizes: Numbers of edges to run; None: about two per doubling.
        n_random: Random circuits, each at every size.
        removals: Whether to run the circuit without each of its edges.
        epsilon: Of the equivalence test.
        ranked_on: Other pairs than ``examples``, to rank every edge of the graph on by the
            circuit's ``proposals``, for MIB's CPR and CMD of the upstream part (`GraphAreas`).
        prompt, chat: What the circuit was found with.
        seed: Of random circuits and bootstrap.

    Raises:
        LensSkillsError: Nothing confirmed that can run; another model; a gap that includes 0;
            fewer than `FEWEST_GROUPS` groups.

    Source: faithfulness of edges against size: Mueller et al. 2025 (arXiv 2504.13151), whose
    areas are those of `GraphAreas`, not the means over log sizes of `Curve`; faithfulness,
    completeness, minimality: Wang et al. 2022 (arXiv 2211.00593); tests against random circuits:
    Shi et al. 2024 (arXiv 2410.13032).

    Does not show: that the circuit is the only one; many circuits of a size may do as much.
    """
    adapter = with_soft_prompt(model, prompt, chat)
    _same_model(adapter, circuit)
    asked = circuit.metric if metric is None else metric
    answer = AnswerTarget(parse_metric(asked, examples, asked="faithfulness"))
    groups = [example.group for example in examples]
    if len(set(groups)) < FEWEST_GROUPS:
        raise LensSkillsError(
            f"{len(set(groups))} groups of pairs: shares of so few say nothing. Give pairs of "
            f"{FEWEST_GROUPS} groups or more ({FEW_GROUPS} for intervals that hold what they say)."
        )
    caches = paired_caches(ModelWeights(adapter), examples, answer.metric)
    curves: list[Curve] = []
    notes: list[str] = []
    for totals in circuit.totals:
        tested = [edge for edge in circuit.edges if edge.target == totals.target and _runs(edge)]
        held = distinct([edge for edge in tested if edge.confirmed])
        if not held:
            notes.append(f"{totals.part}: no confirmed edge can run")
            continue
        ends_there = totals.part == "upstream" and circuit.start[0].kind != "answer"
        target: Target = upstream_target(circuit, examples) if ends_there else answer
        one = CircuitEvaluation(
            totals.part, held, tuple(tested), circuit.start, target, caches, groups, seed
        )
        curve = one.curve(
            sizes=None if sizes is None else [k for k in sizes if k <= len(held)],
            n_random=n_random,
            removals=removals,
            epsilon=epsilon,
            n_edges=_count(one),
        )
        if ranked_on and one.upstream:
            ranking = paired_caches(caches[0].weights, ranked_on, answer.metric)
            there = upstream_target(circuit, ranked_on) if ends_there else answer
            propose = PROPOSALS.get(circuit.proposals, target_gradients)
            ranked = rank_edges(ranking, there, propose)
            curve = replace(curve, graph=graph_areas(caches, target, ranked))
        curves.append(curve)
    if not curves:
        raise LensSkillsError(
            f"no confirmed edge of {circuit.target}'s circuit can run. Test more (n_edges=, pairs)."
        )
    halves = [circuit.provenance.get(half, {}) for half in ("proposed_on", "tested_on")]
    seen = {one for half in halves for one in half.get("example_ids", ())}
    again = sum(example.id in seen for example in examples)
    if again:
        notes.append(f"{again} of {len(examples)} pairs had part in finding the circuit")
    return Faithfulness(
        curves=tuple(curves),
        n_examples=len(examples),
        n_groups=len(set(groups)),
        n_unrun=sum(not _runs(edge) for edge in circuit.confirmed),
        epsilon=epsilon,
        notes=tuple(notes),
        provenance={
            **provenance(examples, adapter),
            "start": circuit.target,
            "metric": answer.name,
            "seed": seed,
            "example_ids": [example.id for example in examples],
        },
    )


@dataclass(frozen=True, eq=False)
class CircuitEvaluation:
    """What is run, and on what.

    Attributes:
        part: ``"upstream"`` or ``"downstream"``.
        edges: The circuit's that can run, strongest first.
        tested: All that were tested; a sender that is the receiver of none is a source.
        start: The nodes a downstream part begins at.
        target: What is measured.
        caches, groups: The pairs.
        seed: Of bootstrap and random circuits.
    """

    part: str
    edges: tuple[Edge, ...]
    tested: tuple[Edge, ...]
    start: tuple[Node, ...]
    target: Target
    caches: Sequence[PairedCache]
    groups: Sequence[str]
    seed: int

    @property
    def upstream(self) -> bool:
        """Whether the edges lead to the target from below."""
        return self.part == "upstream"

    def alone(self, circuits: Iterable[Edge] = ()) -> EdgeScheme:
        """The scheme in which a circuit runs alone; its edges may be other than those tested."""
        if not self.upstream:
            senders = frozenset(edge.sender for edge in self.tested)
            return EdgeScheme(
                "clean", False, frozenset(self.start), restricted=senders | {*self.start}
            )
        reached = {(edge.receiver, edge.channel) for edge in self.tested}
        senders = {edge.sender for edge in (*self.tested, *circuits)}
        return EdgeScheme(sources=frozenset(n for n in senders if not explored(n, reached)))

    @property
    def without(self) -> EdgeScheme:
        """The scheme in which all edges but the circuit's are there."""
        if self.upstream:
            return EdgeScheme(removed=True)
        return EdgeScheme("clean", False, frozenset(self.start), removed=True)

    def measure(
        self, circuits: Sequence[Sequence[Edge]], scheme: EdgeScheme | None = None
    ) -> Float[Tensor, "set example"]:
        """The target of each set of edges and example."""
        scheme = scheme or self.alone(edge for circuit in circuits for edge in circuit)
        found = []
        for cache in self.caches:
            running = CircuitRun(cache, scheme)
            step = max(1, _ROWS // (len(cache) * cache.n_columns))
            parts = [circuits[k : k + step] for k in range(0, len(circuits), step)]
            found.append(torch.cat([running.measure(part, self.target) for part in parts]))
        return torch.cat(found, dim=1).double()

    def curve(
        self,
        *,
        sizes: Sequence[int] | None,
        n_random: int,
        removals: bool,
        epsilon: float,
        n_edges: int,
    ) -> Curve:
        """Everything there is to know about this part.

        Raises:
            LensSkillsError: Sizes that do not fit, or a gap that includes 0.
        """
        chosen = sizes_of(len(self.edges), sizes)
        prefixes = [self.edges[:size] for size in chosen]
        empty, *at_sizes = self.measure([(), *prefixes])
        whole, rest = self.measure([(), self.edges], self.without)
        gap = whole - empty
        self._need(gap)
        moved = torch.stack([*at_sizes, rest]) - empty
        *shares, left = self._shares(moved, gap)
        low, high = self._interval(moved[[-2]] - gap, gap, 0.9)
        return Curve(
            part=self.part,
            target=self.target.name,
            unit=self.target.unit,
            whole=float(whole.mean()),
            empty=float(empty.mean()),
            sizes=tuple(chosen),
            shares=tuple(shares),
            random=self._random(chosen, n_random, empty, gap),
            rest=left,
            removals=self._removals(gap) if removals else (),
            equivalent=bool(equivalent(low, high, epsilon)),
            n_edges=n_edges,
        )

    def _shares(
        self, moved: Float[Tensor, "set example"], gap: Float[Tensor, " example"]
    ) -> list[Share]:
        value = ClusteredRatio.of(moved, gap.expand_as(moved), self.groups).value
        low, high = self._interval(moved, gap, 0.95)
        rows = zip(value.tolist(), low.tolist(), high.tolist(), strict=True)
        return [Share(*row) for row in rows]

    def _interval(
        self, moved: Float[Tensor, "set example"], gap: Float[Tensor, " example"], level: float
    ) -> tuple[Tensor, Tensor]:
        whole = gap.expand_as(moved)
        return ratio_interval(moved, whole, self.groups, level=level, seed=self.seed)

    def _need(self, gap: Float[Tensor, " example"]) -> None:
        low, high = cluster_interval(gap, self.groups, seed=self.seed)
        if low <= 0 <= high:
            raise LensSkillsError(
                f"a share of {self.target.name} means nothing here: with all edges it is "
                f"{float(gap.mean()):+.3g} [{float(low):+.3g}, {float(high):+.3g}] from without "
                "any, which includes 0. Use more examples, or those on which it is told apart "
                "(task.where)."
            )

    def _random(
        self,
        sizes: Sequence[int],
        n: int,
        empty: Float[Tensor, " example"],
        gap: Float[Tensor, " example"],
    ) -> tuple[tuple[float, ...], ...]:
        circuits = RandomCircuits(self.caches[0].weights, reads_on=self.caches[0].reads_on)
        random = np.random.default_rng(self.seed)
        drawn = [circuits.draw(self.edges, random, upstream=self.upstream) for _ in range(n)]
        if not drawn:
            return ()
        found = self.measure([circuit[:size] for circuit in drawn for size in sizes])
        shares = (found - empty).mean(1) / gap.mean()
        return tuple(tuple(row) for row in shares.reshape(n, len(sizes)).tolist())

    def _removals(self, gap: Float[Tensor, " example"]) -> tuple[Removal, ...]:
        """The circuit without each of its edges in turn, against the circuit."""
        edges = self.edges
        every = [edges, *([*edges[:k], *edges[k + 1 :]] for k in range(len(edges)))]
        whole, *less = self.measure(every)
        change = torch.stack(less) - whole
        q = false_discovery_q(cluster_p(change, self.groups)).tolist()
        return tuple(
            Removal(str(edge), share, q[k], q[k] <= ALPHA and (share.low > 0 or share.high < 0))
            for k, (edge, share) in enumerate(zip(edges, self._shares(change, gap), strict=True))
        )


def distinct(edges: Sequence[Edge]) -> tuple[Edge, ...]:
    """The edges without those of single neurons that an edge of their whole MLP holds already."""
    keys = {edge.key for edge in edges}

    def whole(node: Node) -> Node:
        return Node(node.layer, "mlp", None, node.position) if node.kind == "neuron" else node

    def held(edge: Edge) -> bool:
        sender, receiver, channel = edge.key
        wider = {
            (a, b, channel) for a in (sender, whole(sender)) for b in (receiver, whole(receiver))
        }
        return bool((wider - {edge.key}) & keys)

    return tuple(edge for edge in edges if not held(edge))


def sizes_of(n: int, asked: Sequence[int] | None) -> list[int]:
    """Sizes of nested circuits, about two per doubling; the last is all ``n`` edges.

    >>> sizes_of(20, None)
    [1, 2, 3, 4, 6, 8, 12, 16, 20]
    """
    if asked is None:
        powers = [2**k * m // 2 for k in range(1, 20) for m in (1, 2, 3)]
        return sorted({k for k in powers if 1 <= k < n} | {n})
    if any(not 1 <= size <= n for size in asked) or list(asked) != sorted(set(asked)):
        raise LensSkillsError(
            f"sizes {list(asked)} of a circuit of {n} edges. Give rising numbers from 1 to {n}."
        )
    return sorted({*asked, n})


def explored(sender: Node, reached: Iterable[tuple[Node, str]]) -> bool:
    """Whether edges into the node were tested, so that it is not taken as it is.

    >>> keys = Node(5, "head", 3, "-4", width=3), "K"  # of heads 3 to 5, at position -4
    >>> explored(Node(5, "head", 4, "-1"), [keys]), explored(Node(5, "head", 6, "-1"), [keys])
    (True, False)
    """
    mlp = Node(sender.layer, "mlp", None, sender.position)
    for node, channel in reached:
        if node.layer != sender.layer:
            continue
        if node.kind == sender.kind == "head":
            first = node.index or 0
            inside = first <= (sender.index or 0) < first + node.width
            seen = node.column <= sender.column if channel in "KV" else node.column == sender.column
            if inside and seen:
                return True
        elif node == sender or (sender.kind == "neuron" and node == mlp):
            return True
    return False


def _runs(edge: Edge) -> bool:
    """The scale of a norm is computed anew in every run: it is no edge there."""
    return edge.sender.kind != "norm" and edge.channel != "scale"


def _count(one: CircuitEvaluation) -> int:
    """How many edges the whole graph has, or its part behind the nodes that are restricted."""
    graph = RandomCircuits(one.caches[0].weights, reads_on=one.caches[0].reads_on)
    if one.upstream:
        n_columns = max(cache.n_columns for cache in one.caches)
        return graph.count(n_columns, stop=one.target.stop)
    return sum(len(graph.channels(node)) for node in one.alone().restricted or ())


def _same_model(adapter: Any, circuit: Circuit) -> None:
    check_reading(circuit.provenance, adapter, "the circuit")
    if circuit.provenance.get("model_fingerprint") not in (None, adapter.fingerprint()):
        raise LensSkillsError(
            f"the circuit was found in {circuit.provenance.get('model')}, and this is another "
            f"model or other weights ({adapter.name}). Its edges mean nothing here."
        )
