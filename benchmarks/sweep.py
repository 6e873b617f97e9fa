"""`sweep` against loops of `run_with_hooks`: time per neuron and example, and equality.

    python benchmarks/sweep.py            # both parts; the whole sweep takes minutes
    python benchmarks/sweep.py loops      # one part: loops or whole
    python benchmarks/sweep.py --quick    # few neurons: a smoke run, not a measurement

Prompts of 24 tokens, the last position, zero ablation, neurons drawn uniformly over the layers.
Ratios are neuron-examples per second of `sweep` over those of the other way, from one run. The
part ``whole`` sweeps every neuron, then screened by gradient, and counts what the latter missed.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from timing import arguments, interleaved, run_parts, table

import lens_skills as ls
from lens_skills.activations.forward import encode_examples
from lens_skills.interventions import ablate, sweep
from lens_skills.models import as_adapter

TOKENS, EXAMPLES, COPIES = 24, 8, 32
SHARE, LARGEST = 0.07, 100  # of the neurons, chosen by gradients; the largest effects to be found
Neuron = tuple[int, int]


def prompts(model: Any, n_examples: int) -> ls.Task:
    """Agreement prompts, answers and foils of one token, led in to exactly 24 tokens."""
    adapter, found = as_adapter(model), []
    for place, example in enumerate(ls.tasks.agreement(n=400)):
        missing = TOKENS - len(adapter.encode(example.prompt))
        for filler in ("So" + " and so" * k + " on" * j for k in range(12) for j in range(3)):
            prompt = f"{filler} {example.prompt[0].lower()}{example.prompt[1:]}"
            if missing > 0 and len(adapter.encode(prompt)) == TOKENS:
                kept = {"answer": example.answer, "foil": example.foil, "group": example.group}
                found.append(ls.Example(id=str(place), prompt=prompt, **kept))
                break
        if len(found) == n_examples:
            break
    return ls.Task("agreement", found)


def uniformly(model: Any, per_layer: int) -> list[Neuron]:
    """As many neurons of every layer, drawn at random."""
    generator = torch.Generator().manual_seed(0)
    adapter = as_adapter(model)
    draws = [torch.randperm(adapter.d_mlp, generator=generator) for _ in range(adapter.n_layers)]
    return [(layer, int(k)) for layer, order in enumerate(draws) for k in order[:per_layer]]


def tokens_of(model: Any, task: ls.Task) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts' tokens, and each one's answer and foil."""
    encoded = encode_examples(as_adapter(model), task, answers=True)
    pairs = [[*(e.answer_tokens or ()), *(e.foil_tokens or ())] for e in encoded]
    return torch.tensor([e.prompt_tokens.tolist() for e in encoded]), torch.tensor(pairs)


def zeroed(rows: list[int]) -> Callable[..., torch.Tensor]:
    """A hook that zeroes one neuron per row at the last position (one for all: a list of one)."""

    def hook(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        activation = activation.clone()
        index = torch.tensor(rows).expand(len(activation))
        activation[torch.arange(len(activation)), -1, index] = 0
        return activation

    return hook


@torch.no_grad()
def last_logits(model: Any, tokens: torch.Tensor, layer: int, rows: list[int]) -> torch.Tensor:
    """What a user would write: one full pass with a hook."""
    hooks = [(f"blocks.{layer}.mlp.hook_post", zeroed(rows))]
    return model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1]


def answer_log_probability(logits: torch.Tensor, examples: Any) -> torch.Tensor:
    """The metric the equality is checked on: it reads the whole vocabulary."""
    answers = torch.tensor([example.answer_tokens[0] for example in examples])
    return logits.double().log_softmax(-1).gather(-1, answers[:, None])[:, 0]


def against_loops(implementation: str, per_layer: int, every: int, rounds: int) -> dict[str, float]:
    """`sweep` over loops of full passes, per neuron and example."""
    model = ls.load_model(implementation=implementation)
    task = prompts(model, EXAMPLES)
    tokens, pairs = tokens_of(model, task)
    neurons = uniformly(model, per_layer)
    few = neurons[:: per_layer * every]  # of every so-many-th layer
    by_layer: dict[int, list[int]] = {}
    for layer, neuron in neurons:
        by_layer.setdefault(layer, []).append(neuron)

    def swept() -> None:
        sweep(model, task, neurons, do=ablate("zero"), metric="logit_diff")

    def one_by_one() -> None:
        for layer, neuron in few:
            logits = last_logits(model, tokens[:1], layer, [neuron])
            logits[0, pairs[0]].diff()

    def by_eight() -> None:
        for layer, neuron in few:
            last_logits(model, tokens, layer, [neuron]).gather(-1, pairs).diff()

    def stacked() -> None:
        for layer, _ in few:
            rows = (by_layer[layer] * COPIES)[:COPIES]
            last_logits(model, tokens[:1].repeat(COPIES, 1), layer, rows)[:, pairs[0]].diff()

    ways = {"sweep": swept, "b1": one_by_one, "b8": by_eight, "stacked": stacked}
    counts = {
        "sweep": len(neurons) * EXAMPLES,
        "b1": len(few),
        "b8": len(few) * EXAMPLES,
        "stacked": len(few) * COPIES,
    }
    seconds = interleaved(ways, rounds=rounds)
    each = {name: seconds[name] / counts[name] for name in ways}
    difference = largest_difference(model, task, tokens, few)
    suffix = "" if implementation == "hooked" else "_bridge"
    loops = {
        "loop_b1": ("b1", "a loop of run_with_hooks, one example"),
        "loop_b8": ("b8", "a loop of run_with_hooks, 8 examples"),
        "stacked": ("stacked", f"{COPIES} copies on the batch axis, one neuron each"),
    }
    figures = {
        f"sweep_vs_{name}{suffix}": each[way] / each["sweep"] for name, (way, _) in loops.items()
    }
    rows = {"sweep, ms per neuron and example": f"{1e3 * each['sweep']:.2f}"}
    for name, (way, text) in loops.items():
        ratio = figures[f"sweep_vs_{name}{suffix}"]
        rows[f"against {text}"] = f"{ratio:.1f}x ({1e3 * each[way]:.1f} ms)"
    rows["largest difference in log-probability"] = f"{difference:.1e}"
    table(f"{implementation}: {len(neurons)} neurons, {EXAMPLES} prompts of {TOKENS} tokens", rows)
    return {**figures, f"sweep_max_logprob_difference{suffix}": difference}


def largest_difference(
    model: Any, task: ls.Task, tokens: torch.Tensor, neurons: list[Neuron]
) -> float:
    """Between `sweep` and hooks, in the log-probability of the answer."""
    effects = sweep(model, task, neurons, do=ablate("zero"), metric=answer_log_probability)
    encoded = encode_examples(as_adapter(model), task, answers=True)
    wanted = [
        answer_log_probability(last_logits(model, tokens, layer, [neuron]), encoded)
        for layer, neuron in neurons
    ]
    return float((effects.clean + effects.total - torch.stack(wanted)).abs().max())


def whole(layers: list[int] | None) -> dict[str, float]:
    """Every neuron of the model on 8 examples; then screened by gradient, and what that misses."""
    model = ls.load_model()
    task, adapter = prompts(model, EXAMPLES), as_adapter(model)
    shown = range(adapter.n_layers) if layers is None else layers
    rows = torch.cartesian_prod(torch.tensor(list(shown)), torch.arange(adapter.d_mlp))
    asked: dict[str, Any] = {"do": ablate("zero"), "metric": "logit_diff"}
    start = time.perf_counter()
    effects = sweep(model, task, rows, **asked)
    between = time.perf_counter()
    screened = sweep(model, task, rows, screen=SHARE, **asked)
    seconds, short = between - start, time.perf_counter() - between
    means = effects.total.mean(1)
    order = means.abs().argsort(descending=True)
    measured, left = set(screened.names), screened.left_out(LARGEST)
    recall = {
        k: sum(effects.names[place] in measured for place in order[:k].tolist()) / k
        for k in (LARGEST, 2 * LARGEST)
    }
    assert screened.screening is not None
    missed = (means.abs() > left.threshold) & ~screened.screening.chosen
    table(
        f"all neurons of {len(shown)} layers, {EXAMPLES} prompts of {TOKENS} tokens",
        {
            "neurons": f"{len(effects.names):,}",
            "seconds": f"{seconds:.0f}",
            "ms per neuron and example": f"{1e3 * seconds / effects.total.numel():.2f}",
            "columns at once, MiB": "{edit_rows:,}, {edit_mib:.0f}".format(**effects.provenance),
            f"screened, {SHARE:.0%}: seconds": f"{short:.0f} (1/{seconds / short:.1f})",
            "measured": f"{len(measured):,}",
            f"recall of the {LARGEST} largest effects": f"{recall[LARGEST]:.2f}",
            f"recall of the {2 * LARGEST} largest": f"{recall[2 * LARGEST]:.2f}",
            "left out beyond the threshold, estimated": (
                f"{left.beyond:.0f} [{left.beyond_low}, {left.beyond_high}]"
            ),
            "in truth": f"{int(missed.sum())}",
        },
    )
    return {
        "sweep_whole_neurons": float(len(effects.names)),
        "sweep_whole_seconds": seconds,
        "sweep_screened_seconds": short,
        "sweep_screened_neurons": float(len(measured)),
        "sweep_screened_recall": recall[LARGEST],
        "sweep_screened_recall_twice": recall[2 * LARGEST],
        "sweep_whole_vs_screened": seconds / short,
    }


def loops(per_layer: int, every: int, rounds: int) -> dict[str, float]:
    """Against loops, on every implementation there is."""
    figures: dict[str, float] = {}
    for implementation in ("hooked", "bridge"):
        try:
            ls.load_model(implementation=implementation)
        except ls.LensSkillsError as error:
            print(f"{implementation}: not here ({error})")
            continue
        figures |= against_loops(implementation, per_layer, every, rounds)
    return figures


def main() -> None:
    parser = arguments(__doc__, quick="few neurons: a smoke run, not a measurement")
    parser.add_argument("part", nargs="?", choices=["loops", "whole"])
    asked = parser.parse_args()
    sizes = (32, 10, 1) if asked.quick else (64, 2, 5)
    ls.config(progress=False)
    run_parts(
        {
            "loops": lambda: loops(*sizes),
            # The layer in the middle costs what a layer costs on average.
            "whole": lambda: whole([15] if asked.quick else None),
        },
        asked,
        only=asked.part,
    )


if __name__ == "__main__":
    main()
