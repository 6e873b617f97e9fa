"""How long the demonstration takes by the clock, and when its first card comes.

    python benchmarks/demo_time.py            # once, about two and a half minutes on two cores
    python benchmarks/demo_time.py --runs 3   # the median of three

Each run is a process of its own that writes to a temporary folder, report included. Whether the
model was converted before is said by ``demo_converted_before``.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import arguments, run_parts, table

FIRST_CARD = "Verdict (on a third split)"
"""What the first study's card says last but for its preflight."""


def demo(folder: str) -> dict[str, float]:
    """Seconds until the first card, and in all."""
    command = [sys.executable, "-m", "lens_skills", "demo", "--out", folder]
    start, first, converted = time.perf_counter(), 0.0, 1.0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if "converting" in line:
                converted = 0.0
            if FIRST_CARD in line and not first:
                first = time.perf_counter() - start
    if process.returncode or not first or not Path(folder, "report.html").exists():
        raise SystemExit(f"the demo failed ({process.returncode})")
    return {
        "demo_first_card_seconds": first,
        "demo_seconds": time.perf_counter() - start,
        "demo_converted_before": converted,
    }


def measured(runs: int) -> dict[str, float]:
    """The medians of some runs."""
    found = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            found.append(demo(folder))
    figures = {name: statistics.median(run[name] for run in found) for name in found[0]}
    table("the demo", {name: f"{value:.0f}" for name, value in figures.items()})
    return figures | {"demo_runs": float(runs)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=1, help="their median counts")
    asked = parser.parse_args()
    run_parts({"": lambda: measured(asked.runs)}, asked)


if __name__ == "__main__":
    main()
