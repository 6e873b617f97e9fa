"""`Search`: stage by stage, edges proposed on one half of the pairs and tested on the other."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import Metric
from lens_skills.circuits.account import Account
from lens_skills.circuits.candidates import Candidate, Sums, channels_of, into, out_of, rank
from lens_skills.circuits.edge import Edge
from lens_skills.circuits.evidence import decide, weigh
from lens_skills.circuits.node import Node
from lens_skills.circuits.paths import clean_value, path_effects
from lens_skills.circuits.proposals import PROPOSALS
from lens_skills.circuits.scene import Scene
from lens_skills.circuits.slopes import Slopes
from lens_skills.circuits.start import Start
from lens_skills.circuits.target import Answer, Target
from lens_skills.circuits.whole import together, whole_input, whole_output
from lens_skills.errors import LensSkillsError
from lens_skills.stats.bootstrap import cluster_interval

_FOLLOWED = 16
"""Confirmed nodes, the strongest first, whose own edges a further depth looks at."""


class Search:
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
        first: Sequence[Scene],
        second: Sequence[Scene],
        groups: Sequence[str],
        start: Start,
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
        self.answer = target if isinstance(target, Answer) else Answer(metric, metric.name)
        self.edges: list[Edge] = []
        self.effects: dict[tuple[Node, Node, str, str], Float[Tensor, " example"]] = {}
        self.accounts: list[Account] = []
        self._slopes: dict[str, list[Slopes]] = {}

    def upstream(self, depth: int) -> None:
        """Edges into the start, into what sends them, and so on."""
        target = self.start.target
        slopes = self._slopes_of(target)  # first of all: a metric without a gradient ends here
        changes = together([whole_input(scene, target) for scene in self.second])
        total = self._account("upstream", target, changes)
        receivers, seen = list(self.start.nodes), set(self.start.nodes)
        for _ in range(depth):
            channels = dict.fromkeys(
                channel for node in receivers for channel in channels_of(self._widest, node)
            )
            sums = [
                into(scene, [c for c in channels if self._inside(scene, c[0])], slope)
                for scene, slope in zip(self.first, slopes, strict=True)
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
                self._leaving(scene, senders, slopes)
                for scene, slopes in zip(self.first, self._slopes_of(self.answer), strict=True)
            ]
            tested = self._test(self.answer, total, sums)
            senders = self._follow(tested, lambda edge: edge.receiver, seen)

    def _leaving(self, scene: Scene, senders: Sequence[Node], slopes: Slopes) -> Sums:
        total = Sums()
        for sender in senders:
            total = total + out_of(scene, sender, slopes)
        own = set(self.start.nodes)
        total = replace(total, one={p: v for p, v in total.one.items() if p[1] not in own})
        for (_, layer, _), values in total.receivers.items():
            for node in own:
                if node.kind == "neuron" and node.layer == layer:
                    values[node.index] = 0.0  # held at its corrupted activation in the whole
        return total

    @property
    def _widest(self) -> Scene:
        return max(self.second, key=lambda scene: scene.n_columns)

    def _inside(self, scene: Scene, node: Node) -> bool:
        return -scene.n_columns <= node.column

    def _slopes_of(self, target: Target) -> list[Slopes]:
        if target.name not in self._slopes:
            propose = PROPOSALS[self.proposals]
            self._slopes[target.name] = [propose(scene, target) for scene in self.first]
        return self._slopes[target.name]

    def _account(self, part: str, target: Target, changes: Float[Tensor, " example"]) -> float:
        low, high = cluster_interval(changes, self.groups, **self.options)
        clean = together([clean_value(scene, target)[0] for scene in self.second])
        total = float(changes.mean())
        account = Account(
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

    def _test(self, target: Target, total: float, sums: Sequence[Sums]) -> list[Edge]:
        """One stage: the strongest proposals that are new, patched one by one."""
        n_examples = sum(len(scene) for scene in self.first)
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
        for scene in self.second:
            values = torch.zeros(len(paths), len(scene), dtype=torch.float64)
            here = [k for k, path in enumerate(paths) if self._inside(scene, path[1])]
            if here:
                values[here] = path_effects(scene, target, [paths[k] for k in here])
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


def _edge(candidate: Candidate, target: Target) -> Edge:
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
