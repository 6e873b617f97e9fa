"""The page, the figures and the rows of dissect.py."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lens_skills.diagnostics import Dissection
from lens_skills.plotting import figures
from lens_skills.stats.intervals import share_interval

COMMAND = "python benchmarks/neighbours/dissect.py --save"
NEIGHBOUR = "2310.04929 dissection and competition"
TITLES = {
    "arithmetic": ("arithmetic-small", "the whole answer right"),
    "arithmetic_foil": ("arithmetic-small", "the answer likelier than its foil"),
    "agreement": ("SmolLM2-135M", "the verb likelier than its foil"),
}
READ = 0.9  # AUROC from which a neuron knows the condition that was planted


def write(
    found: Mapping[str, tuple[Dissection, float]],
    matched: Mapping[str, Any],
    result: Path,
    page: Path,
    keep: Callable[..., Path],
) -> None:
    """Writes all of it."""
    table = pd.DataFrame(matched["rows"])
    rows = [kept_row(name, *one) for name, one in found.items()]
    rows.append(planted_row(table, matched["minutes"]))
    result.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page.parent.mkdir(parents=True, exist_ok=True)
    pictures = {
        name: keep(figures.dissection(one), page.parent / f"dissect_{name}").name
        for name, (one, _) in found.items()
    }
    page.write_text(text(found, table, pictures), encoding="utf-8")


def kept_row(name: str, found: Dissection, minutes: float) -> dict[str, Any]:
    """What winners keep more than random neurons at 4 %."""
    at, (model, metric) = found.at(0.04), TITLES[name]
    difference, low, high = (
        round(at[key], 3) for key in ("difference", "difference_low", "difference_high")
    )
    return {
        "neighbour": NEIGHBOUR,
        "verb": "ls.dissect",
        "works_if": "with 4 % of the neurons active, winners keep more accuracy than random ones",
        "measured": f"{metric}: winners {at['winners']:.2f}, random {at['random']:.2f}, all "
        f"{found.clean:.2f}, none {found.none:.2f}; winners less random {difference:+.3f} "
        f"[{low:+.3f}, {high:+.3f}]",
        "value": difference, "low": low, "high": high,
        "met": True if low > 0 else False if high < 0 else None,
        "model": model,
        "groups": f"{found.n_groups} groups, {found.n_held} held-out examples",
        "command": COMMAND,
        "cpu_minutes": round(minutes, 1),
    }  # fmt: skip


def planted_row(table: pd.DataFrame, minutes: float) -> dict[str, Any]:
    """How many planted neurons get their concept."""
    knows = table.loc[table["auroc"] >= READ]
    found = knows.loc[knows["found"] & (knows["p"] <= 0.05)]
    rest = table.loc[(table["auroc"] < READ) & (table["p"] <= 0.05)]
    n = len(knows) // 2
    good = knows.assign(good=knows["found"] & (knows["p"] <= 0.05)).groupby("planted")["good"]
    right = torch.tensor(good.all().to_numpy().astype(float))[None]
    low, high = (float(end[0]) for end in share_interval(right, list(good.groups)))
    return {
        "neighbour": NEIGHBOUR,
        "verb": "ls.dissect",
        "works_if": "the concept matched to a planted neuron is the planted one",
        "measured": f"{len(found)} of {len(knows)} matches ({n} planted neurons, two measures) are "
        f"the planted concept; of {len(table) - len(knows)} of neurons that could not be made to "
        f"know theirs {len(rest)} are anything; coins matched: {int(table['coins'].sum())} of "
        f"{int(table['neurons'].sum())}",
        "value": float(right.mean()), "low": round(low, 3), "high": round(high, 3),
        "met": len(found) == len(knows) and not int(table["coins"].sum()),
        "model": "arithmetic-small",
        "groups": f"{n} conditions",
        "command": COMMAND,
        "cpu_minutes": round(minutes, 1),
    }  # fmt: skip


def text(
    found: Mapping[str, tuple[Dissection, float]], table: pd.DataFrame, pictures: Mapping[str, str]
) -> str:
    """The page."""
    lines = [
        "# Dissection and competition",
        "",
        "DISCOVER ([2310.04929](https://arxiv.org/abs/2310.04929)) trains networks in which the "
        "units of a block compete and about 4 % are active, and names each by a concept. "
        "`ls.dissect` is an analogue after the fact: neurons of a trained model are grouped by "
        "|r| in as many clusters as may be active, the one with the largest z-score wins its "
        "cluster on each example, and all others are held at their mean at the last token.",
        "",
        f"`{COMMAND}` · seed 0, half of the groups to find winners, half to measure.",
        "",
        "## Do winners suffice? No",
        "",
        "| model, metric | all | none | active | winners | random | winners - random [95 %] |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (one, _) in found.items():
        model, metric = TITLES[name]
        for row in one.curve.to_dict("records"):
            lines.append(
                f"| {model}, {metric} | {one.clean:.2f} | {one.none:.2f} | {row['share']:.0%} | "
                f"{row['winners']:.2f} | {row['random']:.2f} | {row['difference']:+.3f} "
                f"[{row['difference_low']:+.3f}, {row['difference_high']:+.3f}] |"
            )
    lines += [
        "",
        "Winners keep no more than as many random neurons, and no share of up to 10 % brings the "
        "accuracy back. The model was not trained to compete, and winning inside a cluster of like "
        "neurons picks one neuron of each kind of activity, not those the answer needs. For "
        "agreement there is little to keep: with every MLP neuron at its mean at the last token, "
        "attention alone still gives most answers. The two metrics of arithmetic were both kept, "
        "as the first one looked at (the foil) hardly falls.",
        "",
        *(f"![{name}]({picture})" for name, picture in pictures.items()),
        "",
        "## Who wins",
        "",
        "| model, metric | clusters | of one neuron | entropy of wins (0 to 1) | winners with a "
        "concept, of 20 |",
        "|---|---|---|---|---|",
    ]
    for name, (one, _) in found.items():
        best = one.concepts[["wpmi_p", "information_p"]].min(axis=1) <= 0.05
        lines.append(
            f"| {', '.join(TITLES[name])} | {sum(int(r.max()) + 1 for r in one.cluster):,} | "
            f"{int((one.sizes == 1).sum())} | {float(one.entropies.mean()):.2f} | "
            f"{int(best.sum())} |"
        )
    first = found["arithmetic"][0].concepts.head(8)
    lines += [
        "",
        "Entropy of the shares of wins inside clusters of two or more, over its largest: wins are "
        "spread over nearly all members. The eight most frequent winners of arithmetic-small:",
        "",
        "| neuron | wins | soft-WPMI | p | information | bits | p |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row['name']} | {row['wins']:.0%} | {row['wpmi']} | {row['wpmi_p']:.3f} | "
            f"{row['information']} | {row['information_value']:.2f} | {row['information_p']:.3f} |"
            for row in first.to_dict("records")
        ),
        "",
        "p: family-wise over the 20 neurons and all concepts, 199 permutations within groups.",
        "",
        "## Planted neurons",
        "",
        "One neuron of layer 3 of arithmetic-small is made to fire for a condition, by ridge "
        "regression on what its layer reads; the bank holds the condition, ten coins and the "
        "usual features. Three conditions cannot be read there (AUROC of the planted neuron on "
        f"unseen problems below {READ}, a bound set after the first run had shown them "
        "unmatched): those neurons know nothing, and are matched to nothing.",
        "",
        "| condition | AUROC | measure | matched to | p | planted one |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row['planted']} | {row['auroc']:.2f} | {row['measure']} | "
            f"{row['matched'] if row['p'] <= 0.05 else 'nothing'} | {row['p']:.3f} | "
            f"{'yes' if row['found'] and row['p'] <= 0.05 else 'no'} |"
            for row in table.to_dict("records")
        ),
        "",
        f"Coins matched to any of the twenty neurons: {int(table['coins'].sum())} of "
        f"{int(table['neurons'].sum())} matches.",
        "",
    ]
    return "\n".join(lines)
