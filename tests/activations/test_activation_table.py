"""A table on disk holds what the model did, and stands in for it in `score`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lens_skills.activations import ActivationTable, capture, stream
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.scoring import score
from lens_skills.settings import config

WORDS = ("keys", "key", "boys", "girl", "author", "doctor", "cabinet", "table")
EXAMPLES = [
    Example(
        f"{first} {second}",
        f"The {first} to the {second}" + " is here" * (place % 3),
        " are",
        foil=" is",
        labels={"plural": int(first.endswith("s")), "number": place},
    )
    for first in WORDS
    for place, second in enumerate(WORDS)
]


def activations(model: Any, **options: Any) -> np.ndarray:
    """All activations by the stream, in the order of the examples."""
    found: dict[int, np.ndarray] = {}
    for batch in stream(model, EXAMPLES, **options):
        found |= dict(zip(batch.index.tolist(), batch.activations.numpy(), strict=True))
    return np.stack([found[place] for place in range(len(EXAMPLES))])


@pytest.mark.parametrize("position", ["last", "mean", [1, "last"]])
def test_a_table_holds_the_activations_to_float16(tiny: Any, tmp_path: Path, position: Any) -> None:
    options = {"at": "hook_resid_post", "layers": [0, 3], "position": position}
    with config(batch_size=5):
        table = capture(tiny, EXAMPLES, tmp_path / "t", **options)
    expected = activations(tiny, **options)
    stored = table.activations()
    assert stored.dtype == torch.float16
    assert stored.shape == expected.shape
    assert table.layers == (0, 3)
    np.testing.assert_allclose(stored, expected, rtol=2**-10, atol=2e-5)
    again = ActivationTable.load(tmp_path / "t")
    assert again.activations().equal(stored)
    assert again.manifest == table.manifest


def test_float32_is_exact(tiny: Any, tmp_path: Path) -> None:
    table = capture(tiny, EXAMPLES, tmp_path / "t", dtype="float32")
    assert np.array_equal(table.activations(), activations(tiny))


def test_a_table_streams_what_the_model_streams(tiny: Any, tmp_path: Path) -> None:
    names = ["label:plural", "confidence", "logit_diff"]
    table = capture(tiny, EXAMPLES, tmp_path / "t", metrics=names[1:], dtype="float32")
    expected = activations(tiny)
    values = {name: torch.zeros(len(EXAMPLES), dtype=torch.float64) for name in names}
    for batch in stream(tiny, EXAMPLES, metrics=names):
        for name in names:
            values[name][batch.index] = batch.metrics[name]
    part = EXAMPLES[40:10:-1]  # some of them, in another order
    places = torch.arange(40, 10, -1)
    read: list[int] = []
    with config(batch_size=7):
        for batch in table.stream(part, metrics=names):
            here = places[batch.index]
            assert here.tolist() == sorted(here.tolist())  # as they lie on the disk
            assert [example.id for example in batch.examples] == [EXAMPLES[p].id for p in here]
            np.testing.assert_array_equal(batch.activations, expected[here])
            for name in names:
                torch.testing.assert_close(
                    batch.metrics[name], values[name][here], rtol=0, atol=1e-9
                )
            read += batch.index.tolist()
    assert sorted(read) == list(range(len(part)))


@pytest.mark.parametrize("position", ["last", [2, "last"]])
def test_scores_from_a_table_are_those_from_the_model(
    tiny: Any, tmp_path: Path, position: Any
) -> None:
    options = {"position": position, "seed": 3, "n_permutations": 39}
    metrics = ["label:plural", "confidence"]
    table = capture(tiny, EXAMPLES, tmp_path / "t", metrics=metrics[1:], position=position)
    exact = score(tiny, EXAMPLES, metrics=metrics, **options)
    tabled = score(table, EXAMPLES, metrics=metrics, **options)
    torch.testing.assert_close(tabled.r, exact.r, rtol=0, atol=2e-3)
    for name in metrics:
        torch.testing.assert_close(tabled.null_max[name], exact.null_max[name], rtol=0, atol=2e-3)
        top = exact[name].top(5).names
        assert tabled[name].top(5).names[0] == top[0]
    keys = ("model_fingerprint", "site", "layers", "positions", "chat")
    assert {k: tabled.provenance[k] for k in keys} == {k: exact.provenance[k] for k in keys}


def test_a_new_column_needs_no_forward_pass(tiny: Any, tmp_path: Path) -> None:
    table = capture(tiny, EXAMPLES, tmp_path / "t", dtype="float32")
    numbers = np.sin(np.arange(len(EXAMPLES)))
    metrics = {"mine": numbers, "number": "label:number"}
    tabled = score(table, EXAMPLES, metrics=metrics, n_permutations=0)
    exact = score(tiny, EXAMPLES, metrics=metrics, n_permutations=0)
    torch.testing.assert_close(tabled.r, exact.r, rtol=0, atol=1e-6)


def test_a_new_metric_of_the_model_is_refused(tiny: Any, tmp_path: Path) -> None:
    table = capture(tiny, EXAMPLES, tmp_path / "t", metrics="entropy")
    with pytest.raises(LensSkillsError, match=r"'confidence' reads .* \(stored metrics: entropy\)"):
        score(table, EXAMPLES, metrics=["entropy", "confidence"])


def test_what_does_not_fit_the_table_is_refused(tiny: Any, tmp_path: Path) -> None:
    table = capture(tiny, EXAMPLES, tmp_path / "t", layers=1)
    asked = {"metrics": "label:plural"}
    with pytest.raises(LensSkillsError, match=r"holds site mlp\.hook_post, not hook_resid_post"):
        score(table, EXAMPLES, at="hook_resid_post", **asked)
    with pytest.raises(LensSkillsError, match=r"holds positions \['last'\], not \['mean'\]"):
        score(table, EXAMPLES, position="mean", **asked)
    with pytest.raises(LensSkillsError, match=r"holds no layer 2, only \[1\]"):
        score(table, EXAMPLES, layers=[1, 2], **asked)
    stranger = Example("stranger", "x", labels={"plural": 1})
    with pytest.raises(LensSkillsError, match=r"1 examples are not in the table .*'stranger'"):
        score(table, [*EXAMPLES, stranger], **asked)


def test_an_interrupted_capture_leaves_nothing(tiny: Any, tmp_path: Path) -> None:
    calls = []

    def fails(logits: Tensor, examples: Sequence[Any]) -> Tensor:
        calls.append(len(examples))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return logits[:, 0]

    with pytest.raises(KeyboardInterrupt), config(batch_size=8):
        capture(tiny, EXAMPLES, tmp_path / "t", metrics=fails)
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []
    capture(tiny, EXAMPLES, tmp_path / "t")  # and the way is free
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_an_existing_folder_is_not_touched(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LensSkillsError, match="exists already"):
        capture(tiny, EXAMPLES, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_model_runs(
    tiny: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")

    def never(logits: Tensor, examples: Sequence[Any]) -> Tensor:
        raise AssertionError("the model ran")

    with pytest.raises(LensSkillsError, match="cannot be written"):
        capture(tiny, EXAMPLES, tmp_path / "file" / "t", metrics=never)


def test_every_token_cannot_be_tabled(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(LensSkillsError, match="'all' keeps every token"):
        capture(tiny, EXAMPLES, tmp_path / "t", position="all")
    assert list(tmp_path.iterdir()) == []


def test_values_beyond_float16_are_refused(tiny: Any, tmp_path: Path) -> None:
    point = tiny.hook_dict["blocks.0.mlp.hook_post"]
    point.add_hook(lambda activation, hook: activation * 1e8)
    try:
        with pytest.raises(LensSkillsError, match=r"does not fit float16.*dtype='float32'"):
            capture(tiny, EXAMPLES, tmp_path / "t")
    finally:
        tiny.reset_hooks()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["nothing there", "no manifest", "cut manifest"])
def test_what_is_no_table_is_refused(tiny: Any, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "t"
    if damage != "nothing there":
        capture(tiny, EXAMPLES[:4], folder)
        manifest = folder / "manifest.json"
        text = manifest.read_text()
        assert json.loads(text)["shards"][0]["rows"] == 4
        manifest.unlink()
        if damage == "cut manifest":
            manifest.write_text(text[: len(text) // 2])
    with pytest.raises(LensSkillsError, match="no activation table in"):
        ActivationTable.load(folder)


def test_a_table_without_its_activations_is_refused(tiny: Any, tmp_path: Path) -> None:
    capture(tiny, EXAMPLES[:4], tmp_path / "t")
    (tmp_path / "t" / "activations.npy").unlink()
    with pytest.raises(LensSkillsError, match=r"activations\.npy is not there"):
        ActivationTable.load(tmp_path / "t")


def test_a_table_knows_its_examples(tiny: Any, tmp_path: Path) -> None:
    capture(tiny, EXAMPLES, tmp_path / "t", metrics=["confidence", "confidence:options"][:1])
    table = ActivationTable.load(tmp_path / "t")
    assert list(table.examples) == EXAMPLES
    assert [table.examples[place] for place in (0, 5, -1)] == [EXAMPLES[p] for p in (0, 5, -1)]
    assert list(table.examples[3:20:4]) == EXAMPLES[3:20:4]
    assert list(table.metrics) == ["confidence"]


def test_some_layers_of_a_table_are_read_alone(tiny: Any, tmp_path: Path) -> None:
    table = capture(tiny, EXAMPLES, tmp_path / "t", dtype="float32")
    some = {"layers": [1, 3], "metrics": "label:plural", "n_permutations": 0, "n_rotations": 0}
    torch.testing.assert_close(
        score(table, EXAMPLES, **some).r, score(tiny, EXAMPLES, **some).r, rtol=0, atol=1e-6
    )
