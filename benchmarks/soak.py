"""Resident memory while 100,000 distinct examples go through a verb, each in a process of its own.

A Llama of one layer with 64 neurons, made here, reads sums of two numbers: the examples, not the
model, are the load. Resident memory is looked at whenever a batch is done, and a line is laid
through what it was from the first fifth of the examples on. What the result holds of each example
grows with them by right, and is told beside it: the metrics of `score`, the effects of `sweep`, the
rows of `capture` (on disk) and the texts of `generate`.

python benchmarks/soak.py                  # 100,000 examples through five verbs
python benchmarks/soak.py --only rank      # one verb
python benchmarks/soak.py --quick          # 3,000 examples: a smoke run, not a measurement
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from memory import sums
from timing import arguments, run_parts, table

import lens_skills as ls
from lens_skills.progress import Progress

VERBS = ("score", "rank", "sweep", "capture", "generate")
BATCH = 512
WARM = 0.2
"""The share of the examples after which the line begins."""
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_mb() -> float:
    """What the process holds now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE / 2**20


def tiny_model(folder: Path) -> Any:
    """One layer of random weights, with a token for each digit and each sign."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<s>", "<pad>", *"0123456789+= "]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>")
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0,
        eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return ls.load_model(str(folder))


def run(verb: str, model: Any, task: Any, place: Path) -> Any:
    """The verb on all examples."""
    metric: dict[str, Any] = {"metric": "logit_diff"}
    verbs: dict[str, Callable[[], Any]] = {
        "score": lambda: ls.score(model, task, metrics=["logit_diff", "entropy"]),
        "rank": lambda: ls.rank(model, task, "logit_diff"),
        "sweep": lambda: ls.sweep(model, task, ["L0N3", "L0N9"], do=ls.ablate("zero"), **metric),
        "capture": lambda: ls.capture(model, task, place / "table"),
        "generate": lambda: ls.generate(model, task, max_new_tokens=2),
    }
    return verbs[verb]()


def measure(verb: str, n: int) -> None:
    """Prints what was held, as (examples done, MB) pairs, and what the result took."""
    seen: list[tuple[str, int, int, float]] = []
    update = Progress.update

    def looked(shown: Progress, by: int = 1) -> None:
        update(shown, by)
        seen.append((shown.verb, shown.done, shown.total, resident_mb()))

    with tempfile.TemporaryDirectory() as folder, ls.config(batch_size=BATCH, progress=False):
        model = tiny_model(Path(folder) / "model")
        run(verb, model, sums(2 * BATCH), Path(folder) / "few")
        task = sums(n)
        gc.collect()
        before, start = resident_mb(), time.process_time()
        Progress.update = looked  # type: ignore[method-assign]
        result = run(verb, model, task, Path(folder) / "all")
        seconds = time.process_time() - start
        held = resident_mb()
        del result
        gc.collect()
    longest = max({one[0] for one in seen}, key=lambda name: sum(one[0] == name for one in seen))
    rows = [(n * done / total, mb) for name, done, total, mb in seen if name == longest]
    told = {"before": before, "after": held, "freed": held - resident_mb()}
    print(json.dumps(told | {"seconds": seconds, "rows": rows}))


def soak(verb: str, n: int) -> dict[str, float]:
    """One verb in a process of its own."""
    command = [sys.executable, __file__, "--one", verb, str(n)]
    # What is large is mapped and unmapped on its own, and not kept by the allocator.
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, capture_output=True, text=True, env=settings, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    examples, mb = np.array(found["rows"]).T
    warm = examples >= WARM * n
    slope = float(np.polyfit(examples[warm] / 10_000, mb[warm], 1)[0])
    table(
        f"{verb}: {n:,} examples, {found['seconds']:.0f} s of processor time",
        {
            "resident before": f"{found['before']:,.0f} MB",
            "warm, and at the end of the pass": f"{mb[warm][0]:,.0f} and {mb[-1]:,.0f} MB",
            "slope": f"{slope:+.2f} MB per 10,000 examples",
            "with the result": f"{found['after']:,.0f} MB",
        },
    )
    return {
        f"{verb}_examples": n,
        f"{verb}_seconds": found["seconds"],
        f"{verb}_before_mb": found["before"],
        f"{verb}_warm_mb": float(mb[warm][0]),
        f"{verb}_end_mb": float(mb[-1]),
        f"{verb}_peak_mb": float(max(mb.max(), found["after"])),
        f"{verb}_after_mb": found["after"],
        f"{verb}_slope_mb": slope,
    }


def main() -> None:
    parser = arguments(__doc__, quick="3,000 examples: a smoke run, not a measurement")
    parser.add_argument("--only", choices=VERBS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        measure(asked.one[0], int(asked.one[1]))
        return
    n = 3_000 if asked.quick else 100_000
    if asked.only and asked.save:
        raise SystemExit("one verb is not the table: --only and --save do not go together")
    verbs = [asked.only] if asked.only else VERBS

    def measured() -> dict[str, float]:
        return {key: value for verb in verbs for key, value in soak(verb, n).items()}

    run_parts({"": measured}, asked)


if __name__ == "__main__":
    main()
