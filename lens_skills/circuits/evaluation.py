"""`Evaluation`: one part of a circuit, run at several sizes, without each edge, and against others.

What is measured per example is turned into shares of the gap between no edge and all edges.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.circuits.alternatives import Alternatives
from lens_skills.circuits.curve import Curve, Removal, Share
from lens_skills.circuits.edge import Edge
from lens_skills.circuits.evidence import cluster_p
from lens_skills.circuits.node import Node
from lens_skills.circuits.regime import Regime
from lens_skills.circuits.running import Running
from lens_skills.circuits.scene import Scene
from lens_skills.circuits.target import Target
from lens_skills.errors import LensSkillsError
from lens_skills.stats.bootstrap import ClusteredRatio, cluster_interval, ratio_interval
from lens_skills.stats.corrections import false_discovery_q
from lens_skills.stats.equivalence import equivalent

ALPHA = 0.05
_ROWS = 4096  # columns of all sets and examples that run at once


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What is run, and on what.

    Attributes:
        part: ``"upstream"`` or ``"downstream"``.
        edges: The circuit's that can run, strongest first.
        tested: All that were tested; a sender that is the receiver of none is a source.
        start: The nodes a downstream part begins at.
        target: What is measured.
        scenes, groups: The pairs.
        seed: Of bootstrap and random circuits.
    """

    part: str
    edges: tuple[Edge, ...]
    tested: tuple[Edge, ...]
    start: tuple[Node, ...]
    target: Target
    scenes: Sequence[Scene]
    groups: Sequence[str]
    seed: int

    @property
    def upstream(self) -> bool:
        """Whether the edges lead to the target from below."""
        return self.part == "upstream"

    def alone(self, circuits: Iterable[Edge] = ()) -> Regime:
        """The regime in which a circuit runs alone; its edges may be other than those tested."""
        if not self.upstream:
            senders = frozenset(edge.sender for edge in self.tested)
            return Regime("clean", False, frozenset(self.start), ruled=senders | {*self.start})
        reached = {(edge.receiver, edge.channel) for edge in self.tested}
        senders = {edge.sender for edge in (*self.tested, *circuits)}
        return Regime(sources=frozenset(n for n in senders if not explored(n, reached)))

    @property
    def without(self) -> Regime:
        """The regime in which all edges but the circuit's are there."""
        if self.upstream:
            return Regime(removed=True)
        return Regime("clean", False, frozenset(self.start), removed=True)

    def measure(
        self, circuits: Sequence[Sequence[Edge]], regime: Regime | None = None
    ) -> Float[Tensor, "set example"]:
        """The target of each set of edges and example."""
        regime = regime or self.alone(edge for circuit in circuits for edge in circuit)
        found = []
        for scene in self.scenes:
            running = Running(scene, regime)
            step = max(1, _ROWS // (len(scene) * scene.n_columns))
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
        others = Alternatives(self.scenes[0].anatomy)
        random = np.random.default_rng(self.seed)
        drawn = [others.draw(self.edges, random, upstream=self.upstream) for _ in range(n)]
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
