"""Passes under Ray on this machine, in a process of their own; what came out as JSON.

``python -m tests.engines.ray_run FOLDER``: FOLDER holds a tiny model. A process of its own, since
functions that are made while the tests' checks of shapes are on cannot be sent to a worker.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

import lens_skills as ls
from lens_skills.cli.app import app
from lens_skills.cli.runs import Run
from lens_skills.engines import ray_engine
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter
from lens_skills.models.origins import origin_of

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from faults import difference, numbers_of
from ray_deaths import OFTEN, TwoNodes, killed_after_one_shard, warm


class Dying:
    """A job whose second shard ends its worker."""

    def __init__(self, times: int, folder: str) -> None:
        self.times, self.folder = times, folder

    def open(self, adapter: Any) -> Any:
        return adapter.name

    def run(self, opened: Any, shard: range, tick: Any) -> Any:
        deaths = len(os.listdir(self.folder))
        if shard.start == 1 and deaths < self.times:
            Path(self.folder, str(time.time_ns())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        tick(1)
        return shard.start


def far(one: Any, two: Any) -> float:
    """The largest difference of two results' sums."""
    names = ("r", "low", "high", "mean", "std", "p_family", "score")
    pairs = [(getattr(one, name, None), getattr(two, name, None)) for name in names]
    both = [(a, b) for a, b in pairs if a is not None]
    return max(float((a - b).abs().nan_to_num(0).max()) for a, b in both)


def said(work: Any) -> str:
    """What a call was refused with."""
    try:
        work()
    except LensSkillsError as error:
        return str(error)
    return ""


def alive(pids: list[int]) -> list[int]:
    """Which processes still run."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and "Z" not in
            Path(f"/proc/{pid}/stat").read_text().split()[2]]  # fmt: skip


class Told(dict[str, Any]):
    """What was found, said on stderr as it comes."""

    def __setitem__(self, name: str, value: Any) -> None:
        print(f"{time.monotonic():.0f} s: {name} {value}", file=sys.stderr, flush=True)
        super().__setitem__(name, value)


def main(folder: Path) -> None:
    """All of it, one after another."""
    found = Told()
    model, task = ls.load_model("arithmetic-small"), ls.tasks.arithmetic(digits=(1, 2))[:200]
    asked: dict[str, Any] = {"metrics": ["label:carry", "correct"], "layers": [0, 1]}
    asked |= {"n_permutations": 19, "n_controls": 0}
    ls.config(batch_size=8, progress=False, workers=2)
    ray_engine.TRIES = 2
    local = ls.score(model, task, **asked)
    ranked = ls.rank(model, task, "label:carry", method="lape", gate=False)

    ls.config(engine="ray")
    found["score"] = far(ls.score(model, task, **asked), local)
    found["rank"] = far(ls.rank(model, task, "label:carry", method="lape", gate=False), ranked)
    trial = verified(model, task)
    texts = written(model, task)
    ls.config(engine="local")
    found["verify"] = difference(numbers_of(verified(model, task)), numbers_of(trial))
    found["generate"] = difference(numbers_of(written(model, task)), numbers_of(texts))
    ls.config(engine="ray")
    (pool,) = ray_engine._pools
    found["workers"] = len({member.name for member in pool.members})
    members = list(pool.members)

    tables(found, model, task, folder)

    adapter, engine = as_adapter(model), ray_engine.RayEngine()
    for name, times in (("once", 1), ("always", 99)):
        marks = folder / name
        marks.mkdir()
        job, shards = Dying(times, str(marks)), [range(k, k + 1) for k in range(4)]

        def run(job: Any = job, shards: Any = shards) -> list[Any]:
            done = engine.run(adapter, job, shards, [1] * 4, verb="try", unit="shards")
            return sorted((each.part, each.tries) for each in done)

        found[name] = run() if name == "once" else said(run)
    found["still there"] = len([m for m in members if m in pool.members])

    # Interrupted in the middle.
    ls.score(model, task, **asked)
    (pool,) = ray_engine._pools
    pids = [int(member.name.split("/")[1]) for member in pool.members if member.name]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind some shells
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        began = time.monotonic()
        while time.monotonic() - began < 30:
            ls.score(model, task, **asked)
    except KeyboardInterrupt as stopped:
        found["interrupted"] = str(stopped)
    deadline = time.monotonic() + 20
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    found["alive after it"] = {pid: Path(f"/proc/{pid}/status").read_text() for pid in alive(pids)}

    ray_engine.stop()
    two_nodes(found, folder)
    os.environ["RAY_ADDRESS"] = "127.0.0.1:1"
    found["no cluster"] = said(lambda: ls.score(model, task, **asked))
    print("FOUND " + json.dumps(found))


def verified(model: Any, task: Any) -> Any:
    """A verdict on two neurons."""
    return ls.verify(
        model, task[:24], ["L1N3", "L2N63"], do=ls.ablate("mean", over=task[100:140]),
        controls=ls.controls(5, neurons=21), n_draws=200,
    )  # fmt: skip


def written(model: Any, task: Any) -> Any:
    """Drawn answers."""
    return ls.generate(model, task[:40], max_new_tokens=3, temperature=0.7)


def tables(found: dict[str, Any], model: Any, task: Any, folder: Path) -> None:
    """Activations on disk, read by the workers; shards that are gone, or changed since."""
    os.chdir(folder)
    with ls.config(engine="local"):
        table = ls.capture(model, task, "table", layers=[0, 1], dtype="float32", metrics="correct")
    asked: dict[str, Any] = {"metrics": ["label:carry", "correct"], "n_permutations": 19}
    asked |= {"n_rotations": 0}
    ranking: dict[str, Any] = {"method": "information", "gate": False}
    with ls.config(engine="local"):
        local = ls.score(table, table.examples, **asked)
        some = ls.score(table, task[20:150], **asked)
        ranked = ls.rank(table, task, "label:carry", **ranking)
    there = ls.capture(model, task, "there", layers=[0, 1], dtype="float32", metrics="correct")
    rows = torch.from_numpy(there.places(task))
    off = there.activations()[rows] - table.activations()[table.places(task)]
    found["captured"] = [float(off.abs().max()), len(there.shards)]
    found["table"] = far(ls.score(table, table.examples, **asked), local)
    found["rows of a table"] = far(ls.score(table, task[20:150], **asked), some)
    found["rank a table"] = far(ls.rank(table, task, "label:carry", **ranking), ranked)
    file = table.shards[0].path.absolute()
    file.touch()
    found["changed shard"] = said(lambda: ls.score(table, task, **asked))
    file.unlink()
    found["no shard"] = said(lambda: ls.score(table, task, **asked))


def two_nodes(found: dict[str, Any], folder: Path) -> None:
    """Two nodes on this machine, the second of which is killed; then a call of the shell."""
    model, task = ls.load_model("arithmetic-small"), ls.tasks.arithmetic(digits=(1, 2))[:200]

    def score() -> Any:
        return ls.score(model, task, metrics="label:carry", n_permutations=19, n_rotations=0)

    def sweep() -> Any:
        neurons = [f"L1N{n}" for n in range(40)]
        return ls.sweep(model, task[:40], neurons, do=ls.ablate("zero"), metric="logit_diff")

    with TwoNodes(OFTEN) as nodes:
        for name, work in (("score", score), ("sweep", sweep)):
            with ls.config(engine="local"):
                whole = work()
            nodes.complete()
            warm(work)
            with killed_after_one_shard(nodes.kill_node) as death:
                found[f"{name}, a node killed"] = difference(numbers_of(whole), numbers_of(work()))
            found[f"{name}, again"] = [death.shards_again, len({f.worker for f in death.finished})]
        ray_engine.stop()
        typed = ["score", "arithmetic", "--model", "arithmetic-small", "--metric", "label:carry"]
        typed += ["--limit", "500", "--permutations", "19", "--out"]
        divided = ["--engine", "ray", "--workers", "1", "--worker-cpus", "1"]
        ran = subprocess.run(
            [sys.executable, "-m", "lens_skills", *divided, *typed, str(folder / "there")],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        print(ran.stdout, ran.stderr, file=sys.stderr)
        with ls.config():
            CliRunner().invoke(app, [*typed, str(folder / "here")], catch_exceptions=False)
        both = [Run.load(folder / place).scores() for place in ("here", "there")]
        found["shell"] = far(*both)
        ls.config(workers=1)
        # Weights of its own: no file holds them, so that the model itself is sent.
        with torch.no_grad():
            model.blocks[1].mlp.W_out.mul_(1.5)
        found["origin"] = origin_of(model) is None
        with ls.config(engine="local"):
            whole = score()
        found["in memory"] = far(score(), whole)
        files(found, folder)


def files(found: dict[str, Any], folder: Path) -> None:
    """A model's file that is another one by the time the workers open it."""
    texts = [ls.Example(id=str(k), prompt=f"the dog {k % 7} saw", labels={"odd": k % 2}) for k in
             range(200)]  # fmt: skip
    place = folder / "model"
    shutil.copytree(sys.argv[1], place)
    tiny = ls.load_model(place)
    few: dict[str, Any] = {"metrics": "label:odd", "n_permutations": 19, "n_rotations": 0}

    def score_tiny() -> Any:
        return ls.score(tiny, texts, **few, neurons=["L0N1"])

    from safetensors.torch import load_file, save_file

    weights = load_file(place / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] += 1
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    found["other weights"] = said(score_tiny)
    found["too many GPUs"] = said(lambda: gpus(score_tiny))


def gpus(work: Any) -> Any:
    """The same with a GPU for each worker."""
    with ls.config(worker_gpus=1):
        return work()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as own:
        main(Path(own))
