"""Answers of several tokens against the bare forward pass, and against answers of one token.

    python benchmarks/answers.py             # both parts, about five minutes
    python benchmarks/answers.py preflight   # one part: preflight or sweep
    python benchmarks/answers.py --quick     # few examples and neurons: no measurement

`preflight` of 300 sums over the model's own forward pass over their prompts, in the same batches.
`sweep` with an answer and a foil of three tokens, and with four options of three tokens, over the
same with one token; beside it, how many more columns change. Prompts of 24 tokens, the last
position, zero ablation. All ratios are of medians from one run, the ways in turn.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sweep import EXAMPLES, prompts, uniformly
from timing import arguments, interleaved, run_parts, table

import lens_skills as ls
from lens_skills.activations import parse_metrics
from lens_skills.activations.forward import prepare
from lens_skills.interventions import ablate, sweep
from lens_skills.models import as_adapter

BATCH, SUMS = 32, 300
TAIL = " very old"
OTHERS = (" was", " were")


def on_each(part: Callable[[str], dict[str, float]]) -> dict[str, float]:
    """A part on every implementation there is."""
    figures: dict[str, float] = {}
    for implementation in ("hooked", "bridge"):
        try:
            ls.load_model(implementation=implementation)
        except ls.LensSkillsError as error:
            print(f"{implementation}: not here ({error})")
            continue
        figures |= part(implementation)
    return figures


def preflights(n_sums: int, rounds: int, implementation: str) -> dict[str, float]:
    """`preflight` and the bare forward, which predicts the answers' first tokens alone."""
    model = ls.load_model(implementation=implementation)
    task = ls.tasks.arithmetic("+", digits=2, n=n_sums)
    encoded = sorted((model.to_tokens(e.prompt)[0] for e in task), key=len)
    pad = as_adapter(model).pad_id
    batches = [
        torch.nn.utils.rnn.pad_sequence(
            encoded[k : k + BATCH], batch_first=True, padding_value=pad, padding_side="left"
        )
        for k in range(0, len(encoded), BATCH)
    ]

    @torch.no_grad()
    def bare() -> None:
        for tokens in batches:
            model(tokens)

    def whole() -> None:
        with ls.config(batch_size=BATCH):
            ls.preflight(model, task)

    seconds = interleaved({"preflight": whole, "bare": bare}, rounds=rounds)
    ratio = seconds["bare"] / seconds["preflight"]
    table(
        f"preflight of {n_sums} sums with foils and options: {implementation}",
        {
            "seconds": f"{seconds['preflight']:.2f}",
            "against the bare forward over the prompts": f"{ratio:.2f}x",
        },
    )
    return {f"preflight_vs_forward_{implementation}": ratio}


def answers(task: ls.Task, *, tail: str, options: bool) -> ls.Task:
    """The prompts with an answer against a foil, or against three other options."""
    found = []
    for e in task:
        answer, foil = f"{e.answer}{tail}", f"{e.foil}{tail}"
        others = (answer, foil, *(f"{word}{tail}" for word in OTHERS))
        told: dict[str, Any] = {"options": others} if options else {"foil": foil}
        found.append(ls.Example(e.id, e.prompt, answer, group=e.group, **told))
    return ls.Task("agreement", found)


def columns(model: Any, task: ls.Task) -> float:
    """Columns that change with an edit at the last position, the mean over the examples."""
    adapter = as_adapter(model)
    encoded, plan = prepare(adapter, task, parse_metrics("logit_diff"))
    tree = plan.tree(adapter, encoded)
    return float(tree.real.sum(1).double().mean())


def sweeps(per_layer: int, rounds: int, implementation: str) -> dict[str, float]:
    """`sweep` on the same prompts and neurons, with answers of one and of three tokens."""
    model = ls.load_model(implementation=implementation)
    base, neurons = prompts(model, EXAMPLES), uniformly(model, per_layer)
    figures = {}
    for name, options in (("foils", False), ("options", True)):
        tasks = {"one": answers(base, tail="", options=options),
                 "three": answers(base, tail=TAIL, options=options)}  # fmt: skip
        ways = {
            key: partial(sweep, model, task, neurons, do=ablate("zero"), metric="logit_diff")
            for key, task in tasks.items()
        }
        whole = ways["three"]().provenance["whole_passes"]
        assert whole is None, whole
        seconds = interleaved(ways, rounds=rounds)
        more = columns(model, tasks["three"]) / columns(model, tasks["one"])
        slower = seconds["three"] / seconds["one"]
        table(
            f"sweep, {name}: {implementation}, {len(neurons)} neurons, {EXAMPLES} prompts",
            {
                "three tokens over one, time": f"{slower:.2f}x",
                "columns that change": f"{more:.2f}x",
                "time over columns": f"{slower / more:.2f}",
            },
        )
        figures |= {
            f"three_tokens_{name}_{implementation}_time": slower,
            f"three_tokens_{name}_{implementation}_columns": more,
            f"three_tokens_{name}_{implementation}_time_per_columns": slower / more,
        }
    return figures


def main() -> None:
    parser = arguments(__doc__, quick="few examples and neurons: a smoke run, not a measurement")
    parser.add_argument("part", nargs="?", choices=["preflight", "sweep"])
    asked = parser.parse_args()
    n_sums, per_layer, rounds = (64, 8, 1) if asked.quick else (SUMS, 32, 5)
    ls.config(progress=False)
    run_parts(
        {
            "preflight": lambda: on_each(partial(preflights, n_sums, rounds)),
            "sweep": lambda: on_each(partial(sweeps, per_layer, rounds)),
        },
        asked,
        only=asked.part,
    )


if __name__ == "__main__":
    main()
