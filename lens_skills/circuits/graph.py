"""`Circuit`: tested edges, what they add up to, and what they leave unexplained.

Its parts: a `Node` is one place in the model's computation, an `Edge` what one node sends into one
channel of another, with its error bar; `Totals` say how far all that feeds a target moves it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import pandas as pd

from lens_skills.errors import LensSkillsError
from lens_skills.results import Result

NodeKind = Literal["token", "head", "mlp", "neuron", "norm", "answer"]


@dataclass(frozen=True, order=True)
class Node:
    """Something that writes to the residual stream or reads from it, at one position.

    Attributes:
        layer: Its block; -1 for the embedded token, the number of layers for the answer.
        kind: ``"token"`` (an input embedding), ``"head"``, ``"mlp"``, ``"neuron"``, ``"norm"``
            (the scale of the norm before a reader, as a sender) or ``"answer"`` (the logits the
            metric reads).
        index: Which head or neuron (the first where several share keys and values).
        position: Counted from the end, ``"-1"``: examples differ in length. Of a head as a
            receiver, it is where the query stands, or the key or value that is looked at.
        width: How many neighbouring heads it stands for: under grouped-query attention several
            query heads read one key and value.
    """

    layer: int
    kind: NodeKind
    index: int | None
    position: str
    width: int = 1

    @property
    def name(self) -> str:
        """Without the position: ``"L9H3"``, ``"L5H3-5"``, ``"L5MLP"``, ``"L12N7"``, ``"token"``.

        >>> Node(5, "head", 3, "-2", width=3).name
        'L5H3-5'
        """
        if self.kind in ("token", "answer"):
            return self.kind
        if self.kind in ("mlp", "norm"):
            return f"L{self.layer}{'MLP' if self.kind == 'mlp' else 'norm'}"
        if self.kind == "neuron":
            return f"L{self.layer}N{self.index}"
        assert self.index is not None
        last = f"-{self.index + self.width - 1}" if self.width > 1 else ""
        return f"L{self.layer}H{self.index}{last}"

    @property
    def column(self) -> int:
        """The position as a number counted from the end, -1 for the last.

        >>> Node(0, "mlp", None, "-4").column
        -4
        """
        return int(self.position)

    def __str__(self) -> str:
        return f"{self.name}@{self.position}"


Channel = Literal["Q", "K", "V", "gate", "up", "in", "answer"]


@dataclass(frozen=True)
class Edge:
    """A direct path between two nodes, and what is known of it.

    ``effect`` = mean over examples of (target when this edge alone carries what it carries on the
    corrupted prompt) - (clean target), in the target's unit. A negative effect thus says that the
    clean edge *raises* the target.

    Attributes:
        sender: What writes.
        receiver: What reads, in the same column of the residual stream.
        channel: Through which of its inputs: ``"Q"``, ``"K"``, ``"V"`` of a head; ``"gate"`` or
            ``"up"`` of a gated MLP or neuron, ``"in"`` of an ungated one; ``"answer"``: of the
            final norm and the logits. A channel has one more sender, the scale of the norm before
            it (`Node` of kind ``"norm"``).
        target: What the effect is measured on, ``"L17N635"`` or ``"logit_diff"``.
        proposed: The estimate by which the edge was proposed, in the same unit.
        effect: Exact path patching; None where it was not tested, as are the next five.
        share: The effect as a share of the target's total change (1: all of it); None where that
            is 0.
        low, high: Its 95 % interval.
        p, q: Two-sided p, and its Benjamini-Hochberg adjustment over all tested edges.
        confirmed: q at most 0.05 and an interval without 0.
    """

    sender: Node
    receiver: Node
    channel: Channel
    target: str
    proposed: float
    effect: float | None = None
    share: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    q: float | None = None
    confirmed: bool = False

    @property
    def key(self) -> tuple[Node, Node, str]:
        """What makes it this edge and no other."""
        return self.sender, self.receiver, self.channel

    @property
    def strength(self) -> float:
        """|effect|, or |proposed| of an edge that was not tested."""
        return abs(self.proposed if self.effect is None else self.effect)

    def __str__(self) -> str:
        return f"{self.sender} → {self.receiver} {self.channel}"

    def row(self) -> dict[str, Any]:
        """The edge as plain values, for a table."""
        ends = {"sender": self.sender.name, "receiver": self.receiver.name}
        own = {item.name: getattr(self, item.name) for item in fields(self)[3:]}
        return ends | {"channel": self.channel, "position": self.receiver.position} | own


def senders_of(receiver: Node, n_heads: int) -> list[Node]:
    """All that writes before the receiver reads, in its column, from below: token, heads, MLPs.

    >>> [node.name for node in senders_of(Node(1, "mlp", None, "-1"), 1)]
    ['token', 'L0H0', 'L0MLP', 'L1H0']
    """
    position = receiver.position
    found = [Node(-1, "token", None, position)]
    for layer in range(receiver.layer + (receiver.kind in ("mlp", "neuron"))):
        found += [Node(layer, "head", index, position) for index in range(n_heads)]
        if layer < receiver.layer:
            found.append(Node(layer, "mlp", None, position))
    return found


@dataclass(frozen=True)
class Totals:
    """What a target does when everything that feeds it is corrupted, and what edges explain of it.

    Attributes:
        target: ``"L17N635"`` (its activation) or a metric's name.
        part: ``"upstream"``: the edges end at the target; ``"downstream"``: they begin at the
            start of the circuit and the target is the metric.
        unit: Of all numbers here.
        clean: Mean target on the clean prompts.
        total: Mean change when all of it is corrupted at once: the target's whole input
            (upstream), or the start's activation (downstream).
        low, high: The interval of the total, 95 %.
        explained: Sum of the confirmed edges at the target (upstream) or out of the start
            (downstream), each patched alone.
        tested: The same sum over all tested edges.
    """

    target: str
    part: str
    unit: str
    clean: float
    total: float
    low: float
    high: float
    explained: float
    tested: float

    @property
    def corrupted(self) -> float:
        """Mean target when all of it is corrupted."""
        return self.clean + self.total

    @property
    def residual(self) -> float:
        """Total minus explained: edges that are not confirmed, and what only acts together."""
        return self.total - self.explained

    @property
    def unexplained(self) -> float:
        """The residual as a share of the total; negative where the edges overshoot it."""
        return self.residual / self.total if self.total else float("nan")


@dataclass(frozen=True, eq=False)
class Circuit(Result):
    """The edges through which a neuron, a set or a head is moved and moves the answer.

    Printing it shows one card. Effects are exact path patching on examples that took no part in
    proposing; see `Edge` for their sign.

    Attributes:
        start: The nodes it was asked for, or the answer.
        target: The start in one word.
        metric, unit: What is measured at the answer.
        edges: All tested edges, the largest share of their target's total first.
        totals: What the edges add up to, per target; the first is the one it was asked for.
        upstream: The decomposition of the start's input: one row per sender and channel.
        downstream: The decomposition of the start's effect on the answer: one row per first edge.
        n_examples, n_groups: On which the edges were tested.
        proposals: How edges were proposed.
        notes: What a reader must know before quoting a number.
        provenance: Model, task, seeds and versions behind the numbers.
    """

    start: tuple[Node, ...]
    target: str
    metric: str
    unit: str
    edges: tuple[Edge, ...]
    totals: tuple[Totals, ...]
    upstream: pd.DataFrame
    downstream: pd.DataFrame
    n_examples: int
    n_groups: int
    proposals: str
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.confirmed)

    def __iter__(self) -> Iterator[Edge]:
        return iter(self.confirmed)

    @property
    def confirmed(self) -> tuple[Edge, ...]:
        """The edges that hold, strongest first."""
        return tuple(edge for edge in self.edges if edge.confirmed)

    @property
    def total(self) -> float:
        """Mean change of the target when its whole input is corrupted."""
        return self.totals[0].total

    @property
    def unexplained(self) -> float:
        """The share of it that the confirmed edges at the target leave."""
        return self.totals[0].unexplained

    def part(self, name: str) -> Totals:
        """The totals of the ``"upstream"`` or ``"downstream"`` part."""
        for totals in self.totals:
            if totals.part == name:
                return totals
        raise LensSkillsError(
            f"no {name!r} part in this circuit of {self.target}. It has: "
            + ", ".join(totals.part for totals in self.totals)
            + "."
        )

    def frame(self) -> pd.DataFrame:
        """One row per tested edge, the largest share of its target's total first: see `Edge`."""
        somewhere = Node(0, "mlp", None, "-1")
        columns = list(Edge(somewhere, somewhere, "in", "", 0.0).row())
        return pd.DataFrame([edge.row() for edge in self.edges], columns=columns)

    def nodes(self) -> tuple[Node, ...]:
        """The start and every node a confirmed edge touches, from the bottom up."""
        found = set(self.start)
        for edge in self.confirmed:
            found |= {edge.sender, edge.receiver}
        return tuple(sorted(found, key=lambda node: (node.layer, node.column, node.name)))

    def top(self, n: int) -> tuple[Edge, ...]:
        """The ``n`` strongest confirmed edges."""
        return self.confirmed[:n]

    def __repr__(self) -> str:
        return "\n".join(_card_lines(self))


_SHOWN = 20


def _card_lines(circuit: Circuit) -> list[str]:
    """The lines that printing a circuit shows: totals, then the strongest confirmed edges."""
    edges, confirmed = circuit.edges, circuit.confirmed
    lines = [
        f"circuit of {circuit.target}: {len(confirmed)} of {len(edges)} proposed edges confirmed "
        f"({circuit.proposals}; {circuit.n_examples} pairs in {circuit.n_groups} groups)"
    ]
    for totals in circuit.totals:
        lines.append(
            f"{totals.part:<10} {totals.target} {totals.clean:+.3f} → {totals.corrupted:+.3f} "
            f"{totals.unit}: total {totals.total:+.3f} [{totals.low:+.3f}, {totals.high:+.3f}],"
            f" confirmed edges {totals.explained:+.3f}, unexplained {totals.unexplained:.0%}"
        )
    if confirmed:
        wide = max(len(str(edge)) for edge in confirmed[:_SHOWN])
        lines.append(
            f"{'edge':<{wide}}  {'on':<10} {'effect':>8} {'95 % interval':>18} {'share':>6}"
        )
    for edge in confirmed[:_SHOWN]:
        interval = f"[{edge.low:+.3f}, {edge.high:+.3f}]"
        lines.append(
            f"{edge!s:<{wide}}  {edge.target:<10} {edge.effect:>+8.3f} {interval:>18} "
            f"{'' if edge.share is None else format(edge.share, '.0%'):>6}"
        )
    if len(confirmed) > _SHOWN:
        lines.append(f"and {len(confirmed) - _SHOWN} more: .frame()")
    return [*lines, *(f"note: {note}" for note in circuit.notes)]
