"""What `score` costs, against examples, tokens, layers and width, beside the machine's own limit.

    python benchmarks/cost_curves.py            # random Llamas, under three minutes on two cores
    python benchmarks/cost_curves.py --quick    # the smallest sizes once: a smoke run

One size is varied at a time about a middle one. ``score`` is asked for four metrics and 100
permutations, on random weights: what it costs does not depend on what they say. The limit is the
time that the forward pass's matrix products would take at the rate of one large product on this
machine, 2 x parameters of the blocks x tokens floating-point operations. The figure is drawn from
its table by ``redraw_figures.py``, as all are. Prints what one token and one parameter cost.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pictures import keep
from timing import arguments, interleaved, machine, run_parts, table

import lens_skills as ls
from lens_skills.models import as_adapter
from lens_skills.plotting.cost_plot import cost_curves

FIGURES = Path(__file__).resolve().parents[1] / "figures" / "cost"
MIDDLE = {"examples": 128, "tokens": 24, "layers": 4, "width": 256}
SIZES = {
    "examples": (64, 128, 256, 512),
    "tokens": (12, 24, 48, 96),
    "layers": (2, 4, 8, 16),
    "width": (128, 256, 512, 768),
}
METRICS = ["label:odd", "confidence", "entropy", "margin"]
BATCH, VOCABULARY = 32, 512
ASSUMED = 400e12
"""Operations a second of one accelerator in bfloat16."""


def model_of(layers: int, width: int) -> Any:
    """A random Llama: four times as many neurons as dimensions, a small vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=4 * width,
        num_hidden_layers=layers, num_attention_heads=width // 32, num_key_value_heads=width // 32,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    words = PreTrainedTokenizerFast(tokenizer_object=_words(), pad_token="w0", eos_token="w2")
    return ls.load_model(LlamaForCausalLM(config).eval(), tokenizer=words)


def _words() -> Any:
    """A tokenizer of one token a word: w0, w1, …"""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = {f"w{k}": k for k in range(VOCABULARY)}
    found = Tokenizer(models.WordLevel(names, unk_token="w0"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return found


def task_of(examples: int, tokens: int) -> ls.Task:
    """Random prompts of one length, in groups of two."""
    rows = torch.randint(3, VOCABULARY, (examples, tokens), generator=torch.manual_seed(1))
    return ls.Task(
        "random words",
        [
            ls.Example(id=str(k), prompt=" ".join(f"w{word}" for word in row),
                       labels={"odd": k % 2}, group=str(k // 2), kind=str(k // 2))
            for k, row in enumerate(rows.tolist())
        ],
    )  # fmt: skip


def block_parameters(model: Any) -> int:
    """Numbers in the matrices of all blocks, without embeddings."""
    parts = [part for part in model.blocks.parameters() if part.ndim > 1]
    return sum(part.numel() for part in parts)


A, B = torch.randn(1024, 1024), torch.randn(1024, 2048)
OPERATIONS = 2 * A.numel() * B.shape[1]
"""Of one large float32 product, which is timed between the passes."""


def ways(model: Any, task: ls.Task) -> dict[str, Callable[[], object]]:
    """`score` and the same batches through the model alone."""
    batches = [
        model.to_tokens([e.prompt for e in task[k : k + BATCH]]) for k in range(0, len(task), BATCH)
    ]

    @torch.no_grad()
    def bare() -> None:
        for tokens in batches:
            model(tokens)

    def score() -> None:
        with ls.config(batch_size=BATCH):
            ls.score(model, task, metrics=METRICS, n_permutations=100)

    return {"score": score, "bare": bare, "product": lambda: A @ B}


def curves(rounds: int, quick: bool) -> pd.DataFrame:
    """One row per size: varied, size, examples, tokens, neurons, parameters, and seconds."""
    models: dict[tuple[int, int], Any] = {}
    rows = []
    for varied, sizes in SIZES.items():
        for size in sizes[:2] if quick else sizes:
            at = MIDDLE | {varied: size}
            shape = at["layers"], at["width"]
            if shape not in models:
                models[shape] = model_of(*shape)
            model, task = models[shape], task_of(at["examples"], at["tokens"])
            seconds = interleaved(ways(model, task), rounds=rounds)
            rows.append(
                {
                    "varied": varied,
                    "size": size,
                    **{name: at[name] for name in ("examples", "tokens")},
                    "neurons": sum(as_adapter(model).mlp_widths),
                    "parameters": block_parameters(model),
                    "score": seconds["score"],
                    "forward": seconds["bare"],
                    "rate": OPERATIONS / seconds["product"],
                }
            )
    found = pd.DataFrame(rows)
    found["limit"] = operations(found) / found["rate"]
    return found


def operations(found: pd.DataFrame) -> pd.Series:
    """Of the matrix products of the blocks, of each row."""
    return 2 * found.parameters * found.examples * found.tokens


def unit_costs(found: pd.DataFrame) -> dict[str, float]:
    """What the sizes cost: fitted by least squares to relative errors, and never negative.

    seconds = a x (parameters x examples x tokens) + b x (neurons x examples) + c x neurons
    """
    from scipy.optimize import nnls

    parts = {
        "parameter_token": found.parameters * found.examples * found.tokens,
        "neuron_example": found.neurons * found.examples,
        "neuron": found.neurons,
    }
    design = pd.DataFrame(parts).to_numpy(dtype=float) / found.score.to_numpy()[:, None]
    costs, _ = nnls(design, [1.0] * len(found))
    fitted = design @ costs
    each = zip(parts, (1e9 * costs).tolist(), strict=True)
    return {f"cost_ns_per_{name}": cost for name, cost in each} | {
        "cost_largest_misfit": float(max(abs(fitted - 1)))
    }


def at_70b(rate: float) -> dict[str, float]:
    """A pass of 70 billion parameters over a billion tokens, in prompts of 25, by arithmetic.

    ``rate`` is this machine's, in operations a second; `ASSUMED` is assumed, not measured.
    """
    parameters, tokens, layers, width, columns = 70e9, 1e9, 80, 28_672, 770
    neurons, examples, day = layers * width, tokens / 25, 24 * 3600
    forward = 2 * parameters * tokens
    sums, rotated = (2 * many * neurons * examples for many in (columns, width))
    return {
        "large_operations": forward,
        "large_years_here": forward / rate / day / 365,
        "large_days_assumed": forward / ASSUMED / day,
        "large_sums_share": sums / forward,
        "large_rotation_share": rotated / forward,
        "large_columns": columns,
        "large_sums_gb": 8 * columns * neurons / 1e9,
        "large_rotation_gb": 4 * width**2 / 1e9,
    }


def costs(rounds: int, quick: bool, save: bool) -> dict[str, float]:
    """The curves, the figure, and the numbers of a much larger model."""
    found = curves(rounds, quick)
    print(found.round(4).to_string(index=False))
    ratio = found.forward / found.score
    units = unit_costs(found)
    slopes = {
        f"cost_exponent_{varied}": math.log(part.score.iloc[-1] / part.score.iloc[0])
        / math.log(part["size"].iloc[-1] / part["size"].iloc[0])
        for varied, part in found.groupby("varied", sort=False)
    }
    figures = {
        "cost_matrix_product_gflops": float(found["rate"].median()) / 1e9,
        "cost_score_vs_forward_median": float(ratio.median()),
        "cost_score_share_of_limit_best": float((found.limit / found.score).max()),
        "cost_score_gflops_best": float((operations(found) / found.score).max()) / 1e9,
        **units,
        **slopes,
        **at_70b(float(found["rate"].median())),
    }
    table("cost of score", {name: f"{value:.4g}" for name, value in figures.items()})
    drawing = cost_curves(found, machine=machine())
    if save:
        FIGURES.mkdir(parents=True, exist_ok=True)
        keep(drawing, FIGURES / "cost_curves")
    return figures


def main() -> None:
    parser = arguments(__doc__, quick="the smallest sizes once: a smoke run")
    asked = parser.parse_args()
    ls.config(progress=False)
    rounds = 1 if asked.quick else 5
    run_parts({"": lambda: costs(rounds, asked.quick, asked.save)}, asked)


if __name__ == "__main__":
    main()
