"""Weights as they are stored: their checksum, and what a pass cannot read or differentiate."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from lens_skills.errors import LensSkillsError


def check_present(name: str, weights: Iterable[Tensor]) -> None:
    """Nothing; raises where weights are on the meta device."""
    if any(weight.is_meta for weight in weights):
        raise LensSkillsError(
            f"the weights of {name} are not all here: they are offloaded (device_map with disk or "
            "CPU) or were never loaded, and a bridge's parts read them where they are. "
            "load_model(the transformers model, tokenizer=...) gathers offloaded weights."
        )


def check_gradients(name: str, weights: Iterable[Tensor]) -> None:
    """Nothing; raises where a product with packed weights would silently have no gradient.

    bitsandbytes lays out four bits anew for its CPU kernel, which has no backward pass.
    """
    states = (getattr(weight, "quant_state", None) for weight in weights)
    if any(getattr(state, "packing_format_for_cpu", False) for state in states):
        raise LensSkillsError(
            f"{name} has no gradients: bitsandbytes computes its four bits on this CPU in a kernel "
            "without them. What needs none works (sweep, verify, rank by activations); for "
            "gradients open it in eight bits, on a GPU, or the model it was quantised from."
        )


def checksum(tensor: Tensor) -> tuple[int, int, int]:
    """Number of elements, sum and exclusive-or of their bit patterns.

    Integer sums are exact and do not depend on order: the same numbers give the same checksum on
    any number of threads and in any layout, which a floating-point sum would not. 135 million
    float32 take 50 ms.

    >>> checksum(torch.tensor([[1.0, 2.0]])) == checksum(torch.tensor([2.0, 1.0]))
    True
    """
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    # Axes in the order they have in memory: the checksum does not mind, and reads ten times faster.
    axes = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    raw = tensor.detach().view(bits).permute(axes).cpu().numpy()
    words = raw.view(f"u{raw.dtype.itemsize}")
    total = int(np.add.reduce(words, axis=None, dtype=words.dtype))
    return words.size, total, int(np.bitwise_xor.reduce(words, axis=None))
