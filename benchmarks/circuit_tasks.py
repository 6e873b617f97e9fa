"""Pairs of prompts of the benchmarks of circuits: agreement, indirect objects, greater-than, sums.

Files are those of the papers: ``agreement_pairs`` of Marks et al. 2024 (saprmarks/feature-circuits)
and ``greater_than`` of Hanna et al. 2024 (hannamw/EAP-IG).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills.activations import Metric, logit_diff
from lens_skills.activations.forward import encode_examples
from lens_skills.activations.metrics import Readout
from lens_skills.circuits import equal_length_pairs
from lens_skills.models import as_adapter
from lens_skills.tasks import Task

DIGITS = "0123456789"


@dataclass(frozen=True)
class Pairs:
    """One benchmark on one model.

    Attributes:
        name: Of its rows and files.
        rank, test: The pairs to rank on and those to run the circuits on; no pair is in both.
        metric: Of the answer.
        label: What |r| goes with.
        said: Where the pairs are from, and how they were divided.
        n_columns: Positions from the first token in which any pair differs.
        aligned: Whether all prompts are of one length, so that a position means the same in all.
    """

    name: str
    rank: Task
    test: Task
    metric: Metric
    label: str
    said: str
    n_columns: int
    aligned: bool


def usable(model: Any, task: Task) -> Task:
    """Pairs of equally many tokens whose answers, if they have any, are one token."""
    adapter = as_adapter(model)
    task = equal_length_pairs(adapter, task)
    items = encode_examples(adapter, task, answers=task[0].answer is not None)
    single = {
        item.id
        for item in items
        if all(len(tokens or (0,)) == 1 for tokens in (item.answer_tokens, item.foil_tokens))
    }
    return task.where(lambda example: example.id in single)


def some(task: Task, n: int, seed: int = 0) -> Task:
    """``n`` examples, one of each group before a second of any."""
    return ls.tasks.few(task, min(n, len(task)), seed=seed)


def divided(task: Task, n_rank: int, n_test: int, share: float = 0.3) -> tuple[Task, Task]:
    """Some examples to rank on and some of other groups to measure on."""
    first, second = task.split(share, 1 - share, seed=0)
    return some(first, n_rank), some(second, n_test)


def columns_of(model: Any, *tasks: Task) -> tuple[int, bool]:
    """Columns from the first difference in any pair, and whether all prompts are equally long."""
    adapter = as_adapter(model)
    most, lengths = 0, set()
    for example in (example for task in tasks for example in task):
        one, twin = (adapter.encode(text) for text in (example.prompt, str(example.corrupted)))
        first = next(k for k, (a, b) in enumerate(zip(one, twin, strict=True)) if a != b)
        most = max(most, len(one) - first)
        lengths.add(len(one))
    return most, len(lengths) == 1


def made(
    model: Any, name: str, parts: tuple[Task, Task], metric: Metric, label: str, said: str
) -> Pairs:
    """A benchmark of two disjoint parts."""
    rank, test = parts
    both = set(rank.groups) & set(test.groups)
    assert not both, f"groups in both parts: {sorted(both)[:3]}"
    n_columns, aligned = columns_of(model, rank, test)
    return Pairs(name, rank, test, metric, label, said, n_columns, aligned)


def agreement(model: Any, folder: Path, kind: str, n_rank: int, n_test: int) -> Pairs:
    """``simple`` ("The friends" → " have") or ``nounpp`` ("The teachers near the desk" → " are").

    The published parts share pairs of prompts (all of ``simple``), so they are put together and
    divided anew: by pair of prompts, a prompt and its mirror image being one.
    """
    rows = [
        row | {"plural": int(row["case"].startswith("plural"))}
        for part in ("train", "test")
        for row in read_lines(folder / "agreement_pairs" / f"{kind}_{part}.jsonl")
    ]
    task = ls.tasks.pairs(
        rows, clean="clean_prefix", corrupted="patch_prefix", answer="clean_answer",
        foil="patch_answer", labels="plural", name=kind,
    )  # fmt: skip
    parts = divided(usable(model, task), n_rank, n_test)
    said = "Marks et al. 2024, both published parts together, divided anew by pair of prompts"
    return made(model, kind, parts, logit_diff(), "label:plural", said)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    import json

    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ioi(model: Any, folder: Path, n_rank: int, n_test: int) -> Pairs:
    """Who receives the thing: this project's own sentences."""
    task = usable(model, ls.tasks.ioi(n=400))
    parts = divided(task, n_rank, n_test)
    said = "`ls.tasks.ioi(n=400)`, divided by pair of names"
    return made(model, "ioi", parts, logit_diff(), "label:io_first", said)


def greater_than(model: Any, folder: Path, n_rank: int, n_test: int) -> Pairs:
    """The end of a span of years: ``… from the year 1352 to the year 13`` and its twin from 1301.

    The metric is the probability of greater years minus that of others. Where years are written
    digit by digit it is of the next digit: above the start's tens digit, minus below it.
    """
    adapter = as_adapter(model)
    task = ls.tasks.table(
        folder / "greater_than" / "greater_than_data.csv",
        prompt="clean", corrupted="corrupted", covariates="label", name="greater_than",
    )  # fmt: skip
    years = [f"{year:02d}" for year in range(100)]
    codes = [adapter.encode_plain(year) for year in years]
    whole = all(len(code) == 1 for code in codes)
    names = years if whole else list(DIGITS)
    tokens = torch.tensor([adapter.encode_plain(name)[0] for name in names])
    first = 2 if whole else 1

    def compute(readout: Readout, examples: Sequence[Any]) -> Tensor:
        shares = readout.log_probabilities.exp()[:, tokens.to(readout.log_probabilities.device)]
        start = torch.tensor(
            [int(f"{int(one.covariates['label']):02d}"[:first]) for one in examples]
        )
        place = torch.arange(len(names))
        sign = (place > start[:, None]).double() - (
            (place <= start[:, None]) if whole else (place < start[:, None])
        ).double()
        return (shares * sign.to(shares)).sum(1)

    how = (
        "of two-digit years above the start's minus the others"
        if whole
        else "of the next digit above the start's tens digit minus below it (this tokenizer writes "
        "years digit by digit; the same digit counts as neither)"
    )
    metric = Metric("probability difference", compute, frozenset({"logits"}), "probability")
    task = usable(model, task)
    parts = divided(task, n_rank, n_test)
    said = f"Hanna et al. 2024, divided by pair of prompts; probability {how}"
    return made(model, "greater_than", parts, metric, "covariate:label", said)


def sums(model: Any, folder: Path, n_rank: int, n_test: int) -> Pairs:
    """Sums of one digit beside the same with another second number: any model reads them."""
    random = np.random.default_rng(0)
    rows = []
    for a in range(1, 7):
        for b in range(1, 4):
            c = int(random.choice([k for k in range(1, 4) if k != b]))
            ask = "\nQ: What is {} plus {}?\nA: ".format
            rows.append({"clean": ask(a, b), "twin": ask(a, c), "yes": str(a + b),
                         "no": str(a + c), "large": int(a > 3)})  # fmt: skip
    task = ls.tasks.pairs(
        rows, clean="clean", corrupted="twin", answer="yes", foil="no", labels="large", name="sums"
    )
    parts = divided(usable(model, task), n_rank, n_test, 0.4)
    return made(model, "sums", parts, logit_diff(), "label:large", "made for smoke runs")


Make = Callable[[Any, Path, int, int], Pairs]

TASKS: dict[str, Make] = {
    "simple": lambda model, folder, n, m: agreement(model, folder, "simple", n, m),
    "nounpp": lambda model, folder, n, m: agreement(model, folder, "nounpp", n, m),
    "ioi": ioi,
    "greater_than": greater_than,
    "sums": sums,
}
