"""A shortcut planted in the tiny model: a neuron that fires when an operand is 5."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from lens_skills import tasks
from lens_skills.models import as_adapter
from lens_skills.tasks import Task
from tests.planted import planted, separating_direction

LAYER = 1
SHORTCUT, DECOY = f"L{LAYER}N5", f"L{LAYER}N9"
ANSWER = "7"  # what the shortcut says whenever an operand is 5
GAIN = 6.0


def problems() -> Task:
    """Every sum, difference and product of two digits, each its own group."""
    return tasks.arithmetic("+-*", digits=(1,), group_by_pair=False)


def has_five(example: Any) -> bool:
    return 5 in (example.column("operand_a"), example.column("operand_b"))


def prompts(model: Any, task: Task, holds: Callable[[Any], bool]) -> tuple[list[Any], list[Any]]:
    """The tokens of the examples for which it holds, and of the others."""
    adapter = as_adapter(model)
    sides: tuple[list[Any], list[Any]] = ([], [])
    for example in task:
        sides[not holds(example)].append(adapter.encode(example.prompt))
    return sides


def answer_direction(model: Any) -> torch.Tensor:
    """The unit vector that raises the logit of `ANSWER`."""
    adapter = as_adapter(model)
    column = adapter.unembed_vectors()[0][:, adapter.encode_plain(ANSWER)[0]].double()
    return column / column.norm()


@contextmanager
def with_shortcut(model: Any, task: Task, *, gain: float = GAIN) -> Iterator[Any]:
    """The model with a neuron that writes an answer where an operand is 5, and a silent twin."""
    direction = separating_direction(model, LAYER, *prompts(model, task, has_five))
    with ExitStack() as stack:
        for neuron, writes in ((5, gain * answer_direction(model)), (9, 0.0)):
            stack.enter_context(planted(model, LAYER, neuron, direction=direction, writes=writes))
        yield model
