"""`circuit`: edges proposed on one half of the pairs and confirmed, one by one, on the other.

A `CircuitSearch` goes stage by stage: `PROPOSALS` name edges on the first half, exact path patching
gives each, and random ones beside them, an effect per example on the second; `decide` says what
each is called.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from os import PathLike
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import Metric, logit_diff, parse_metric
from lens_skills.checkpoints import resumable
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
from lens_skills.circuits.edge_tests import (
    EPSILON,
    N_RANDOM,
    RandomEdges,
    decide,
    decide_random,
    edge_statistics,
    mean_effects,
)
from lens_skills.circuits.example_pair import example_pair
from lens_skills.circuits.graph import Circuit, Edge, Node, Totals
from lens_skills.circuits.paired_cache import PairedCache, check_twins, paired_caches
from lens_skills.circuits.path_patching import (
    Path,
    clean_value,
    path_effects,
    together,
    whole_input,
    whole_output,
)
from lens_skills.circuits.targets import AnswerTarget, StartNodes, Target, orient, parse_start
from lens_skills.data import Example, halves
from lens_skills.engines import refuse_divided
from lens_skills.errors import LensSkillsError, did_you_mean
from lens_skills.models import Chat, SoftPrompt, with_soft_prompt
from lens_skills.models.sublayers import ModelWeights
from lens_skills.results import provenance
from lens_skills.stats.effect_tests import (
    FEW_GROUPS,
    FEWEST_GROUPS,
    cluster_interval,
    ratio_interval,
)

PROPOSALS: Mapping[str, Callable[[PairedCache, Target], TargetGradients]] = {
    "attribution": target_gradients,
    "integrated": partial(target_gradients, points=integrated_points()),
    "relevance": relevance_gradients,
}
"""Gradient at the clean prompt; mean gradient on the way to the corrupted one; relevance."""

FEWEST_RANDOM = 40

_FOLLOWED = 16
"""Confirmed nodes, the strongest first, whose own edges a further depth looks at."""


@resumable()
def circuit(
    model: Any,
    examples: Sequence[Example],
    start: Any = "answer",
    *,
    metric: Any = None,
    proposals: str = "attribution",
    n_edges: int = 60,
    depth: int = 2,
    epsilon: float = EPSILON,
    n_random: int = N_RANDOM,
    position: str | int = "last",
    prompt: SoftPrompt | None = None,
    chat: Chat = False,
    n_draws: int = 2000,
    seed: int = 0,
    checkpoint: str | PathLike[str] | None = None,
) -> Circuit:
    """The edges through which something is moved and moves the answer, each with an error bar.

    Half of the groups of pairs propose edges, by a gradient or by relevance; on the other half
    each is tested alone by exact path patching (`path_effects`), beside random edges of the same
    receivers and grain. *Confirmed* is an edge whose interval lies wholly beyond ``epsilon`` of
    the whole effect and which stands out from the random ones, *negligible* one that is within;
    see `decide` for what is adjusted over what.

    Where fewer than `FEWEST_GROUPS` groups test, there are effects only: no intervals, no words.

    Answers of several tokens are given, as the metric gives them: behind the clean and the
    corrupted prompt stand the same tokens. The circuit is one of the prompt's positions. Into the
    answer go edges to the logits after the prompt's last token, and edges to the keys and values
    of every position that the answer's later tokens read (``"answer L5H3"``); what these tokens
    make of them among themselves runs freely and has no edges.

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
        epsilon: The smallest effect that matters, as a share of the total, above 0 and below 1.
        n_random: Random edges per stage, at least 40 (fewer where the model has no more).
        position: Where the start is, counted from the end.
        prompt: A soft prompt to read every example with.
        chat: Read prompts in the tokenizer's chat template; a text: with this system prompt.
        n_draws: Bootstrap draws of the intervals.
        seed: Of the halves and draws.
        checkpoint: A folder that keeps what is finished and the sums so far, about once a minute;
            the same call goes on there with the same numbers.

    Raises:
        LensSkillsError: Pairs that are none, or differ in length; fewer than four groups; a start
            this model does not have, or that the corruption does not move; a metric without a
            gradient; relevance with answers of several tokens; a model whose parts do not add up.

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
    refuse_divided("circuit", "every stage of it is proposed by what the last one has shown.")
    check_twins(examples)
    adapter = with_soft_prompt(model, prompt, chat)
    wanted = parse_metric(logit_diff() if metric is None else metric, examples, asked="circuit")
    nodes = parse_start(adapter, start, position)
    if n_edges < 1 or depth < 1:
        raise LensSkillsError(f"n_edges={n_edges} and depth={depth} must be at least 1.")
    if not 0 < epsilon < 1 or n_random < FEWEST_RANDOM:
        raise LensSkillsError(
            f"epsilon={epsilon} and n_random={n_random}: epsilon is a share of the whole effect, "
            f"above 0 and below 1, and at least {FEWEST_RANDOM} random edges stand beside the "
            "proposed ones of a stage."
        )
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
        epsilon=epsilon,
        n_random=n_random,
        n_stages=depth * (1 if nodes[0].kind == "answer" else 2),
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
        proposals, n_edges, n_draws, seed, epsilon, n_random: As in `circuit`.
        n_stages: How many stages there can be.
        edges: Every edge tested, in the order of testing.
        random: The random edges tested beside them.
        totals: What they are to explain, as far as known.
        changes: Per target and part, what its total is the mean of.
        effects: Per target and edge, what its effect is the mean of.
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
    epsilon: float = EPSILON
    n_random: int = N_RANDOM
    n_stages: int = 1
    edges: list[Edge] = field(default_factory=list)
    random: list[Edge] = field(default_factory=list)
    totals: list[Totals] = field(default_factory=list)
    changes: dict[str, Tensor] = field(default_factory=dict)
    effects: dict[tuple[str, Path], Tensor] = field(default_factory=dict)
    _stage: int = 0
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
        totals = self._add_totals("upstream", target, changes)
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
            tested = self._test(target, totals, sums)
            receivers = self._follow(tested, lambda edge: edge.sender, seen)

    def downstream(self, depth: int) -> None:
        """Edges out of the start, out of what receives them, and so on to the answer."""
        nodes = self.start.nodes
        changes = together([whole_output(s, self.answer, nodes) for s in self.testing])
        totals = self._add_totals("downstream", self.answer, changes)
        senders, seen = list(nodes), set(nodes)
        for _ in range(depth):
            sums = [
                self._leaving(cache, senders, gradients)
                for cache, gradients in zip(
                    self.proposing, self._gradients_of(self.answer), strict=True
                )
            ]
            tested = self._test(self.answer, totals, sums)
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

    @cached_property
    def few(self) -> bool:
        """Whether so few groups test that only means can be said."""
        return len(set(self.groups)) < FEWEST_GROUPS

    @cached_property
    def _picked(self) -> RandomEdges:
        return RandomEdges(self.testing[0].weights, seed=self.seed)

    def _add_totals(self, part: str, target: Target, changes: Float[Tensor, " example"]) -> Totals:
        low, high = None, None
        if not self.few:
            ends = cluster_interval(changes, self.groups, n_draws=self.n_draws, seed=self.seed)
            low, high = map(float, ends)
        clean = float(together([clean_value(cache, target)[0] for cache in self.testing]).mean())
        totals = Totals(target.name, part, target.unit, clean, float(changes.mean()), low, high)
        if part == "upstream" and not (totals.clear or (self.few and totals.total)):
            found = "" if low is None else f" [{low:+.3g}, {high:+.3g}]"
            raise LensSkillsError(
                f"the corruption does not move {target.name}: mean change {totals.total:+.3g}"
                f"{found} {target.unit}. So there is nothing "
                "whose way could be traced. Choose other pairs, or a neuron that tells these apart."
            )
        self.totals.append(totals)
        self.changes[part] = changes
        return totals

    def _test(self, target: Target, totals: Totals, sums: Sequence[EdgeSums]) -> list[Edge]:
        """One stage: the strongest proposals that are new and random ones, patched one by one."""
        n_examples = sum(len(cache) for cache in self.proposing)
        known = {edge.key for edge in self.edges if edge.target == target.name}
        found = strongest_edges(sums, n_examples, self.n_edges + len(known))
        fresh = [(path, value) for path, value in found.items() if path not in known]
        stage = self._stage
        self._stage += 1
        edges = [
            Edge(*path, target.name, estimate, stage)  # type: ignore[arg-type]
            for path, estimate in fresh[: self.n_edges]
        ]
        tested = self._measured(target, totals, edges)
        if not self.few:
            taken = {e.key for e in (*self.edges, *self.random) if e.target == target.name}
            taken |= {edge.key for edge in edges}
            picked = self._picked.draw(edges, self.n_random, taken)
            self.random += self._measured(target, totals, picked)
        self.edges += tested
        return tested

    def _measured(self, target: Target, totals: Totals, edges: Sequence[Edge]) -> list[Edge]:
        effects = self._effects(target, [edge.key for edge in edges])
        self.effects |= {
            (target.name, edge.key): values for edge, values in zip(edges, effects, strict=True)
        }
        if self.few:
            return mean_effects(edges, effects, totals.total)
        delta = totals.smallest_effect(self.epsilon)
        options = {"n_draws": self.n_draws, "seed": self.seed}
        return edge_statistics(edges, effects, self.groups, totals.total, delta, **options)

    def decided(self) -> tuple[list[Edge], list[Edge]]:
        """The tested and the random edges, with the words known so far."""
        if self.few:
            return self.edges, []
        edges = decide(self.edges, self.random, n_stages=self.n_stages)
        return edges, decide_random(edges, self.random)

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
        edges = [edge for edge in self.decided()[0] if edge.confirmed]
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


def _assemble(
    search: CircuitSearch,
    examples: Sequence[Example],
    first: Sequence[Example],
    second: Sequence[Example],
) -> Circuit:
    """The circuit, its edges decided together."""
    edges, random = search.decided()
    edges = sorted(edges, key=lambda edge: -abs(edge.share or 0.0))
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
        if not each.clear and not search.few:
            notes.append(
                f"as a whole, {target.name} does not move {each.target} clearly "
                f"({each.total:+.3g} [{each.low:+.3g}, {each.high:+.3g}] {each.unit}): shares of "
                f"it say little, and edges are held against {search.epsilon:.2g} of its farther end"
            )
    n_random = min((sum(e.stage == k for e in random) for k in {e.stage for e in edges}), default=0)
    if not search.few and n_random < FEWEST_RANDOM:
        notes.append(
            f"only {n_random} random edges could be drawn beside a stage: so few hardly tell an "
            "edge apart"
        )
    n_groups = len(set(search.groups))
    if FEWEST_GROUPS <= n_groups < FEW_GROUPS:
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
        random=tuple(random),
        epsilon=search.epsilon,
        n_stages=search.n_stages,
        provenance={
            **provenance(examples, adapter),
            "implementation": adapter.implementation,
            "proposed_on": _half(first),
            "tested_on": _half(second),
            "example": example_pair(search.testing),
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
    if receiver.kind == "answer":
        return search.start.nodes[0].kind == "answer"
    if receiver.kind != "head" or receiver.width == 1:
        return (receiver.layer, receiver.kind, receiver.index) in nodes
    shared = range(receiver.index or 0, (receiver.index or 0) + receiver.width)
    return any((receiver.layer, "head", index) in nodes for index in shared)


def _settled(totals: Totals, edges: Sequence[Edge], search: CircuitSearch) -> Totals:
    """The totals with what the edges add up to, and what they leave of every pair."""
    here = [edge for edge in edges if _at_start(edge, totals, search)]
    effect = [edge.effect or 0.0 for edge in here]
    found = replace(
        totals,
        tested=sum(effect),
        confirmed=sum((edge.effect or 0.0 for edge in here if edge.confirmed), 0.0),
        absolute=sum(map(abs, effect)) / abs(totals.total) if totals.total else 0.0,
    )
    if not totals.clear:
        return found
    changes = search.changes[totals.part]
    left = changes.clone()
    for edge in here:
        left -= search.effects[edge.target, edge.key]
    low, high = ratio_interval(
        left[None], changes[None], search.groups, n_draws=search.n_draws, seed=search.seed
    )
    return replace(found, unexplained_low=float(low), unexplained_high=float(high))


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
            {"kind": "sum of tested", "effect": totals.tested},
            {"kind": "sum of confirmed", "effect": totals.confirmed},
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
            f"tested on the other: at least four are needed for effects, {2 * FEWEST_GROUPS} for "
            "intervals and words, 60 for honest intervals."
        )
    first, second = halves(groups, seed=seed, even="groups")
    return [examples[row] for row in first.tolist()], [examples[row] for row in second.tolist()]
