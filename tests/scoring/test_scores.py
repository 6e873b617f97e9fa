"""`Scores` as a value: saved and loaded exactly, and metrics that do not vary left out."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lens_skills.errors import LensSkillsError
from lens_skills.scoring import EXPLORATORY, Scores, score
from lens_skills.scoring.scores import one_metric
from tests.scoring.test_handmade import (
    examples_with,
    factor_activations,
    from_the_pass,
    handmade,
)

N = 60


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """Several positions, metrics of every kind, a baseline: every field is filled."""
    random = np.random.default_rng(0)
    acts = np.stack([factor_activations(random, 2 * N, 2, 6) for _ in range(2)], axis=1)
    acts[:, :, 1, 5] = 1.0
    label = np.arange(2 * N) % 2
    sure = random.uniform(size=2 * N)
    computed = {"sure": sure, "flat": np.full(2 * N, 0.25)}
    examples = examples_with(2 * N, labels={"y": label, "a/b": random.normal(size=2 * N)})
    table = handmade(tmp_path_factory.mktemp("v") / "t", acts, examples, computed=computed)
    options: dict[str, Any] = {
        "metrics": ["label:y", "label:a/b", from_the_pass("sure"), from_the_pass("flat")],
        "position": [0, 1],
        "n_permutations": 40,
        "n_rotations": 2,
    }
    first = score(table, examples[:N], **options)
    return score(table, examples[N:], baseline=first, **options)


def test_scores_come_back_as_they_were_saved(found: Scores, tmp_path: Path) -> None:
    for scores in (found, replace(found, exploratory=True)):
        loaded = Scores.load(scores.save(tmp_path / str(scores.exploratory)))
        for item in fields(Scores):
            one, other = getattr(scores, item.name), getattr(loaded, item.name)
            assert type(one) is type(other), item.name
            if isinstance(one, torch.Tensor):
                assert one.dtype == other.dtype
                assert torch.equal(one, other), item.name
            elif isinstance(one, dict) and any(isinstance(v, torch.Tensor) for v in one.values()):
                assert set(one) == set(other)
                assert all(torch.equal(one[key], other[key]) for key in one), item.name
            else:
                assert one == other, item.name
        assert repr(loaded) == repr(scores)
        assert loaded.frame().equals(scores.frame())
    assert repr(loaded).startswith(EXPLORATORY)


def test_scores_without_a_null_come_back_too(found: Scores, tmp_path: Path) -> None:
    bare = replace(found, p=None, p_family=None, q=None, null_max={}, control_max={}, rotated_r={})
    loaded = Scores.load(bare.save(tmp_path / "s"))
    assert loaded.p is None
    assert loaded.null_max == loaded.rotated_r == {}


def test_the_files_hold_no_code(found: Scores, tmp_path: Path) -> None:
    folder = found.save(tmp_path / "s")
    assert sorted(path.name for path in folder.iterdir()) == ["result.json", "result.safetensors"]


def test_a_folder_is_replaced_whole_or_left_alone(found: Scores, tmp_path: Path) -> None:
    folder = found.save(tmp_path / "s")
    replace(found, site="other").save(folder)
    assert Scores.load(folder).site == "other"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("notes")
    with pytest.raises(LensSkillsError, match="exists and holds no saved Scores"):
        found.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "notes"


def test_other_files_beside_saved_scores_are_not_lost(found: Scores, tmp_path: Path) -> None:
    folder = found.save(tmp_path / "s")
    (folder / "notes.txt").write_text("notes")
    with pytest.raises(LensSkillsError, match=r"'notes\.txt' beside the saved Scores"):
        found.save(folder)
    assert (folder / "notes.txt").read_text() == "notes"


def test_what_cannot_be_written_or_read_is_named(found: Scores, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LensSkillsError, match="cannot be written"):
        found.save(tmp_path / "file" / "s")
    with pytest.raises(LensSkillsError, match="no saved Scores in"):
        Scores.load(tmp_path)
    folder = found.save(tmp_path / "s")
    cut = (folder / "result.safetensors").read_bytes()[:100]
    (folder / "result.safetensors").write_bytes(cut)
    with pytest.raises(LensSkillsError, match="is damaged"):
        Scores.load(folder)


def test_a_computed_metric_that_does_not_vary_is_left_out_with_the_reason(found: Scores) -> None:
    assert found.metrics == ("label:y", "label:a/b", "sure")
    assert found.excluded_metrics == {"flat": "it is 0.25 for every example here"}
    assert "flat: left out, it is 0.25 for every example here" in repr(found)
    assert set(found.frame().metric) == {"label:y", "label:a/b", "sure"}
    with pytest.raises(LensSkillsError, match=r"'flat' was left out: it is 0.25"):
        found["flat"]
    with pytest.raises(LensSkillsError, match=r"no metric 'label:z'.*label:y, label:a/b, sure"):
        found["label:z"]


def test_nothing_is_ever_nan(found: Scores) -> None:
    for item in fields(Scores):
        value = getattr(found, item.name)
        tensors = value.values() if isinstance(value, dict) else [value]
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                assert torch.isfinite(tensor).all(), item.name
    assert found.excluded.sum() == 1


def test_a_layer_of_constants_does_not_break_the_rotated_basis(tmp_path: Path) -> None:
    """Directions of a layer that does not vary are no directions at all."""
    random = np.random.default_rng(5)
    acts = factor_activations(random, N, 3, 6)
    acts[:, 1] = random.normal(size=6)
    examples = examples_with(N, labels={"y": np.arange(N) % 2})
    table = handmade(tmp_path / "t", acts, examples)
    found = score(table, examples, metrics="label:y", n_permutations=19)
    assert (found.rotated_r["label:y"][0, 6:12] == 0).all()
    assert found.excluded.tolist() == [False] * 6 + [True] * 6 + [False] * 6
    assert found.q_basis is not None
    assert (found.q_basis[0, 0, 6:12] == 1).all()
    assert found.q_basis.isfinite().all()


def test_scores_of_one_metric_stand_for_it(found: Scores) -> None:
    with pytest.raises(LensSkillsError, match=r"hold 3 metrics: label:y, label:a/b, sure\. Choose"):
        one_metric(found)
    with pytest.raises(LensSkillsError, match=r"Choose one: scores\['label:y'\]"):
        one_metric(found)
    assert one_metric(found["sure"]).metric == "sure"
    names = ("r", "low", "high", "p", "p_family", "q", "p_control", "q_control")
    names += ("excess", "p_basis", "q_basis")
    arrays = {name: getattr(found, name) for name in names}
    parts: Any = {k: None if array is None else array[:1] for k, array in arrays.items()}
    alone = replace(found, metrics=("label:y",), **parts)
    assert one_metric(alone).metric == "label:y"
    assert torch.equal(one_metric(alone).r, found["label:y"].r)
    with pytest.raises(LensSkillsError, match="not a str"):
        one_metric("label:y")
