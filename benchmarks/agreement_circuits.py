"""How many MLP neurons carry an answer: the benchmark that papers on circuits report.

    python benchmarks/agreement_circuits.py --data FOLDER
    python benchmarks/agreement_circuits.py --data FOLDER --model Qwen/Qwen2.5-Coder-0.5B-Instruct
    python benchmarks/agreement_circuits.py --quick --model arithmetic-small --out runs/circuits

Neurons are ranked on some pairs of prompts and kept on others: every point of every curve is a
forward pass in which the strongest K are the model's own and all other MLP neurons carry a
corrupted value. ``FOLDER`` holds ``agreement_pairs`` (saprmarks/feature-circuits) and
``greater_than`` (hannamw/EAP-IG). Writes ``figures/circuits``: a page, figures, tables as CSV.
What is done is kept in ``runs/agreement_circuits``, and an interrupted run goes on from there.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from agreement_circuits_page import AGREEMENT, REACHED, write_page
from asked_model import add_model, opened, slug
from circuit_tasks import TASKS, Pairs
from torch import Tensor

import lens_skills as ls
from lens_skills.activations.locations import find_site
from lens_skills.circuits import GraphAreas
from lens_skills.circuits.kept_neurons import KeptNeurons, strongest
from lens_skills.circuits.paired_cache import paired_caches
from lens_skills.circuits.targets import AnswerTarget
from lens_skills.circuits.whole_graph import SHARES
from lens_skills.interventions.attribution import slopes_of
from lens_skills.models import as_adapter
from lens_skills.models.sublayers import ModelWeights
from lens_skills.ranking import rank
from lens_skills.ranking.path_methods import PathInputs, expected_changes
from lens_skills.stats.effect_tests import cluster_interval, ratio_interval

OUT, RUNS = Path("figures/circuits"), Path("runs/agreement_circuits")
BOTH_VALUES = ("simple", "sums")  # the twin's values too, where that costs one position
FEW = (1, 10, 30, 100)
DRAWS = 5
RESAMPLED = 2000


@dataclass(frozen=True)
class Sizes:
    """How many pairs: to rank on and to measure on, in agreement and in the other tasks."""

    rank: int
    test: int
    rank_others: int
    test_others: int


SIZES = Sizes(10, 30, 8, 30)
QUICK = Sizes(6, 9, 6, 9)


@dataclass(eq=False)
class Part:
    """One task on one model.

    Attributes:
        pairs: The task.
        by_position: Whether a unit is a neuron at a position, or a neuron at all of them.
        folder: Where what is finished lies.
    """

    pairs: Pairs
    by_position: bool
    folder: Path

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What was computed before, or is now; beside it the processor seconds."""
        path = self.folder / f"{name}.pt"
        if path.exists():
            return torch.load(path)["value"]
        began = time.process_time()
        value = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save({"value": value, "seconds": time.process_time() - began}, path)
        seconds = time.process_time() - began
        print(f"{self.pairs.name}: {name}, {seconds:.0f} s of processor time", flush=True)
        return value

    @property
    def seconds(self) -> float:
        """Processor time of all that is kept."""
        return sum(float(torch.load(path)["seconds"]) for path in self.folder.glob("*.pt"))


def scores_of(part: Part, model: Any) -> dict[str, Tensor]:
    """Each ranking's strength of every unit, ``[layer, column, neuron]``; one column for all."""
    pairs, adapter = part.pairs, as_adapter(model)
    site = find_site(adapter, "mlp.hook_post")
    columns = list(range(-pairs.n_columns, 0))
    inputs = PathInputs(adapter, list(pairs.rank), pairs.metric, site, columns)
    shape = (adapter.n_layers, 1, adapter.d_mlp)

    def expected(how: str) -> Tensor:
        change = expected_changes(inputs, how).double().mean(3)
        return (change if part.by_position else change.sum(1, keepdim=True)).abs()

    def slopes() -> dict[str, Tensor]:
        each = [
            slopes_of(adapter, inputs.examples, pairs.metric, site, position=at) for at in columns
        ]
        found = {}
        for name in ("taylor", "ablated"):
            table = torch.cat([getattr(one, name).view(shape) for one in each], dim=1)
            found[name] = (table if part.by_position else table.sum(1, keepdim=True)).abs()
        return found

    def correlation() -> Tensor:
        each = [
            rank(adapter.model, pairs.rank, pairs.label, method="pearson", position=at).strength
            for at in columns
        ]
        table = torch.cat([one.view(shape) for one in each], dim=1).double()
        return table if part.by_position else table.amax(1, keepdim=True)

    gradients = part.kept("slopes", slopes)
    return {
        "attribution": part.kept("attribution", lambda: expected("attribution")),
        "integrated_gradients": part.kept("integrated", lambda: expected("integrated_gradients")),
        "relevance": part.kept("relevance", lambda: expected("relevance")),
        "taylor": gradients["taylor"],
        "prediction": gradients["ablated"],
        "pearson": part.kept("pearson", correlation),
    }


def sizes_of(n_units: int, few: Sequence[int]) -> list[int]:
    """How many units are kept: a few, and MIB's shares of all."""
    shares = [int(share * n_units) for share in SHARES]
    return [*(k for k in few if k < shares[0]), *shares]


def measured(part: Part, model: Any, few: Sequence[int]) -> dict[str, Any]:
    """Every curve of a task: the metric of each size and example, by values and ranking."""
    pairs = part.pairs
    scores = scores_of(part, model)
    engines: dict[str, KeptNeurons] = {}

    def engine(values: Any) -> KeptNeurons:
        if not engines:
            weights = ModelWeights(as_adapter(model))
            engines["caches"] = paired_caches(weights, pairs.test, pairs.metric, pairs.n_columns)  # type: ignore[assignment]
        if values not in engines:
            caches, target = engines["caches"], AnswerTarget(pairs.metric)
            engines[values] = KeptNeurons(caches, target, values=values)  # type: ignore[arg-type]
        return engines[values]

    shape = next(iter(scores.values())).shape
    n_units = shape.numel()
    sizes = sizes_of(n_units, few)
    main = "mean" if part.by_position else "twin"
    ends = part.kept(
        "ends",
        lambda: {
            "whole": engine(main).whole(),
            **{
                values: engine(values).measure(torch.zeros(1, *shape, dtype=torch.bool))[0]
                for values in dict.fromkeys((main, "twin"))
            },
        },
    )
    found: dict[str, Any] = {
        "sizes": sizes, "n_units": n_units, "main": main, "ends": ends, "curves": {},
        "groups": [example.group for example in pairs.test],
    }  # fmt: skip

    def run(values: str, one: Tensor, complement: bool) -> Tensor:
        masks = strongest(one, sizes[:-1])
        return engine(values).measure(~masks if complement else masks)

    for name, one in scores.items():
        wanted = [(main, False)]
        if part.by_position:
            wanted += [(main, True), ("twin", False)][: 1 + (pairs.name in BOTH_VALUES)]
        for values, complement in wanted:
            key = f"{name}_{values}{'_complement' if complement else ''}"
            found["curves"][key] = part.kept(
                f"run_{key}",
                lambda v=values, o=one, c=complement: run(v, o, c),
            )
    for draw in range(DRAWS):
        generator = torch.Generator().manual_seed(draw)
        one = torch.rand(shape, generator=generator)
        key = f"random{draw}_{main}"
        found["curves"][key] = part.kept(f"run_{key}", lambda o=one: run(main, o, False))
    return found


def reach(
    moved: Tensor, gap: Tensor, groups: Sequence[str], sizes: Sequence[int], *, seed: int = 0
) -> tuple[float, float, float]:
    """The smallest size on the grid whose share is `REACHED`, and its 95 % interval.

    Groups are drawn with replacement and the curve is made anew of each draw. Beyond the grid: inf.
    """
    names = sorted(set(groups))
    codes = torch.tensor([names.index(group) for group in groups])
    sums = torch.zeros(len(moved) + 1, len(names), dtype=torch.float64)
    sums.index_add_(1, codes, torch.cat([moved, gap[None]]).double())
    random = np.random.default_rng(seed)
    weight = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLED)
    weights = torch.cat([torch.ones(1, len(names)), torch.from_numpy(weight)]).double()
    total = weights @ sums.T
    shares = total[:, :-1] / total[:, -1:]
    enough = shares >= REACHED
    first = enough.double().argmax(1)
    size = torch.tensor(sizes, dtype=torch.float64)[first]
    size[~enough.any(1)] = float("inf")
    drawn = np.sort(size[1:].numpy())
    low, high = drawn[int(0.025 * RESAMPLED)], drawn[int(0.975 * RESAMPLED) - 1]
    return float(size[0]), float(low), float(high)


def rows_of(name: str, found: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every point of a task's curves, and a line per ranking."""
    sizes, groups, ends = found["sizes"], found["groups"], found["ends"]
    points, lines = [], []
    drawn: dict[str, list[Tensor]] = {}
    for key, values in found["curves"].items():
        method, how, *rest = key.rsplit("_complement", 1)[0].rsplit("_", 1) + ["c"] * (
            "_complement" in key
        )
        empty, whole = ends[how], ends["whole"]
        gap = whole - empty
        full = torch.zeros_like(gap) if rest else gap
        moved = torch.cat([values - empty, full[None]])
        if method.startswith("random"):
            drawn.setdefault(how, []).append(moved)
            continue
        share = moved.sum(1) / gap.sum()
        low, high = ratio_interval(moved, gap.expand_as(moved), groups)
        what = "completeness" if rest else "faithfulness"
        for place, size in enumerate(sizes):
            points.append(
                {"task": name, "values": how, "what": what, "method": method, "size": size,
                 "value": float(share[place]), "low": float(low[place]),
                 "high": float(high[place])}
            )  # fmt: skip
        if not rest:
            lines.append(_line(name, how, method, found, moved, gap))
    for how, some in drawn.items():
        gap = ends["whole"] - ends[how]
        shares = torch.stack([one.sum(1) / gap.sum() for one in some])
        for place, size in enumerate(sizes):
            points.append(
                {"task": name, "values": how, "what": "faithfulness", "method": "random",
                 "size": size, "value": float(shares[:, place].mean()),
                 "low": float(shares[:, place].min()), "high": float(shares[:, place].max())}
            )  # fmt: skip
        each = [_line(name, how, "random", found, one, gap) for one in some]
        mean = {key: float(np.mean([one[key] for one in each])) for key in ("cpr", "cmd")}
        firsts = sorted(one["k"] for one in each)
        k = {"k": firsts[len(firsts) // 2], "k_low": firsts[0], "k_high": firsts[-1]}
        lines.append(each[0] | mean | k)
    return pd.DataFrame(points), pd.DataFrame(lines)


def _line(
    name: str, how: str, method: str, found: dict[str, Any], moved: Tensor, gap: Tensor
) -> dict[str, Any]:
    sizes, groups = found["sizes"], found["groups"]
    k, low, high = reach(moved, gap, groups, sizes)
    share = (moved.sum(1) / gap.sum()).tolist()
    at = [sizes.index(int(part * found["n_units"])) for part in SHARES]
    curve = GraphAreas(
        found["n_units"], SHARES, tuple(sizes[p] for p in at), tuple(share[p] for p in at)
    )
    return {"task": name, "values": how, "method": method, "k": k, "k_low": low, "k_high": high,
            "cpr": curve.cpr, "cmd": curve.cmd, "units": found["n_units"]}  # fmt: skip


def about(part: Part, found: dict[str, Any]) -> dict[str, Any]:
    """What the page says of a task beside its curves."""
    pairs, ends, groups = part.pairs, found["ends"], found["groups"]
    whole, empty = ends["whole"], ends[found["main"]]
    low, high = (float(end) for end in cluster_interval(whole - empty, groups))
    return {
        "name": pairs.name, "said": pairs.said, "label": pairs.label, "unit": pairs.metric.unit,
        "metric": pairs.metric.name, "n_rank": len(pairs.rank),
        "rank_groups": len(pairs.rank.groups),
        "n_test": len(pairs.test), "test_groups": len(set(groups)), "columns": pairs.n_columns,
        "by_position": part.by_position, "units": found["n_units"], "main": found["main"],
        "whole": float(whole.mean()), "empty": float(empty.mean()), "gap_low": low,
        "gap_high": high, "example": pairs.test[0].prompt, "twin": str(pairs.test[0].corrupted),
        "minutes": part.seconds / 60,
    }  # fmt: skip


def key_of(asked: argparse.Namespace, sizes: Sizes) -> str:
    """What a kept part depends on, in a few letters."""
    text = json.dumps([str(asked.model), vars(sizes)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def main() -> None:
    """The tasks that were asked for, then the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model(parser)
    parser.add_argument("--data", type=Path, help="the folder of the papers' pairs")
    parser.add_argument("--quick", action="store_true", help="a few sums: no measurement")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="only these")
    parser.add_argument("--rank", type=int, nargs=2, metavar="N",
                        help="pairs to rank on: agreement, others")  # fmt: skip
    parser.add_argument("--test", type=int, nargs=2, metavar="N", help="pairs to measure on")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--runs", type=Path, default=RUNS)
    asked = parser.parse_args()
    tasks = asked.tasks or (["sums"] if asked.quick else [name for name in TASKS if name != "sums"])
    if asked.data is None and tasks != ["sums"]:
        parser.error("--data FOLDER: the folder that holds agreement_pairs and greater_than")
    usual = QUICK if asked.quick else SIZES
    first, second = asked.rank or (usual.rank, usual.rank_others)
    third, fourth = asked.test or (usual.test, usual.test_others)
    sizes = Sizes(first, third, second, fourth)
    ls.config(progress=False)
    model, name = opened(asked.model), slug(asked.model)
    points, lines, facts = [], [], []
    for task in tasks:
        close = task in AGREEMENT
        n_rank, n_test = (
            (sizes.rank, sizes.test) if close else (sizes.rank_others, sizes.test_others)
        )
        pairs = TASKS[task](model, asked.data or Path(), n_rank, n_test)
        part = Part(pairs, close, asked.runs / f"{name}_{key_of(asked, sizes)}" / task)
        found = measured(part, model, FEW if close else FEW[1:2])
        own, line = rows_of(task, found)
        points.append(own)
        lines.append(line)
        facts.append(about(part, found))
    options = "" if asked.rank is None else f" --rank {first} {second}"
    options += "" if asked.test is None else f" --test {third} {fourth}"
    write_page(asked.out, name, options, asked.model, as_adapter(model).name,
               pd.concat(points), pd.concat(lines), facts)  # fmt: skip


if __name__ == "__main__":
    main()
