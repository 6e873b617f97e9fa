"""An interrupted pass goes on where it stopped, and ends as if it had never been interrupted."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lens_skills import checkpoints
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.scoring import Scores, score
from lens_skills.settings import config

WORDS = ("keys", "key", "boys", "girl", "author", "doctor")
EXAMPLES = [
    Example(
        f"{first} {second}",
        f"The {first} to the {second}" + " is here" * (place % 3),
        labels={"y": int(first.endswith("s")), "z": (3 * place + len(first)) % 5},
        covariates={"length": place},
    )
    for first in WORDS
    for place, second in enumerate(WORDS)
]


@pytest.fixture(autouse=True)
def save_after_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)


class Mine:
    """A user's metric that breaks off at one of its calls."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.__name__ = "mine"
        self.fail_at, self.calls = fail_at, 0

    def __call__(self, logits: Tensor, examples: Sequence[Any]) -> Tensor:
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        return logits[:, 7]


def run(model: Any, metric: Mine, folder: Path | None, **options: Any) -> Scores:
    options = {
        "metrics": [metric, "label:y", "confidence"],
        "n_permutations": 39,
        "seed": 4,
        **options,
    }
    with config(batch_size=options.pop("batch_size", 8)):
        return score(model, options.pop("examples", EXAMPLES), checkpoint=folder, **options)


def assert_same(one: Scores, other: Scores) -> None:
    for name in ("r", "low", "high", "p", "p_family", "q", "mean", "std"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-12)
    for name in ("null_max", "control_max", "rotated_r", "values", "smd"):
        here, there = getattr(one, name), getattr(other, name)
        assert set(here) == set(there)
        for key in here:
            torch.testing.assert_close(here[key], there[key], rtol=0, atol=1e-12)
    assert one.thresholds == other.thresholds
    assert one.provenance == other.provenance


def test_with_covariates_metrics_are_read_once_and_first(tiny: Any) -> None:
    metric = Mine()
    run(tiny, metric, None, given=["length"])
    assert metric.calls == 5


@pytest.mark.parametrize("options", [{}, {"position": "all"}])
def test_resumed_scores_are_the_uninterrupted_ones(
    tiny: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = tmp_path / "pass"
    whole = Mine()
    expected = run(tiny, whole, None, **options)
    assert whole.calls == 5  # 36 examples in batches of 8
    with pytest.raises(KeyboardInterrupt):
        run(tiny, Mine(fail_at=4), folder, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["pass"]
    rest = Mine()
    found = run(tiny, rest, folder, **options)
    assert rest.calls == 2  # the three batches before the interruption are not read again
    assert_same(found, expected)
    assert list(tmp_path.iterdir()) == []


def test_a_pass_may_be_interrupted_twice(tiny: Any, tmp_path: Path) -> None:
    folder = tmp_path / "pass"
    for fail_at in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            run(tiny, Mine(fail_at), folder)
    assert_same(run(tiny, Mine(), folder), run(tiny, Mine(), None))


def test_a_pass_that_ends_leaves_no_folder(tiny: Any, tmp_path: Path) -> None:
    run(tiny, Mine(), tmp_path / "pass")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({"seed": 5}, "seed: 4 there, 5 here"),
        ({"batch_size": 9}, "batch_size"),
        ({"position": "mean"}, "position: None there, mean here"),
        ({"layers": [0, 1]}, "layers"),
        ({"at": "hook_resid_post"}, "at: mlp.hook_post there"),
        ({"given": ["length"]}, "given"),
        ({"n_permutations": 40}, "n_permutations"),
        ({"examples": EXAMPLES[::-1]}, "examples"),
        ({"metrics": ["label:y", Mine()]}, "metrics"),
    ],
)
def test_the_checkpoint_of_another_pass_is_refused(
    tiny_bridge: Any, tmp_path: Path, options: dict[str, Any], differs: str
) -> None:
    folder = tmp_path / "pass"
    with pytest.raises(KeyboardInterrupt):
        run(tiny_bridge, Mine(fail_at=3), folder)
    before = held(folder)
    with pytest.raises(LensSkillsError, match=rf"another pass \(it differs in .*{differs}"):
        run(tiny_bridge, Mine(), folder, **options)
    assert held(folder) == before  # and nothing is lost


def test_other_neurons_are_another_pass(tiny_bridge: Any, tmp_path: Path) -> None:
    """As many, but not the same."""
    folder = tmp_path / "pass"
    with pytest.raises(KeyboardInterrupt):
        run(tiny_bridge, Mine(fail_at=3), folder, neurons=[(0, 1), (0, 2)])
    with pytest.raises(LensSkillsError, match="another pass"):
        run(tiny_bridge, Mine(), folder, neurons=[(1, 1), (3, 2)])


def test_other_values_of_a_known_metric_are_another_pass(tiny_bridge: Any, tmp_path: Path) -> None:
    """Labels that were mended between the two runs would mix with the old ones."""
    folder = tmp_path / "pass"
    numbers = np.arange(36.0)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_bridge, Mine(), folder, metrics={"n": numbers, "mine": Mine(fail_at=3)})
    with pytest.raises(LensSkillsError, match="another pass"):
        run(tiny_bridge, Mine(), folder, metrics={"n": numbers**2, "mine": Mine()})


def test_a_folder_that_cannot_be_written_is_refused_before_the_pass(
    tiny_bridge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 60.0)
    (tmp_path / "file").write_text("")
    metric = Mine()
    with pytest.raises(LensSkillsError, match="cannot be written"):
        run(tiny_bridge, metric, tmp_path / "file" / "pass")
    assert metric.calls == 0


def test_a_folder_with_something_else_is_refused_before_the_pass(
    tiny_bridge: Any, tmp_path: Path
) -> None:
    (tmp_path / "pass").mkdir()
    (tmp_path / "pass" / "thesis.tex").write_text("mine")
    metric = Mine()
    with pytest.raises(LensSkillsError, match="pass"):
        run(tiny_bridge, metric, tmp_path / "pass")
    assert metric.calls == 0
    assert (tmp_path / "pass" / "thesis.tex").read_text() == "mine"


def held(folder: Path) -> dict[str, bytes]:
    """Every kept file."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path): path.read_bytes() for path in files}


def test_a_damaged_checkpoint_is_named(tiny_bridge: Any, tmp_path: Path) -> None:
    folder = tmp_path / "pass"
    with pytest.raises(KeyboardInterrupt):
        run(tiny_bridge, Mine(fail_at=3), folder)
    (state,) = folder.glob("state-*")
    (state / "state.json").write_text("{")
    with pytest.raises(LensSkillsError, match=rf"pass is damaged: {state.name} was cut"):
        run(tiny_bridge, Mine(), folder)


def test_an_interruption_while_saving_keeps_the_last_checkpoint(
    tiny_bridge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old folder goes only when the new one stands in its place."""
    folder = tmp_path / "pass"
    with pytest.raises(KeyboardInterrupt):
        run(tiny_bridge, Mine(fail_at=3), folder)
    real, stops = os.replace, []

    def stopped(source: Any, target: Any) -> None:
        if Path(target).name.startswith("state-") and not stops:
            stops.append(target)
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("lens_skills.results.os.replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_bridge, Mine(), folder)
    rest = Mine()
    assert_same(run(tiny_bridge, rest, folder), run(tiny_bridge, Mine(), None))
    assert rest.calls <= 3


def test_predictivity_goes_on_too(tiny_bridge: Any, tmp_path: Path) -> None:
    """What is counted beside the sums is kept beside them."""
    before = run(tiny_bridge, Mine(), None, examples=EXAMPLES[::2])
    asked: dict[str, Any] = {"examples": EXAMPLES[1::2], "baseline": before}
    with pytest.raises(KeyboardInterrupt):
        run(tiny_bridge, Mine(fail_at=3), tmp_path / "p", **asked)
    resumed = run(tiny_bridge, Mine(), tmp_path / "p", **asked)
    whole = run(tiny_bridge, Mine(), None, **asked)
    assert_same(resumed, whole)
    assert torch.equal(resumed.predictivity["label:y"], whole.predictivity["label:y"])
