"""What ``given=`` partials out, against SciPy, pandas and scikit-learn; and what it leaves."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.interpolate import BSpline

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.scoring import score
from lens_skills.scoring.covariates import covariate_columns, left_nonlinear
from tests.scoring.test_handmade import examples_with, from_the_pass, handmade

N = 90


def scipy_spline(numbers: np.ndarray) -> np.ndarray:
    """SciPy's cubic B-splines with a knot at the median, the first left out for the constant."""
    low, middle, high = np.quantile(numbers, [0, 0.5, 1])
    knots = [low] * 4 + [middle] + [high] * 4
    return BSpline.design_matrix(numbers, knots, 3).toarray()[:, 1:]


def with_columns(columns: Mapping[str, Any]) -> list[Example]:
    rows = pd.DataFrame(dict(columns)).to_dict("records")
    return [Example(str(place), "x", covariates=row) for place, row in enumerate(rows)]


def same_span(found: torch.Tensor, expected: np.ndarray) -> bool:
    """Whether both span, with a constant, the same columns, and the found ones are a basis."""
    ours = np.column_stack([np.ones(len(expected)), found.numpy()])
    theirs = np.column_stack([np.ones(len(expected)), expected])
    rank = np.linalg.matrix_rank
    both = rank(np.column_stack([ours, theirs / theirs.std(0).clip(1e-9)]), tol=1e-6)
    return bool(rank(ours) == ours.shape[1] == rank(theirs) == both)


@pytest.fixture
def columns() -> dict[str, Any]:
    random = np.random.default_rng(2)
    return {
        "length": np.exp(random.normal(size=N)),
        "frequency": 1e6 + random.normal(size=N),
        "carry": random.integers(0, 4, N),
        "rule": random.choice(["a", "b", "c"], N),
        "plural": random.integers(0, 2, N).astype(bool),
    }


def pandas_dummies(values: Any) -> np.ndarray:
    return pd.get_dummies(pd.Series(values), drop_first=True).to_numpy(dtype=float)


def test_numbers_are_scipys_splines_and_few_values_pandas_dummies(columns: dict[str, Any]) -> None:
    examples = with_columns(columns)
    oracle = {
        "length": scipy_spline(columns["length"]),
        "frequency": scipy_spline(columns["frequency"]),
        "carry": pandas_dummies(columns["carry"]),
        "rule": pandas_dummies(columns["rule"]),
        "plural": columns["plural"][:, None].astype(float),
    }
    for name, expected in oracle.items():
        found = covariate_columns(examples, [name])
        assert found.shape == (N, expected.shape[1])
        assert same_span(found, expected), name
    found = covariate_columns(examples, list(oracle))
    assert same_span(found, np.column_stack(list(oracle.values())))
    # Mean 0, std 1, orthogonal: they are inverted later.
    torch.testing.assert_close(found.T @ found / N, torch.eye(found.shape[1]).double())
    torch.testing.assert_close(found.mean(0), torch.zeros(found.shape[1]).double())


def test_a_product_is_both_and_all_their_products(columns: dict[str, Any]) -> None:
    examples = with_columns(columns)
    one, other = scipy_spline(columns["length"]), pandas_dummies(columns["rule"])
    products = np.column_stack([a * b for a in one.T for b in other.T])
    both = np.column_stack([one, other, products])
    assert same_span(covariate_columns(examples, ["length*rule"]), both)
    again = covariate_columns(examples, ["rule", "length * rule", "length"])
    assert same_span(again, both)
    three = covariate_columns(examples, ["rule*plural*carry"])
    cells = pandas_dummies([f"{r}{p}{c}" for r, p, c in zip(*_cells(columns), strict=True)])
    assert same_span(three, cells)


def _cells(columns: dict[str, Any]) -> list[Any]:
    return [columns[name] for name in ("rule", "plural", "carry")]


def test_a_column_that_is_called_like_a_product_goes_first() -> None:
    values = np.random.default_rng(0).normal(size=N)
    found = covariate_columns(with_columns({"a*b": values}), ["a*b"])
    assert same_span(found, scipy_spline(values))


def test_numbers_that_mostly_repeat_one_value_and_few_examples() -> None:
    counts = np.concatenate([np.zeros(60), np.arange(1, 31)])
    found = covariate_columns(with_columns({"n": counts}), ["n"])
    assert same_span(found, BSpline.design_matrix(counts, [0] * 4 + [15] + [30] * 4, 3).toarray())
    # Ten different numbers of ten examples are no ten categories.
    assert covariate_columns(with_columns({"n": np.arange(10.0)}), ["n"]).shape == (10, 4)
    assert covariate_columns(with_columns({"n": np.ones(10)}), ["n"]).shape == (10, 0)
    assert covariate_columns(with_columns({"n": np.ones(10)}), []).shape == (10, 0)


def test_what_leaves_nothing_says_which_covariate_takes_what(columns: dict[str, Any]) -> None:
    examples = with_columns(columns)[:20]
    with pytest.raises(LensSkillsError) as refused:
        covariate_columns(examples, ["carry", "length*rule*frequency"])
    message = str(refused.value)
    assert message.startswith("19 covariate columns leave nothing of 20 examples: 'carry' takes 3 ")
    assert "(4 values), 'length' takes 4 (spline), 'rule' takes 2 (3 categories)" in message
    assert "'length*rule' takes " in message
    assert " (products)" in message


def test_a_name_that_is_nearly_right(columns: dict[str, Any]) -> None:
    with pytest.raises(LensSkillsError, match=r"has no 'lenght' .*Did you mean 'length'\?"):
        covariate_columns(with_columns(columns), ["rule*lenght"])


def confounded(kind: str, seed: int, n: int = 160) -> tuple[list[Example], np.ndarray]:
    """A metric that is a covariate's curve, or two covariates' product, and noise."""
    random = np.random.default_rng(seed)
    a, b, d = random.normal(size=n), random.normal(size=n), random.integers(0, 2, n)
    clean = {
        "nothing": np.zeros(n),
        "curve": 1.5 * a**2,
        "steps": 2.0 * ((a > 0) ^ (d > 0)),
        "product": 2 * a * b,
    }[kind]
    examples = examples_with(n, groups=np.arange(n) // 2, covariates={"a": a, "b": b, "d": d})
    return examples, clean + random.normal(size=n)


@pytest.mark.parametrize(
    ("kind", "given", "left"),
    [
        ("nothing", ["a", "b", "d"], False),
        ("curve", ["a", "b"], False),
        ("steps", ["a", "d"], True),
        ("steps", ["a*d"], False),
        ("product", ["a", "b"], True),
        ("product", ["a*b"], False),
    ],
)
def test_what_the_columns_leave_is_seen(kind: str, given: list[str], left: bool) -> None:
    found = []
    for seed in range(10):
        examples, metric = confounded(kind, seed)
        found.append(left_nonlinear(torch.from_numpy(metric), examples, given))
    assert min(found) >= 0
    assert max(found) < 1
    warned = sum(share > 0.05 for share in found)
    assert warned >= 9 if left else warned <= 1


def test_what_is_left_of_nothing_and_of_few_groups() -> None:
    examples, metric = confounded("curve", 0)
    a = torch.tensor([example.covariates["a"] for example in examples]).double()
    assert left_nonlinear(3 * a + 1, examples, ["a"]) == 0
    assert left_nonlinear(torch.from_numpy(metric), examples, []) == 0
    few = examples_with(160, groups=np.arange(160) % 7, covariates={"a": a.numpy()})
    assert math.isnan(left_nonlinear(torch.from_numpy(metric), few, ["a"]))


def test_each_groups_own_number_is_no_curve() -> None:
    """Trees that saw a group's other examples would know it by its covariate."""
    random = np.random.default_rng(0)
    own, sizes = random.normal(size=30), np.arange(240) // 8
    frequency = random.normal(size=30)[sizes]
    examples = examples_with(240, groups=sizes, covariates={"frequency": frequency})
    metric = torch.from_numpy(own[sizes] + 0.1 * random.normal(size=240))
    assert left_nonlinear(metric, examples, ["frequency"]) < 0.05


@pytest.mark.parametrize("kind", ["known", "computed"])
def test_a_curved_confounder_makes_no_neuron_special(kind: str, tmp_path: Path) -> None:
    """Family-wise error where neuron and metric are both curves of the covariate: at most 5 %.

    40 data sets of 20 such neurons, of which a straight line would leave nearly every one
    associated. At 5 %, six or more of 40 have a chance of 1 %.
    """
    wrong = 0
    for seed in range(40):
        random = np.random.default_rng(100 + seed)
        a = random.normal(size=100)
        units = (a**2)[:, None] * random.uniform(0.5, 2, 20) + random.normal(size=(100, 20))
        metric = a**2 + random.normal(size=100)
        examples = examples_with(100, labels={"y": metric}, covariates={"a": a})
        table = handmade(
            tmp_path / str(seed),
            units[:, None].astype(np.float32),
            examples,
            computed={"m": metric},
        )
        metrics = "label:y" if kind == "known" else from_the_pass("m")
        found = score(table, examples, metrics=metrics, given=["a"], n_permutations=99, seed=seed)
        assert found.p_family is not None
        wrong += bool((found.p_family <= 0.05).any())
    assert wrong <= 5
