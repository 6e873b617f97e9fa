"""`Edge`: what one part of the model sends into one channel of another, with its error bar."""

from dataclasses import dataclass
from typing import Any, Literal

from lens_skills.circuits.node import Node

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
        return {
            "sender": self.sender.name,
            "receiver": self.receiver.name,
            "channel": self.channel,
            "position": self.receiver.position,
            "target": self.target,
            "proposed": self.proposed,
            "effect": self.effect,
            "share": self.share,
            "low": self.low,
            "high": self.high,
            "p": self.p,
            "q": self.q,
            "confirmed": self.confirmed,
        }
