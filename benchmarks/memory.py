"""Peak memory of `score` on few and on many examples, each in a process of its own.

What the pass holds is counted, not what glibc's allocator keeps in reserve: its threshold for
memory that goes straight back to the system is fixed, where by default it grows with use and two
runs of one size differ by up to 70 MB.

python benchmarks/memory.py            # 1,000 and 8,000 prompts of 8 tokens: a quarter of an hour
python benchmarks/memory.py --quick    # 64 and 128: a smoke run, not a measurement
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys

from scoring import BATCH, METRICS, PERMUTATIONS, task_of
from timing import arguments, run_parts, table

import lens_skills as ls


def peak_memory(n_examples: int, n_total: int) -> float:
    """Peak resident megabytes of a fresh process that scores ``n_examples``."""
    command = [sys.executable, __file__, "--one", str(n_examples), str(n_total)]
    # What is large is mapped and unmapped on its own.
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    return float(done.stdout.split()[-1])


def measure_memory(n_examples: int, n_total: int) -> None:
    model = ls.load_model()
    task = task_of(model, n_total, 8)[:n_examples]
    with ls.config(batch_size=BATCH, progress=False):
        ls.score(model, task, metrics=METRICS, n_permutations=PERMUTATIONS)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def growth(small: int, large: int, runs: int) -> dict[str, float]:
    """Peak memory of `score` on few and on many examples."""
    peaks = [(peak_memory(small, large), peak_memory(large, large)) for _ in range(runs)]
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
    parser.add_argument("--runs", type=int, default=3, help="of each size; their median counts")
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        measure_memory(*asked.one)
    else:
        sizes = (64, 128) if asked.quick else (1000, 8000)
        run_parts({"": lambda: growth(*sizes, asked.runs)}, asked)


if __name__ == "__main__":
    main()
