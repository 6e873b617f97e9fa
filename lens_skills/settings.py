"""`config`: settings that change how long something takes and how it looks, and never a result."""

import math
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import TracebackType
from typing import Any, TypeVar

from lens_skills.errors import LensSkillsError

_Default = TypeVar("_Default")

_ACTIVE: dict[str, Any] = {
    "batch_size": None,
    "progress": None,
    "edit_rows": None,
    "memory_mb": None,
    "engine": "local",
    "workers": None,
    "worker_cpus": None,
    "worker_gpus": None,
}

ENGINES = ("local", "ray")
RAY = (2, 60)
"""The oldest Ray that is taken; the newest is below 3."""


class config:
    """Sets options from now on, or for a ``with`` block only.

    Args:
        batch_size: Examples per forward pass; None for each verb's own (32; 16 where text is
            written).
        progress: False shows no progress. None (as it is): a bar on a terminal, one line a minute
            on stderr in a pipe or a log, nothing in a notebook. True: in a notebook too, a bar.
        edit_rows: Columns of edited passes that are run at once (examples times sets of neurons
            times positions): `sweep` and all that measures effects. None: as many as are fastest
            and fit into memory.
        memory_mb: MiB that edited passes may fill (None: half of what is free) and that
            `fit_prompt` may keep of keys and values (None: 2000).
        engine: ``"local"``: this process. ``"ray"``: the passes of `score`, `rank`, `sweep`,
            `verify` and all that measures effects, what `generate` writes and what `capture`
            reads, are divided among the workers of a Ray cluster (or of this machine), and added
            up here; docs/howto/many_machines.md. `circuit` refuses; other passes stay in this
            process.
        workers: Under Ray: how many processes that each hold the model. None: one for each
            ``worker_gpus`` of the cluster; without GPUs, one for every four cores, and two at
            least.
        worker_cpus: Threads of each worker; None: its share of the cores.
        worker_gpus: GPUs of each worker (0.5: two share one); None: one where there are any, else
            none.

    Raises:
        LensSkillsError: An option there is none of; a number out of range; Ray that is not
            installed, or of another version.

    >>> with config(batch_size=8):
    ...     batch_size()
    8
    >>> batch_size()
    32
    """

    def __init__(self, **options: Any) -> None:
        for name, value in options.items():
            if name not in _ACTIVE:
                raise LensSkillsError(
                    f"config has no option {name!r}. There are: {', '.join(_ACTIVE)}."
                )
            if name == "progress":
                if value not in (True, False, None):
                    raise LensSkillsError(f"progress must be True, False or None, not {value!r}.")
                continue
            if name == "engine":
                check_engine(value)
                continue
            if name == "worker_gpus":
                _check_gpus(value)
                continue
            least = 0 if name == "memory_mb" else 1
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or value < least
            ):
                raise LensSkillsError(
                    f"{name} must be a whole number from {least} on, not {value!r}."
                )
        self._before = dict(_ACTIVE)
        _ACTIVE.update(options)

    def __enter__(self) -> "config":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _ACTIVE.update(self._before)

    def __repr__(self) -> str:
        """The options in force."""
        return f"config({', '.join(f'{name}={value!r}' for name, value in _ACTIVE.items())})"


def check_engine(value: Any) -> None:
    """Nothing; raises where passes cannot run there: an unknown engine, Ray absent or too old."""
    if value not in ENGINES:
        raise LensSkillsError(f"engine must be 'local' or 'ray', not {value!r}.")
    if value == "local":
        return
    oldest = ".".join(map(str, RAY))
    try:
        found = version("ray") if find_spec("ray") else ""
    except PackageNotFoundError:
        found = ""
    if not found:
        raise LensSkillsError(
            "engine='ray' needs Ray, which is not installed here: pip install 'lens-skills[ray]', "
            "on every machine alike. engine='local' needs nothing."
        )
    if not RAY <= tuple(map(int, found.split(".")[:2])) < (3,):
        raise LensSkillsError(
            f"engine='ray' works with Ray from {oldest} on and below 3, and here is {found}: "
            f"pip install 'ray>={oldest},<3', on every machine alike."
        )


def _check_gpus(value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (
        number and 0 <= value < math.inf and (value < 1 or value % 1 == 0)
    ):
        raise LensSkillsError(
            f"worker_gpus must be a whole number or a share of one GPU (0.5), not {value!r}."
        )


def in_force() -> dict[str, Any]:
    """All options, as `config` takes them."""
    return dict(_ACTIVE)


def engine() -> str:
    """Where passes run: ``"local"`` or ``"ray"``."""
    return _ACTIVE["engine"]


def worker_options() -> tuple[int | None, int | None, float | None]:
    """Workers, threads of each, GPUs of each; None: to be found."""
    return _ACTIVE["workers"], _ACTIVE["worker_cpus"], _ACTIVE["worker_gpus"]


def batch_size(default: int = 32) -> int:
    """Examples per forward pass: the option in force, else the verb's own."""
    chosen = _ACTIVE["batch_size"]
    return default if chosen is None else chosen


def edit_rows() -> int | None:
    """Columns of edited passes that are run at once; None: to be found."""
    return _ACTIVE["edit_rows"]


def memory_mb(default: _Default) -> int | _Default:
    """MiB that a verb may fill: the option in force, else the verb's own."""
    chosen = _ACTIVE["memory_mb"]
    return default if chosen is None else chosen


def hides_progress() -> bool | None:
    """Whether no progress is shown; None leaves it to where stderr goes."""
    shown = _ACTIVE["progress"]
    return None if shown is None else not shown
