"""Commands of the shell that are killed and typed again; a run that is published after it.

    python benchmarks/shell_kills.py            # two kills of every command that makes something
    python benchmarks/shell_kills.py --quick    # one kill of two commands: a smoke run

Each command is typed on arithmetic-small and a table of 100 sums in a process of its own, which is
killed (SIGKILL) after a third and two thirds of what it does: before a block of the
model runs, before a rename or a sync, in the middle of a write. The same command is typed again.
Every number and word in every file of its folder is then held against those of a folder in which
nothing was killed (pictures and pages aside, what the clock says, and how many edits were done at
once). Work lost: blocks of the model that ran again. `circuit` wants corrupted twins, which this
model's tasks have not for the shell; as a verb it is killed in `faults.py`. `demo` is a `study` for
each task.

At last a user's story: a table is scored in a run that is killed three times, each time further on;
`select` and `verify` are killed once; `publish` writes the set; somebody else has its folder alone,
checks it against a model that is opened anew, and puts it on trial.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from faults import Moments, child, difference
from safetensors.torch import load_file
from timing import arguments, run_parts, table

import lens_skills as ls
from lens_skills import checkpoints, models
from lens_skills.cli import app

SHARES = (1 / 3, 2 / 3)
# Of a result's file: what the clock says, and how many edits were done at once.
HOW = {"digest", "seconds", "edit_rows", "edit_mib", "halved", "whole_passes", "kept_mb"}
STORY = {"score": (0.25, 0.25, 0.4), "select": (0.5,), "verify": (0.5,)}
COLUMNS = ("--text", "prompt", "--answer", "answer", "--foil", "foil", "--label", "op",
           "--kind", "kind")  # fmt: skip
NAME = ("--model", "arithmetic-small")
FEW = ("--control-sets", 2, "--control-neurons", 20)
SCORE = ("score", "mine.csv", *COLUMNS, "--metric", "label:op", "--permutations", 19, *NAME,
         "--out", "run")  # fmt: skip
FOUND: dict[str, tuple[Any, ...]] = {
    "score": SCORE,
    "select": ("select", "run", "--top", 20, "--grade", "C"),
    "verify": ("verify", "run", "--most", 3, "--limit", 24, "--delta", 0.5, *FEW),
}
COMMANDS: dict[str, tuple[Any, ...]] = FOUND | {
    "study": ("study", *SCORE[1:-1], "studied", "--intervene", 16, "--most", 2, "--delta", 0.5,
              *FEW),
    "explain": ("explain", "run", "--neuron", "L0N73", "--limit", 40),
    "sweep": ("sweep", "run", "--screen", 0.01, "--limit", 6),
    "dose": ("dose", "run", "--neuron", "L0N73", "--limit", 12),
    "shortcuts": ("shortcuts", "run", "--neuron", "L0N73", "--control-neurons", 5,
                  "--permutations", 19),
    "regulators": ("regulators", "run", "--neuron", "L3N73", "--control-neurons", 19,
                   "--limit", 24, "--intervene", 12),
    "compare-methods": ("compare-methods", "run", "--method", "pearson", "--k", 2, "--limit", 16),
    "audit": ("audit", "run", "L0N73", "--limit", 24, "--delta", 0.5, "--control-sets", 0,
              "--control-neurons", 20, "--permutations", 19),
    "prompt": ("prompt", "arithmetic:+:1", "--limit", 40, "--epochs", 1, "--tokens", 1, *NAME,
               "--out", "prompt"),
    "generate": ("generate", "arithmetic:+:1", "--limit", 12, "--tokens", 2, *NAME,
                 "--out", "texts"),
}  # fmt: skip


class Shell:
    """Commands typed in folders, each in a process of its own."""

    def __init__(self, model: Any, log: Path) -> None:
        self.model, self.log = model, log

    def typed(self, place: Path, words: tuple[Any, ...], kill_at: int | None = None) -> Any:
        """What a command did; None where it was killed.

        Raises:
            RuntimeError: It ended otherwise: with what it said.
        """

        said = self.log.with_suffix(".said")

        def work() -> Any:
            os.chdir(place)
            sys.stdout = sys.stderr = said.open("w", encoding="utf-8")
            checkpoints.SECONDS_BETWEEN = 0.0
            models.load_model = lambda *_, **__: self.model
            moments = Moments(self.model, kill_at, self.log)
            try:
                app.app([str(word) for word in words])
            except SystemExit as ended:
                if ended.code:
                    raise
            finally:
                sys.stdout.flush()
            return {"seen": len(moments.seen), "blocks": moments.blocks}

        code, made = child(work)
        if kill_at is not None and code == -signal.SIGKILL:
            return None
        if code:
            raise RuntimeError(f"{words} ended with {code}: {said.read_text()[-2000:]}")
        return made

    def killed(self, name: str, before: Path, place: Path, n: int) -> dict[str, float]:
        """A command killed ``n`` times in copies of a folder."""
        words, whole = COMMANDS[name], shutil.copytree(before, place / f"{name}-whole")
        through = self.typed(whole, words)
        wanted, rows = content(whole), []
        for share in SHARES[:n]:
            torn = shutil.copytree(before, place / f"{name}-{share:g}")
            if self.typed(torn, words, kill_at=int(share * through["seen"])) is not None:
                raise RuntimeError(f"{name} was to be killed and ended by itself")
            ran = json.loads(self.log.read_text())["blocks"]
            again = self.typed(torn, words)
            off = difference(wanted, content(torn))
            if off:
                print(f"{name}, killed at {share:g}: numbers off by {off:g}", file=sys.stderr)
            lost = max(ran + again["blocks"] - through["blocks"], 0) / max(through["blocks"], 1)
            rows.append((off, lost))
        key = name.replace("-", "_")
        found = {f"{key}_kills": len(rows), f"{key}_same": sum(off == 0 for off, _ in rows)}
        found |= {f"{key}_difference": max(off for off, _ in rows)}
        found |= {f"{key}_lost": max(lost for _, lost in rows), f"{key}_moments": through["seen"]}
        table(name, {k.removeprefix(f"{key}_"): f"{v:g}" for k, v in found.items()})
        return {name: float(value) for name, value in found.items()}

    def story(self, place: Path) -> dict[str, float]:
        """From a table to a set that somebody else has put on trial."""
        mine, whole = place / "mine", place / "whole"
        for folder in (mine, whole):
            folder.mkdir()
            a_table(folder)
        kills = 0
        publish = ("publish", "run", "--licence", "CC-BY-4.0", "--out", "set")
        for name, words in (*FOUND.items(), ("publish", publish)):
            through = self.typed(whole, words)
            for share in STORY.get(name, ()):
                moment = int(share * through["seen"])
                kills += self.typed(mine, words, kill_at=moment) is None
            self.typed(mine, words)
        off = difference(content(whole), content(mine))
        theirs = place / "theirs"
        shutil.copytree(mine / "set", theirs / "set")
        for folder in (mine, whole):
            shutil.rmtree(folder)

        def by_another() -> dict[str, float]:
            os.chdir(theirs)
            model = ls.load_model("arithmetic-small")
            opened = ls.NeuronSet.load("set")
            checked = opened.check(model)
            trial = opened.audit(model, controls=ls.controls(0, neurons=20), n_permutations=19,
                                 unrelated=False, pairs=False, most=3)  # fmt: skip
            before = {row["name"]: row["verdict"] for row in opened.document["components"]}
            rulings = trial.verdict.singles
            words = [before[one.name]["word"] == one.word for one in rulings]
            near = [before[one.name]["low"] <= one.high and one.low <= before[one.name]["high"]
                    for one in rulings]  # fmt: skip
            return {"exact": checked.exact, "tried": len(rulings), "words": sum(words),
                    "overlap": sum(near), "components": len(opened)}  # fmt: skip

        code, found = child(by_another)
        if code:
            raise RuntimeError(f"who has the set alone: {found}")
        found = {"kills": kills, "difference": off} | found
        table("story", {name: f"{value:g}" for name, value in found.items()})
        return {f"story_{name}": float(value) for name, value in found.items()}


def a_table(folder: Path) -> None:
    """A user's own table, in a folder."""
    rows = [
        {"prompt": one.prompt, "answer": one.answer, "foil": one.foil, "op": one.labels["op"],
         "kind": one.kind}
        for one in ls.tasks.few(ls.tasks.arithmetic("+-", digits=1), 100)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "mine.csv", index=False)


def content(place: Path) -> dict[str, Any]:
    """What every visible file in a folder holds, less what the clock says."""
    found: dict[str, Any] = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if not path.is_file() or "/." in f"/{name}":
            continue
        if path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".safetensors":
            found[name] = {key: [list(one.shape), str(one.dtype), one.double().flatten().tolist()]
                           for key, one in load_file(path).items()}  # fmt: skip
        elif path.suffix == ".csv":
            found[name] = _timeless(pd.read_csv(path).to_dict("list"))
        else:  # pictures and pages may name the day
            found[name] = ""
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _timeless(v) for k, v in value.items() if k not in HOW}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def main() -> None:
    asked = arguments(__doc__, quick="one kill of two commands: a smoke run").parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = ls.load_model("arithmetic-small")
    ls.config(progress=False)

    def measure() -> dict[str, float]:
        found: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as here:
            place = Path(here)
            shell, begun = Shell(model, place / "log.json"), place / "begun"
            begun.mkdir()
            a_table(begun)
            before: dict[str, Path] = {}
            for name, words in FOUND.items():
                before[name] = shutil.copytree(begun, place / f"before-{name}")
                shell.typed(begun, words)
            names = ["score", "dose"] if asked.quick else list(COMMANDS)
            for name in names:
                n = 1 if asked.quick else len(SHARES)
                found |= shell.killed(name, before.get(name, begun), place, n)
            found["kills"] = sum(v for key, v in found.items() if key.endswith("_kills"))
            found["kills_same"] = sum(v for key, v in found.items() if key.endswith("_same"))
            return found | shell.story(place)

    run_parts({"": measure}, asked)


if __name__ == "__main__":
    main()
