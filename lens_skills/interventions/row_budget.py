"""`RowBudget`: how many columns of edited passes are run at once.

As many as are fastest, fit into memory, and the user allows; fewer after memory ran out.
"""

import warnings
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from lens_skills import settings
from lens_skills.models.memory import PeakMemory, free_bytes, out_of_memory, release

FASTEST = {"cpu": 512}
"""Columns beyond which a pass gets no faster, by the kind of device; elsewhere `_MANY`.

Time of 256 sets on 8 prompts of 24 to 39 tokens, blocks of SmolLM2's widths, against that at 256
columns (medians of 5, one thread): 64 columns 1.26, 128 1.08, 512 .97, 1,024 .97, 2,048 1.18 (what
is computed no longer fits into the processor's cache).
"""

_MANY = 4096
_FEW = 64  # columns of the first pass, whose memory is measured
_SHARE = 0.5  # of the free memory: the rest is others'

_T = TypeVar("_T")
_row_bytes: dict[Hashable, float] = {}
_limits: dict[Hashable, int] = {}


class OutOfColumns(Exception):
    """Not even one set of the batch's examples fits into memory."""


class RowBudget:
    """How many columns are run at once, for one model; remembered for the session.

    Attributes:
        most: The largest number of columns that were run at once.
        mib: MiB that tensors held meanwhile; 0 where it was not measured.
        halved: How often memory ran out.
    """

    def __init__(self, adapter: Any, asked: int | None) -> None:
        self.adapter, self.asked = adapter, asked
        self.most, self.mib, self.halved = 0, 0.0, 0

    def columns(self, shape: Hashable) -> int:
        """How many columns to run at once, of passes of this shape."""
        key, device = self._key(shape), self.adapter.device
        if self.asked is not None:
            found = self.asked
        elif key not in _row_bytes:
            found = _FEW
        else:
            found = FASTEST.get(device.type, _MANY)
            free, bound = free_bytes(device), settings.memory_mb(None)
            known = [] if free is None else [_SHARE * free]
            known += [] if bound is None else [bound * 2**20]
            if known:
                found = min(found, int(min(known) / _row_bytes[key]))
        return max(1, min(found, _limits.get(key, found)))

    def trial(self, shape: Hashable, columns: int) -> int:
        """How many sets to try passes of this shape with, to measure them; 0: it is known.

        What is run afterwards is then cut alike in every run of a session.
        """
        known = self.asked is not None or self._key(shape) in _row_bytes
        return 0 if known else max(1, _FEW // columns)

    def run(
        self, shape: Hashable, columns: int, n_sets: int, measure: Callable[[], _T]
    ) -> _T | None:
        """What ``measure`` gives; None where memory ran out: once more, with half as many sets.

        Args:
            shape: Of the pass.
            columns: Of one set.
            n_sets: How many sets are run.
            measure: Runs the pass.

        Raises:
            OutOfColumns: Memory ran out at a single set.
        """
        key = self._key(shape)
        try:
            if key in _row_bytes:
                found = measure()
            else:
                with PeakMemory() as seen:
                    found = measure()
                _row_bytes[key] = max(1.0, seen.peak / (n_sets * columns))
            self.most = max(self.most, n_sets * columns)
            self.mib = max(self.mib, n_sets * columns * _row_bytes[key] / 2**20)
            return found
        except Exception as error:
            if not out_of_memory(error):
                raise
        release(self.adapter.device)
        if n_sets == 1:
            raise OutOfColumns
        half = n_sets // 2
        _limits[key] = half * columns
        self.tell(f"{n_sets * columns:,} columns did not fit; {half * columns:,} are run at once")
        return None

    def tell(self, what: str) -> None:
        """Once in a measurement: that memory ran out, and what is done."""
        if not self.halved:
            warnings.warn(
                f"memory ran out: {what} from here on. Nothing is lost. "
                "ls.config(edit_rows=…, batch_size=…, memory_mb=…) bounds them beforehand.",
                RuntimeWarning,
                stacklevel=2,
            )
        self.halved += 1

    @property
    def told(self) -> dict[str, Any]:
        """For a provenance: columns and MiB at once, how often memory ran out."""
        return {"edit_rows": self.most, "edit_mib": round(self.mib, 1), "halved": self.halved}

    def __str__(self) -> str:
        return f"{self.most:,} columns at once, {self.mib:,.0f} MiB"

    def _key(self, shape: Hashable) -> Hashable:
        adapter = self.adapter
        sizes = adapter.n_layers, adapter.d_model, adapter.d_mlp, adapter.d_vocab
        how = adapter.implementation, str(adapter.device), str(adapter.dtype)
        return adapter.name, *sizes, *how, shape
