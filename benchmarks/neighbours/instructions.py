"""Instructions with several tasks: type neurons at the verb and at the argument of each task.

    python benchmarks/neighbours/instructions.py --save     # three minutes of processor time
    python benchmarks/neighbours/instructions.py --quick    # a smoke run of arithmetic-small

After arXiv 2310.15605, which trains a sequence model to read the tasks of an instruction and their
arguments nestedly; here the neurons of a language model are read, and nothing but logistic probes
is trained. Half of the households (verbs, things, names, places and templates that no other has)
rank the neurons and train the probes, the other half tests them. Asked are: how many neurons per
type reach the F1 of all; how well they decode the type first and then its argument; and whether
taking them out at the argument hurts the answer more than taking them out at a matched thing of the
same sentence. Finished steps are kept in ``runs/``, from which an interrupted run goes on.
"""

import argparse
import json
import pickle
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import lens_skills as ls  # noqa: E402
from lens_skills.activations.activation_reader import ActivationReader  # noqa: E402
from lens_skills.activations.components import parse_components  # noqa: E402
from lens_skills.diagnostics.sparse_probe import performance, ranking  # noqa: E402
from lens_skills.interventions.control_neurons import random_neurons  # noqa: E402
from lens_skills.interventions.effects import measure_effects  # noqa: E402
from lens_skills.models import as_adapter  # noqa: E402
from lens_skills.stats.effect_tests import cluster_interval  # noqa: E402

NAME = "instructions"
RESULTS, PAGES = ROOT / "benchmarks" / "results", ROOT / "figures" / "neighbours"
RUNS = Path("runs/neighbours") / NAME
SPOTS = ("verb", "argument")
KS = (1, 2, 4, 8, 16, 32, 128)
FEW = 8
DRAWS = 5
RESAMPLED = 2000
MOST_ABLATED = 48
LARGE = 64
RANDOM_SETS = 2


@dataclass
class Read:
    """Activations of a task's rows at both spans, and what is known of the rows.

    Attributes:
        values: Of each span, in standard deviations of the rows that learn.
        learn: Of each row, whether it trains.
        frame: The task's columns.
    """

    values: dict[str, Tensor]
    learn: np.ndarray
    frame: pd.DataFrame
    width: int


def read(model: Any, learn: ls.Task, held: ls.Task) -> Read:
    """One pass over the instructions without their questions, which come after both spans."""
    rows = [
        replace(example, prompt=example.prompt.partition(" The thing to ")[0], corrupted=None)
        for example in [*learn, *held]
    ]
    reader = ActivationReader(model, rows, position=[ls.span(column=name) for name in SPOTS])
    n_units = len(reader.layer)
    values = torch.zeros(len(rows), len(SPOTS) * n_units)
    for batch in reader.batches():
        values[batch.index] = reader.rows(batch)[0].float().cpu()
    training = np.arange(len(rows)) < len(learn)
    found = {}
    for place, name in enumerate(SPOTS):
        part = values[:, place * n_units : (place + 1) * n_units].double()
        own = part[: len(learn)]
        mean, spread = own.mean(0), own.std(0, correction=0)
        flat = spread <= 1e-9 * part.abs().amax(0)
        scaled = torch.where(flat, 0.0, (part - mean) / spread.clamp(min=1e-300))
        found[name] = scaled.T.float()
    frame = pd.concat([learn.frame(), held.frame()], ignore_index=True)
    return Read(found, training, frame, reader.width)


def whole(values: Tensor, learn: np.ndarray) -> np.ndarray:
    """All neurons in as many coordinates as rows: a ridge-penalised probe is the same in either.

    A solution is a combination of the training rows, so it is told from their inner products.
    """
    train = values[:, learn].double().numpy()
    gram = train.T @ train
    size, axes = np.linalg.eigh(gram)
    used = size > size[-1] * 1e-10
    basis = axes[:, used] / np.sqrt(size[used])
    return (values.double().numpy().T @ train) @ basis


def probe(columns: np.ndarray, truth: np.ndarray, learn: np.ndarray) -> np.ndarray:
    """Log-odds of every row by logistic regression on the rows that learn; classes weigh alike."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(class_weight="balanced", max_iter=2000)
    return fitted.fit(columns[learn], truth[learn]).decision_function(columns)


def probes(found: Read, types: Sequence[str], label: str = "type") -> dict[str, Any]:
    """Log-odds of each type at each span by the k best neurons, by all, and by random ones."""
    scores: dict[str, dict[Any, np.ndarray]] = {}
    best: dict[str, dict[str, list[int]]] = {}
    random = np.random.default_rng(0)
    n_units = len(found.values[SPOTS[0]])
    drawn = [random.choice(n_units, FEW, replace=False) for _ in range(DRAWS)]
    truths = [(found.frame[label] == name).to_numpy() for name in types]
    for spot, values in found.values.items():
        everything = whole(values, found.learn)
        rows: dict[Any, list[np.ndarray]] = {k: [] for k in (*KS, "all", *range(-DRAWS, 0))}
        best[spot] = {}
        for name, truth in zip(types, truths, strict=True):
            learn = torch.from_numpy(found.learn)
            order = ranking(values[:, learn].double(), torch.tensor(truth)[learn])
            best[spot][name] = order[: max(KS)].tolist()
            for k in KS:
                columns = values[order[:k]].double().numpy().T
                rows[k].append(probe(columns, truth, found.learn))
            rows["all"].append(probe(everything, truth, found.learn))
            for draw, places in enumerate(drawn):
                columns = values[places].double().numpy().T
                rows[-1 - draw].append(probe(columns, truth, found.learn))
        scores[spot] = {k: np.stack(one) for k, one in rows.items()}
    return {"scores": scores, "best": best}


def f1_of(said: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """F1 over the last axis."""
    return 2 * (said & truth).sum(-1) / np.maximum(said.sum(-1) + truth.sum(-1), 1)


def resampled(
    statistic: Callable[[np.ndarray], float], groups: Sequence[str], *, seed: int = 0
) -> tuple[float, float, float]:
    """A statistic of weighted rows with its 95 % interval: groups drawn with replacement.

    Percentiles of the draws; they are too narrow where groups are few, which the page says.
    """
    names = sorted(set(groups))
    codes = np.array([names.index(group) for group in groups])
    random = np.random.default_rng(seed)
    draws = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLED)
    drawn = [statistic(draw[codes].astype(float)) for draw in draws]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return statistic(np.ones(len(codes))), float(low), float(high)


def macro(said: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> float:
    """Mean over types of F1 with weighted rows."""
    hits = ((said & truth) * weight).sum(-1)
    size = ((said.astype(float) + truth) * weight).sum(-1)
    return float(np.mean(2 * hits / np.maximum(size, 1e-12)))


def sparse(found: Read, made: Mapping[str, Any], types: Sequence[str]) -> dict[str, Any]:
    """F1 against k with intervals, and what k = `FEW` keeps of all."""
    held = ~found.learn
    frame = found.frame[held]
    groups = frame["group"].tolist()
    truth = np.stack([(frame["type"] == name).to_numpy() for name in types])
    rows, kept, ones = [], {}, np.ones(len(groups))
    for spot, scores in made["scores"].items():
        said = {k: one[:, held] > 0 for k, one in scores.items()}
        for k in (*KS, "all"):
            for name, score, yes in zip(types, scores[k][:, held], truth, strict=True):
                point = performance(torch.tensor(score), torch.tensor(yes), groups)["f1"]
                rows.append({"panel": spot, "series": name, "k": k, "value": point.value,
                             "low": point.low, "high": point.high})  # fmt: skip
        kept[spot] = {
            "ratio": resampled(
                lambda weight, said=said: macro(said[FEW], truth, weight)
                / macro(said["all"], truth, weight),
                groups,
            ),
            **{str(k): macro(said[k], truth, ones) for k in (*KS, "all")},
            "random": float(np.mean([
                macro(said[draw], truth, ones) for draw in range(-DRAWS, 0)
            ])),
        }  # fmt: skip
    return {"rows": rows, "kept": kept, "n_held": len(groups), "n_groups": len(set(groups))}


def within_verb(
    found: Read, made: Mapping[str, Any], shuffled: Mapping[str, Any], types: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Macro F1 on held-out phrases that begin with a shared verb: true types, and shuffled ones."""
    rows = ~found.learn & (found.frame["light"] == 1).to_numpy()
    result: dict[str, dict[str, float]] = {"n": {"rows": float(rows.sum())}}
    for label, one in (("type", made), ("shuffled", shuffled)):
        truth = np.stack([(found.frame[label] == name).to_numpy() for name in types])[:, rows]
        for spot, scores in one["scores"].items():
            result.setdefault(spot, {}).update(
                {f"{label}_{k}": macro(scores[k][:, rows] > 0, truth, np.ones(rows.sum()))
                 for k in (FEW, "all")}
            )  # fmt: skip
    return result


def decoded(found: Read, made: Mapping[str, Any], types: Sequence[str], k: Any) -> pd.DataFrame:
    """The nested reading of every held-out instruction by probes on k neurons.

    At each verb the type of the largest log-odds; then, of the things of the sentence, the one
    where that type's probe at arguments is largest. One row per pair that is said or true.
    """
    held = np.flatnonzero(~found.learn)
    frame = found.frame
    at_verb, at_argument = (made["scores"][spot][k] for spot in SPOTS)
    pairs = []
    keys = frame.loc[held, "instruction"]
    for _, rows in pd.Series(held, index=held).groupby(keys.to_numpy()):
        places = rows.to_numpy()
        true = {(frame["type"][row], frame["argument"][row]) for row in places}
        said = set()
        for row in places:
            kind = int(at_verb[:, row].argmax())
            thing = places[at_argument[kind, places].argmax()]
            said.add((types[kind], frame["argument"][thing]))
        first = frame.loc[places[0]]
        for pair in true | said:
            pairs.append({"group": first["group"], "n_tasks": int(first["n_tasks"]),
                          "said": pair in said, "true": pair in true})  # fmt: skip
    return pd.DataFrame(pairs)


def nested(found: Read, made: Mapping[str, Any], types: Sequence[str]) -> dict[str, Any]:
    """F1 of pairs (type, argument) by `FEW` neurons and by all, and their ratio."""
    result: dict[str, Any] = {}
    tables = {k: decoded(found, made, types, k) for k in (FEW, "all", -1)}

    def f1(table: pd.DataFrame, weight: Mapping[str, float]) -> float:
        rows = np.array([weight[group] for group in table["group"]])
        hits = (rows * (table["said"] & table["true"])).sum()
        return float(2 * hits / (rows * (table["said"].astype(int) + table["true"])).sum())

    groups = sorted(set(tables[FEW]["group"]))
    for k, table in tables.items():
        result[str(k)] = resampled(
            lambda weight, table=table: f1(table, dict(zip(groups, weight, strict=True))), groups
        )
        for n, part in table.groupby("n_tasks"):
            result[f"{k}_{n}"] = f1(part, dict.fromkeys(groups, 1.0))

    def ratio(weight: np.ndarray) -> float:
        weights = dict(zip(groups, weight, strict=True))
        return f1(tables[FEW], weights) / f1(tables["all"], weights)

    result["ratio"] = resampled(ratio, groups)
    return result


def by_layer(found: Read, types: Sequence[str]) -> list[dict[str, Any]]:
    """Held-out |r| of the neuron that each layer has most of on the rows that learn."""
    rows = []
    for spot, values in found.values.items():
        for name in types:
            truth = torch.tensor((found.frame["type"] == name).to_numpy()).float()
            learn = torch.from_numpy(found.learn)
            r = {}
            for key, part in (("learn", learn), ("held", ~learn)):
                x = values[:, part] - values[:, part].mean(1, keepdim=True)
                y = truth[part] - truth[part].mean()
                size = x.norm(dim=1) * y.norm()
                r[key] = torch.where(size > 0, (x @ y) / size.clamp(min=1e-12), 0.0)
            layers = {key: one.view(-1, found.width) for key, one in r.items()}
            best = layers["learn"].abs().argmax(1)
            for layer, place in enumerate(best.tolist()):
                sign = float(layers["learn"][layer, place].sign())
                rows.append({"panel": name, "series": f"at the {spot}", "x": layer,
                             "value": sign * float(layers["held"][layer, place])})  # fmt: skip
    return rows


def ablated(
    model: Any, held: ls.Task, made: Mapping[str, Any], width: int, few: int
) -> dict[str, Any]:
    """The log-odds of the argument over the foil, with neurons taken out at one thing or another.

    The matched thing is the third of the sentence: neither the answer nor the foil.
    """
    adapter = as_adapter(model)
    task = ls.tasks.few(held.where(n_tasks=3), few)
    places = made["best"]["argument"]
    sets = {}
    for k in (FEW, LARGE):
        units = sorted({place for order in places.values() for place in order[:k]})
        sets[f"{k} per type"] = [divmod(unit, width) for unit in units]
    named = torch.tensor(sets[f"{FEW} per type"])
    for draw in range(RANDOM_SETS):
        drawn = random_neurons(named, len(named), width=width, seed=draw)
        sets[f"random {draw + 1}"] = [tuple(row) for row in drawn.tolist()]
    units = [tuple(parse_components(adapter, rows)) for rows in sets.values()]
    total, clean = {}, torch.zeros(0)
    for spot in ("argument", "matched"):
        found = measure_effects(
            adapter, task, units, ls.ablate("mean", over=task), metric="logit_diff",
            position=ls.span(column=spot), names=list(sets),
        )  # fmt: skip
        total[spot], clean = found.total, found.clean
    groups = [example.group for example in task]
    result: dict[str, Any] = {
        "n": len(task), "groups": len(set(groups)), "clean": float(clean.mean()),
        "right": float((clean > 0).double().mean()), "sets": {},
    }  # fmt: skip
    hurt = {spot: -one for spot, one in total.items()}
    for place, (name, rows) in enumerate(sets.items()):
        more = hurt["argument"][place] - hurt["matched"][place]
        entry: dict[str, Any] = {"neurons": len(rows)}
        for key, values in (
            ("argument", hurt["argument"][place]),
            ("matched", hurt["matched"][place]),
            ("more", more),
        ):
            low, high = cluster_interval(values, groups)
            entry[key] = (float(values.mean()), float(low), float(high))
        result["sets"][name] = entry
    return result


class Kept:
    """Finished steps on disk, and the processor time of each; after ``last`` it stops."""

    def __init__(self, folder: Path, last: str | None = None) -> None:
        self.folder, self.last, self.seconds = folder, last, dict[str, float]()
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        path = self.folder / f"{name}.pkl"
        if not path.exists():
            print(f"{name} …", flush=True)
            start = time.process_time()
            made = make()
            part = path.with_suffix(".part")
            part.write_bytes(pickle.dumps((made, time.process_time() - start)))
            part.replace(path)
            if name == self.last:
                raise SystemExit(f"{name} is kept; the next run goes on from it")
        made, self.seconds[name] = pickle.loads(path.read_bytes())
        return made


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Every step's numbers."""
    folder = RUNS / ("quick" if given.quick else f"n{given.n}_seed{given.seed}")
    kept = Kept(folder, given.until)
    task = ls.tasks.instructions(given.n, seed=given.seed)
    learn, held = task.split(0.5, 0.5, seed=given.seed, names=("learn", "held-out"))
    model = ls.load_model("arithmetic-small") if given.quick else ls.load_model()
    types = sorted(set(task.column("type").tolist()))
    found: Read = kept("activations", lambda: read(model, learn, held))
    made = kept("probes", lambda: probes(found, types))
    shuffled = kept("shuffled", lambda: probes(found, types, "shuffled"))
    return {
        "sparse": kept("sparse", lambda: sparse(found, made, types)),
        "within_verb": kept("within_verb", lambda: within_verb(found, made, shuffled, types)),
        "nested": kept("nested", lambda: nested(found, made, types)),
        "by_layer": kept("by_layer", lambda: by_layer(found, types)),
        "ablated": None
        if given.no_ablation
        else kept("ablated", lambda: ablated(model, held, made, found.width, given.ablated)),
        "units": len(found.values[SPOTS[0]]),
        "minutes": sum(kept.seconds.values()) / 60,
        "n": (len(learn), len(held)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--save", action="store_true", help="keep the numbers, the page, the figures"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run: few examples, no result")
    parser.add_argument("--n", type=int, default=360, help="examples of the task")
    parser.add_argument(
        "--ablated", type=int, default=MOST_ABLATED, help="examples of the ablation"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-ablation", action="store_true", help="leave the ablation out")
    parser.add_argument(
        "--until", metavar="STEP", help="stop after this step; the next run goes on"
    )
    given = parser.parse_args()
    if given.quick and given.save:
        raise SystemExit("a smoke run is no measurement: --quick and --save do not go together")
    if given.quick:
        given.n, given.ablated = 216, 12
    ls.config(progress=False)
    numbers = measured(given)
    print(
        json.dumps({k: v for k, v in numbers.items() if k not in ("by_layer", "sparse")}, indent=1)
    )
    print(json.dumps(numbers["sparse"]["kept"], indent=1))
    if given.save:
        from instructions_page import write

        write(numbers, given.seed, RESULTS, PAGES)


if __name__ == "__main__":
    main()
