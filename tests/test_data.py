"""Halves that share no group: as even as can be, drawn by the seed, by names where asked."""

import random

import pytest

from lens_skills.data import halves


@pytest.mark.parametrize("even", ["rows", "groups"])
def test_halves_share_no_group(even) -> None:
    groups = [str(n // 7) for n in range(100)]
    first, second = halves(groups, seed=1, even=even)
    assert not {groups[n] for n in first.tolist()} & {groups[n] for n in second.tolist()}
    assert abs(len(first) - len(second)) <= 7
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(100))
    assert first.tolist() != halves(groups, seed=2, even=even)[0].tolist()


def test_uneven_groups_leave_the_rows_even_or_the_groups() -> None:
    groups = ["big"] * 60 + [str(n) for n in range(61)]
    assert abs(len(halves(groups, seed=0)[0]) - 60.5) < 1
    of_groups = halves(groups, seed=0, even="groups")
    assert sorted(len({groups[row] for row in half.tolist()}) for half in of_groups) == [31, 31]


@pytest.mark.parametrize("even", ["rows", "groups"])
def test_the_order_of_the_rows_does_not_matter(even) -> None:
    groups = [str(n % 13) for n in range(90)]
    mixed = random.Random(0).sample(groups, len(groups))
    first, other = (
        {rows[row] for row in halves(rows, seed=3, even=even)[0].tolist()}
        for rows in (groups, mixed)
    )
    assert first == other
