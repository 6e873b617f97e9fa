"""What every command of the shell does alike: characters, typos, --json, Ctrl-C, what is done."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

import lens_skills as ls
from lens_skills.cli import app, console
from lens_skills.cli.runs import Run
from lens_skills.cli.terminal import plain_text
from lens_skills.scoring import select

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = sorted(typer.main.get_command(app.app).commands)  # type: ignore[attr-defined]
LOOKING = (
    "check",
    "export",
    "figures",
    "publish",
    "report",
    "show",
)  # which are done anew each time
SCORE = ("score", "agreement", "--metric", "label:plural", "--limit", 192, "--permutations", 39)


def shell(*arguments: object) -> Result:
    with ls.config():
        return CliRunner().invoke(app.app, [str(part) for part in arguments])


def process(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
    around = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        [sys.executable, "-m", "lens_skills", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=around, errors="strict",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which a few neurons of a random model pass for confirmed."""
    folder = tmp_path_factory.mktemp("shell") / "run"
    assert shell(*SCORE, "--out", folder, "--model", tiny_folder).exit_code == 0
    model, opened = ls.load_model(tiny_folder), Run.load(folder)
    everything = opened.scores()
    none = torch.zeros_like(everything.r)
    found = replace(everything, p_family=none, p_control=None)["label:plural"]
    confirm = opened.splits()[1]
    checked = ls.score(model, confirm, metrics=["label:plural"], neurons=found.top(10))
    chosen = select(found, checked["label:plural"], grade="C", fdr=0.999)
    assert len(chosen)
    chosen.save(folder / "selection-label_plural")
    return folder


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-16", "cp437"])
@pytest.mark.parametrize("columns", ["40", "80"])
def test_no_command_dies_of_a_character(
    encoding: str, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "dumb")
    helps = [[name, "--help"] for name in COMMANDS]
    for typed in ([], ["tasks"], ["tasks", "agreement"], ["tasks", "é→"], ["models"], *helps):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in "oe")
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as left:
            app.app(typed)
        assert left.value.code == (1 if "é→" in typed else 0), typed
        for stream in (out, err):
            stream.flush()
        said = (err if "é→" in typed else out).buffer.getvalue()  # type: ignore[attr-defined]
        assert said.decode(encoding).strip()


def test_what_a_terminal_lacks_is_written_in_ascii() -> None:
    assert plain_text("46,080 → 18 · −0.3 … “é” 語\ud800") == '46,080 -> 18 . -0.3 ... "e" ??'
    with process("tasks", "agreement", PYTHONIOENCODING="cp1252", LANG="C") as run:
        assert run.stdout is not None
        assert "right over there' -> ' is', not ' are'" in run.stdout.read()
    assert run.returncode == 0


def test_the_module_is_the_script_and_both_say_their_versions() -> None:
    code = "import sys; from lens_skills.cli import main\ntry: main()\nfinally: " + (
        "assert not {'torch', 'transformers', 'transformer_lens'} & set(sys.modules)"
    )
    script = [sys.executable, "-c", code, "--version"]
    said = subprocess.run(script, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    with process("--version") as module:
        assert module.communicate() == (said, "")
    for package in ("lens-skills", "python", "torch", "transformers", "transformer-lens"):
        assert re.search(rf"^{package} \d", said, re.M), said
    with process("--help", COLUMNS="80") as module:
        assert "Usage: lens-skills [OPTIONS] COMMAND" in module.communicate()[0]


@pytest.mark.parametrize(
    ("typed", "said", "code"),
    [
        ("scor agreement", "no command 'scor'. Did you mean 'score'?", 2),
        ("score agreement --metrc x", "--metric", 2),
        ("score agreemnt --out {out}", "Did you mean 'agreement'?", 1),
        ("score agreement --metric confidnce --out {out}", "Did you mean 'confidence'?", 1),
        ("score agreement --metric label:plurl --out {out}", "Did you mean 'label:plural'?", 1),
        ("score agreement --implementation hookd --out {out}", "Did you mean 'hooked'?", 1),
        ("score agreement --dtype float23 --out {out}", "Did you mean 'float32'?", 1),
        ("score agreement --device cdua --out {out}", "Did you mean 'cuda'?", 1),
        ("score agreement --position lst --out {out}", "Did you mean 'last'?", 1),
        ("score agreement --exchange witin --out {out}", "Did you mean 'within'?", 1),
        ("score agreement --given nun --out {out}", "Did you mean 'noun'?", 1),
        ("score agreement --limit 0 --out {out}", "--limit", 2),
        ("select {run}x", "Did you mean 'run'?", 1),
        ("select {run} --metric label:plurl", "Did you mean 'label:plural'?", 1),
        ("select {run} --grade D", "no grade 'D'", 1),
        ("verify {run} --causal-metric logit_dif", "Did you mean 'logit_diff'?", 1),
        ("explain {run} --neuron N3", "no unit 'N3'", 1),
        ("compare-methods {run} --method pearsn", "Did you mean 'pearson'?", 1),
        ("circuit {run} --proposals relevnce", "Did you mean 'relevance'?", 1),
        ("circuit {run} --neuron N3", "no neuron or head 'N3'", 1),
        ("study agreemnt --out {out}", "Did you mean 'agreement'?", 1),
        ("study agreement --metric logit_diff --metric confidnce --out {out}", "'confidence'?", 1),
        ("score agreement --seed 1 --seed=2 --out {out}", "--seed was given 2 times", 1),
        ("study agreement --causal-metric logit_dif --out {out}", "Did you mean 'logit_diff'?", 1),
        ("study agreement --limit 20 --out {out}", "20 examples are too few", 1),
        ("dose {run} --neuron N3", "no unit 'N3'", 1),
        ("dose {run} --by 1", "two or more different finite numbers", 1),
        ("dose {run} --causal-metric logit_dif", "Did you mean 'logit_diff'?", 1),
        ("regulators {run} --causal-metric confidnce", "Did you mean 'confidence'?", 1),
        ("shortcuts {run} --causal-metric logit_dif", "Did you mean 'logit_diff'?", 1),
        ("shortcuts {run} --limit 5", "holds 5 of the 8 groups", 1),
        ("audit {run}x L0N1", "is no run. Did you mean 'run'? Of a task, say", 1),
        ("audit agreemnt L0N1 --out {out}", "Did you mean 'agreement'?", 1),
        ("audit {run} N3", "no unit 'N3'", 1),
        ("audit {run} L0N1 --model x", "is a run, which says its own model", 1),
        ("audit {run} L0N1 --text x", "is a run, which says its own model", 1),
        ("audit {run} L0N1 --claim label:plurl", "Did you mean 'label:plural'?", 1),
        ("audit {run} L0N1 --position lst", "Did you mean 'last'?", 1),
        ("show {run}x", "does not exist. Did you mean 'run'?", 1),
        ("show {run} --only explor", "Did you mean 'explore'?", 1),
        ("prompt agreemnt --out {out}", "Did you mean 'agreement'?", 1),
        ("generate skill_mx --out {out}", "Did you mean 'skill_mix'?", 1),
        ("tasks agreemnt --preflight", "Did you mean 'agreement'?", 1),
        ("tasks --preflight", "Name it: lens-skills tasks TASK", 2),
    ],
)
def test_a_typo_is_told_before_a_model_is_opened(
    typed: str, said: str, code: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lens_skills.models.load_model", lambda *_, **__: pytest.fail("opened"))
    words = [word.format(run=run, out=tmp_path / "new") for word in typed.split()]
    result = shell(*words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "new").exists()
    answer = json.loads(shell(*words, "--json").stdout)
    assert (answer["format"], answer["version"]) == ("lens-skills/error", 1)
    assert answer["exit_code"] == code
    assert said in answer["error"]["message"]
    assert answer["error"]["kind"] == ("usage" if code == 2 else "error")


def commands(run: Path, out: Path, model: Path) -> dict[str, list[object]]:
    """Each command, so that it takes a second on the tiny model."""
    opened = ["--model", model]
    return {
        "models": [],
        "tasks": ["agreement", "--preflight", "--limit", 24, *opened],
        "study": [*SCORE[1:], "--out", out / "study", *opened],
        "score": [*SCORE[1:], "--out", out / "run", *opened],
        "select": [out / "run", "--top", 5],
        "verify": [run, "--limit", 16, "--delta", 0.5, "--most", 1],
        "explain": [run, "--neuron", "L0N1", "--limit", 60],
        "compare-methods": [run, "--method", "pearson", "--k", 2, "--limit", 24],
        "circuit": [run, "--edges", 2, "--depth", 1, "--limit", 40],
        "sweep": [run, "--screen", 0.05, "--limit", 6],
        "dose": [run, "--neuron", "L0N1", "--limit", 16],
        "shortcuts": [run, "--neuron", "L0N1", "--control-neurons", 5, "--permutations", 19],
        "regulators": [run, "--neuron", "L0N1", "--control-neurons", 19, "--limit", 60,
                       "--intervene", 16],
        "audit": [run, "L0N1", "L1N2", "--limit", 48, "--delta", 0.5, "--control-sets", 0,
                  "--control-neurons", 25, "--permutations", 39],
        "show": [out / "run"],
        "figures": [out / "run"],
        "export": [run, "--out", out / "exported", "--most", 3],
        "publish": [run, "--licence", "CC0-1.0", "--out", out / "set"],
        "check": [out / "set", *opened],
        "report": [run, "--out", out / "report.html", "--neurons", 3],
        "prompt": ["agreement", "--limit", 60, "--epochs", 1, "--tokens", 1, *opened,
                   "--out", out / "prompt"],
        "generate": ["agreement", "--limit", 2, "--tokens", 3, *opened, "--out", out / "texts"],
        "demo": ["--out", out / "demo", *opened],
    }  # fmt: skip


@pytest.fixture(scope="module")
def answers(
    run: Path, tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path
) -> Iterator[dict[str, tuple[list[object], Result]]]:
    """What each command prints with ``--json``, and how it was called."""
    out = tmp_path_factory.mktemp("answers")
    room, small = import_module("lens_skills.cli.demo"), ls.tasks.agreement()[:96]
    with pytest.MonkeyPatch.context() as patch:
        model = ls.load_model(tiny_folder)  # once; the shell opens it for each command
        patch.setattr("lens_skills.models.load_model", lambda *_, **__: model)
        halves = {"fractions": (0.5, 0.5), "n_permutations": 39}
        studied = ls.study(model, small, metric="label:plural", **halves)
        patch.setattr(room, "study", lambda *_, **__: studied)
        patch.setattr(room, "draw", lambda *said: said[-1].mkdir(parents=True, exist_ok=True))
        asked = commands(run, out, tiny_folder)
        yield {name: (said, shell(name, *said, "--json")) for name, said in asked.items()}


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_one_object(answers: Any, name: str) -> None:
    _, result = answers[name]
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout, parse_constant=no_constant)
    assert (said["format"], said["version"]) == (f"lens-skills/{name}", 1)
    assert {"results", "written", "notes"} <= set(said)
    assert all(Path(path).exists() for path in said["written"])
    for part in said["results"].values():
        assert isinstance(part["kind"], str)
        assert all(isinstance(line, str) for line in part["card"])
        assert isinstance(part["rows"], list) or name == "demo"
    parts = {"tasks": "task", "models": "models", "figures": "figures"}
    parts |= {"report": "report", "export": "export"}
    assert said[parts[name]] if name in parts else said["results"]


def without(asked: list[Any], option: str) -> list[Any]:
    """The arguments less an option and its value: given twice it is refused."""
    if option not in asked:
        return asked
    place = asked.index(option)
    return [*asked[:place], *asked[place + 2 :]]


@pytest.mark.parametrize(
    "name", [name for name in COMMANDS if name not in (*LOOKING, "models", "tasks")]
)
def test_what_is_finished_says_so_and_is_shown(
    answers: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, before = answers[name]
    monkeypatch.setattr("lens_skills.models.load_model", lambda *_, **__: pytest.fail("opened"))
    again = shell(name, *asked, "--json")
    assert again.exit_code == 0, again.output
    assert re.search(
        r"finished \d{4}-\d\d-\d\d \d\d:\d\d: .* Nothing was run; --again", again.stderr
    )
    old, new = json.loads(before.stdout), json.loads(again.stdout)
    assert (old["finished_before"], new["finished_before"]) == (False, True)
    assert new["results"] == old["results"]
    other = {"score": "--seed", "study": "--most", "select": "--top", "compare-methods": "--k",
             "circuit": "--edges", "prompt": "--tokens", "generate": "--tokens",
             "demo": "--seed", "shortcuts": "--control-neurons"}.get(name, "--limit")  # fmt: skip
    changed = shell(name, *without(asked, other), other, 7)
    assert changed.exit_code == 1, changed.output
    assert f"{other if name != 'score' else 'seed'} was " in changed.stderr
    assert ", not 7" in changed.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_a_model_is_opened(sent: int, tmp_path: Path, tiny_folder: Path) -> None:
    typed = [*SCORE, "--out", tmp_path / "run", "--model", tiny_folder]
    with process(*typed) as run:
        assert run.stderr is not None
        assert run.stderr.readline() == "opening the model …\n"
        run.send_signal(sent)
        out, err = run.communicate(timeout=60)
    assert run.returncode == (130 if sent == signal.SIGINT else 143)
    assert out == ""
    assert "Traceback" not in err
    assert "nothing of these scores is kept. To begin again:\n  lens-skills score agreement" in err
    assert err.endswith(f"--model {tiny_folder}\n")


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    with process("tasks", "--json") as run:
        assert run.stdout is not None
        run.stdout.close()
        assert run.stderr is not None
        assert run.stderr.read() == ""
    assert run.returncode == 141


def test_what_is_nobodys_mistake_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.Call, "show_table", lambda *_: [][1])
    result = shell("tasks")
    assert (result.exit_code, result.stdout) == (70, "")
    assert "this is a bug in lens-skills: IndexError: list index out of range" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in shell("tasks", "--debug").stderr
    monkeypatch.setenv("LENS_SKILLS_DEBUG", "1")
    assert "Traceback" in shell("tasks").stderr
    assert json.loads(shell("tasks", "--json").stdout)["error"]["kind"] == "bug"


def test_messages_fold_to_the_terminal_and_commands_stay_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    said = shell("tasks", "agreemnt").stderr
    assert max(map(len, said.splitlines())) <= 40
    assert len(said.splitlines()) > 3
