"""What the first opening of a GGUF file costs in processor time, and the second from the cache.

    python benchmarks/opening.py --against ../before   # beside an older checkout, in turn
    python benchmarks/opening.py --quick               # one of each: a smoke run, no measurement

Two files: the bundled model, and one with a vocabulary of 152,000 written for it with tiny weights,
which is all parsing. Every opening is a process of its own with an empty cache of its own; user and
system time of `load_model` are counted, imports are not. A ratio is *before* divided by *now*.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from itertools import chain, islice, product
from pathlib import Path

from timing import arguments, run_parts, table

HERE = Path(__file__).resolve().parents[1]

OPEN = """
import json, resource, sys, warnings
warnings.simplefilter("ignore")
import gguf, torch, transformers, transformer_lens, lens_skills as ls
import lens_skills.models, transformers.models.llama.modeling_llama
from transformer_lens.model_bridge import TransformerBridge
def seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
start = seconds()
ls.load_model(sys.argv[1] or None, implementation=sys.argv[2])
most = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds() - start, "megabytes": int(most.split()[1]) / 1024}))
"""


def opened(source: Path, model: str, implementation: str, cache: str) -> dict[str, float]:
    """One opening in a process of its own: processor seconds, and the largest memory."""
    surroundings = os.environ | {
        "PYTHONPATH": str(source),
        "LENS_SKILLS_CACHE": cache,
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", OPEN, model, implementation]
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, env=surroundings, cwd=cache
    )
    return json.loads(found.stdout.splitlines()[-1])


def write_vocabulary(path: Path, size: int = 152_000) -> None:
    """A Llama of two layers of 64 dimensions with byte-level tokens and as many merges."""
    import gguf
    import numpy as np
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = sorted(bytes_to_unicode().values())
    pairs = list(product(letters, letters))
    longer = ((one + other, third) for one, other in pairs for third in letters)
    merges = list(islice(chain(pairs, longer), size - len(letters) - 2))
    tokens = [*letters, *("".join(merge) for merge in merges), "<s>", "</s>"]
    width, inner = 64, 256
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("vocabulary")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.NORMAL] * (len(tokens) - 2) + [kinds.CONTROL] * 2)
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    shapes = {"attn_norm": (width,), "ffn_norm": (width,), "ffn_down": (width, inner)}
    shapes |= dict.fromkeys(("ffn_gate", "ffn_up"), (inner, width))
    shapes |= {f"attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
    all_shapes = {"token_embd": (len(tokens), width), "output_norm": (width,)}
    all_shapes |= {f"blk.{n}.{name}": shape for n in (0, 1) for name, shape in shapes.items()}
    generator = np.random.default_rng(0)
    for name, shape in all_shapes.items():
        weight = generator.standard_normal(shape, dtype=np.float32) * 0.2
        writer.add_tensor(f"{name}.weight", weight + ("norm" in name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measure(models: Mapping[str, str], before: Path | None, rounds: int) -> dict[str, float]:
    """Medians of first and second openings, in turn with those of the older checkout."""
    sources = {"now": HERE} | ({} if before is None else {"before": before.resolve()})
    figures: dict[str, float] = {}
    for name, model in models.items():
        for implementation in ("hooked", "bridge"):
            taken: dict[tuple[str, str], list[dict[str, float]]] = {}
            for _ in range(rounds):
                for when, source in sources.items():
                    with tempfile.TemporaryDirectory() as cache:
                        for turn in ("first", "second"):
                            found = opened(source, model, implementation, cache)
                            taken.setdefault((turn, when), []).append(found)
            middle = {
                key: {part: statistics.median(run[part] for run in runs) for part in runs[0]}
                for key, runs in taken.items()
            }
            rows = {}
            for turn in ("first", "second"):
                title = f"{turn}_{name}_{implementation}"
                now, old = middle[turn, "now"], middle.get((turn, "before"))
                figures[f"{title}_seconds"] = now["seconds"]
                figures[f"{title}_megabytes"] = now["megabytes"]
                rows[turn] = f"{now['seconds']:5.2f} s, {now['megabytes']:5.0f} MB"
                if old is not None:
                    figures[f"{title}_vs_before"] = old["seconds"] / now["seconds"]
                    figures[f"{title}_memory_vs_before"] = old["megabytes"] / now["megabytes"]
                    share = now["seconds"] / old["seconds"]
                    rows[turn] += f"; before {old['seconds']:5.2f} s, {old['megabytes']:5.0f} MB"
                    rows[turn] += f"; share {share:.2f}"
            table(f"{name}, {implementation}: processor time of an opening", rows)
    return figures


def main() -> None:
    parser = arguments(__doc__, quick="one of each: a smoke run, not a measurement")
    parser.add_argument("--against", type=Path, help="folder of an older checkout")
    parser.add_argument("--only", choices=("bundled", "vocabulary"), help="one file alone")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "vocabulary.gguf"
        models = {"bundled": "", "vocabulary": str(large)}
        if asked.only != "bundled":
            write_vocabulary(large)
        chosen = {name: at for name, at in models.items() if asked.only in (None, name)}
        rounds = 1 if asked.quick else 5
        run_parts({"": lambda: measure(chosen, asked.against, rounds)}, asked)


if __name__ == "__main__":
    main()
