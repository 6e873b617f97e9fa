"""A GGUF file parsed once and dequantised in large pieces, by the libraries' own readers.

`transformers` parses the file anew for the configuration, the weights and the tokenizer, each time
entry by entry of the vocabulary. Inside `read_once` the same functions of the same libraries find
the lists of the vocabulary already cut, and give what they give without.
"""

import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

_LOCK = threading.Lock()

_GROUP = 1 << 17
"""So many numbers are dequantised at once: what is in between fits into the processor's cache."""

FIXED = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
STRING, ARRAY = 8, 9
"""Types of values by their numbers in the file: numbers, as `struct` calls them; texts; arrays."""


@contextmanager
def read_once() -> Iterator[None]:
    """Each GGUF file opened inside is parsed once, however often the libraries ask for it."""
    import gguf.quants
    import transformers.modeling_gguf_pytorch_utils as loader

    faster: list[tuple[Any, str, Callable[[Any], Any]]] = [
        (gguf, "GGUFReader", lambda own: cache(_reader(own))),
        (gguf, "get_tensor_name_map", cache),
        (gguf.quants, "_apply_over_grouped_rows", lambda own: _in_large_groups),
        (loader, "_gguf_parse_value", _values),
        (loader, "load_gguf_checkpoint", _configuration_once),
        (loader, "np", lambda own: _WithoutCopies()),
    ]
    try:
        header = import_module("transformers.integrations.gguf.reader")
        faster += [(header, "_mapped", _plain), (header, "_read_metadata", _metadata_once)]
    except ImportError:  # a transformers that has one reader only
        pass
    with _LOCK, ExitStack() as stack:
        for module, name, change in faster:
            if hasattr(module, name):  # else a version of the library that needs no such thing
                own = getattr(module, name)
                stack.callback(setattr, module, name, own)
                setattr(module, name, change(own))
        yield


def _reader(own: type[Any]) -> type[Any]:
    """The reader of the `gguf` package, which takes the lists of a vocabulary as one piece each."""
    import gguf

    length_at = struct.Struct("=Q").unpack_from

    class Reader(own):
        def _get(self, *args: Any, **options: Any) -> Any:
            if type(self.data) is not np.ndarray:
                self.data = self.data.view(np.ndarray)  # a memmap is as slow as a subclass is
            return super()._get(*args, **options)

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            start = int(orig_offs)
            if int(raw_type) != ARRAY or self.byte_order != "I":
                return super()._get_field_parts(orig_offs, raw_type)
            kind, n = self._get(start, np.uint32), self._get(start + 4, np.uint64)
            inner, count, end = int(kind[0]), int(n[0]), start + 12
            if inner == STRING:
                values, whole = [], self.data
                for _ in range(count):
                    first = end + 8
                    end = first + length_at(whole, end)[0]
                    values.append(whole[first:end])
            elif inner in FIXED:
                numbers = self._get(end, np.dtype(f"={FIXED[inner]}"), count)
                values, end = list(numbers[:, None]), end + numbers.nbytes
            else:
                return super()._get_field_parts(orig_offs, raw_type)
            types = [gguf.GGUFValueType(ARRAY), gguf.GGUFValueType(inner)][: 2 if count else 1]
            return end - start, [kind, n, *values], list(range(2, 2 + count)), types

    return Reader


def _values(own: Callable[..., Any]) -> Callable[..., Any]:
    """A text or a number of a list, without a list of its bytes in between."""

    def parsed(value: Any, kinds: Any) -> Any:
        if type(value) is not np.ndarray or type(kinds) is not list or kinds[0] != ARRAY:
            return own(value, kinds)
        return value.tobytes().decode() if kinds[-1] == STRING else value.item()

    return parsed


def _configuration_once(own: Callable[..., Any]) -> Callable[..., Any]:
    """The file without its tensors, read once; every caller has a copy to change."""
    kept: dict[str, Any] = {}

    def once(path: Any, return_tensors: bool = False, *args: Any, **options: Any) -> Any:
        if return_tensors:
            return own(path, return_tensors, *args, **options)
        if str(path) not in kept:
            kept[str(path)] = own(path, return_tensors, *args, **options)
        return {part: _copied(found) for part, found in kept[str(path)].items()}

    return once


def _copied(found: Any) -> Any:
    """A copy; lists of texts and numbers are copied as a whole."""
    if isinstance(found, dict):
        return {key: _copied(value) for key, value in found.items()}
    return list(found) if isinstance(found, list) else found


def _in_large_groups(
    func: Callable[[Any], Any], arr: Any, otype: Any, oshape: Sequence[int]
) -> Any:
    """``func`` over rows, as in `gguf.quants`, in groups of `_GROUP` numbers rather than 16 rows.

    Every number comes from its own block, so that the grouping changes none.
    """
    rows = arr.reshape(-1, arr.shape[-1])
    out = np.empty((len(rows), *oshape[-1:]), dtype=otype)
    step = max(1, _GROUP // max(1, oshape[-1]))
    for start in range(0, len(rows), step):
        out[start : start + step] = func(rows[start : start + step])
    return out.reshape(oshape)


class _WithoutCopies:
    """numpy, that does not copy what was dequantised for the copy alone."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def copy(self, array: Any, *args: Any, **options: Any) -> Any:
        flags = getattr(array, "flags", None)
        own = flags is not None and flags.writeable and flags.c_contiguous
        return array if own else np.copy(array, *args, **options)


def _plain(own: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda path: own(path).view(np.ndarray)


def _metadata_once(own: Callable[..., Any]) -> Callable[..., Any]:
    kept: dict[Any, Any] = {}

    def once(blob: Any, path: str, string_arrays: Any = ()) -> Any:
        key = (str(path), tuple(sorted(string_arrays)))
        if key not in kept:
            kept[key] = own(blob, path, string_arrays)
        metadata, *rest = kept[key]
        return _copied(metadata), *rest

    return once
