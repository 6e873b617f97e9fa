"""`Circuit`: tested edges, what they add up to, and what they leave unexplained.

Its parts: a `Node` is one place in the model's computation, an `Edge` what one node sends into one
channel of another, with its error bar; `Totals` say how far all that feeds a target moves it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from math import ceil, log10
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal, get_args

import pandas as pd

from lens_skills.cards import showing
from lens_skills.errors import LensSkillsError
from lens_skills.results import Result
from lens_skills.stats.effect_tests import FEWEST_GROUPS
from lens_skills.stats.intervals import wilson_interval

NodeKind = Literal["token", "head", "mlp", "neuron", "norm", "answer"]


@dataclass(frozen=True, order=True)
class Node:
    """Something that writes to the residual stream or reads from it, at one position.

    Attributes:
        layer: Its block; -1 for the embedded token, the number of layers for the answer.
        kind: ``"token"`` (an input embedding), ``"head"``, ``"mlp"``, ``"neuron"``, ``"norm"``
            (the scale of the norm before a reader, as a sender) or ``"answer"`` (the logits the
            metric reads; with an index: a head in the columns of an answer's later tokens, which
            reads the prompt there).
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
        if self.kind == "token" or (self.kind == "answer" and self.index is None):
            return self.kind
        if self.kind in ("mlp", "norm"):
            return f"L{self.layer}{'MLP' if self.kind == 'mlp' else 'norm'}"
        if self.kind == "neuron":
            return f"L{self.layer}N{self.index}"
        assert self.index is not None
        last = f"-{self.index + self.width - 1}" if self.width > 1 else ""
        behind = "answer " if self.kind == "answer" else ""
        return f"{behind}L{self.layer}H{self.index}{last}"

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

Verdict = Literal["confirmed", "negligible", "undecided"]
"""What is known of an edge's effect, against ε of the whole effect and against random edges."""


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
            final norm and the logits. ``"K"`` and ``"V"`` of a head are what later tokens of the
            prompt find there; of the answer, what its own later tokens find. A channel has one
            more sender, the scale of the norm before it (`Node` of kind ``"norm"``).
        target: What the effect is measured on, ``"L17N635"`` or ``"logit_diff"``.
        proposed: The estimate by which the edge was proposed, in the same unit; 0 of a random edge.
        stage: At which stage it was tested, from 0 up.
        effect: Exact path patching; None where it was not tested, as are all that follow.
        share: The effect as a share of the target's total change (1: all of it); None where that
            is 0.
        low, high: Its 95 % interval, of this edge alone; None below `FEWEST_GROUPS` groups, as are
            all that follow.
        p, q: Of an effect within ±ε of the total: two-sided p, and its Benjamini-Hochberg
            adjustment over the edges of its stage.
        p_random: Rank p of its |effect| among random edges of its stage, (1 + larger) / (1 + all).
        verdict: ``"confirmed"``: the interval is wholly beyond ±ε of the total, q at most 0.05
            divided by the number of stages, and p_random at most 0.05; ``"negligible"``: within
            ±ε by two one-sided tests at 5 %; ``"undecided"``: neither.
    """

    sender: Node
    receiver: Node
    channel: Channel
    target: str
    proposed: float
    stage: int = 0
    effect: float | None = None
    share: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    q: float | None = None
    p_random: float | None = None
    verdict: Verdict | None = None

    @property
    def confirmed(self) -> bool:
        """Whether the verdict is ``"confirmed"``."""
        return self.verdict == "confirmed"

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


def senders_of(receiver: Node, n_heads: int, *, parallel: bool = False) -> list[Node]:
    """All that writes before the receiver reads, in its column, from below: token, heads, MLPs.

    ``parallel``: a block's MLP reads what its heads read, so they do not write to it.

    >>> [node.name for node in senders_of(Node(1, "mlp", None, "-1"), 1)]
    ['token', 'L0H0', 'L0MLP', 'L1H0']
    >>> [node.name for node in senders_of(Node(1, "mlp", None, "-1"), 1, parallel=True)]
    ['token', 'L0H0', 'L0MLP']
    """
    position = receiver.position
    found = [Node(-1, "token", None, position)]
    own = receiver.kind in ("mlp", "neuron") and not parallel
    for layer in range(receiver.layer + own):
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
        low, high: The interval of the total, 95 %; None below `FEWEST_GROUPS` groups.
        tested: Sum of all tested edges at the target (upstream) or out of the start (downstream),
            each patched alone.
        confirmed: The same sum over the confirmed ones. It was chosen by the pairs it is measured
            on, so it is not what explains the total.
        absolute: Σ |share| over the tested ones: 1 where they all pull one way and make up the
            total; above it they cancel, and a small unexplained share says little.
        unexplained_low, unexplained_high: The interval of `unexplained`, 95 %, over pairs; None
            where the total cannot be told from 0.
    """

    target: str
    part: str
    unit: str
    clean: float
    total: float
    low: float | None
    high: float | None
    tested: float = 0.0
    confirmed: float = 0.0
    absolute: float = 0.0
    unexplained_low: float | None = None
    unexplained_high: float | None = None

    @property
    def corrupted(self) -> float:
        """Mean target when all of it is corrupted."""
        return self.clean + self.total

    @property
    def clear(self) -> bool:
        """Whether the total has an interval, and it is away from 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    def smallest_effect(self, epsilon: float) -> float:
        """δ = ε |total|; where the total cannot be told from 0, its farther end stands in for it.

        >>> Totals("x", "upstream", "nats", 0.0, -2.0, -3.0, -1.0).smallest_effect(0.01)
        0.02
        """
        if self.low is not None and self.high is not None and not self.clear:
            return epsilon * max(-self.low, self.high)
        return epsilon * abs(self.total)

    @property
    def residual(self) -> float:
        """Total minus tested: edges that were not proposed, and what only acts together."""
        return self.total - self.tested

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
        random: Random edges of the same receivers and grain, tested on the same pairs and judged
            as the others are.
        epsilon: An edge matters beyond this share of the total.
        n_stages: Over how many stages the level of 5 % was split.
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
    random: tuple[Edge, ...] = ()
    epsilon: float = 0.01
    n_stages: int = 1

    def __len__(self) -> int:
        return len(self.confirmed)

    def __iter__(self) -> Iterator[Edge]:
        return iter(self.confirmed)

    @property
    def confirmed(self) -> tuple[Edge, ...]:
        """The edges that hold, strongest first."""
        return tuple(edge for edge in self.edges if edge.confirmed)

    @property
    def counts(self) -> dict[str, int]:
        """How many tested edges each word is said of: confirmed, negligible, undecided."""
        return {word: sum(e.verdict == word for e in self.edges) for word in get_args(Verdict)}

    @property
    def random_confirmed(self) -> tuple[float, float, float] | None:
        """The share of random edges that would have been confirmed, with its 95 % interval.

        Wilson's, as if they were independent. None where none was drawn.
        """
        if not self.random:
            return None
        rate = sum(edge.confirmed for edge in self.random) / len(self.random)
        return rate, *wilson_interval(rate, len(self.random))

    @property
    def total(self) -> float:
        """Mean change of the target when its whole input is corrupted."""
        return self.totals[0].total

    @property
    def unexplained(self) -> float:
        """The share of it that the tested edges at the target leave."""
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

    def frame(self, *, random: bool = False) -> pd.DataFrame:
        """One row per tested edge, the largest share of its target's total first: see `Edge`.

        ``random``: the random edges instead.
        """
        somewhere = Node(0, "mlp", None, "-1")
        columns = list(Edge(somewhere, somewhere, "in", "", 0.0).row())
        edges = self.random if random else self.edges
        return pd.DataFrame([edge.row() for edge in edges], columns=columns)

    def nodes(self) -> tuple[Node, ...]:
        """The start and every node a confirmed edge touches, from the bottom up."""
        found = set(self.start)
        for edge in self.confirmed:
            found |= {edge.sender, edge.receiver}
        return tuple(sorted(found, key=lambda node: (node.layer, node.column, node.name)))

    def top(self, n: int) -> tuple[Edge, ...]:
        """The ``n`` strongest confirmed edges."""
        return self.confirmed[:n]

    def to_neuronpedia(self, path: str | Path, *, scan: str = "", features_url: str = "") -> Path:
        """Writes the circuit as a graph that Neuronpedia and circuit-tracer show.

        Its links say clean - corrupted, so that a positive one raises its target, as in their
        graphs: minus the effects that are printed here. Intervals, q and words stand in the labels.

        Args:
            path: A ``.json`` file; its name is the graph's.
            scan: What Neuronpedia calls the model; default its name in small letters.
            features_url: Where the files of `ActivatingExamples.to_neuronpedia` will be served.

        Raises:
            LensSkillsError: A circuit that an earlier version saved; a name without ``.json``; an
                address that is none; a folder that cannot be written.
        """
        write = showing("neuronpedia").write_graph
        return Path(write(self, path, scan=scan, features_url=features_url))

    def __repr__(self) -> str:
        return "\n".join(_card_lines(self))


_SHOWN = 20


def _card_lines(circuit: Circuit) -> list[str]:
    """The lines that printing a circuit shows: words, totals, then the strongest edges."""
    edges, n_groups = circuit.edges, circuit.n_groups
    lines = [f"circuit of {circuit.target}: {len(edges)} edges proposed by {circuit.proposals}"]
    on = f"on {circuit.n_examples} pairs in {n_groups} groups"
    if n_groups < FEWEST_GROUPS:
        lines += [
            f"  {n_groups} groups test them, and fewer than {FEWEST_GROUPS} say nothing: no "
            "intervals, no edge",
            f"  has a word. Effects below are plain means {on}.",
        ]
    else:
        words = ", ".join(f"{n} {word}" for word, n in circuit.counts.items())
        lines += [
            f"  {words}; {on}",
            f"  confirmed: 95 % interval beyond {circuit.epsilon:.2g} of the total, q <= "
            f"{0.05 / circuit.n_stages:.2g} in each stage",
            f"  (5 % over {circuit.n_stages}), |effect| above random edges (p <= 0.05); "
            "negligible: within it",
        ]
    rate = circuit.random_confirmed
    if rate is not None:
        hits = sum(edge.confirmed for edge in circuit.random)
        lines.append(
            f"  random edges: {hits} of {len(circuit.random)} confirmed, {rate[0]:.1%} "
            f"[{rate[1]:.1%}, {rate[2]:.1%}]"
        )
    for totals in circuit.totals:
        lines += _part_lines(circuit, totals)
    return [*lines, *(line for note in circuit.notes for line in _wrapped(f"note: {note}"))]


def _part_lines(circuit: Circuit, totals: Totals) -> list[str]:
    """One target: its total, what the edges add up to, and the strongest of them."""
    digits = _digits(totals.smallest_effect(circuit.epsilon))

    def number(value: float) -> str:
        return f"{value:+.{digits}f}"

    def interval(low: float | None, high: float | None) -> str:
        return "" if low is None or high is None else f" [{number(low)}, {number(high)}]"

    left = f"{totals.unexplained:.0%}"
    if totals.unexplained_low is not None and totals.unexplained_high is not None:
        left += f" [{totals.unexplained_low:.0%}, {totals.unexplained_high:.0%}]"
    lines = [
        f"{totals.part}: {totals.target} {number(totals.clean)} → {number(totals.corrupted)} "
        f"{totals.unit} when corrupted",
        f"  total {number(totals.total)}{interval(totals.low, totals.high)}",
        f"  tested edges {number(totals.tested)}, Σ|share| {totals.absolute:.0%}; "
        f"unexplained {left}",
        f"  of them confirmed {number(totals.confirmed)}",
    ]
    few = circuit.n_groups < FEWEST_GROUPS
    here = [edge for edge in circuit.edges if edge.target == totals.target]
    chosen = here if few else [edge for edge in here if edge.confirmed]
    for edge in chosen[: _SHOWN // len(circuit.totals)]:
        share = "" if edge.share is None else format(edge.share, ".0%")
        effect = number(edge.effect or 0.0) + interval(edge.low, edge.high)
        lines.append(f"    {edge!s:<36} {effect:<30} {share:>6}".rstrip())
    more = len(chosen) - _SHOWN // len(circuit.totals)
    return [*lines, f"    and {more} more: .frame()"] if more > 0 else lines


def _digits(delta: float) -> int:
    """Decimals that show a number to about δ.

    >>> _digits(0.06), _digits(0.002), _digits(30.0)
    (2, 3, 0)
    """
    return min(max(ceil(-log10(delta)), 0), 5) if delta > 0 else 3


def _wrapped(text: str) -> list[str]:
    return wrap(text, 80, subsequent_indent="  ")
