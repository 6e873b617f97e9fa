"""A step of a command: whether it is done already, by what, and what an interruption leaves."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lens_skills.errors import LensSkillsError


@dataclass(frozen=True)
class Step:
    """Something a command makes, in a place of its own.

    Attributes:
        place: The folder or file that is there when the step is done.
        what: It, in words.
        asked: The options that make it what it is, by their names in the shell.
        checkpoint: Where an interrupted one is kept; by default beside the place.
        then: The command that comes next, or what says so once the step is done.
    """

    place: Path
    what: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    then: str | Callable[[], str] = ""

    def next(self) -> str:
        """The command that comes next; "" for none."""
        return self.then if isinstance(self.then, str) else self.then()

    @property
    def kept_in(self) -> Path:
        """The folder of what an interrupted one has done."""
        beside = self.place.with_name(f"{self.place.name}-checkpoint")
        return beside if self.checkpoint is None else self.checkpoint

    def finished(self) -> str:
        """That the step is done, where and when; "" where it is not, or not to its end.

        Raises:
            LensSkillsError: It is done with other options: which. What was asked is damaged, or
                of another format.
        """
        if not self.place.exists() or self.kept_in.exists():
            return ""
        from lens_skills.results import asked_file, read_asked

        before = read_asked(self.place)
        unknown = ""
        if before is None:
            before = {}
            unknown = f" Made with which options is not known: {asked_file(self.place)} is missing."
        asked = json.loads(json.dumps(dict(self.asked), default=str))
        other = [name for name in asked if name in before and before[name] != asked[name]]
        if other:
            differs = "; ".join(f"{name} was {before[name]}, not {asked[name]}" for name in other)
            raise LensSkillsError(
                f"{self.place} holds {self.what}, made with other options: {differs}. Say --again "
                "to make it anew in its place, or ask for what is there."
            )
        when = datetime.fromtimestamp(self.place.stat().st_mtime)
        return (
            f"finished {when:%Y-%m-%d %H:%M}: {self.place} holds {self.what}. Nothing was run; "
            f"--again makes it anew (what is there is kept until then).{unknown}"
        )

    def record(self) -> None:
        """Writes down what was asked, beside what was made."""
        from lens_skills.results import write_asked

        write_asked(self.place, self.asked)

    def kept(self) -> str:
        """What an interruption leaves, and what the same command does then."""
        if self.kept_in.exists():
            return f"stopped. What it has done is kept in {self.kept_in}. To go on from there:"
        before = " What was there before is as it was." if self.place.exists() else ""
        return f"stopped; nothing of {self.what} is kept.{before} To begin again:"
