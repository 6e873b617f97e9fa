"""Minimal sets: other libraries' probes, neurons planted or not, a choice without the test."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

import lens_skills as ls
from lens_skills.diagnostics import MinimalSet, minimal_set
from lens_skills.diagnostics.class_probes import (
    L1_RATIO,
    PENALTY,
    accuracy_interval,
    balanced,
    elastic_net_weights,
    predict,
    probeless,
    standardised,
)
from lens_skills.diagnostics.minimal_set import _folds, _representatives, _Split, _Work, smallest
from lens_skills.errors import LensSkillsError

N_CLASSES = 3


def drawn(
    seed: int, n: int = 120, m: int = 60, planted: int = 0, size: int = 3, strength: float = 1.2
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Noise that groups share in part, with the class in the first neurons."""
    random = np.random.default_rng(seed)
    codes = random.permutation(np.arange(n) % N_CLASSES)
    group = np.arange(n) // size
    values = random.normal(size=(m, n)) + 0.5 * random.normal(size=(m, n // size + 1))[:, group]
    for place in range(planted):
        values[place] += strength * (codes == place % N_CLASSES)
    return torch.from_numpy(values).float(), torch.from_numpy(codes), [f"g{g}" for g in group]


def work(seed: int, **options: Any) -> _Work:
    settings = {"ks": [1, 2, 4, 8, 16], "margin": 0.01, "method": "elastic_net", "n_random": 10}
    settings |= {name: options.pop(name) for name in list(options) if name in settings}
    learn, learn_codes, groups = drawn(2 * seed, **options)
    held, held_codes, others = drawn(2 * seed + 1, **options)
    every = torch.arange(len(learn))
    return _Work(
        raw=torch.cat([learn, held], dim=1),
        learn=_Split(learn_codes, groups, _folds(learn_codes, groups)),
        held=_Split(held_codes, [f"other {name}" for name in others], []),
        every=every,
        places=every,
        reference="all",
        seed=seed,
        **settings,  # pyright: ignore[reportArgumentType]
    )


@pytest.mark.parametrize("m", [5, 400])
def test_a_probe_says_what_scikit_learn_says(m: int) -> None:
    learn, codes, _ = drawn(1, m=m, planted=4)
    held, _, _ = drawn(2, m=m, planted=4)
    x, other = standardised(learn, learn), standardised(learn, held)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probe = LogisticRegression(class_weight="balanced", max_iter=5000, tol=1e-8)
        wanted = probe.fit(x.T.numpy(), codes.numpy()).predict(other.T.numpy())
    assert np.mean(predict(x, codes, other).numpy() == wanted) > 0.98


def test_the_elastic_net_is_scikit_learns() -> None:
    learn, codes, _ = drawn(3, planted=4)
    x = standardised(learn, learn)[:, 20:]  # classes of different size
    codes = codes[20:]
    mine = elastic_net_weights(x.double(), codes, most=5000, tolerance=1e-9)
    probe = LogisticRegression(
        l1_ratio=L1_RATIO, solver="saga", C=1 / (PENALTY * len(codes)), tol=1e-8, max_iter=20_000,
        class_weight="balanced", **_elastic(),
    ).fit(x.T.double().numpy(), codes.numpy())  # fmt: skip
    assert mine.T.numpy() == pytest.approx(probe.coef_, abs=2e-4)
    assert 0 < int((mine == 0).all(1).sum()) < len(mine)
    quick = elastic_net_weights(x, codes)
    assert (quick - mine).abs().max() < 0.02


def _elastic() -> dict[str, Any]:
    """Before scikit-learn 1.8 the penalty had to be named."""
    return {} if LogisticRegression().penalty == "deprecated" else {"penalty": "elasticnet"}


def test_probeless_is_that_of_rank(tiny_hooked: Any) -> None:
    task = ls.tasks.nli().split(0.2, seed=0)[0]
    ranking = ls.rank(tiny_hooked, task, "label:heuristic", method="probeless")
    values = torch.zeros(len(ranking.score), len(task), dtype=torch.float64)
    from lens_skills.activations import stream

    for batch in stream(tiny_hooked, task):
        values[:, batch.index] = batch.activations.flatten(1).T.double()
    names = sorted(set(task.column("heuristic")))
    codes = torch.tensor([names.index(one) for one in task.column("heuristic")])
    assert probeless(values, codes).numpy() == pytest.approx(ranking.score.numpy(), rel=1e-4)


def test_accuracy_is_scikit_learns_and_its_interval_covers_the_truth() -> None:
    """60 groups of two examples that are told or not told together; 300 data sets."""
    random = np.random.default_rng(0)
    inside, runs, rate = 0, 300, np.array([0.9, 0.7, 0.5])
    for _ in range(runs):
        codes = np.repeat(np.arange(60) % N_CLASSES, 2)
        right = np.repeat(random.random(60) < rate[codes[::2]], 2)
        told = torch.from_numpy(right)
        said = np.where(right, codes, (codes + 1) % N_CLASSES)
        groups = [str(k // 2) for k in range(120)]
        value, low, high = accuracy_interval(told, torch.from_numpy(codes), groups)
        assert value == pytest.approx(balanced_accuracy_score(codes, said))
        assert value == pytest.approx(balanced(told, torch.from_numpy(codes)))
        inside += low <= rate.mean() <= high
    assert 0.91 <= inside / runs <= 0.985, inside / runs


def test_planted_neurons_are_the_set_and_beat_random_ones() -> None:
    for seed in range(3):
        row, chosen, curve = work(seed, planted=3, strength=2.5).done(whole=True)
        assert row["k"] <= 4
        assert len({0, 1, 2} & set(chosen.tolist())) >= min(row["k"], 3) - (row["k"] > 3)
        assert row["low"] > 1 / N_CLASSES
        assert row["difference_low"] > 0
        assert row["p_random"] == pytest.approx(1 / 11)
        assert row["k_low"] <= row["k"] <= row["k_high"]
        assert row["redundant"] == 1 - row["k"] / 60
        assert curve["k"].tolist() == [1, 2, 4, 8, 16]
        ends = curve[["random_low", "random", "random_high"]].to_numpy()
        assert (np.diff(ends, axis=1) >= 0).all()


def test_where_nothing_is_planted_it_says_chance() -> None:
    """One look at the test split: at most one in forty is beyond the interval by luck."""
    beyond = beats = 0
    options: dict[str, Any] = {"m": 30, "ks": [1, 8], "n_random": 2, "method": "probeless"}
    for seed in range(24):
        row, _, _ = work(seed + 100, **options).done(whole=False)
        beyond += row["low"] > 1 / N_CLASSES
        beats += row["difference_low"] > 0
    assert beyond <= 3  # P(X > 3) = .003 at 1 in 40
    assert beats <= 3


def test_the_interval_of_k_holds_what_other_training_groups_choose() -> None:
    """The middle choice of a dozen training splits lies in the interval of nearly each of them."""
    options: dict[str, Any] = {"planted": 3, "strength": 1.6, "n_random": 2, "method": "probeless"}
    rows = [work(seed + 300, ks=[1, 3, 9], **options).done(whole=False)[0] for seed in range(12)]
    middle = np.median([row["k"] for row in rows])
    assert np.mean([row["k_low"] <= middle <= row["k_high"] for row in rows]) >= 0.85


def test_the_test_split_has_no_part_in_the_choice() -> None:
    one = work(7, planted=3)
    row, chosen, curve = one.done(whole=True)
    turned = torch.roll(one.held.codes, 1)
    other = replace(one, held=_Split(turned, one.held.groups, []))
    again, same, after = other.done(whole=True)
    assert row["accuracy"] != again["accuracy"]
    assert chosen.tolist() == same.tolist()
    assert curve["cv"].tolist() == after["cv"].tolist()
    for name in ("k", "k_low", "k_high", "cv_all"):
        assert row[name] == again[name]


def test_ranks_are_made_inside_of_the_folds() -> None:
    """Of noise, ranks that had seen the fold would tell it; so they tell nothing."""
    rows = [
        work(seed + 50, m=300, ks=[8], n_random=2, method="probeless").done(whole=False)[0]
        for seed in range(5)
    ]
    assert np.mean([row["cv"] for row in rows]) < 1 / N_CLASSES + 0.06


def test_copies_are_one_neuron_within_a_layer() -> None:
    values, _, _ = drawn(5, m=8)
    values[1:4] = values[:1] * torch.tensor([[2.0], [-1.0], [0.5]])
    values[7] = 3.0
    layers = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    kept = _representatives(values, layers, 0.3)
    assert kept.tolist() == [True, False, False, True, True, True, True, False]
    assert _representatives(values, layers, None).tolist() == [True] * 7 + [False]


def test_the_smallest_that_is_enough() -> None:
    cv = torch.tensor([0.3, 0.79, 0.7, 0.9], dtype=torch.float64)
    assert smallest(cv, 0.8, 0.01, "all") == 1
    assert smallest(cv, 0.8, 0.005, "all") == 3
    assert smallest(cv, 0.8, 0.0, "best") == 3
    assert smallest(cv, 0.99, 0.01, "all") == 3  # none is: the last


@pytest.fixture(scope="module")
def splits() -> tuple[ls.Task, ls.Task]:
    train, test = ls.tasks.arithmetic("+").split(0.5, 0.5, seed=0)
    return train, test


def test_a_planted_neuron_is_found_in_its_layer(
    tiny_hooked: Any, splits: tuple[ls.Task, ls.Task], tmp_path: Path
) -> None:
    both = ls.Task("both", [*splits[0], *splits[1]])
    table = ls.capture(tiny_hooked, both, tmp_path / "table", dtype="float32")
    held = np.load(table.folders[0] / "activations.npy", mmap_mode="r+")
    says = np.array([example.labels["carry"] for example in both])
    noise = np.random.default_rng(0).normal(size=len(both))
    held[:, 2, 31] = says + 0.1 * noise
    held[:, 2, 30] = -5 * held[:, 2, 31]
    held.flush()
    found = minimal_set(table, *splits, metric="label:carry", ks=(1, 2, 4), n_random=19)
    assert found.k == 1
    assert found.names[0] in ("L2N30", "L2N31")
    assert found.word == "1 neuron tells it about as well as all"
    frame = found.frame().set_index("scope")
    assert frame.loc["layer 2", "k"] == 1
    assert frame.loc["layer 2", "n_clusters"] < 48
    assert frame.loc["layer 2", "accuracy"] > 0.95
    assert frame.loc["layer 2", "p_random"] <= 0.1
    assert "1 neuron tells" in repr(found)
    again = MinimalSet.load(found.save(tmp_path / "saved"))
    assert repr(again) == repr(found)
    with pytest.raises(LensSkillsError, match="selected on"):
        minimal_set(table, splits[1], splits[0], found, metric="label:carry")


def test_classes_of_a_label_are_told_apart(tiny_hooked: Any) -> None:
    train, test = ls.tasks.nli().split(0.3, 0.3, seed=0)
    found = minimal_set(
        tiny_hooked, train, test, metric="label:heuristic", ks=(1, 8), n_random=2,
        method="probeless", threshold=None, layerwise=False,
    )  # fmt: skip
    assert found.chance == pytest.approx(1 / len(found.classes))
    assert len(found.classes) > 2
    assert found.frame()["scope"].tolist() == ["all layers"]
    assert "clusters" not in repr(found)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"margin": 1.0}, "accuracy that may be lost"),
        ({"method": "magic"}, "method must be"),
        ({"reference": "most"}, "reference must be"),
        ({"threshold": 1.0}, "lies between 0 and 1"),
        ({"n_random": 1}, "two draws"),
        ({"ks": (0,)}, "each k lies between 1"),
        ({"ks": ()}, "each k lies between 1"),
        ({"ks": (100_000,)}, "each k lies between 1"),
        ({"metric": ["label:carry", "label:even"]}, "give one metric"),
        ({"metric": np.arange(100.0)}, "classes are at most 20"),
    ],
)
def test_what_cannot_be_asked(
    options: dict[str, Any], says: str, tiny_hooked: Any, splits: tuple[ls.Task, ls.Task]
) -> None:
    asked: dict[str, Any] = {"metric": "label:carry"} | options
    with pytest.raises(LensSkillsError, match=says):
        ls.minimal_set(tiny_hooked, *splits, **asked)


def test_one_class_few_examples_and_shared_groups(
    tiny_hooked: Any, splits: tuple[ls.Task, ls.Task]
) -> None:
    train, test = splits
    with pytest.raises(LensSkillsError, match="one value only"):
        minimal_set(tiny_hooked, train.where(carry=0), test.where(carry=0), metric="label:carry")
    with pytest.raises(LensSkillsError, match="share"):
        minimal_set(tiny_hooked, train, train, metric="label:carry")
    with pytest.raises(LensSkillsError, match="10 of each class"):
        minimal_set(tiny_hooked, train, test[:12], metric="label:carry")
    alone = [
        ls.Example(id=str(k), prompt="2+2=", labels={"x": k % 2}, group="g") for k in range(40)
    ]
    with pytest.raises(LensSkillsError, match="train is one group"):
        minimal_set(
            tiny_hooked, ls.Task("t", alone), ls.Task("u", [
                ls.Example(id=e.id, prompt=e.prompt, labels=e.labels, group="h") for e in alone
            ]), metric="label:x",
        )  # fmt: skip
