"""`score` against a bare forward pass, and against what a user would write.

    python benchmarks/scoring.py            # everything, about half an hour on two cores
    python benchmarks/scoring.py hooked     # one part: hooked, bridge, recipes or ranking
    python benchmarks/scoring.py --quick    # fewer examples: a smoke run, not a measurement

Ratios are examples per second of `score` over those of the other way, from one run.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import stats
from timing import arguments, interleaved, run_parts, table

import lens_skills as ls
from lens_skills.models import as_adapter

METRICS = ["label:plural", "confidence", "entropy", "margin"]
PERMUTATIONS, BATCH, TOKENS = 100, 32, 25
SHARE = 40
FILLER = ["so", "and", "then", "now", "well", "yes", "but", "as", "if", "on", "when", "or"]
POSITIONS = list(range(-8, 0))
WHAT = f"score, 4 metrics, {PERMUTATIONS} permutations, control task, rotated basis"


def task_of(model: Any, n_examples: int, n_tokens: int) -> ls.Task:
    """Agreement prompts led in by filler until each has exactly ``n_tokens`` tokens.

    Each has filler of its own: what prompts begin with alike would be run once for all of them,
    which `prefixes.py` measures.
    """
    adapter, random = as_adapter(model), np.random.default_rng(0)
    found = []
    for place, example in enumerate(ls.tasks.agreement(n=min(n_examples, 7680))):
        text = f"{example.prompt[0].lower()}{example.prompt[1:]}"
        words, n_words = random.choice(FILLER, n_tokens).tolist(), n_tokens
        for _ in range(n_tokens):
            filler = " ".join(words[:n_words]).capitalize()
            prompt = f"{filler} {text}" if n_words else example.prompt
            extra = len(adapter.encode(prompt)) - n_tokens
            if extra == 0:
                break
            n_words = max(n_words - extra, 0)
        found.append(
            ls.Example(
                id=str(place),
                prompt=prompt,
                labels=example.labels,
                group=example.group,
                kind=example.kind,
            )
        )
    # Beyond what the generator makes, prompts repeat: the work is the same.
    found += [
        ls.Example(id=str(k), prompt=found[k % len(found)].prompt,
                   labels=found[k % len(found)].labels, group=found[k % len(found)].group,
                   kind=found[k % len(found)].kind)
        for k in range(len(found), n_examples)
    ]  # fmt: skip
    return ls.Task("agreement", found)


def ways_to_score(model: Any, task: ls.Task) -> dict[str, Callable[[], Any]]:
    """`score`, the bare forward, and the recipes, on the same batches."""
    batches = [
        (model.to_tokens([e.prompt for e in task[k : k + BATCH]]), k)
        for k in range(0, len(task), BATCH)
    ]
    names = {f"blocks.{layer}.mlp.hook_post" for layer in range(model.cfg.n_layers)}
    plural = np.array([example.labels["plural"] for example in task], dtype=float)

    @torch.no_grad()
    def bare() -> None:
        for tokens, _ in batches:
            model(tokens)

    @torch.no_grad()
    def cached() -> tuple[np.ndarray, np.ndarray]:
        activations, metrics = [], []
        for tokens, k in batches:
            logits, cache = model.run_with_cache(tokens, names_filter=lambda name: name in names)
            rows = torch.stack(
                [cache[f"blocks.{layer}.mlp.hook_post"][:, -1] for layer in range(len(names))], 1
            )
            activations.append(rows.flatten(1).numpy())
            shares = logits[:, -1].log_softmax(-1)
            best = shares.topk(2, dim=-1).values
            entropy = -(shares.exp() * shares).sum(-1)
            metrics.append(
                np.stack(
                    [plural[k : k + len(tokens)], best[:, 0].exp(), entropy,
                     best[:, 0] - best[:, 1]], axis=1,
                )
            )  # fmt: skip
        return np.concatenate(activations), np.concatenate(metrics)

    def correlate(activations: np.ndarray, metric: np.ndarray) -> np.ndarray:
        a = (activations - activations.mean(0)) / (activations.std(0) + 1e-12)
        return (metric - metric.mean()) / metric.std() @ a / len(a)

    def naive() -> None:
        activations, metrics = cached()
        random = np.random.default_rng(0)
        for metric in metrics.T:
            correlate(activations, metric)
            for _ in range(PERMUTATIONS):
                np.abs(correlate(activations, random.permutation(metric))).max()

    def hoisted() -> None:
        activations, metrics = cached()
        random = np.random.default_rng(0)
        a = (activations - activations.mean(0)) / (activations.std(0) + 1e-12)
        for metric in metrics.T:
            z = (metric - metric.mean()) / metric.std()
            draws = np.stack([z, *(random.permutation(z) for _ in range(PERMUTATIONS))])
            np.abs(draws.astype(np.float32) @ a / len(a)).max(1)

    def score(position: Any = "last") -> None:
        with ls.config(batch_size=BATCH):
            ls.score(model, task, metrics=METRICS, n_permutations=PERMUTATIONS, position=position)

    eight = partial(score, POSITIONS)
    return {
        "score": score,
        "eight": eight,
        "bare": bare,
        "naive": naive,
        "hoisted": hoisted,
        "cached": cached,
    }


def scipy_loop(activations: np.ndarray, metrics: np.ndarray) -> None:
    """What a user without a null writes: one call per metric and neuron."""
    for metric in metrics.T:
        for neuron in activations.T:
            stats.pearsonr(neuron, metric)


def ranking(model: Any, n_examples: int) -> dict[str, float]:
    """scikit-learn's F test and a SciPy loop on the same stored activations: same ranking?"""
    from sklearn.feature_selection import f_classif

    task = task_of(model, n_examples, 12)
    names = ["label:plural"]
    ways = ways_to_score(model, task)
    activations, metrics = ways["cached"]()
    scores = ls.score(model, task, metrics=names, n_permutations=0)
    strength = scores["label:plural"].strength.numpy()
    f, _ = f_classif(activations.astype(np.float64), metrics[:, 0])
    some = np.arange(0, len(strength), SHARE)
    r = np.array([stats.pearsonr(activations[:, k], metrics[:, 0])[0] for k in some])
    kept = np.isfinite(f)
    rank = float(np.asarray(stats.spearmanr(strength[kept], f[kept]))[0])
    rank_scipy = float(np.asarray(stats.spearmanr(strength[some], np.abs(r)))[0])
    seconds = interleaved(
        {"f_classif": lambda: f_classif(activations.astype(np.float64), metrics[:, 0])}, rounds=3
    )["f_classif"]
    table(
        "same ranking as other libraries on the same activations (Spearman)",
        {
            "f_classif (F is a monotone function of r²)": f"{rank:.6f}",
            "scipy.stats.pearsonr": f"{rank_scipy:.6f}",
            "f_classif, seconds for one metric on stored activations": f"{seconds:.2f}",
        },
    )
    return {"rank_vs_f_classif": rank, "rank_vs_scipy": rank_scipy}


def against_forward(implementation: str, n_examples: int, rounds: int) -> dict[str, float]:
    """`score` over the same model's bare forward."""
    try:
        model = ls.load_model(implementation=implementation)
    except ls.LensSkillsError as error:
        print(f"{implementation}: not here ({error})")
        return {}
    ways = ways_to_score(model, task_of(model, n_examples, TOKENS))
    asked = ("score", "eight", "bare")
    seconds = interleaved({name: ways[name] for name in asked}, rounds=rounds)
    ratio, eight = (seconds["bare"] / seconds[name] for name in asked[:2])
    table(
        f"{WHAT}: {implementation}, {n_examples} prompts of {TOKENS} tokens",
        {
            "against the bare forward": f"{ratio:.2f}x",
            "at the last eight positions": f"{eight:.2f}x",
        },
    )
    return {"score_vs_forward": ratio, "score_of_eight_vs_forward": eight}


def against_recipes(n_examples: int, rounds: int, tokens: tuple[int, ...]) -> dict[str, float]:
    """`score` over what a user would write with `run_with_cache`."""
    names = {
        "naive": "run_with_cache, stack, NumPy, 100 permutations each standardised anew",
        "hoisted": "the same, standardised once (one matrix product)",
        "scipy": "run_with_cache, stack, SciPy loop over neurons, no null",
    }
    model, figures = ls.load_model(), {}
    for n_tokens in tokens:
        ways = ways_to_score(model, task_of(model, n_examples, n_tokens))
        timed = {name: ways[name] for name in ("score", "naive", "hoisted", "cached")}
        activations, metrics = ways["cached"]()
        # The loop takes minutes: it is timed on every 40th neuron, in the same rounds.
        timed["loop"] = partial(scipy_loop, activations[:, ::SHARE], metrics)
        seconds = interleaved(timed, rounds=rounds)
        seconds["scipy"] = seconds["cached"] + SHARE * seconds["loop"]
        rows = {}
        for name, text in names.items():
            figures[f"score_vs_{name}_{n_tokens}_tokens"] = seconds[name] / seconds["score"]
            rows[f"against {text}"] = f"{seconds[name] / seconds['score']:.2f}x"
        table(f"{WHAT}: {n_examples} prompts of {n_tokens} tokens", rows)
    return figures


def main() -> None:
    parser = arguments(__doc__, quick="fewer examples: a smoke run, not a measurement")
    parser.add_argument("part", nargs="?", choices=["hooked", "bridge", "recipes", "ranking"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[12, 25], help="of the recipes")
    asked = parser.parse_args()
    n_examples, rounds = (64, 1) if asked.quick else (320, 5)
    ls.config(progress=False)
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "hooked": lambda: against_forward("hooked", n_examples, rounds),
        "bridge": lambda: against_forward("bridge", n_examples, rounds),
        "recipes": lambda: against_recipes(n_examples, rounds, tuple(asked.tokens)),
        "ranking": lambda: ranking(ls.load_model(), min(n_examples, 160)),
    }
    run_parts(parts, asked, only=asked.part)


if __name__ == "__main__":
    main()
