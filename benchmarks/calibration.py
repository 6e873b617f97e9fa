"""How often what is printed is wrong: every finding of the audit simulated, today and before.

    python benchmarks/calibration.py                  # every row, about 20 minutes on one core
    python benchmarks/calibration.py categories large # some rows
    python benchmarks/calibration.py --quick          # 100 data sets a row: a smoke run
    python benchmarks/calibration.py --before TREE    # the column *before*, with an older checkout

Each row draws at least 1,000 data sets whose truth is known and counts how often the package's own
functions say something; the rate stands beside its Wilson interval and its bar. ``--save`` keeps
the rows that were run and leaves the others in the file as they are.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from calibration_rows import ROWS, Row
from timing import RESULTS, arguments, report, save

DATA_SETS, QUICK = 1_000, 100


def simulations() -> Mapping[str, Callable[[int], tuple[int, int]]]:
    """How often, of how many, in so many data sets: of each row, with the package imported."""
    import calibration_effects
    import calibration_scores

    return {**calibration_scores.SIMULATIONS, **calibration_effects.SIMULATIONS}


def figures(row: Row, hits: int, n: int, when: str) -> dict[str, float]:
    """A row's rate, its interval and what it is a share of."""
    from lens_skills.stats.intervals import wilson_interval

    low, high = wilson_interval(hits / n, n)
    key = f"{row.key}_{when}"
    return {key: hits / n, f"{key}_low": low, f"{key}_high": high, f"{key}_n": n}


def run(rows: Sequence[Row], n: int, when: str) -> dict[str, float]:
    """Every row's figures; each is printed as soon as it is there."""
    found: dict[str, float] = {}
    for row in rows:
        start = time.perf_counter()
        part = figures(row, *simulations()[row.key](n * row.times), when)
        found |= part
        rate, low, high = (part[f"{row.key}_{when}{end}"] for end in ("", "_low", "_high"))
        word = "" if row.bar == "–" else "holds" if row.holds(rate) else "MISSES"
        print(
            f"{row.key:<22} {when:<6} {rate:.3f} [{low:.3f}, {high:.3f}]  {word} {row.bar}  "
            f"({time.perf_counter() - start:.0f} s) {row.what}",
            file=sys.stderr,
            flush=True,
        )
    return found


def elsewhere(tree: str, rows: Sequence[Row], quick: bool) -> dict[str, float]:
    """The same rows with the package of another checkout."""
    command = [sys.executable, __file__, *(row.key for row in rows), "--as-before"]
    environment = os.environ | {"PYTHONPATH": str(Path(tree).resolve())}
    done = subprocess.run(
        command + ["--quick"] * quick, env=environment, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def kept(folder: Path = RESULTS) -> dict[str, float]:
    """The rows' numbers in the file of results."""
    path = folder / "calibration.json"
    keys = tuple(f"{row.key}_" for row in ROWS)
    if not path.exists():
        return {}
    entry: Mapping[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in entry.items() if key.startswith(keys)}


def in_order(found: Mapping[str, float]) -> dict[str, float]:
    """The numbers in the order of the rows."""
    ends = [f"_{when}{end}" for when in ("before", "now") for end in ("", "_low", "_high", "_n")]
    keys = [row.key + end for row in ROWS for end in ends]
    return {key: found[key] for key in keys if key in found}


def main() -> None:
    parser: argparse.ArgumentParser = arguments(__doc__, quick="100 data sets a row")
    parser.add_argument("rows", nargs="*", help="keys of rows (default: all)")
    parser.add_argument("--before", metavar="TREE", help="a checkout of an older package")
    parser.add_argument("--as-before", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    known = {row.key: row for row in ROWS}
    for key in asked.rows:
        if key not in known:
            parser.error(f"no row {key!r}. Choose from: {', '.join(known)}")
    if asked.save and asked.quick:
        parser.error("a smoke run is no measurement: --quick and --save do not go together")
    rows = [known[key] for key in asked.rows] or list(ROWS)
    n = QUICK if asked.quick else DATA_SETS
    words = sys.argv[1:]
    found: dict[str, float] = {}
    for row in rows:
        if asked.before is not None:
            found |= elsewhere(asked.before, [row], asked.quick)
        else:
            found |= run([row], n, "before" if asked.as_before else "now")
        if asked.save:
            # What was run in parts, and with which other checkout, is the same measurement.
            sys.argv[1:] = []
            save("", in_order(kept() | found))
            sys.argv[1:] = words
    report(found)


if __name__ == "__main__":
    main()
