"""Memory that runs out in a pass halves what is read at once, says so, and changes no number."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import lens_skills as ls
from lens_skills.activations import evaluate, stream
from lens_skills.activations.halved_batches import joined
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models.adapter import ModelAdapter
from tests.conftest import hooks_on

ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
]


@contextmanager
def memory_for(
    rows: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[int]]:
    """A model whose passes fail above so many rows; the sizes of those that did not."""
    passed: list[int] = []
    with monkeypatch.context() as patched:
        for name in ("forward", "forward_tree"):
            own = getattr(ModelAdapter, name, None)
            if own is None:
                continue

            def forward(self: Any, tokens: Any, *rest: Any, _own: Any = own, **more: Any) -> Any:
                if len(tokens) > rows:
                    raise error
                passed.append(len(tokens))
                return _own(self, tokens, *rest, **more)

            patched.setattr(ModelAdapter, name, forward)
        yield passed


def task(tiny: Any, n: int = 24) -> list[Example]:
    words = ("the key", "a cat sat", "the old man", "one two three four")
    return [
        Example(id=str(k), prompt=f"{words[k % 4]} {words[(k + k // 4) % 4]}", answer=" is",
                labels={"y": k % 2}, group=str(k))
        for k in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_read_in_halves_with_the_same_numbers(
    tiny: Any, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = task(tiny)
    metrics = ["entropy", "answer_probability"]
    with ls.config(batch_size=8, progress=False):
        whole = [*stream(tiny, examples, position="all", metrics=metrics)]
        values = evaluate(tiny, examples, metrics)
        with memory_for(3, error, monkeypatch) as passed:
            with pytest.warns(RuntimeWarning, match="memory ran out at 8 examples at once; 4"):
                halved = [*stream(tiny, examples, position="all", metrics=metrics)]
            assert max(passed) <= 3
            with pytest.warns(RuntimeWarning, match="memory ran out"):
                again = evaluate(tiny, examples, metrics)
    assert len(halved) == len(whole) == 3  # the batches that a checkpoint counts
    for one, other in zip(whole, halved, strict=True):
        assert torch.equal(one.index, other.index)
        assert one.mask is not None
        assert other.mask is not None
        assert torch.equal(one.mask, other.mask)
        torch.testing.assert_close(one.activations, other.activations, atol=1e-5, rtol=1e-5)
        for name in metrics:
            torch.testing.assert_close(one.metrics[name], other.metrics[name], atol=1e-5, rtol=1e-5)
    for name in metrics:
        torch.testing.assert_close(values[name], again[name], atol=1e-5, rtol=1e-5)
    assert hooks_on(tiny) == []


def test_scores_are_those_of_whole_batches(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = task(tiny, 40)

    def scored() -> torch.Tensor:
        return ls.score(tiny, examples, metrics=["label:y"], n_permutations=20)["label:y"].r

    with ls.config(batch_size=16, progress=False):
        whole = scored()
        with (
            memory_for(5, MemoryError(), monkeypatch),
            warnings.catch_warnings(record=True) as said,
        ):
            warnings.simplefilter("always")
            halved = scored()
    assert len([one for one in said if "memory ran out" in str(one.message)]) == 1  # once a pass
    torch.testing.assert_close(whole, halved, atol=1e-5, rtol=1e-5)


def test_a_single_example_that_does_not_fit_is_named(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        memory_for(0, MemoryError(), monkeypatch),
        ls.config(batch_size=4, progress=False),
        pytest.warns(RuntimeWarning, match="memory ran out"),
        pytest.raises(LensSkillsError, match=r"at a single example \('0', \d+ tokens; MemoryError"),
    ):
        evaluate(tiny, task(tiny)[:4], ["entropy"])
    assert hooks_on(tiny) == []


def test_another_error_passes_out_as_it_is(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        memory_for(0, RuntimeError("shapes do not fit"), monkeypatch),
        pytest.raises(RuntimeError, match="shapes do not fit"),
    ):
        evaluate(tiny, task(tiny), ["entropy"])


def test_parts_of_several_widths_are_joined() -> None:
    one, two = torch.ones(2, 1, 3), torch.ones(1, 2, 3)
    assert joined([one, two]).tolist() == [[[1] * 3, [0] * 3]] * 2 + [[[1] * 3, [1] * 3]]
    assert joined([torch.ones(2), torch.zeros(1)]).tolist() == [1, 1, 0]
