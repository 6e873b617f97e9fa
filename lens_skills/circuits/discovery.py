"""`Search`: stage by stage, edges proposed on one half of the pairs and tested on the other.

`assemble`: a finished search as a `Circuit`: decisions, accounts, tables, provenance.

`circuit`: proposed on one half of the pairs, confirmed edge by edge on the other.

`weigh`: effects per example as edges with intervals, p-values and a decision.

`PROPOSALS`: the ways in which edges are proposed, by name.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import Metric, logit_diff, parse_metrics
from lens_skills.activations.stream import BATCH_SIZE
from lens_skills.circuits.decomposition import upstream_frame
from lens_skills.circuits.edge_attribution import (
    CandidateEdge,
    EdgeSums,
    TargetGradients,
    channels_of,
    gradient_slopes,
    integrated_points,
    into,
    out_of,
    rank,
    relevance_slopes,
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
from lens_skills.errors import LensSkillsError
from lens_skills.models import SoftPrompt, prompted
from lens_skills.models.weights import ModelWeights
from lens_skills.results import examples_hash, versions
from lens_skills.stats.bootstrap import FEW_GROUPS, cluster_interval
from lens_skills.stats.effect_tests import cluster_p
from lens_skills.stats.multiple_testing import false_discovery_q

ALPHA = 0.05


def weigh(
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


def decide(edges: Sequence[Edge], *, alpha: float = ALPHA) -> list[Edge]:
    """The edges with q over all of them, and whether each holds.

    Confirmed: q <= alpha and an interval that does not hold 0.
    """
    q = false_discovery_q(torch.tensor([float(edge.p or 0.0) for edge in edges]).double())
    return [
        replace(edge, q=float(q[k]), confirmed=float(q[k]) <= alpha and _away(edge))
        for k, edge in enumerate(edges)
    ]


def _away(edge: Edge) -> bool:
    assert edge.low is not None
    assert edge.high is not None
    return edge.low > 0 or edge.high < 0


PROPOSALS: Mapping[str, Callable[[PairedCache, Target], TargetGradients]] = {
    "attribution": gradient_slopes,
    "integrated": partial(gradient_slopes, points=integrated_points()),
    "relevance": relevance_slopes,
}
"""Gradient at the clean prompt; mean gradient on the way to the corrupted one; relevance."""


def check_proposals(name: str) -> None:
    """Nothing; raises for a way of proposing there is none of."""
    if name not in PROPOSALS:
        near = difflib.get_close_matches(str(name), PROPOSALS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise LensSkillsError(
            f"no way to propose edges called {name!r}.{hint} Choose from: {', '.join(PROPOSALS)}."
        )


_FOLLOWED = 16
"""Confirmed nodes, the strongest first, whose own edges a further depth looks at."""


class CircuitSearch:
    """What has been proposed and tested so far.

    Attributes:
        first, second: The half that proposes and the half that tests.
        groups: Of the examples that test.
        start: Where the circuit starts.
        answer: The metric.
        edges: Every edge tested, in the order of testing.
        accounts: The totals they are to explain, as far as known.
    """

    def __init__(
        self,
        first: Sequence[PairedCache],
        second: Sequence[PairedCache],
        groups: Sequence[str],
        start: StartNodes,
        metric: Metric,
        *,
        proposals: str,
        n_edges: int,
        n_draws: int,
        seed: int,
    ) -> None:
        self.first, self.second, self.groups = first, second, groups
        self.start, self.proposals, self.n_edges = start, proposals, n_edges
        self.options: dict[str, Any] = {"n_draws": n_draws, "seed": seed}
        self.metric = metric
        target = start.target
        self.answer = (
            target if isinstance(target, AnswerTarget) else AnswerTarget(metric, metric.name)
        )
        self.edges: list[Edge] = []
        self.effects: dict[tuple[Node, Node, str, str], Float[Tensor, " example"]] = {}
        self.accounts: list[Totals] = []
        self._slopes: dict[str, list[TargetGradients]] = {}

    def upstream(self, depth: int) -> None:
        """Edges into the start, into what sends them, and so on."""
        target = self.start.target
        slopes = self._slopes_of(target)  # first of all: a metric without a gradient ends here
        changes = together([whole_input(cache, target) for cache in self.second])
        total = self._account("upstream", target, changes)
        receivers, seen = list(self.start.nodes), set(self.start.nodes)
        for _ in range(depth):
            channels = dict.fromkeys(
                channel for node in receivers for channel in channels_of(self._widest, node)
            )
            sums = [
                into(cache, [c for c in channels if self._inside(cache, c[0])], slope)
                for cache, slope in zip(self.first, slopes, strict=True)
            ]
            tested = self._test(target, total, sums)
            receivers = self._follow(tested, lambda edge: edge.sender, seen)

    def downstream(self, depth: int) -> None:
        """Edges out of the start, out of what receives them, and so on to the answer."""
        nodes = self.start.nodes
        changes = together([whole_output(s, self.answer, nodes) for s in self.second])
        total = self._account("downstream", self.answer, changes)
        senders, seen = list(nodes), set(nodes)
        for _ in range(depth):
            sums = [
                self._leaving(cache, senders, slopes)
                for cache, slopes in zip(self.first, self._slopes_of(self.answer), strict=True)
            ]
            tested = self._test(self.answer, total, sums)
            senders = self._follow(tested, lambda edge: edge.receiver, seen)

    def _leaving(
        self, cache: PairedCache, senders: Sequence[Node], slopes: TargetGradients
    ) -> EdgeSums:
        total = EdgeSums()
        for sender in senders:
            total = total + out_of(cache, sender, slopes)
        own = set(self.start.nodes)
        total = replace(total, one={p: v for p, v in total.one.items() if p[1] not in own})
        for (_, layer, _), values in total.receivers.items():
            for node in own:
                if node.kind == "neuron" and node.layer == layer:
                    values[node.index] = 0.0  # held at its corrupted activation in the whole
        return total

    @property
    def _widest(self) -> PairedCache:
        return max(self.second, key=lambda cache: cache.n_columns)

    def _inside(self, cache: PairedCache, node: Node) -> bool:
        return -cache.n_columns <= node.column

    def _slopes_of(self, target: Target) -> list[TargetGradients]:
        if target.name not in self._slopes:
            propose = PROPOSALS[self.proposals]
            self._slopes[target.name] = [propose(cache, target) for cache in self.first]
        return self._slopes[target.name]

    def _account(self, part: str, target: Target, changes: Float[Tensor, " example"]) -> float:
        low, high = cluster_interval(changes, self.groups, **self.options)
        clean = together([clean_value(cache, target)[0] for cache in self.second])
        total = float(changes.mean())
        account = Totals(
            target.name,
            part,
            target.unit,
            float(clean.mean()),
            total,
            float(low),
            float(high),
            0,
            0,
        )
        if not isfinite(account.low):
            raise LensSkillsError(
                f"{len(set(self.groups))} groups are left to test edges on: too few for an "
                "interval. Give more pairs, of more groups (60 for honest intervals)."
            )
        if part == "upstream" and account.low <= 0 <= account.high:
            raise LensSkillsError(
                f"the corruption does not move {target.name}: mean change {total:+.3g} "
                f"[{account.low:+.3g}, {account.high:+.3g}] {target.unit}. So there is nothing "
                "whose way could be traced. Choose other pairs, or a neuron that tells these apart."
            )
        self.accounts.append(account)
        return total

    def _test(self, target: Target, total: float, sums: Sequence[EdgeSums]) -> list[Edge]:
        """One stage: the strongest proposals that are new, patched one by one."""
        n_examples = sum(len(cache) for cache in self.first)
        known = {edge.key for edge in self.edges if edge.target == target.name}
        found = rank(sums, n_examples, self.n_edges + len(known))
        fresh = [c for c in found if c.path not in known][: self.n_edges]
        effects = self.exact(target, [candidate.path for candidate in fresh])
        edges = [_edge(candidate, target) for candidate in fresh]
        tested = weigh(edges, effects, self.groups, total, **self.options)
        for edge, values in zip(tested, effects, strict=True):
            self.effects[(*edge.key, target.name)] = values
        self.edges += tested
        return tested

    def exact(
        self, target: Target, paths: Sequence[tuple[Node, Node, str]]
    ) -> Float[Tensor, "path example"]:
        """Path patching on the testing half; 0 where an example has no such position."""
        parts = []
        for cache in self.second:
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
        edges = [edge for edge in decide(self.edges) if edge.confirmed]
        keys = {edge.key for edge in tested}
        for edge in sorted(edges, key=lambda edge: -edge.strength):
            for node in _steps(end(edge), edge):
                if edge.key in keys and node not in seen and len(found) < _FOLLOWED:
                    seen.add(node)
                    found.append(node)
        return found


def _edge(candidate: CandidateEdge, target: Target) -> Edge:
    sender, receiver, channel = candidate.path
    return Edge(sender, receiver, channel, target.name, candidate.estimate)  # type: ignore[arg-type]


def _steps(node: Node, edge: Edge) -> list[Node]:
    """The nodes to go on from: heads one by one, and where they write to the answer."""
    if node.kind in ("token", "norm", "answer"):
        return []
    if node.kind != "head" or node != edge.receiver or edge.channel == "Q":
        return [node]
    index = node.index or 0
    # A key or value is read by later queries; what counts at the answer is the last of them.
    return [Node(node.layer, "head", index + k, "-1") for k in range(node.width)]


def assemble(
    search: CircuitSearch,
    examples: Sequence[Example],
    first: Sequence[Example],
    second: Sequence[Example],
) -> Circuit:
    """The circuit, its edges judged together."""
    edges = decide(search.edges)
    edges.sort(key=lambda edge: -abs(edge.share or 0.0))
    accounts = tuple(_settled(account, edges, search) for account in search.accounts)
    target, adapter = search.start.target, search.second[0].adapter
    upstream = pd.DataFrame()
    notes = list(search.start.notes)
    if not isinstance(target, AnswerTarget) and search.start.nodes[0].kind == "neuron":
        upstream, agreement = upstream_frame(search.second, target)
        notes += [
            f"rank agreement of the linear parts with exact path patching: {value:.2f} ({name})"
            for name, value in agreement.items()
        ]
    for account in accounts:
        if account.low <= 0 <= account.high:
            notes.append(
                f"as a whole, {target.name} does not move {account.target} clearly: "
                f"{account.total:+.3g} [{account.low:+.3g}, {account.high:+.3g}] {account.unit}"
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
        accounts=accounts,
        upstream=upstream,
        downstream=_downstream(edges, accounts, search),
        n_examples=len(second),
        n_groups=n_groups,
        proposals=search.proposals,
        notes=tuple(notes),
        provenance={
            "model": adapter.name,
            "model_fingerprint": adapter.fingerprint(),
            "implementation": adapter.implementation,
            "task": getattr(examples, "name", "examples"),
            "split": getattr(examples, "split_name", "all"),
            "examples": examples_hash(examples),
            "proposed_on": _half(first),
            "tested_on": _half(second),
            "target": search.start.rule,
            "n_edges": search.n_edges,
            **search.options,
            "versions": versions(),
        },
    )


def _half(examples: Sequence[Example]) -> dict[str, Any]:
    return {
        "n": len(examples),
        "groups": sorted({example.group for example in examples}),
        "example_ids": [example.id for example in examples],
    }


def at_start(edge: Edge, account: Totals, search: CircuitSearch) -> bool:
    """Whether an edge belongs to an account's sum: at the start, and no part of another edge.

    A neuron's edge is a part of its MLP's, so it is left out of the sum.
    """
    nodes = {(n.layer, n.kind, n.index) for n in search.start.nodes}
    if edge.target != account.target:
        return False
    if account.part == "downstream":
        return edge.sender in search.start.nodes and edge.receiver.kind != "neuron"
    if edge.sender.kind == "neuron":
        return False
    receiver = edge.receiver
    if receiver.kind != "head" or receiver.width == 1:
        return (receiver.layer, receiver.kind, receiver.index) in nodes
    shared = range(receiver.index or 0, (receiver.index or 0) + receiver.width)
    return any((receiver.layer, "head", index) in nodes for index in shared)


def _settled(account: Totals, edges: Sequence[Edge], search: CircuitSearch) -> Totals:
    sums = [
        sum(edge.effect or 0.0 for edge in edges if at_start(edge, account, search) and keep(edge))
        for keep in (lambda edge: edge.confirmed, lambda edge: True)
    ]
    return replace(account, explained=float(sums[0]), tested=float(sums[1]))


def _downstream(
    edges: Sequence[Edge], accounts: Sequence[Totals], search: CircuitSearch
) -> pd.DataFrame:
    """First edges out of the start, their sum, the whole effect, and what is left."""
    rows: list[dict[str, Any]] = []
    for account in accounts:
        if account.part != "downstream":
            continue
        for edge in edges:
            if at_start(edge, account, search):
                kind = "direct" if edge.receiver.kind == "answer" else "mediated"
                rows.append({**edge.row(), "kind": kind})
        total = {"effect": account.total, "low": account.low, "high": account.high}
        rows += [
            {"kind": "sum of confirmed", "effect": account.explained},
            {"kind": "sum of tested", "effect": account.tested},
            {"kind": "total", **total},
            {"kind": "residual", "effect": account.residual},
        ]
    return pd.DataFrame(rows)


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
    batch_size: int = BATCH_SIZE,
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
        proposals: ``"attribution"``, ``"integrated"`` or ``"relevance"``; see `gradient_slopes`
            and `relevance_slopes`.
        n_edges: How many edges to test per stage: into the start, into the confirmed senders
            (once per further depth), out of the start, and on from there.
        depth: 1: edges into and out of the start. 2: also into the confirmed senders and out of
            the confirmed receivers (the 16 strongest); and so on.
        position: Where the start is, counted from the end.
        prompt: A soft prompt to read every example with.
        n_draws: Bootstrap draws of the intervals.
        seed: Of the halves and draws.
        batch_size: Pairs at once.

    Raises:
        LensSkillsError: Pairs that are none, or differ in length; fewer than four groups; a start
            this model does not have, or that the corruption does not move; a metric without a
            gradient, or of answers of several tokens; a model whose parts do not add up.

    Source: Goldowsky-Dill et al. 2023 (arXiv 2304.05969) for path patching; Syed et al. 2023
    (arXiv 2310.10348) for proposing edges by a gradient.

    Does not show: edges that were not proposed, which the unexplained share is for; edges that
    act only together; what happens on other prompts or under another corruption.
    """
    check_proposals(proposals)
    check_twins(examples)
    adapter = prompted(model, prompt)
    (wanted,) = parse_metrics(logit_diff() if metric is None else metric)
    nodes = parse_start(adapter, start, position)
    if n_edges < 1 or depth < 1:
        raise LensSkillsError(f"n_edges={n_edges} and depth={depth} must be at least 1.")
    first, second = halves(examples, seed)
    anatomy = ModelWeights(adapter)
    proposing = paired_caches(anatomy, first, wanted, batch_size=batch_size)
    testing = paired_caches(anatomy, second, wanted, batch_size=batch_size)
    begun = orient(nodes, proposing, examples, wanted)
    search = CircuitSearch(
        proposing,
        testing,
        [example.group for example in second],
        begun,
        wanted,
        proposals=proposals,
        n_edges=n_edges,
        n_draws=n_draws,
        seed=seed,
    )
    search.upstream(depth)
    if nodes[0].kind != "answer":
        search.downstream(depth)
    return assemble(search, examples, first, second)
