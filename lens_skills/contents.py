"""What an argument holds, in values that tell it from others; finished parts as plain values."""

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from functools import singledispatch
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lens_skills.data import Example


@singledispatch
def content(value: Any) -> Any:
    """What tells an argument from another one, as plain JSON values."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if is_dataclass(value) and not isinstance(value, type):
        inner = {one.name: content(getattr(value, one.name)) for one in fields(value)}
        return {"kind": type(value).__name__, "hash": _hash(inner)}
    if isinstance(value, Mapping):
        return _several("mapping", {str(key): content(one) for key, one in value.items()})
    if isinstance(value, Set):
        return _several("set", sorted(json.dumps(content(one)) for one in value))
    if isinstance(value, Sequence | range):
        if len(value) and isinstance(value[0], Example):
            return _examples(value)
        return _several("sequence", [content(one) for one in value])
    if callable(value) and hasattr(value, "__code__"):
        return {"function": value.__qualname__, "hash": _hash(_code(value))}
    # What else an object holds may be a count of its own calls.
    return {"kind": type(value).__qualname__, "name": str(getattr(value, "__name__", ""))}


@content.register
def _(value: Tensor) -> Any:
    numbers = value.detach().cpu().contiguous()
    whole = hashlib.sha256(numbers.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
    return {"shape": list(value.shape), "dtype": str(value.dtype), "hash": whole[:16]}


@content.register
def _(value: np.ndarray) -> Any:
    held = value.tolist() if value.dtype.kind == "O" else value.tobytes().hex()
    return {"shape": list(value.shape), "dtype": str(value.dtype), "hash": _hash(held)}


@content.register
def _(value: pd.DataFrame) -> Any:
    return {"shape": list(value.shape), "hash": _hash([list(map(str, value)), value.to_csv()])}


def _several(kind: str, held: Any) -> Any:
    """Few as they are, many as a hash."""
    if len(json.dumps(held)) <= 200:
        return held
    return {"kind": kind, "number": len(held), "hash": _hash(held)}


def _examples(examples: Sequence[Example]) -> Any:
    whole = hashlib.sha256()
    for example in examples:
        held = [
            example.id, example.prompt, example.answer, example.foil, example.corrupted,
            example.group, example.kind, list(example.options), dict(example.labels),
            dict(example.covariates),
        ]  # fmt: skip
        whole.update(json.dumps(held, default=str).encode())
    return {
        "task": getattr(examples, "name", "examples"),
        "split": getattr(examples, "split_name", "all"),
        "number": len(examples),
        "hash": whole.hexdigest()[:16],
    }


def _code(function: Any) -> Any:
    """A function's own steps, and the plain values they are given from around it."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    cells = [one for one in cells if isinstance(one, bool | int | float | str | tuple | Tensor)]
    return [
        function.__code__.co_code.hex(),
        [str(one) for one in function.__code__.co_consts if not inspect.iscode(one)],
        list(function.__code__.co_names),
        [content(one) for one in (*cells, *(function.__defaults__ or ()))],
    ]


def _hash(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, default=str).encode()).hexdigest()[:16]


def packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A finished part as plain JSON values, its numbers put into ``tensors``."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        tensors[str(len(tensors))] = value.detach().cpu().clone().contiguous()
        return {"$tensor": str(len(tensors) - 1), "device": str(value.device)}
    if isinstance(value, np.generic):
        return packed(value.item(), tensors)
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "OUS":
            return {"$texts": value.tolist(), "type": str(value.dtype)}
        tensors[str(len(tensors))] = _torch(value)
        return {"$array": str(len(tensors) - 1)}
    if isinstance(value, pd.DataFrame):
        columns = [packed(value.iloc[:, n].to_numpy(), tensors) for n in range(value.shape[1])]
        return {
            "$table": columns,
            "names": [str(name) for name in value],
            "index": value.index.tolist(),
        }
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        inner = {one.name: getattr(value, one.name) for one in fields(value) if one.init}
        kept = {name: packed(one, tensors) for name, one in inner.items()}
        return {"$data": f"{kind.__module__}:{kind.__qualname__}", "fields": kept}
    if isinstance(value, Mapping):
        rows = [[packed(key, tensors), packed(one, tensors)] for key, one in value.items()]
        return {"$dict": rows}
    if isinstance(value, list):
        return [packed(one, tensors) for one in value]
    for kind, name in ((tuple, "$tuple"), (Set, "$set")):
        if isinstance(value, kind):
            return {name: [packed(one, tensors) for one in value]}
    raise TypeError(f"a part holds {type(value).__name__}, which cannot be kept")


def _torch(value: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value).copy())


def unpacked(plain: Any, tensor: Callable[[str], Tensor]) -> Any:
    """What `packed` was given; ``tensor`` reads one by its name."""
    if isinstance(plain, list):
        return [unpacked(one, tensor) for one in plain]
    if not isinstance(plain, dict):
        return plain
    if "$tensor" in plain:
        return tensor(plain["$tensor"]).to(plain["device"])
    if "$array" in plain:
        return tensor(plain["$array"]).numpy()
    if "$texts" in plain:
        return np.array(plain["$texts"], dtype=plain["type"])
    if "$table" in plain:
        columns = [unpacked(one, tensor) for one in plain["$table"]]
        made = pd.DataFrame(dict(enumerate(columns)), index=plain["index"])
        return made.set_axis(plain["names"], axis=1)
    if "$data" in plain:
        module, _, name = plain["$data"].partition(":")
        if module.split(".")[0] != __package__:
            raise ValueError(f"{module} is none of this package")
        kind: Any = import_module(module)  # None but this package's own
        for step in name.split("."):
            kind = getattr(kind, step)
        if not is_dataclass(kind):
            raise ValueError(f"{name} is no dataclass")
        if kind.__module__ != module:  # what another package brought in
            raise ValueError(f"{name} is not of {module}")
        made: Any = kind
        return made(**{key: unpacked(one, tensor) for key, one in plain["fields"].items()})
    if "$dict" in plain:
        return {unpacked(key, tensor): unpacked(one, tensor) for key, one in plain["$dict"]}
    if "$tuple" in plain:
        return tuple(unpacked(one, tensor) for one in plain["$tuple"])
    return frozenset(unpacked(one, tensor) for one in plain["$set"])
