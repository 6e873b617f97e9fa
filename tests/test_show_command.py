"""`lens-skills show`: what is saved is shown again, and what cannot be read is named."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import lens_skills as ls
from lens_skills.cli import app
from lens_skills.cli.runs import Run, RunRequest

OPTIONS = {"at": "mlp.hook_post", "position": "last", "n_permutations": 39}
STEPS = ["explore", "confirm-label_plural", "selection-label_plural"]


def shell(*arguments: object) -> Result:
    with ls.config():
        return CliRunner().invoke(app.app, [str(part) for part in arguments])


def shown(text: str) -> list[str]:
    return re.findall(r"^━━ (.*) ━━$", text, re.M)


@pytest.fixture(scope="module")
def saved(tiny_bridge: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a study in which nothing is confirmed."""
    request = RunRequest("agreement", ("label:plural",), options=OPTIONS, limit=96)
    folder = tmp_path_factory.mktemp("shown") / "run"
    run = Run.create(folder, request, command="lens-skills study agreement --out run")
    result = ls.study(
        tiny_bridge, run.task(), metric="label:plural", n_permutations=39, controls=ls.controls(0)
    )
    run.keep(result)
    result.save(folder / "study")
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy elsewhere; no model may be opened."""
    monkeypatch.setattr("lens_skills.models.load_model", lambda *_, **__: pytest.fail("opened"))
    return Path(shutil.copytree(saved, tmp_path / "moved"))


def test_a_run_is_shown_in_the_order_of_its_steps(run: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    result = shell("show", run)
    assert result.exit_code == 0
    assert shown(result.stdout) == ["study"]  # which holds the others
    assert result.stdout.startswith(f"━━ study ━━\n{ls.load(run / 'study')!r}\n")
    assert f"note: {', '.join(STEPS)}: on the study's card" in result.stderr
    assert result.stderr.endswith(f"next: lens-skills explain {run}\n")
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before
    shutil.rmtree(run / "study")
    assert shown(shell("show", run).stdout) == STEPS


def test_a_result_made_anew_is_shown_beside_the_study(run: Path) -> None:
    place = run / "selection-label_plural"
    other = replace(ls.load(place), attrition={"neurons": 192, "confirmed": 7})
    other.save(place)
    assert shown(shell("show", run).stdout) == ["study", place.name]


def test_as_json_every_result_is_there(run: Path) -> None:
    said = json.loads(shell("show", run, "--json").stdout)
    assert said["format"] == "lens-skills/show"
    assert list(said["results"]) == ["study", *STEPS]
    assert said["results"]["explore"]["card"] == repr(ls.load(run / "explore")).split("\n")
    assert said["not_shown"] == {}
    assert said["next"] == f"lens-skills explain {run}"


@pytest.mark.parametrize(
    ("only", "names"),
    [
        (["selection"], ["selection-label_plural"]),
        (["selection", "explore"], ["selection-label_plural", "explore"]),
        (["confirm-label_plural"], ["confirm-label_plural"]),
    ],
)
def test_only_what_is_asked_for(run: Path, only: list[str], names: list[str]) -> None:
    asked = [word for name in only for word in ("--only", name)]
    assert shown(shell("show", run, *asked).stdout) == names


def test_a_name_that_is_not_there(run: Path) -> None:
    result = shell("show", run, "--only", "exlore")
    assert result.exit_code == 1
    assert "nothing called 'exlore' is saved here. Did you mean 'explore'? There are: study, " in (
        result.stderr
    )


def cut(run: Path) -> None:
    path = run / "explore" / "result.safetensors"
    path.write_bytes(path.read_bytes()[:99])


def changed(run: Path) -> None:
    path = run / "explore" / "result.json"
    path.write_text(path.read_text().replace("label:plural", "label:plurol"))


def older(run: Path) -> None:
    path = run / "explore" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))


def newer(run: Path) -> None:
    path = run / "explore" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


def oldest(run: Path) -> None:
    for ending in ("json", "safetensors"):
        (run / "explore" / f"result.{ending}").rename(run / "explore" / f"scores.{ending}")


def half(run: Path) -> None:
    (run / "explore" / "result.json").unlink()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (cut, "is damaged"),
        (changed, "is damaged"),
        (older, "has format 1; this version of lens-skills reads 2. Run the command that made it"),
        (newer, "has format 99; this version of lens-skills reads 2. Update it"),
        (oldest, "was saved by an older version of lens-skills"),
        (half, "no saved result in"),
    ],
)
def test_what_is_broken_is_named_and_the_rest_is_shown(run: Path, damage: Any, why: str) -> None:
    shutil.rmtree(run / "study")
    damage(run)
    result = shell("show", run)
    assert result.exit_code == 0, result.output
    assert shown(result.stdout) == STEPS[1:]
    assert re.search(rf"note: explore is not shown: .*{re.escape(why)}", result.stderr)
    said = json.loads(shell("show", run, "--json").stdout)
    assert why in said["not_shown"]["explore"]
    only = shell("show", run, "--only", "explore")
    assert only.exit_code == 1
    assert why in only.stderr


def test_a_run_whose_manifest_is_broken_is_shown_all_the_same(run: Path) -> None:
    for text, why in (("{", "run.json cannot be read"), ('{"task": "", "metrics": []}', "damaged")):
        (run / "run.json").write_text(text)
        result = shell("show", run)
        assert result.exit_code == 0
        assert shown(result.stdout) == ["study"]
        assert f"note: run.json is not shown: {'no run in' if text == '{' else ''}" in result.stderr
        assert why in result.stderr
        assert "next:" not in result.stderr


def test_a_run_that_was_stopped_says_how_to_go_on(run: Path) -> None:
    for path in run.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    result = shell("show", run)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "holds no scores yet: the pass was stopped, and nothing is" in result.stderr
    assert "in the shell: lens-skills study agreement --out run" in result.stderr


def test_other_folders(run: Path, tmp_path: Path) -> None:
    one = shell("show", run / "explore")
    assert shown(one.stdout) == ["explore"]
    assert "next:" not in one.stderr
    demo = tmp_path / "demo"
    for name in ("b", "a"):
        shutil.copytree(run / "study", demo / name / "study")
    (demo / "a" / "picture.csv").write_text("x\n1\n")
    assert shown(shell("show", demo).stdout) == ["a/study", "b/study"]
    assert shown(shell("show", demo / "a").stdout) == ["study"]
    assert shown(shell("show", demo, "--only", "b").stdout) == ["b/study"]


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "file.txt").write_text("text")
    for place, why in (
        ("runs", "no saved result in"),
        ("file.txt", "is a file"),
        ("rnus", "does not exist. Did you mean 'runs'?"),
    ):
        result = shell("show", tmp_path / place)
        assert (result.exit_code, result.stdout) == (1, "")
        assert why in result.stderr


def test_a_folder_that_may_not_be_read_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.iterdir

    def refused(self: Path) -> Any:
        if self.name == "explore":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    shutil.rmtree(run / "study")
    (run / "explore" / "result.json").unlink()
    monkeypatch.setattr(Path, "iterdir", refused)
    result = shell("show", run)
    assert shown(result.stdout) == STEPS[1:]
    assert "note: explore is not shown: " in result.stderr
    assert "Permission denied" in result.stderr
