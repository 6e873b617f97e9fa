"""The fingerprint of a model: equal weights and vocabulary, equal 64 hex digits."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


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


def fingerprint(
    sizes: Mapping[str, int],
    parameters: Iterable[Tensor],
    weights_out: Iterable[Tensor],
    tokenizer: Any,
) -> str:
    """64 hex digits over the sizes, every weight, the order of the neurons and the vocabulary.

    HookedTransformer and TransformerBridge share it where the one holds the other's numbers
    regrouped (Llama and its kin): tied matrices count once and all-zero tensors (the biases
    HookedTransformer adds) not at all.

    Args:
        sizes: Named whole numbers of the architecture.
        parameters: All weights, in any order and layout.
        weights_out: The MLP output matrices, in layer order, ``[d_mlp d_model]``.
        tokenizer: Its vocabulary and special tokens count; None for a model without.
    """
    sums = sorted({checksum(parameter) for parameter in parameters})
    digest = hashlib.sha256(json.dumps(sorted(sizes.items())).encode())
    digest.update(json.dumps([entry for entry in sums if entry[1] or entry[2]]).encode())
    for weight in weights_out:
        # One column, in order: a permutation of the neurons must not pass as the same model.
        column = weight[:, 0].detach().contiguous().view(torch.uint8)
        digest.update(column.cpu().numpy().tobytes())
    if tokenizer is not None:
        vocabulary = sorted(tokenizer.get_vocab().items())
        special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
        digest.update(json.dumps([vocabulary, special]).encode())
    return digest.hexdigest()


def identity(adapter: Any) -> dict[str, str | None]:
    """Which model a result is of: its name and fingerprint, and those of its parts.

    With a soft prompt, ``model_fingerprint`` is of both together, ``weights`` of the bare model and
    ``prompt`` of the soft prompt.
    """
    own, soft = adapter.fingerprint(), adapter.soft
    return {
        "model": adapter.name,
        "model_fingerprint": own,
        "weights": own if soft is None else soft.model_fingerprint,
        "prompt": None if soft is None else soft.digest,
    }
