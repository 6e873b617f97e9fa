"""What a GGUF file says of the computation, held against the configuration read from it."""

import mmap
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from lens_skills.errors import LensSkillsError
from lens_skills.models.gguf_reading import ARRAY, FIXED, STRING

CARRIED = {
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok", "num_experts_per_token"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": (
        "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps", "rms_norm_eps",
    ),
    "attention.key_length": ("head_dim", "global_head_dim"),
    "attention.scale": ("attention_multiplier", "query_pre_attn_scalar"),
    "attention.clamp_kqv": ("clip_qkv",),
    "logit_scale": ("logit_scale", "logits_scaling"),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "rope.freq_base": ("rope_theta",),
    "rope.dimension_count": ("rotary_dim", "qk_rope_head_dim"),
}  # fmt: skip
"""Keys that change what is computed, and what transformers calls them."""


def check_lengths(path: Path) -> None:
    """Nothing; raises where the header counts more than the file holds.

    The reader of the `gguf` package believes a count, and fills the memory with what is not there.

    Raises:
        LensSkillsError: A text or an array that ends behind the file, or a value of no known type.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        fine = _counts_fit(whole)
    if not fine:
        raise LensSkillsError(
            f"{path} is damaged: its header counts more than its {path.stat().st_size:,} bytes "
            "hold, or names a type of value that is none. Compare its size and checksum with the "
            "original's."
        )


def _counts_fit(whole: mmap.mmap) -> bool:
    order = "<" if int.from_bytes(whole[4:8], "little") < 1 << 16 else ">"
    size, place = len(whole), 24
    length_at = struct.Struct(f"{order}Q").unpack_from

    def number(form: str) -> int:
        nonlocal place
        place += struct.calcsize(form)
        return int(struct.unpack_from(order + form, whole, place - struct.calcsize(form))[0])

    def skip(kind: int) -> None:
        nonlocal place
        if kind == ARRAY:
            inner, n = number("I"), number("Q")
            if inner in FIXED:
                place += n * struct.calcsize(f"={FIXED[inner]}")
            elif inner == STRING:
                for _ in range(n):
                    place += 8 + length_at(whole, place)[0]
                    if place > size:
                        raise ValueError
            elif n * 8 <= size:  # the least that an array takes
                for _ in range(n):
                    skip(inner)
            else:
                place = size + 1
        elif kind == STRING:
            length = number("Q")
            place += length
        else:
            place += struct.calcsize(f"={FIXED[kind]}")
        if place > size:
            raise ValueError

    try:
        n_tensors, n_values = struct.unpack_from(order + "QQ", whole, 8)
        for _ in range(n_values):
            skip(STRING)
            skip(number("I"))
    except (KeyError, ValueError, struct.error, RecursionError):
        return False
    return n_tensors * 24 <= size - place


def check_whole(path: Path) -> Any:
    """The model on the meta device; raises where it is larger than the one the file holds.

    A damaged size would otherwise be built before anything is compared with it, as far as memory
    goes. The model is laid out without its numbers, and counted.

    Raises:
        LensSkillsError: More blocks, or more than twice the numbers that are there; as
            `check_lengths`.
    """
    check_lengths(path)
    import gguf
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    reader: Any = gguf.GGUFReader(str(path))
    names = [re.match(r"blk\.(\d+)\.", tensor.name) for tensor in reader.tensors]
    blocks = len({int(found[1]) for found in names if found})
    counts = [f.contents() for name, f in reader.fields.items() if name.endswith(".block_count")]
    held = sum(int(tensor.n_elements) for tensor in reader.tensors)
    wanted, shell = 0, None
    if all(count <= blocks for count in counts):
        config = AutoConfig.from_pretrained(
            str(path.parent), gguf_file=path.name, local_files_only=True, trust_remote_code=False
        )
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(config)
        wanted = sum(weight.numel() for weight in shell.parameters())
    if wanted > 2 * held or any(count > blocks for count in counts):
        asked = f"{wanted:,} numbers" if wanted else f"{counts[0]:,} blocks"
        raise LensSkillsError(
            f"{path} asks for a model of {asked} and holds {held:,} numbers in {blocks} blocks: it "
            "is damaged. Compare its size and checksum with the original's."
        )
    return shell


def check_carried(path: Path, config: Any) -> None:
    """Nothing; raises where the file names a computation the configuration does not.

    Args:
        path: The GGUF file.
        config: The configuration that transformers made of it.

    Raises:
        LensSkillsError: Scaled positions, windows, caps, experts or sizes that were lost.
    """
    import gguf

    reader: Any = gguf.GGUFReader(str(path))
    architecture = reader.fields["general.architecture"].contents()
    said = {
        name.removeprefix(f"{architecture}."): field.contents()
        for name, field in reader.fields.items()
        if name.startswith(f"{architecture}.")
    }
    lost = [
        f"{architecture}.{key} = {said[key]}"
        for key, names in CARRIED.items()
        if said.get(key) and not _has(config, key, names, said)
    ]
    lost += [f"{architecture}.{key} = {value}" for key, value in _scaling(config, said).items()]
    for tensor in reader.tensors:
        # Llama 3.1 and its kin keep their scaled frequencies as a tensor.
        scaled = tensor.name.startswith("rope_f") and not bool((np.asarray(tensor.data) == 1).all())
        if scaled and not _rope_types(config) & {"llama3", "longrope"}:
            lost.append(f"{tensor.name} (scaled frequencies of positions)")
    if lost:
        raise LensSkillsError(
            f"{path} says {', '.join(lost)}, and transformers does not carry that over from GGUF: "
            "the model would compute something else. Open its original: "
            "load_model('the/name/on/the/hub') or the folder of its safetensors."
        )


def _parameters(config: Any) -> list[dict[str, Any]]:
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    found = found if isinstance(found, dict) else {}
    return [part for part in found.values() if isinstance(part, dict)] or [found]


def _rope_types(config: Any) -> set[str]:
    return {str(part.get("rope_type", part.get("type"))) for part in _parameters(config)}


def _has(config: Any, key: str, names: tuple[str, ...], said: dict[str, Any]) -> bool:
    value = said[key]
    found = [getattr(config, name, None) for name in names]
    if key == "rope.freq_base":
        found += [part.get("rope_theta") for part in _parameters(config)]
    if key == "rope.dimension_count" and not any(found):
        width = getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
        shares = [part.get("partial_rotary_factor") for part in _parameters(config)]
        share = getattr(config, "partial_rotary_factor", None) or (shares[0] if shares else None)
        found = [int(width * (share or 1.0))]
    if key == "attention.key_length" and not any(found):
        found = [config.hidden_size // config.num_attention_heads]
    if key == "attention.sliding_window" and value >= said.get("context_length", value + 1):
        return True  # no prompt is as long
    if key == "attention.scale":
        found += [one**-0.5 for one in found if one]
    if key in ("logit_scale", "attention.scale"):
        found += [1 / one for one in found if one]
    value = max(value) if isinstance(value, list) else value
    return any(one is not None and abs(one - value) <= 1e-3 * abs(value) for one in found)


def _scaling(config: Any, said: dict[str, Any]) -> dict[str, Any]:
    """What is said of scaled positions and is not in the configuration."""
    keys = {key: value for key, value in said.items() if key.startswith("rope.scal")}
    kind = keys.get("rope.scaling.type")
    factor = keys.get("rope.scaling.factor") or keys.get("rope.scale_linear") or 1.0
    if kind == "none" or (kind in (None, "linear") and factor == 1.0):
        return {}
    kind = kind or "linear"
    kept = [part.get("factor") for part in _parameters(config) if part.get("rope_type") == kind]
    if kept and any(one is None or abs(one - factor) <= 1e-3 * factor for one in kept):
        return {}
    return keys
