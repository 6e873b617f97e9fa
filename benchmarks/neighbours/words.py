"""Explanations in words: does a sentence say on which unseen texts a neuron fires?

    python benchmarks/neighbours/words.py --save     # about two minutes of processor time
    python benchmarks/neighbours/words.py --quick    # seconds, on less

Two neurons' worth of truth and two of trial. *Planted*: ten neurons of ``arithmetic-small`` are
made to fire on a feature (two of them on two features at once) and ten decoys on a coin of each
example, over three splits: the planted ones must get their features back, the decoys no sentence
that beats shuffled ones. *Found*: neurons that `score` and `select` find for a label, carrying in
``arithmetic-small`` and plural subjects in SmolLM2, described on a third split.

The describer and the judge are the feature bank. Written down before any run: a planted feature is
back where the judge's yes on the held-out texts is exactly the planted one; ten features and ten
coins were named here, none was exchanged; the claim holds of found neurons where more than half
have an interval above 95 % of either null (by Wilson's interval of that share).

What is done lies in ``runs/neighbours_words``, and an interrupted run goes on from there. Writes
``figures/neighbours/words.md`` with its figures, and ``benchmarks/results/neighbours_words.json``.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd

sys.path += [str(Path(__file__).resolve().parents[k]) for k in (1, 2)]  # benchmarks, and tests
from pictures import keep

import lens_skills as ls
from lens_skills.data import Example
from lens_skills.explanation import Explanations
from lens_skills.models import as_adapter
from lens_skills.stats.intervals import share_interval, wilson_interval
from lens_skills.tasks import Task
from tests.planted import planted, separating_direction

NAME = "neighbours_words"
ROOT = Path(__file__).resolve().parents[2]
PAGE, RESULT = ROOT / "figures/neighbours/words.md", ROOT / f"benchmarks/results/{NAME}.json"
RUNS = ROOT / "runs" / NAME
COMMAND = "python benchmarks/neighbours/words.py --save"
PAPER = "2310.10708 explanations in words"
LAYER, SEEDS, OTHERS = 1, (0, 1, 2), 99
FEATURES = (
    ("an operand is 5",),
    ("an operand is 0",),
    ("a is 7",),
    ("a is 2",),
    ("b is 3",),
    ("b is 8",),
    ("the operation is plus",),
    ("the operation is times",),
    ("the operation is plus", "an operand is 5"),
    ("the operation is times", "a is 2"),
)
COIN = 0.25  # of the examples a decoy fires on
MOST = 12  # neurons that are described, those of the largest |r|


def main() -> None:
    """All parts, then the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--save", action="store_true", help="write the page and the rows")
    parser.add_argument("--quick", action="store_true", help="one split, small models, kept apart")
    asked = parser.parse_args()
    folder = RUNS / ("quick" if asked.quick else "whole")
    seeds = SEEDS[:1] if asked.quick else SEEDS
    parts: dict[str, Callable[[], Explanations]] = {
        f"planted_{seed}": lambda seed=seed: plant_and_describe(seed, 150 if asked.quick else None)
        for seed in seeds
    }
    parts["arithmetic"] = lambda: describe_found(
        "arithmetic-small",
        ls.tasks.arithmetic("+-", digits=2, n=400 if asked.quick else 1500),
        "label:carry",
    )
    if not asked.quick:
        parts["agreement"] = lambda: describe_found(None, ls.tasks.agreement(n=240), "label:plural")
    found, minutes = {}, {}
    for name, make in parts.items():
        found[name], minutes[name] = kept(folder / name, make)
        print(f"\n{name}, {minutes[name]:.1f} minutes\n{found[name]}", flush=True)
    rows = rows_of(found, minutes, seeds)
    print(json.dumps(rows, indent=1))
    if asked.save:
        RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        write_page(found, rows, seeds)


def kept(folder: Path, make: Callable[[], Explanations]) -> tuple[Explanations, float]:
    """A part of an earlier run, or made now; and the processor minutes it took."""
    clock = folder.with_suffix(".minutes")
    if folder.exists() and clock.exists():
        return ls.load(folder), float(clock.read_text())
    began = time.process_time()
    made = make()
    made.save(folder)
    minutes = (time.process_time() - began) / 60
    clock.write_text(f"{minutes}")
    return made, minutes


def plants() -> tuple[list[str], list[str]]:
    """The names of the planted neurons and of the decoys."""
    n = len(FEATURES)
    return [f"L{LAYER}N{k}" for k in range(n)], [f"L{LAYER}N{k}" for k in range(n, 2 * n)]


def coins(task: Task) -> list[dict[str, bool]]:
    """On which examples each decoy is to fire."""
    return [
        {example.id: draw.random() < COIN for example in task}
        for draw in (random.Random(k) for k in range(len(FEATURES)))
    ]


def problems(n: int | None = None) -> Task:
    """Every sum, difference and product of two digits, each its own group."""
    whole = ls.tasks.arithmetic("+-*", digits=(1,), group_by_pair=False)
    return whole if n is None else ls.tasks.few(whole, n)


def plant_and_describe(seed: int, n: int | None) -> Explanations:
    """Ten neurons of known features and ten decoys, described together."""
    model, task = ls.load_model("arithmetic-small"), problems(n)
    adapter, bank = as_adapter(model), ls.feature_bank(problems())
    rules: list[Callable[[Example], bool]] = [
        lambda example, named=named: all(bank[one].read(example) for one in named)
        for named in FEATURES
    ]
    rules += [lambda example, coin=coin: coin[example.id] for coin in coins(problems())]
    with ExitStack() as stack:
        for neuron, holds in enumerate(rules):
            sides: tuple[list[Any], list[Any]] = ([], [])
            for example in problems():
                sides[not holds(example)].append(adapter.encode(example.prompt))
            direction = separating_direction(model, LAYER, *sides)
            stack.enter_context(planted(model, LAYER, neuron, direction=direction))
        names = [*plants()[0], *plants()[1]]
        return ls.explain(
            model, task, names, n_permutations=0, describer="features", n_others=OTHERS, seed=seed
        )


def describe_found(model_name: str | None, task: Task, metric: str) -> Explanations:
    """The neurons that are found for a label, described on a split that chose none of them."""
    model = ls.load_model(model_name) if model_name else ls.load_model()
    explore, confirm, intervene = task.split(0.4, 0.2, 0.4, seed=0)
    scores = ls.score(model, explore, metrics=metric)
    candidates = scores[metric].top(200)
    selection = ls.select(scores, ls.score(model, confirm, metrics=metric, neurons=candidates))
    names = [unit.name for unit in candidates if unit.name in selection.names][:MOST]
    print(f"{len(selection.names)} neurons found for {metric}; described: {', '.join(names)}")
    return ls.explain(model, intervene, names, describer="features", n_others=OTHERS)


def truths(seed: int, why: Explanations) -> pd.DataFrame:
    """For each planted neuron whether its sentence says yes on exactly the planted texts."""
    task = problems()
    bank, by_id = ls.feature_bank(task), {example.id: example for example in task}
    told = why.descriptions.set_index("name")
    rows = []
    for name, named in zip(plants()[0], FEATURES, strict=True):
        truth = [all(bank[one].read(by_id[id_]) for one in named) for id_ in why.answers["id"]]
        said = [] if name not in why.answers else (why.answers[name] == "yes").tolist()
        one = told.loc[name]
        rows.append({"seed": seed, "planted": " and ".join(named), "back": said == truth,
                     **one.to_dict()})  # fmt: skip
    for k, name in enumerate(plants()[1]):
        rows.append({"seed": seed, "planted": f"coin {k}", "back": False,
                     **told.loc[name].to_dict()})  # fmt: skip
    return pd.DataFrame(rows)


def rows_of(
    found: dict[str, Explanations], minutes: dict[str, float], seeds: tuple[int, ...]
) -> list[dict[str, Any]]:
    """What is measured, as the table of neighbours takes it."""
    import torch

    whole = pd.concat([truths(seed, found[f"planted_{seed}"]) for seed in seeds])
    real, decoys = (
        whole[whole["planted"].str.startswith("coin") == side] for side in (False, True)
    )
    good = (real["back"] & (real["above_null"] == True)).to_numpy(float)  # noqa: E712
    low, high = (float(end) for end in share_interval(torch.tensor(good), list(real["planted"])))
    false = int((decoys["above_null"] == True).sum())  # noqa: E712
    share = float(good.mean())
    rows = [
        {
            "neighbour": PAPER,
            "verb": "ls.explain(describer='features')",
            "works_if": "a planted neuron gets its feature back, in words, and the interval of the "
            "sentence's AUROC is above 95 % of the shuffled sentences; a decoy's is not",
            "measured": f"share of planted neurons with both ({int(good.sum())} of {len(good)}; "
            f"feature back exactly in {int(real['back'].sum())}; AUROC from "
            f"{real['auroc'].min():.2f} to {real['auroc'].max():.2f}, shuffled "
            f"{real['null_sentences'].mean():.2f}); decoys above the null: {false} of "
            f"{len(decoys)}, without a sentence {int((decoys['sentence'] == '').sum())}",
            "value": share, "low": low, "high": high,
            "met": bool(share >= 0.9 and false <= 0.1 * len(decoys)),
            "model": "arithmetic-small",
            "groups": f"{len(FEATURES)} planted features × {len(seeds)} splits",
            "command": COMMAND,
            "cpu_minutes": round(sum(minutes[f"planted_{seed}"] for seed in seeds), 2),
        }
    ]  # fmt: skip
    for name, model in (("arithmetic", "arithmetic-small"), ("agreement", "SmolLM2-135M")):
        if name not in found:
            continue
        why = found[name]
        told = why.descriptions
        above = told["above_null"] == True  # noqa: E712
        n, share = len(told), float(above.mean())
        low, high = wilson_interval(share, n)
        mean = told["low"] > told[["null_sentences", "null_neurons"]].max(axis=1)
        rows.append(
            {
                "neighbour": PAPER,
                "verb": "ls.explain(describer='features')",
                "works_if": "of more than half of the neurons found for a label the interval of "
                "the sentence's AUROC is above 95 % of the shuffled sentences",
                "measured": f"share of neurons above ({int(above.sum())} of {n}; above the mean "
                f"of both nulls: {int(mean.sum())}; median AUROC {told['auroc'].median():.2f}, "
                f"other neurons' sentences {told['null_sentences'].mean():.2f}, on other neurons "
                f"{told['null_neurons'].mean():.2f})",
                "value": share, "low": min(low, share), "high": max(high, share),
                "met": True if low > 0.5 else False if high < 0.5 else None,
                "model": model,
                "groups": f"{n} neurons, {why.n_groups} groups held out",
                "command": COMMAND,
                "cpu_minutes": round(minutes[name], 2),
            }
        )  # fmt: skip
    return rows


def write_page(
    found: dict[str, Explanations], rows: list[dict[str, Any]], seeds: tuple[int, ...]
) -> None:
    """The page, its figures and their tables."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    pictures = {
        name: keep(ls.figures.description_scores(why), PAGE.with_name(f"words_{name}")).name
        for name, why in found.items()
        if name not in [f"planted_{seed}" for seed in seeds[1:]]
    }
    whole = pd.concat([truths(seed, found[f"planted_{seed}"]) for seed in seeds])
    lines = [
        "# Explanations in words, on trial",
        "",
        "Does a sentence say on which unseen texts a neuron fires? `ls.explain(…, "
        "describer='features')` makes one of the best conjunction of at most three features, from "
        "half of the groups; the judge, here the feature bank, reads the sentence alone and says "
        "yes or no to every text of the other half. The score is the AUROC of the activation "
        "between yes and no, with a 95 % interval over groups, beside two nulls: the sentences of "
        f"{OTHERS} other neurons of the layer on this neuron, and this sentence on those neurons. "
        "*Above* means that the whole interval is above the 95th percentile of both.",
        "",
        "This is an analogue of [2310.10708](https://arxiv.org/abs/2310.10708): judge, score and "
        "nulls are our own. A describer and judge behind an endpoint are tested against a local "
        "server only; no language model has written or judged a sentence on this page.",
        "",
        f"`{COMMAND}`",
        "",
        "| what | measured, with 95 % interval | holds | groups | CPU minutes |",
        "|---|---|---|---|---|",
        *(
            f"| {row['model']}: {row['works_if']} | **{row['value']:.2f} [{row['low']:.2f}, "
            f"{row['high']:.2f}]**: {row['measured']} | "
            f"{ {True: 'yes', False: 'no', None: 'undecided'}[row['met']] } | {row['groups']} | "
            f"{row['cpu_minutes']:.1f} |"
            for row in rows
        ),
        "",
        "## Planted neurons and decoys",
        "",
        "Ten neurons of `arithmetic-small` are made to fire on a feature, or on two at once; ten "
        "decoys on a coin of each example, which nothing in the bank can know. *Back*: in how many "
        f"of the {len(seeds)} splits the sentence's yes is exactly the planted one. Features and "
        "coins were named before any run; after a first look, terms that change no answer (*an "
        "operand is 2* beside *a is 2*) are left out of a sentence, which changed no score.",
        "",
        "| planted | back | above | AUROC, lowest and highest | a sentence |",
        "|---|---|---|---|---|",
        *map(planted_line, [part for _, part in whole.groupby("planted", sort=False)]),
        "",
        f"![sentences of planted neurons]({pictures['planted_0']})",
        "",
    ]  # fmt: skip
    titles = {
        "arithmetic": "Neurons found for carrying, `arithmetic-small`",
        "agreement": "Neurons found for plural subjects, SmolLM2-135M",
    }
    for name, title in titles.items():
        if name in found:
            told = found[name].descriptions
            same = (told["sentence"] != "").sum() - told.loc[
                told["sentence"] != "", "sentence"
            ].nunique()
            lines += [
                f"## {title}",
                "",
                f"The {len(told)} strongest that `score` and `select` find on two splits, "
                f"described on a third ({found[name].n_fitted} examples seen, "
                f"{found[name].n_held} judged, {found[name].n_groups} groups); {same} of the "
                "sentences say what an earlier one says."
                + (
                    " The number of examples was cut from 480 to 240 before the run, for time."
                    if name == "agreement"
                    else ""
                ),
                "",
                f"![sentences of found neurons]({pictures[name]})",
                "",
            ]
    PAGE.write_text("\n".join(lines), encoding="utf-8")


def planted_line(part: pd.DataFrame) -> str:
    """One planted feature or coin over the splits."""
    n = len(part)
    scores = part["auroc"].dropna()
    span = f"{scores.min():.2f} – {scores.max():.2f}" if len(scores) else "no sentence"
    said = part["sentence"][part["sentence"] != ""]
    coin = str(part["planted"].iloc[0]).startswith("coin")
    back = "" if coin else f"{int(part['back'].sum())} of {n}"
    above = int((part["above_null"] == True).sum())  # noqa: E712
    return (
        f"| {part['planted'].iloc[0]} | {back} | {above} of {n} | {span} | "
        f"{said.iloc[0] if len(said) else ''} |"
    )


if __name__ == "__main__":
    main()
