"""Every verb on tiny models of many architectures, judged by plain transformers.

    python benchmarks/families.py                       # all of them: a quarter of an hour
    python benchmarks/families.py --only llama,gpt_neox
    python benchmarks/families.py --verbs open,score
    python benchmarks/families.py --precisions --save   # half precision and quantised weights
    python benchmarks/families.py --json                # for other programs
    python benchmarks/families.py --save                # into benchmarks/results/families.json

Both implementations where this TransformerLens has both; with ``--save``, what was measured with
another TransformerLens stays. ``tests/models/families.py`` builds the models,
``tests/models/plain_forward.py`` is the judge.
"""

import argparse
import datetime
import json
import logging
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from timing import RESULTS, machine, versions

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.models.families import FAMILIES, tokenizer
from tests.models.family_verbs import BARS, LETTERS, VERBS, Case, Outcome, judge

PARTS = ("before", "outcomes", "why", "precisions", "tolerances")
FILE = RESULTS / "families.json"
MOST_SECONDS = 300  # of one verb

Table = dict[str, dict[str, dict[str, Outcome]]]
"""Outcomes by column (``"3.9 hooked"``), family and verb."""


def columns() -> dict[str, str]:
    """The implementations of this TransformerLens by the names of their columns."""
    from lens_skills.models.load import has_hooked

    line = ".".join(version("transformer-lens").split(".")[:2])
    kinds = ("hooked", "bridge") if has_hooked() else ("bridge",)
    return {f"{line} {kind}": kind for kind in kinds}


IN_HALF = ("llama", "gpt2", "gpt_neox", "qwen2", "gemma2")
QUANTISED = ("llama", "gpt2")


def measure_precisions() -> Table:
    """Half precision and quantised weights, each against the plain model of the same weights."""
    words, table = tokenizer(), {column: {} for column in columns()}
    for weights in ("bfloat16", "float16", "8bit", "4bit"):
        quantised = weights if weights.endswith("bit") else ""
        if quantised and not find_spec("bitsandbytes"):
            continue
        dtype = torch.float32 if quantised else getattr(torch, weights)
        for family in QUANTISED if quantised else IN_HALF:
            for column, kind in columns().items():
                case = Case(family, kind, words, dtype, BARS[weights], quantised)
                found = {verb: judge(case, verb) for verb in VERBS}
                table[column][f"{family} {weights}"] = found
                shown = "".join(LETTERS[outcome.kind] for outcome in found.values())
                print(f"{family} {weights:12}{column:12}{shown}", flush=True)
                for verb, outcome in found.items():
                    if outcome.kind != "right":
                        print(f"    {verb}: {outcome.kind}: {outcome.why}", flush=True)
    return table


def save_precisions(table: Table) -> None:
    """Beside what the file holds."""
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    found: dict[str, dict[str, str]] = kept.get("precisions", {})
    for column, rows in entries(table)["outcomes"].items():
        for name, letters in rows.items():
            found.setdefault(name, {})[column] = letters
    kept["precisions"] = found
    kept["tolerances"] = {name: asdict(bars) for name, bars in BARS.items()}
    FILE.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class TooLong(Exception):
    """A verb that did not end."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise TooLong(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def measure(families: list[str], verbs: list[str], *, quiet: bool) -> Table:
    """Every verb on every family, in every implementation there is here."""
    words = tokenizer()
    table: Table = {column: {} for column in columns()}
    for family in families:
        plain = None
        for column, kind in columns().items():
            case = Case(family, kind, words, plain=plain)
            plain = case.plain
            found = {}
            for verb in verbs:
                with within(MOST_SECONDS):
                    found[verb] = judge(case, verb)
            table[column][family] = found
            if not quiet:
                shown = "".join(LETTERS[outcome.kind] for outcome in found.values())
                print(f"{family:22}{column:12}{shown}", flush=True)
                for verb, outcome in found.items():
                    if outcome.kind in ("WRONG", "RAW"):
                        print(f"    {verb}: {outcome.kind}: {outcome.why}", flush=True)
    return table


def entries(table: Table) -> dict[str, Any]:
    """The table as it is saved: a letter for each verb, and the reasons."""
    letters = {
        column: {
            family: "".join(LETTERS[found[verb].kind] for verb in VERBS)
            for family, found in rows.items()
        }
        for column, rows in table.items()
    }
    why = {
        column: {
            family: {verb: outcome.why for verb, outcome in found.items() if outcome.why}
            for family, found in rows.items()
        }
        for column, rows in table.items()
    }
    return {"outcomes": letters, "why": why}


def counts(letters: dict[str, dict[str, str]]) -> Counter[str]:
    """How many of all verbs are right, refused, wrong, raw."""
    return Counter("".join("".join(rows.values()) for rows in letters.values()))


def save(table: Table, *, before: bool) -> None:
    """Put the columns into the file of results, beside those of other versions."""
    kept = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    new = entries(table)
    parts = {"before": new["outcomes"]} if before else new
    for key, found in parts.items():
        old = kept.get(key, {})
        kept[key] = {**old, **{name: {**old.get(name, {}), **rows} for name, rows in found.items()}}
    numbers = {}
    for when, key in (("before", "before"), ("now", "outcomes")):
        for name, letter in LETTERS.items():
            numbers[f"{name.lower()}_{when}"] = counts(kept.get(key, {}))[letter]
    numbers["families"] = len(FAMILIES)
    numbers["columns"] = len(kept.get("outcomes", {}))
    about = {
        "command": "python benchmarks/families.py --save",
        "measured": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
    }
    whole = {**about, **numbers, **{k: kept[k] for k in PARTS if k in kept}}
    FILE.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", help="families, with commas")
    parser.add_argument("--verbs", help="verbs, with commas")
    parser.add_argument("--precisions", action="store_true", help="half precision, quantised")
    parser.add_argument("--json", action="store_true", help="print outcomes and reasons as JSON")
    parser.add_argument("--save", action="store_true", help="keep the outcomes for the page")
    parser.add_argument("--before", action="store_true", help="save them as what was before")
    asked = parser.parse_args()
    families = asked.only.split(",") if asked.only else list(FAMILIES)
    verbs = asked.verbs.split(",") if asked.verbs else list(VERBS)
    for given, known in ((families, FAMILIES), (verbs, VERBS)):
        for name in set(given) - set(known):
            parser.error(f"no {name!r}; there are {', '.join(known)}")
    if asked.save and verbs != list(VERBS):
        parser.error("--save needs every verb")
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    if asked.precisions:
        found_there = measure_precisions()
        if asked.save:
            save_precisions(found_there)
        return
    table = measure(families, verbs, quiet=asked.json)
    if asked.save:
        save(table, before=asked.before)
    found = entries(table) if verbs == list(VERBS) else {}
    if asked.json:
        print(json.dumps(found))
    elif found:
        print(dict(counts(found["outcomes"])))


if __name__ == "__main__":
    main()
