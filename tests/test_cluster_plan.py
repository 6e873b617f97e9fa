"""The simulation of a long pass: what must hold of any, and a course worked out by hand."""

import doctest
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from cluster_plan import Work, Workers, simulate
from cluster_plan_page import figures, memory, plan, validation


@pytest.mark.parametrize(("shards", "nodes", "each"), [(8, 1, 1), (8, 2, 2), (5, 2, 1), (3, 4, 2)])
def test_nothing_happens(shards: int, nodes: int, each: int) -> None:
    work = Work([2.0] * shards, first=1.0, begin=0.5, more=0.25)
    rounds = -(-shards // (nodes * each))
    found = simulate(work, Workers(nodes, each, opening=3.0))
    assert found.seconds == pytest.approx(1 + 3 + 0.5 + rounds * 2.25)
    assert (found.lost, found.deaths, found.again) == (0, 0, 0)


def test_a_death_by_hand() -> None:
    """Two workers, four shards of 10 s; one dies at 4 s, is back at 6 s and prepares for 1 s.

    The other: 11, 21, 31 s. The one that died: its own shard again, 6 + 1 + 10 = 17 s; the four
    are done at 11, 17, 21 and 27 s.
    """
    found = simulate(Work([10.0] * 4, begin=1.0), Workers(2, 1, at=4.0, back=2.0))
    assert found.seconds == pytest.approx(27)
    assert (found.lost, found.deaths, found.again) == (pytest.approx(4), 1, 1)


def test_a_node_takes_all_its_workers_with_it() -> None:
    found = simulate(Work([10.0] * 8), Workers(2, 4, at=4.0, back=100.0))
    assert found.again == 4
    assert found.lost == pytest.approx(16)
    assert found.seconds == pytest.approx(20)  # the other four, once more


def test_one_process_adds_the_parts() -> None:
    """Adding is done by one: many workers are then no faster."""
    work = Work([1.0] * 64, merge=1.0)
    assert simulate(work, Workers(1, 64)).seconds == pytest.approx(65)
    assert simulate(work, Workers(1, 8)).seconds >= 65


def test_deaths_are_as_frequent_as_said() -> None:
    work, rate = Work([10.0] * 400), 1 / 500
    found = [simulate(work, Workers(4, 1, death_rate=rate, back=5.0), seed) for seed in range(200)]
    told = np.array([each.deaths for each in found])
    expected = np.array([4 * each.seconds * rate for each in found])
    wrong = (told - expected).mean() / (told.std() / np.sqrt(len(told)))
    assert abs(wrong) < 4
    lost = np.array([each.lost for each in found]).sum() / told.sum()
    assert lost == pytest.approx(5, rel=0.1)  # half a shard each


def test_tables_without_numbers_are_heads() -> None:
    assert [len(made({})) for made in (figures, memory, plan, validation)] == [1, 1, 1, 1]


def test_examples_of_the_pages() -> None:
    import cluster_plan
    import engine_ray_page

    for module in (cluster_plan, engine_ray_page):
        found = doctest.testmod(module)
        assert found.attempted
        assert not found.failed
