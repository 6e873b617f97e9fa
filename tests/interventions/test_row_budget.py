"""How many columns are run at once: found, bounded, told, and halved where memory runs out."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lens_skills as ls
from lens_skills import config
from lens_skills.errors import LensSkillsError
from lens_skills.interventions import effect_engine, row_budget
from lens_skills.interventions.edits import ablate
from lens_skills.interventions.sweep import sweep

OPTIONS: dict[str, Any] = {"do": ablate("zero"), "metric": "logit_diff"}
MOST = 128
SOME = [f"L{layer}N{neuron}" for layer in range(4) for neuron in range(12)]


@pytest.fixture(scope="module")
def task() -> ls.Task:
    return ls.tasks.agreement(n=6)


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests found out is put aside."""
    monkeypatch.setattr(row_budget, "_row_bytes", {})
    monkeypatch.setattr(row_budget, "_limits", {})
    monkeypatch.setattr(row_budget, "FASTEST", {"cpu": MOST})


def spied(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int, int], Any]) -> list[int]:
    """How many rows each pass of the engine had; it raises what ``fails`` gives for them."""
    measure, rows = effect_engine.EffectEngine.measure, []

    def watched(self: Any, stack: Any, draw: int) -> Any:
        size = len(stack.places) * len(self.batch)
        error = fails(size, len(self.batch))
        if error is not None:
            raise error
        rows.append(size)
        return measure(self, stack, draw)

    monkeypatch.setattr(effect_engine.EffectEngine, "measure", watched)
    return rows


def fits(rows: int, examples: int) -> None:
    """Everything does."""


def test_the_numbers_do_not_depend_on_how_many_run_at_once(tiny: Any, task: ls.Task) -> None:
    wanted = sweep(tiny, task, direct=True, **OPTIONS)
    assert wanted.provenance["edit_rows"] <= MOST
    assert 0 < wanted.provenance["edit_mib"] < 100
    for rows in (1, 50, 100_000):
        with config(edit_rows=rows):
            found = sweep(tiny, task, direct=True, **OPTIONS)
        torch.testing.assert_close(found.total, wanted.total, atol=2e-5, rtol=0)
        torch.testing.assert_close(found.direct, wanted.direct, atol=2e-5, rtol=0)
    assert wanted.total.abs().max() > 0.1


def test_the_size_is_found_bounded_and_kept_for_the_session(
    tiny: Any, task: ls.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = spied(monkeypatch, fits)
    first = sweep(tiny, task, **OPTIONS)
    assert rows[0] <= 64  # one small pass is measured
    assert max(rows) == MOST // len(task) * len(task)
    assert first.provenance["edit_rows"] == max(rows)
    assert first.provenance["halved"] == 0
    rows.clear()
    again = sweep(tiny, task, **OPTIONS)
    assert rows[0] == max(rows)  # it is known now
    assert torch.equal(again.total, first.total)  # what was measured first was run again
    assert again.provenance == first.provenance
    (each,) = set(row_budget._row_bytes.values())
    monkeypatch.setattr(row_budget, "free_bytes", lambda device: int(200 * each))
    rows.clear()
    sweep(tiny, task, **OPTIONS)
    assert max(rows) == 100 // len(task) * len(task)  # half of what is free
    monkeypatch.setattr(row_budget, "free_bytes", lambda device: None)
    rows.clear()
    with config(memory_mb=1):
        sweep(tiny, task, **OPTIONS)
    assert max(rows) == min(MOST, int(2**20 / each)) // len(task) * len(task)


def test_memory_that_runs_out_halves_says_so_once_and_goes_on(
    tiny: Any, task: ls.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = sweep(tiny, task, direct=True, **OPTIONS)
    full = torch.OutOfMemoryError("CUDA out of memory")
    with monkeypatch.context() as patched:
        rows = spied(patched, lambda rows, _: full if rows > 50 else None)
        with pytest.warns(RuntimeWarning, match=r"memory ran out: .* columns did not fit") as told:
            found = sweep(tiny, task, direct=True, **OPTIONS)
    assert len(told) == 1
    assert max(rows) <= 50
    assert found.provenance["halved"] >= 1
    assert found.provenance["edit_rows"] == max(rows)
    torch.testing.assert_close(found.total, wanted.total, atol=2e-5, rtol=0)
    torch.testing.assert_close(found.direct, wanted.direct, atol=2e-5, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        later = sweep(tiny, task, **OPTIONS)  # the limit is kept
    assert later.provenance["edit_rows"] <= 50


@pytest.mark.parametrize(
    "full", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_then_the_batch_of_examples_is_halved(
    tiny: Any, task: ls.Task, monkeypatch: pytest.MonkeyPatch, full: Exception, tmp_path: Any
) -> None:
    wanted = sweep(tiny, task, SOME, direct=True, **OPTIONS)
    with monkeypatch.context() as patched:
        rows = spied(patched, lambda rows, examples: full if examples > 2 else None)
        with pytest.warns(RuntimeWarning, match="memory ran out") as told:
            found = sweep(tiny, task, SOME, direct=True, checkpoint=tmp_path / "kept", **OPTIONS)
    assert len(told) == 1
    assert rows
    torch.testing.assert_close(found.total, wanted.total, atol=2e-5, rtol=0)
    torch.testing.assert_close(found.direct, wanted.direct, atol=2e-5, rtol=0)
    torch.testing.assert_close(found.clean, wanted.clean, atol=2e-5, rtol=0)


def test_what_fits_nowhere_and_other_errors_are_said(
    tiny: Any, task: ls.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        spied(patched, lambda rows, examples: MemoryError())
        with (
            pytest.warns(RuntimeWarning, match="memory ran out"),
            pytest.raises(LensSkillsError, match="one set of neurons on one example"),
        ):
            sweep(tiny, task, SOME, **OPTIONS)
    with monkeypatch.context() as patched:
        spied(patched, lambda rows, examples: RuntimeError("shapes do not fit"))
        with pytest.raises(RuntimeError, match="shapes do not fit"):
            sweep(tiny, task, SOME, **OPTIONS)
