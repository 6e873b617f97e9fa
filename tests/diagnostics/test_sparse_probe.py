"""Sparse probes: scikit-learn's numbers, a planted neuron found alone, and refusals."""

import math
import sys
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

import lens_skills as ls
from lens_skills.activations import stream
from lens_skills.diagnostics import sparse_probe
from lens_skills.diagnostics.sparse_probe import _bits, _folds, _orders, performance, ranking
from lens_skills.errors import LensSkillsError


@pytest.fixture(scope="module")
def splits() -> tuple[ls.Task, ls.Task]:
    train, test = ls.tasks.arithmetic("+").split(0.5, 0.5, seed=0)
    return train, test


def matrix(model: Any, task: Any) -> tuple[np.ndarray, np.ndarray]:
    """Every neuron at the last token, and the label."""
    values = np.zeros((len(task), 4 * 48))
    for batch in stream(model, task):
        values[batch.index] = batch.activations.flatten(1).double().numpy()
    return values, np.array([example.labels["carry"] for example in task])


def test_the_curve_is_that_of_scikit_learn(tiny: Any, splits: tuple[ls.Task, ls.Task]) -> None:
    train, test = splits
    found = sparse_probe(tiny, train, test, metric="label:carry", ks=(1, 3, 10), n_random=2)
    x, y = matrix(tiny, train)
    held, truth = matrix(tiny, test)
    scaler = StandardScaler().fit(x)
    x, held = scaler.transform(x), scaler.transform(held)
    order = np.argsort(-np.abs(x[y == 1].mean(0) - x[y == 0].mean(0)), kind="stable")
    assert [48 * layer + neuron for layer, neuron in found.neurons.tolist()] == order[:10].tolist()
    for row in found.frame().to_dict("records")[1:]:
        chosen = order[: int(row["k"])]
        probe = LogisticRegression(class_weight="balanced", max_iter=1000).fit(x[:, chosen], y)
        score = probe.decision_function(held[:, chosen])
        assert row["auroc"] == pytest.approx(roc_auc_score(truth, score), abs=1e-3)
        said = score > 0
        assert row["balanced_accuracy"] == pytest.approx(
            balanced_accuracy_score(truth, said), abs=0.03
        )
        assert row["balanced_accuracy_low"] <= row["balanced_accuracy"]
        assert row["description"] == pytest.approx(row["bits"] + row["k"] * math.log2(192))
        assert row["selectivity"] == pytest.approx(row["balanced_accuracy"] - row["control"])


def test_numbers_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    truth = random.random(90) < 0.3
    score = (random.normal(size=90) + truth).round(1)  # with ties
    groups = [str(k // 2) for k in range(90)]
    found = performance(torch.from_numpy(score), torch.from_numpy(truth), groups)
    wanted = {
        "balanced_accuracy": balanced_accuracy_score(truth, score > 0),
        "f1": f1_score(truth, score > 0),
        "auroc": roc_auc_score(truth, score),
    }
    for name, value in wanted.items():
        assert found[name].value == pytest.approx(value, abs=1e-12)
        assert found[name].low < value < found[name].high


@pytest.mark.parametrize("size", [1, 4])
def test_the_intervals_cover_the_truth(size: int) -> None:
    """60 groups whose examples share most of what makes them hard; 300 data sets."""
    random = np.random.default_rng(3)
    groups = [str(k // size) for k in range(60 * size)]

    def draw(n_groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        truth = random.random(n_groups) < 0.4
        shared = random.normal(size=n_groups) + 1.2 * truth - 0.5
        score = shared.repeat(size) + 0.4 * random.normal(size=n_groups * size)
        return torch.from_numpy(score), torch.from_numpy(truth.repeat(size))

    score, truth = draw(150_000 // size)
    some = torch.from_numpy(random.choice(len(score), 8000, replace=False))
    large = performance(score[some], truth[some], [str(k) for k in range(len(some))])
    inside = dict.fromkeys(large, 0)
    runs = 300
    for _ in range(runs):
        found = performance(*draw(60), groups)
        for name, point in found.items():
            inside[name] += point.low <= large[name].value <= point.high
    assert all(0.91 <= count / runs <= 0.985 for count in inside.values()), inside


def test_the_intervals_cover_the_truth_near_one() -> None:
    """Where value ± t error covers .80 (AUROC .993, 150 groups); 300 data sets."""
    random = np.random.default_rng(5)
    groups = [str(k) for k in range(150)]
    wanted = {"balanced_accuracy": NormalDist().cdf(1.75), "f1": NormalDist().cdf(1.75),
              "auroc": NormalDist().cdf(3.5 / math.sqrt(2))}  # fmt: skip
    inside = dict.fromkeys(wanted, 0)
    for _ in range(300):
        truth = random.random(150) < 0.5
        score = random.normal(size=150) + np.where(truth, 1.75, -1.75)
        found = performance(torch.from_numpy(score), torch.from_numpy(truth), groups)
        for name, point in found.items():
            inside[name] += point.low <= wanted[name] <= point.high
    assert all(0.92 <= count / 300 <= 0.99 for count in inside.values()), inside


def test_the_same_answer_to_all_still_has_an_interval() -> None:
    truth = torch.tensor([True, False] * 20)
    found = performance(torch.ones(40), truth, [str(k) for k in range(40)])["balanced_accuracy"]
    assert found.low < found.value == 0.5 < found.high


def test_a_perfect_score_still_has_an_interval() -> None:
    truth = torch.tensor([True, False] * 20)
    found = performance(truth.double() - 0.5, truth, [str(k) for k in range(40)])
    for point in found.values():
        assert point.value == point.high == 1
        assert 0.75 < point.low < 0.9  # Clopper and Pearson of 20 groups a side: 0.832


def test_a_planted_neuron_is_found_alone_and_only_where_planted(
    tiny: Any, splits: tuple[ls.Task, ls.Task], tmp_path: Path
) -> None:
    """In a table on disk, where one column is made to say the label."""
    both = ls.Task("both", [*splits[0], *splits[1]])
    table = ls.capture(tiny, both, tmp_path / "table", dtype="float32")
    asked: dict[str, Any] = {"metric": "label:carry", "ks": (1, 2, 4), "n_random": 2}
    before = sparse_probe(table, *splits, **asked)
    held = np.load(table.folders[0] / "activations.npy", mmap_mode="r+")
    says = np.array([example.labels["carry"] for example in both])
    held[:, 2, 31] = says + 0.2 * np.random.default_rng(0).normal(size=len(both))
    held.flush()
    found = sparse_probe(table, *splits, **asked)
    assert found.names[0] == "L2N31"
    assert "L2N31" not in before.names
    assert found.chosen == 1
    assert found.word == "one neuron"
    first, second = (one.frame().set_index("k").loc[1] for one in (before, found))
    assert second["balanced_accuracy"] > max(0.9, first["balanced_accuracy"])
    assert second["balanced_accuracy"] > second["random_high"]
    assert second["description"] < first["description"]
    assert "one neuron" in repr(found)


def test_an_order_that_was_given_is_kept(tiny: Any, splits: tuple[ls.Task, ls.Task]) -> None:
    rows = torch.tensor([[3, 4], [0, 1], [2, 2]])
    for given in (rows, SimpleNamespace(neurons=rows)):
        by = "given" if isinstance(given, torch.Tensor) else None
        found = sparse_probe(tiny, *splits, given, metric="label:carry", ks=(1, 3), by=by)
        assert found.names == ["L3N4", "L0N1", "L2N2"]
        assert found.order_from == "in the order given"
    assert found.n_candidates == 3


def test_no_neuron_pays_for_a_random_label(tiny: Any, splits: tuple[ls.Task, ls.Task]) -> None:
    train, test = splits
    coin = np.random.default_rng(1).integers(0, 2, len(train) + len(test)).astype(float)
    found = sparse_probe(tiny, train, test, metric=coin, ks=(1, 2, 8))
    assert found.chosen == 0
    assert found.word == "no neuron pays for itself"
    assert found.frame()["bits"][0] == pytest.approx(len(train), rel=0.05)


def bits(values: Any, truth: Any, groups: list[str], k: int, *, given: bool) -> dict[int, float]:
    """Bits of the labels given k of some neurons."""
    folds = _folds(truth, groups)
    orders = _orders(values, truth, truth, folds, given)
    return _bits(lambda places: values[places], truth, folds, (k,), orders)


@pytest.mark.parametrize("neurons", [None, "some"])
def test_a_table_too_large_for_the_memory_gives_the_same(
    tiny: Any, splits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, neurons: Any
) -> None:
    splits = (splits[0][:150], splits[1][:150])
    both = [*splits[0], *splits[1]]
    table = ls.capture(tiny, both, tmp_path / "table", dtype="float32")
    asked: dict[str, Any] = {"metric": "label:carry", "ks": (1, 2, 4), "n_random": 2}
    asked["neurons"] = [[1, n] for n in range(3, 40)] if neurons else None
    held = sparse_probe(table, *splits, **asked)
    module, calls = sys.modules["lens_skills.diagnostics.sparse_probe"], []
    inside = module._orders_by_sums
    monkeypatch.setattr(module, "_IN_MEMORY", 0)
    monkeypatch.setattr(module, "_orders_by_sums", lambda *args: calls.append(1) or inside(*args))
    read = sparse_probe(table, *splits, **asked)
    assert calls == [1]
    assert read.names == held.names
    assert read.n_candidates == held.n_candidates
    for column in held.table.columns:
        assert read.table[column].to_numpy() == pytest.approx(
            held.table[column].to_numpy(), rel=1e-6, nan_ok=True
        )


def test_the_fold_that_is_told_does_not_choose_its_neurons() -> None:
    """Of noise nothing is told; neurons chosen on all labels would seem to tell some of it."""
    random = torch.Generator().manual_seed(0)
    values = torch.randn(500, 60, generator=random, dtype=torch.float64)
    truth = torch.arange(60) % 2 == 0
    groups = [str(row) for row in range(60)]
    chosen = bits(values, truth, groups, 4, given=False)
    best = values[ranking(values, truth)[:4]]
    leaked = bits(best, truth, groups, 4, given=True)
    assert leaked[4] < 50 < 60 < chosen[4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "confidence"}, "values here"),
        ({"ks": (1, 500)}, "between 1 and the 192"),
        ({"ks": ()}, "between 1 and"),
        ({"by": "r"}, "by='r'"),
        ({"metric": "no_such"}, "no metric 'no_such'"),
    ],
)
def test_probes_refuse_what_they_cannot_do(
    tiny: Any, splits: tuple[ls.Task, ls.Task], changes: dict[str, Any], message: str
) -> None:
    asked: dict[str, Any] = {"metric": "label:carry", "ks": (1,)} | changes
    with pytest.raises(LensSkillsError, match=message):
        sparse_probe(tiny, *splits, **asked)


def test_splits_that_share_and_splits_that_are_small_are_refused(
    tiny: Any, splits: tuple[ls.Task, ls.Task]
) -> None:
    train, test = splits
    with pytest.raises(LensSkillsError, match="share"):
        sparse_probe(tiny, train, train, metric="label:carry")
    with pytest.raises(LensSkillsError, match="test holds"):
        sparse_probe(tiny, train, test[:6], metric="label:carry")
    used = SimpleNamespace(neurons=torch.tensor([[0, 1]]), provenance={"groups": [test[0].group]})
    with pytest.raises(LensSkillsError, match="selected on 1 groups"):
        sparse_probe(tiny, train, test, used, metric="label:carry", ks=(1,))
