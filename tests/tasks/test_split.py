"""Laws of Task.split: disjoint by group, sized, stratified, seeded, blind to the order."""

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lens_skills import tasks
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.tasks import Task

ROOT = Path(__file__).resolve().parents[2]
FRACTIONS = (0.2, 0.4, 0.2, 0.2)


def mixed(n: int = 1200, seed: int = 0) -> Task:
    """Groups of 1 to 8, a 5 % label that follows the group half of the time, a continuous one."""
    generator = random.Random(seed)
    examples: list[Example] = []
    while len(examples) < n:
        group, rare_group = f"g{len(examples)}", generator.random() < 0.05
        for _ in range(generator.randint(1, 8)):
            rare = rare_group if generator.random() < 0.5 else generator.random() < 0.05
            examples.append(
                Example(
                    id=f"e{len(examples)}",
                    prompt="x",
                    labels={"rare": int(rare), "letter": generator.choice("aab")},
                    covariates={"size": generator.gauss(0, 1), "site": generator.choice("uvw")},
                    group=group,
                )
            )
    return Task("mixed", examples)


TASKS = {
    "agreement": tasks.agreement(),
    "ioi": tasks.ioi(),
    "arithmetic": tasks.arithmetic("+-*", (1, 2), 2000),
    "mixed": mixed(),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", TASKS)
def test_parts_are_disjoint_by_group_and_cover_the_task(name: str, seed: int) -> None:
    task = TASKS[name]
    parts = task.split(*FRACTIONS, seed=seed)
    assert Counter(e.id for part in parts for e in part) == Counter(e.id for e in task)
    seen = Counter(group for part in parts for group in part.groups)
    assert set(seen) == set(task.groups)
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", TASKS)
def test_sizes_and_label_proportions_come_close(name: str, seed: int) -> None:
    task = TASKS[name]
    labels = list(task[0].labels)
    for part, fraction in zip(task.split(*FRACTIONS, seed=seed), FRACTIONS, strict=True):
        assert abs(len(part) / len(task) - fraction) < 0.01
        for label in labels:
            whole, here = Counter(task.column(label)), Counter(part.column(label))
            for value, count in whole.items():
                assert abs(here[value] / len(part) - count / len(task)) < 0.02


def test_stratifying_is_what_keeps_the_proportions() -> None:
    """Other direction: a column that is not asked for drifts, the one asked for does not."""
    task = mixed()

    def drift(column: str, by: str) -> float:
        return sum(
            abs((part.column(column) == "u").mean() - (task.column(column) == "u").mean())
            for seed in range(10)
            for part in task.split(0.1, 0.1, seed=seed, by=by)
        )

    assert drift("site", by="site") < 0.3 * drift("site", by="letter")


def test_a_continuous_column_is_stratified_by_quarters() -> None:
    task = mixed()
    cuts = np.quantile(task.column("size"), [0.25, 0.5, 0.75])
    for part in task.split(0.3, 0.3, 0.4, by="size"):
        shares = np.bincount(np.searchsorted(cuts, part.column("size")), minlength=4) / len(part)
        np.testing.assert_allclose(shares, 0.25, atol=0.02)


def test_the_rest_is_left_out() -> None:
    task = mixed()
    parts = task.split(0.25, 0.25)
    assert abs(sum(map(len, parts)) / len(task) - 0.5) < 0.02
    assert not set(parts[0].groups) & set(parts[1].groups)


def test_the_seed_decides_and_the_order_does_not() -> None:
    task = mixed()
    shuffled = Task(task.name, random.Random(5).sample(task.examples, len(task)))
    ids = [{e.id for e in part} for part in task.split(*FRACTIONS, seed=3)]
    assert [{e.id for e in part} for part in shuffled.split(*FRACTIONS, seed=3)] == ids
    assert [{e.id for e in part} for part in task.split(*FRACTIONS, seed=4)] != ids
    kept = [e.id for e in task.split(0.5, seed=3)[0]]
    assert kept == sorted(kept, key=lambda id: int(id[1:]))


def test_where_a_part_comes_from_is_in_its_name() -> None:
    first, second = mixed().split(0.4, 0.6, seed=7)
    assert (first.split_name, first.recipe) == ("first split", "0.4 of all #0, seed 7")
    again = second.split(0.5, by="site")[0]
    assert again.split_name == "first split of the second split"
    assert again.recipe == "0.5 of 0.6 of all #1, seed 7 #0, seed 0, by site"
    explore, confirm = mixed().split(0.5, 0.5, names=("explore", "confirm"))
    assert (explore.split_name, confirm.split_name) == ("explore split", "confirm split")
    assert confirm[2:5].split_name == "examples 3 to 5 of the confirm split"
    with pytest.raises(LensSkillsError, match="1 names for 2 parts"):
        mixed().split(0.5, 0.5, names=("explore",))
    tenth = mixed().split(*[0.1] * 10)[9]
    assert tenth.split_name == "10th split"


@pytest.mark.parametrize("fractions", [(), (0.5, 0.6), (0.5, 0), (-0.1, 0.5)])
def test_impossible_fractions_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(LensSkillsError, match="at most 1"):
        mixed(40).split(*fractions)


def test_thirds_sum_to_one() -> None:
    assert sum(map(len, mixed(60).split(1 / 3, 1 / 3, 1 / 3))) == len(mixed(60))
    assert len(mixed(60).split(1)[0]) == len(mixed(60))


def test_too_few_groups_are_refused() -> None:
    task = Task("t", [Example(id=str(i), prompt="x", group="one") for i in range(10)])
    with pytest.raises(LensSkillsError, match="10 examples in 1 groups leave part #1 empty"):
        task.split(0.5, 0.5)


def test_unknown_column_is_refused() -> None:
    with pytest.raises(LensSkillsError, match="Did you mean 'site'"):
        mixed(40).split(0.5, by="sit")


SCRIPT = """
from lens_skills import tasks
for task in (tasks.agreement(200, seed=1), tasks.ioi(100, seed=1),
             tasks.arithmetic("+/", (1, 3), 300, seed=1, options=True)):
    print(task.fingerprint(), *(part.fingerprint() for part in task.split(0.3, 0.7, seed=2)))
"""


def test_tasks_and_splits_are_the_same_in_every_process() -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 3
