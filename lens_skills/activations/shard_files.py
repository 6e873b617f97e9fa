"""Files of activations that any program may have written, read by rows: `ShardFile`.

A file is safetensors, ``.npy`` or Parquet, in the format that ``docs/howto/shards.md`` states. It
is checked as it is opened, and only the rows asked for are in memory; of Parquet, one row group.
"""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError

WHOLE = "activations"
"""The array that holds all layers; else each has its own, ``layer.0``, ``layer.1`` and so on."""

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
_IN_SAFETENSORS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_LONGEST_HEADER = 100 << 20  # what safetensors itself takes


@dataclass(frozen=True)
class StoredArray:
    """An array that lies in a file row after row, from ``offset`` on."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        """The byte behind it."""
        return self.offset + math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def read(self, places: np.ndarray) -> Float[Tensor, "row *any"]:
        """The rows at these places, which ascend; what lies between them is not read."""
        out = torch.empty(len(places), *self.shape[1:], dtype=DTYPES[self.dtype])
        view = memoryview(out.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        size = math.prod(self.shape[1:]) * DTYPES[self.dtype].itemsize
        starts = np.flatnonzero(np.diff(places, prepend=places[0] - 2) != 1)
        with self.path.open("rb", buffering=0) as file:
            for start, stop in zip(starts, [*starts[1:], len(places)], strict=True):
                file.seek(self.offset + int(places[start]) * size)
                want, got = view[start * size : stop * size], 0
                while got < len(want):  # a read may hand over less than was asked for
                    more = file.readinto(want[got:])
                    if not more:
                        raise LensSkillsError(f"the shard {self.path} was cut while it was read.")
                    got += more
        return out


@dataclass
class ParquetArray:
    """A column of lists of one length; one row group is kept, the last that was read."""

    path: Path
    column: str
    dtype: str
    shape: tuple[int, ...]
    starts: np.ndarray
    kept: tuple[int, Tensor] | None = None

    def read(self, places: np.ndarray) -> Float[Tensor, "row *any"]:
        """The rows at these places, which ascend."""
        group = np.searchsorted(self.starts, places, side="right") - 1
        parts = []
        for number in np.unique(group).tolist():
            if self.kept is None or self.kept[0] != number:
                self.kept = None  # before the next: one at a time
                self.kept = number, self._group(number)
            here = torch.from_numpy(places[group == number] - self.starts[number])
            parts.append(self.kept[1][here])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _group(self, number: int) -> Tensor:
        import pyarrow.parquet as parquet

        try:
            file = parquet.ParquetFile(self.path)
            column = file.read_row_group(number, columns=[self.column]).column(0).combine_chunks()
            numbers = column.flatten().to_numpy(zero_copy_only=False)
        except (OSError, ValueError) as error:  # Arrow's own errors are of these
            raise LensSkillsError(f"the shard {self.path} cannot be read: {error}.") from error
        size = math.prod(self.shape[1:])
        lengths = np.asarray(column.value_lengths().fill_null(-1))
        wrong = np.flatnonzero(lengths != size)
        if len(wrong) or column.flatten().null_count:
            row = int(self.starts[number]) + (int(wrong[0]) if len(wrong) else 0)
            raise LensSkillsError(
                f"the shard {self.path}, row {row}: {self.column!r} holds "
                f"{int(lengths[wrong[0]]) if len(wrong) else 'missing'} numbers, not the {size} of "
                "the manifest (positions × layers × width). Write each row whole."
            )
        # A copy: Arrow's memory may not be written to.
        return torch.from_numpy(np.array(numbers)).reshape(-1, *self.shape[1:])


@dataclass(frozen=True)
class InMemory:
    """An array that is in memory."""

    numbers: Float[Tensor, "row pos layer neuron"]

    def read(self, places: np.ndarray) -> Float[Tensor, "row pos layer neuron"]:
        """The rows at these places."""
        return self.numbers[torch.from_numpy(places)]


@dataclass(frozen=True)
class ShardFile:
    """One file of activations, checked against the manifest.

    Attributes:
        path: The file.
        n_rows: How many examples it holds.
        arrays: One for all layers, under `WHOLE`; or one a layer, under its number.
        columns: The columns of its rows that stand in it: a pyarrow table, or None.
        state: Size and time of the last change, which tell a file that was changed.
    """

    path: Path
    n_rows: int
    arrays: Mapping[str | int, Any]
    columns: Any = None
    state: str = ""

    def to_send(self) -> "ShardFile":
        """The same for another process: by its full path, without a row group that is kept."""
        path, arrays = self.path.absolute(), {}
        for name, array in self.arrays.items():
            if isinstance(array, ParquetArray):
                array = replace(array, path=path, kept=None)
            elif isinstance(array, StoredArray):
                array = replace(array, path=path)
            arrays[name] = array
        return replace(self, path=path, arrays=arrays) if self.state else self

    def check_unchanged(self) -> None:
        """Nothing; raises where the file is not here, or of another size or time.

        Raises:
            LensSkillsError: Which file, on which machine, and what to do.
        """
        if not self.state:
            return  # in memory
        try:
            found = _state(self.path)
        except OSError as error:
            raise LensSkillsError(
                f"the shard {self.path} is not on {platform.node()} ({error.strerror}). Put the "
                "folder at this place on every machine: on a disk that all share, or copied with "
                "its times (rsync -a)."
            ) from error
        if found != self.state:
            raise LensSkillsError(
                f"the shard {self.path} on {platform.node()} is another one ({found}) than where "
                f"the table was opened ({self.state}). Copy it again with its times (rsync -a), or "
                "open the table again where it was changed."
            )

    def read(
        self, places: np.ndarray, at: Sequence[int], layers: Sequence[int]
    ) -> Float[Tensor, "row pos layer neuron"]:
        """The rows at these places, which ascend, of the layers at the places ``at`` of all."""
        if WHOLE in self.arrays:
            found = self.arrays[WHOLE].read(places)
            if found.ndim == 3:
                found = found[:, None]
            return found if len(at) == found.shape[2] else found[:, :, list(at)]
        parts = [self.arrays[layers[place]].read(places) for place in at]
        parts = [part[:, None] if part.ndim == 2 else part for part in parts]
        return torch.stack(parts, dim=2)


def _state(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} bytes of {stat.st_mtime_ns}"


def open_shard(path: Path, about: Mapping[str, Any], n_rows: int) -> ShardFile:
    """A file of activations, checked against what the manifest says of all.

    Args:
        path: Its ending says what it is.
        about: ``layers``, ``positions``, ``width`` and ``dtype`` of the manifest.
        n_rows: How many examples it is to hold.

    Raises:
        LensSkillsError: No such file, one that is cut or of another kind, arrays that are missing
            or do not fit the manifest.
    """
    try:
        state = _state(path)
    except OSError as error:
        raise LensSkillsError(
            f"the shard {path} is not there, but the manifest names it ({error.strerror}). Copy it "
            'into the folder, or take it out of the manifest\'s "shards".'
        ) from error
    openers = {".safetensors": _safetensors, ".npy": _npy, ".parquet": _parquet}
    if path.suffix not in openers:
        raise LensSkillsError(
            f"the shard {path.name} is no {', '.join(openers)} file. Write it as one of these."
        )
    try:
        arrays, columns = openers[path.suffix](path, about)
    except LensSkillsError:
        raise
    except Exception as error:  # what a damaged file may raise has no bounds
        raise LensSkillsError(
            f"the shard {path} is cut or damaged ({str(error) or repr(error):.200}). Write it anew."
        ) from error
    layers, n_pos, width = about["layers"], len(about["positions"]), about["width"]
    wanted = {WHOLE: (n_rows, n_pos, len(layers), width)}
    if WHOLE not in arrays:
        wanted = dict.fromkeys(layers, (n_rows, n_pos, width))
    for name, shape in wanted.items():
        _check_array(path, name, arrays.get(name), shape, about)
    kept = {name: array for name, array in arrays.items() if name in wanted}
    return ShardFile(path, n_rows, kept, columns, state)


def _check_array(
    path: Path, name: str | int, array: Any, shape: tuple[int, ...], about: Mapping[str, Any]
) -> None:
    called = name if isinstance(name, str) else f"layer.{name}"
    if array is None:
        raise LensSkillsError(
            f"the shard {path.name} lacks {called!r}: it holds neither {WHOLE!r} nor one array for "
            f"each of the layers {about['layers']}. Write the same arrays to every shard."
        )
    found = tuple(array.shape)
    axes = ("row", "position", "layer", "width") if name == WHOLE else ("row", "position", "width")
    one_position = found == (shape[0], *shape[2:]) and shape[1] == 1
    if found != shape and not one_position:
        said = " × ".join(f"{size} {axis}s".replace("widths", "wide") for size, axis in
                          zip(shape, axes, strict=True))  # fmt: skip
        raise LensSkillsError(
            f"the shard {path.name} does not fit the manifest: {called!r} is "
            f"{' × '.join(map(str, found))}, and the manifest says {said}"
            f"{' (the position may be left out)' if shape[1] == 1 else ''}. Correct the one that "
            "is wrong."
        )
    if array.dtype != about["dtype"]:
        raise LensSkillsError(
            f"the shard {path.name} does not fit the manifest: {called!r} is {array.dtype}, and "
            f"the manifest says {about['dtype']}. Write all shards in one dtype."
        )
    if isinstance(array, StoredArray) and path.stat().st_size < array.end:
        raise LensSkillsError(
            f"the shard {path} is cut: {path.stat().st_size:,} of {array.end:,} bytes are there. "
            "Write or copy it anew."
        )


def _key(name: str) -> str | int:
    """The key of an array: `WHOLE`, or the number of its layer."""
    layer = name.removeprefix("layer.")
    return int(layer) if layer != name and layer.isdigit() else name


def _safetensors(path: Path, about: Mapping[str, Any]) -> tuple[dict[str | int, Any], Any]:
    import pyarrow
    from safetensors import safe_open

    with safe_open(path, "pt") as file:  # refuses what is cut, or points out of the file
        names = list(file.keys())
        with path.open("rb") as raw:
            size = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(min(size, _LONGEST_HEADER)))
        arrays: dict[str | int, Any] = {}
        columns = {}
        for name in names:
            entry, key = header[name], _key(name)
            if key == WHOLE or isinstance(key, int):
                start = 8 + size + entry["data_offsets"][0]
                dtype = str(_IN_SAFETENSORS.get(entry["dtype"], entry["dtype"]))
                _check_dtype(path, name, dtype)
                arrays[key] = StoredArray(path, start, dtype, tuple(entry["shape"]))
            elif len(entry["shape"]) == 1:
                column = file.get_tensor(name)
                wide = torch.float64 if column.dtype in DTYPES.values() else column.dtype
                columns[name] = column.to(wide).numpy()
            else:
                raise LensSkillsError(
                    f"the shard {path.name} holds {name!r} of shape {entry['shape']}: beside "
                    f"{WHOLE!r} and 'layer.0', 'layer.1', … stand columns of the rows, one number "
                    "each. Leave it out."
                )
    return arrays, pyarrow.table(columns) if columns else None


def _check_dtype(path: Path, name: str, dtype: str) -> None:
    if dtype not in DTYPES:
        raise LensSkillsError(
            f"the shard {path.name}: {name!r} is {dtype}, and activations are "
            f"{', '.join(DTYPES)}. Write it in one of these."
        )


def _npy(path: Path, about: Mapping[str, Any]) -> tuple[dict[str | int, Any], Any]:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if reader is None:
            raise ValueError(f"version {version} of .npy")
        shape, fortran, dtype = reader(file)
        offset = file.tell()
    if dtype.hasobject:
        raise LensSkillsError(
            f"the shard {path.name} holds Python objects (pickle), which may run code as they are "
            "read: they are not. Write plain numbers: np.save(path, numbers.astype('float16'))."
        )
    if fortran or not dtype.isnative:
        raise LensSkillsError(
            f"the shard {path.name} is stored by columns, or in another byte order. Write it by "
            "rows, in this machine's order: np.save(path, np.ascontiguousarray(x))."
        )
    _check_dtype(path, WHOLE, dtype.name)
    return {WHOLE: StoredArray(path, offset, dtype.name, tuple(shape))}, None


def _parquet(path: Path, about: Mapping[str, Any]) -> tuple[dict[str | int, Any], Any]:
    import pyarrow.parquet as parquet
    import pyarrow.types as types

    file = parquet.ParquetFile(path)
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    starts, n_rows = np.cumsum([0, *groups])[:-1], sum(groups)
    n_pos, n_layers, width = len(about["positions"]), len(about["layers"]), about["width"]
    names = {"halffloat": "float16", "float": "float32", "double": "float64"}
    arrays: dict[str | int, Any] = {}
    for item in file.schema_arrow:
        key = _key(item.name)
        if key != WHOLE and not isinstance(key, int):
            continue
        kind = item.type
        if not (types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind)):
            raise LensSkillsError(
                f"the shard {path.name}: {item.name!r} is {kind}. Activations are a list of "
                "numbers in each row (a fixed-size list, positions × layers × width)."
            )
        dtype = names.get(str(kind.value_type), str(kind.value_type))
        _check_dtype(path, item.name, dtype)
        inner = (n_pos, n_layers, width) if key == WHOLE else (n_pos, width)
        size = getattr(kind, "list_size", math.prod(inner))
        if size != math.prod(inner):
            raise LensSkillsError(
                f"the shard {path.name} does not fit the manifest: each row of {item.name!r} holds "
                f"{size} numbers, and the manifest's {' × '.join(map(str, inner))} are "
                f"{math.prod(inner)}. Correct the one that is wrong."
            )
        arrays[key] = ParquetArray(path, item.name, dtype, (n_rows, *inner), starts)
    others = [name for name in file.schema_arrow.names if _key(name) not in arrays]
    return arrays, file.read(columns=others) if others else None
