"""Passes under Ray on this machine, in a process of their own; what came out as JSON.

``python -m tests.engines.ray_run FOLDER``: FOLDER holds a tiny model. A process of its own, since
functions that are made while the tests' checks of shapes are on cannot be sent to a worker.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

import lens_skills as ls
from lens_skills.engines import ray_engine
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter
from lens_skills.models.origins import origin_of


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
    (pool,) = ray_engine._pools
    found["workers"] = len({member.name for member in pool.members})
    members = list(pool.members)

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

    # Weights of its own: no file holds them, so that the model itself is sent.
    with torch.no_grad():
        model.blocks[1].mlp.W_out.mul_(1.5)
    found["origin"] = origin_of(model) is None
    ls.config(engine="local")
    local = ls.score(model, task, **asked)
    ls.config(engine="ray")
    found["in memory"] = far(ls.score(model, task, **asked), local)

    # A file that is gone, or another one, by the time the workers open it.
    texts = [ls.Example(id=str(k), prompt=f"the dog {k % 7} saw", labels={"odd": k % 2}) for k in
             range(200)]  # fmt: skip
    place = folder / "model"
    shutil.copytree(sys.argv[1], place)
    tiny = ls.load_model(place)
    hidden = folder / "hidden"
    place.rename(hidden)
    ls.config(workers=1)
    few: dict[str, Any] = {"metrics": "label:odd", "n_permutations": 19, "n_rotations": 0}

    def score_tiny() -> Any:
        return ls.score(tiny, texts, **few, neurons=["L0N1"])

    found["no file"] = said(score_tiny)
    hidden.rename(place)
    from safetensors.torch import load_file, save_file

    weights = load_file(place / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] += 1
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    found["other weights"] = said(score_tiny)
    found["too many GPUs"] = said(lambda: gpus(score_tiny))
    ray_engine.stop()
    os.environ["RAY_ADDRESS"] = "127.0.0.1:1"
    found["no cluster"] = said(score_tiny)
    print("FOUND " + json.dumps(found))


def gpus(work: Any) -> Any:
    """The same with a GPU for each worker."""
    with ls.config(worker_gpus=1):
        return work()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as own:
        main(Path(own))
