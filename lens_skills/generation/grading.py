"""`grade`: texts judged by functions, whatever goes wrong with one of them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.generation.graded import Graded, Problem

Grader = Callable[[str, Example], Mapping[str, float]]
"""From a text and the example it was written for to one number per skill."""


class Ungraded(LensSkillsError):
    """What a grader raises where it has no grade, or not all of them.

    Attributes:
        grades: Those it has.
    """

    def __init__(self, reason: str, grades: Mapping[str, float] | None = None) -> None:
        super().__init__(reason)
        self.grades = dict(grades or {})


def grade(graded: Graded, graders: Any, *, progress: bool | None = None) -> Graded:
    """The same texts with the grades of more graders.

    A grader that was there before under the same name is asked again; where it now fails, what it
    said before is kept. Skills that several graders grade are averaged in ``graded.grades``; each
    one's own numbers stay in ``graded.by_grader``.

    Args:
        graded: Texts, with or without grades.
        graders: One or several functions ``(text, example) -> {skill: number}``, or a dict that
            names them. One that raises, or returns no finite number, leaves a missing grade and a
            `Problem`.
        progress: Show a progress bar (None: on a terminal only).

    Raises:
        LensSkillsError: Something that is no function, or two graders of one name.
    """
    named = named_graders(graders)
    by_grader = {name: dict(columns) for name, columns in graded.by_grader.items()}
    problems = [problem for problem in graded.problems if problem.grader not in named]
    reports = dict(graded.provenance.get("graders", {}))
    disable = None if progress is None else not progress
    for name, grader in named.items():
        if hasattr(grader, "start"):
            grader.start()  # type: ignore[attr-defined]
        given: dict[str, Tensor] = {}
        pairs = zip(graded.examples, graded.texts, strict=True)
        shown = tqdm(
            pairs, desc=f"grade: {name}", total=len(graded), unit=" texts", disable=disable
        )
        for place, (example, text) in enumerate(shown):
            found, reason = _one(grader, text, example)
            for skill, value in found.items():
                given.setdefault(skill, _missing(len(graded)))[place] = value
            if reason:
                problems.append(Problem(example.id, name, reason))
        before = by_grader.get(name, {})
        by_grader[name] = before | {
            skill: torch.where(column.isnan(), before.get(skill, column), column)
            for skill, column in given.items()
        }
        if hasattr(grader, "report"):
            reports[name] = grader.report()  # type: ignore[attr-defined]
    provenance = {**graded.provenance, **({"graders": reports} if reports else {})}
    return replace(graded, by_grader=by_grader, problems=tuple(problems), provenance=provenance)


def named_graders(graders: Any) -> dict[str, Grader]:
    """The graders by name: their keys, or what they are called.

    >>> def short(text, example):
    ...     return {"short": len(text) < 80}
    >>> list(named_graders(short))
    ['short']
    """
    found: list[tuple[str, Any]]
    if isinstance(graders, Mapping):
        found = [(str(name), grader) for name, grader in graders.items()]
    else:
        several = [graders] if callable(graders) else list(graders)
        found = [(str(getattr(g, "__name__", type(g).__name__)), g) for g in several]
    for name, grader in found:
        if not callable(grader):
            raise LensSkillsError(
                f"a grader is a function (text, example) -> {{skill: number}}, not {grader!r}."
            )
        if [other for other, _ in found].count(name) > 1:
            raise LensSkillsError(
                f"two graders are called {name!r}. Name them apart with a dict: "
                "graders={'first': …, 'second': …}."
            )
    return dict(found)


def _one(grader: Grader, text: str, example: Example) -> tuple[dict[str, float], str]:
    """The finite grades of one text, and why others are missing."""
    reasons = []
    try:
        found: Any = grader(text, example)
    except Ungraded as error:
        found, reasons = error.grades, [str(error)]
    except Exception as error:  # one bad text must not cost the other grades
        return {}, f"{type(error).__name__}: {error}"
    if not isinstance(found, Mapping):
        return {}, f"it returned {found!r:.80}, not {{skill: number}}"
    grades = {}
    for skill, value in found.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number):
            grades[str(skill)] = number
        else:
            reasons.append(f"it gave {value!r} for {skill!r}")
    return grades, "; ".join(reasons)


def _missing(n: int) -> Float[Tensor, " text"]:
    return torch.full((n,), math.nan, dtype=torch.float64)
