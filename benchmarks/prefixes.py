"""`score` on prompts that begin alike against a bare forward pass over the whole prompts.

    python benchmarks/prefixes.py            # everything, about ten minutes on two cores
    python benchmarks/prefixes.py shots      # one part: shots or chat
    python benchmarks/prefixes.py --quick    # fewer examples: a smoke run, not a measurement

Generated sentence pairs in the form of HANS, after four demonstrations; bare prompts in a chat
template with a long system prompt. The bare pass is the model's own, in batches of like length.
Ratios are examples per second of `score` over those of the bare pass, from one run; the first
`score` on a model also tries both ways, on two prompts, and is not counted.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timing import arguments, interleaved, run_parts, table

import lens_skills as ls
from lens_skills.activations.continuations import pad_left
from lens_skills.activations.shared_prefix import shared_length
from lens_skills.models import as_adapter

METRICS = ["label:entailment", "confidence", "entropy", "margin"]
PERMUTATIONS, BATCH, SHOTS = 100, 32, 4
WHAT = f"score, 4 metrics, {PERMUTATIONS} permutations, control task, rotated basis"
WORDING = (
    "Premise: {premise}\nHypothesis: {hypothesis}\n"
    "Question: Suppose that the premise is true, and nothing else is known. Does the hypothesis "
    "follow from the premise alone, whatever else may be the case? Yes or No?\nAnswer:"
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = (
    "You are asked whether one sentence follows from another. Take every sentence as it is "
    "written, and nothing beyond it: what people usually mean, and what usually happens, does not "
    "count. Answer with one word, Yes or No, and give no reasons."
)


def ways_to_score(model: Any, task: ls.Task, chat: bool | str) -> dict[str, Callable[[], Any]]:
    """`score` and the bare forward, on the same prompts in the same batches."""
    adapter = as_adapter(model)
    reads = adapter if chat is False else adapter.in_chat(chat)
    rows = sorted((reads.encode(example.prompt) for example in task), key=len)
    batches = [
        pad_left(rows[k : k + BATCH], adapter.pad_id, "cpu") for k in range(0, len(rows), BATCH)
    ]
    print(f"{shared_length(rows)} of {sum(map(len, rows)) / len(rows):.0f} tokens are shared")

    @torch.no_grad()
    def bare() -> None:
        for tokens, mask in batches:
            model(tokens, attention_mask=mask.long())

    def score() -> None:
        with ls.config(batch_size=BATCH):
            ls.score(model, task, metrics=METRICS, n_permutations=PERMUTATIONS, chat=chat)

    return {"score": score, "bare": bare}


def against_forward(part: str, n_examples: int, rounds: int) -> dict[str, float]:
    """`score` over the bare forward, on both implementations."""
    more: dict[str, Any] = {"shots": SHOTS, "wording": WORDING} if part == "shots" else {}
    task = ls.tasks.nli(n_examples, **more)
    figures = {}
    for implementation in ("hooked", "bridge"):
        try:
            model = ls.load_model(implementation=implementation)
        except ls.LensSkillsError as error:
            print(f"{implementation}: not here ({error})")
            continue
        model.tokenizer.chat_template = TEMPLATE
        ways = ways_to_score(model, task, SYSTEM if part == "chat" else False)
        seconds = interleaved(ways, rounds=rounds)
        ratio = seconds["bare"] / seconds["score"]
        table(
            f"{WHAT}: {implementation}, {part}, {n_examples} prompts",
            {"against the bare forward": f"{ratio:.2f}x"},
        )
        figures[f"score_vs_forward_{part}_{implementation}"] = ratio
    return figures


def main() -> None:
    parser = arguments(__doc__, quick="fewer examples: a smoke run, not a measurement")
    parser.add_argument("part", nargs="?", choices=["shots", "chat"])
    asked = parser.parse_args()
    n_examples, rounds = (64, 1) if asked.quick else (72, 5)
    ls.config(progress=False)
    parts: dict[str, Callable[[], dict[str, float]]] = {
        part: partial(against_forward, part, n_examples, rounds) for part in ("shots", "chat")
    }
    run_parts(parts, asked, only=asked.part)


if __name__ == "__main__":
    main()
