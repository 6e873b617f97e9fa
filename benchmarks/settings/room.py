"""Whether a model and the largest pass over it fit into the memory, asked before either."""

from pathlib import Path
from typing import Any

import lens_skills as ls
from lens_skills.estimation.estimates import bytes_in_words
from lens_skills.models.gguf_reading import read_once
from lens_skills.models.memory import free_bytes

FLOAT32 = 4


def parameters(model: str | None) -> int | None:
    """How many numbers a model's files hold; None where they cannot be looked into unopened.

    Args:
        model: A ``.gguf`` file, a folder of ``.safetensors``, or a name in the hub's cache.
    """
    if model is None:
        return None
    path = Path(model)
    if path.suffix == ".gguf" and path.is_file():
        import gguf

        with read_once():
            return sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(path).tensors)
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(model, local_files_only=True))
        except (OSError, ValueError):  # not in the cache, or a bundled model's name
            return None
    from safetensors import safe_open

    count = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as held:
            for name in held.keys():  # noqa: SIM118 - it has no other iterator
                size = 1
                for length in held.get_slice(name).get_shape():
                    size *= length
                count += size
    return count or None


def refuse_too_large(model: str | None) -> None:
    """Ends the script where the weights alone are more than the memory that is free."""
    count, free = parameters(model), free_bytes()
    if count is None or free is None or FLOAT32 * count <= free:
        return
    raise SystemExit(
        f"{model} holds {count:,} numbers, {bytes_in_words(FLOAT32 * count)} as float32, and "
        f"{bytes_in_words(free)} of memory are free. Take a smaller model or a larger machine."
    )


def told_beforehand(verb: str, *args: Any, **options: Any) -> str:
    """What the largest call will take, in a sentence; ends the script where it is too much."""
    told, free = ls.estimate(verb, *args, **options), free_bytes()
    if free is not None and told.memory > free:
        raise SystemExit(
            f"{verb} would take {bytes_in_words(told.memory)} beside the model, and "
            f"{bytes_in_words(free)} of memory are free. Ask for fewer examples "
            "(--explore), smaller batches (ls.config(batch_size=…)) or a smaller model."
        )
    return (
        f"told beforehand (`ls.estimate`), for {verb} over the largest split: about "
        f"{told.seconds / 60:.1f} minutes and {bytes_in_words(told.memory)} beside the model's "
        f"{bytes_in_words(told.model_bytes)}"
    )
