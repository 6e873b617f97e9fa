"""What is left after a kill, a full disk, a damaged file or a second run: every long verb.

    python benchmarks/faults.py            # five kills of every verb, and the other faults
    python benchmarks/faults.py --quick    # two kills of two verbs: a smoke run

A process is killed (SIGKILL) at chosen moments: before a rename, a sync to the disk or a write, in
the middle of a write, or before a block of the model runs, evenly over the call. The same call is
then given to a new process, and its numbers are held against those of a call that nothing
interrupted. Every state is written as soon as it can be, not once a minute, so that writes are hit
as often as the model. Work lost: blocks of the model that ran again, as a share of the whole call.
"""

import errno
import json
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from timing import arguments, run_parts, table

import lens_skills as ls
from lens_skills import checkpoints
from lens_skills.errors import LensSkillsError

KILLS = 5
_UNLIKE = ("seconds", "provenance", "about", "versions")  # of the clock, or of where it ran


def question(a: int, b: int) -> str:
    return f"\nQ: What is {a} plus {b}?\nA: "


def calls(model: Any) -> dict[str, Callable[..., Any]]:
    """Every verb as a call that takes ``checkpoint=`` and nothing else."""
    task = ls.tasks.few(ls.tasks.arithmetic("+", digits=1), 72)
    explore, confirm = task.split(0.5, 0.5, seed=0)
    other = ls.tasks.few(ls.tasks.arithmetic("-", digits=1), 48)
    rows = []
    for a in range(6):
        for b in range(6):
            c = (b + 3) % 7
            rows.append(
                {"text": question(a, b), "twin": question(a, c), "sum": str(a + b),
                 "other": str(a + c)}
            )  # fmt: skip
    rows = [row for row in rows if len(row["sum"]) == len(row["other"]) == 1]
    pairs = ls.tasks.pairs(
        rows, clean="text", corrupted="twin", answer="sum", foil="other", group="text"
    )
    names, mean = ["L1N3", "L2N63"], ls.ablate("mean", over=explore)
    few = {"controls": ls.controls(5, neurons=21), "n_draws": 200}
    return {
        "fit_prompt": lambda **k: ls.fit_prompt(model, explore, n_tokens=2, epochs=3, **k),
        "score": lambda **k: ls.score(model, explore, metrics=["label:carry", "correct"], **k),
        "rank": lambda **k: ls.rank(model, explore, "label:carry", method="information", **k),
        "generate": lambda **k: ls.generate(model, explore, max_new_tokens=3, **k),
        "sweep": lambda **k: ls.sweep(
            model, confirm, names, do=ls.ablate("zero"), metric="logit_diff", **k
        ),
        "verify": lambda **k: ls.verify(model, confirm, names, do=mean, **few, **k),
        "circuit": lambda **k: ls.circuit(
            model, ls.equal_length_pairs(model, pairs), n_edges=6, depth=1, **k
        ),
        "explain": lambda **k: ls.explain(model, task, names, n_permutations=99, **k),
        "compare_methods": lambda **k: ls.compare_methods(
            model, explore, "label:carry", intervene=confirm, causal_metric="logit_diff", k=3,
            methods=["pearson", "information", "taylor"], exhaustive=False,
            controls=ls.controls(neurons=25), **k,
        ),
        "continual": lambda **k: ls.continual(
            model, {"plus": explore, "minus": other}, masks=["random", "full"], epochs=1, **k
        ),
        "dissect": lambda **k: ls.dissect(
            model, task, shares=(0.04,), n_neurons=3, n_random=2, layers=[2, 3], **k
        ),
    }  # fmt: skip


def numbers_of(value: Any, name: str = "") -> dict[str, Any]:
    """Every number and word of a result, by where it stands."""
    if name.rpartition(".")[2] in _UNLIKE:
        return {}
    if isinstance(value, torch.Tensor):
        return {name: value.double().flatten().tolist()}
    if hasattr(value, "to_dict"):
        value = value.to_dict("list")
    if is_dataclass(value):
        value = {one.name: getattr(value, one.name) for one in fields(value) if one.init}
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        plain = isinstance(value, int | float | str | None)
        return {name: value if plain else str(type(value))}
    found: dict[str, Any] = {}
    for key, part in parts:
        found |= numbers_of(part, f"{name}.{key}")
    return found


def difference(one: Any, other: Any) -> float:
    """The largest difference of two results' numbers; inf where anything else differs."""
    if isinstance(one, dict | list):
        same = type(one) is type(other) and len(one) == len(other)
        keys = one.keys() if isinstance(one, dict) else range(len(one))
        if not same or (isinstance(one, dict) and one.keys() != other.keys()):
            return math.inf
        return max((difference(one[key], other[key]) for key in keys), default=0.0)
    if isinstance(one, int | float) and isinstance(other, int | float):
        return 0.0 if one == other or (one != one and other != other) else abs(one - other)
    return 0.0 if one == other else math.inf


class Moments:
    """Counts what a call does to the disk and to the model; at one of them, the process is killed.

    Attributes:
        blocks: How often a block of the model ran.
        seen: Everything, in order.
    """

    def __init__(self, model: Any, kill_at: int | None, log: Path) -> None:
        self.kill_at, self.log, self.seen, self.blocks = kill_at, log, list[str](), 0
        replace, sync, save = os.replace, os.fsync, safetensors.torch.save_file
        os.replace = lambda *a, **k: (self.at("rename"), replace(*a, **k))[1]
        os.fsync = lambda fd: (self.at("sync"), sync(fd))[1]

        def saved(tensors: Any, path: Any, *rest: Any) -> None:
            save(tensors, path, *rest)
            if self.at("write", die=False):
                whole = Path(path).read_bytes()
                Path(path).write_bytes(whole[: len(whole) // 2])
                self.die()

        safetensors.torch.save_file = saved
        kind = type(model.blocks[0])
        forward = kind.forward

        def counted(*args: Any, **options: Any) -> Any:
            self.at("block")
            self.blocks += 1
            return forward(*args, **options)

        kind.forward = counted  # a hook would be seen, and refused, as the user's own

    def at(self, what: str, *, die: bool = True) -> bool:
        self.seen.append(what)
        if len(self.seen) - 1 != self.kill_at:
            return False
        if die:
            self.die()
        return True

    def die(self) -> None:
        self.log.write_text(json.dumps({"blocks": self.blocks}))
        os.kill(os.getpid(), signal.SIGKILL)


def child(work: Callable[[], Any]) -> tuple[int, Any]:
    """What a process of its own makes of it: how it ended, and what it handed back as JSON."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out.json"
        sys.stdout.flush()
        if (pid := os.fork()) == 0:
            code, made = 1, None
            try:
                made, code = work(), 0
            except LensSkillsError as error:
                made, code = str(error), 3
            except BaseException:
                traceback.print_exc()
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            out.write_text(json.dumps(made))
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        made = json.loads(out.read_text()) if out.exists() and out.stat().st_size else None
        return os.waitstatus_to_exitcode(status), made


class Trial:
    """One verb, its numbers when nothing interrupts it, and what becomes of it otherwise."""

    def __init__(self, name: str, call: Callable[..., Any], model: Any, place: Path) -> None:
        self.name, self.call, self.model = name, call, model
        self.folder, self.log = place / f"{name}-work", place / f"{name}-log.json"
        code, made = self.run(counted=True)
        if code:
            raise RuntimeError(f"{name} does not run at all: {made}")
        self.wanted, self.seen, self.blocks = made["numbers"], made["seen"], made["blocks"]

    def run(
        self,
        kill_at: int | None = None,
        before: Callable[[], Any] = lambda: None,
        *,
        counted: bool = False,
    ) -> tuple[int, Any]:
        """The call in a process of its own."""

        def work() -> Any:
            checkpoints.SECONDS_BETWEEN = 0.0
            moments = Moments(self.model, kill_at, self.log)
            before()
            made = numbers_of(self.call(checkpoint=self.folder))
            seen = moments.seen if counted else []
            return {"numbers": made, "seen": seen, "blocks": moments.blocks}

        return child(work)

    def again(self) -> tuple[bool, float, int]:
        """Whether the same call now ends, how far its numbers are off, and blocks it ran."""
        code, made = self.run()
        if code or made is None:
            print(f"{self.name}: the same call failed: {made}", file=sys.stderr)
            return False, math.inf, 0
        return True, difference(self.wanted, made["numbers"]), made["blocks"]

    def killed(self, moment: int) -> tuple[bool, float, float]:
        """After a kill: survived, largest difference, share of the blocks that ran again."""
        shutil.rmtree(self.folder, ignore_errors=True)
        code, _ = self.run(kill_at=moment)
        if code != -signal.SIGKILL:
            raise RuntimeError(f"{self.name} was to be killed at {moment}, and ended with {code}")
        before = json.loads(self.log.read_text())["blocks"]
        survived, off, after = self.again()
        lost = max(before + after - self.blocks, 0) / max(self.blocks, 1)
        return survived and not self.folder.exists(), off, lost

    def halfway(self) -> dict[Path, bytes]:
        """The folder of a call killed in its middle."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for moment in range(len(self.seen) * 2 // 3, len(self.seen)):
            self.run(kill_at=moment)
            if any(self.folder.glob("done-*")) or any(self.folder.glob("state-*")):
                break
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.name[0] != "."]
        return {path: path.read_bytes() for path in files}


def moments_of(seen: list[str], n: int) -> list[int]:
    """Evenly over the call, the first and the last of what it does among them."""
    last = len(seen) - 1
    return sorted({round(k * last / max(n - 1, 1)) for k in range(n)})


def kills(trials: list[Trial], n: int) -> dict[str, float]:
    """Every verb killed ``n`` times."""
    found: dict[str, float] = {}
    for trial in trials:
        rows = [trial.killed(moment) for moment in moments_of(trial.seen, n)]
        survived, off, lost = zip(*rows, strict=True)
        found |= {
            f"{trial.name}_kills": len(rows), f"{trial.name}_survived": sum(survived),
            f"{trial.name}_difference": max(off), f"{trial.name}_lost": max(lost),
            f"{trial.name}_moments": len(trial.seen), f"{trial.name}_blocks": trial.blocks,
        }  # fmt: skip
        shown = {key.removeprefix(f"{trial.name}_"): f"{value:g}" for key, value in found.items()
                 if key.startswith(f"{trial.name}_")}  # fmt: skip
        table(trial.name, shown)
    return found


def full_disk() -> None:
    """Every write of tensors fails, as on a disk without room."""

    def refused(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    safetensors.torch.save_file = refused


def small_files() -> None:
    """No file may become larger than 2 kB: the system itself breaks off the write."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, most))


def clock_back() -> None:
    """A day is taken off the clock."""
    real = time.time
    time.time = lambda: real() - 86_400


def faults(trial: Trial) -> dict[str, list[tuple[bool, float]]]:
    """What else can happen to a call: by fault, whether it ended well each time, and how far off.

    Well: refused in clear words with what is kept left as it was, and after the mend the same
    numbers; or these at once, where nothing was left to write.
    """
    found: dict[str, list[tuple[bool, float]]] = {}

    def note(fault: str, refused: bool) -> None:
        survived, off, _ = trial.again()
        found.setdefault(fault, []).append((refused and survived, off))

    for fault, cause, word in (
        ("disk full", full_disk, "No space left"),
        ("file too large", small_files, "cannot be written"),
    ):
        trial.halfway()
        code, made = trial.run(before=cause)
        if code == 0:  # nothing had to be written any more
            off = difference(trial.wanted, made["numbers"])
            found.setdefault(fault, []).append((off == 0, off))
        else:
            note(fault, code == 3 and word in made and "goes on from there" in made)
    for fault in ("cut short", "one byte changed", "emptied", "a file not copied"):
        for path, whole in list(trial.halfway().items()):
            changed = {
                "cut short": whole[: len(whole) // 2],
                "one byte changed": whole[:-1] + bytes([whole[-1] ^ 1]),
                "emptied": b"",
            }.get(fault)
            trial_files = {p: p.read_bytes() for p in trial.folder.rglob("*") if p.is_file()}
            path.unlink() if changed is None else path.write_bytes(changed)
            code, said = trial.run()
            refused = code == 3 and "damaged" in said and str(trial.folder) in said
            path.parent.mkdir(parents=True, exist_ok=True)
            for one, content in trial_files.items():
                one.parent.mkdir(parents=True, exist_ok=True)
                one.write_bytes(content)
            note(fault, refused)
            break
    trial.halfway()
    code, said = child(lambda: (ls.config(batch_size=3).__enter__() and None) or _other(trial))
    note("other arguments", code == 3 and "it differs in config(batch_size)" in said)
    trial.halfway()
    code, said = child(lambda: _beside(trial))
    note("a second run", code == 0 and "another run is at work" in said)
    trial.halfway()
    code, made = trial.run(before=clock_back)
    off = difference(trial.wanted, made["numbers"]) if code == 0 else math.inf
    found["clock set back"] = [(code == 0, off)]
    return found


def _other(trial: Trial) -> Any:
    return numbers_of(trial.call(checkpoint=trial.folder))


def _beside(trial: Trial) -> str:
    """What a second process says while a first one is at work in the folder."""
    ready, go = os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        plain = json.loads((trial.folder / "asked.json").read_text())["asked"]
        with checkpoints.working(trial.folder, plain):
            os.write(ready[1], b"1")
            os.read(go[0], 1)
            os._exit(0)
    os.read(ready[0], 1)
    try:
        trial.call(checkpoint=trial.folder)
    except LensSkillsError as error:
        return str(error)
    finally:
        os.write(go[1], b"1")
        os.waitpid(pid, 0)
    return "nothing was said"


def main() -> None:
    asked = arguments(__doc__, quick="two kills of two verbs: a smoke run").parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = ls.load_model("arithmetic-small")
    ls.config(progress=False)

    def measure() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as place:
            every = calls(model)
            names = ["score", "rank"] if asked.quick else list(every)
            trials = [Trial(name, every[name], model, Path(place)) for name in names]
            found = kills(trials, 2 if asked.quick else KILLS)
            others: dict[str, list[tuple[bool, float]]] = {}
            for trial in trials:
                if trial.name in (("score",) if asked.quick else ("score", "rank", "sweep")):
                    for fault, rows in faults(trial).items():
                        others.setdefault(fault, []).extend(rows)
            for fault, rows in others.items():
                key = "fault_" + fault.replace(" ", "_")
                found |= {key: len(rows), f"{key}_survived": sum(well for well, _ in rows)}
                found[f"{key}_difference"] = max(off for _, off in rows)
            shown = {f: f"{sum(w for w, _ in r)} of {len(r)}" for f, r in others.items()}
            table("other faults", shown)
            totals = [n for n in found if n.endswith("_kills")]
            found["kills"] = sum(found[name] for name in totals)
            found["kills_survived"] = sum(
                found[name.replace("_kills", "_survived")] for name in totals
            )
            return found

    run_parts({"": measure}, asked)


if __name__ == "__main__":
    main()
