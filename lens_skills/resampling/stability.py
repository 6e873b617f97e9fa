"""`stability`: does what an analysis finds come back on other groups, and in other words?"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lens_skills.checkpoints import Checkpoint, resumable, unkept
from lens_skills.circuits import Circuit
from lens_skills.errors import LensSkillsError, RunError, did_you_mean
from lens_skills.interventions import Verdict
from lens_skills.progress import Progress
from lens_skills.resampling.found import Found, read
from lens_skills.resampling.repeated_findings import Stability, compare_runs
from lens_skills.resampling.verdict_resampling import resampled_verdict
from lens_skills.results import provenance
from lens_skills.stats.effect_tests import FEWEST_GROUPS
from lens_skills.tasks import Task

OVER = ("groups", "paraphrases")
HALVES = 20
"""Halves of the groups by default: ten pairs."""


@resumable(free=("analysis", "whole"))
def stability(
    analysis: Any,
    task: Task | None = None,
    *,
    over: str = "groups",
    n: int | None = None,
    share: float = 0.5,
    whole: Any = None,
    among: int | Mapping[int, int] | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> Stability:
    """What of an analysis comes back on parts of the groups, or in other words.

    The analysis is run on the whole task and then once per part, each time from the start: it
    splits, scores and selects anew, so that all that a draw decides is drawn again.

    Over groups, the parts are halves of the groups drawn without replacement, two and two without
    a common group: the second half of a pair is a replication of the first on other groups, so
    what chance would share is exact. (A bootstrap would give some groups twice, whose copies a
    permutation takes for independent.) A half has half the power of the whole task: what fails to
    return may be weak rather than wrong.

    Args:
        analysis: A function of a task, which hands back a selection, a study (its selection and
            the words of its verdict), a verdict, a circuit, or names of neurons; None where it
            found nothing. Or a finished `Verdict`, whose effects per example are taken by halves
            without another pass: δ and the controls stay those of the whole.
        task: What to run it on; a verdict needs none.
        over: ``"groups"``, or ``"paraphrases"``: the task's other wordings
            (`Task.paraphrases`), each with all groups.
        n: How many parts; default 20 halves (100 of a verdict), an even number; or at most so
            many other wordings (default all).
        share: Of the groups in each part. Up to 0.5, parts come in pairs without a common group;
            above, they share groups, and no p is given.
        whole: The analysis's result on the whole task, where it is at hand: it is not run again.
        among: Among how many neurons names or a selection are chosen, in all or per layer, for
            the overlap by chance. Default: what the result says (a study: those of each layer it
            scored; a selection: its neurons).
        seed: Of the draws.
        checkpoint: A folder to resume from, where finished parts are kept about once a minute.
            It does not know the function: use another folder for another analysis.

    Raises:
        LensSkillsError: Fewer than eight groups in a part (how many are needed); an odd number of
            halves; a task without other wordings; an analysis that fails on the whole task or on
            every part, or hands back what names nothing. A part on which it fails has found
            nothing, and the card says why.

    Source: stability selection, Meinshausen & Bühlmann 2010; complementary pairs, Shah & Samworth
    2013. That circuits and their scores move with resampled and reworded data: arXiv 2510.00845.

    Does not show: whether the names are right: what is wrong in every half returns too.

    >>> import lens_skills as ls
    >>> model = ls.load_model("arithmetic-small")
    >>> def strongest(task):
    ...     return ls.score(model, task, metrics=["label:carry"])["label:carry"].top(20)
    >>> found = ls.stability(strongest, ls.tasks.arithmetic("+"), n=2, among=1024)
    >>> len(found.runs), found.n_groups, found.n_groups_run
    (2, 55, 27)
    """
    if over not in OVER:
        raise LensSkillsError(
            f"over={over!r}: there are {' and '.join(OVER)}.{did_you_mean(str(over), OVER)}"
        )
    if isinstance(analysis, Verdict):
        if over != "groups":
            raise LensSkillsError(
                "a finished verdict is of one wording. Give the function that makes one of a "
                "task: stability(lambda task: verify(model, task, …), task, over='paraphrases')."
            )
        n = 5 * HALVES if n is None else n
        parts = _draw(sorted(set(analysis.effects.groups)), n, share, seed)
        return resampled_verdict(analysis, parts, disjoint=share <= 0.5, seed=seed)
    if not callable(analysis):
        raise LensSkillsError(
            f"a {type(analysis).__name__} cannot be run again. Give a function of a task that "
            "makes it: stability(lambda task: …, task)."
            + (
                " It keeps no effects per pair."
                if isinstance(analysis, Circuit)
                else " Scores of several prompts or seeds are compared by compare_scores."
                if isinstance(analysis, Sequence)
                else ""
            )
        )
    if task is None:
        raise LensSkillsError("stability(analysis, task): on which task is the analysis to be run?")
    places = over == "groups"
    parts, pairs, n_groups_run = _parts(task, over, n, share, seed)
    asked = {
        "task": task.fingerprint(), "over": over, "parts": list(parts), "share": share,
        "seed": seed, "among": str(among),
    }  # fmt: skip
    saved = Checkpoint.at(asked, name="runs")

    def run(part: Task) -> Found:
        return read(analysis(part), among=among, places=places)

    found, failed = _run_all(run, task, parts, saved, first=whole, among=among, places=places)
    first, rest = found[0], found[1:]
    if over == "paraphrases":
        names, runs = ("as asked", *parts), found
        pairs = list(itertools.combinations(range(len(runs)), 2))
    else:
        names, runs = tuple(parts), rest
    return compare_runs(
        first,
        runs,
        pairs,
        disjoint=over == "groups" and share <= 0.5,
        over=over,
        runs=names,
        n_groups=len(task.groups),
        n_groups_run=n_groups_run,
        notes=_notes(over, share, failed, len(parts)),
        provenance={**provenance(task), "n": len(parts), "share": share, "seed": seed},
    )


def _parts(
    task: Task, over: str, n: int | None, share: float, seed: int
) -> tuple[dict[str, Task], list[tuple[int, int]], int]:
    """The tasks to run the analysis on by name, which runs are compared, and groups in each."""
    if over == "paraphrases":
        if n is not None and n < 1:
            raise LensSkillsError(f"n={n}: at least one other wording.")
        others = dict(itertools.islice(task.paraphrases().items(), n))
        return others, [], len(task.groups)
    drawn = _draw(sorted(task.groups), HALVES if n is None else n, share, seed)
    parts = {}
    for place, groups in enumerate(drawn):
        name = f"{place // 2 + 1}{'ab'[place % 2]}"
        parts[name] = replace(
            task,
            examples=[example for example in task if example.group in groups],
            split_name=f"part {name} of {task.split_name}, seed {seed}",
        )
    return parts, neighbours(len(drawn)), len(drawn[0])


def neighbours(n: int) -> list[tuple[int, int]]:
    """Each part and the next, without overlap: the two that were drawn together.

    >>> neighbours(4)
    [(0, 1), (2, 3)]
    """
    return [(place, place + 1) for place in range(0, n - 1, 2)]


def _draw(groups: Sequence[str], n: int, share: float, seed: int) -> list[frozenset[str]]:
    """The groups of each part; two and two disjoint where the share allows it."""
    if not 0 < share < 1:
        raise LensSkillsError(f"share={share}: the share of the groups in a part, between 0 and 1.")
    if n < 2 or n % 2:
        raise LensSkillsError(f"n={n}: parts are drawn in pairs, so an even number of them.")
    size = int(share * len(groups) + 1e-9)
    if size < FEWEST_GROUPS:
        needed = math.ceil(FEWEST_GROUPS / share - 1e-9)
        larger = FEWEST_GROUPS / len(groups) if groups else 1
        raise LensSkillsError(
            f"a share of {share:g} of {len(groups)} groups are {size}, and fewer than "
            f"{FEWEST_GROUPS} say nothing. Give a task of {needed} groups or more"
            + (
                f", or share={math.ceil(100 * larger) / 100:g}, whose parts have groups in common."
                if larger < 1
                else "; over='paraphrases' needs no groups."
            )
        )
    drawn = []
    for pair in range(n // 2):
        random = np.random.default_rng([seed, pair])
        order = [groups[place] for place in random.permutation(len(groups)).tolist()]
        again = [groups[place] for place in random.permutation(len(groups)).tolist()]
        second = order[size : 2 * size] if 2 * size <= len(groups) else again[:size]
        drawn += [frozenset(order[:size]), frozenset(second)]
    return drawn


def _run_all(
    run: Callable[[Task], Found],
    task: Task,
    parts: Mapping[str, Task],
    saved: Checkpoint | None,
    *,
    first: Any,
    among: int | Mapping[int, int] | None,
    places: bool,
) -> tuple[list[Found], dict[str, str]]:
    """What the whole and every part finds, and why some parts failed; goes on where it stopped."""
    kept = None if saved is None else saved.read()
    done = [] if kept is None else [_again(one) for one in kept[1]["done"]]
    failed: dict[str, str] = {} if kept is None else dict(kept[1]["failed"])

    def keep(*, now: bool) -> None:
        if saved is not None and done and (now or saved.due()):
            saved.write({}, {"done": [asdict(one) for one in done], "failed": failed})

    if not done and first is not None:
        done.append(read(first, among=among, places=places))
    runs = {"the whole task": task, **parts}
    with Progress(len(runs), "stability", "runs", done=len(done)) as bar:
        try:
            for name, part in itertools.islice(runs.items(), len(done), None):
                bar.note(name)
                with unkept():
                    done.append(_one(run, name, part, done[0] if done else None, failed))
                bar.update()
                keep(now=False)
        except BaseException:
            # An interruption does not lose the finished parts.
            keep(now=True)
            raise
    if len(failed) == len(parts):
        reason = next(iter(failed.values()))
        raise LensSkillsError(
            f"the analysis works on the whole task and on no part of it: {reason}"
        )
    return done, failed


def _one(
    run: Callable[[Task], Found],
    name: str,
    part: Task,
    whole: Found | None,
    failed: dict[str, str],
) -> Found:
    try:
        found = run(part)
    except RunError:
        raise
    except LensSkillsError as error:
        if whole is None:
            raise
        failed[name] = str(error)
        return replace(whole, names=(), tried=whole.tried and (), words={}, numbers={})
    if whole is not None and found.kind != whole.kind:
        if found.names or found.words:
            raise LensSkillsError(
                f"the analysis hands back a {found.kind} of {name} and a {whole.kind} of the whole."
            )
        return replace(whole, names=(), tried=whole.tried and (), words={}, numbers={})
    return found


def _again(plain: Mapping[str, Any]) -> Found:
    """A `Found` as it was before it was kept as JSON."""
    tried = plain["tried"]
    values = {**plain, "names": tuple(plain["names"]), "tried": tried and tuple(tried)}
    return Found(**values)


def _notes(over: str, share: float, failed: Mapping[str, str], n_parts: int) -> tuple[str, ...]:
    notes = []
    if failed:
        name, reason = next(iter(failed.items()))
        notes.append(
            f"{len(failed)} of {n_parts} parts could not be analysed and count as having found "
            f"nothing, {name} because: {reason}"
        )
    if over == "paraphrases":
        notes.append(
            "all wordings have the same groups: what is peculiar to those returns too; "
            "over='groups' asks that"
        )
    elif share > 0.5:
        notes.append("parts have groups in common, which alone makes them alike: no p")
    return tuple(notes)
