"""`assemble`: a finished search as a `Circuit`: decisions, accounts, tables, provenance."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from lens_skills.circuits.account import Account
from lens_skills.circuits.decomposition import upstream_frame
from lens_skills.circuits.edge import Edge
from lens_skills.circuits.evidence import decide
from lens_skills.circuits.search import Search
from lens_skills.circuits.target import Answer
from lens_skills.circuits.wiring import Circuit
from lens_skills.example import Example
from lens_skills.scoring.provenance import examples_hash, versions
from lens_skills.stats.bootstrap import FEW_GROUPS


def assemble(
    search: Search,
    examples: Sequence[Example],
    first: Sequence[Example],
    second: Sequence[Example],
) -> Circuit:
    """The circuit, its edges judged together."""
    edges = decide(search.edges)
    edges.sort(key=lambda edge: -abs(edge.share or 0.0))
    accounts = tuple(_settled(account, edges, search) for account in search.accounts)
    target, lens = search.start.target, search.second[0].lens
    upstream = pd.DataFrame()
    notes = list(search.start.notes)
    if not isinstance(target, Answer) and search.start.nodes[0].kind == "neuron":
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
            "model": lens.name,
            "model_fingerprint": lens.fingerprint(),
            "implementation": lens.implementation,
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


def at_start(edge: Edge, account: Account, search: Search) -> bool:
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


def _settled(account: Account, edges: Sequence[Edge], search: Search) -> Account:
    sums = [
        sum(edge.effect or 0.0 for edge in edges if at_start(edge, account, search) and keep(edge))
        for keep in (lambda edge: edge.confirmed, lambda edge: True)
    ]
    return replace(account, explained=float(sums[0]), tested=float(sums[1]))


def _downstream(edges: Sequence[Edge], accounts: Sequence[Account], search: Search) -> pd.DataFrame:
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
