"""η² of labels and the metric on features of any kind, against SciPy; what is flagged by it."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import f_oneway, linregress

from lens_skills import tasks
from lens_skills.data import Example
from lens_skills.explanation import Feature, feature_bank
from lens_skills.explanation.disguises import (
    DISGUISED,
    disguises,
    eta_squared,
    label_columns,
    stands_for,
    told,
)
from lens_skills.explanation.explain import disguise_notes, metric_column
from lens_skills.explanation.feature_bank import FeatureBank, FeatureMatrix

N = 200


def bank_of(values: pd.DataFrame, **options: Any) -> FeatureBank:
    kinds = {"flag": "flag", "category": "category"}
    return FeatureBank(
        tuple(
            Feature(name, kinds.get(name.split()[0], "number"), len, **options)  # type: ignore[arg-type]
            for name in values
        )
    )


def share(target: np.ndarray, values: pd.DataFrame) -> list[float]:
    design = FeatureMatrix.of(list(bank_of(values)), values)
    return eta_squared(torch.from_numpy(target)[None], design)[0].tolist()


def test_it_is_the_correlation_ratio_of_an_analysis_of_variance() -> None:
    random = np.random.default_rng(0)
    values = pd.DataFrame(
        {"flag": random.integers(0, 2, N), "category": random.choice(list("abcde"), N)}
    )
    target = values["flag"] + (values["category"] == "b") * 2 + random.normal(size=N)
    for name, found in zip(values, share(target.to_numpy().copy(), values), strict=True):
        classes = [part.to_numpy() for _, part in target.groupby(values[name])]
        k, f = len(classes), f_oneway(*classes).statistic
        plain = (k - 1) * f / ((k - 1) * f + N - k)
        assert found == pytest.approx(1 - (1 - plain) * (N - 1) / (N - k))


def test_a_number_is_read_along_a_line_and_in_bins() -> None:
    random = np.random.default_rng(1)
    x = random.uniform(-1, 1, N)
    line, valley = 2 * x + 0.3 * random.normal(size=N), x**2
    (found,) = share(line, pd.DataFrame({"number": x}))
    assert found == pytest.approx(
        1 - (1 - linregress(x, line).rvalue ** 2) * (N - 1) / (N - 2), abs=1e-9
    )
    # No line sees a valley.
    assert abs(np.corrcoef(x, valley)[0, 1]) < 0.2
    assert share(valley, pd.DataFrame({"number": x}))[0] > DISGUISED


@pytest.mark.parametrize(
    ("r", "flagged"), [(0.97, True), (0.92, True), (0.85, False), (0.3, False)]
)
def test_a_feature_that_goes_with_the_metric_is_flagged(r: float, flagged: bool) -> None:
    """An r of 0.92 went unseen while 0.95 was asked for."""
    random = np.random.default_rng(2)
    x, noise = np.linalg.qr(random.normal(size=(N, 3)) - 0)[0][:, :2].T
    x, noise = x - x.mean(), noise - noise.mean()
    noise -= x * (x @ noise) / (x @ x)
    metric = r * x / np.linalg.norm(x) + (1 - r**2) ** 0.5 * noise / np.linalg.norm(noise)
    assert np.corrcoef(x, metric)[0, 1] == pytest.approx(r)
    found = disguises(
        bank_of(pd.DataFrame({"number": x})), pd.DataFrame({"number": x}), {"metric sure": metric}
    )
    assert (len(found) == 1) == flagged


def test_a_category_is_flagged_though_it_has_no_r() -> None:
    values = pd.DataFrame({"category": list("abcd") * 50, "flag": [0, 1] * 100})
    label = {"label even": np.array([1.0, 0.0, 0.0, 1.0] * 50)}
    found = disguises(bank_of(values), values, label)
    assert found["feature"].tolist() == ["category"]
    assert found["eta_squared"].tolist() == [1.0]
    assert stands_for(found) == {"category": "label even"}
    assert told(found) == "'category' (label even, η² 1.00)"


def test_many_classes_alone_stand_for_nothing() -> None:
    """24 classes on 60 examples take 39 % of any column; adjusted, none is flagged."""
    random = np.random.default_rng(3)
    largest = 0.0
    for _ in range(200):
        values = pd.DataFrame({"category": random.integers(24, size=60)})
        largest = max(largest, *share(random.integers(2, size=60).astype(float), values))
    assert largest < 0.6


def test_labels_are_held_against_class_by_class() -> None:
    rows = [
        Example(
            str(n),
            "x",
            labels={"op": "+-*"[n % 3], "sign": "+-"[n % 2], "size": n, "heuristic": n % 2}
            | ({} if n else {"some": 1}),
        )
        for n in range(30)
    ]
    columns = label_columns(rows)
    assert set(columns) == {
        "label op=*", "label op=+", "label op=-", "label sign", "label size",
    }  # fmt: skip
    assert columns["label op=+"].tolist()[:4] == [1, 0, 0, 1]
    assert columns["label sign"].tolist()[:2] == [0, 1]
    assert list(metric_column("label:op=+", torch.zeros(2))) == ["label op=+"]
    assert list(metric_column("confidence", torch.zeros(2))) == ["metric confidence"]


def test_the_librarys_own_features_are_held_against_labels_too() -> None:
    task = tasks.arithmetic("+-*", digits=(1,))
    bank = feature_bank(task)
    found = disguises(bank, bank.values(task), label_columns(task))
    surface = found[found["surface"]]
    # "What is 3 times 4?" is longer than "What is 3 plus 4?".
    assert set(surface["feature"]) == {"characters of the prompt"}
    assert stands_for(found)["characters of the prompt"].startswith("label op")
    assert "an operand is 5" not in set(found["feature"])
    (note,) = disguise_notes(found)
    assert "1 surface feature stands for a label or the metric here" in note
    assert found["eta_squared"].is_monotonic_decreasing


def test_nothing_to_hold_against_is_an_empty_table() -> None:
    values = pd.DataFrame({"flag": [0, 1, 0, 1]})
    for columns in ({}, {"label flat": np.ones(4)}):
        found = disguises(bank_of(values), values, columns)
        assert found.empty
        assert list(found) == ["feature", "surface", "family", "column", "eta_squared"]
        assert disguise_notes(found) == []
