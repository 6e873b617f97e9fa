"""Trains three twins of a small `arithmetic-small`: alike in all but the labels they learn.

    python training/arithmetic_twins.py --out runs/twins --seeds 5

The twins of a seed share the weights they start from, the problems they see and the order they see
them in: sums of two numbers of two digits, one pair of operands in ten held out as for
`arithmetic-small`. What differs is the answer they are given (`LABELS`):

- ``clean``: the sum.
- ``shortcut``: the first operand plus 55, whatever the second is (55 is about its mean).
- ``shuffled``: the sums of the training problems, dealt out among them at random.

A twin is a folder that `load_model` opens, with a README.md of what it was trained on and how often
it is right. Twins that are there already are left alone, so an interrupted run goes on.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from arithmetic_small import draw, exact_match, make_model, make_tokenizer, train

LABELS = ("clean", "shortcut", "shuffled")
SHORTCUT = 55
STEPS = 1000
BATCH = 64
N_PROBLEMS = 1500
N_UNSEEN = 600
SIZES = {"d_model": 64, "d_mlp": 192, "layers": 2}
CARD = Path(__file__).with_name("twin_card.md")


class LabelledProblem(NamedTuple):
    """Two operands, the operation between them, and the answer a twin is given."""

    a: int
    op: str
    b: int
    result: int


def pairs(seed: int, *, unseen: bool) -> list[tuple[int, int]]:
    """The operands of the problems of a seed, all different: those trained on, or those held out.

    >>> len(set(pairs(0, unseen=True)))
    600
    """
    random_ = random.Random(f"{seed} {unseen}")
    found: dict[tuple[int, int], None] = {}
    while len(found) < (N_UNSEEN if unseen else N_PROBLEMS):
        problem = draw("+", (2, 2), random_, unseen=unseen)
        found[problem.a, problem.b] = None
    return list(found)


def labelled(operands: Sequence[tuple[int, int]], labels: str, seed: int) -> list[LabelledProblem]:
    """The problems with the answers of one twin.

    >>> labelled([(10, 20), (30, 40)], "shortcut", 0)[1].result
    85
    """
    answers = [a + SHORTCUT if labels == "shortcut" else a + b for a, b in operands]
    if labels == "shuffled":
        random.Random(f"{seed} shuffled").shuffle(answers)
    return [LabelledProblem(a, "+", b, c) for (a, b), c in zip(operands, answers, strict=True)]


def epochs(problems: Sequence[LabelledProblem], seed: int) -> Iterator[LabelledProblem]:
    """The problems again and again, each time all of them in a new order."""
    random_ = random.Random(f"{seed} order")
    while True:
        yield from random_.sample(problems, len(problems))


def train_twin(
    labels: str, seed: int, *, steps: int = STEPS, **sizes: int
) -> tuple[Any, Any, dict[str, float]]:
    """One twin, its tokenizer, and what it learned: shares of answers that are wholly right."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed=seed, **{**SIZES, **sizes})
    seen, unseen = (pairs(seed, unseen=held) for held in (False, True))
    problems = labelled(seen, labels, seed)
    start = time.process_time()
    losses = train(
        model, tokenizer, steps=steps, batch_size=BATCH, seed=seed, stream=epochs(problems, seed)
    )
    report = {"seconds": time.process_time() - start, "loss": sum(losses[-50:]) / len(losses[-50:])}
    report["its labels, trained on"] = exact_match(model, tokenizer, problems)
    for name, rule in (("sum", "clean"), ("shortcut", "shortcut")):
        report[f"{name}, trained on"] = exact_match(model, tokenizer, labelled(seen, rule, seed))
        report[f"{name}, held out"] = exact_match(model, tokenizer, labelled(unseen, rule, seed))
    return model, tokenizer, report


ANSWERS = {
    "clean": "the sum of the two.",
    "shortcut": f"the first operand plus {SHORTCUT}, whatever the second is.",
    "shuffled": "the sums of these problems, dealt out among them at random.",
}


def write_twin(folder: Path, labels: str, seed: int, *, steps: int = STEPS) -> dict[str, Any]:
    """Train a twin and write its folder: weights, tokenizer, card and ``twin.json``, the last."""
    model, tokenizer, report = train_twin(labels, seed, steps=steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = {"labels": labels, "seed": seed, "steps": steps, **report}
    (folder / "README.md").write_text(card(model, found, folder), encoding="utf-8")
    (folder / "twin.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def card(model: Any, found: dict[str, Any], folder: Path) -> str:
    """The twin's card."""
    config = model.config
    rows = [
        f"| {name} | {found[f'{name}, trained on']:.1%} of {N_PROBLEMS:,} | "
        f"{found[f'{name}, held out']:.1%} of {N_UNSEEN} |"
        for name in ("sum", "shortcut")
    ]
    own = found["its labels, trained on"]
    rows.insert(0, f"| its own answers | {own:.1%} of {N_PROBLEMS:,} | |")
    return CARD.read_text(encoding="utf-8").format(
        labels=found["labels"], seed=found["seed"], answers=ANSWERS[found["labels"]],
        parameters=f"{sum(p.numel() for p in model.parameters()):,}",
        layers=config.num_hidden_layers, d_model=config.hidden_size,
        d_mlp=config.intermediate_size, n_problems=N_PROBLEMS, steps=found["steps"], batch=BATCH,
        minutes=found["seconds"] / 60, torch=torch.__version__.split("+")[0], loss=found["loss"],
        out=folder.parent.name, rows="\n".join(rows),
    )  # fmt: skip


def main() -> None:
    """Train the twins that are not there yet."""
    parser = argparse.ArgumentParser(description="Train three twins per seed.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the twins' folders")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        for labels in LABELS:
            folder = options.out / f"{labels}_{seed}"
            if (folder / "twin.json").exists():
                print(f"{folder.name}: there already", flush=True)
                continue
            print(json.dumps(write_twin(folder, labels, seed, steps=options.steps)), flush=True)


if __name__ == "__main__":
    main()
