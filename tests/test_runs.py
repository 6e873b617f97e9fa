"""A run folder holds what was asked and what each step found, so that the next step can go on."""

import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from lens_skills import checkpoints
from lens_skills.cli.runs import Run, RunRequest, main_metric
from lens_skills.cli.steps import Step
from lens_skills.errors import LensSkillsError
from lens_skills.scoring import Scores, Selection, score, select
from lens_skills.settings import config
from lens_skills.tasks import GENERATORS, open_task

OPTIONS = {"at": "mlp.hook_post", "position": "last", "n_permutations": 39}
REQUEST = RunRequest("agreement", ("label:plural", "confidence"), options=OPTIONS, limit=96)


@pytest.fixture(scope="module")
def done(tiny_bridge: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose explore split has been scored."""
    run = Run.create(tmp_path_factory.mktemp("runs") / "new" / "run", REQUEST)
    run.explore(tiny_bridge)
    return run


def test_a_request_comes_back_as_it_was(tmp_path: Path) -> None:
    request = RunRequest(
        task="some/table.csv",
        metrics=("label:plural", "confidence"),
        model="some/model",
        implementation="bridge",
        columns={"prompt": "{a} and {b}", "labels": ["plural"]},
        options={**OPTIONS, "given": ["length"], "chat": False},
        fractions=(0.5, 0.25, 0.25),
        seed=7,
        limit=100,
    )
    assert Run.create(tmp_path / "run", request).folder == tmp_path / "run"
    assert Run.load(tmp_path / "run") == Run(tmp_path / "run", request)
    plain = json.loads((tmp_path / "run" / "run.json").read_text())
    assert plain["columns"] == request.columns
    assert isinstance(plain["command"], str)


def test_the_splits_are_those_of_the_request() -> None:
    run = Run(Path("nowhere"), REQUEST)
    explore, confirm, intervene = run.splits()
    # The limit is met to an example, and leaves all 80 nouns.
    assert len({*explore.groups, *confirm.groups, *intervene.groups}) == 80
    assert [part.split_name for part in (explore, confirm, intervene)] == [
        f"{name} split of the 96 examples" for name in ("explore", "confirm", "intervene")
    ]
    assert len(explore) + len(confirm) + len(intervene) == 96
    assert not set(explore.groups) & set(confirm.groups)
    assert not set(intervene.groups) & {*explore.groups, *confirm.groups}
    assert [part.fingerprint() for part in run.splits()] == [
        part.fingerprint() for part in (explore, confirm, intervene)
    ]
    other = Run(Path("nowhere"), replace(REQUEST, seed=1)).splits()[0]
    assert other.fingerprint() != explore.fingerprint()
    # The limit draws examples by the seed too, not always the same ones.
    mine, others = (
        {example.id for part in Run(Path("nowhere"), asked).splits() for example in part}
        for asked in (REQUEST, replace(REQUEST, seed=1))
    )
    assert mine != others
    halves = (0.5, 0.5)
    whole = Run(Path("nowhere"), replace(REQUEST, limit=None, fractions=halves)).splits()
    assert [len(part) for part in whole] == [480, 480]
    assert sum(map(len, Run(Path("nowhere"), replace(REQUEST, limit=5000)).splits())) == 960


def test_explore_saves_what_it_finds(done: Run) -> None:
    found = done.scores()
    assert found.metrics == REQUEST.metrics
    assert set(found.example_ids) == {example.id for example in done.splits()[0]}
    assert sorted(path.name for path in done.folder.iterdir()) == ["explore", "run.json"]


def test_confirm_tests_explores_strongest_on_the_other_split(done: Run, tiny_bridge: Any) -> None:
    selection = done.confirm(tiny_bridge, "label:plural", fdr=0.1, top=20)
    checked = Scores.load(done.folder / "confirm-label_plural")
    assert set(checked.example_ids) == {example.id for example in done.splits()[1]}
    tested = set(zip(checked.layer.tolist(), checked.neuron.tolist(), strict=True))
    assert tested == {tuple(row) for row in done.scores()["label:plural"].top(20).rows.tolist()}
    assert selection.fdr == 0.1
    saved = Selection.load(done.folder / "selection-label_plural")
    assert repr(saved) == repr(selection)
    assert [repr(one) for one in done.selections()] == [repr(selection)]
    evidence = pd.read_csv(done.folder / "evidence-label_plural.csv")
    assert evidence["name"].tolist() == selection.evidence()["name"].tolist()


def test_verify_intervenes_on_the_third_split(done: Run, tiny_bridge: Any) -> None:
    # As if every neuron were associated, so that there is something to verify.
    everything = done.scores()
    everything = replace(everything, p_family=torch.zeros_like(everything.r), p_control=None)
    found = everything["label:plural"]
    checked = score(
        tiny_bridge,
        done.splits()[1],
        metrics=["label:plural"],
        neurons=found.top(2),
    )
    chosen = select(found, checked["label:plural"], grade="C", fdr=0.999)
    assert len(chosen)
    chosen.save(done.folder / "selection-label_plural")
    verdict = done.verify(tiny_bridge, "label:plural", causal_metric=None, delta=0.5, limit=16)
    assert verdict.delta == 0.5
    assert {ruling.name for ruling in verdict.singles} == set(chosen.names)
    assert set(verdict.effects.example_ids) <= {e.id for e in done.splits()[2]}
    assert len(verdict.effects.example_ids) == 16  # exactly as many as asked, in as many groups
    assert len(set(verdict.effects.groups)) == 16
    assert repr(done.verdicts()["label:plural"]) == repr(verdict)
    table = pd.read_csv(done.folder / "verdict-label_plural.csv")
    assert table["name"].tolist() == [ruling.name for ruling in verdict.rulings]
    assert not (done.folder / "verdict-checkpoint-label_plural").exists()


def test_verify_asks_for_a_selection_and_a_third_split(done: Run, tiny_bridge: Any) -> None:
    asked: dict[str, Any] = {"causal_metric": None, "delta": None, "limit": 16}
    with pytest.raises(LensSkillsError, match="lens-skills select"):
        done.verify(tiny_bridge, "confidence", **asked)
    two = Run(done.folder, replace(REQUEST, fractions=(0.6, 0.4)))
    with pytest.raises(LensSkillsError, match="no third split"):
        two.verify(tiny_bridge, "label:plural", **asked)


def test_a_metric_that_does_not_vary_on_confirm(
    done: Run, tiny_bridge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = importlib.import_module("lens_skills.cli.runs")
    real = runs.score

    def left_out(*args: Any, **kwargs: Any) -> Scores:
        return replace(real(*args, **kwargs), excluded_metrics={"confidence": "it is 1 everywhere"})

    monkeypatch.setattr(runs, "score", left_out)
    with pytest.raises(LensSkillsError, match="'confidence' cannot be confirmed: it is 1 every"):
        done.confirm(tiny_bridge, "confidence", fdr=0.05, top=5)
    assert not (done.folder / "selection-confidence").exists()


class Interruption:
    """Counts the batches a pass reads, and breaks off at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # The room, which the function of the same name hides.
        room = importlib.import_module("lens_skills.activations.stream")
        self.real, self.calls, self.at = room.forward_batch, 0, 0
        monkeypatch.setattr(room, "forward_batch", self)
        monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)

    def __call__(self, adapter: Any, batch: Any, *rest: Any, **options: Any) -> Any:
        if len(batch) > 1:  # a pass first looks at one example, to see how wide the layers are
            self.calls += 1
            if self.calls == self.at:
                raise KeyboardInterrupt
        return self.real(adapter, batch, *rest, **options)


@pytest.fixture
def interruption(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interruption]:
    return Interruption(monkeypatch)


def test_an_interrupted_pass_leaves_no_result_and_is_resumed(
    done: Run, tiny_bridge: Any, tmp_path: Path, interruption: Interruption
) -> None:
    run = Run.create(tmp_path / "run", REQUEST)
    interruption.at = 3
    with pytest.raises(KeyboardInterrupt), config(batch_size=16):
        run.explore(tiny_bridge)
    assert sorted(path.name for path in run.folder.iterdir()) == ["explore-checkpoint", "run.json"]
    with pytest.raises(
        LensSkillsError, match=r"holds no scores yet: the pass was stopped, and what"
    ):
        run.scores()
    n_batches = -(-len(run.splits()[0]) // 16)
    interruption.calls, interruption.at = 0, 0
    again = Run.create(tmp_path / "run", REQUEST)  # the same command
    with config(batch_size=16):
        found = again.explore(tiny_bridge)
    assert interruption.calls == n_batches - 2
    assert sorted(path.name for path in run.folder.iterdir()) == ["explore", "run.json"]
    torch.testing.assert_close(found.r, done.scores().r, rtol=0, atol=1e-10)
    assert found.thresholds.keys() == done.scores().thresholds.keys()


def test_an_interrupted_pass_is_not_taken_up_by_another_request(
    tiny_bridge: Any, tmp_path: Path, interruption: Interruption
) -> None:
    interruption.at = 2
    with pytest.raises(KeyboardInterrupt):
        Run.create(tmp_path / "run", REQUEST).explore(tiny_bridge)
    with pytest.raises(LensSkillsError, match="holds another run"):
        Run.create(tmp_path / "run", replace(REQUEST, seed=1))
    assert Run.load(tmp_path / "run").request == REQUEST


def test_a_folder_with_results_of_another_run_is_refused(done: Run) -> None:
    with pytest.raises(LensSkillsError, match="holds another run"):
        Run.create(done.folder, replace(REQUEST, limit=50))
    assert Run.load(done.folder).request == REQUEST
    # The same again is welcome, whether its options came as lists or tuples.
    same = replace(REQUEST, options={**OPTIONS})
    assert Run.create(done.folder, same).request == REQUEST


def test_lists_and_tuples_are_the_same_request(tmp_path: Path) -> None:
    request = replace(REQUEST, options={**OPTIONS, "given": ("template", "n_words")})
    Run.create(tmp_path, request)
    (tmp_path / "explore").mkdir()
    Run.create(tmp_path, request)


def test_a_request_that_came_to_nothing_does_not_hold_the_folder(tmp_path: Path) -> None:
    mistyped = Run.create(tmp_path / "run", replace(REQUEST, task="agreemnt"))
    with pytest.raises(LensSkillsError, match="no task 'agreemnt'"):
        mistyped.splits()
    assert Run.create(tmp_path / "run", REQUEST).splits()


@pytest.mark.parametrize(
    "content", [None, "", "no json", "[]", "{}", '{"task": "ioi"}', '{"metrics": 3}'], ids=repr
)
def test_a_folder_that_holds_no_run(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(LensSkillsError, match=r"no run in .*lens-skills score TASK --out"):
        Run.load(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(LensSkillsError, match="cannot be written"):
        Run.create(tmp_path / "file" / "run", REQUEST)


def test_every_generator_is_a_task() -> None:
    for name in GENERATORS:
        assert open_task(name).name == name


def test_arithmetic_can_be_narrowed() -> None:
    task = open_task("arithmetic:+-:1")
    assert (len(task), set(task.column("op"))) == (200, {"+", "-"})
    assert len(open_task("arithmetic:*:1,2")) == 1000
    assert len(open_task("arithmetic")) == 1000
    with pytest.raises(LensSkillsError, match="the digits 'one' are no numbers"):
        open_task("arithmetic:+:one")
    with pytest.raises(LensSkillsError, match="choose one or more of"):
        open_task("arithmetic:%:1")


def test_files_are_opened_by_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("text,verb,plural\nThe key, is,0\nThe keys, are,1\n")
    task = open_task(str(path), {"prompt": "text", "answer": "verb", "labels": ["plural"]})
    assert (task.name, task[1].answer, task.column("plural").tolist()) == ("mine", " are", [0, 1])
    with pytest.raises(LensSkillsError, match="say which column is the prompt"):
        open_task(str(path))
    for name, columns in (("rows.json", {"prompt": "input"}), ("task.json", {})):
        rows = [{"input": "1 + 1 =", "target": "2"}, {"input": "1 + 2 =", "target": "3"}]
        (tmp_path / name).write_text(json.dumps(rows if columns else {"examples": rows}))
        assert "1 + 1 =" in open_task(str(tmp_path / name), columns)[0].prompt


def test_an_unknown_task_brings_what_there_is() -> None:
    with pytest.raises(LensSkillsError, match="neither a file nor one of agreement, ioi, arith"):
        open_task("nothing.csv")


def test_what_a_finished_step_was_asked_has_a_format(tmp_path: Path) -> None:
    place = tmp_path / "selection-truth"
    place.mkdir()
    step = Step(place, "the selection", {"--fdr": 0.05})
    step.record()
    record = tmp_path / ".selection-truth-asked.json"
    assert json.loads(record.read_text()) == {"format": 1, "asked": {"--fdr": 0.05}}
    assert "Nothing was run" in step.finished()
    with pytest.raises(LensSkillsError, match=r"--fdr was 0\.05, not 0\.1"):
        Step(place, "the selection", {"--fdr": 0.1}).finished()
    for text, said in (
        (
            '{"format": 2, "asked": {"--fdr": 0.05}}',
            "has format 2; this version .* reads 1. Update",
        ),
        ('{"format": 0, "asked": {}}', "has format 0; this version .* reads 1. Remove it"),
        ('{"format": true, "asked": {}}', "has format True; .* reads 1. Remove it"),
        ('{"--fdr": 0.05}', "is damaged or of another version"),
        ('{"format": 1, "asked"', "is damaged or of another version"),
        ('{"format": 1, "asked": 3}', "is damaged or of another version"),
        ("", "is damaged or of another version"),
    ):
        record.write_text(text)
        with pytest.raises(LensSkillsError, match=said) as refused:
            step.finished()
        assert "to take selection-truth as it is, or say --again" in str(refused.value)
    record.unlink()
    assert "Made with which options is not known" in step.finished()


def test_the_main_metric_is_the_first_unless_asked() -> None:
    assert main_metric(["a", "b"], None) == "a"
    assert main_metric(["a", "b"], "b") == "b"
    with pytest.raises(LensSkillsError, match=r"this run holds no 'c'\. It holds: a, b"):
        main_metric(["a", "b"], "c")
