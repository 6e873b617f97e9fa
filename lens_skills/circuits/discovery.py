"""`circuit`: edges proposed on one half of the pairs and confirmed, one by one, on the other.

A `CircuitSearch` goes stage by stage: `PROPOSALS` name edges on the first half, exact path patching
gives each an effect per example on the second, and all p-values are adjusted together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import isfinite
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import Metric, logit_diff, parse_metric
from lens_skills.circuits.decomposition import upstream_frame
from lens_skills.circuits.edge_attribution import (
    EdgeSums,
    TargetGradients,
    channels_of,
    edges_into,
    edges_out_of,
    integrated_points,
    relevance_gradients,
    strongest_edges,
    target_gradients,
)
from lens_skills.circuits.graph import Circuit, Edge, Node, Totals
from lens_skills.circuits.paired_cache import PairedCache, check_twins, paired_caches
from lens_skills.circuits.path_patching import (
    clean_value,
    path_effects,
    together,
    whole_input,
    whole_output,
)
from lens_skills.circuits.targets import AnswerTarget, StartNodes, Target, orient, parse_start
from lens_skills.data import Example, halves
from lens_skills.errors import LensSkillsError, did_you_mean
from lens_skills.models import SoftPrompt, with_soft_prompt
from lens_skills.models.weights import ModelWeights
from lens_skills.results import provenance
from lens_skills.stats.effect_tests import FEW_GROUPS, beyond, cluster_interval, cluster_p
from lens_skills.stats.multiple_testing import false_discovery_q

ALPHA = 0.05

PROPOSALS: Mapping[str, Callable[[PairedCache, Target], TargetGradients]] = {
    "attribution": target_gradients,
    "integrated": partial(target_gradients, points=integrated_points()),
    "relevance": relevance_gradients,
}
"""Gradient at the clean prompt; mean gradient on the way to the corrupted one; relevance."""

_FOLLOWED = 16
"""Confirmed nodes, the strongest first, whose own edges a further depth looks at."""


def circuit(
    model: Any,
    examples: Sequence[Example],
    start: Any = "answer",
    *,
    metric: Any = None,
    proposals: str = "attribution",
    n_edges: int = 60,
    depth: int = 2,
    position: str | int = "last",
    prompt: SoftPrompt | None = None,
    n_draws: int = 2000,
    seed: int = 0,
) -> Circuit:
    """The edges through which something is moved and moves the answer, each with an error bar.

    Half of the groups of pairs propose edges, by a gradient or by relevance; on the other half
    each is tested alone by exact path patching (`path_effects`), and the p-values of all edges
    tested are adjusted together (Benjamini-Hochberg).

    Args:
        model: A HookedTransformer or TransformerBridge.
        examples: Pairs: examples whose ``corrupted`` twin has as many tokens.
        start: A neuron or head (``"L17N635"``, ``"L9H3"``), a list of those, or ``"answer"``.
        metric: What the answer is measured by; default ``logit_diff()``.
        proposals: ``"attribution"``, ``"integrated"`` or ``"relevance"``; see `target_gradients`
            and `relevance_gradients`.
        n_edges: How many edges to test per stage: into the start, into the confirmed senders
            (once per further depth), out of the start, and on from there.
        depth: 1: edges into and out of the start. 2: also into the confirmed senders and out of
            the confirmed receivers (the 16 strongest); and so on.
        position: Where the start is, counted from the end.
        prompt: A soft prompt to read every example with.
        n_draws: Bootstrap draws of the intervals.
        seed: Of the halves and draws.

    Raises:
        LensSkillsError: Pairs that are none, or differ in length; fewer than four groups; a start
            this model does not have, or that the corruption does not move; a metric without a
            gradient, or of answers of several tokens; a model whose parts do not add up.

    Source: Goldowsky-Dill et al. 2023 (arXiv 2304.05969) for path patching; Syed et al. 2023
    (arXiv 2310.10348) for proposing edges by a gradient.

    Does not show: edges that were not proposed, which the unexplained share is for; edges that
    act only together; what happens on other prompts or under another corruption.
    """
    if proposals not in PROPOSALS:
        raise LensSkillsError(
            f"no way to propose edges called {proposals!r}."
            f"{did_you_mean(str(proposals), PROPOSALS)} Choose from: {', '.join(PROPOSALS)}."
        )
    check_twins(examples)
    adapter = with_soft_prompt(model, prompt)
    wanted = parse_metric(logit_diff() if metric is None else metric, examples, asked="circuit")
    nodes = parse_start(adapter, start, position)
    if n_edges < 1 or depth < 1:
        raise LensSkillsError(f"n_edges={n_edges} and depth={depth} must be at least 1.")
    first, second = proposing_and_testing(examples, seed)
    weights = ModelWeights(adapter)
    proposing, testing = (paired_caches(weights, half, wanted) for half in (first, second))
    search = CircuitSearch(
        proposing,
        testing,
        [example.group for example in second],
        orient(nodes, proposing, examples, wanted),
        wanted,
        proposals=proposals,
        n_edges=n_edges,
        n_draws=n_draws,
        seed=seed,
    )
    search.upstream(depth)
    if nodes[0].kind != "answer":
        search.downstream(depth)
    return _assemble(search, examples, first, second)


@dataclass(eq=False)
class CircuitSearch:
    """What has been proposed and tested so far.

    Attributes:
        proposing, testing: The half that proposes and the half that tests.
        groups: Of the examples that test.
        start: Where the circuit starts.
        metric: Of the answer.
        proposals, n_edges, n_draws, seed: As in `circuit`.
        edges: Every edge tested, in the order of testing.
        totals: What they are to explain, as far as known.
    """

    proposing: Sequence[PairedCache]
    testing: Sequence[PairedCache]
    groups: Sequence[str]
    start: StartNodes
    metric: Metric
    proposals: str
    n_edges: int
    n_draws: int
    seed: int
    edges: list[Edge] = field(default_factory=list)
    totals: list[Totals] = field(default_factory=list)
    _gradients: dict[str, list[TargetGradients]] = field(default_factory=dict)

    @cached_property
    def answer(self) -> AnswerTarget:
        """The metric as a target."""
        target = self.start.target
        if isinstance(target, AnswerTarget):
            return target
        return AnswerTarget(self.metric)

    def upstream(self, depth: int) -> None:
        """Edges into the start, into what sends them, and so on."""
        target = self.start.target
        # First of all: a metric without a gradient ends here.
        gradients = self._gradients_of(target)
        changes = together([whole_input(cache, target) for cache in self.testing])
        total = self._add_totals("upstream", target, changes)
        receivers, seen = list(self.start.nodes), set(self.start.nodes)
        widest = max(self.testing, key=lambda cache: cache.n_columns)
        for _ in range(depth):
            channels = dict.fromkeys(
                channel for node in receivers for channel in channels_of(widest, node)
            )
            sums = [
                edges_into(cache, [c for c in channels if self._inside(cache, c[0])], gradient)
                for cache, gradient in zip(self.proposing, gradients, strict=True)
            ]
            tested = self._test(target, total, sums)
            receivers = self._follow(tested, lambda edge: edge.sender, seen)

    def downstream(self, depth: int) -> None:
        """Edges out of the start, out of what receives them, and so on to the answer."""
        nodes = self.start.nodes
        changes = together([whole_output(s, self.answer, nodes) for s in self.testing])
        total = self._add_totals("downstream", self.answer, changes)
        senders, seen = list(nodes), set(nodes)
        for _ in range(depth):
            sums = [
                self._leaving(cache, senders, gradients)
                for cache, gradients in zip(
                    self.proposing, self._gradients_of(self.answer), strict=True
                )
            ]
            tested = self._test(self.answer, total, sums)
            senders = self._follow(tested, lambda edge: edge.receiver, seen)

    def _leaving(
        self, cache: PairedCache, senders: Sequence[Node], gradients: TargetGradients
    ) -> EdgeSums:
        total = EdgeSums()
        for sender in senders:
            total = total + edges_out_of(cache, sender, gradients)
        own = set(self.start.nodes)
        total = replace(total, one={p: v for p, v in total.one.items() if p[1] not in own})
        for (_, layer, _), values in total.receivers.items():
            for node in own:
                if node.kind == "neuron" and node.layer == layer:
                    values[node.index] = 0.0  # held at its corrupted activation in the whole
        return total

    def _inside(self, cache: PairedCache, node: Node) -> bool:
        return -cache.n_columns <= node.column

    def _gradients_of(self, target: Target) -> list[TargetGradients]:
        if target.name not in self._gradients:
            propose = PROPOSALS[self.proposals]
            self._gradients[target.name] = [propose(cache, target) for cache in self.proposing]
        return self._gradients[target.name]

    def _add_totals(self, part: str, target: Target, changes: Float[Tensor, " example"]) -> float:
        ends = cluster_interval(changes, self.groups, n_draws=self.n_draws, seed=self.seed)
        low, high = map(float, ends)
        clean = float(together([clean_value(cache, target)[0] for cache in self.testing]).mean())
        total = float(changes.mean())
        if not isfinite(low):
            raise LensSkillsError(
                f"{len(set(self.groups))} groups are left to test edges on: too few for an "
                "interval. Give more pairs, of more groups (60 for honest intervals)."
            )
        if part == "upstream" and low <= 0 <= high:
            raise LensSkillsError(
                f"the corruption does not move {target.name}: mean change {total:+.3g} "
                f"[{low:+.3g}, {high:+.3g}] {target.unit}. So there is nothing "
                "whose way could be traced. Choose other pairs, or a neuron that tells these apart."
            )
        self.totals.append(Totals(target.name, part, target.unit, clean, total, low, high, 0, 0))
        return total

    def _test(self, target: Target, total: float, sums: Sequence[EdgeSums]) -> list[Edge]:
        """One stage: the strongest proposals that are new, patched one by one."""
        n_examples = sum(len(cache) for cache in self.proposing)
        known = {edge.key for edge in self.edges if edge.target == target.name}
        found = strongest_edges(sums, n_examples, self.n_edges + len(known))
        fresh = [(path, value) for path, value in found.items() if path not in known]
        fresh = fresh[: self.n_edges]
        effects = self._effects(target, [path for path, _ in fresh])
        edges = [Edge(*path, target.name, estimate) for path, estimate in fresh]  # type: ignore[arg-type]
        tested = edge_statistics(
            edges, effects, self.groups, total, n_draws=self.n_draws, seed=self.seed
        )
        self.edges += tested
        return tested

    def _effects(
        self, target: Target, paths: Sequence[tuple[Node, Node, str]]
    ) -> Float[Tensor, "path example"]:
        """Path patching on the testing half; 0 where an example has no such position."""
        parts = []
        for cache in self.testing:
            values = torch.zeros(len(paths), len(cache), dtype=torch.float64)
            here = [k for k, path in enumerate(paths) if self._inside(cache, path[1])]
            if here:
                values[here] = path_effects(cache, target, [paths[k] for k in here])
            parts.append(values)
        return torch.cat(parts, dim=1)

    def _follow(
        self, tested: Sequence[Edge], end: Callable[[Edge], Node], seen: set[Node]
    ) -> list[Node]:
        """The strongest new nodes at an end of confirmed edges."""
        found: list[Node] = []
        if not tested:
            return found
        edges = [edge for edge in confirm(self.edges) if edge.confirmed]
        keys = {edge.key for edge in tested}
        for edge in sorted(edges, key=lambda edge: -edge.strength):
            for node in _steps(end(edge), edge):
                if edge.key in keys and node not in seen and len(found) < _FOLLOWED:
                    seen.add(node)
                    found.append(node)
        return found


def _steps(node: Node, edge: Edge) -> list[Node]:
    """The nodes to go on from: heads one by one, and where they write to the answer."""
    if node.kind in ("token", "norm", "answer"):
        return []
    if node.kind != "head" or node != edge.receiver or edge.channel == "Q":
        return [node]
    index = node.index or 0
    # A key or value is read by later queries; what counts at the answer is the last of them.
    return [Node(node.layer, "head", index + k, "-1") for k in range(node.width)]


def edge_statistics(
    edges: Sequence[Edge],
    effects: Float[Tensor, "edge example"],
    groups: Sequence[str],
    total: float,
    *,
    n_draws: int = 2000,
    seed: int = 0,
) -> list[Edge]:
    """The edges with effect, share of the total (None where that is 0), interval and p."""
    if not edges:
        return []
    low, high = cluster_interval(effects, groups, n_draws=n_draws, seed=seed)
    p = cluster_p(effects, groups)
    return [
        replace(
            edge,
            effect=float(effects[k].mean()),
            share=float(effects[k].mean()) / total if total else None,
            low=float(low[k]),
            high=float(high[k]),
            p=float(p[k]),
        )
        for k, edge in enumerate(edges)
    ]


def confirm(edges: Sequence[Edge], *, alpha: float = ALPHA) -> list[Edge]:
    """The edges with q over all of them, and whether each holds.

    Confirmed: q <= alpha and an interval that does not hold 0.
    """
    q = false_discovery_q(torch.tensor([float(edge.p or 0.0) for edge in edges]).double())
    return [
        replace(edge, q=value, confirmed=value <= alpha and _beyond_zero(edge))
        for edge, value in zip(edges, q.tolist(), strict=True)
    ]


def _beyond_zero(edge: Edge) -> bool:
    assert edge.low is not None
    assert edge.high is not None
    return beyond(edge.low, edge.high, 0.0) != 0


def _assemble(
    search: CircuitSearch,
    examples: Sequence[Example],
    first: Sequence[Example],
    second: Sequence[Example],
) -> Circuit:
    """The circuit, its edges decided together."""
    edges = confirm(search.edges)
    edges.sort(key=lambda edge: -abs(edge.share or 0.0))
    totals = tuple(_settled(each, edges, search) for each in search.totals)
    target, adapter = search.start.target, search.testing[0].adapter
    upstream = pd.DataFrame()
    notes = list(search.start.notes)
    if not isinstance(target, AnswerTarget) and search.start.nodes[0].kind == "neuron":
        upstream, agreement = upstream_frame(search.testing, target)
        notes += [
            f"rank agreement of the linear parts with exact path patching: {value:.2f} ({name})"
            for name, value in agreement.items()
        ]
    for each in totals:
        if each.low <= 0 <= each.high:
            notes.append(
                f"as a whole, {target.name} does not move {each.target} clearly: "
                f"{each.total:+.3g} [{each.low:+.3g}, {each.high:+.3g}] {each.unit}"
            )
    n_groups = len(set(search.groups))
    if n_groups < FEW_GROUPS:
        notes.append(
            f"{n_groups} groups test: below {FEW_GROUPS}, intervals cover less than they say"
        )
    return Circuit(
        start=search.start.nodes,
        target=target.name,
        metric=search.metric.name,
        unit=search.metric.unit,
        edges=tuple(edges),
        totals=totals,
        upstream=upstream,
        downstream=_downstream(edges, totals, search),
        n_examples=len(second),
        n_groups=n_groups,
        proposals=search.proposals,
        notes=tuple(notes),
        provenance={
            **provenance(examples, adapter),
            "implementation": adapter.implementation,
            "proposed_on": _half(first),
            "tested_on": _half(second),
            "target": search.start.rule,
            "n_edges": search.n_edges,
            "n_draws": search.n_draws,
            "seed": search.seed,
        },
    )


def _half(examples: Sequence[Example]) -> dict[str, Any]:
    return {
        "n": len(examples),
        "groups": sorted({example.group for example in examples}),
        "example_ids": [example.id for example in examples],
    }


def _at_start(edge: Edge, totals: Totals, search: CircuitSearch) -> bool:
    """Whether an edge belongs to such a sum: at the start, and no part of another edge.

    A neuron's edge is a part of its MLP's, so it is left out of the sum.
    """
    nodes = {(n.layer, n.kind, n.index) for n in search.start.nodes}
    if edge.target != totals.target:
        return False
    if totals.part == "downstream":
        return edge.sender in search.start.nodes and edge.receiver.kind != "neuron"
    if edge.sender.kind == "neuron":
        return False
    receiver = edge.receiver
    if receiver.kind != "head" or receiver.width == 1:
        return (receiver.layer, receiver.kind, receiver.index) in nodes
    shared = range(receiver.index or 0, (receiver.index or 0) + receiver.width)
    return any((receiver.layer, "head", index) in nodes for index in shared)


def _settled(totals: Totals, edges: Sequence[Edge], search: CircuitSearch) -> Totals:
    sums = [
        sum(edge.effect or 0.0 for edge in edges if _at_start(edge, totals, search) and keep(edge))
        for keep in (lambda edge: edge.confirmed, lambda edge: True)
    ]
    return replace(totals, explained=float(sums[0]), tested=float(sums[1]))


def _downstream(
    edges: Sequence[Edge], parts: Sequence[Totals], search: CircuitSearch
) -> pd.DataFrame:
    """First edges out of the start, their sum, the whole effect, and what is left."""
    rows: list[dict[str, Any]] = []
    for totals in parts:
        if totals.part != "downstream":
            continue
        for edge in edges:
            if _at_start(edge, totals, search):
                kind = "direct" if edge.receiver.kind == "answer" else "mediated"
                rows.append({**edge.row(), "kind": kind})
        rows += [
            {"kind": "sum of confirmed", "effect": totals.explained},
            {"kind": "sum of tested", "effect": totals.tested},
            {"kind": "total", "effect": totals.total, "low": totals.low, "high": totals.high},
            {"kind": "residual", "effect": totals.residual},
        ]
    return pd.DataFrame(rows)


def proposing_and_testing(
    examples: Sequence[Example], seed: int
) -> tuple[list[Example], list[Example]]:
    """The examples that propose edges and those that test them: no group is in both.

    Raises:
        LensSkillsError: Fewer than four groups.
    """
    groups = [example.group for example in examples]
    n_groups = len(set(groups))
    if n_groups < 4:
        raise LensSkillsError(
            f"{n_groups} groups of examples, and edges are proposed on one half of them and "
            "tested on the other: at least four are needed, 60 for honest intervals."
        )
    first, second = halves(groups, seed=seed, even="groups")
    return [examples[row] for row in first.tolist()], [examples[row] for row in second.tolist()]
