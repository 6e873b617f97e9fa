"""One worker: a process that holds the model and does one shard after another."""

import os
import platform
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lens_skills import settings
from lens_skills.engines.division import Job
from lens_skills.errors import LensSkillsError, RunError
from lens_skills.models import ModelAdapter, SoftPrompt, as_adapter, load_model
from lens_skills.models.chat_template import Chat
from lens_skills.models.origins import Origin
from lens_skills.models.precision import in_precision
from lens_skills.results import versions


@dataclass(frozen=True)
class Source:
    """Where a worker has its model from.

    Attributes:
        origin: How it was opened here, to be opened likewise there.
        model: The model itself, where it was made in memory.
        fingerprint: Of the bare model, which the worker's must have; empty where there is none.
        versions: Of the packages that make the numbers, which the worker must have.
    """

    origin: Origin | None
    model: Any
    fingerprint: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Reading:
    """How a model is read: what an adapter has beside the model."""

    name: str
    soft: SoftPrompt | None
    chat: Chat
    precision: str | None

    @classmethod
    def of(cls, adapter: ModelAdapter) -> "Reading":
        """Of the adapter here."""
        return cls(adapter.name, adapter.soft, adapter.chat, adapter.precision)

    def over(self, model: Any) -> ModelAdapter:
        """The same over the worker's model."""
        adapter = in_precision(as_adapter(model), self.precision)
        if self.chat:
            adapter = adapter.in_chat(self.chat)
        if self.soft is not None:
            adapter = adapter.with_soft_prompt(self.soft)
        adapter.name = self.name
        return adapter


@dataclass(frozen=True)
class Assignment:
    """A job and how it is to be run."""

    job: Job
    reading: Reading | None
    options: Mapping[str, Any]


class Worker:
    """The process's model, and what it is doing; Ray makes an actor of it."""

    def __init__(self, threads: int, on_gpu: bool) -> None:
        self.threads, self.on_gpu = threads, on_gpu
        self.model: Any = None
        self.opened: tuple[str, Any] | None = None
        self.n_done = 0

    def begin(self, source: Source) -> str:
        """Opens the model and compares it with the one that asks; ``node/process``.

        Raises:
            RunError: Other versions than there, no such file here, other weights.
        """
        torch.set_num_threads(self.threads)
        node = platform.node()
        here, there = versions(), source.versions
        if other := [name for name in there if here.get(name) != there[name]]:
            raise RunError(
                f"the worker on {node} has {other[0]} {here.get(other[0])}, and "
                f"{there[other[0]]} is asked for: their numbers would differ. Install the same on "
                "every machine."
            )
        if not source.fingerprint:
            return f"{node}/{os.getpid()}"
        if source.origin is None:
            self.model = source.model
            if self.on_gpu:
                self.model = self.model.to("cuda")
        else:
            self.model = self._opened(source.origin, node)
        found = as_adapter(self.model).fingerprint()
        if found != source.fingerprint:
            how = "the model it was sent" if source.origin is None else source.origin.named
            raise RunError(
                f"the worker on {node} has other weights ({found[:12]}) behind {how} than the "
                f"model here ({source.fingerprint[:12]}): its numbers would be of another model. "
                "Put the same file on every machine."
            )
        return f"{node}/{os.getpid()}"

    def _opened(self, origin: Origin, node: str) -> Any:
        try:
            with settings.config(progress=False), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # said where the model was opened first
                return load_model(**origin.options, device="cuda" if self.on_gpu else "cpu")
        except LensSkillsError as error:
            said = str(error).splitlines()[0]
            raise RunError(
                f"the worker on {node} cannot open the model, {origin.named}: {said} Put the file "
                "at this place on every machine, or give a model that was opened from memory: "
                "it is sent to the workers."
            ) from error

    def run(self, name: str, assignment: Assignment, shard: range) -> dict[str, Any]:
        """The numbers of a shard, the seconds it took, and what was warned of."""
        torch.set_num_threads(self.threads)
        self.n_done = 0
        began = time.perf_counter()
        job = assignment.job
        with settings.config(**assignment.options), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("default")
            if self.opened is None or self.opened[0] != name:
                self.opened = None
                reading = assignment.reading
                adapter = None if reading is None else reading.over(self.model)
                self.opened = name, job.open(adapter)
            part = job.run(self.opened[1], shard, self._tick)
        texts = {str(each.message): each.category.__name__ for each in said}
        return {"part": part, "seconds": time.perf_counter() - began, "said": texts}

    def done(self) -> int:
        """How much of its shard is done, asked while it runs."""
        return self.n_done

    def _tick(self, n: int) -> None:
        self.n_done += n
