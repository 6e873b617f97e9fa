"""What cannot be scored is refused with the name of what is wrong."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lens_skills.activations.components import parse_neurons
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.scoring import score
from tests.scoring.test_handmade import (
    examples_with,
    factor_activations,
    from_the_pass,
    handmade,
)

N = 40


class Case:
    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(0)
        acts = factor_activations(random, N, 2, 4)
        self.labels = {
            "y": np.arange(N) % 2,
            "one": np.ones(N),
            "tenth": np.full(N, 0.1),
            "kind": np.array(["a", "b", "c", "d"] * 10),
        }
        self.examples = examples_with(
            N, labels=self.labels, covariates={"z": random.normal(size=N), "y": self.labels["y"]}
        )
        computed = {"flat": np.zeros(N), "sure": random.uniform(size=N)}
        self.table = handmade(folder, acts, self.examples, computed=computed)

    def score(self, **options: Any) -> Any:
        options = {"metrics": "label:y", "n_permutations": 19, **options}
        return score(self.table, options.pop("examples", self.examples), **options)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("refusals") / "table")


@pytest.mark.parametrize("label", ["one", "tenth"])
def test_a_label_of_one_class(case: Case, label: str) -> None:
    with pytest.raises(LensSkillsError, match=f"'label:{label}' has one class only.*0?.?1"):
        case.score(metrics=["label:y", f"label:{label}"])


def test_only_a_computed_metric_that_does_not_vary(case: Case) -> None:
    with pytest.raises(LensSkillsError, match=r"no metric varies.*flat: it is 0 for every example"):
        case.score(metrics=from_the_pass("flat"))


def test_a_metric_that_its_covariates_determine(case: Case) -> None:
    with pytest.raises(LensSkillsError, match="label:y: the covariates partialled out determine"):
        case.score(given=["y"])
    found = case.score(metrics=["label:y", from_the_pass("sure")], given=["y"])
    assert found.metrics == ("sure",)
    assert "determine" in found.excluded_metrics["label:y"]


def test_no_metric_and_too_few_examples(case: Case) -> None:
    with pytest.raises(LensSkillsError, match="no metric to score"):
        case.score(metrics=[])
    with pytest.raises(LensSkillsError, match="3 examples are too few"):
        case.score(examples=case.examples[:3])
    with pytest.raises(LensSkillsError, match="0 examples are too few"):
        case.score(examples=[])


def test_a_label_of_many_categories(case: Case) -> None:
    many = [
        replace(example, labels={**example.labels, "kind": f"kind{place}"})
        for place, example in enumerate(case.examples)
    ]
    with pytest.raises(LensSkillsError, match=rf"'kind' has {len(many)} categories .*more than 12"):
        case.score(metrics="label:kind", examples=many)
    assert len(case.score(metrics="label:kind").metrics) == 4  # a few are one metric each


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_metric_that_is_not_finite(case: Case, wrong: float) -> None:
    numbers = np.arange(float(N))
    numbers[17] = wrong
    with pytest.raises(LensSkillsError, match=f"'mine' is {wrong} for example 'e17'"):
        case.score(metrics={"mine": numbers})


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_covariate_that_is_not_finite(case: Case, wrong: float) -> None:
    """Not silently left out of what is partialled out."""
    examples = [
        Example(e.id, e.prompt, labels=e.labels, covariates={"z": wrong if i == 5 else float(i)})
        for i, e in enumerate(case.examples)
    ]
    with pytest.raises(LensSkillsError, match=r"'z'.*'e5'"):
        case.score(examples=examples, given=["z"])


def test_a_covariate_that_an_example_lacks(case: Case) -> None:
    with pytest.raises(LensSkillsError, match="'e0' has no 'verb'"):
        case.score(given=["verb"])
    # A category that is missing once is no category called None.
    examples = [
        Example(e.id, e.prompt, labels=e.labels, covariates={"c": "ab"[i % 2]} if i != 7 else {})
        for i, e in enumerate(case.examples)
    ]
    with pytest.raises(LensSkillsError, match="'e7' has no 'c'"):
        case.score(examples=examples, given=["c"])


def test_covariates_that_leave_nothing(case: Case) -> None:
    examples = [
        Example(e.id, e.prompt, labels=e.labels, covariates={"own": e.id}) for e in case.examples
    ]
    with pytest.raises(LensSkillsError, match="39 covariate columns leave nothing of 40"):
        case.score(examples=examples, given=["own"])


def test_covariates_that_repeat_each_other_count_once(case: Case) -> None:
    examples = [
        Example(
            e.id,
            e.prompt,
            labels=e.labels,
            covariates={"a": float(i**2), "b": 3.0 - 2.0 * i**2, "c": 7.0},
        )
        for i, e in enumerate(case.examples)
    ]
    one = case.score(examples=examples, given=["a"])
    all_three = case.score(examples=examples, given=["a", "b", "c"])
    torch.testing.assert_close(one.r, all_three.r, rtol=0, atol=1e-12)
    torch.testing.assert_close(one.high, all_three.high, rtol=0, atol=1e-12)


def test_numbers_for_another_set_of_examples(case: Case) -> None:
    with pytest.raises(LensSkillsError, match="7 metric values were given for 40 examples"):
        case.score(metrics={"mine": range(7)})


@pytest.mark.parametrize(
    ("neurons", "message"),
    [
        ([(0, 4)], "no neuron L0N4 here"),
        ([(2, 0)], "no neuron L2N0 here: layers 0 to 1 with 4 neurons"),
        (["L0N1", "L0N-1"], "no unit 'L0N-1'"),
        ([(0, -1)], "no neuron L0N-1 here"),
        ([(0, 1), "L0N1"], "named twice"),
        ([], "no neurons to score"),
    ],
)
def test_neurons_that_are_not_there(case: Case, neurons: Any, message: str) -> None:
    with pytest.raises(LensSkillsError, match=message):
        case.score(neurons=neurons)


def test_neurons_of_another_shape() -> None:
    with pytest.raises(LensSkillsError, match=r"rows of \(layer, index\), not .* shape \(3,\)"):
        parse_neurons(torch.zeros(3, dtype=torch.long))


def test_neurons_by_any_name_are_the_same() -> None:
    rows = [[1, 2], [3, 4]]
    for neurons in (["L1N2", "L3N4"], [(1, 2), "L3N4"], rows, torch.tensor(rows), np.array(rows)):
        assert parse_neurons(neurons).tolist() == rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "mlp.hook_pst"}, r"'mlp\.hook_post'"),
        ({"position": 99}, "position 99 is outside the prompt of example 'a'"),
        ({"layers": [7]}, r"no layer \[7\] in a model of 4 layers"),
        ({"metrics": "label:z"}, "'a' has no label 'z'"),
        ({"metrics": "correct"}, "'a' has no answer"),
    ],
)
def test_what_the_model_cannot_give(tiny: Any, options: dict[str, Any], message: str) -> None:
    examples = [Example(name, "The keys", labels={"y": i % 2}) for i, name in enumerate("abcdef")]
    with pytest.raises(LensSkillsError, match=message):
        score(tiny, examples, **{"metrics": "label:y", **options})
