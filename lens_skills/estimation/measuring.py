"""One small run of a verb: how long it took, how much memory at most, how much on disk."""

import ctypes
import gc
import random
import resource
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from lens_skills import settings
from lens_skills.progress import time_by_unit

_EVERY = 0.002  # seconds between two looks at the memory


@dataclass(frozen=True)
class SmallRun:
    """What one run took.

    Attributes:
        n: Examples of its main split.
        m: Size of its other axis; 1 where there is none.
        work: What there was to do, by kind.
        seconds: Of the clock on the wall.
        cpu: Of all processors together.
        spent: These by the kind of work of the loop they were spent in; "" for none.
        memory: Bytes at the peak beyond what was in use before.
        disk: Bytes of its saved result; None where it has nothing to save.
        result: What it handed back.
    """

    n: int
    m: int
    work: dict[str, float]
    seconds: float
    cpu: float
    spent: dict[str, float]
    memory: int
    disk: int | None
    result: Any


class PeakMemory:
    """The most memory in use inside a ``with``, beyond what was in use before.

    Of the process (its resident pages, looked at every two milliseconds), or of the graphics card
    where the model is on one.

    >>> with PeakMemory() as used:
    ...     block = bytes(30_000_000)
    >>> used.peak >= 0
    True
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.cuda = device if device is not None and device.type == "cuda" else None
        self.peak = 0

    def __enter__(self) -> "PeakMemory":
        release_memory()
        if self.cuda is not None:
            torch.cuda.synchronize(self.cuda)
            torch.cuda.reset_peak_memory_stats(self.cuda)
            self._before = torch.cuda.memory_allocated(self.cuda)
            return self
        self._before = resident_bytes()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(_EVERY):
            self._look()

    def _look(self) -> None:
        self.peak = max(self.peak, resident_bytes() - self._before)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.cuda is not None:
            self.peak = torch.cuda.max_memory_allocated(self.cuda) - self._before
            return
        self._over.set()
        self._watcher.join()
        self._look()


def resident_bytes() -> int:
    """Memory of this process that is in use now; where the system does not say, its peak so far."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        pass
    try:
        import psutil  # pyright: ignore[reportMissingModuleSource]

        return int(psutil.Process().memory_info().rss)
    except ImportError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def release_memory() -> None:
    """Hands freed memory back to the system, so that what is used next shows."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def leaving_nothing() -> Iterator[Path]:
    """A folder that is gone afterwards; no progress, no warnings, random states as before."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with (
        tempfile.TemporaryDirectory(prefix="lens-skills-") as folder,
        settings.config(progress=False),
        warnings.catch_warnings(),
        torch.random.fork_rng(),
    ):
        warnings.simplefilter("ignore")
        try:
            yield Path(folder)
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


def measured_run(
    call: Callable[[], Any], folder: Path, device: torch.device | None = None
) -> dict[str, Any]:
    """What a call took, as fields of a `SmallRun`.

    ``folder``: an empty one, where the call may have written and its result is saved.
    """
    with PeakMemory(device) as used, time_by_unit() as spent:
        began, cpu = time.perf_counter(), time.process_time()
        result = call()
        if used.cuda is not None:
            torch.cuda.synchronize(used.cuda)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "seconds": seconds, "cpu": cpu, "spent": spent, "memory": used.peak,
        "disk": bytes_on_disk(result, folder), "result": result,
    }  # fmt: skip


def bytes_on_disk(result: Any, folder: Path) -> int | None:
    """What a folder takes, the result (or each of several) saved there; None for nothing."""
    results = result if isinstance(result, tuple | list) else [result]
    for place, one in enumerate(results):
        if hasattr(one, "save"):
            one.save(folder / f"result-{place}")
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return sum(sizes) if sizes else None
