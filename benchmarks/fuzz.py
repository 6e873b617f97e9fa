"""Every reader of files on damaged ones: only what was read row by row, or our own error.

    python benchmarks/fuzz.py --inputs 10000

Prints, per reader, how many files it was given, how many it read, and how many escaped.
"""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from tests.mutations import READERS, mutated, outcome


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--inputs", type=int, default=10_000)
    options.add_argument("--readers", nargs="*", default=list(READERS))
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    escaped = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.readers:
            reader, began = READERS[name], time.monotonic()
            path, found = Path(folder, f"a{reader.ending}"), Counter[str]()
            first: dict[str, int] = {}
            for number in range(asked.inputs):
                seed = asked.seed * 10**9 + number
                said = outcome(reader, mutated(Random(seed), reader), path)[:100]
                found[said] += 1
                first.setdefault(said, seed)
            read, refused = found.pop("read", 0), found.pop("refused", 0)
            escaped += found.total()
            print(
                f"{name}: {asked.inputs:,} inputs, {read:,} read, {refused:,} refused, "
                f"{found.total()} escapes, {time.monotonic() - began:.0f} s",
                flush=True,
            )
            for wrong, count in found.most_common(8):
                print(f"    {count} × {wrong} (seed {first[wrong]})")
    raise SystemExit(1 if escaped else 0)


if __name__ == "__main__":
    main()
