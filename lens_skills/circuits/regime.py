"""`Regime`: what holds for the edges that a circuit does not name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from lens_skills.circuits.edge import Edge
from lens_skills.circuits.node import Node

Parents = Mapping[tuple[Node, str], tuple[Node, ...]]
"""Who sends into each channel of each receiver."""


@dataclass(frozen=True)
class Regime:
    """Which prompt the model is on, where the other one comes in, and how far it reaches.

    Attributes:
        ground: The prompt that everything carries unless something is changed.
        tokens: Whether the input tokens are those of the other prompt.
        sources: Nodes that carry what they have on the other prompt, whatever reaches them.
        ruled: Nodes that send along the named edges only; None: all nodes. What any other node
            sends is free and reaches every channel.
        removed: The named edges are *left out*, and all others are there; nothing is then ruled.
    """

    ground: Literal["clean", "corrupted"] = "corrupted"
    tokens: bool = True
    sources: frozenset[Node] = frozenset()
    ruled: frozenset[Node] | None = None
    removed: bool = False

    @property
    def free(self) -> bool:
        """Whether anything reaches further than the edges that are named."""
        return self.removed or self.ruled is not None

    def ruled_at(self, kind: str, layer: int) -> list[Node]:
        """The nodes of one kind and layer that send along named edges only, where others do not."""
        return [n for n in self.ruled or () if (n.kind, n.layer) == (kind, layer)]

    def sources_at(self, kind: str, layer: int) -> list[Node]:
        """The sources of one kind and layer."""
        return [node for node in self.sources if (node.kind, node.layer) == (kind, layer)]


def parents_of(edges: Iterable[Edge]) -> Parents:
    """The senders of every channel; edges of a norm's scale cannot be run and are left out."""
    found: dict[tuple[Node, str], tuple[Node, ...]] = {}
    for edge in edges:
        if edge.channel != "scale" and edge.sender.kind != "norm":
            key = (edge.receiver, edge.channel)
            found[key] = (*found.get(key, ()), edge.sender)
    return found
