"""How few neurons tell kinds of Python token, and are number, string and name neurons levers?

    python benchmarks/neighbours/code_tokens.py --save
    python benchmarks/neighbours/code_tokens.py --save --model Qwen/Qwen2.5-Coder-0.5B-Instruct
    python benchmarks/neighbours/code_tokens.py --quick

`ls.minimal_set` on `ls.tasks.code` (the standard library of the Python that runs; modules whole in
every split): the token's class, over all layers and in each, and number, string and name against
the rest. Then association (score, select) and a trial of the confirmed neurons: mean-ablated at the
token, what becomes of the next one, beside random sets and on the other classes. Finished parts are
kept in ``runs/code_tokens``.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from asked_model import add_model, opened, slug
from claims.trial import try_sets
from leaderboard_page import markdown
from pictures import keep

import lens_skills as ls
from lens_skills.activations import ActivationTable
from lens_skills.plotting import figures

RUNS = Path("runs/code_tokens")
RESULT = Path("benchmarks/results/neighbours_code_tokens.json")
PAGE = Path("figures/neighbours/code_tokens.md")
SCRIPT = "python benchmarks/neighbours/code_tokens.py --save"
PUBLIC = {"qwen2.5-coder-0.5b": "Qwen/Qwen2.5-Coder-0.5B-Instruct"}
CALLED = {"smollm2": "SmolLM2-135M-Instruct", "qwen2.5-coder-0.5b": "Qwen2.5-Coder-0.5B-Instruct"}
CONCEPTS = ("number", "string", "name")
N = {"smollm2": 600}
FEWER = 400
SEED = 0
KS = tuple(2**power for power in range(11))
"""And all representatives, which `ls.minimal_set` adds."""

PARTS = ("token", "layers", "concepts", "trial")
MOST = 10
"""Confirmed neurons of each concept that are edited together."""


def arguments() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    add_model(parser)
    parser.add_argument("--save", action="store_true", help="keep rows, page and pictures")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="some of it")
    parser.add_argument("--quick", action="store_true", help="a smoke run: no result")
    return parser.parse_args()


class Parts:
    """Finished parts of a run, with the minutes of processor time they took."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, name: str) -> bool:
        """Whether a part was finished."""
        return (self.folder / f"{name}.minutes").exists()

    def minutes(self) -> float:
        """Of all parts, also of those read back."""
        return sum(float(path.read_text()) for path in self.folder.glob("*.minutes"))

    def result(self, name: str, make: Callable[[], Any]) -> Any:
        """A result of the toolkit, or a table of activations, made once."""
        place, clock = self.folder / name, self.folder / f"{name}.minutes"
        if not self.has(name):
            began = time.process_time()
            found = make()
            if not isinstance(found, ActivationTable):
                found.save(place)
            clock.write_text(f"{(time.process_time() - began) / 60:.3f}")
        print(f"{name}: {float(clock.read_text()):.1f} CPU minutes", flush=True)
        return ls.load(place)

    def rows(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table of numbers, made once."""
        place, clock = self.folder / f"{name}.csv", self.folder / f"{name}.minutes"
        if not self.has(name):
            began = time.process_time()
            make().to_csv(place, index=False, float_format="%.5g")
            clock.write_text(f"{(time.process_time() - began) / 60:.3f}")
        print(f"{name}: {float(clock.read_text()):.1f} CPU minutes", flush=True)
        return pd.read_csv(place)


def measured(
    asked: str | None, wanted: Sequence[str], *, quick: bool
) -> tuple[Any, pd.DataFrame | None, pd.DataFrame | None, float]:
    """Of a model: the minimal set, those of the concepts, their trial, and the minutes."""
    name = "arithmetic_small" if quick and asked is None else slug(asked)
    parts = Parts(RUNS / f"{name}{'_quick' if quick else ''}")
    models: list[Any] = []

    def model() -> Any:
        if not models:
            models.append(opened("arithmetic-small" if quick and asked is None else asked))
        return models[0]

    def captured() -> ActivationTable:
        n = 200 if quick else N.get(name, FEWER)
        task = ls.tasks.code(n, seed=SEED, n_modules=20 if quick else 60, model=model())
        (parts.folder / "source.txt").write_text(task.split_name)
        return ls.capture(model(), task, parts.folder / "table", dtype="float32")

    table = parts.result("table", captured)
    words = (parts.folder / "source.txt").read_text().strip()
    task = ls.Task("code", list(table.examples), split_name=words)
    train, test = task.split(0.6, 0.4, seed=SEED)

    def minimal(metric: str, *, layerwise: bool = False) -> Any:
        return ls.minimal_set(
            table, train, test, metric=metric, ks=KS[:6] if quick else KS, layerwise=layerwise,
            n_random=5 if quick else 20, seed=SEED,
        )  # fmt: skip

    found = parts.result("token", lambda: minimal("label:token"))
    if "layers" in wanted or parts.has("layers"):
        found = parts.result("layers", lambda: minimal("label:token", layerwise=True))
    rows = []
    for concept in CONCEPTS:
        if "concepts" in wanted or parts.has(concept):
            one = parts.result(concept, lambda c=concept: minimal(f"label:token={c}"))
            rows.append({"concept": concept} | dict(one.frame().iloc[0]) | {"first": one.names[0]})
    trial = None
    if "trial" in wanted or parts.has("trial"):
        sizes = (4, 2) if quick else (24, 19) if name == "smollm2" else (10, 19)
        trial = parts.rows("trial", lambda: tried(model(), table, train, test, *sizes))
    return found, pd.DataFrame(rows) if rows else None, trial, parts.minutes()


def tried(
    model: Any, table: Any, train: Any, test: Any, n_tried: int, n_random: int
) -> pd.DataFrame:
    """The confirmed neurons of each concept, edited at its tokens and at the others'."""
    explore, confirm = train.split(0.6, 0.4, seed=SEED)
    sets, counts = {}, {}
    for concept in CONCEPTS:
        metric = f"label:token={concept}"
        first = ls.score(table, explore, metrics=metric, seed=SEED)
        second = ls.score(table, confirm, metrics=metric, seed=SEED)
        chosen = ls.select(first, second)
        counts[concept] = {"confirmed": len(chosen), "grade": chosen.grade}
        if len(chosen) > 1:
            sets[concept] = list(chosen.names[:MOST])
    if len(sets) < 2:
        return pd.DataFrame([{"set": name} | counts[name] for name in CONCEPTS])
    tasks = {name: ls.tasks.few(test.where(token=name), n_tried, seed=SEED) for name in sets}
    edit = ls.ablate("mean", over=ls.tasks.few(train, 100, seed=SEED))
    trial = try_sets(model, tasks, sets, edit, n_random=n_random, seed=SEED)
    rows = trial.rows
    rows["confirmed"] = [counts[name]["confirmed"] for name in rows["set"]]
    rows["grade"] = [counts[name]["grade"] for name in rows["set"]]
    rows["first"] = [sets[name][0] for name in rows["set"]]
    return rows


def result_row(asked: str | None, found: Any, minutes: float) -> dict[str, Any]:
    """What the table of neighbours takes."""
    name, row = slug(asked), found.frame().iloc[0]
    beats = bool(row["difference_low"] > 0)
    narrow = bool(row["low"] > found.chance)
    return {
        "neighbour": "2305.00875 redundancy and concepts in code",
        "verb": "ls.minimal_set",
        "works_if": "the smallest share of neurons within 1 % of the accuracy of all has an "
        "interval, and beats as many random neurons",
        "measured": f"% of {row['n_neurons']:,} neurons (k = {row['k']:,}, {row['k_low']:,} to "
        f"{row['k_high']:,}); accuracy {row['accuracy']:.3f} [{row['low']:.3f}, "
        f"{row['high']:.3f}], all {row['all']:.3f}, {found.n_random} random sets "
        f"{row['random']:.3f}: difference {row['difference']:+.3f} "
        f"[{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]",
        "value": 100 * float(row["share"]),
        "low": 100 * float(row["share_low"]),
        "high": 100 * float(row["share_high"]),
        "met": beats and narrow,
        "model": CALLED.get(name, name),
        "groups": f"{found.n_groups} held-out modules of the library",
        "command": SCRIPT + (f" --model {PUBLIC.get(name, asked)}" if asked else ""),
        "cpu_minutes": round(minutes, 1),
    }


def save(asked: str | None, found: Any, concepts: Any, trial: Any, minutes: float) -> None:
    """Row, pictures and tables of a model, and the page of all models there are."""
    name = slug(asked)
    row = result_row(asked, found, minutes)
    old = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else []
    rows = [one for one in old if one["model"] != row["model"]] + [row]
    rows.sort(key=lambda one: one["model"], reverse=True)
    RESULT.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    keep(figures.minimal_set(found), PAGE.parent / f"code_tokens_{name}")
    file = name.replace(".", "_")
    for what, frame in (("concepts", concepts), ("trial", trial), ("scopes", found.frame())):
        if frame is not None:
            path = PAGE.parent / f"code_tokens_{file}_{what}.csv"
            frame.to_csv(path, index=False, float_format="%.4g")
    (PAGE.parent / f"code_tokens_{file}.txt").write_text(repr(found) + "\n", encoding="utf-8")
    PAGE.write_text(page(rows), encoding="utf-8")
    print(f"written: {RESULT}, {PAGE}")


HEADER = """# Kinds of token in code: how few neurons?

`ls.minimal_set` on `ls.tasks.code`: Python's own standard library, each prompt cut after one token,
the label its class (number, string, keyword, name, operator). All of Python's reading is
`tokenize`'s and `ast`'s; modules are whole in every split. Sharma et al. 2023 (arXiv 2305.00875)
found over 95 % of the neurons of code models redundant; here k is chosen by cross-validation on the
training modules, and the test modules say what it is worth.
"""


def page(rows: list[dict[str, Any]]) -> str:
    """The page, from the rows and the tables beside it."""
    lines = [HEADER]
    for row in rows:
        name = next(key for key, value in CALLED.items() if value == row["model"])
        file = f"code_tokens_{name}".replace(".", "_")
        folder = PAGE.parent
        lines += [
            f"## {row['model']}\n",
            f"`{row['command']}` · {row['cpu_minutes']:.1f} CPU minutes\n",
            "```text",
            (folder / f"{file}.txt").read_text(encoding="utf-8").rstrip(),
            "```\n",
            f"![Held-out accuracy against the number of neurons, and the minimal share of each "
            f"layer.]({file}.png)\n",
        ]
        for what, written in (("concepts", _concepts), ("trial", _trial)):
            path = folder / f"{file}_{what}.csv"
            if path.exists():
                lines.append(written(pd.read_csv(path)))
            else:
                lines.append(f"Not measured here yet: `--parts {what}`.\n")
    return "\n".join(lines).rstrip() + "\n"


def _concepts(frame: pd.DataFrame) -> str:
    cells = [["class", "k [95 %]", "accuracy [95 %]", "all", "random", "difference [95 %]",
              "strongest"]]  # fmt: skip
    for row in frame.to_dict("records"):
        cells.append(
            [
                row["concept"],
                f"{row['k']:.0f} [{row['k_low']:.0f}, {row['k_high']:.0f}]",
                f"{row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
                f"{row['all']:.3f}",
                f"{row['random']:.3f}",
                f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, "
                f"{row['difference_high']:+.3f}]",
                row["first"],
            ]
        )
    table = markdown(pd.DataFrame(cells[1:], columns=cells[0]))
    return f"One class against the rest, over all layers:\n\n{table}\n"


def _trial(frame: pd.DataFrame) -> str:
    if "effect" not in frame:
        counts = ", ".join(f"{r['set']} {r['confirmed']}" for r in frame.to_dict("records"))
        return f"Too few neurons were confirmed for a trial: {counts}.\n"
    cells = [["set", "confirmed (grade)", "neurons", "effect, nats [95 %]", "random sets",
              "p", "more than elsewhere, sd [95 %]"]]  # fmt: skip
    for row in frame.to_dict("records"):
        cells.append(
            [
                row["set"],
                f"{row['confirmed']:,} ({row['grade']})",
                f"{row['neurons']}",
                f"{row['effect']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
                f"{row['random sets']:+.3f}",
                f"{row['p_random']:.2f}",
                f"{row['more']:+.2f} [{row['more_low']:+.2f}, {row['more_high']:+.2f}]",
            ]
        )
    hurts = frame.query("high < 0 and p_random <= 0.05")
    levers = list(hurts.query("more_low > 0")["set"])
    said = (
        f"Sets that lower the next token's log-probability at their own tokens beyond 19 random "
        f"sets: {', '.join(hurts['set']) or 'none'}; and more there than at the other classes': "
        f"{', '.join(levers) or 'none'}."
    )
    table = markdown(pd.DataFrame(cells[1:], columns=cells[0]))
    return (
        "On trial: at most ten neurons of each class, confirmed by association on training modules "
        "(the largest |r| first), mean-ablated at the token; effect on the log-probability of the "
        f"next one, in test modules.\n\n{table}\n\n{said}\n"
    )


def main() -> None:
    """Measures, prints, and keeps what was asked to be kept."""
    asked = arguments()
    found, concepts, trial, minutes = measured(asked.model, asked.parts, quick=asked.quick)
    print(found)
    for frame in (concepts, trial):
        if frame is not None:
            print(frame.to_string())
    print(f"{minutes:.1f} CPU minutes")
    if asked.save and not asked.quick:
        save(asked.model, found, concepts, trial, minutes)


if __name__ == "__main__":
    main()
