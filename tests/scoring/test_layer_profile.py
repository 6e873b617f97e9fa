"""Partial r against residuals, and a label neuron told apart from an answer neuron."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lens_skills.activations.metrics import model_answer
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.scoring import Scores, layer_profile, partial_r, score
from tests.scoring.test_handmade import examples_with, factor_activations, handmade

N, LAYERS, WIDTH = 200, 3, 6
KNOWS, SAYS = (1, 2), (2, 4)  # one neuron follows the label, a later one what the model says


class Case:
    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(0)
        self.label = np.arange(N) % 2
        self.right = random.random(N) < 0.8
        self.said = model_answer(self.label.tolist(), self.right.tolist()).numpy()
        self.sure = 0.5 * self.label + random.normal(size=N)
        self.acts = factor_activations(random, N, LAYERS, WIDTH)
        for (layer, neuron), followed in ((KNOWS, self.label), (SAYS, self.said)):
            self.acts[:, layer, neuron] = random.normal(size=N) + 3 * followed
        labels = {"gold": self.label, "said": self.said, "sure": self.sure}
        self.examples = examples_with(N, labels=labels)
        self.table = handmade(folder, self.acts, self.examples)

    def score(self, examples: list[Example] | None = None, **options: Any) -> Scores:
        metrics = ["label:gold", "label:said", "label:sure"]
        options = {"metrics": metrics, "n_permutations": 99, "n_controls": 0, **options}
        return score(self.table, examples or self.examples, **options)

    def where(self, right: bool) -> list[Example]:
        return [e for e, hit in zip(self.examples, self.right, strict=True) if hit == right]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("profile") / "table")


@pytest.fixture(scope="module")
def whole(case: Case) -> Scores:
    return case.score()


def residual(column: np.ndarray, given: np.ndarray) -> np.ndarray:
    line = stats.linregress(given, column)
    return column - line.intercept - line.slope * given


@pytest.mark.parametrize("pair", [("gold", "said"), ("sure", "gold"), ("gold", "sure")])
def test_partial_r_is_the_correlation_of_residuals(
    case: Case, whole: Scores, pair: tuple[str, str]
) -> None:
    values = {"gold": case.label.astype(float), "said": case.said, "sure": case.sure}
    metric, given = (values[name] for name in pair)
    found = partial_r(whole, f"label:{pair[0]}", f"label:{pair[1]}")
    flat = case.acts.reshape(N, -1).astype(float)
    for unit in range(flat.shape[1]):
        oracle = np.corrcoef(residual(flat[:, unit], given), residual(metric, given))[0, 1]
        assert float(found[0, unit]) == pytest.approx(oracle, abs=1e-9)


def test_partial_r_is_that_of_a_pass_with_the_column_given(case: Case, whole: Scores) -> None:
    passed = case.score(metrics=["label:sure"], given=["gold"], n_permutations=0)
    torch.testing.assert_close(
        partial_r(whole, "label:sure", "label:gold"), passed["label:sure"].r, rtol=0, atol=1e-9
    )


def test_what_cannot_be_partialled_is_refused(case: Case, whole: Scores) -> None:
    with pytest.raises(LensSkillsError, match="linear function"):
        partial_r(whole, "label:gold", "label:gold")
    right = case.score(case.where(True))
    with pytest.raises(LensSkillsError, match="nothing is left of it"):
        partial_r(right, "label:gold", "label:said")
    given = case.score(metrics=["label:sure", "label:said"], given=["gold"])
    with pytest.raises(LensSkillsError, match="partial already, given gold"):
        partial_r(given, "label:sure", "label:said")


def test_the_profile_tells_the_label_from_the_answer(whole: Scores) -> None:
    found = layer_profile(whole["label:gold"], answer="label:said")
    knows, says = KNOWS[0], SAYS[0]
    assert found.layer.tolist() == [0, 1, 2]
    assert found.neurons.tolist() == [WIDTH] * LAYERS
    # Both layers look like the label; given the other, only one does.
    assert float(found.strongest[knows]) > 0.6
    assert float(found.strongest[says]) > 0.25
    assert float(found.metric_left[knows]) > 0.6 > 0.3 > float(found.metric_left[says])
    assert float(found.answer_left[says]) > 0.6 > 0.3 > float(found.answer_left[knows])
    assert found.n_differ == int((whole.values["label:gold"] != whole.values["label:said"]).sum())
    assert f"differs from it on {found.n_differ} examples" in repr(found)
    r = whole["label:gold"].r.abs()[0].reshape(LAYERS, WIDTH)
    np.testing.assert_allclose(found.strongest, r.max(dim=1).values)
    bar = whole["label:gold"].threshold
    assert found.beyond.tolist() == (r > bar).sum(dim=1).tolist()
    frame = found.frame()
    assert len(frame) == LAYERS
    assert frame["position"].tolist() == ["last"] * LAYERS


def test_on_errors_the_sign_says_what_a_neuron_follows(case: Case) -> None:
    right, wrong = case.score(case.where(True)), case.score(case.where(False))
    found = layer_profile(right["label:gold"], errors=wrong["label:gold"])
    alone = [case.score(case.where(it), metrics=["label:gold"]) for it in (True, False)]
    assert repr(layer_profile(alone[0], errors=alone[1])) == repr(found)
    with pytest.raises(LensSkillsError, match="these scores hold 3 metrics"):
        layer_profile(right)
    assert float(found.on_errors[KNOWS[0]]) > 0.5
    assert float(found.on_errors[SAYS[0]]) < -0.5
    assert found.n_errors == len(case.where(False))
    assert "layer 1: on" in repr(found)
    assert "follow the metric" in repr(found)
    assert "follow the answer" in repr(found)
    # By hand, for the layer of the one that says.
    bar = right["label:gold"].threshold
    here, there = (s["label:gold"].r[0].reshape(LAYERS, WIDTH)[2] for s in (right, wrong))
    chosen = here.abs() > bar
    expected = (here.sign() * there)[chosen].mean()
    torch.testing.assert_close(found.on_errors[2], expected)


def test_errors_are_other_examples(case: Case, whole: Scores) -> None:
    wrong = case.score(case.where(False))
    with pytest.raises(LensSkillsError, match=f"share {len(case.where(False))} examples"):
        layer_profile(whole["label:gold"], errors=wrong["label:gold"])
    right = case.score(case.where(True))
    with pytest.raises(LensSkillsError, match="metric is 'label:gold'"):
        layer_profile(right["label:gold"], errors=wrong["label:sure"])
    some = case.score(case.where(False), neurons=[(0, 1), (1, 2)])
    with pytest.raises(LensSkillsError, match="other neurons"):
        layer_profile(right["label:gold"], errors=some["label:gold"])
    bare = case.score(case.where(True), n_permutations=0)
    with pytest.raises(LensSkillsError, match="no null was drawn"):
        layer_profile(bare["label:gold"], errors=wrong["label:gold"])


def test_a_profile_alone(case: Case) -> None:
    found = layer_profile(case.score(n_permutations=0)["label:sure"])
    assert found.beyond.tolist() == [-1] * LAYERS
    assert bool(found.metric_left.isnan().all())
    assert bool(found.on_errors.isnan().all())
    assert "no null was drawn" in repr(found)
    few = [*case.where(True)[:60], *case.where(False)[:5]]
    assert "fewer than 20" in repr(
        layer_profile(case.score(few)["label:gold"], answer="label:said")
    )


def test_model_answer_takes_two_classes() -> None:
    with pytest.raises(LensSkillsError, match="label of 0 or 1"):
        model_answer([0.0, 2.0], [True, False])
    with pytest.raises(LensSkillsError, match=r"2 labels .* and 1 answers"):
        model_answer([0.0, 1.0], [True])
