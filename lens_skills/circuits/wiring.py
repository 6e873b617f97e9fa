"""`Circuit`: tested edges, what they add up to, and what they leave unexplained."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from lens_skills.circuits.account import Account
from lens_skills.circuits.card import card_lines
from lens_skills.circuits.edge import Edge
from lens_skills.circuits.node import Node
from lens_skills.errors import LensSkillsError
from lens_skills.folder import read_folder, write_folder


@dataclass(frozen=True, eq=False)
class Circuit:
    """The edges through which a neuron, a set or a head is moved and moves the answer.

    Printing it shows one card. Effects are exact path patching on examples that took no part in
    proposing; see `Edge` for their sign.

    Attributes:
        start: The nodes it was asked for, or the answer.
        target: The start in one word.
        metric, unit: What is measured at the answer.
        edges: All tested edges, the largest share of their target's total first.
        accounts: What the edges add up to, per target; the first is the one it was asked for.
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
    accounts: tuple[Account, ...]
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
    def clean(self) -> float:
        """Mean target on the clean prompts."""
        return self.accounts[0].clean

    @property
    def corrupted(self) -> float:
        """Mean target when its whole input is corrupted."""
        return self.accounts[0].corrupted

    @property
    def total(self) -> float:
        """Corrupted minus clean."""
        return self.accounts[0].total

    @property
    def explained(self) -> float:
        """The sum of the confirmed edges at the target."""
        return self.accounts[0].explained

    @property
    def residual(self) -> float:
        """Total minus explained."""
        return self.accounts[0].residual

    @property
    def unexplained(self) -> float:
        """The residual as a share of the total."""
        return self.accounts[0].unexplained

    def account(self, part: str) -> Account:
        """The account of the ``"upstream"`` or ``"downstream"`` part."""
        for account in self.accounts:
            if account.part == part:
                return account
        raise LensSkillsError(
            f"no {part!r} part in this circuit of {self.target}. It has: "
            + ", ".join(account.part for account in self.accounts)
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
        return "\n".join(card_lines(self))

    def save(self, folder: str | Path) -> Path:
        """Writes ``circuit.json`` into a folder that appears whole or not."""
        return write_folder(Path(folder), "circuit", {}, _pack(self))

    @classmethod
    def load(cls, folder: str | Path) -> "Circuit":
        """The circuit that `save` wrote."""
        plain = read_folder(Path(folder), "circuit")[1]
        try:
            return _unpack(plain)
        except (KeyError, TypeError) as error:
            raise LensSkillsError(f"{folder} holds no circuit this version can read.") from error


def _pack(circuit: Circuit) -> dict[str, Any]:
    plain = {item.name: getattr(circuit, item.name) for item in fields(circuit)}
    for part in ("start", "edges", "accounts"):
        plain[part] = [asdict(value) for value in plain[part]]
    for table in ("upstream", "downstream"):
        plain[table] = plain[table].to_dict(orient="list")
    return plain


def _unpack(plain: dict[str, Any]) -> Circuit:
    edges = (
        Edge(**{**edge, "sender": Node(**edge["sender"]), "receiver": Node(**edge["receiver"])})
        for edge in plain["edges"]
    )
    return Circuit(
        **{
            **plain,
            "start": tuple(Node(**node) for node in plain["start"]),
            "edges": tuple(edges),
            "accounts": tuple(Account(**account) for account in plain["accounts"]),
            "upstream": pd.DataFrame(plain["upstream"]),
            "downstream": pd.DataFrame(plain["downstream"]),
            "notes": tuple(plain["notes"]),
        }
    )
