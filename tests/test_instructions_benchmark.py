"""The trials of instructions and of pruning: planted types are decoded, by what oracles say too."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

import lens_skills as ls
from lens_skills.activations import stream

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def beside() -> Iterator[None]:
    """The scripts are modules of each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.syspath_prepend(str(BENCHMARKS / "neighbours"))
        yield


@pytest.fixture(scope="module")
def trial(beside: None) -> Any:
    return importlib.import_module("instructions")


@pytest.fixture(scope="module")
def types() -> list[str]:
    return sorted(set(ls.tasks.instructions(72).column("type").tolist()))


def planted(trial: Any, types: list[str], *, signal: float) -> Any:
    """Sixty neurons of noise, the first six of which also carry a type each, at both spans."""
    learn, held = ls.tasks.instructions(360).split(0.5, 0.5, seed=0)
    frame = pd.concat([learn.frame(), held.frame()], ignore_index=True)
    generator = torch.Generator().manual_seed(0)
    values = {}
    for spot in trial.SPOTS:
        noise = torch.randn(60, len(frame), generator=generator)
        for place, name in enumerate(types):
            noise[place] += signal * torch.tensor((frame["type"] == name).to_numpy()).float()
        values[spot] = noise
    return trial.Read(values, np.arange(len(frame)) < len(learn), frame, 20)


def test_all_neurons_in_fewer_coordinates_are_the_same_probe(trial: Any) -> None:
    random = np.random.default_rng(0)
    values = torch.from_numpy(random.normal(size=(300, 80)))
    learn = np.arange(80) < 50
    truth = values[:5].sum(0).numpy() + random.normal(size=80) > 0
    fitted = LogisticRegression(class_weight="balanced", max_iter=5000, tol=1e-8)
    columns = values.numpy().T
    wanted = fitted.fit(columns[learn], truth[learn]).decision_function(columns)
    found = trial.probe(trial.whole(values, learn), truth, learn)
    assert np.abs(found - wanted).max() < 1e-2 * np.abs(wanted).max()  # its tolerance


def test_macro_f1_is_that_of_scikit_learn(trial: Any) -> None:
    random = np.random.default_rng(1)
    said, truth = (random.random((6, 90)) < share for share in (0.4, 0.2))
    weight = random.integers(0, 4, size=90)
    wanted = np.mean(
        [f1_score(yes, one, sample_weight=weight) for one, yes in zip(said, truth, strict=True)]
    )
    assert trial.macro(said, truth, weight) == pytest.approx(wanted)


def test_a_planted_type_is_decoded_and_noise_is_not(trial: Any, types: list[str]) -> None:
    found = planted(trial, types, signal=8.0)
    made = trial.probes(found, types)
    sparse = trial.sparse(found, made, types)
    for place, name in enumerate(types):
        assert made["best"]["verb"][name][0] == place
    assert sparse["kept"]["argument"]["1"] > 0.95 > sparse["kept"]["argument"]["random"]
    nested = trial.nested(found, made, types)
    assert nested["8"][0] > 0.95
    noise = planted(trial, types, signal=0.0)
    nothing = trial.nested(noise, trial.probes(noise, types), types)
    assert nothing["8"][0] < 0.45
    assert nothing["8_3"] < nothing["8_1"] + 0.2
    rows = trial.by_layer(found, types)
    assert {row["x"] for row in rows} == {0, 1, 2}
    assert all((row["value"] > 0.8) == (row["x"] == 0) for row in rows)


def test_an_argument_is_looked_for_after_its_type(trial: Any, types: list[str]) -> None:
    """With types known and arguments not, pairs are right as often as things are guessed."""
    found = planted(trial, types, signal=8.0)
    found.values["argument"] = torch.randn(60, len(found.frame))
    made = trial.probes(found, types)
    right = trial.nested(found, made, types)
    assert right["8_1"] > 0.95
    assert right["8_3"] < 0.6


def test_what_is_read_is_what_the_whole_prompt_has_there(trial: Any, tiny: Any) -> None:
    task = ls.tasks.instructions(72)
    learn, held = task[:12], task[12:16]
    found = trial.read(tiny, learn, held)
    for spot in trial.SPOTS:
        batches = stream(tiny, [*learn, *held], position=ls.span(column=spot))
        rows = torch.zeros(16, len(found.values[spot]))
        for batch in batches:
            rows[batch.index] = batch.activations.flatten(1).float()
        own = rows[:12].double()
        wanted = (rows.double() - own.mean(0)) / own.std(0, correction=0)
        assert torch.allclose(found.values[spot].T.double(), wanted, atol=1e-3, rtol=1e-3)


def test_intervals_decide() -> None:
    page = importlib.import_module("instructions_page")
    assert page.at_least((1.0, 0.9, 1.1), 0.9) is True
    assert page.at_least((0.9, 0.8, 1.1), 0.9) is None
    assert page.at_least((0.5, 0.4, 0.89), 0.9) is False
    assert page.above_zero((0.2, 0.1, 0.3), 0.05) is True
    assert page.above_zero((0.2, -0.1, 0.3), 0.05) is None
    assert page.above_zero((0.0, -0.1, 0.04), 0.05) is False


def test_the_page_and_its_rows(trial: Any, types: list[str], tmp_path: Path) -> None:
    page = importlib.import_module("instructions_page")
    table = importlib.import_module("neighbours_page")
    found = planted(trial, types, signal=3.0)
    made, shuffled = (trial.probes(found, types, label) for label in ("type", "shuffled"))
    one = {"neurons": 48} | dict.fromkeys(("argument", "matched", "more"), (0.3, 0.2, 0.4))
    numbers = {
        "sparse": trial.sparse(found, made, types),
        "within_verb": trial.within_verb(found, made, shuffled, types),
        "nested": trial.nested(found, made, types),
        "by_layer": trial.by_layer(found, types),
        "ablated": {"n": 48, "groups": 12, "clean": 0.7, "right": 0.68,
                    "sets": {"8 per type": one, "random 1": one}},
        "units": 60, "minutes": 2.0, "n": (180, 180),
    }  # fmt: skip
    page.write(numbers, 0, tmp_path, tmp_path / "pages")
    rows = json.loads((tmp_path / "neighbours_instructions.json").read_text())
    assert table.problems(rows) == []
    assert [row["met"] for row in rows[-1:]] == [True]
    text = (tmp_path / "pages/instructions.md").read_text()
    assert "**met**" in text
    assert (tmp_path / "pages/instructions_f1.png").exists()


def test_a_mask_keeps_the_lower_layers_and_the_strongest(beside: None) -> None:
    pruning = importlib.import_module("pruning")
    strength = torch.arange(4 * 100.0)
    found = pruning.masks(strength, (4, 100), 2)
    assert found.shape == (len(pruning.SHARES), 4, 1, 100)
    assert bool(found[:, :2].all())
    kept = found[:, 2:, 0].flatten(1)
    assert kept.sum(1).tolist() == [round(share * 200) for share in pruning.SHARES]
    assert bool(kept[0, -1:].all())
    assert not bool(kept[:, 0].any())
