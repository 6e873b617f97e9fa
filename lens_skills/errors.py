"""The one error for the user's mistakes: what was asked, what was found, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class LensSkillsError(Exception):
    """A request that cannot be met, with the way out in its message.

    Raised early and before anything is written. Our own mistakes are ``assert``s instead.

    >>> raise LensSkillsError("no task given. Pass a Task, e.g. ls.tasks.agreement().")
    Traceback (most recent call last):
    ...
    lens_skills.errors.LensSkillsError: no task given. Pass a Task, e.g. ls.tasks.agreement().
    """


class RunError(LensSkillsError):
    """The run cannot go on: its disk, what it has kept, its workers.

    It says nothing of the data, so nothing that asks whether the data allow a step may take it for
    an answer.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The question that ends an error about an unknown name; "" where no known one is like it.

    >>> did_you_mean("lable", ["label", "foil"])
    " Did you mean 'label'?"
    """
    near = get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
