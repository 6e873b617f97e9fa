"""MIB's two areas: on curves integrated by hand, and every edge of a model run as defined."""

from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import lens_skills as ls
from lens_skills.circuits import GraphAreas
from lens_skills.circuits.edge_attribution import target_gradients
from lens_skills.circuits.paired_cache import paired_caches
from lens_skills.circuits.run_circuit import CircuitRun, EdgeScheme, RandomCircuits
from lens_skills.circuits.targets import AnswerTarget
from lens_skills.circuits.whole_graph import SHARES, graph_areas, graph_edges, rank_edges
from lens_skills.models import as_adapter
from lens_skills.models.sublayers import ModelWeights
from tests.circuits.test_faithfulness import of_answer, run
from tests.circuits.test_run_circuit import all_edges, plain
from tests.planted_circuit import planted_circuit, twins


def of(values: Any) -> GraphAreas:
    return GraphAreas(1000, SHARES, tuple(int(1000 * s) for s in SHARES), tuple(values))


def test_areas_are_integrals_over_the_share_by_hand() -> None:
    """Circuits whose faithfulness is their share; that are whole at once; that overshoot."""
    assert SHARES == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    linear = of(SHARES)
    assert linear.cpr == pytest.approx((1 - 0.001**2) / 2)
    assert linear.cmd == pytest.approx((1 - 0.001) ** 2 / 2)
    at_once = of(np.ones(10))
    assert (at_once.cpr, at_once.cmd) == pytest.approx((0.999, 0.0))
    # 1.5 at half of the edges, 1 at all, the corrupted prompt's answer up to a fifth.
    overshoots = of([0, 0, 0, 0, 0, 0, 0, 0, 1.5, 1.0])
    assert overshoots.cpr == pytest.approx(0.3 * 0.75 + 0.5 * 1.25)
    assert overshoots.cmd == pytest.approx(0.199 * 1 + 0.3 * 0.75 + 0.5 * 0.25)
    # The piecewise linear curve itself, integrated by another program.
    values = np.random.default_rng(0).normal(0.7, 0.4, size=10)
    found = of(values)
    kinks = list(SHARES[1:-1])
    for area, f in (
        (found.cpr, lambda s: np.interp(s, SHARES, values)),
        (found.cmd, lambda s: np.interp(s, SHARES, np.abs(1 - values))),
    ):
        assert area == pytest.approx(quad(f, 0.001, 1, points=kinks, limit=200)[0], abs=1e-8)


def test_the_graph_of_gpt2_has_the_edges_mib_counts() -> None:
    adapter = Mock(n_layers=12, n_heads=12)
    options = {"adapter": adapter, "group": 1, "gates": ("in",)}
    for parallel, fewer in ((False, 0), (True, 12 * 12)):  # no head of a block sends to its MLP
        weights = Mock(spec=ModelWeights, parallel=parallel, **options)
        assert len(graph_edges(RandomCircuits(weights), None)) == 32_491 - fewer


def test_shares_of_all_edges_are_run_alone(tiny: Any) -> None:
    """Each size against a run of the same edges, position by position and gate by gate."""
    examples = twins(16)
    with planted_circuit(tiny, examples):
        adapter = as_adapter(tiny)
        weights = ModelWeights(adapter)
        caches = paired_caches(weights, twins(24, seed=7), ls.logit_diff())
        answer = AnswerTarget(ls.logit_diff())
        ranked = rank_edges(
            paired_caches(weights, examples, ls.logit_diff()), answer, target_gradients
        )
        assert sorted(map(str, ranked)) == sorted(
            map(str, graph_edges(RandomCircuits(weights), None))
        )
        found = graph_areas(caches, answer, ranked)
        sizes = [int(share * len(ranked)) for share in SHARES]
        assert found.sizes == tuple(sizes)
        words = (" girl", " table")
        clean, corrupted = (
            plain(tiny, adapter, [str(getattr(e, name)) for e in twins(24, seed=7)], words).mean()
            for name in ("prompt", "corrupted")
        )
        by_name = {
            (e.sender.name, e.receiver.name, "in" if e.channel in ("gate", "up") else e.channel): []
            for e in all_edges()
        }
        columns = {str(-k) for k in range(1, caches[0].n_columns + 1)}
        for e in all_edges():
            if e.receiver.position in columns:
                name = "in" if e.channel in ("gate", "up") else e.channel
                by_name[e.sender.name, e.receiver.name, name].append(e)
        for size, value in list(zip(found.sizes, found.faithfulness, strict=True))[-4:]:
            edges = [e for a, b, c in ranked[:size] for e in by_name[a.name, b.name, c]]
            alone = torch.cat(
                [CircuitRun(cache, EdgeScheme()).measure([edges], answer)[0] for cache in caches]
            )
            expected = (alone.mean() - corrupted) / (clean - corrupted)
            assert value == pytest.approx(float(expected), abs=1e-3)
        assert found.faithfulness[-1] == pytest.approx(1, abs=1e-6)
        # Ranked the other way round, the planted way comes last: a worse area.
        worst = graph_areas(caches, answer, ranked[::-1])
        assert found.cmd < worst.cmd
        assert found.cpr > worst.cpr


def test_the_card_has_them_beside_our_curve(tiny: Any) -> None:
    with planted_circuit(tiny, twins()):
        found = run(tiny, of_answer(), 16, n_random=0, removals=False, ranked_on=twins(16, seed=9))
    graph = found["upstream"].graph
    assert graph is not None
    assert f"CPR {graph.cpr:.2f}, CMD {graph.cmd:.2f}" in repr(found)
    assert max(map(len, repr(found).splitlines())) <= 80
