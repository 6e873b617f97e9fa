"""`Node`: one place in the model's computation, at one position."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["token", "head", "mlp", "neuron", "norm", "answer"]


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
    kind: Kind
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
