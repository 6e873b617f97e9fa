"""What edges are called: both directions, by simulation, against scipy and by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lens_skills.circuits import Edge, Node
from lens_skills.circuits.edge_tests import (
    RandomEdges,
    decide,
    decide_random,
    edge_statistics,
    p_within,
    rank_among,
)
from lens_skills.models import as_adapter
from lens_skills.models.sublayers import ModelWeights

MLP = Node(5, "mlp", None, "-1")
GROUPS = [str(k) for k in range(40)]
DELTA = 0.1


def some_edges(n: int, stage: int = 0, first: int = 0) -> list[Edge]:
    senders = [Node(2, "neuron", first + k, "-1") for k in range(n)]
    return [Edge(node, MLP, "in", "x", 0.0, stage) for node in senders]


def measured(values: np.ndarray, stage: int = 0, first: int = 0) -> list[Edge]:
    edges = some_edges(len(values), stage, first)
    return edge_statistics(edges, torch.from_numpy(values), GROUPS, 10.0, DELTA, n_draws=199)


def test_p_is_of_an_effect_within_the_bounds() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, size=(6, 40))
    values[3:] *= -1
    found = p_within(torch.from_numpy(values), GROUPS, DELTA)
    for row, p in zip(values, found.tolist(), strict=True):
        side = np.sign(row.mean())
        expected = stats.ttest_1samp(row, side * DELTA).pvalue
        assert p == pytest.approx(expected if abs(row.mean()) > DELTA else 1.0)
    assert p_within(torch.zeros(1, 40), GROUPS, DELTA).item() == 1


def test_words_are_right_and_wrong_as_often_as_stated() -> None:
    """Effects just at the bound are rarely confirmed, larger ones are, tiny ones are negligible."""
    random = np.random.default_rng(1)
    spread, false, power, equal, away = 0.2, 0, 0, 0, 0
    for _ in range(40):
        means = np.repeat([DELTA, 3 * DELTA, 0.0], [10, 10, 10])
        found = measured(means[:, None] + random.normal(0, spread, size=(30, 40)))
        words = [edge.verdict for edge in found]
        false += words[:10].count("confirmed")
        power += words[10:20].count("confirmed")
        away += words[:10].count("negligible")
        equal += words[20:].count("negligible")
    assert false / 400 <= 0.045  # 2.5 % on the far side
    assert away / 400 <= 0.075  # 5 %
    assert power / 400 >= 0.95
    assert equal / 400 >= 0.8


def test_an_effect_that_is_merely_not_zero_is_not_confirmed() -> None:
    """What nearly every edge of a deterministic patch has: tiny, and always there."""
    tiny = 0.1 * DELTA + np.random.default_rng(2).normal(0, 0.01, size=(30, 40))
    found = decide(measured(tiny), [], n_stages=1)
    assert {edge.verdict for edge in found} == {"negligible"}


def test_the_false_discovery_rate_holds_over_adaptive_stages() -> None:
    """A second stage looks at as many edges as the first confirmed, on the same examples."""
    random, shares, found_true = np.random.default_rng(3), [], 0
    null = measured(random.normal(0, 0.02, size=(100, 40)), first=500)
    for _ in range(60):
        common = random.normal(0, 0.1, size=40)  # what edges on the same pairs share
        means = np.repeat([5 * DELTA, DELTA], [5, 25])
        edges = measured(means[:, None] + common + random.normal(0, 0.3, size=(30, 40)))
        first = [e for e in decide(edges, null, n_stages=2) if e.confirmed]
        more = np.full(5 * len(first), DELTA)
        values = more[:, None] + common + random.normal(0, 0.3, size=(len(more), 40))
        edges += measured(values, stage=1, first=100)
        again = [replace(e, stage=1) for e in null]
        words = decide(edges, [*null, *again], n_stages=2)
        hits = [e.confirmed for e in words]
        found_true += sum(hits[:5])
        shares.append(sum(hits[5:]) / max(1, sum(hits)))
    assert np.mean(shares) <= 0.05
    assert found_true >= 0.95 * 300


def test_ranks_are_within_stage_and_grain() -> None:
    strong = replace(some_edges(1)[0], effect=-5.0)
    whole = Edge(Node(2, "mlp", None, "-1"), MLP, "in", "x", 0.0, 0, effect=5.0)
    later = replace(strong, stage=1)
    null = [replace(e, effect=float(k)) for k, e in enumerate(some_edges(9, first=10))]
    p = rank_among([strong, whole, later], null)
    assert p.tolist() == [0.5, 1.0, 1.0]  # 5, 6, 7, 8 reach it: (1 + 4) / 10


def test_one_strong_edge_among_many_tested_is_confirmed() -> None:
    """A q over ranks among a hundred random edges could call nothing but crowds confirmed."""
    random, hits, n = np.random.default_rng(6), 0, 60
    for _ in range(n):
        means = 0.1 * DELTA * random.lognormal(0, 1, size=160)
        means[0] = 5 * DELTA
        edges = measured(means[:, None] + random.normal(0, 0.2 * DELTA, size=(160, 40)))
        hits += decide(edges[:60], edges[60:], n_stages=1)[0].confirmed
    assert hits >= 0.9 * n


def test_edges_picked_at_random_are_rarely_confirmed() -> None:
    """Every proposed edge is itself a random one, and effects are heavy-tailed: the bound of 1 %
    is passed by many, the random ones beside them not."""
    random, edges_confirmed = np.random.default_rng(4), 0
    for _ in range(100):
        means = DELTA * random.lognormal(0, 2, size=130)
        edges = measured(means[:, None] + random.normal(0, 0.01, size=(130, 40)))
        proposed, null = edges[:30], edges[30:]
        edges_confirmed += sum(e.confirmed for e in decide(proposed, null, n_stages=1))
        assert sum(e.verdict == "confirmed" for e in proposed) > 5  # beyond the bound
    assert edges_confirmed / 3000 <= 0.055


def test_a_random_edge_gets_the_word_it_would_have_had() -> None:
    edges = decide(measured(np.full((3, 40), 5 * DELTA)), [], n_stages=1)
    confirmed = [replace(e, verdict="confirmed") for e in edges]
    like, weak = measured(np.array([[6 * DELTA], [2 * DELTA]]) * np.ones(40), first=50)
    assert [e.verdict for e in (like, weak)] == ["confirmed"] * 2
    assert [e.verdict for e in decide_random(confirmed, [like, weak])] == ["confirmed", "undecided"]
    assert not any(e.confirmed for e in decide_random(edges[:0], [like, weak]))


def test_random_edges_have_the_same_receivers_and_the_nearest_senders(tiny: Any) -> None:
    picked = RandomEdges(ModelWeights(as_adapter(tiny)), seed=0)
    answer = Node(4, "answer", None, "-1")
    likes = [
        Edge(Node(2, "neuron", 3, "-1"), answer, "answer", "x", 1.0, 1),
        Edge(Node(1, "head", 2, "-1"), answer, "answer", "x", 1.0, 1),
        Edge(Node(1, "mlp", None, "-1"), answer, "answer", "x", 1.0, 1),
        Edge(Node(2, "norm", None, "-1"), answer, "answer", "x", 1.0, 1),
    ]
    taken = {edge.key for edge in likes}
    found = picked.draw(likes, 40, taken)
    assert len(found) == 40 == len({edge.key for edge in found})
    assert not {edge.key for edge in found} & {edge.key for edge in likes}
    assert {edge.key for edge in found} <= taken
    assert {(e.receiver, e.channel, e.stage, e.target) for e in found} == {
        (answer, "answer", 1, "x")
    }
    assert {e.sender.layer for e in found if e.sender.kind == "neuron"} == {2}
    heads = [e.sender for e in found if e.sender.kind == "head"]
    assert {(n.layer, n.index) for n in heads[:3]} == {(1, 0), (1, 1), (1, 3)}
    mlps = [e.sender.layer for e in found if e.sender.kind == "mlp"]
    assert set(mlps[:2]) == {0, 2}
    # No more than there are.
    every = picked.draw([likes[2]], 400, set())
    assert 0 < len(every) < 40
