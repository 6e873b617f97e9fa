"""The trial of detectors: its statistics, what it says in words, and a smoke run."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

import lens_skills as ls
from lens_skills.activations import evaluate

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
steps: Any = import_module("detector_steps")
page: Any = import_module("detectors_page")
detectors: Any = import_module("detectors")


def test_scores_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    truth, scores = random.random(60) < 0.4, random.normal(size=60)
    assert steps.auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))
    assert steps.balanced(scores, truth) == pytest.approx(
        balanced_accuracy_score(truth, scores > 0)
    )
    # A weight is how often a row stands there.
    weight = random.integers(0, 3, size=60).astype(float)
    rows = np.repeat(np.arange(60), weight.astype(int))
    wanted = roc_auc_score(truth[rows], scores[rows])
    assert steps.auroc(scores, truth, weight) == pytest.approx(wanted)
    wanted = balanced_accuracy_score(truth[rows], scores[rows] > 0)
    assert steps.balanced(scores, truth, weight) == pytest.approx(wanted)
    assert np.isnan(steps.auroc(scores, np.ones(60, dtype=bool)))


def test_intervals_over_groups_hold_the_truth() -> None:
    """AUROC where the rows of a group are alike, over 100 samples of 40 groups."""
    random, covered = np.random.default_rng(1), 0
    for sample in range(100):
        groups = np.repeat(np.arange(40), 3)
        truth = (random.random(40) < 0.5)[groups]
        scores = truth + random.normal(size=40)[groups]
        weights = steps.group_weights([str(g) for g in groups], sample)[:300]
        low, high = steps.interval(steps.aurocs(scores, truth, weights))
        covered += low <= 0.7602 <= high  # Φ(1 / √2)
    assert 88 <= covered <= 100


def test_random_neurons_stand_in_the_same_layers_and_are_alike() -> None:
    chosen = np.array([3, 250, 251])
    level = np.arange(300, dtype=float)
    for drawn in steps.random_places(chosen, 100, 20, 0, level):
        assert (drawn // 100 == chosen // 100).all()
        assert not set(drawn) & set(chosen)
        assert len(set(drawn)) == 3
        assert (abs(level[drawn] - level[chosen]) <= 52).all()
    wide = np.concatenate(steps.random_places(chosen, 100, 50, 0))
    assert abs(wide[::3] - 3).max() > 60  # without a level any of the layer


def made(change: float, n_groups: int = 20) -> pd.DataFrame:
    """A set whose scaling by 0 lowers the logit difference, beside three that do nothing."""
    rows = []
    for place in range(n_groups):
        base = {"id": f"e{place}", "group": f"g{place}", "correct": 1.0, "what": "example"}
        rows.append(base | {"logit_diff": 4.0, "set": "", "alpha": 1.0})
        for name in ("detectors", "random0", "random1", "random2"):
            moved = change * (1 + 0.1 * (place % 3)) if name == "detectors" else 0.01
            rows.append(base | {"logit_diff": 4 + moved, "set": name, "alpha": 0.0})
            text = {"id": str(place), "what": "text", "set": name, "alpha": 0.0}
            rows.append(text | {"damage": 0.2 if name == "detectors" else 0.01})
    return pd.DataFrame(rows)


def test_scaling_is_paired_and_said_in_words() -> None:
    table = steps.scaling_rows(made(-1.0), 0).set_index("alpha")
    assert table.loc[0.0, "logit_diff"] == pytest.approx(-1.095)
    assert table.loc[0.0, "logit_diff_high"] < -1
    assert table.loc[0.0, "random_logit_diff"] == pytest.approx(0.01)
    assert table.loc[0.0, "damage"] == pytest.approx(0.2)
    assert table.loc[1.0, ["logit_diff", "damage", "accuracy"]].tolist() == [0, 0, 0]
    said = " ".join(page.lever_words({"scaling": table.reset_index()}))
    assert "**Levers: yes.**" in said
    assert "logit diff −1.09 nats at factor 0" in said.replace("−1.10", "−1.09")
    assert "damaged by 0.20" in said
    none = steps.scaling_rows(made(0.005), 0)
    assert "**Levers: no.**" in " ".join(page.lever_words({"scaling": none}))
    assert steps.scaling_rows(made(1.0).query("set != 'detectors'"), 0).empty


def test_the_models_own_answers_are_graded_as_the_metric_does() -> None:
    model = ls.load_model("arithmetic-small")
    task = ls.tasks.arithmetic("+-", digits=(3, 4), n=40, seed=1)
    found = steps.answer(model, task)
    wanted = evaluate(model, task, ["correct"])["correct"].numpy() == 1
    assert found.ids == [example.id for example in task]
    assert (found.right == wanted).all()
    assert 0 < wanted.sum() < 40


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *options: str) -> str:
    places = ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    said = ["detectors.py", "--quick", "--model", "arithmetic-small", "--ops=+-", *options, *places]
    monkeypatch.setattr("sys.argv", said)
    detectors.main()
    return (tmp_path / "out" / "arithmetic_small.md").read_text()


def test_a_smoke_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = ["--digits", "3", "4"]
    text = run(monkeypatch, tmp_path, *small)
    assert "no result" in text
    assert "**Detectors:" in text
    assert "**Levers:" in text
    assert "H-neurons" in text
    for name in ("answers", "detection", "transfer", "verdict", "scaling"):
        table = pd.read_csv(tmp_path / "out" / f"arithmetic_small_{name}.csv")
        assert len(table) > 0
    assert (tmp_path / "out" / "arithmetic_small_scaling.png").exists()
    assert str(tmp_path) not in text
    # What is finished is not made again.
    monkeypatch.setattr(detectors, "answer", None)
    assert run(monkeypatch, tmp_path, *small, "--kept") == text


def test_too_few_wrong_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = run(monkeypatch, tmp_path, "--digits", "2")
    assert "Too few answers of a kind" in text
    assert "Nothing was fitted" in text
