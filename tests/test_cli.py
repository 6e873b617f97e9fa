"""The shell does what the API does, prints it, and answers mistakes in one line."""

import importlib
import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner, Result

import lens_skills as ls
from lens_skills.cli import app, console, finding
from lens_skills.cli.runs import Run
from lens_skills.models.conversion import has_hooked
from lens_skills.scoring import Scores
from lens_skills.settings import batch_size, hides_progress
from lens_skills.tasks import GENERATORS

QUICK = ["--limit", "96", "--permutations", "39"]
OPTIONS = ["--metric", "label:plural", "--given", "n_words"]


def shell(*arguments: object) -> Result:
    with ls.config():  # what a command sets ends with it
        return CliRunner().invoke(app.app, [str(part) for part in arguments])


def printed(*arguments: object) -> str:
    """What a command prints that does as it is told."""
    result = shell(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def run_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored run, which the later steps go on from."""
    folder = tmp_path_factory.mktemp("shell") / "run"
    text = printed("score", "agreement", *QUICK, *OPTIONS, "--out", folder, "--model", tiny_folder)
    assert text.startswith("label:plural · mlp.hook_post at last\n")
    assert "\n  192 neurons → " in text
    return folder


def test_score_writes_what_it_prints(run_folder: Path) -> None:
    scores = Scores.load(run_folder / "explore")
    assert scores.metrics == ("label:plural",)
    assert list(scores.provenance["given"]) == ["n_words"]
    assert Run.load(run_folder).request.limit == 96


def test_the_same_command_again_is_no_other_run(run_folder: Path, tiny_folder: Path) -> None:
    before = Scores.load(run_folder / "explore")
    again = ["score", "agreement", *QUICK, *OPTIONS, "--out", run_folder, "--model", tiny_folder]
    done = shell(*again)
    assert done.exit_code == 0
    assert f"{run_folder / 'explore'} holds these scores. Nothing was run; --again" in done.stderr
    assert re.match(r"finished \d{4}-\d\d-\d\d \d\d:\d\d: ", done.stderr)
    assert done.stderr.endswith(f"next: lens-skills select {run_folder}\n")
    assert done.stdout == f"{before!r}\n"
    assert "opening the model" in shell(*again, "--again").stderr
    assert Scores.load(run_folder / "explore").r.equal(before.r)


def test_a_label_of_several_categories_is_one_metric_each(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    asked = ["--metric", "label:heuristic", "--metric", "label:entailment=1"]
    quick = ["--limit", 600, *QUICK[2:]]
    printed("score", "nli", *quick, *asked, "--out", folder, "--model", tiny_folder)
    names = Scores.load(folder / "explore").metrics
    rules = ("constituent", "lexical_overlap", "subsequence")
    assert names == (*(f"label:heuristic={rule}" for rule in rules), "label:entailment=1")
    text = printed("select", folder, "--metric", "label:heuristic=subsequence", "--top", 10)
    assert "\nlabel:heuristic=subsequence · mlp.hook_post\n" in text
    drawn = printed("figures", folder, "--out", tmp_path / "figures")
    assert "label_heuristic_subsequence" in drawn
    assert Run.load(folder).verdicts() == {}


def test_select_then_figures(run_folder: Path, tmp_path: Path) -> None:
    text = printed("select", run_folder, "--top", 10)
    assert text.startswith("192 neurons → ")
    assert "\nlabel:plural · mlp.hook_post\n" in text
    assert (run_folder / "selection-label_plural").is_dir()
    evidence = pd.read_csv(run_folder / "evidence-label_plural.csv")
    assert {"name", "r_confirm", "q_control", "grade", "stopped_by"} <= set(evidence)

    lines = printed("figures", run_folder, "--out", tmp_path).splitlines()
    drawn = {Path(line.split(".pdf")[0]).name for line in lines}
    assert drawn == {
        "r_distribution-label_plural",
        "layer_profile-label_plural",
        "attrition-label_plural",
    }
    for name in drawn:
        for suffix in ("pdf", "svg", "png", "csv", "json"):
            assert (tmp_path / f"{name}.{suffix}").stat().st_size > 0
    assert {path.stem for path in tmp_path.iterdir()} == drawn


def test_a_table_of_ones_own(tmp_path: Path, tiny_folder: Path) -> None:
    nouns = [f"{first} {second}" for first in ("old", "new", "red", "wet")
             for second in ("key", "girl", "boy", "author", "doctor")]  # fmt: skip
    frame = pd.DataFrame(
        [
            {"a": noun + "s" * plural, "b": place, "verb": " are" if plural else " is",
             "plural": plural, "noun": noun}
            for noun in nouns for place in range(3) for plural in (0, 1)
        ]
    )  # fmt: skip
    frame.to_csv(tmp_path / "mine.csv", index=False)
    text = printed(
        "score", tmp_path / "mine.csv", "--text", "{b} and the {a}", "--answer", "verb",
        "--label", "plural", "--covariate", "b", "--group", "noun", "--kind", "a",
        "--metric", "label:plural",
        "--metric", "covariate:b", "--metric", "answer_probability", "--permutations", 39,
        "--position=-2", "--out", tmp_path / "run", "--model", tiny_folder,
    )  # fmt: skip
    assert "label:plural · mlp.hook_post at -2\n" in text
    scores = Scores.load(tmp_path / "run" / "explore")
    assert scores.metrics == ("label:plural", "covariate:b", "answer_probability")
    assert scores.n_groups == 8
    assert set(scores.groups) <= set(nouns)
    assert scores.q_control is not None  # the input types are known, 16 of them


def test_the_list_of_tasks() -> None:
    text = printed("tasks")
    for name in [*GENERATORS, "PATH"]:
        assert name in text
    text = printed("tasks", "agreement")
    assert text.startswith("Task('agreement', all: 960 examples in 80 groups, labels plural;")
    assert "columns: plural, distractor," in text
    first = ls.tasks.agreement()[0]
    assert f"{first.prompt!r} → {first.answer!r}, not {first.foil!r}" in text.splitlines()


def test_the_preflight_of_a_task(tiny_folder: Path) -> None:
    text = printed("tasks", "agreement", "--preflight", "--limit", 24, "--model", tiny_folder)
    assert f"agreement on {tiny_folder.name}: 24 examples, 24 groups" in text
    assert "answer over foil" in text


def test_the_list_of_models() -> None:
    text = printed("models")
    for name in ("load_model()", "folder", "hub name", "implementation"):
        assert name in text


@pytest.mark.parametrize("implementation", ["hooked", "bridge"])
def test_the_hook_points_of_a_model(tiny_folder: Path, implementation: str) -> None:
    if implementation == "hooked" and not has_hooked():
        pytest.skip("this TransformerLens has no HookedTransformer (removed in 4.0)")
    names = printed(
        "models", "--hooks", "--model", tiny_folder, "--implementation", implementation
    ).split()
    assert {"mlp.hook_post", "mlp.hook_pre", "attn.hook_z", "hook_resid_post"} <= set(names)


def test_help_says_what_each_command_is_for() -> None:
    text = printed("--help")
    for command in ("demo", "score", "select", "compare-methods", "figures", "models", "tasks"):
        assert command in text
        assert "Usage" in printed(command, "--help")
    assert shell().stdout.strip() == text.strip()  # nothing asked: the same


def test_an_interrupted_score_leaves_no_result_and_the_same_command_resumes(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The room, which the function of the same name hides.
    room = importlib.import_module("lens_skills.activations.stream")
    monkeypatch.setattr("lens_skills.checkpoints.SECONDS_BETWEEN", 0.0)
    real, sizes = room.forward_batch, []

    def forward(adapter: Any, batch: Sequence[Any], *rest: Any, **options: Any) -> Any:
        sizes.append(len(batch))
        if sizes.count(16) == 3:
            raise KeyboardInterrupt
        return real(adapter, batch, *rest, **options)

    run = tmp_path / "run"
    command = [
        "--batch-size", 16, "score", "agreement", "--limit", 192, "--permutations", 39,
        "--metric", "label:plural", "--out", run, "--model", tiny_folder,
    ]  # fmt: skip
    monkeypatch.setattr(room, "forward_batch", forward)
    stopped = shell(*command)
    assert stopped.exit_code == 130
    assert f"stopped. What it has done is kept in {run / 'explore-checkpoint'}." in stopped.stderr
    typed = shlex.join(["lens-skills", *map(str, command)])
    assert stopped.stderr.endswith(f"To go on from there:\n  {typed}\n")
    assert sorted(path.name for path in run.iterdir()) == ["explore-checkpoint", "run.json"]
    for early in ("select", "figures", "verify"):
        said = shell(early, run)
        assert said.exit_code == 1
        assert f"{run} holds no scores yet: the pass was stopped" in said.stderr
        assert said.stderr.endswith(f"in the shell: {typed}\n")

    sizes.clear()
    monkeypatch.setattr(
        room,
        "forward_batch",
        lambda *args, **options: (sizes.append(len(args[1])), real(*args, **options))[1],
    )
    assert "label:plural" in printed(*command)
    assert sorted(path.name for path in run.iterdir()) == ["explore", "run.json"]
    # Two batches were done before, and one example is read to see how wide the layers are.
    assert sum(sizes) == Scores.load(run / "explore").n_examples - 2 * 16 + 1


Refuse = Callable[..., str]


@pytest.fixture
def refused() -> Refuse:
    """What a command that cannot be done says on stderr: one line, exit code 1 (2 for a typo)."""

    def run(*arguments: object, code: int = 1) -> str:
        result = shell(*arguments)
        assert (result.exit_code, result.stdout) == (code, ""), result.output
        lines = [line for line in result.stderr.splitlines() if line != "opening the model …"]
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("lens-skills: ")
        return lines[0]

    return run


def test_an_unknown_task_is_told_before_a_model_is_opened(
    refused: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        finding, "open_run_model", lambda *_: pytest.fail("the model was opened first")
    )
    assert "no task 'agreemnt'" in refused("score", "agreemnt", "--out", tmp_path / "run")
    assert "Did you mean 'agreement'?" in refused("tasks", "agreemnt")
    for wrong in (["--metric", "label:plurl"], ["--given", "lenght"], ["--metric", "confidnce"]):
        said = refused("score", "agreement", *wrong, "--out", tmp_path / "run")
        assert "no " in said
    assert not (tmp_path / "run").exists()


def test_a_misspelt_command_does_not_hold_the_folder(
    refused: Refuse, tmp_path: Path, tiny_folder: Path
) -> None:
    common = ["--out", tmp_path / "run", "--model", tiny_folder, *QUICK]
    refused("score", "agreemnt", *common)
    refused("score", "agreement", "--metric", "label:plurl", *common)
    done = shell("score", "agreement", "--metric", "label:plural", *common)
    assert f"written to {tmp_path / 'run'}\nnext: lens-skills select" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metric", "confidnce"], "no metric 'confidnce'. Did you mean 'confidence'? Known"),
        (["--metric", "label:plurl"], "has no label 'plurl'. Did you mean 'label:plural'? It"),
        (["--at", "mlp.hook_pst"], "'mlp.hook_post'"),
        (["--position", "middle"], "no position 'middle'"),
        (["--position", "99"], "position 99 is outside the prompt"),
        (["--exchange", "sometimes"], "no exchange scheme 'sometimes'"),
        (["--given", "lenght"], "has no 'lenght' to partial out."),
        (["--implementation", "hook"], "no implementation 'hook'"),
        (["--permutations", "5"], "5 permutations cannot give p <= 0.05"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_option_that_cannot_be(
    refused: Refuse, tmp_path: Path, tiny_folder: Path, options: list[str], message: str
) -> None:
    chosen = options if "--metric" in options else ["--metric", "label:plural", *options]
    quick = ["--limit", 96, "--out", tmp_path / "run", "--model", tiny_folder]
    assert message in refused("score", "agreement", *chosen, *quick)
    # What the task alone shows to be wrong leaves no folder; the rest, no result.
    assert [path.name for path in tmp_path.glob("run/*")] in ([], ["run.json"])


def test_an_unknown_command_brings_the_nearest(refused: Refuse) -> None:
    for typed, nearest in (("compare", "compare-methods"), ("verfy", "verify")):
        assert f"no command '{typed}'. Did you mean '{nearest}'?" in refused(typed, "run", code=2)
    said, every = refused("zzz", code=2), len(typer.main.get_command(app.app).commands)  # type: ignore[attr-defined]
    assert said == f"lens-skills: no command 'zzz'. `lens-skills --help` lists all {every}."


def test_an_option_of_all_commands_is_a_setting(
    refused: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "batch_size must be a whole number" in refused("--batch-size", 0, "tasks")
    seen = []
    monkeypatch.setattr(
        console.Call, "show_table", lambda *_: seen.append((batch_size(), hides_progress()))
    )
    printed("--batch-size", 7, "--no-progress", "tasks")
    printed("tasks")
    assert seen == [(7, True), (32, None)]


def test_a_run_of_an_older_layout_is_refused_with_what_to_do(
    refused: Refuse, run_folder: Path, tmp_path: Path
) -> None:
    manifest = json.loads((run_folder / "run.json").read_text())
    old = {name: value for name, value in manifest.items() if name != "format"}
    for plain, what in (
        (old, "no format"),
        (manifest | {"format": 9}, "format 9"),
        (manifest | {"colour": "x"}, "colour"),
    ):
        (tmp_path / "run.json").write_text(json.dumps(plain))
        for command in (("select",), ("figures",), ("compare-methods",)):
            message = refused(*command, tmp_path)
            said = "has format 9" if what == "format 9" else "is damaged, or of another version of"
            assert f"{tmp_path / 'run.json'} {said}" in message
            assert what in message
            todo = "Update lens-skills" if what == "format 9" else "lens-skills score TASK --out"
            assert todo in message


def test_figures_for_a_paper_and_again_from_their_tables(
    refused: Refuse, run_folder: Path, tmp_path: Path
) -> None:
    asked = ("--style", "paper", "--width", "60", "--panels")
    some = ("--only", "layer_profile", "--only", "r_distribution")
    printed("figures", run_folder, "--out", tmp_path / "run", *some)
    text = printed("figures", run_folder, "--out", tmp_path / "paper", *asked, *some)
    assert "plural (label) by layer. MLP activations, last token." in text  # for its own caption
    names = ("layer_profile-label_plural", "r_distribution-label_plural")
    saved = [json.loads((tmp_path / "paper" / f"{name}.json").read_text()) for name in names]
    assert [one["panel"] for one in saved] == ["a", "b"]
    assert {(one["style"], one["width_mm"]) for one in saved} == {("paper", 60.0)}

    # The folder of figures is enough to draw them again, in another style.
    csv = (tmp_path / "run" / f"{names[1]}.csv").read_bytes()
    printed("figures", tmp_path / "run", *asked, *some)
    for name in names:
        for suffix in ("pdf", "svg", "png", "csv", "json"):
            one, other = (tmp_path / part / f"{name}.{suffix}" for part in ("run", "paper"))
            assert one.read_bytes() == other.read_bytes(), suffix
    assert (tmp_path / "run" / f"{names[1]}.csv").read_bytes() == csv
    explored = printed("figures", run_folder / "explore", "--out", tmp_path / "explore")
    assert "r_distribution-label_plural" in explored

    assert "no figure 'pie' here. There are: r_dist" in refused(
        "figures", run_folder, "--only", "pie"
    )
    assert "no style 'poster'" in refused("figures", run_folder, "--style", "poster")
    assert "not 'wide'" in refused("figures", run_folder, "--width", "wide")


def test_a_folder_that_is_no_run(refused: Refuse, tmp_path: Path) -> None:
    for command in ("select", "figures"):
        assert f"no run in {tmp_path}" in refused(command, tmp_path)
        assert "no run in" in refused(command, tmp_path / "absent")


def test_a_metric_that_the_run_does_not_hold(refused: Refuse, run_folder: Path) -> None:
    text = refused("select", run_folder, "--metric", "entropy")
    assert "this run holds no 'entropy'. It holds: label:plural." in text


def test_a_folder_that_cannot_be_written(
    refused: Refuse, tmp_path: Path, run_folder: Path, tiny_folder: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    inside = tmp_path / "file" / "run"
    assert "cannot be written" in refused("score", "agreement", "--out", inside)
    assert "cannot be written" in refused("figures", run_folder, "--out", inside)


def test_a_folder_that_holds_another_run(refused: Refuse, run_folder: Path) -> None:
    before = (run_folder / "run.json").read_text()
    said = refused("score", "ioi", "--out", run_folder)
    assert "holds another run: exchange" not in said
    assert "holds another run: " in said
    assert "task was 'agreement', not 'ioi'" in said
    assert "limit was 96, not None" in said
    assert (run_folder / "run.json").read_text() == before


def test_a_table_without_its_columns(refused: Refuse, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("text,plural\nThe key,0\nThe keys,1\n")
    run = ["--out", tmp_path / "run"]
    assert "(--text NAME)" in refused("score", path, *run)
    assert "Did you mean 'text'?" in refused("score", path, "--text", "txt", *run)


def test_an_option_that_does_not_exist_is_told_by_the_parser() -> None:
    result = shell("score", "agreement", "--metrics", "confidence", "--out", "x")
    assert result.exit_code == 2
    assert "--metric" in result.output


def test_verify_without_a_confirmed_neuron(refused: Refuse, run_folder: Path) -> None:
    """A random model: whatever select left, verify says what to do or that there is nothing."""
    message = refused("verify", run_folder, "--limit", 8)
    assert "confirmed" in message
