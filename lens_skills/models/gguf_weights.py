"""The tensors of a GGUF file written straight into a safetensors file, a piece at a time.

The bytes are those that `transformers` would read and save, by the same functions of the same
libraries; the model is never built for it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

PIECE = 1 << 17
"""So many numbers are dequantised, hashed and written at once, in the processor's cache."""

ONE_BY_ONE = ("TensorProcessor", "LlamaTensorProcessor")
"""What `transformers` calls its processors that make one tensor of the model of one of the file."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the safetensors file.

    Attributes:
        name: In the model's state dict.
        shape: There.
        source: The tensor of the GGUF reader it is made of.
        plain: Whether it is dequantised and nothing else, so that its rows may come in pieces.
    """

    name: str
    shape: tuple[int, ...]
    source: Any
    plain: bool


@dataclass(frozen=True)
class Weights:
    """What a safetensors file of the GGUF file's weights holds.

    Attributes:
        entries: In their order there.
        processor: What `transformers` makes the tensors of this architecture with.
    """

    entries: tuple[Entry, ...]
    processor: Any

    def pieces(self) -> Iterator[Any]:
        """The safetensors file from its first byte to its last, float32."""
        import gguf

        yield _header(self.entries)
        for entry in self.entries:
            data, kind = entry.source.data, entry.source.tensor_type
            rows = data.reshape(-1, data.shape[-1]) if entry.plain else data
            step = max(1, PIECE // entry.shape[-1]) if entry.plain else len(rows)
            for first in range(0, len(rows), step):
                numbers = gguf.dequantize(rows[first : first + step], kind)
                if not entry.plain:
                    found = self.processor.process(weights=numbers, name=entry.source.name)
                    numbers = found.weights
                yield np.ascontiguousarray(numbers, np.float32).reshape(-1).view(np.uint8)


def one_by_one(gguf_file: Path, shell: Any) -> Weights | None:
    """The weights of the file, where its tensors are the model's own one by one.

    None where they are not (experts stacked or split, weights missing, of another shape or
    renamed): `transformers` then has to build that model.

    Args:
        gguf_file: The file.
        shell: The model without its numbers, on the meta device.
    """
    processor = _processor(gguf_file, shell)
    entries = None if processor is None else _entries(gguf_file, shell, processor)
    return None if entries is None else Weights(tuple(entries), processor)


def _processor(gguf_file: Path, shell: Any) -> Any | None:
    """What turns the tensors of this architecture into those of the model, if one by one."""
    try:
        import gguf
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            load_gguf_checkpoint,
        )
    except ImportError:  # a transformers that reads GGUF otherwise
        return None
    reader: Any = gguf.GGUFReader(str(gguf_file))
    architecture = reader.fields["general.architecture"].contents()
    try:
        from transformers.integrations.gguf.utils import is_gguf_arch_supported

        if is_gguf_arch_supported(architecture):  # by a second reader, with names of its own
            return None
    except ImportError:
        pass
    kind = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    converted = (type(shell).__name__, shell.config.model_type)
    if kind.__name__ not in ONE_BY_ONE or any(map(get_checkpoint_conversion_mapping, converted)):
        return None
    return kind(config=load_gguf_checkpoint(str(gguf_file))["config"])


def _entries(gguf_file: Path, shell: Any, processor: Any) -> list[Entry] | None:
    """The tensors in the order of the safetensors file; None where they are not all the model's."""
    import gguf
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    reader: Any = gguf.GGUFReader(str(gguf_file))
    names = get_gguf_hf_weights_map(shell, processor)
    owners: dict[str, Any] = dict(shell.named_parameters(remove_duplicate=False))
    owners |= dict(shell.named_buffers(remove_duplicate=False))
    wanted = {name: owners[name] for name in shell.state_dict()}
    entries: dict[str, Entry] = {}
    for source in reader.tensors:
        # Nothing but a shape: numbers that are all the same one take no memory.
        probe = np.broadcast_to(np.float32(0), [int(n) for n in reversed(source.shape)])
        found = processor.process(weights=probe, name=source.name, tensor_key_mapping=names)
        name = names.get(found.name)
        if name is None:
            continue  # no weight: the frequencies of the positions
        if name in entries or name not in wanted or found.weights.shape != wanted[name].shape:
            return None
        entries[name] = Entry(name, found.weights.shape, source, found.weights is probe)
    # Of tied weights one is written.
    written = {id(wanted[name]) for name in entries}
    if len(written) < len(entries) or not {id(weight) for weight in wanted.values()} <= written:
        return None
    return [entries[name] for name in sorted(entries)]


def _header(entries: Sequence[Entry]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + 4 * prod(entry.shape)
        place = {"dtype": "F32", "shape": entry.shape, "data_offsets": (start, end)}
        header[entry.name] = place
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
