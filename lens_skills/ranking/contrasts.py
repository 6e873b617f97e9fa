"""`Contrast`: what a neuron of one skill should leave alone: another task, or neutral text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lens_skills.activations import Metric
from lens_skills.data import Example, field_of
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.neutral_words import NEXT_WORD, next_words
from lens_skills.models import ModelAdapter
from lens_skills.tasks import Task

NEUTRAL = "neutral text"
"""The contrast that is always there: the log-probability of the next word of the bundled texts."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """Other examples, and the metric that says how well the model does there.

    Attributes:
        name: Of the task, or ``"neutral text"``.
        examples: What neurons are ranked or tried on.
        metric: A metric of the model.
        over: Where the mean of an ablation is taken.
    """

    name: str
    examples: Sequence[Example]
    metric: Metric
    over: Sequence[Example]

    def adapter(self, adapter: ModelAdapter) -> ModelAdapter:
        """The model as it reads these: neutral text is plain also where the task is a chat."""
        return adapter.in_chat(False) if self.name == NEUTRAL else adapter


def parse_contrasts(
    asked: Any, metric: Metric, *, ranked: Sequence[Example]
) -> tuple[Contrast, ...]:
    """The tasks that were asked for, all their examples ranked on, and half of the neutral texts.

    Raises:
        LensSkillsError: Something that is no task, a task named twice, or one that shares a prompt
            with the examples ranked on.
    """
    prompts = set(field_of(ranked, "prompt"))
    found = []
    for name, task in named_tasks(asked).items():
        if prompts & set(field_of(task, "prompt")):
            raise LensSkillsError(
                f"the contrast {name!r} shares a prompt with the examples that are ranked on. A "
                "contrast is another task: give other examples."
            )
        found.append(Contrast(name, task, metric, task))
    texts = next_words()[0]
    return (*found, Contrast(NEUTRAL, texts, NEXT_WORD, texts))


def halved_contrasts(
    asked: Any, metric: Metric, *, seed: int
) -> tuple[dict[str, Task], tuple[Contrast, ...]]:
    """Half of each task's groups to rank on, by name, and the other half to try neurons on.

    Neutral text is among the second, with the texts that are not ranked on.

    Raises:
        LensSkillsError: As `parse_contrasts`.
    """
    to_rank, to_try = {}, []
    for name, task in named_tasks(asked).items():
        first, second = task.split(0.5, 0.5, seed=seed)
        to_rank[name] = first
        to_try.append(Contrast(name, second, metric, first))
    first, second = next_words()
    return to_rank, (*to_try, Contrast(NEUTRAL, second, NEXT_WORD, first))


def named_tasks(asked: Any) -> dict[str, Task]:
    """The contrasts that were asked for, by name.

    Raises:
        LensSkillsError: Something that is no task, or a task named twice.
    """
    if asked is None:
        return {}
    if isinstance(asked, Task):
        asked = [asked]
    if not isinstance(asked, Mapping):
        if isinstance(asked, str) or not isinstance(asked, Sequence):
            raise _no_task(asked)
        names = [getattr(task, "name", "") for task in asked]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise LensSkillsError(
                f"two contrasts are called {twice[0]!r}. Name them: contrast={{'name': task, …}}."
            )
        asked = dict(zip(names, asked, strict=True))
    for name, task in asked.items():
        if not isinstance(task, Task) or name == NEUTRAL:
            raise _no_task(name if name == NEUTRAL else task)
    return dict(asked)


def _no_task(found: Any) -> LensSkillsError:
    return LensSkillsError(
        f"contrast= takes other tasks, such as [ls.tasks.ioi()], not {found!r}. Neutral text is "
        "always among them; a list of examples becomes a task by ls.Task(name, examples)."
    )
