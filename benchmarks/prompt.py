"""`fit_prompt` against the loop anyone would write, and `score` with a prompt against a bare pass.

    python benchmarks/prompt.py            # both parts
    python benchmarks/prompt.py train      # one part: train or score
    python benchmarks/prompt.py --quick    # few examples and epochs: a smoke run, not a measurement

Inputs of 25 tokens, a soft prompt of 8 after them, answers of one token. Ratios are examples per
second of ours over those of the other way, from one run; what is computed once per training (the
inputs' keys and values, the checks, the held-out looks) is in the time. The inputs that are scored
begin each with words of its own, as in scoring.py.
"""

import resource
import sys
from typing import Any

import torch
from scoring import task_of
from timing import arguments, interleaved, run_parts, table

import lens_skills as ls
from lens_skills.activations.forward import encode_examples
from lens_skills.models import as_adapter, with_soft_prompt
from lens_skills.soft_prompts import fit_prompt, initial_prompt
from lens_skills.soft_prompts.training_batches import training_batches

TOKENS, SOFT, LR = 25, 8, 1e-2
METRICS = ["label:plural", "confidence"]


def inputs(model: Any, n_examples: int) -> ls.Task:
    """Agreement prompts led in to exactly 25 tokens; they repeat, as the work stays the same."""
    adapter, found = as_adapter(model), []
    for example in ls.tasks.agreement(n=400):
        for filler in ("So" + " and so" * k + " on" * j for k in range(12) for j in range(3)):
            prompt = f"{filler} {example.prompt[0].lower()}{example.prompt[1:]}"
            if len(adapter.encode(prompt)) == TOKENS:
                found.append((prompt, example))
                break
    return ls.Task(
        "agreement",
        [
            ls.Example(id=str(n), prompt=prompt, answer=e.answer, labels=e.labels, group=str(n))
            for n, (prompt, e) in enumerate(found[k % len(found)] for k in range(n_examples))
        ],
    )


def obvious_losses(
    model: Any, task: ls.Task, start: torch.Tensor, epochs: int, seed: int, size: int
) -> list[float]:
    """The mean loss of each epoch: forward and backward over input and prompt at each step."""
    spoken = with_soft_prompt(model, initial_prompt(model, SOFT, seed=seed))
    batches = training_batches(spoken, encode_examples(spoken, task, answers=True), size)
    inputs = [(batch.tokens[:, :-SOFT], batch.targets[:, 0]) for batch in batches]
    vectors = start.clone().requires_grad_()
    adam = torch.optim.Adam([vectors], lr=LR)
    generator = torch.Generator().manual_seed(seed)
    filler = torch.zeros(size, SOFT, dtype=torch.long)
    losses = []

    def put(embedded: torch.Tensor, hook: Any) -> torch.Tensor:
        rows = vectors.expand(len(embedded), -1, -1)
        return torch.cat([embedded[:, :-SOFT], rows], dim=1)

    for _ in range(epochs):
        total = 0.0
        for place in torch.randperm(len(inputs), generator=generator).tolist():
            tokens, answers = inputs[place]
            whole = torch.cat([tokens, filler[: len(tokens)]], dim=1)
            logits = model.run_with_hooks(whole, fwd_hooks=[("hook_embed", put)])[:, -1]
            loss = torch.nn.functional.cross_entropy(logits, answers)
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([vectors], 1.0)
            adam.step()
            total += float(loss.detach()) * len(tokens)
        losses.append(total / len(task))
    return losses


def training(model: Any, epochs: int, rounds: int, size: int) -> dict[str, float]:
    """The same steps both ways; the model's own parameters need no gradient in either.

    One batch of examples, so that an epoch is a step and the losses of every step are known.
    """
    needed = [part for part in model.parameters() if part.requires_grad]
    task, held_out = inputs(model, size), held_out_of(inputs(model, 1))
    options: dict[str, Any] = {
        "n_tokens": SOFT, "batch_size": size, "lr": LR, "patience": epochs + 1,
        "held_out": held_out,
    }  # fmt: skip
    start = initial_prompt(model, SOFT).suffix
    try:
        for part in needed:
            part.requires_grad_(False)
        before = peak_mb()
        prompt = fit_prompt(model, task, epochs=1, **options)
        ours_mb = peak_mb() - before
        obvious_losses(model, task, start, 1, 0, size)
        losses: dict[str, list[float]] = {}

        def ours() -> None:
            curve = fit_prompt(model, task, epochs=epochs, **options).frame()
            losses["ours"] = curve["train_loss"].tolist()[1:]

        def obvious() -> None:
            losses["obvious"] = obvious_losses(model, task, start, epochs, 0, size)

        seconds = interleaved({"ours": ours, "obvious": obvious}, rounds=rounds, warm_up=False)
    finally:
        for part in needed:
            part.requires_grad_(True)
    seen = epochs * len(task)
    ratio = seconds["obvious"] / seconds["ours"]
    difference = max(abs(a - b) for a, b in zip(losses["ours"], losses["obvious"], strict=True))
    table(
        f"training: {size} inputs of {TOKENS} tokens at a time, {SOFT} soft, {epochs} steps",
        {
            "fit_prompt, examples/s": f"{seen / seconds['ours']:.1f}",
            "full forward and backward, examples/s": f"{seen / seconds['obvious']:.1f}",
            "ratio": f"{ratio:.2f}x",
            f"largest difference in loss over {epochs} steps": f"{difference:.1e}",
            "keys and values kept, MiB": f"{prompt.provenance['kept_mb']:.0f}",
            "peak memory above the model, MiB": f"{ours_mb:.0f}",
        },
    )
    return {
        "train_vs_obvious_b64": ratio,
        "train_max_loss_difference": difference,
        "train_kept_mb": prompt.provenance["kept_mb"],
        "train_peak_mb": ours_mb,
    }


def held_out_of(task: ls.Task) -> list[ls.Example]:
    """One example of another group to look at after each epoch."""
    kept = {"prompt": task[0].prompt, "answer": task[0].answer}
    return [ls.Example(id="held out", group="held out", **kept)]


def peak_mb() -> float:
    """The largest memory this process has had."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def scoring(model: Any, n_examples: int, rounds: int, size: int) -> dict[str, float]:
    """`score` at every soft position against the forward pass over as many tokens."""
    task, prompt = task_of(model, n_examples, TOKENS), initial_prompt(model, SOFT)
    tokens = model.to_tokens([example.prompt for example in task])
    tokens = torch.cat([tokens, tokens[:, -SOFT:]], dim=1)

    @torch.no_grad()
    def bare() -> None:
        for part in tokens.split(size):
            model(part)

    def scored() -> None:
        with ls.config(batch_size=size):
            ls.score(model, task, metrics=METRICS, prompt=prompt, n_permutations=100)

    seconds = interleaved({"score": scored, "bare": bare}, rounds=rounds)
    ratio = seconds["bare"] / seconds["score"]
    table(
        f"score with a soft prompt: {n_examples} inputs of {TOKENS} + {SOFT} tokens, {SOFT} "
        f"positions, {len(METRICS)} metrics, 100 permutations",
        {
            "score, examples/s": f"{n_examples / seconds['score']:.1f}",
            "bare forward over the same tokens, examples/s": f"{n_examples / seconds['bare']:.1f}",
            "ratio": f"{ratio:.2f}x",
        },
    )
    return {"prompt_score_vs_forward": ratio}


def main() -> None:
    parser = arguments(__doc__, quick="few examples and epochs: a smoke run, not a measurement")
    parser.add_argument("part", nargs="?", choices=["train", "score"])
    asked = parser.parse_args()
    model = ls.load_model()
    ls.config(progress=False)
    parts = {
        "train": lambda: training(model, *((2, 1, 4) if asked.quick else (20, 3, 64))),
        "score": lambda: scoring(model, *((16, 1, 4) if asked.quick else (320, 3, 64))),
    }
    run_parts(parts, asked, only=asked.part)


if __name__ == "__main__":
    main()
