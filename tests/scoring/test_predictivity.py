"""The predecessor's predictivity, recomputed in a straight line, with classes balanced."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lens_skills.errors import LensSkillsError
from lens_skills.scoring import Scores, score
from tests.scoring.test_handmade import examples_with, factor_activations, from_the_pass, handmade

N, LAYERS, WIDTH = 90, 2, 5


class Case:
    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(0)
        self.acts = factor_activations(random, 2 * N, LAYERS, WIDTH)
        self.acts[:, 0, 0] = np.maximum(self.acts[:, 0, 0] - 5, 0)  # silent but for a few
        self.acts[:, 0, 1] = 4.0  # constant: never strictly above its own mean
        self.rare = np.zeros(2 * N, dtype=int)
        self.rare[::6] = 1
        self.acts[:N, 0, 3] = np.arange(N) % 2 * 2  # on train its mean is exactly 1
        self.acts[N:, 0, 3] = self.rare[N:]  # which it reaches, and never exceeds
        self.right = (self.acts[:, 1, 1] + random.normal(size=2 * N) > 3).astype(int)
        labels = {"rare": self.rare, "size": random.normal(size=2 * N)}
        self.examples = examples_with(2 * N, labels=labels)
        self.table = handmade(
            folder, self.acts, self.examples, computed={"correct": self.right.astype(float)}
        )

    def score(self, part: slice, **options: Any) -> Scores:
        metrics = ["label:rare", "label:size", from_the_pass("correct")]
        options = {"metrics": metrics, "n_permutations": 0, "n_controls": 0, **options}
        return score(self.table, self.examples[part], **options)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("predictivity") / "table")


TRAIN, DEV = slice(0, N), slice(N, 2 * N)


def straight(train: np.ndarray, dev: np.ndarray, label: np.ndarray) -> list[float]:
    """b = mean on train; balanced accuracy of 1[a > b] on dev; the better of it and 1 - it."""
    found = []
    for unit in range(train.shape[1]):
        b = sum(float(a) for a in train[:, unit]) / len(train)
        hits = {0: 0, 1: 0}
        for a, y in zip(dev[:, unit], label, strict=True):
            hits[int(y)] += int(float(a) > b) == y
        accuracy = (hits[0] / (label == 0).sum() + hits[1] / (label == 1).sum()) / 2
        found.append(max(accuracy, 1 - accuracy))
    return found


def test_predictivity_is_the_balanced_accuracy_beyond_a_threshold(case: Case) -> None:
    baseline = case.score(TRAIN)
    found = case.score(DEV, baseline=baseline)
    assert set(found.predictivity) == {"label:rare", "correct"}  # not of a metric that is no class
    train, dev = (case.acts[part].reshape(N, -1) for part in (TRAIN, DEV))
    for name, values in (("label:rare", case.rare), ("correct", case.right)):
        expected = straight(train, dev, values[DEV])
        np.testing.assert_allclose(found.predictivity[name][0], expected, rtol=0, atol=1e-9)
        assert found.predictivity[name].min() >= 0.5
    # A neuron that never fires beyond its threshold knows nothing, however rare the class.
    assert found.predictivity["label:rare"][0, 1] == 0.5
    assert found.predictivity["label:rare"][0, 3] == 0.5
    assert "predictivity" in found["label:rare"].frame().columns


def test_some_neurons_take_their_own_thresholds(case: Case) -> None:
    whole = case.score(DEV, baseline=case.score(TRAIN))
    some = case.score(DEV, baseline=case.score(TRAIN), neurons=[(1, 4), (0, 2)])
    for name, values in some.predictivity.items():
        np.testing.assert_array_equal(values[0], whole.predictivity[name][0, [9, 2]])


def test_a_threshold_from_the_same_examples_is_refused(case: Case) -> None:
    overlapping = case.score(slice(10, N + 10))
    with pytest.raises(LensSkillsError, match="measured on 10 examples of this split"):
        case.score(DEV, baseline=overlapping)
    allowed = case.score(DEV, baseline=overlapping, exploratory=True)
    assert allowed.exploratory
    assert repr(allowed).startswith("EXPLORATORY")


def test_a_baseline_that_does_not_fit_is_refused(case: Case, tmp_path: Path) -> None:
    some = case.score(TRAIN, neurons=[(0, 1), (0, 2)])
    with pytest.raises(LensSkillsError, match="the baseline does not hold L0N0"):
        case.score(DEV, baseline=some)
    several = np.random.default_rng(1).normal(size=(N, 2, LAYERS, WIDTH))
    strangers = examples_with(N, prefix="s", labels={"rare": case.rare[:N]})
    other = handmade(tmp_path / "several", several, strangers)
    at_two = score(other, strangers, metrics="label:rare", position=[0, 1], n_permutations=0)
    with pytest.raises(LensSkillsError, match="the baseline is of"):
        case.score(DEV, baseline=at_two)
    elsewhere = handmade(
        tmp_path / "elsewhere", case.acts[:N], strangers, fingerprint="another model"
    )
    of_another = score(elsewhere, strangers, metrics="label:rare", n_permutations=0)
    with pytest.raises(LensSkillsError, match="model"):
        case.score(DEV, baseline=of_another)
