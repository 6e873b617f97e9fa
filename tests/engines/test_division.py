"""A pass cut into shards, whose parts come back in any order, gives the sums of the whole pass."""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import lens_skills as ls
from lens_skills import engines
from lens_skills.data import Example
from lens_skills.engines import Finished, cut
from lens_skills.errors import LensSkillsError

SUMS = ("r", "low", "high", "mean", "std", "p", "p_family", "q", "p_control", "q_control")
ROTATED = ("excess", "p_basis", "q_basis")


class InProcess:
    """An engine whose workers are this process, and the last shard is done first."""

    def __init__(self, n_shards: int) -> None:
        self.n, self.n_run = n_shards, 0
        self.sizes: list[int] = []
        self.stopped = False

    def n_shards(self) -> int:
        return self.n

    def stop(self) -> None:
        self.stopped = True

    def run(
        self, adapter: Any, job: Any, shards: Sequence[range], sizes: Sequence[int], **options: Any
    ) -> Iterator[Finished]:
        opened = job.open(adapter)
        for number in reversed(range(len(shards))):
            ticks: list[int] = []
            part = job.run(opened, shards[number], ticks.append)
            assert sum(ticks) == sizes[number]
            self.n_run += 1
            self.sizes.append(sizes[number])
            yield Finished(number, part, "here", 0, 0, 1)


@pytest.fixture(autouse=True)
def small_batches() -> Iterator[None]:
    with ls.config(batch_size=8):
        yield


@pytest.fixture(scope="module")
def model() -> Any:
    return ls.load_model("arithmetic-small")


def close(one: Any, two: Any) -> None:
    """Sums to 1e-12; what was turned into random directions, in float32, to 1e-5."""
    for name in (*SUMS, *ROTATED):
        here, there = getattr(one, name), getattr(two, name)
        assert (here is None) == (there is None), name
        if here is not None:
            bound = 1e-12 if name in SUMS else 1e-5
            torch.testing.assert_close(here, there, rtol=bound, atol=bound, msg=name)
    for name, values in one.values.items():
        assert values.equal(two.values[name])
    for name, values in one.predictivity.items():
        assert values.equal(two.predictivity[name])
    assert one.notes == two.notes


@pytest.fixture(scope="module")
def task() -> Sequence[Example]:
    return ls.tasks.arithmetic(digits=(1, 2))[:200]


ASKED: dict[str, dict[str, Any]] = {
    "whole layers": {"metrics": ["label:carry", "correct"], "layers": [0, 1]},
    "some neurons": {"metrics": "label:carry", "neurons": ["L0N3", "L1N7"], "n_permutations": 39},
    "every token": {"metrics": "confidence", "position": "all", "layers": 1, "n_permutations": 19},
    "given": {"metrics": ["label:carry", "correct"], "given": ["covariate:size"], "layers": [0]},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_scores_in_shards_are_the_scores(
    asked: dict[str, Any], model: Any, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "given" in asked:
        asked = asked | {"given": [sorted(task[0].covariates)[0]]}
    whole = ls.score(model, task, **asked)
    engine = InProcess(5)
    monkeypatch.setattr(engines, "chosen", lambda adapter: engine)
    shards = ls.score(model, task, **asked)
    assert engine.n_run > 1
    close(shards, whole)


def test_predictivity_counts_add(model: Any, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"metrics": "label:carry", "layers": 1}
    baseline = ls.score(model, task[:40], **asked)
    asked |= {"baseline": baseline, "exploratory": True}
    whole = ls.score(model, task[40:], **asked)
    monkeypatch.setattr(engines, "chosen", lambda adapter: InProcess(3))
    close(ls.score(model, task[40:], **asked), whole)


@pytest.mark.parametrize("method", ["pearson", "auroc", "lape"])
def test_rankings_in_shards_are_the_rankings(
    method: str, model: Any, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"method": method, "gate": False}
    whole = ls.rank(model, task, "label:carry", **asked)
    engine = InProcess(4)
    monkeypatch.setattr(engines, "chosen", lambda adapter: engine)
    shards = ls.rank(model, task, "label:carry", **asked)
    assert engine.n_run > 1
    torch.testing.assert_close(shards.score, whole.score, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.fixture(scope="module")
def table(model: Any, task: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Activations of two layers on disk."""
    folder = tmp_path_factory.mktemp("table") / "captured"
    return ls.capture(model, task, folder, layers=[0, 1], dtype="float32", metrics="correct")


@pytest.mark.parametrize("rows", [slice(None), slice(10, 190)], ids=["whole", "some"])
def test_a_table_in_shards_gives_its_scores(
    rows: slice, table: Any, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"metrics": ["label:carry", "correct"], "n_permutations": 19}
    examples = table.examples if rows == slice(None) else task[rows]
    whole = ls.score(table, examples, **asked)
    engine = InProcess(4)
    monkeypatch.setattr(engines, "chosen", lambda adapter: engine)
    close(ls.score(table, examples, **asked), whole)
    assert engine.n_run > 1


@pytest.mark.parametrize("method", ["pearson", "information"])
def test_a_table_in_shards_gives_its_ranking(
    method: str, table: Any, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"method": method, "gate": False}
    whole = ls.rank(table, task, "label:carry", **asked)
    monkeypatch.setattr(engines, "chosen", lambda adapter: InProcess(4))
    shards = ls.rank(table, task, "label:carry", **asked)
    torch.testing.assert_close(shards.score, whole.score, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("position", ["last", ["last", -2]], ids=["last", "two"])
def test_a_table_written_in_shards_is_the_table(
    position: Any, model: Any, task: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"metrics": ["correct", "label:carry"], "layers": [1, 2]}
    asked |= {"position": position}
    whole = ls.capture(model, task, tmp_path / "whole", **asked)
    engine = InProcess(4)
    monkeypatch.setattr(engines, "chosen", lambda adapter: engine)
    shards = ls.capture(model, task, tmp_path / "shards", **asked)
    monkeypatch.undo()
    assert engine.n_run == len(shards.shards) == 4
    assert not list((tmp_path / "shards").glob(".*"))
    places = torch.from_numpy(shards.places(task))
    assert shards.activations()[places].equal(whole.activations())
    assert [shards.examples[int(place)] for place in places] == list(whole.examples)
    assert (shards.metrics["correct"][places] == whole.metrics["correct"]).all()
    same = {key for key in whole.manifest if whole.manifest[key] == shards.manifest[key]}
    assert set(whole.manifest) - same == {"shards"}


def test_a_worker_that_does_not_see_the_folder_says_so(
    model: Any, task: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(InProcess):
        def run(self, adapter: Any, job: Any, *args: Any, **options: Any) -> Iterator[Finished]:
            if self.n == 1:  # it is not there
                job = replace(job, folder=tmp_path / "none" / "work")
            for each in super().run(adapter, job, *args, **options):
                (job.folder / each.part.file).unlink()  # it was written to another disk
                yield each

    for n, complaint in ((1, "is another folder on"), (2, "was written on another machine")):
        engine = Elsewhere(n)
        monkeypatch.setattr(engines, "chosen", lambda adapter, engine=engine: engine)
        with pytest.raises(LensSkillsError, match=complaint):
            ls.capture(model, task[:40], tmp_path / "shards", layers=0)
        assert list(tmp_path.iterdir()) == []


def test_a_table_is_sent_by_the_full_paths_of_its_files(
    model: Any, task: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    near = ls.capture(model, task[:20], "near", layers=0)
    sent = pickle.dumps(near.to_send())
    assert len(sent) < near.shards[0].path.stat().st_size
    monkeypatch.chdir("/")
    there = pickle.loads(sent)
    there.check_unchanged()
    assert there.activations().equal(ls.load(tmp_path / "near").activations())
    file = tmp_path / "near" / "activations.npy"
    file.touch()
    with pytest.raises(LensSkillsError, match=r"activations.npy on .* is another one \("):
        there.check_unchanged()
    file.unlink()
    with pytest.raises(LensSkillsError, match=r"is not on .* Put the folder at this place"):
        there.check_unchanged()


def test_a_pass_stopped_here_goes_on_in_shards(
    model: Any, task: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is of batches, whoever ran them."""
    from lens_skills import checkpoints

    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
    asked = {"metrics": "label:carry", "layers": 1, "n_permutations": 19, "n_controls": 0}
    whole = ls.score(model, task, **asked)

    class Stopping(InProcess):
        def run(self, *args: Any, **options: Any) -> Iterator[Finished]:
            found = sorted(super().run(*args, **options), key=lambda each: each.number)
            yield from found[:2]
            raise KeyboardInterrupt

    stopping = Stopping(5)
    monkeypatch.setattr(engines, "chosen", lambda adapter: stopping)
    with pytest.raises(KeyboardInterrupt, match="the same again goes on there"):
        ls.score(model, task, **asked, checkpoint=tmp_path / "kept")
    assert stopping.stopped
    engine, left = InProcess(5), sum(stopping.sizes)
    monkeypatch.setattr(engines, "chosen", lambda adapter: engine)
    close(ls.score(model, task, **asked, checkpoint=tmp_path / "kept"), whole)
    assert sum(engine.sizes) < left
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_shards_hold_every_unit_once(n: int) -> None:
    shards = cut(range(3, 23), n)
    assert [unit for shard in shards for unit in shard] == list(range(3, 23))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_hooks_on_the_model_are_refused(tiny_hooked: Any) -> None:
    from lens_skills.models import as_adapter

    tiny_hooked.add_hook("blocks.0.mlp.hook_post", lambda activation, hook: activation)
    try:
        with (
            ls.config(engine="ray"),
            pytest.raises(LensSkillsError, match=r"there are hooks on .* workers have none"),
        ):
            engines.chosen(as_adapter(tiny_hooked))
    finally:
        tiny_hooked.reset_hooks()


def test_a_model_on_several_devices_is_refused(
    tiny_hooked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lens_skills.models import as_adapter

    adapter = as_adapter(tiny_hooked)
    monkeypatch.setattr(adapter, "spread", True)
    with ls.config(engine="ray"), pytest.raises(LensSkillsError, match="on one GPU, or say"):
        engines.chosen(adapter)


@pytest.mark.parametrize("direct", [False, True])
def test_effects_in_shards_are_the_effects_to_the_bit(
    direct: bool, model: Any, task: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["L0N3", "L0N7", "L1N2", "L1H0", "L2N5", "L3N1"]
    asked: dict[str, Any] = {"metric": "logit_diff", "direct": direct, "seed": 1}
    asked |= {"do": ls.ablate("resample", over=task[100:])}
    whole = ls.sweep(model, task[:24], names, **asked)
    engine = InProcess(5)
    monkeypatch.setattr(engines, "chosen", lambda adapter: engine)
    shards = ls.sweep(model, task[:24], names, **asked)
    assert engine.n_run == 5
    assert shards.total.equal(whole.total)
    assert shards.clean.equal(whole.clean)
    assert shards.provenance == whole.provenance
    assert (shards.direct is None) == (whole.direct is None)
    if whole.direct is not None and shards.direct is not None:
        assert shards.direct.equal(whole.direct)


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_texts_in_shards_are_the_texts(
    temperature: float, model: Any, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 4, "temperature": temperature}
    whole = ls.generate(model, task[:40], **asked)
    engine = InProcess(3)
    monkeypatch.setattr(engines, "chosen", lambda adapter: engine)
    shards = ls.generate(model, task[:40], **asked)
    assert engine.n_run == 3
    assert shards.texts == whole.texts
    assert shards.tokens == whole.tokens


def test_what_is_not_divided_says_so(model: Any) -> None:
    pairs = [ls.Example(id="a", prompt="1 + 1 = ", answer="2", foil="3", corrupted="1 + 2 = ")]
    with (
        ls.config(engine="ray"),
        pytest.raises(LensSkillsError, match=r"circuit is not divided under engine='ray'"),
    ):
        ls.circuit(model, pairs, "answer")
