"""`score` in bfloat16 against the bare float32 forward, and how far its numbers move.

    python benchmarks/precision.py            # both implementations, about ten minutes on two cores
    python benchmarks/precision.py --quick    # few examples: a smoke run, not a measurement

Agreement prompts led in to 25 tokens, in batches of 32, as in scoring.py: four metrics, 100
permutations, control task and rotated basis. ``moved`` is |r in bfloat16 - r in float32| of every
neuron and metric. Gradients are those of prescreen: Spearman's correlation of Taylor's estimate in
both precisions. Ratios are examples per second, from one run.
"""

from typing import Any

import torch
from scoring import BATCH, METRICS, PERMUTATIONS, task_of, ways_to_score
from timing import arguments, interleaved, run_parts, table

import lens_skills as ls
from lens_skills.models import as_adapter
from lens_skills.models.precision import fast_bfloat16
from lens_skills.stats.correlation import rank_agreement

TOKENS, TOP = 25, 100
NEAR = 0.005  # |Δr| that 99.9 % of the neurons are to stay within


def scored(model: Any, task: ls.Task, precision: str | None = None) -> Any:
    """The scores, as scoring.py measures them."""
    with ls.config(batch_size=BATCH):
        return ls.score(
            model, task, metrics=METRICS, n_permutations=PERMUTATIONS, precision=precision
        )


def distances(own: Any, found: Any) -> dict[str, float]:
    """How far r moved, over all metrics, and how many of the strongest stayed among them."""
    moved = (own.r - found.r).abs().flatten()
    kept = []
    for name in own.metrics:
        both = [set(scores[name].top(TOP).names) for scores in (own, found)]
        kept.append(len(both[0] & both[1]))
    return {
        "moved_p999": float(moved.sort().values[int(0.999 * (len(moved) - 1))]),
        "moved_most": float(moved.max()),
        "within_share": float((moved <= NEAR).double().mean()),
        "kept_of_top_100": float(min(kept)),
    }


def gradients(model: Any, n_examples: int) -> float:
    """Spearman's correlation of what the gradient expects of every neuron, in both precisions."""
    task = ls.tasks.few(ls.tasks.agreement(), n_examples)
    own, found = (
        ls.prescreen(model, task, metric="logit_diff", precision=precision)
        for precision in (None, "bfloat16")
    )
    return rank_agreement(own.taylor, found.taylor)


def in_bfloat16(n_examples: int, rounds: int, name: str | None = None) -> dict[str, float]:
    """Both implementations of the default model, or of ``name``."""
    figures: dict[str, float] = {}
    for implementation in ("hooked", "bridge"):
        try:
            model = ls.load_model(name, implementation=implementation)
        except ls.LensSkillsError as error:
            print(f"{implementation}: not here ({error})")
            continue
        task = task_of(model, n_examples, TOKENS)
        ways = {
            "bare": ways_to_score(model, task)["bare"],
            "own": lambda model=model, task=task: scored(model, task),
            "rounded": lambda model=model, task=task: scored(model, task, "bfloat16"),
        }
        seconds = interleaved(ways, rounds=rounds)
        found = {
            "score_vs_forward": seconds["bare"] / seconds["rounded"],
            "score_vs_float32": seconds["own"] / seconds["rounded"],
            **distances(scored(model, task), scored(model, task, "bfloat16")),
            "taylor_ranks": gradients(model, min(n_examples, 64)),
        }
        table(
            f"score in bfloat16: {implementation}, {n_examples} prompts of {TOKENS} tokens, by "
            f"{fast_bfloat16(as_adapter(model).device) or 'emulation'}",
            {
                "against the bare float32 forward": f"{found['score_vs_forward']:.2f}x",
                "against score in float32": f"{found['score_vs_float32']:.2f}x",
                f"neurons whose r moved by at most {NEAR}": f"{found['within_share']:.3%}",
                "99.9 % moved by at most": f"{found['moved_p999']:.4f}",
                f"of the {TOP} strongest kept, at least": f"{found['kept_of_top_100']:.0f}",
                "rank correlation of Taylor's estimate": f"{found['taylor_ranks']:.5f}",
            },
        )
        figures |= {f"bfloat16_{name}_{implementation}": value for name, value in found.items()}
    return figures


def main() -> None:
    parser = arguments(__doc__, quick="few examples: a smoke run, not a measurement")
    parser.add_argument("--model", help="another model than the default one")
    asked = parser.parse_args()
    ls.config(progress=False)
    n_examples, rounds = (64, 1) if asked.quick else (320, 5)
    torch.manual_seed(0)
    run_parts({"": lambda: in_bfloat16(n_examples, rounds, asked.model)}, asked)


if __name__ == "__main__":
    main()
