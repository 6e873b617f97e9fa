"""Null draws trade what they may trade and nothing else, the same on every machine."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from lens_skills.errors import LensSkillsError
from lens_skills.stats import multiple_testing
from lens_skills.stats.multiple_testing import (
    StoredDraws,
    block_draws,
    check_scheme,
    choose_scheme,
    group_codes,
    permutation_draws,
    signs,
)

GROUPS = ["b", "a", "c", "a", "b", "b", "d", "a", "c", "d"]


def per_group(values: np.ndarray) -> dict[str, Counter]:
    found: dict[str, Counter] = {}
    for group, value in zip(GROUPS, values.tolist(), strict=True):
        found.setdefault(group, Counter())[value] += 1
    return found


def test_free_draws_are_permutations() -> None:
    draws = permutation_draws(GROUPS, 50, "free", seed=0).numpy()
    assert draws.shape == (10, 50)
    assert (np.sort(draws, axis=0) == np.arange(10)[:, None]).all()
    assert len({tuple(draw) for draw in draws.T}) == 50


def test_free_draws_put_every_value_everywhere_equally_often() -> None:
    draws = permutation_draws([str(i) for i in range(5)], 4_000, "free", seed=1).numpy()
    for row in draws:
        counts = np.bincount(row, minlength=5)
        assert ((counts - 800) ** 2 / 800).sum() < 18.5  # 0.1 % point of chi² with 4 degrees


def test_draws_within_groups_keep_each_groups_values() -> None:
    values = np.arange(10)
    draws = permutation_draws(GROUPS, 50, "within", seed=0).numpy()
    for draw in draws.T:
        assert per_group(values[draw]) == per_group(values)
    # And every arrangement inside a group does occur: 3! · 3! · 2! · 2! in all.
    many = permutation_draws(GROUPS, 3_000, "within", seed=0).numpy()
    assert len({tuple(draw) for draw in many.T}) == 144


def test_draws_between_groups_keep_groups_constant() -> None:
    values = np.array([{"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}[group] for group in GROUPS])
    draws = permutation_draws(GROUPS, 300, "between", seed=0).numpy()
    arrangements = set()
    for draw in draws.T:
        found = per_group(values[draw])
        assert all(len(counter) == 1 for counter in found.values())
        arrangement = tuple(next(iter(found[group])) for group in "abcd")
        assert sorted(arrangement) == [1.0, 2.0, 3.0, 4.0]  # whole groups trade, none is lost
        arrangements.add(arrangement)
    assert len(arrangements) == 24


@pytest.mark.parametrize("scheme", ["free", "within", "between"])
def test_the_seed_decides_a_draw(scheme: str) -> None:
    def draw(seed: int) -> list[list[int]]:
        return permutation_draws(GROUPS, 20, scheme, seed=seed).tolist()  # type: ignore[arg-type]

    assert draw(4) == draw(4)
    assert draw(4) != draw(5)


def test_nothing_to_exchange_is_refused() -> None:
    with pytest.raises(LensSkillsError, match="every example is its own group"):
        permutation_draws(["a", "b", "c"], 1, "within", seed=0)
    with pytest.raises(LensSkillsError, match="one group only"):
        permutation_draws(["a", "a", "a"], 1, "between", seed=0)


@pytest.mark.parametrize(
    ("values", "groups", "scheme"),
    [
        ([0, 1, 0, 1], "abcd", "free"),  # every example its own group
        ([0, 1, 0, 1], "aabb", "within"),  # all groups have the same mean
        ([0.1, 0.3, 0.3, 0.1, 0.2, 0.2], "aabbcc", "within"),  # the same with rounding
        ([0, 0, 1, 1], "aabb", "between"),  # constant in each group
        ([0.1, 0.1, 0.3, 0.3, 0.1, 0.1], "aabbcc", "between"),
        ([0.1, 0.1, 0.3, 0.3, 0.1], "aabbc", "signs"),  # groups of different sizes may not trade
        ([0, 1, 1, 1], "aabb", "signs"),  # varies inside groups and between them
        ([0, 0.1, 5, 5.1], "aabb", "signs"),  # nearly constant in each group is not constant
        ([0, 1, 0.1, 1], "aabb", "signs"),  # and nearly the same mean is not the same
        ([0, 1, 2, 5], "aaaa", "within"),  # one group of all
    ],
)
def test_the_scheme_follows_the_metric(values: list[float], groups: str, scheme: str) -> None:
    metric = torch.tensor(values, dtype=torch.float64)
    assert choose_scheme(metric, list(groups)) == scheme
    # The scheme is a property of the metric's pattern, not of its unit or origin.
    assert choose_scheme(1e3 * metric + 7, list(groups)) == scheme


def test_unknown_schemes_are_refused() -> None:
    for scheme in ("auto", "within", "between", "free", "signs"):
        check_scheme(scheme)
    with pytest.raises(LensSkillsError, match="no exchange scheme 'freely'"):
        check_scheme("freely")


def test_group_codes_do_not_depend_on_the_order_of_the_rows() -> None:
    assert group_codes(["b", "a", "b"]).tolist() == [1, 0, 1]
    assert group_codes(["a", "b", "b"]).tolist() == [0, 1, 1]


def test_signs_are_the_bits_of_a_hash_of_the_key() -> None:
    keys, n = ["b", "ü", "b", "a"], 21
    for row, key in zip(signs(keys, n, seed=3, purpose="null").tolist(), keys, strict=True):
        digest = hashlib.shake_256(f"null/3/{key}".encode()).digest(3)
        bits = "".join(f"{byte:08b}" for byte in digest)
        assert row == [1 if bit == "1" else -1 for bit in bits[:n]]


def test_signs_are_fair_coins_shared_by_a_key() -> None:
    keys = [f"group {i % 400}" for i in range(800)]
    drawn = signs(keys, 101, seed=0, purpose="null").numpy()
    assert drawn.shape == (800, 101)
    assert set(np.unique(drawn)) == {-1, 1}
    assert (drawn[:400] == drawn[400:]).all()
    coins = drawn[:400].astype(float)
    n = coins.size
    assert abs(coins.mean()) < 3.3 / np.sqrt(n)
    # Two keys agree as often as not, in every draw and over the draws.
    across = np.corrcoef(coins)[np.triu_indices(400, 1)]
    assert abs(across.mean()) < 3.3 / np.sqrt(n)
    assert across.std() == pytest.approx(1 / np.sqrt(101), rel=0.05)


def test_signs_differ_by_purpose_and_seed_and_grow_with_the_draws() -> None:
    base = signs(["a", "b"], 64, seed=0, purpose="null")
    assert not torch.equal(base, signs(["a", "b"], 64, seed=1, purpose="null"))
    assert not torch.equal(base, signs(["a", "b"], 64, seed=0, purpose="control"))
    assert not torch.equal(base[0], base[1])
    assert torch.equal(base, signs(["a", "b"], 99, seed=0, purpose="null")[:, :64])
    assert torch.equal(base.flip(0), signs(["b", "a"], 64, seed=0, purpose="null"))


def test_signs_are_the_same_in_every_process() -> None:
    """hash(str) differs between processes; a resumed or distributed pass must not."""
    code = (
        "from lens_skills.stats.multiple_testing import signs;"
        "print(signs(['3+4', 'keys'], 24, seed=7, purpose='null').tolist())"
    )
    expected = str(signs(["3+4", "keys"], 24, seed=7, purpose="null").tolist())
    root = str(Path(__file__).parents[2])
    others = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("0", "12345")
    ]
    for other in others:
        assert other.communicate(timeout=120)[0].strip() == expected


def test_blocks_of_one_size_trade_whole() -> None:
    groups = ["a", "b", "b", "c", "c", "d"]
    draws = block_draws(groups, 50, seed=0).T.tolist()
    for draw in draws:
        assert sorted(draw) == list(range(6))
        assert {draw[0], draw[5]} == {0, 5}
        assert (draw[1], draw[2]) in [(1, 2), (3, 4)]
    assert len({tuple(draw) for draw in draws}) == 4


@pytest.mark.parametrize("scheme", ["free", "within", "between", "kinds"])
def test_draws_in_a_file_are_those_in_memory(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [f"g{row if scheme == 'free' else row // 4}" for row in range(60)]
    kinds = [f"k{row // 2}" for row in range(60)]
    asked = {"seed": 3, "kinds": kinds}
    held = permutation_draws(groups, 37, scheme, **asked)
    monkeypatch.setattr(multiple_testing, "_IN_MEMORY", 100)
    monkeypatch.setattr(multiple_testing, "_ROWS_TOGETHER", 7)
    stored = StoredDraws(groups, 37, scheme, **asked)
    assert stored._held is None
    assert stored.shape == held.shape
    for index in (torch.arange(60), torch.tensor([59, 0, 3, 3]), torch.arange(10, 30)):
        assert stored[index].equal(held[index])
