"""Pruning to skill neurons: what is left of agreement when few neurons of the upper layers are.

    python benchmarks/neighbours/pruning.py --save     # two minutes of processor time
    python benchmarks/neighbours/pruning.py --quick    # a smoke run

The predecessor (arXiv 2211.07349) prunes a tuned model to the 2 % most predictive neurons of its
upper layers and keeps most of its accuracy. Here nothing is tuned: SmolLM2 tells subject-verb
agreement, neurons of its upper half are ranked on some nouns, and on other nouns all but the
strongest x % of them are held at their mean, at every token from the subject on. The mean of a
position is that over the corrupted twins, half of which are plural. Beside it as many random ones.
A noun of the other number stands between subject and verb: without it, in a smoke run of twelve
examples, none was lost whatever was pruned.
Finished steps are kept in ``runs/``, from which an interrupted run goes on.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "benchmarks" / "neighbours"))

from circuit_tasks import columns_of, usable  # noqa: E402
from instructions import PAGES, RESULTS, Kept  # noqa: E402

import lens_skills as ls  # noqa: E402
from lens_skills.circuits.kept_neurons import KeptNeurons  # noqa: E402
from lens_skills.circuits.paired_cache import paired_caches  # noqa: E402
from lens_skills.circuits.targets import AnswerTarget  # noqa: E402
from lens_skills.models import as_adapter  # noqa: E402
from lens_skills.models.sublayers import ModelWeights  # noqa: E402
from lens_skills.ranking import rank  # noqa: E402
from lens_skills.stats.effect_tests import cluster_interval  # noqa: E402

NAME = "pruning"
RUNS = Path("runs/neighbours") / NAME
METHODS = {"predictivity": "label:plural", "pearson": "label:plural", "taylor": "logit_diff"}
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25)
CLAIMED = 0.02
DRAWS = 3


def masks(strength: Tensor, shape: tuple[int, int], first: int) -> Tensor:
    """For each share the neurons that stay: all below layer ``first``, the strongest from it on."""
    layers, width = shape
    upper = strength.view(layers, width)[first:].flatten()
    order = upper.argsort(descending=True, stable=True)
    found = torch.ones(len(SHARES), layers, 1, width, dtype=torch.bool)
    for place, share in enumerate(SHARES):
        kept = torch.zeros(len(upper), dtype=torch.bool)
        kept[order[: round(share * len(upper))]] = True
        found[place, first:, 0] = kept.view(-1, width)
    return found


def one_length(model: Any, task: ls.Task) -> ls.Task:
    """The examples of the most frequent number of tokens: a position means the same in all."""
    adapter = as_adapter(model)
    lengths = [len(adapter.encode(example.prompt)) for example in task]
    common = Counter(lengths).most_common(1)[0][0]
    right = {e.id for e, length in zip(task, lengths, strict=True) if length == common}
    return task.where(lambda example: example.id in right)


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """The metric of every held-out example: whole, with no upper neuron, with each mask."""
    folder = RUNS / ("quick" if given.quick else f"n{given.n}_seed{given.seed}")
    kept = Kept(folder, given.until)
    model = ls.load_model()
    adapter = as_adapter(model)
    task = one_length(
        model, usable(model, ls.tasks.agreement(seed=given.seed, distractors=("different",)))
    )
    learn, held = task.split(0.5, 0.5, seed=given.seed, names=("ranked on", "held-out"))
    learn, held = (ls.tasks.few(part, given.n, seed=given.seed) for part in (learn, held))
    shape, first = (adapter.n_layers, adapter.d_mlp), adapter.n_layers // 2

    def ranked() -> dict[str, Tensor]:
        found = {
            name: rank(model, learn, metric, method=name).strength
            for name, metric in METHODS.items()
        }
        for draw in range(DRAWS):
            generator = torch.Generator().manual_seed(draw)
            found[f"random {draw + 1}"] = torch.rand(shape[0] * shape[1], generator=generator)
        return found

    strengths = kept("ranked", ranked)

    def run() -> dict[str, Tensor]:
        columns, _ = columns_of(model, held)
        metric = ls.logit_diff()
        caches = paired_caches(ModelWeights(adapter), list(held), metric, columns)
        engine = KeptNeurons(caches, AnswerTarget(metric), values="mean")
        none = torch.ones(1, shape[0], 1, shape[1], dtype=torch.bool)
        none[:, first:] = False
        found = {"whole": engine.whole()[None], "none": engine.measure(none)}
        for name, strength in strengths.items():
            print(f"pruned by {name} …", flush=True)
            found[name] = engine.measure(masks(strength, shape, first))
        return found

    return {
        "values": kept("values", run),
        "groups": [example.group for example in held],
        "n": (len(learn), len(held)),
        "first": first,
        "layers": shape[0],
        "upper": (shape[0] - first) * shape[1],
        "minutes": sum(kept.seconds.values()) / 60,
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Accuracy by share, and what predictivity keeps more than random at the claimed share."""
    right = {name: (one > 0).double() for name, one in found["values"].items()}
    chance = torch.stack([one for name, one in right.items() if name.startswith("random")]).mean(0)
    shown = {**{name: right[name] for name in METHODS}, "random": chance}
    rows = []
    for name, one in shown.items():
        low, high = cluster_interval(one, found["groups"])
        for place, share in enumerate(SHARES):
            rows.append({"panel": "agreement", "series": name, "x": 100 * share,
                         "value": float(one[place].mean()), "low": max(0.0, float(low[place])),
                         "high": min(1.0, float(high[place]))})  # fmt: skip
    at = SHARES.index(CLAIMED)
    more = {}
    for name in METHODS:
        values = right[name][at] - chance[at]
        low, high = cluster_interval(values, found["groups"])
        more[name] = (float(values.mean()), float(low), float(high))
    return {
        "rows": rows,
        "more": more,
        "at": {name: float(one[at].mean()) for name, one in shown.items()},
        "whole": float(right["whole"].mean()),
        "none": float(right["none"].mean()),
        **{key: found[key] for key in ("n", "first", "layers", "upper", "minutes")},
        "n_groups": len(set(found["groups"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the numbers, page and figure")
    parser.add_argument("--quick", action="store_true", help="a smoke run: few examples, no result")
    parser.add_argument("--n", type=int, default=36, help="examples of either half")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--until", metavar="STEP", help="stop after this step; the next run goes on"
    )
    given = parser.parse_args()
    if given.quick and given.save:
        raise SystemExit("a smoke run is no measurement: --quick and --save do not go together")
    if given.quick:
        given.n = 12
    ls.config(progress=False)
    numbers = summary(measured(given))
    print(json.dumps({key: value for key, value in numbers.items() if key != "rows"}, indent=1))
    if given.save:
        from pruning_page import write

        write(numbers, given.seed, RESULTS, PAGES)


if __name__ == "__main__":
    main()
