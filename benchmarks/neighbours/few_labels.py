"""What 20 labels find with other tasks' scores to lean on, and with the model's own answers.

Sharing: every task in turn has 20 labels (several draws of them) and the scores of the others of
its family; of the 50 strongest neurons, how many does its own held-out split confirm (same sign, q
of the permutation test ≤ 5 % over all neurons), with and without what is shared? Families:
``templates`` (the number of the subject in four sentence patterns, other nouns in each), ``tasks``
(how far right answers lead, in four unlike tasks), ``operations`` (labels of sums, differences and
products in arithmetic-small, other operands in each). The interval is over target tasks.

Pseudo-labels: in eight folds that share no noun (pair of operands), 20 examples are labelled and
the model's confident answers label the rest: rank correlation of |r| with that of the gold labels
on the same texts, and on the next fold's.

    python benchmarks/neighbours/few_labels.py            # about 8 processor minutes
    python benchmarks/neighbours/few_labels.py --quick    # two draws of arithmetic-small alone
    python benchmarks/neighbours/few_labels.py --save
    python benchmarks/neighbours/few_labels.py --families operations --pseudo sums   # these alone
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

import lens_skills as ls  # noqa: E402
from lens_skills.stats.correlation import spearman  # noqa: E402
from lens_skills.tasks import Task, few  # noqa: E402

RESULTS = HERE.parents[1] / "results" / "neighbours_few_labels.json"
RUNS = HERE.parents[2] / "runs" / "few_labels"
LABELS, TOP, FOLDS = 20, 50, 8
DRAWS = {"templates": 6, "tasks": 6, "operations": 20}
PLAIN: dict[str, Any] = {"n_permutations": 0, "n_controls": 0, "n_rotations": 0}
LARGE = {str(n): int(n >= 100) for n in range(400)}

Parts = tuple[Task, Task, Task]
"""Of one task: whose 20 labels are drawn, what confirms, and what is lent to the others."""


def templates() -> dict[str, tuple[Parts, str]]:
    """The number of the subject in four sentence patterns; what is lent is of other nouns each."""
    task = ls.tasks.agreement(n=1920)
    pool, confirm, rest = task.split(0.25, 0.25, 0.5, seed=0)
    lent = rest.split(0.25, 0.25, 0.25, 0.25, seed=0)
    names = sorted(set(map(str, task.column("template"))))
    return {
        name: (
            (pool.where(template=name), confirm.where(template=name), own.where(template=name)),
            "label:plural",
        )
        for name, own in zip(names, lent, strict=True)
    }


def unlike() -> dict[str, tuple[Parts, str]]:
    """How far the right answer leads, in four tasks with nothing in common."""
    made = [
        ls.tasks.agreement(n=240),
        ls.tasks.ioi(n=240),
        few(ls.tasks.nli(), 240),
        ls.tasks.arithmetic("+-"),
    ]
    return {task.name: (thirds(task), "logit_diff") for task in made}


def operations() -> dict[str, tuple[Parts, str]]:
    """Sums, differences and products of two digits: is the result large, does a column carry?"""
    found: dict[str, tuple[Parts, str]] = {}
    for label, ops in (("large", "+-*"), ("carry", "+-")):
        for op in ops:
            task = ls.tasks.arithmetic(op, digits=(2,), n=600)
            # By pair of operands, so that no pair is lent by one operation and asked of another.
            parts = [task.where(lambda e, k=k: sum(map(ord, e.group)) % 3 == k) for k in range(3)]
            middle = float(np.median(task.column("result").astype(float)))
            rows = [[relabelled(e, label, op, middle) for e in part] for part in parts]
            own = tuple(
                Task(f"{label} of a {op} b", row, part.split_name)
                for row, part in zip(rows, parts, strict=True)
            )
            found[f"{label} {op}"] = ((own[0], own[1], own[2]), f"label:{label}")
    return found


def relabelled(example: ls.Example, label: str, op: str, middle: float = 0.0) -> ls.Example:
    """The example with an id that says its operation, and one label.

    ``large``: whether the result is above the middle of its operation's.
    """
    value = example.column("result" if label == "large" else label)
    assert value is not None
    if label == "large":
        value = int(float(value) > middle)
    return replace(example, id=f"{label} {op} {example.id}", labels={label: value})


def thirds(task: Task) -> Parts:
    first, second, third = task.split(1 / 3, 1 / 3, 1 / 3, seed=0)
    return first, second, third


Family = Callable[[], dict[str, tuple[Parts, str]]]
FAMILIES: dict[str, tuple[Family, str | None]] = {
    "templates": (templates, None),
    "tasks": (unlike, None),
    "operations": (operations, "arithmetic-small"),
}


def table_of(model: Any, task: Sequence[Any], folder: Path, metrics: Any = ()) -> Any:
    """The activations of the task, from the disk where they were read before."""
    if folder.exists():
        try:
            return ls.load(folder)
        except ls.LensSkillsError:
            shutil.rmtree(folder)
    return ls.capture(model, task, folder, metrics=metrics)


def shared(family: str, draws: int) -> list[dict[str, Any]]:
    """One row per target task and draw of its labels."""
    kept = RUNS / f"{family}-{draws}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    make, name = FAMILIES[family]
    model = ls.load_model(name) if name else ls.load_model()
    rows: list[dict[str, Any]] = []
    lent, tables = {}, {}
    tasks = make()
    for task, (parts, metric) in tasks.items():
        computed = () if metric.startswith("label") else (metric,)
        whole = Task(parts[0].name, [e for part in parts for e in part])
        folder = RUNS / "tables" / f"{family}-{task}".replace(" ", "_").replace("*", "x")
        tables[task] = table_of(model, whole, folder, computed)
        lent[task] = ls.score(tables[task], parts[2], metrics=metric, **PLAIN)
    for task, (parts, metric) in tasks.items():
        confirm = ls.score(tables[task], parts[1], metrics=metric, n_controls=0, n_rotations=0)[
            metric
        ]
        assert confirm.scores.q is not None
        passed = {
            place: float(confirm.r[0, place].sign())
            for place in (confirm.scores.q[0, 0] <= 0.05).nonzero()[:, 0].tolist()
        }
        strongest = set(confirm.strength.argsort(descending=True, stable=True)[:TOP].tolist())
        others = [lent[name] for name, (_, m) in tasks.items() if name != task and m == metric]
        print(
            f"{family}, {task}: {len(passed):,} confirmed on {len(parts[1])} examples", flush=True
        )
        for draw in range(draws):
            labelled = few(parts[0], LABELS, seed=draw)
            found = ls.score(tables[task], labelled, metrics=metric, share=others, **PLAIN)
            view, about = found[metric], found.sharing[metric]
            assert view.shrunk_r is not None
            by = {"shared": view.shrunk_r[0], "own": view.r[0]}
            row: dict[str, Any] = {
                "family": family, "task": task, "draw": draw, "base": len(passed) / found.n_units,
                "weight": about.weight, "common": about.common, "tau": about.own[0],
            }  # fmt: skip
            for how, r in by.items():
                order = r.abs().argsort(descending=True, stable=True)[:TOP].tolist()
                right = [float(r[k].sign()) == passed.get(k, 0.0) for k in order]
                row[f"precision_{how}"] = sum(right) / TOP
                row[f"strongest_{how}"] = len(strongest.intersection(order)) / TOP
            rows.append(row)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(rows))
    return rows


def pseudo(which: str, folds: int) -> list[dict[str, Any]]:
    """One row per fold of one task."""
    kept = RUNS / f"pseudo-{which}-{folds}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    if which == "agreement":
        model, label, values = ls.load_model(), "plural", None
        task = ls.tasks.agreement(n=960)
    else:
        model, label, values = ls.load_model("arithmetic-small"), "large", LARGE
        sums = ls.tasks.arithmetic("+", digits=(2,), n=960, options=True)
        rows = [replace(e, labels={"large": LARGE[str(e.answer)]}) for e in sums]
        task = Task("sums", rows)
    table = table_of(model, task, RUNS / "tables" / f"pseudo-{which}")
    parts = task.split(*[1 / folds] * folds, seed=0)
    metric = f"label:{label}"
    gold = [ls.score(table, part, metrics=metric, **PLAIN)[metric].strength for part in parts]
    rows = []
    for place, part in enumerate(parts):
        labelled = few(part, LABELS, seed=place)
        ids = {e.id for e in labelled}
        rest = part.where(lambda e, ids=ids: e.id not in ids)
        found = ls.pseudo_label(model, labelled, rest, label=label, values=values)
        alone = ls.score(table, labelled, metrics=metric, **PLAIN)[metric].strength
        by_model = ls.score(table, found.task, metrics=metric, **PLAIN)[metric].strength
        told = {e.id: e.labels[label] for e in found.task.where(pseudo=1)}
        truth = {e.id: e.labels[label] for e in rest}
        after = gold[(place + 1) % folds]
        pairs = {
            "same": (by_model, gold[place]), "next": (by_model, after),
            "gold_next": (gold[place], after), "few_next": (alone, after),
        }  # fmt: skip
        rows.append(
            {
                "task": which, "fold": place, "labelled": len(labelled), "saved": found.n_saved,
                "texts": len(rest), "threshold": found.threshold, "accuracy": found.accuracy,
                "low": found.low, "high": found.high,
                "right": sum(told[i] == truth[i] for i in told) / len(told),
                **{k: float(spearman(torch.stack(two))[0, 1]) for k, two in pairs.items()},
            }
        )  # fmt: skip
        print(found, rows[-1], sep="\n", flush=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(rows))
    return rows


def refused() -> str:
    """What is said where the model cannot do the task."""
    model = ls.load_model("arithmetic-small")
    labelled, rest = ls.tasks.arithmetic("*", digits=(2,), n=60, options=True).split(1 / 3, 2 / 3)
    try:
        return repr(ls.pseudo_label(model, labelled, rest, label="even", values={}))
    except ls.LensSkillsError as error:
        return str(error)


def spent(minutes: float, *, quick: bool) -> float:
    """Processor minutes of this run and of those it goes on from."""
    kept = RUNS / "minutes.json"
    if quick:
        return minutes
    before = json.loads(kept.read_text()) if kept.exists() else 0.0
    kept.write_text(json.dumps(before + minutes))
    return before + minutes


def mean(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval (Student's t) of independent numbers."""
    numbers = np.array(values, dtype=float)
    error = numbers.std(ddof=1) / len(numbers) ** 0.5
    half = float(student.ppf(0.975, len(numbers) - 1)) * error
    return float(numbers.mean()), float(numbers.mean() - half), float(numbers.mean() + half)


def result(
    sharing: pd.DataFrame, labels: pd.DataFrame, minutes: float, command: str
) -> list[dict[str, Any]]:
    """The rows that are kept."""
    by_task = sharing.groupby(["family", "task"], sort=False).mean(numeric_only=True)
    gain = by_task["precision_shared"] - by_task["precision_own"]
    value, low, high = mean(gain.tolist())
    each = "; ".join(
        f"{family} {part['precision_own'].mean():.2f} → {part['precision_shared'].mean():.2f} in "
        f"{DRAWS[str(family)]} draws each"
        for family, part in by_task.groupby(level=0, sort=False)
    )
    rows: list[dict[str, Any]] = [
        {
            "neighbour": "2111.05820 multi-task neural processes",
            "verb": "ls.score(…, share=…)",
            "works_if": "precision@50 of neurons that the task's own held-out split confirms, from "
            "20 labels, rises over scores that share nothing, each task left out in turn",
            "measured": f"precision@50 rises by {value:+.3f} [{low:+.3f}, {high:+.3f}] over "
            f"{len(by_task)} tasks, in {int((gain > 0).sum())} of them ({each})",
            "value": value, "low": low, "high": high, "met": low > 0,
            "model": ", ".join(dict.fromkeys(
                FAMILIES[str(family)][1] or "SmolLM2-135M" for family in sharing["family"]
            )), "groups": f"{len(by_task)} tasks",
            "command": command, "cpu_minutes": round(minutes, 1),
        }
    ]  # fmt: skip
    for task, part in labels.groupby("task", sort=False):
        value, low, high = mean(part["same"].tolist())
        ahead, ahead_low, ahead_high = mean((part["next"] - part["few_next"]).tolist())
        rows.append(
            {
                "neighbour": "2109.08259 few-shot rationales",
                "verb": "ls.pseudo_label",
                "works_if": "the rank correlation of |r| from the model's own confident answers "
                "with |r| from gold labels is high, labels saved stated",
                "measured": f"{task}: Spearman {value:.3f} [{low:.3f}, {high:.3f}] with gold "
                f"labels on the same texts; {LABELS} labels save {part['saved'].mean():.0f} of "
                f"{part['texts'].mean():.0f}, {part['right'].mean():.1%} of them right; with gold "
                f"on other groups {part['next'].mean():.2f} (gold itself "
                f"{part['gold_next'].mean():.2f}, the {LABELS} labels alone "
                f"{part['few_next'].mean():.2f}: {ahead:+.2f} [{ahead_low:+.2f}, "
                f"{ahead_high:+.2f}])",
                "value": value, "low": low, "high": high, "met": low > 0.9,
                "model": "SmolLM2-135M" if task == "agreement" else "arithmetic-small",
                "groups": f"{len(part)} folds", "command": command,
                "cpu_minutes": round(minutes, 1),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    which = ["agreement", "sums"]
    parser.add_argument("--pseudo", nargs="+", choices=which, default=which)
    options = parser.parse_args()
    began = time.process_time()
    draws = dict.fromkeys(FAMILIES, 2) if options.quick else DRAWS
    folds = 3 if options.quick else FOLDS
    families = ["operations"] if options.quick else options.families
    which = ["sums"] if options.quick else options.pseudo
    rows = pd.DataFrame([row for family in families for row in shared(family, draws[family])])
    labels = pd.DataFrame([row for task in which for row in pseudo(task, folds)])
    said = "" if options.quick else refused()
    minutes = spent((time.process_time() - began) / 60, quick=options.quick)
    print(rows.groupby(["family", "task"], sort=False).mean(numeric_only=True).to_string())
    print(labels.to_string())
    command = "python benchmarks/neighbours/few_labels.py"
    command += "" if families == list(FAMILIES) else f" --families {' '.join(families)}"
    command += "" if len(which) > 1 else f" --pseudo {which[0]}"
    found = result(rows, labels, minutes, f"{command} --save")
    print(json.dumps(found, indent=1, ensure_ascii=False))
    print(said)
    if options.save:
        if options.quick:
            parser.error("--quick is a smoke run: its numbers are not kept")
        import few_labels_page

        RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        few_labels_page.write(rows, labels, found, said)


if __name__ == "__main__":
    main()
