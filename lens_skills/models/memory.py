"""How much memory there is, how much tensors take, and whether an error says that it ran out."""

import gc
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_GROUPS = (  # limits of a container: all it may have, and what it has
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)
_SAID = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "failed to allocate",
    "alloc_failed",
)


def free_bytes(device: Any = "cpu") -> int | None:
    """Bytes of memory that are free on a device, or None where nothing tells.

    Of a GPU what its driver says, with what PyTorch holds and does not use; of the machine what it
    can give without swapping, within the container's limit where there is one.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    found = [_contained(*files) for files in _GROUPS] + [_available()]
    known = [number for number in found if number is not None]
    return min(known) if known else None


def _available() -> int | None:
    try:
        import psutil  # comes with accelerate, on which TransformerLens depends

        return int(psutil.virtual_memory().available)
    except ImportError:
        return None


def _contained(limit: str, used: str) -> int | None:
    try:
        most, now = (int(Path(file).read_text(encoding="ascii")) for file in (limit, used))
    except (OSError, ValueError):  # no such file; "max"
        return None
    return max(0, most - now)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("CUDA out of memory. Tried …"))
    (True, True)
    >>> out_of_memory(RuntimeError("shapes do not fit"))
    False
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error).lower() for part in _SAID)


def release(device: Any) -> None:
    """Gives back what nothing needs any longer; after an error, outside of its handler."""
    if torch.device(device).type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made inside held at once.

    >>> with PeakMemory() as seen:
    ...     _ = torch.zeros(100) + torch.zeros(100)
    >>> seen.peak
    1200
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._live = {key: kept for key, kept in self._live.items() if not kept[0].expired()}
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if _is_strided(leaf)}
        for leaf in tree_leaves(out):
            if _is_strided(leaf) and _storage(leaf) not in given:
                storage = leaf.untyped_storage()
                self._live[_storage(leaf)] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return out


def _is_strided(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
