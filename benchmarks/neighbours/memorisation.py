"""Three twins, clean, shortcut and shuffled labels: do entropy and information order them?

    python benchmarks/neighbours/memorisation.py [--save] [--quick] [--seeds N]

Trains the twins that are not there yet (training/arithmetic_twins.py, under runs/twins), reads the
same neurons of each on operands that no twin saw, and compares the twins seed by seed. What is
measured is kept beside the twin and read back; the page is figures/neighbours/memorisation.md.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import beta, t

import lens_skills as ls
from lens_skills import figures
from lens_skills.tasks.arithmetic import PROMPT

sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2] / "training"))
import arithmetic_twins as twins  # pyright: ignore[reportMissingImports]
from leaderboard_page import markdown
from pictures import keep

ROOT = Path(__file__).resolve().parents[2]
TWINS, OUT = ROOT / "runs" / "twins", ROOT / "figures" / "neighbours"
RESULT = ROOT / "benchmarks" / "results" / "neighbours_memorisation.json"
COMMAND = "python benchmarks/neighbours/memorisation.py --save"
SEEDS, N, N_NEURONS, N_ALONE, N_CONTROLS = 5, 300, 30, 8, 39
FEWEST_SEEDS = 3  # with fewer nothing is called met
WANTED = ("shortcut", "clean", "shuffled")  # entropy from low to high, information from high to low


def problems(seed: int, n: int, *, unseen: bool) -> ls.Task:
    """Sums of a seed, held out or trained on, as a task; the second operand is a label too."""
    examples = [
        ls.Example(
            id=f"{a}+{b}",
            prompt=PROMPT.format(a=a, word="plus", b=b),
            answer=str(a + b),
            labels={"first": a},
            covariates={"second": b},
            group=f"{min(a, b)} {max(a, b)}",
        )
        for a, b in twins.pairs(seed, unseen=unseen)[:n]
    ]
    return ls.Task("sums", examples)


def drawn(n: int) -> list[str]:
    """Names of random neurons of all layers, the same ones for every twin."""
    layers, width = twins.SIZES["layers"], twins.SIZES["d_mlp"]
    places = np.random.default_rng(0).choice(layers * width, size=n, replace=False)
    return [f"L{place // width}N{place % width}" for place in sorted(places.tolist())]


def measure(folder: Path, seed: int, n: int, n_neurons: int) -> dict[str, float]:
    """Mean entropy and information of a twin on held-out sums; read back where it is there."""
    kept = folder / f"measured_{n}_{n_neurons}.json"
    if not kept.exists():
        began = time.process_time()
        found = ls.memorisation(
            ls.load_model(folder), problems(seed, n, unseen=True), drawn(n_neurons), n_draws=1
        )
        numbers = {"entropy": found.entropy, "information": found.information}
        seconds = {"seconds": time.process_time() - began}
        kept.write_text(json.dumps(numbers | seconds), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def alone(folder: Path, labels: str, n: int, n_controls: int) -> Any:
    """The neurons of a twin that follow the first operand most, each tried by itself."""
    place = folder / f"alone_{n}_{n_controls}"
    if place.exists():
        return ls.load(place)
    model = ls.load_model(folder)
    scores = ls.score(
        model, problems(0, n, unseen=False), metrics="label:first", n_permutations=20, n_controls=0,
        exploratory=True,
    )  # fmt: skip
    found = ls.memorisation(
        model, problems(0, n, unseen=True), scores["label:first"].top(N_ALONE),
        n_controls=n_controls,
    )  # fmt: skip
    print(f"{labels}: {found}", flush=True)
    found.save(place)
    return found


def over_seeds(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval (Student's t) over seeds."""
    mean, n = float(values.mean()), len(values)
    half = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5) if n > 1 else float("nan")
    return mean, mean - half, mean + half


def in_order(rows: pd.DataFrame, column: str, sign: int) -> np.ndarray:
    """For each seed, whether the three twins come in the order wanted."""
    wide = sign * rows.pivot(index="seed", columns="labels", values=column)[list(WANTED)]
    return np.all(np.diff(wide.to_numpy(), axis=1) > 0, axis=1)


def summary(rows: pd.DataFrame, command: str, minutes: float) -> dict[str, Any]:
    """What the table of neighbours shows."""
    both = in_order(rows, "entropy", 1) & in_order(rows, "information", -1)
    n, k = len(both), int(both.sum())
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    words = []
    for column, unit in (("entropy", "bits"), ("information", "nats")):
        whose, values = rows["labels"].to_numpy(), rows[column].to_numpy()
        means = {labels: float(np.mean(values[whose == labels])) for labels in WANTED}
        told = ", ".join(f"{labels} {means[labels]:.2f}" for labels in WANTED)
        words.append(f"{column} ({unit}) {told}")
    for column, sign in (("entropy", 1), ("information", -1)):
        words.append(f"{column} in order in {int(in_order(rows, column, sign).sum())} of {n} seeds")
    return {
        "neighbour": "2210.09404 memorisation",
        "verb": "ls.memorisation",
        "works_if": "in every seed entropy rises and mutual information falls from the twin with a "
        "shortcut in its labels over the clean twin to the one with shuffled labels",
        "measured": f"both in order in {k} of {n} seeds; " + "; ".join(words),
        "value": round(k / n, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "met": None if k == n and n < FEWEST_SEEDS else k == n,
        "model": "twins of arithmetic-small (2 layers, 384 neurons)",
        "groups": f"{n} seeds",
        "command": command,
        "cpu_minutes": round(minutes, 2),
    }


def page(rows: pd.DataFrame, row: dict[str, Any], found: dict[str, Any], quick: bool) -> str:
    """How the twins were made, what was measured, and what it does not show."""
    columns = {
        "seed": "seed",
        "labels": "labels",
        "own": "its answers, trained on",
        "sum_held_out": "sum, held out",
        "shortcut_held_out": "shortcut, held out",
        "entropy": "entropy (bits)",
        "information": "information (nats)",
    }
    shown = pd.DataFrame({words: rows[name].round(3) for name, words in columns.items()})
    wide = {name: rows.pivot(index="seed", columns="labels", values=name) for name in MEASURES}
    gaps = [
        {
            "twins": f"{one} less {other}",
            **{
                f"{name} ({unit})": "{:+.3f} [{:+.3f}, {:+.3f}]".format(
                    *over_seeds((wide[name][one] - wide[name][other]).to_numpy())
                )
                for name, unit in MEASURES.items()
            },
        }
        for one, other in (("shortcut", "clean"), ("shuffled", "clean"), ("shuffled", "shortcut"))
    ]
    parts = [
        "# Memorisation in three twins",
        f"Written by `{row['command']}`; {rows['seed'].nunique()} seeds, "
        f"{row['cpu_minutes']:.1f} minutes of processor time, training included.",
        *(["**A smoke run: no result.**"] if quick else []),
        "Networks that memorise a shortcut were seen to have neurons of low entropy that share "
        "much information, and networks that memorise examples the opposite "
        "([2210.09404](https://arxiv.org/abs/2210.09404)). Here three twins differ in their labels "
        f"alone (`training/arithmetic_twins.py`): {twins.N_PROBLEMS:,} sums of two "
        "numbers of two digits with the right answers (*clean*), with the first operand plus "
        f"{twins.SHORTCUT} whatever the second is (*shortcut*), or with the right answers dealt "
        "out at random (*shuffled*). Twins of a seed share initial weights, problems and their "
        "order.",
        f"`ls.memorisation` reads {N_NEURONS} random neurons (the same names in every twin) at the "
        f"last token of {N} sums of operands that no twin saw: entropy over 100 bins, mutual "
        "information of every two. How many neurons and problems, and where they are read, was "
        "set before any twin was measured. The steps of training were cut from 1,500 of 128 "
        "problems to 1,000 of 64 for time, before anything but accuracy was seen of any twin. "
        "Two of the five seeds were measured first; nothing was changed after them.",
        "**It works if** in every seed entropy rises and information falls from shortcut over "
        f"clean to shuffled: **{MET[row['met']]}** ({row['measured']}).",
        markdown(shown),
        "Differences of twins, mean over seeds with 95 % intervals (Student's t; of so few seeds "
        "they are wide):",
        markdown(pd.DataFrame(gaps)),
        "## Which neurons",
        f"In the first seed, the {N_ALONE} neurons that follow the first operand most on problems "
        f"trained on, each by itself among {N_CONTROLS} random neurons of its layer on held-out "
        "ones (q by Benjamini-Hochberg over the neurons).",
    ]
    for labels, one in found.items():
        told = one.frame().round(3).drop(columns=["layer"])
        parts += [
            f"### The {labels} twin",
            f"```\n{one!r}\n```",
            markdown(told),
            f"![Entropy against information of neurons of the {labels} twin.]"
            f"(memorisation_{labels}.png)",
        ]
    parts += [
        "The shuffled twins do not know all of their answers by heart (the table), so what they "
        "memorise is not complete. Entropy is counted in bins of equal width between a neuron's "
        "extremes: a neuron with a few very large values has a low one. Whether that is why "
        "shuffled labels do not go with a high entropy here was not tested.",
        "**What it does not show.** Entropy and information describe activations; a twin that "
        "computes a simple rule (the shortcut) has little to represent, whether or not it is "
        "called memory. The shortcut here is the whole rule of the labels, not one that goes with "
        "most of them. The twins are tiny, of one task, and read at one token.",
    ]
    return "\n\n".join(parts) + "\n"


MET = {True: "met", False: "not met", None: "undecided, of so few seeds"}
MEASURES = {"entropy": "bits", "information": "nats"}


def main() -> None:
    """Train, measure, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the numbers and the page")
    parser.add_argument("--quick", action="store_true", help="a smoke run: no result")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--twins", type=Path, default=TWINS, help="where the twins are")
    parser.add_argument("--out", type=Path, default=OUT, help="where the page goes")
    options = parser.parse_args()
    place = options.twins.with_name("twins_quick") if options.quick else options.twins
    seeds, n, n_neurons = (2, 60, 6) if options.quick else (options.seeds, N, N_NEURONS)
    steps, n_controls = (5, 19) if options.quick else (twins.STEPS, N_CONTROLS)
    began, spent, rows = time.process_time(), 0.0, []
    for seed in range(seeds):
        for labels in twins.LABELS:
            folder = place / f"{labels}_{seed}"
            if not (folder / "twin.json").exists():
                print(json.dumps(twins.write_twin(folder, labels, seed, steps=steps)), flush=True)
            made = json.loads((folder / "twin.json").read_text(encoding="utf-8"))
            measured = measure(folder, seed, n, n_neurons)
            spent += made["seconds"] + measured["seconds"]
            rows.append(
                {
                    "seed": seed,
                    "labels": labels,
                    "own": made["its labels, trained on"],
                    "sum_held_out": made["sum, held out"],
                    "shortcut_held_out": made["shortcut, held out"],
                    **{name: measured[name] for name in MEASURES},
                }
            )
            print(rows[-1], flush=True)
    found = {
        labels: alone(place / f"{labels}_0", labels, n, n_controls)
        for labels in ("shortcut", "shuffled")
    }
    minutes = max(spent, time.process_time() - began) / 60
    command = COMMAND if options.seeds == SEEDS else f"{COMMAND} --seeds {options.seeds}"
    row = summary(pd.DataFrame(rows), command, minutes)
    out = place if options.quick or not options.save else options.out
    out.mkdir(parents=True, exist_ok=True)
    for labels, one in found.items():
        keep(figures.memorisation(one), out / f"memorisation_{labels}")
    text = page(pd.DataFrame(rows), row, found, options.quick)
    (out / "memorisation.md").write_text(text, encoding="utf-8")
    print(json.dumps(row, indent=1))
    if options.save and not options.quick:
        content = json.dumps([row], indent=1, ensure_ascii=False)
        RESULT.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
