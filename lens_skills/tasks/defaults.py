"""What is asked of a task where nobody says: its usual metric, and a few of its examples."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from lens_skills.example import Example
from lens_skills.tasks.task import Task


def causal_metric(examples: Sequence[Example]) -> str | None:
    """The metric that interventions are usually judged by; None where answers are missing.

    ``logit_diff`` where every example has a foil or options, else ``answer_probability``.

    >>> causal_metric([Example(id="a", prompt="The key", answer=" is", foil=" are")])
    'logit_diff'
    """
    if any(example.answer is None for example in examples):
        return None
    contrast = all(example.foil is not None or len(example.options) > 1 for example in examples)
    return "logit_diff" if contrast else "answer_probability"


def few(task: Task, n: int, *, seed: int = 0) -> Task:
    """At most about ``n`` examples of the task, as evenly from its groups as they allow.

    Every group keeps at least one, so that intervals count as many groups as before.

    >>> task = Task("t", [Example(id=f"{g}{k}", prompt="x", group=g) for g in "ab" for k in "123"])
    >>> sorted(example.group for example in few(task, 4))
    ['a', 'a', 'b', 'b']
    """
    if len(task) <= n:
        return task

    def order(example: Example) -> str:
        return hashlib.sha256(f"{seed}/{example.id}".encode()).hexdigest()

    members: dict[str, list[Example]] = defaultdict(list)
    for example in task:
        members[example.group].append(example)
    each = max(1, n // len(members))
    kept = {e.id for group in members.values() for e in sorted(group, key=order)[:each]}
    chosen = [example for example in task if example.id in kept]
    return Task(task.name, chosen, f"{len(chosen)} of {task.split_name}")
