"""`Graded`: texts a model wrote, how sure it was of each, and what graders made of them.

`grade` asks the graders; `Graded.task` makes a task whose labels are the grades.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.generation.text_features import copied
from lens_skills.progress import progress
from lens_skills.results import Result
from lens_skills.tasks import Task


@dataclass(frozen=True)
class Written:
    """What was written after one prompt.

    Attributes:
        text: Without special tokens.
        tokens: Its tokens; the one that ended it is not among them.
        ended: Whether it ended by itself, and was not cut off.
        log_probabilities: Of each token as the model gave it, before temperature and cutting
            (nats); where the text ended by itself, the last one is that of ending.
        entropies: Of the distribution each was drawn from, likewise (nats).
    """

    text: str
    tokens: Sequence[int]
    ended: bool
    log_probabilities: Sequence[float]
    entropies: Sequence[float]


CONFIDENCE = ("mean_log_probability", "first_probability", "mean_entropy")


@dataclass(frozen=True)
class GradingProblem:
    """A grade that is missing.

    Attributes:
        id: The example's.
        grader: Which grader failed.
        reason: Why.
    """

    id: str
    grader: str
    reason: str


@dataclass(frozen=True, eq=False, repr=False)
class Graded(Result):
    """Texts a model wrote, how sure it was of each, and what graders made of them.

    Attributes:
        name: The task's.
        examples: What was asked, in order.
        texts: What was written.
        tokens: The same as tokens, the one that ended a text left out.
        ended: Whether a text ended by itself, and was not cut off.
        mean_log_probability: Of what was written, per token (nats, at most 0), as the model gave
            it before temperature; a text's ending counts as a token.
        first_probability: Of the first token (0 to 1).
        mean_entropy: Of the distributions the tokens were drawn from (nats, at least 0).
        by_grader: Per grader and skill one number per text, NaN where it is missing.
        problems: Why grades are missing.
        provenance: Model, soft prompt, task, settings, seed, versions; what graders report.
    """

    name: str
    examples: tuple[Example, ...]
    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    ended: tuple[bool, ...]
    mean_log_probability: Float[Tensor, " text"]
    first_probability: Float[Tensor, " text"]
    mean_entropy: Float[Tensor, " text"]
    by_grader: Mapping[str, Mapping[str, Float[Tensor, " text"]]] = field(default_factory=dict)
    problems: tuple[GradingProblem, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, examples: Sequence[Example], written: Sequence[Written], provenance: dict[str, Any]
    ) -> "Graded":
        """Texts without grades."""

        def column(values: list[float]) -> Float[Tensor, " text"]:
            return torch.tensor(values, dtype=torch.float64)

        return cls(
            name=getattr(examples, "name", "examples"),
            examples=tuple(examples),
            texts=tuple(item.text for item in written),
            tokens=tuple(tuple(item.tokens) for item in written),
            ended=tuple(item.ended for item in written),
            mean_log_probability=column([_mean(item.log_probabilities) for item in written]),
            first_probability=column([item.log_probabilities[0] for item in written]).exp(),
            mean_entropy=column([_mean(item.entropies) for item in written]),
            provenance=provenance,
        )

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def grades(self) -> dict[str, Float[Tensor, " text"]]:
        """Per skill one number per text: the mean over the graders that gave one, else NaN."""
        skills = dict.fromkeys(skill for given in self.by_grader.values() for skill in given)
        stacks = {
            skill: torch.stack(
                [given[skill] for given in self.by_grader.values() if skill in given]
            )
            for skill in skills
        }
        return {skill: stack.nanmean(0) for skill, stack in stacks.items()}

    @cached_property
    def copied(self) -> tuple[float, ...]:
        """Of each text the share of its runs of four words that stand in its prompt (0 to 1).

        A small model may copy the example of a skill that the prompt gives. The rules do not
        see what is copied; other graders do, and then find the skill. `task` carries it as a
        covariate, to leave out or to partial out.
        """
        pairs = zip(self.texts, self.examples, strict=True)
        return tuple(copied(text, example.prompt) for text, example in pairs)

    def frame(self) -> pd.DataFrame:
        """One row per text: id group text n_tokens ended copied, confidence, then each skill."""
        columns: dict[str, Any] = {
            "id": [example.id for example in self.examples],
            "group": [example.group for example in self.examples],
            "text": list(self.texts),
            "n_tokens": [len(tokens) for tokens in self.tokens],
            "ended": list(self.ended),
            "copied": list(self.copied),
        }
        columns |= {name: getattr(self, name).numpy() for name in CONFIDENCE}
        grades = {skill: values.numpy() for skill, values in self.grades.items()}
        columns |= {f"grade:{k}" if k in columns else k: values for k, values in grades.items()}
        return pd.DataFrame(columns)

    def summary(self) -> pd.DataFrame:
        """One row per skill: skill n graded missing, mean grade where asked for and where not."""
        rows = []
        for skill, values in self.grades.items():
            asked = torch.tensor([bool(e.labels.get(skill, False)) for e in self.examples])
            known = ~values.isnan()
            rows.append(
                {
                    "skill": skill,
                    "graded": int(known.sum()),
                    "missing": int((~known).sum()),
                    "asked": int((asked & known).sum()),
                    "mean_asked": float(values[asked & known].mean()),
                    "mean_not_asked": float(values[~asked & known].mean()),
                }
            )
        names = ["skill", "graded", "missing", "asked", "mean_asked", "mean_not_asked"]
        return pd.DataFrame(rows, columns=pd.Index(names))

    def task(self, *skills: str, written: bool = False) -> Task:
        """The examples as a Task whose labels are the grades, for `score` and every other verb.

        Labels: each skill's grade. Covariates: those of the examples; ``asked <skill>``, their
        own labels; ``text``; ``n_tokens``, ``ended``, ``copied`` and the three of confidence.
        Texts that lack a grade of these skills are left out; the split's name says how many.

        Args:
            skills: Which (default all); a text counts only where each of them is graded.
            written: Prompts then contain the text, so that neurons can be read on it (at
                ``"mean"`` or ``"last"``, or at ``span(column="text", take="mean")``), as text and
                so not always in the same tokens. `capture_text` reads the very tokens, also in a
                chat and behind a soft prompt. Empty texts are left out.

        Raises:
            LensSkillsError: an unknown skill, no text that has all grades, ``written`` where text
                alone cannot repeat what the model read.
        """
        grades = self.grades
        if unknown := [skill for skill in skills if skill not in grades]:
            raise LensSkillsError(
                f"no grades of {unknown[0]!r}. Graded: {', '.join(grades) or 'nothing yet'}."
            )
        about = self.provenance
        if written and (about.get("chat") or about.get("prompt")):
            what = "a chat template" if about.get("chat") else "a soft prompt"
            raise LensSkillsError(
                f"these texts were written after {what}, which stands between prompt and text and "
                "cannot be put into a prompt. Read them with capture_text(model, graded, path)."
            )
        chosen = {skill: grades[skill].tolist() for skill in skills or grades}
        kept = [
            _example(self, place, {skill: v[place] for skill, v in chosen.items()}, written)
            for place in range(len(self))
            if all(v[place] == v[place] for v in chosen.values())
            and not (written and not self.texts[place].strip())
        ]
        if not kept:
            raise LensSkillsError(
                f"no text has a grade of each of {', '.join(chosen)}. Ask for fewer at a time: "
                f"graded.task({next(iter(chosen), '')!r})."
            )
        form = " with their texts" if written else ""
        lost = len(self) - len(kept)
        split = f"{about.get('split', 'all')}{form}{f', {lost} left out' if lost else ''}"
        return Task(self.name, kept, split, recipe=f"{about.get('recipe', 'all')}{form}")

    def __repr__(self) -> str:
        n, ended = len(self), sum(self.ended)
        lines = [
            f"Graded({self.name}: {n} texts by {self.provenance.get('model', '?')}, {ended} ended "
            f"by themselves; mean log-probability {float(self.mean_log_probability.mean()):.2f} "
            f"and entropy {float(self.mean_entropy.mean()):.2f} nats per token, first token "
            f"{float(self.first_probability.mean()):.2f}; {sum(self.copied) / n:.0%} copied from "
            "the prompts)"
        ]
        for row in self.summary().to_dict("records"):
            missing = f", {row['missing']} missing" if row["missing"] else ""
            asked = f"{row['mean_asked']:.2f} of {row['asked']} asked · " if row["asked"] else ""
            lines.append(f"  {row['skill']}: {asked}{row['mean_not_asked']:.2f} elsewhere{missing}")
        if self.problems:
            first = self.problems[0]
            lines.append(
                f"{len(self.problems)} problems, the first: {first.grader} on {first.id!r}: "
                f"{first.reason}"
            )
        return "\n".join(lines)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


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


def grade(graded: Graded, graders: Any) -> Graded:
    """The same texts with the grades of more graders.

    A grader that was there before under the same name is asked again; where it now fails, what it
    said before is kept. Skills that several graders grade are averaged in ``graded.grades``; each
    one's own numbers stay in ``graded.by_grader``.

    Args:
        graded: Texts, with or without grades.
        graders: One or several functions ``(text, example) -> {skill: number}``, or a dict that
            names them. One that raises, or returns no finite number, leaves a missing grade and a
            `GradingProblem`.

    Raises:
        LensSkillsError: Something that is no function, or two graders of one name.
    """
    named = named_graders(graders)
    by_grader = {name: dict(columns) for name, columns in graded.by_grader.items()}
    problems = [problem for problem in graded.problems if problem.grader not in named]
    reports = dict(graded.provenance.get("graders", {}))
    no_grades = torch.full((len(graded),), math.nan, dtype=torch.float64)
    for name, grader in named.items():
        if hasattr(grader, "start"):
            grader.start()  # type: ignore[attr-defined]
        given: dict[str, Tensor] = {}
        pairs = zip(graded.examples, graded.texts, strict=True)
        shown = progress(pairs, len(graded), f"grade: {name}", "texts")
        for place, (example, text) in enumerate(shown):
            found, reason = _one(grader, text, example)
            for skill, value in found.items():
                given.setdefault(skill, no_grades.clone())[place] = value
            if reason:
                problems.append(GradingProblem(example.id, name, reason))
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
    elif not callable(graders) and not isinstance(graders, Iterable):
        raise LensSkillsError(f"{graders!r:.60} is no grader: graders.detectors is one.")
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


def _example(graded: Graded, place: int, grades: dict[str, float], written: bool) -> Example:
    example, text = graded.examples[place], graded.texts[place]
    covariates = {
        **example.covariates,
        **{f"asked {name}": value for name, value in example.labels.items()},
        "text": text,
        "n_tokens": len(graded.tokens[place]),
        "copied": graded.copied[place],
        "ended": int(graded.ended[place]),
        **{name: float(getattr(graded, name)[place]) for name in CONFIDENCE},
    }
    return Example(
        id=example.id,
        prompt=example.prompt + text if written else example.prompt,
        labels=grades,
        covariates=covariates,
        group=example.group,
        kind=example.kind,
    )
