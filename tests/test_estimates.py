"""`estimate`: what a call will take, told beforehand."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lens_skills as ls
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.estimation import VERBS, Estimate, estimate, small_runs
from lens_skills.estimation.extrapolation import TimeModel, disk_size, interval, peak_memory
from lens_skills.estimation.measuring import PeakMemory, SmallRun
from lens_skills.estimation.plans import EFFECTS, PLANS, READING, fewer, holds_examples
from lens_skills.estimation.small_runs import request_of
from lens_skills.interventions import Controls


@pytest.fixture(scope="module")
def model() -> Any:
    return ls.load_model("arithmetic-small")


@pytest.fixture(scope="module")
def task() -> Any:
    return ls.tasks.arithmetic("+", digits=2, n=400)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures no longer than it must."""
    for name in ("_SHORT", "_LONG", "_TELLING"):
        monkeypatch.setattr(small_runs, name, 0.01)


def small(n: int, m: int, seconds: dict[str, float], work: dict[str, float]) -> SmallRun:
    total = sum(seconds.values())
    return SmallRun(n, m, work, total, total, seconds, 10_000_000, 100 + 8 * n * m, None)


def test_time_is_told_by_kind_of_work() -> None:
    def run(n: int, m: int) -> SmallRun:
        spent = {"": 0.5 + 0.001 * n, READING: 0.02 * n, EFFECTS: 0.3 + 0.004 * n * m}
        return small(n, m, spent, {READING: 10.0 * n, EFFECTS: float(n * m)})

    runs = [run(8, 4), run(16, 4), run(8, 8), run(16, 8)]
    model = TimeModel.of(runs)
    whole = run(200, 100)
    assert model.seconds(whole.work) == pytest.approx(whole.seconds, rel=0.02)
    assert model.parts(whole.work)[EFFECTS] == pytest.approx(80, rel=0.02)
    low, high = interval(runs, model, whole.work)
    assert low < whole.seconds < high
    assert disk_size(runs, 200, 100) == pytest.approx(100 + 8 * 200 * 100, rel=0.01)


def test_a_busy_machine_makes_the_interval_wider_and_the_time_longer() -> None:
    runs = [small(n, 1, {READING: 0.1 * n}, {READING: float(n)}) for n in (16, 32)]
    busy = [SmallRun(**{**vars(run), "seconds": 3 * run.seconds}) for run in runs]
    work = {READING: 320.0}
    quiet, slow = TimeModel.of(runs), TimeModel.of(busy)
    assert slow.seconds(work) == pytest.approx(3 * quiet.seconds(work))
    assert interval(busy, slow, work)[0] < 1.2 * quiet.seconds(work)


def test_memory_grows_to_a_full_batch_and_then_only_where_it_is_seen_to() -> None:
    def run(n: int, memory: float) -> SmallRun:
        return SmallRun(n, 1, {READING: n}, 1, 1, {READING: 1}, int(memory), None, None)

    assert peak_memory([run(8, 8e6), run(16, 16e6)], 500, 32, 0) == pytest.approx(32e6)
    assert peak_memory([run(32, 32e6), run(64, 33e6)], 500, 32, 5e6) == pytest.approx(38e6)
    grown = peak_memory([run(32, 32e6), run(64, 48e6), run(128, 80e6)], 256, 32, 0)
    assert grown == pytest.approx(144e6)


def test_peak_memory_is_seen() -> None:
    with PeakMemory() as used:
        block = torch.ones(20_000_000)
        del block
    assert 60e6 < used.peak < 200e6


def test_batches_cost_something_whatever_is_edited_in_them() -> None:
    def run(n: int, m: int) -> SmallRun:
        spent = {EFFECTS: 0.002 * n + 0.0001 * n * m}
        return small(n, m, spent, {READING: float(n), EFFECTS: float(n * m)})

    model = TimeModel.of([run(8, 32), run(32, 32), run(8, 128), run(32, 128)])
    assert model.seconds(run(40, 2000).work) == pytest.approx(0.002 * 40 + 8, rel=0.02)


def test_memory_seen_to_grow_fourfold_is_believed() -> None:
    def run(n: int, memory: float) -> SmallRun:
        return SmallRun(n, 1, {READING: n}, 1, 1, {READING: 1}, int(memory), None, None)

    assert peak_memory([run(64, 8e6), run(256, 26e6)], 960, 32, 0) == pytest.approx(92e6, rel=0.01)


def test_a_far_larger_whole_is_measured_further_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(small_runs.time, "process_time", lambda: clock[0])

    def seconds(n: int) -> float:  # a part grows only up to 64 examples
        return 0.5 + 0.003 * min(n, 64) + 0.002 * n

    def run(n: int, m: int) -> SmallRun:
        clock[0] += seconds(n)
        return small(n, m, {"": seconds(n)}, {READING: float(n)})

    plan = PLANS["score"]
    task = [Example(id=str(k), prompt="a", answer="b") for k in range(2400)]
    runs, _ = small_runs._small_runs(plan, {"examples": task}, run)
    assert runs[-1].n >= 256
    assert clock[0] < 7
    told = TimeModel.of(runs).seconds({READING: 2400.0})
    assert told == pytest.approx(seconds(2400), rel=0.25)


def test_fewer_examples_keep_groups_and_the_longest_prompt(task: Any) -> None:
    some = fewer(task, 0.05)
    assert isinstance(some, ls.Task)
    assert len(some) == 20
    assert len(set(some.groups)) > 10
    longest = max(len(example.prompt) for example in task)
    assert longest in {len(example.prompt) for example in some}
    assert len(fewer(list(task), 0.01)) == 8
    assert holds_examples({"a": task})
    assert not holds_examples(["a"])


def test_every_verb_that_is_told_is_public() -> None:
    assert set(VERBS) <= set(dir(ls))
    for plan in PLANS.values():
        assert set(plan.examples) <= set(inspect.signature(plan.verb).parameters)


@pytest.mark.usefixtures("quick")
def test_a_card_tells_time_memory_and_disk_and_what_they_are_made_of(model: Any, task: Any) -> None:
    told = ls.estimate("score", model, task, metrics="label:carry")
    assert isinstance(told, Estimate)
    assert 0 < told.low <= told.seconds <= told.high
    assert told.memory > 0
    assert (told.disk or 0) > 1000
    lines = repr(told).splitlines()
    assert all(len(line) <= 80 for line in lines)
    for word in ("time", "memory", "disk", "made of", "measured"):
        assert any(line.strip().startswith(word) for line in lines), word


@pytest.mark.usefixtures("quick")
def test_a_short_call_is_run_whole(model: Any, task: Any) -> None:
    told = ls.estimate("preflight", model, task[:12])
    assert told.parts[0][0] == "the call itself, run whole"
    assert "12 of 12 examples" in told.measured


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_verdict_is_told_from_few_controls(model: Any, task: Any) -> None:
    explore, intervene = task.split(0.5, 0.5, seed=0)
    told = ls.estimate(
        ls.verify, model, ls.tasks.few(intervene, 60), ["L0N1", "L2N5"],
        do=ls.ablate("mean", over=explore), controls=ls.controls(100, neurons=200),
    )  # fmt: skip
    assert "of 200 control neurons a layer" in told.measured
    assert any(what.startswith("controls(") for what, _ in told.cheaper)
    assert told.cheaper[0][1] <= told.seconds  # measured in seconds: noise can hide it


def test_work_grows_with_examples_and_controls(model: Any, task: Any) -> None:
    plan = PLANS["verify"]
    request = request_of(plan.verb, (model, task, ["L0N1", "L2N5"]), {"do": ls.ablate("zero")}) | {
        "controls": Controls(100, None, 200)
    }
    whole, less = plan.work(request), plan.work(plan.smaller(request, 40, 50))
    assert whole[EFFECTS] / less[EFFECTS] == pytest.approx(10 * 4, rel=0.1)
    assert whole[READING] / less[READING] == pytest.approx(10, rel=0.2)
    assert plan.smaller(request | {"checkpoint": "x"}, 40, 50)["checkpoint"] is None


@pytest.mark.usefixtures("quick")
def test_nothing_is_left_behind(
    model: Any, task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1), np.random.seed(1)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(1), np.random.seed(1)
    ls.estimate("capture", model, task, tmp_path / "table")
    ls.estimate("score", model, task, metrics="label:carry", checkpoint=tmp_path / "checkpoint")
    assert torch.rand(1) == expected[0]
    assert np.random.rand() == expected[1]
    assert list(tmp_path.iterdir()) == []
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


@pytest.mark.usefixtures("quick")
def test_a_table_on_disk_is_told_by_its_size(model: Any, task: Any, tmp_path: Path) -> None:
    told = ls.estimate("capture", model, task, tmp_path / "table")
    ls.capture(model, task, tmp_path / "table")
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert told.disk == pytest.approx(size, rel=0.1)


@pytest.mark.usefixtures("quick")
def test_an_analysis_of_halves_is_told_by_its_runs(task: Any) -> None:
    def names(part: Any) -> Any:
        return ["L0N1", "L1N2"]

    two, eight = (ls.estimate("stability", names, task, n=n, among=1024) for n in (2, 8))
    assert "2 times the analysis" in two.notes[0]
    assert "5 times the analysis" in eight.notes[0]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_study_is_told_as_the_sum_of_its_parts(model: Any, task: Any, tmp_path: Path) -> None:
    told = ls.estimate(
        "study", model, task, metric="label:carry", most=2, n_intervene=16,
        controls=ls.controls(8, neurons=24),
    )  # fmt: skip
    names = [what for what, _ in told.parts]
    assert names == [
        "the preflight", "scoring explore", "scoring confirm", "the verdict on 2 neurons"
    ]  # fmt: skip
    assert told.seconds == pytest.approx(sum(seconds for _, seconds in told.parts))
    found = ls.study(
        model,
        task,
        metric="label:carry",
        most=2,
        n_intervene=16,
        controls=ls.controls(8, neurons=24),
    )
    place = found.save(tmp_path / "study")
    size = sum(file.stat().st_size for file in place.iterdir())
    assert 0.6 * size < (told.disk or 0) < 1.7 * size
    assert "where nothing is confirmed" in told.notes[0]


def call(*args: Any, **options: Any) -> Any:
    return lambda model, task: estimate(*args[:1], model, task, *args[1:], **options)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (call("scor"), "Did you mean 'score'?"),
        (call("select"), "no verb that takes long"),
        (call("score", metric="label:carry"), "Did you mean 'metrics'?"),
        (call("score"), "missing a required argument: 'metrics'"),
        (call("verify", ["L0N1"], do=None, n_controls=3), "write controls=ls.controls(sets=…)"),
        (call("score", metrics="label:carry", seed="x"), "seed must be a whole number"),
        (call("score", metrics="label:cary"), "fails as it is asked"),
        (call("sweep", ["L9N1"], do=ls.ablate("zero"), metric="logit_diff"), "L9N1"),
    ],
)
def test_a_call_that_would_fail_says_so(made: Any, said: str, model: Any, task: Any) -> None:
    with pytest.raises(LensSkillsError) as found:
        made(model, task)
    assert said in str(found.value)
