"""The rows and the page of `continual.py`: what came out, in words that follow the intervals."""

import math
import sys
from pathlib import Path
from typing import Any

from lens_skills import figures
from lens_skills.finetuning import Continual

sys.path.append(str(Path(__file__).resolve().parents[1]))
from pictures import keep

NEIGHBOUR = "2407.06488 task-specific neurons and continual learning"
WORKS_IF = (
    "trained on the current task's neurons alone, the model forgets less than with every parameter "
    "trained and than with as many random neurons of the same layers, at 95 % or more of full "
    "fine-tuning's final accuracy"
)
WORDS = {
    "final": "at the end, all tasks",
    "learned": "just after each task",
    "forgetting": "forgotten",
    "backward": "backward transfer",
    "forward": "forward transfer",
}


def interval(cell: Any, *, signed: bool = False) -> str:
    """A mean and its ends in per cent."""
    sign = "+" if signed else ""
    mean, low, high = (100 * float(cell[name]) for name in ("mean", "low", "high"))
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def verdicts(found: Continual) -> dict[str, tuple[float, float, float]]:
    """The three differences the claim is about, each as mean, low, high; below 0 it holds."""
    apart = found.differences("ncft").set_index(["measure", "against"])
    said = {}
    for other in ("full", "random"):
        cell = apart.loc[("forgetting", other)]
        said[other] = (float(cell["mean"]), float(cell["low"]), float(cell["high"]))
    mean, low, high = found.kept("ncft")
    said["accuracy"] = (-mean, -high, -low)
    return said


def met(found: Continual) -> bool | None:
    """Whether all three hold by their intervals; None where an interval leaves one open."""
    ends = verdicts(found).values()
    if all(high < 0 for _, _, high in ends):
        return True
    return False if any(low >= 0 for _, low, _ in ends) else None


def rows(found: Continual, command: str) -> list[dict[str, Any]]:
    """The measurement as a row of the table of neighbours."""
    mean, low, high = verdicts(found)["random"]
    table = found.summary().set_index(["measure", "mask"])
    shown = {
        mask: f"{mask} {interval(table.loc[('forgetting', mask)])}"
        for mask in ("full", "ncft", "random")
    }
    final = {m: interval(table.loc[("final", m)]) for m in ("full", "ncft")}
    return [
        {
            "neighbour": NEIGHBOUR,
            "verb": "ls.continual",
            "works_if": WORKS_IF,
            "measured": "share forgotten, ncft less random; forgotten, in per cent of the answers: "
            f"{', '.join(shown.values())}; final accuracy: ncft {final['ncft']}, "
            f"full {final['full']}",
            "value": round(mean, 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "met": met(found),
            "model": "arithmetic-small",
            "groups": f"{len(found.seeds)} seeds",
            "command": command,
            "cpu_minutes": round(found.provenance["cpu_minutes"], 1),
        }
    ]


def _said(ends: tuple[float, float, float], *, yes: str, no: str, open_: str) -> str:
    mean, low, high = ends
    word = yes if high < 0 else no if low > 0 else open_
    return f"{word} ({100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] percentage points)"


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(found: Continual, command: str) -> str:
    """The page's text."""
    about, said = found.provenance, verdicts(found)
    table = found.summary().set_index(["measure", "mask"])
    apart = found.differences("ncft").set_index(["measure", "against"])
    others = [mask for mask in found.masks if mask != "ncft"]
    sizes = dict(zip(found.masks, found.n_trained, strict=True))
    base = found.accuracy[0, :, 0].mean(0).tolist()
    plan = about["settings"]["full"]["full"]
    rates = {mask: about["settings"][mask][mask]["lr"] for mask in found.masks}
    measures = _table(
        ["mask", "weights", *WORDS.values()],
        [
            [
                f"`{mask}`",
                f"{sizes[mask]:,}",
                *(
                    interval(table.loc[(m, mask)], signed=m in ("backward", "forward"))
                    for m in WORDS
                ),
            ]
            for mask in found.masks
        ],
    )
    paired = _table(
        ["`ncft` less", *WORDS.values()],
        [
            [f"`{other}`", *(interval(apart.loc[(m, other)], signed=True) for m in WORDS)]
            for other in others
        ],
    )
    matrices = _table(
        ["mask", "after", *found.tasks],
        [
            [f"`{mask}`", str(stage), *(f"{100 * value:.0f}" for value in line)]
            for mask in found.masks
            for stage, line in zip(
                ["before", *found.tasks], found.matrix(mask).to_numpy().tolist(), strict=True
            )
        ],
    )
    pairs = _table(
        ["trained on", "measured on", "overlap (Jaccard)", "transfer"],
        [
            [
                str(row["task"]),
                str(row["other"]),
                f"{row['jaccard']:.2f}",
                f"{100 * row['transfer']:+.1f}",
            ]
            for row in found.pairs().to_dict("records")
        ],
    )
    r, p = found.overlap_and_transfer()
    ranked = (
        "Overlap or transfer does not vary: no rank correlation."
        if math.isnan(r)
        else f"Rank correlation {r:+.2f}, p = {p:.2g} over all {math.factorial(len(found.tasks))} "
        f"relabelings of the tasks (no p can be below {1 / math.factorial(len(found.tasks)):.2g}): "
        "three tasks cannot show much."
    )
    verdict = {
        True: "**holds here**",
        False: "**does not hold here**",
        None: "**is undecided here**",
    }
    full = _said(
        said["full"],
        yes="It forgets less than with every parameter trained",
        no="It forgets more than with every parameter trained",
        open_="Whether it forgets less than with every parameter trained is open",
    )
    random = _said(
        said["random"],
        yes="It forgets less than with random neurons",
        no="It forgets more than with random neurons",
        open_="Whether it forgets less than with random neurons is open",
    )
    kept = _said(
        said["accuracy"],
        yes="It reaches 95 % of full fine-tuning's final accuracy",
        no="It falls short of 95 % of full fine-tuning's final accuracy",
        open_="Whether it reaches 95 % of full fine-tuning's final accuracy is open",
    )
    return f"""# Tasks learned in turn, by the task's own neurons

After Leng & Xiong 2024 ([2407.06488](https://arxiv.org/abs/2407.06488)): training only the
neurons that matter
to the current task (NCFT) is to forget less of the earlier ones. The claim on trial: {WORKS_IF}.
On `arithmetic-small`, {len(found.seeds)} seeds, it {verdict[met(found)]}:

- {full}.
- {random}.
- {kept}; the number is 95 % of full's less `ncft`'s.

![accuracy after each task](continual_matrices.png)

![what is forgotten and what is learned](continual_forgetting.png)

All numbers are in per cent of the answers, means with 95 % intervals over seeds (Student's t),
paired by seed
where they are differences.

{measures}

{paired}

*Forgotten*: the drop from a task's best accuracy to the end, without the last task. A mask that
learns less has less
to forget: read it beside the accuracy just after each task.

## Why these tasks

The model adds, subtracts and multiplies in words ("What is 34 plus 57?", 97 to 100 % right) and
never read the
signs: asked "What is 34+57?" it is right on {", ".join(f"{100 * b:.0f} %" for b in base)} of
sums, differences and products.
So each task is a new notation of something it can do, and can be learned in a few dozen steps.
Decided before
any mask was tried: the notation, and the order, +, −, ×. Operands have two digits, a factor of
the products one; differences are
not negative. Each seed has problems, a division ({found.n_learned[0]} to learn,
{found.n_test[0]} to measure on, the rest to stop by; a
pair of operands on one side for all tasks), an order and random neurons of its own.

Other notations ("34 + 57 = ?", "What is 34 + 57?", "Q:34+57") were tried with every parameter
trained, and
left out as too slow to learn. The learning rates ({rates["full"]:g} for all parameters,
{rates["ncft"]:g} for neurons) and the share
of the neurons (30 %, {found.n_neurons} of 1,536; the other try was 10 %; single runs, which
seemed to learn less)
were chosen on a seed that is not
measured, by the held-out loss after a single task (sums; differences), before anything was
learned in turn. A pilot of all masks (seed 0, 300 problems, 5 epochs) learned next to nothing: 16 %
just after each task with all parameters. The number of problems and the epochs
({plan["epochs"]}, of {plan["batch_size"]} examples a step, the same for all masks) were raised
after
it, and that seed is left out.

## After each task

Rows: what was learned last; columns: what is measured.

{matrices}

## Do tasks that share neurons help each other?

Overlap of the tasks' neurons in the model as given, and what training every parameter on one
task alone does to the
accuracy on another.

{pairs}

{ranked}

## What it does not show

Another order, other tasks, another model. W-NCFT's weights are ours (the paper's formula was
not at hand). The seeds
share one model; intervals of five seeds rest on normal numbers, which five cannot show.

    {command}

{about["cpu_minutes"]:.1f} CPU minutes.
"""


def write_page(found: Continual, folder: Path, command: str) -> None:
    """The page and its two figures."""
    folder.mkdir(parents=True, exist_ok=True)
    keep(figures.accuracy_matrices(found), folder / "continual_matrices")
    keep(figures.forgetting(found), folder / "continual_forgetting")
    (folder / "continual.md").write_text(page(found, command), encoding="utf-8")
