"""Circuits of known neurons: how edges are proposed, how many of them hold, and how long it takes.

    OMP_NUM_THREADS=1 python benchmarks/circuit.py
    python benchmarks/circuit.py --starts L28N907 --pairs 32

``attribution alone`` is what is claimed without a test: the same edges, first order only. Its
share confirmed is what exact path patching on other examples leaves of such a list. ``random
confirmed``: of the random edges beside them. ``ranks``:
Spearman's correlation of estimate and exact effect over the edges tested, upstream and downstream.
Seconds are processor time, which other work on the machine does not lengthen.
"""

import argparse
import time
from typing import Any

import pandas as pd
import torch
from timing import arguments, run_parts

import lens_skills as ls
from lens_skills.activations import logit_diff
from lens_skills.circuits import PROPOSALS, Circuit, circuit, equal_length_pairs
from lens_skills.circuits.discovery import proposing_and_testing
from lens_skills.circuits.edge_attribution import (
    channels_of,
    edges_into,
    edges_out_of,
    strongest_edges,
)
from lens_skills.circuits.paired_cache import paired_caches
from lens_skills.circuits.targets import AnswerTarget, orient, parse_start
from lens_skills.models import as_adapter
from lens_skills.models.sublayers import ModelWeights
from lens_skills.stats.correlation import rank_agreement
from lens_skills.tasks import few

STARTS = ("L28N907", "L27N1010")


def alone(model: Any, pairs: Any, start: str, n_edges: int) -> tuple[float, int]:
    """Processor seconds and edges of attribution patching by itself, into and out of the start."""
    begun = time.process_time()
    adapter, wanted = as_adapter(model), logit_diff()
    caches = paired_caches(ModelWeights(adapter), proposing_and_testing(pairs, 0)[0], wanted)
    target = orient(parse_start(adapter, start, -1), caches, pairs, wanted).target
    ends = parse_start(adapter, start, -1)
    channels = channels_of(caches[0], ends[0])
    propose, answer = PROPOSALS["attribution"], AnswerTarget(wanted)
    up = strongest_edges(
        [edges_into(s, channels, propose(s, target)) for s in caches], len(pairs), n_edges
    )
    down = strongest_edges(
        [edges_out_of(s, ends[0], propose(s, answer)) for s in caches], len(pairs), n_edges
    )
    return time.process_time() - begun, len(up) + len(down)


def ranks(found: Circuit) -> list[float]:
    """How well estimates rank the exact effects, per target."""
    values = []
    for target in dict.fromkeys(totals.target for totals in found.totals):
        edges = found.frame()
        edges = edges[edges.target == target]
        if len(edges) > 2:
            both = [torch.tensor(edges[name].tolist()).double() for name in ("proposed", "effect")]
            values.append(rank_agreement(*both))
    return values


def row(found: Circuit, how: str, seconds: float) -> dict[str, Any]:
    """What one way of proposing came to."""
    edges = found.frame()
    confirmed = edges.verdict == "confirmed"
    signs = (edges.proposed * edges.effect > 0)[confirmed]
    up, rate = found.part("upstream"), found.random_confirmed
    return {
        "start": found.target,
        "proposed by": how,
        "edges": len(edges),
        **found.counts,
        "right sign": float(signs.mean()),
        "random": len(found.random),
        "random confirmed": sum(edge.confirmed for edge in found.random),
        "at most": rate[2] if rate else float("nan"),
        "ranks": " ".join(f"{value:.2f}" for value in ranks(found)),
        "unexplained": up.unexplained,
        "low": up.unexplained_low,
        "high": up.unexplained_high,
        "absolute": up.absolute,
        "seconds": seconds,
    }


def measured(asked: argparse.Namespace) -> dict[str, float]:
    """Every way of proposing edges, for every start; prints the table as it grows."""
    model = ls.load_model()
    pairs = few(equal_length_pairs(model, ls.tasks.agreement(n=1000)), asked.pairs, seed=0)
    rows, agreements = [], list[float]()
    figures: dict[str, float] = {"circuit_pairs": len(pairs)}

    def add(start: str, how: str, found: Circuit, seconds: float, n_edges: int) -> None:
        rows.append(row(found, how, seconds) | {"edges": n_edges})
        counts = {
            "edges": n_edges,
            **found.counts,
            "random": rows[-1]["random"],
            "random_confirmed": rows[-1]["random confirmed"],
            "unexplained": rows[-1]["unexplained"],
            "unexplained_low": rows[-1]["low"],
            "unexplained_high": rows[-1]["high"],
            "absolute": rows[-1]["absolute"],
            "wrong_sign": round((1 - rows[-1]["right sign"]) * rows[-1]["confirmed"]),
            "seconds": seconds,
        }
        short = how.removeprefix("attribution ")
        figures.update({f"circuit_{start}_{short}_{key}": value for key, value in counts.items()})
        print(pd.DataFrame(rows).to_string(index=False), flush=True)

    for start in asked.starts:
        for how in PROPOSALS:
            begun = time.process_time()
            found = circuit(
                model, pairs, start, proposals=how, n_edges=asked.edges, depth=asked.depth
            )
            seconds = time.process_time() - begun
            add(start, how, found, seconds, len(found.frame()))
            if how == "attribution":
                print(found)
                agreements += ranks(found)
                seconds, n_edges = alone(model, pairs, start, asked.edges)
                first = circuit(model, pairs, start, n_edges=asked.edges, depth=1)
                add(start, "attribution alone", first, seconds, n_edges)
    n_groups = len({example.group for example in pairs})
    print(f"\n{len(pairs)} pairs of agreement in {n_groups} groups, depth {asked.depth}")
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    return figures | {
        "circuit_ranks_lowest": min(agreements),
        "circuit_ranks_highest": max(agreements),
    }


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--starts", nargs="+", default=list(STARTS))
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--edges", type=int, default=60)
    parser.add_argument("--depth", type=int, default=2)
    given = parser.parse_args()
    run_parts({"": lambda: measured(given)}, given)
