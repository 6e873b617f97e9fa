"""`score(…, share=)`: what few labels borrow from other tasks, and what they may not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lens_skills as ls
from lens_skills.errors import LensSkillsError
from lens_skills.scoring import Scores, score, select
from lens_skills.scoring.sharing import sampling_variance, shrink
from lens_skills.stats.shrinkage import fit_shared_prior, posterior
from lens_skills.tasks import Task
from tests.scoring.test_handmade import examples_with, handmade

LAYERS, WIDTH = 2, 150
NONE = {"n_permutations": 0, "n_controls": 0, "n_rotations": 0}


class World:
    """Tasks whose neurons carry the label with loads that the tasks have in common, or not."""

    def __init__(self, folder: Path, *, seed: int = 0, common: float = 0.3, own: float = 0.1):
        self.folder, self.random = folder, np.random.default_rng(seed)
        self.mu = common * self.random.normal(size=LAYERS * WIDTH)
        self.own = own
        self.rho: dict[str, np.ndarray] = {}

    def task(self, name: str, n: int, per_group: int = 1) -> tuple[Any, Task]:
        """A table of activations and its task; examples of a group are one example, noise aside."""
        label = np.repeat(self.random.permutation(np.arange(n // per_group) % 2), per_group)
        loads = np.tanh(self.mu + self.own * self.random.normal(size=len(self.mu)))
        self.rho[name] = loads
        signal = (2.0 * label - 1)[:, None] * loads
        noise = np.repeat(self.random.normal(size=(n // per_group, len(loads))), per_group, axis=0)
        acts = signal + np.sqrt(1 - loads**2) * noise
        acts += 1e-3 * self.random.normal(size=acts.shape)
        examples = examples_with(
            n, prefix=f"{name}-", groups=[f"{name} {k // per_group}" for k in range(n)],
            labels={"y": label, "z": label[::-1].copy()},
        )  # fmt: skip
        shape = (n, LAYERS, WIDTH)
        return handmade(self.folder / name, acts.reshape(shape), examples), Task(name, examples)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("share"))


@pytest.fixture(scope="module")
def others(world: World) -> list[Scores]:
    made = [world.task(name, 200) for name in ("second", "third")]
    return [score(table, task, metrics=["label:y", "label:z"], **NONE) for table, task in made]


@pytest.fixture(scope="module")
def few(world: World) -> tuple[Any, Task]:
    return world.task("first", 20)


def test_the_shrunk_r_is_the_posterior_mean_and_nearer_to_the_truth(
    world: World, few: Any, others: list[Scores]
) -> None:
    found = score(*few, metrics="label:y", share=others, **NONE)
    plain = score(*few, metrics="label:y", **NONE)
    views = [plain["label:y"], *(one["label:y"] for one in others)]
    z = torch.stack([view.r[0].atanh() for view in views])
    variances = torch.tensor([sampling_variance(view) for view in views])
    mean, sd = posterior(z, variances, fit_shared_prior(z, variances))
    assert found.shrunk_r is not None
    assert found.shrunk_low is not None
    assert found.shrunk_high is not None
    torch.testing.assert_close(found.shrunk_r[0, 0], mean.tanh())
    torch.testing.assert_close(found.shrunk_high[0, 0], (mean + 1.959964 * sd).tanh())
    torch.testing.assert_close(found.r, plain.r)
    truth = torch.from_numpy(world.rho["first"])
    assert (found.shrunk_r[0, 0] - truth).square().mean() < 0.4 * (
        found.r[0, 0] - truth
    ).square().mean()
    inside = (found.shrunk_low[0, 0] <= truth) & (truth <= found.shrunk_high[0, 0])
    assert 0.85 < inside.double().mean() < 0.99
    about = found.sharing["label:y"]
    assert about.tasks == ("second", "third")
    assert about.common == pytest.approx(0.3, abs=0.08)
    assert 15 < about.n_effective[0] < 30
    assert about.n_effective[1] == pytest.approx(200, rel=0.15)


def test_the_strongest_are_those_of_the_shrunk_r(
    world: World, few: Any, others: list[Scores]
) -> None:
    found = score(*few, metrics="label:y", share=others, **NONE)
    truly = set(np.abs(world.rho["first"]).argsort()[-20:].tolist())

    def hits(scores: Scores) -> int:
        return len({u.layer * WIDTH + u.index for u in scores["label:y"].top(20)} & truly)

    assert hits(found) >= 3 + hits(score(*few, metrics="label:y", **NONE))
    frame = found["label:y"].frame()
    assert frame["shrunk_r"].abs().is_monotonic_decreasing
    assert frame["name"][0] == found["label:y"].top(1)[0].name
    assert (frame["shrunk_low"] <= frame["shrunk_r"]).all()
    card = repr(found)
    assert "shrunk r = " in card
    assert "second, third" in card
    assert "p and q are of the r of these labels alone" in card


def test_clustered_labels_tell_as_much_as_their_groups(world: World, others: list[Scores]) -> None:
    found = score(*world.task("clustered", 120, 6), metrics="label:y", share=others, **NONE)
    assert 14 < found.sharing["label:y"].n_effective[0] < 32


def test_tasks_without_anything_in_common_change_no_order(tmp_path: Path) -> None:
    worlds = [World(tmp_path / str(k), seed=k + 10, common=0.0, own=0.3) for k in range(2)]
    table, task = worlds[0].task("first", 40)
    other = score(*worlds[1].task("second", 400), metrics="label:y", **NONE)
    found = score(table, task, metrics="label:y", share=[other], **NONE)
    about, view = found.sharing["label:y"], found["label:y"]
    assert about.common < 0.12
    plain = score(table, task, metrics="label:y", **NONE)["label:y"]
    names = [{u.name for u in one.top(20)} for one in (view, plain)]
    assert len(names[0] & names[1]) >= 17


def test_a_counterpart_may_be_named(few: Any, others: list[Scores]) -> None:
    named = score(*few, metrics="label:y", share=[others[0]["label:z"]], **NONE)
    assert named.sharing["label:y"].metrics == ("label:z",)


def test_saved_and_read_back(tmp_path: Path, few: Any, others: list[Scores]) -> None:
    found = score(*few, metrics=["label:y", "label:z"], share=others, **NONE)
    again = ls.load(found.save(tmp_path / "scores"))
    assert again.sharing == found.sharing
    torch.testing.assert_close(again.shrunk_r, found.shrunk_r)
    assert repr(again) == repr(found)


def test_a_neuron_that_is_constant_in_one_task(few: Any, others: list[Scores]) -> None:
    excluded = torch.zeros(LAYERS * WIDTH, dtype=torch.bool)
    excluded[3] = True
    silent = replace(others[0], excluded=excluded)
    plain = score(*few, metrics="label:y", **NONE)
    found, all_ = shrink(plain, [silent, others[1]]), shrink(plain, others)
    assert found.shrunk_r is not None
    assert all_.shrunk_r is not None
    assert bool(torch.isfinite(found.shrunk_r).all())
    assert abs(float(found.shrunk_r[0, 0, 3] - all_.shrunk_r[0, 0, 3])) > 1e-4
    gone = shrink(replace(plain, excluded=excluded), others)
    assert gone.shrunk_r is not None
    assert float(gone.shrunk_r[0, 0, 3]) == 0.0


def test_what_does_not_fit_is_refused(world: World, few: Any, others: list[Scores]) -> None:
    table, task = few
    ask: dict[str, Any] = {"metrics": "label:y", **NONE}
    with pytest.raises(LensSkillsError, match=r"share\[0\] \(first\) and the examples share 20 ex"):
        score(table, task, share=[score(table, task, **ask)], **ask)
    with pytest.raises(LensSkillsError, match=r"share\[1\] \(second\) and second share 200 exampl"):
        score(table, task, share=[others[0], others[0]], **ask)
    elsewhere = replace(others[0], provenance={**others[0].provenance, "model_fingerprint": "m"})
    with pytest.raises(LensSkillsError, match="scored with another model, 'm'"):
        score(table, task, share=[elsewhere], **ask)
    with pytest.raises(LensSkillsError, match="scored with another site"):
        score(table, task, share=[replace(others[0], site="hook_resid_post")], **ask)
    with pytest.raises(LensSkillsError, match="another positions"):
        score(table, task, share=[replace(others[0], positions=("0",))], **ask)
    alone = score(*world.task("alone", 20), metrics="label:z", **NONE)
    with pytest.raises(LensSkillsError, match=r"'label:y' has no counterpart in .*label:z"):
        score(table, task, share=[alone], **ask)
    with pytest.raises(LensSkillsError, match="is one metric, 'label:z', for 2 metrics here"):
        score(table, task, share=[alone["label:z"]], metrics=["label:y", "label:z"], **NONE)
    part = score(*world.task("part", 40), layers=0, **ask)
    with pytest.raises(LensSkillsError, match="does not hold L1N0"):
        score(table, task, share=[part], **ask)
    few_groups = score(*world.task("grouped", 40, 10), **ask)
    with pytest.raises(LensSkillsError, match="has 4 groups"):
        score(table, task, share=[few_groups], **ask)
    with pytest.raises(LensSkillsError, match="4 groups are too few to share"):
        score(*world.task("small", 40, 10), share=others, **ask)


def test_the_confirm_split_may_not_be_among_what_is_shared(world: World, few: Any) -> None:
    ask: dict[str, Any] = {"metrics": "label:y", "n_controls": 0, "n_rotations": 0}
    lent = world.task("lent", 40)
    other = score(*lent, **ask)
    explore = score(*few, share=[other], **ask)
    alike = replace(other, provenance={**other.provenance, "task": "first"})
    with pytest.raises(LensSkillsError, match="explore and confirm share 40 examples"):
        select(explore["label:y"], alike["label:y"])
    with pytest.raises(LensSkillsError, match="explore and confirm share 20 groups"):
        select(explore["label:y"], replace(alike, example_ids=("x",), groups=few[1].groups))
    confirm = replace(alike, example_ids=("x",), groups=("g",))
    chosen = select(explore["label:y"], confirm["label:y"])
    from lens_skills.scoring.leakage import known_to

    assert known_to(lent[1], chosen.provenance) == "40 examples"


@pytest.mark.parametrize("own", [0.0, 0.2])
def test_posterior_intervals_cover_over_repeated_tasks(tmp_path: Path, own: float) -> None:
    hits = []
    for seed in range(8):
        world = World(tmp_path / str(seed), seed=seed, common=0.25, own=own)
        other = [score(*world.task(n, 150), metrics="label:y", **NONE) for n in ("b", "c")]
        found = score(*world.task("a", 24), metrics="label:y", share=other, **NONE)
        truth = torch.from_numpy(world.rho["a"])
        assert found.shrunk_low is not None
        assert found.shrunk_high is not None
        hits.append((found.shrunk_low[0, 0] <= truth) & (truth <= found.shrunk_high[0, 0]))
    assert 0.90 < float(torch.stack(hits).double().mean()) < 0.98
