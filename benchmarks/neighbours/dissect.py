"""Do winners among like neurons suffice, and is the concept of a planted neuron found?

    python benchmarks/neighbours/dissect.py --save
    python benchmarks/neighbours/dissect.py --quick

`ls.dissect` on the arithmetic of arithmetic-small (all of the answer right; and the answer likelier
than its foil) and on the agreement of SmolLM2 (the verb likelier than its foil). Then neurons of
known function: in layer 3 of arithmetic-small one neuron is made to fire for a condition (seven
conditions in turn), and the bank also holds ten coins, which no neuron can know. Finished parts are
kept in ``runs/dissect``.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from kept_rows import kept_rows
from pictures import keep

import lens_skills as ls
from lens_skills.activations.activation_reader import read_neurons
from lens_skills.diagnostics import Dissection
from tests.planted import planted

RUNS = Path("runs/dissect")
RESULT = Path("benchmarks/results/neighbours_dissect.json")
PAGE = Path("figures/neighbours/dissect.md")
LAYER, NEURON = 3, 7
N_COINS = 10
PLANTED = {
    "the result is odd": lambda e: int(e.answer) % 2 == 1,
    "a is even": lambda e: e.covariates["operand_a"] % 2 == 0,
    "b ends in 0 to 4": lambda e: e.covariates["operand_b"] % 10 < 5,
    "a is below 50": lambda e: e.covariates["operand_a"] < 50,
    "the result is below 100": lambda e: int(e.answer) < 100,
    "the ones carry": lambda e: e.covariates["ones_a"] + e.covariates["ones_b"] > 9,
    "b is a multiple of 3": lambda e: e.covariates["operand_b"] % 3 == 0,
}


def trials(quick: bool) -> dict[str, dict[str, Any]]:
    """By name: the model, the task, and what `dissect` is asked."""
    arithmetic = ls.tasks.few(ls.tasks.arithmetic("+-", digits=2, n=800), 60 if quick else 480)
    draws = {"n_random": 1 if quick else 5}
    found: dict[str, dict[str, Any]] = {
        "arithmetic": {"model": "arithmetic-small", "task": arithmetic, "metric": "correct"} | draws
    }
    if not quick:
        found["arithmetic_foil"] = {"model": "arithmetic-small", "task": arithmetic} | draws
        agreement = ls.tasks.few(ls.tasks.agreement(n=240), 96)
        shares = (0.01, 0.04, 0.1)
        found["agreement"] = {"model": None, "task": agreement, "n_random": 2, "shares": shares}
    return found


def dissected(name: str, asked: dict[str, Any], seed: int) -> tuple[Dissection, float]:
    """A trial's result and its processor time in minutes, measured once."""
    folder = RUNS / f"{name}-{seed}"
    if not (folder / "result").exists():
        start = time.process_time()
        model = ls.load_model(asked["model"]) if asked["model"] else ls.load_model()
        options = {key: value for key, value in asked.items() if key not in ("model", "task")}
        found = ls.dissect(model, asked["task"], seed=seed, **options)
        found.save(folder / "result")
        minutes = (time.process_time() - start) / 60
        (folder / "minutes.json").write_text(json.dumps(minutes), encoding="utf-8")
    minutes = json.loads((folder / "minutes.json").read_text(encoding="utf-8"))
    return ls.load(folder / "result"), minutes


def plant_and_match(seed: int, conditions: dict[str, Any]) -> list[dict[str, Any]]:
    """What the planted neuron, and nineteen beside it, are matched to."""
    model = ls.load_model("arithmetic-small")
    task = ls.tasks.arithmetic("+", digits=2, n=700)
    known, rest = task.split(0.6, 0.4, seed=seed)
    random = np.random.default_rng(seed)
    coins = random.integers(0, 2, (N_COINS, len(task)))
    place = {e.id: number for number, e in enumerate(task)}
    extra = {f"coin {c}": lambda e, c=c: int(coins[c, place[e.id]]) for c in range(N_COINS)}
    tokens = [(e, model.to_tokens(e.prompt)[0].tolist()) for e in known]
    others = [f"L{LAYER}N{n}" for n in random.permutation(np.arange(20, 384))[:19].tolist()]
    rows = []
    for name, holds in conditions.items():
        positive = [row for e, row in tokens if holds(e)]
        negative = [row for e, row in tokens if not holds(e)]
        flag = {name: lambda e, holds=holds: int(holds(e))}
        bank = ls.feature_bank(rest, extra=extra | flag)
        with planted(model, LAYER, NEURON, positive, negative):
            found = ls.dissect(
                model, rest, bank, [f"L{LAYER}N{NEURON}", *others], shares=(0.04,),
                layers=[LAYER], metric="correct", n_random=1, seed=seed,
            )  # fmt: skip
            told = score_auc(model, rest, holds)
        table = found.frame()
        for measure in ("wpmi", "information"):
            own = table.iloc[0]
            coin = table.loc[(table[f"{measure}_p"] <= 0.05)
                             & table[measure].str.contains("coin"), measure]  # fmt: skip
            rows.append(
                {"planted": name, "auroc": told, "measure": measure, "matched": own[measure],
                 "p": float(own[f"{measure}_p"]), "found": own[measure] == name,
                 "coins": len(coin), "neurons": len(table)}
            )  # fmt: skip
    return rows


def score_auc(model: Any, task: ls.Task, holds: Any) -> float:
    """AUROC of the planted neuron's activation for its condition: whether planting worked."""
    values = read_neurons(model, task, [f"L{LAYER}N{NEURON}"], position="last").values
    return float(roc_auc_score([holds(e) for e in task], values[0].numpy()))


def kept_planted(seed: int) -> dict[str, Any]:
    def measure() -> dict[str, Any]:
        start = time.process_time()
        rows = plant_and_match(seed, PLANTED)
        return {"rows": rows, "minutes": (time.process_time() - start) / 60}

    return kept_rows(RUNS / f"planted-{seed}.json", measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--save", action="store_true", help="write the result, the page, the figure"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.quick:
        for trial in trials(quick=True).values():
            model = ls.load_model(trial.pop("model"))
            print(ls.dissect(model, trial.pop("task"), layers=[2, 3], **trial))
        return
    found = {}
    for name, trial in trials(quick=False).items():
        found[name] = dissected(name, trial, asked.seed)
        print(found[name][0], flush=True)
    matched = kept_planted(asked.seed)
    print(pd.DataFrame(matched["rows"]).to_string(index=False))
    if asked.save:
        from dissect_page import write

        write(found, matched, RESULT, PAGE, keep)


if __name__ == "__main__":
    main()
