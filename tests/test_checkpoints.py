"""Interrupted work: killed at any moment, refused where another's, kept where a disk is full."""

import ast
import errno
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import lens_skills as ls
from lens_skills import checkpoints
from lens_skills.checkpoints import Checkpoint, part, resumable, working
from lens_skills.errors import LensSkillsError
from lens_skills.results import read_folder, write_folder


@pytest.fixture(autouse=True)
def write_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)


@dataclass
class Steps:
    """Called once for each piece of work that is done; fails at one of them."""

    fail_at: int | None = None
    done: int = 0

    def __call__(self) -> None:
        self.done += 1
        if self.done == self.fail_at:
            raise KeyboardInterrupt


@resumable(free=("steps",))
def summed(numbers: Any, steps: Steps, *, checkpoint: Any = None) -> torch.Tensor:
    """A verb of two parts and a pass, each of which is a piece of work."""

    def one(factor: float) -> tuple[torch.Tensor, dict[tuple[int, str], float]]:
        steps()
        return torch.tensor(numbers).double() * factor, {(1, "a"): factor}

    first, second = part("scaled", lambda: one(0.1)), part("scaled", lambda: one(0.7))
    saved = Checkpoint.at({"n": len(numbers)}, name="pass")
    total, skip = torch.zeros(len(numbers), dtype=torch.float64), 0
    if saved is not None and (kept := saved.read()) is not None:
        total, skip = kept[0]["total"], kept[1]["done"]
    for place in range(skip, 3):
        steps()
        total = total + first[0] * second[1][1, "a"] / (place + 3)
        if saved is not None and saved.due():
            saved.write({"total": total}, {"done": place + 1})
    return total


NUMBERS = [1.0, 2.0, 3.3]


def forked(work: Callable[[], Any]) -> int:
    """How a process of its own that does it ends."""
    if (pid := os.fork()) == 0:
        try:
            work()
        except LensSkillsError:
            os._exit(3)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_killed_at_any_rename_or_sync_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    wanted = summed(NUMBERS, Steps())
    folder = tmp_path / "work"
    for moment in range(1, 100):

        def killed(moment: int = moment) -> None:
            seen = iter(range(1, 1000))
            for name in ("replace", "fsync", "rename"):
                real = getattr(os, name)

                def at(*args: Any, real: Any = real, **options: Any) -> Any:
                    if next(seen) == moment:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*args, **options)

                setattr(os, name, at)
            summed(NUMBERS, Steps(), checkpoint=folder)

        code = forked(killed)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert torch.equal(summed(NUMBERS, Steps(), checkpoint=folder), wanted)
        assert not folder.exists()
    assert moment > 12  # as many moments were tried


def stopped(folder: Path, fail_at: int = 4) -> None:
    with pytest.raises(KeyboardInterrupt, match="the same again goes on there"):
        summed(NUMBERS, Steps(fail_at), checkpoint=folder)


def test_nothing_is_done_twice(tmp_path: Path) -> None:
    stopped(tmp_path / "work")
    rest = Steps()
    assert torch.equal(
        summed(NUMBERS, rest, checkpoint=tmp_path / "work"), summed(NUMBERS, Steps())
    )
    assert rest.done == 2  # of five


def test_other_arguments_are_refused_with_what_differs(tmp_path: Path) -> None:
    stopped(tmp_path / "work")
    with pytest.raises(LensSkillsError, match=r"differs in numbers: \[1.0, .*there, \[5.0\] here"):
        summed([5.0], Steps(), checkpoint=tmp_path / "work")
    assert torch.equal(
        summed(NUMBERS, Steps(), checkpoint=tmp_path / "work"), summed(NUMBERS, Steps())
    )


@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_a_damaged_piece_is_named_and_the_rest_is_kept(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    stopped(folder)
    (state,) = folder.glob("state-*")
    file = state / "state.safetensors"
    whole = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(whole[:-4] if how == "cut" else whole[:-1] + b"\x7f")
    with pytest.raises(LensSkillsError, match=f"{state.name} was cut short or changed"):
        summed(NUMBERS, Steps(), checkpoint=folder)
    file.write_bytes(whole)
    assert torch.equal(summed(NUMBERS, Steps(), checkpoint=folder), summed(NUMBERS, Steps()))


def test_a_folder_half_copied_is_refused(tmp_path: Path) -> None:
    stopped(tmp_path / "work")
    (tmp_path / "work" / "asked.json").unlink()
    with pytest.raises(LensSkillsError, match=r"it lacks asked\.json"):
        summed(NUMBERS, Steps(), checkpoint=tmp_path / "work")


def test_a_full_disk_loses_nothing_that_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path / "work")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(LensSkillsError, match=r"No space left.*kept there before is whole"):
            summed(NUMBERS, Steps(), checkpoint=tmp_path / "work")
    rest = Steps()
    assert torch.equal(
        summed(NUMBERS, rest, checkpoint=tmp_path / "work"), summed(NUMBERS, Steps())
    )
    assert rest.done == 2


def test_a_second_run_is_refused_and_a_dead_one_does_not_block(tmp_path: Path) -> None:
    folder, ready, go = tmp_path / "work", os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        with working(folder, {"verb": "summed"}):
            os.write(ready[1], b"1")
            os.read(go[0], 1)
    os.read(ready[0], 1)
    with (
        pytest.raises(LensSkillsError, match=rf"another run is at work in .*process {pid} on"),
        working(folder, {"verb": "summed"}),
    ):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with working(folder, {"verb": "summed"}):
        assert json.loads((folder / ".holder.json").read_text())["pid"] == os.getpid()
    assert not folder.exists()


ASKED_OF_THE_DATA = {"explanation/explain.py"}
"""Files that catch what a name alone is refused with: nothing is read there."""


def test_no_verb_takes_a_failed_run_for_an_answer() -> None:
    """Where a step may be refused by the data and is then left out, a full disk is no refusal."""
    package, wrong = Path(ls.__file__).parent, list[str]()
    rooms = ("studies.py", "ranking", "explanation", "interventions", "resampling", "scoring",
             "diagnostics", "circuits", "soft_prompts", "finetuning", "generation")  # fmt: skip
    for room in rooms:
        place = package / room
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Try) or not node.handlers:
                    continue
                caught = [getattr(one.type, "id", "") for one in node.handlers]
                passed = caught[:1] == ["RunError"] and isinstance(
                    node.handlers[0].body[0], ast.Raise
                )
                name = path.relative_to(package).as_posix()
                if "LensSkillsError" in caught and not passed and name not in ASKED_OF_THE_DATA:
                    wrong.append(f"{name}:{node.lineno}")
    assert wrong == []


def test_a_study_whose_checkpoint_is_refused_is_no_study_without_a_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lens_skills import studies
    from lens_skills.errors import RunError

    def full(*_: Any, **__: Any) -> Any:
        raise RunError("no room")

    monkeypatch.setattr(studies, "verify", full)
    task = ls.tasks.few(ls.tasks.arithmetic("+-", digits=1), 100)
    with pytest.raises(RunError, match="no room"):
        ls.study(ls.load_model("arithmetic-small"), task, metric="label:op", n_permutations=19)


def test_what_is_read_back_lies_in_memory_as_what_was_made(tmp_path: Path) -> None:
    """The last bits of a product may depend on where in memory its numbers begin."""
    for n in range(1, 9):
        write_folder(tmp_path / str(n), "x", {"a": torch.ones(n), "b": torch.ones(65)}, {})
        tensors, _ = read_folder(tmp_path / str(n), "x")
        assert [x.data_ptr() % 64 for x in tensors.values()] == [0, 0]
