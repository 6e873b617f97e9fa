"""Damages a GGUF file in ways that downloads, disks and other writers do; and counts escapes.

``python -m tests.models.gguf_damage 10000`` opens so many damaged copies of a tiny file.
"""

import os
import random
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from lens_skills.errors import LensSkillsError

_COUNTS = tuple(
    number.to_bytes(8, "little") for number in (0, 10**7, 2**31, 2**62, 2**64 - 1, 3, 255)
)


def damaged(whole: bytes, seed: int) -> bytes:
    """A copy with bytes changed, cut off, put in, or with counts that cannot be; mostly early."""
    draw, file = random.Random(seed), bytearray(whole)
    header = whole.find(b"output_norm.weight") + 2_000
    for _ in range(draw.choice((1, 1, 2, 5))):
        reach = draw.choice((24, 600, 600, header, header, len(file)))
        place = draw.randrange(max(min(reach, len(file)), 1))
        how = draw.choice(("flip", "flip", "count", "cut", "insert"))
        if how == "flip" and file:
            file[place] = draw.randrange(256)
        elif how == "count":
            file[place : place + 8] = draw.choice(_COUNTS)
        elif how == "cut":
            del file[place:]
        else:
            file[place:place] = draw.randbytes(draw.choice((1, 8)))
    return bytes(file)


def opens(path: Path) -> str:
    """``opened`` or ``refused``: anything else a damaged file does is raised.

    The cache is wherever ``$LENS_SKILLS_CACHE`` says.
    """
    import torch

    from lens_skills.models import gguf_cache
    from lens_skills.models.huggingface import from_folder

    try:
        from_folder(gguf_cache.converted(path), dtype=torch.float32)
    except LensSkillsError:
        return "refused"
    return "opened"


def main(n: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.models.tiny_gguf import write_gguf
    from tests.tiny_tokenizer import tiny_tokenizer

    warnings.simplefilter("error")
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        tie_word_embeddings=False,
    )  # fmt: skip
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LENS_SKILLS_CACHE"] = f"{folder}/cache"
        whole = write_gguf(LlamaForCausalLM(config), tokenizer, Path(folder) / "tiny.gguf")
        for seed in range(n):
            path = Path(folder) / f"damaged-{seed}.gguf"
            path.write_bytes(damaged(whole.read_bytes(), seed))
            try:
                found[opens(path)] += 1
            except BaseException as error:
                found["escaped"] += 1
                print(seed, type(error).__name__, str(error)[:200], flush=True)
                if isinstance(error, KeyboardInterrupt):
                    raise
            path.unlink()
    print(dict(found))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
