"""Peak memory on few and on many examples, each in a process of its own.

`score` with a model; `score` and `rank` on shards of activations, which are made up and written to
a temporary folder (1.4 GB); `sweep` of two neurons of a tiny model, whose examples have prompts.

What the pass holds is counted, not what glibc's allocator keeps in reserve: its threshold for
memory that goes straight back to the system is fixed, where by default it grows with use and two
runs of one size differ by up to 70 MB.

python benchmarks/memory.py model      # 1,000 and 8,000 prompts of 8 tokens: five minutes
python benchmarks/memory.py shards     # 10,000 and 100,000 rows: two minutes
python benchmarks/memory.py sweep      # 10,000 and 100,000 examples: five minutes
python benchmarks/memory.py speed      # score and rank on shards against one matrix product
python benchmarks/memory.py            # all
python benchmarks/memory.py --quick    # few rows: a smoke run, not a measurement
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import torch
from scoring import BATCH, METRICS, PERMUTATIONS, task_of
from timing import arguments, interleaved, run_parts, table

import lens_skills as ls
from lens_skills.scoring.design_matrix import N_MARKS

LAYERS, WIDTH = 4, 1536
"""Of the shards."""
SHARD = 5000
"""Rows of each."""


def peak_memory(work: str, *asked: object) -> list[float]:
    """What a fresh process prints last: peak resident megabytes, and more."""
    command = [sys.executable, __file__, "--one", work, *map(str, asked)]
    # What is large is mapped and unmapped on its own.
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    return [float(number) for number in done.stdout.split("\n")[-2].split()]


def resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_model(n_examples: str, n_total: str) -> None:
    model = ls.load_model()
    task = task_of(model, int(n_total), 8)[: int(n_examples)]
    with ls.config(batch_size=BATCH, progress=False):
        ls.score(model, task, metrics=METRICS, n_permutations=PERMUTATIONS)
    print(resident())


def measure_shards(folder: str, verb: str) -> None:
    table = ls.load(folder)
    with ls.config(progress=False):
        if verb == "score":
            names = ["label:y", "tone"]
            ls.score(table, table.examples, metrics=names, n_permutations=PERMUTATIONS)
        else:
            ls.rank(table, table.examples, "label:y")
    print(resident())


def measure_sweep(n_examples: str) -> None:
    model = ls.load_model("arithmetic-small")
    with ls.config(progress=False):  # what the model and a first pass take
        ls.sweep(model, sums(64), ["L1N5", "L1N9"], metric="logit_diff", do=ls.ablate("zero"))
        before = resident()
        task = sums(int(n_examples))
        held = resident()
        ls.sweep(model, task, ["L1N5", "L1N9"], metric="logit_diff", do=ls.ablate("zero"))
    print(resident(), held - before)


def sums(n: int) -> ls.Task:
    """Sums of two numbers below a thousand, each a prompt of its own."""
    pairs = [divmod(7919 * place % 999_983, 1000) for place in range(n)]
    return ls.Task("sums", [
        ls.Example(f"{k}", f"{a} + {b} =", answer=f" {(a + b) % 10}", foil=f" {(a + b + 1) % 10}")
        for k, (a, b) in enumerate(pairs)
    ])  # fmt: skip


def write_shards(folder: Path, n: int) -> Path:
    """Shards of made-up activations in float16, each row its own group; a label and a metric."""
    random = np.random.default_rng(0)
    block = random.normal(size=(1000, LAYERS, WIDTH)).astype(np.float16)
    folder.mkdir()
    shards = []
    for start in range(0, n, SHARD):
        size = min(SHARD, n - start)
        y = random.integers(0, 2, size)
        acts = np.resize(block, (size, LAYERS, WIDTH))
        acts[:, :, :4] += y[:, None, None].astype(np.float16)
        np.save(folder / f"{start}.npy", acts)
        ids = [f"row {place}" for place in range(start, start + size)]
        rows = {"id": ids, "label:y": y, "tone": random.normal(size=size)}
        parquet.write_table(pyarrow.table(rows), folder / f"{start}.parquet")
        shards.append({"file": f"{start}.npy", "rows": size, "table": f"{start}.parquet"})
    manifest = {
        "format": 2, "model": "made up", "site": "mlp.hook_post", "layers": [*range(LAYERS)],
        "positions": ["last"], "width": WIDTH, "dtype": "float16", "shards": shards,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def shards_growth(small: int, large: int, runs: int) -> dict[str, float]:
    """Peak memory of `score` and `rank` on few and on many rows of shards."""
    found: dict[str, float] = {"rows_small": small, "rows_large": large}
    shown = {}
    with tempfile.TemporaryDirectory() as place:
        few, many = (write_shards(Path(place) / str(n), n) for n in (small, large))
        for verb in ("score", "rank"):
            peaks = [
                [peak_memory("shards", folder, verb)[0] for folder in (few, many)]
                for _ in range(runs)
            ]
            before, after = (statistics.median(column) for column in zip(*peaks, strict=True))
            share = after / before - 1
            found |= {f"{verb}_small_mb": before, f"{verb}_large_mb": after}
            found[f"{verb}_growth"] = share
            shown[verb] = f"{before:,.0f} to {after:,.0f} MB: {share:+.1%}"
    stored = 2 * LAYERS * WIDTH * large / 2**20
    shown["the shards themselves"] = f"{stored:,.0f} MB on disk"
    table(f"peak memory on shards from {small:,} to {large:,} rows", shown)
    return found | {"shards_mb": stored}


def sweep_growth(small: int, large: int) -> dict[str, float]:
    """Peak memory of `sweep` of two neurons over few and many examples."""
    (before, _), (after, held) = (peak_memory("sweep", n) for n in (small, large))
    share, own = after / before - 1, (after - before - held) * 1024 / (large - small)
    table(
        f"peak memory of a sweep of two neurons from {small:,} to {large:,} examples",
        {
            "sweep": f"{before:,.0f} to {after:,.0f} MB: {share:+.1%}",
            "the task itself": f"{held:,.0f} MB",
            "beside it": f"{own:.2f} kB per added example",
        },
    )
    return {
        "sweep_small_mb": before,
        "sweep_large_mb": after,
        "sweep_growth": share,
        "sweep_task_mb": held,
        "sweep_kb_per_example": own,
    }


def shards_speed(n: int, rounds: int) -> dict[str, float]:
    """`score` and `rank` on shards against `np.load` and one matrix product, in processor time.

    The product reads the same files, casts them to double precision and multiplies them with as
    many columns as the verb does: of `rank` the metric; of `score` the metric, its draws under the
    null, the marks of the groups and their products with the metric, out of which come the
    intervals. Only the verb checks the activations, centres them, sums their squares (by mark,
    too), hashes and groups the examples, and makes the result. Random directions and a control
    task, which no product has, are left out of both.
    """
    draws = PERMUTATIONS
    with tempfile.TemporaryDirectory() as place:
        folder = write_shards(Path(place) / "t", n)
        rows = ls.load(folder)

        def product(n_columns: int) -> None:
            columns = torch.randn(n_columns, n, dtype=torch.float64)
            total, start = torch.zeros(n_columns, LAYERS * WIDTH, dtype=torch.float64), 0
            for shard in rows.shards:
                acts = torch.from_numpy(np.load(shard.path)).flatten(1)
                for first in range(0, len(acts), 128):
                    part = acts[first : first + 128].float().double()
                    total += columns[:, start + first : start + first + len(part)] @ part
                start += len(acts)

        bare: dict[str, Any] = {"n_controls": 0, "n_rotations": 0}
        examples, marks = rows.examples, 2 * N_MARKS
        with ls.config(progress=False):
            ways: dict[str, tuple[int, Callable[[], object]]] = {
                "rank": (1, lambda: ls.rank(rows, examples, "tone")),
                "score without draws": (
                    1 + marks,
                    lambda: ls.score(rows, examples, metrics="label:y", n_permutations=0, **bare),
                ),
                f"score with {draws} draws": (
                    1 + draws + marks,
                    lambda: ls.score(
                        rows, examples, metrics="label:y", n_permutations=draws, **bare
                    ),
                ),
            }
            timed = {name: verb for name, (_, verb) in ways.items()} | {
                f"the product for {name}": partial(product, size)
                for name, (size, _) in ways.items()
            }
            seconds = interleaved(timed, rounds=rounds, clock=time.process_time)
    size = 2 * LAYERS * WIDTH * n / 1e9
    shares = {name: seconds[f"the product for {name}"] / seconds[name] for name in ways}
    table(
        f"{n:,} rows of shards, {size:.2f} GB, processor time",
        {
            name: f"{seconds[name]:.2f} s, {size / seconds[name]:.2f} GB/s; {shares[name]:.2f} of "
            f"the speed of np.load and a product with {columns} columns"
            for name, (columns, _) in ways.items()
        },
    )
    rank, bare_score, drawn = ways
    return {
        "shards_gb": size,
        "rank_seconds": seconds[rank],
        "score_seconds": seconds[bare_score],
        "score_draws_seconds": seconds[drawn],
        "rank_vs_product": shares[rank],
        "score_vs_product": shares[bare_score],
        "score_draws_vs_product": shares[drawn],
    }


def growth(small: int, large: int, runs: int) -> dict[str, float]:
    """Peak memory of `score` on few and on many examples."""
    peaks = [[peak_memory("model", n, large)[0] for n in (small, large)] for _ in range(runs)]
    before, after = (statistics.median(column) for column in zip(*peaks, strict=True))
    per_example = (after - before) * 1024 / (large - small)
    matrix = 46_080 * 4 / 1024
    table(
        f"peak memory from {small:,} to {large:,} examples",
        {
            "score": f"{before:,.0f} to {after:,.0f} MB: {per_example:.1f} kB per added example",
            "a stored float32 matrix would add": f"{matrix:.0f} kB per example",
        },
    )
    return {
        "memory_small_mb": before,
        "memory_large_mb": after,
        "memory_matrix_kb_per_example": matrix,
        "memory_kb_per_example": per_example,
        "memory_matrix_vs_score": matrix / max(per_example, 0.1),
    }


def main() -> None:
    parser = arguments(__doc__, quick="a smoke run, not a measurement")
    parser.add_argument("part", nargs="?", choices=["model", "shards", "sweep", "speed"])
    parser.add_argument("--runs", type=int, default=1, help="of each size; their median counts")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        work, *rest = asked.one
        {"model": measure_model, "shards": measure_shards, "sweep": measure_sweep}[work](*rest)
        return
    sizes, rows = ((64, 128), (300, 600)) if asked.quick else ((1000, 8000), (10_000, 100_000))
    parts = {
        "": lambda: growth(*sizes, asked.runs),
        "shards": lambda: shards_growth(*rows, asked.runs),
        "sweep": lambda: sweep_growth(*rows),
        "speed": lambda: shards_speed(rows[0], 3),
    }
    run_parts(parts, asked, only="" if asked.part == "model" else asked.part)


if __name__ == "__main__":
    main()
