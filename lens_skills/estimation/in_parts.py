"""What is told as the sum of its parts: `study` by its steps, `stability` by its analysis."""

import time
from collections.abc import Sequence
from typing import Any

from lens_skills.activations import parse_metric, parse_metrics
from lens_skills.activations.metrics import causal_metric as usual_causal_metric
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.estimation.estimates import Estimate
from lens_skills.estimation.measuring import bytes_on_disk, leaving_nothing
from lens_skills.estimation.plans import PLANS, Plan
from lens_skills.estimation.small_runs import measured_estimate, request_of
from lens_skills.interventions import Verdict, ablate
from lens_skills.models import as_adapter
from lens_skills.resampling import stability
from lens_skills.resampling.stability import HALVES
from lens_skills.scoring import select
from lens_skills.scoring.predicted_evidence import DOORS
from lens_skills.studies import PREFLIGHT, TESTED, Study, check_doors, default_metric, study
from lens_skills.tasks import SPLITS, few


def estimate_study(*args: Any, **options: Any) -> Estimate:
    """Preflight, both scores and the verdict, each measured; the verdict on as many as may be."""
    asked, began = request_of(study, args, options), time.perf_counter()
    model, task, seed = asked["model"], asked["task"], asked["seed"]
    as_adapter(model)
    check_doors(asked["by"])
    main = parse_metric(asked["metric"] or default_metric(task), task, asked="study(metric=…)")
    others = [other for other in parse_metrics(asked["also"], task) if other.name != main.name]
    names = SPLITS[: len(asked["fractions"])]
    explore, confirm, *rest = task.split(*asked["fractions"], seed=seed, names=names)
    common = {name: asked[name] for name in ("at", "position", "given", "exchange", "chat")}
    common |= {"seed": seed, "n_permutations": asked["n_permutations"]}
    parts: list[tuple[str, Estimate]] = []
    beyond = 0  # bytes that the whole of each part takes beyond its largest small run

    def told(what: str, verb: str, *given: Any, **further: Any) -> Any:
        nonlocal beyond
        plan = PLANS[verb]
        found, result = measured_estimate(plan, request_of(plan.verb, given, further))
        parts.append((what, found))
        beyond += max(0, (found.disk or 0) - _bytes_of(result))
        return result

    before = getattr(asked["earlier"], "preflight", None)
    if before is None:
        sample = few(explore, PREFLIGHT)
        before = told("the preflight", "preflight", model, sample, metrics=[main, *others],
                      chat=asked["chat"])  # fmt: skip
    scores = told("scoring explore", "score", model, explore, metrics=[main, *others], **common)
    strongest = scores[main.name].top(TESTED)
    confirmed = told("scoring confirm", "score", model, confirm, metrics=[main], neurons=strongest,
                     **common)  # fmt: skip
    intervene, verdict, predicted = None, None, []
    causal, notes = asked["causal_metric"] or usual_causal_metric(task), []
    do = asked["do"] or ablate("mean", over=scores)
    if asked["by"] != DOORS[0] and causal is not None:
        where = {name: asked[name] for name in ("at", "position", "chat")}
        where |= {"metric": causal, "do": do, "seed": seed}
        expected = told("predicting on explore", "prescreen", model, explore, **where)
        predicted = expected.top(asked["most"])
        some = expected.top(TESTED)
        told("predicting on confirm", "prescreen", model, confirm, neurons=some, **where)
    if rest and causal is not None:
        known = [] if asked["by"] == DOORS[1] else scores[main.name].top(asked["most"]).names
        tried = list(dict.fromkeys([*known, *predicted]))
        intervene = few(rest[0], asked["n_intervene"], seed=seed)
        verdict = told(
            f"the verdict on {len(tried)} neurons", "verify", model, intervene, tried,
            do=do, metric=causal, delta=asked["delta"], at=asked["at"],
            position=asked["position"], controls=asked["controls"], chat=asked["chat"], seed=seed,
        )  # fmt: skip
        without = sum(each.seconds for _, each in parts[:-1])
        notes.append(
            f"the verdict is told for the {len(tried)} neurons it tries at most; where nothing is "
            f"confirmed there is none, and the whole takes {without:.0f} s"
        )
    with leaving_nothing():
        chosen = select(scores[main.name], confirmed[main.name], fdr=asked["fdr"])
        kept = Study(before, scores, confirmed, chosen, main.name, explore, confirm, intervene,
                     verdict)  # fmt: skip
        disk = _bytes_of(kept) + beyond
    return _together("study", parts, disk, time.perf_counter() - began, notes)


def _bytes_of(result: Any) -> int:
    """Of a result where it is saved."""
    with leaving_nothing() as folder:
        return bytes_on_disk(result, folder) or 0


def _together(
    verb: str,
    parts: Sequence[tuple[str, Estimate]],
    disk: int,
    measuring: float,
    notes: Sequence[str],
) -> Estimate:
    """The sum of several estimates: seconds added, the largest memory."""
    each = [part for _, part in parts]
    whole = sum(part.seconds for part in each)
    cheaper = [
        (what if len(parts) == 1 else f"{name}: {what}", whole - part.seconds + seconds)
        for name, part in parts
        for what, seconds in part.cheaper
        if what.startswith("controls")
    ]
    longest = max(each, key=lambda part: part.seconds)
    busy = [note for note in longest.notes if note.startswith("this process")]
    return Estimate(
        verb=verb,
        seconds=whole,
        low=sum(part.low for part in each),
        high=sum(part.high for part in each),
        memory=max(part.memory for part in each),
        model_bytes=max(part.model_bytes for part in each),
        disk=disk,
        parts=tuple((name, part.seconds) for name, part in parts),
        measured="each part by itself, on few examples",
        measuring=measuring,
        waited=longest.waited,
        cheaper=tuple(cheaper),
        notes=(*notes, *busy),
    )


def estimate_stability(*args: Any, **options: Any) -> Estimate:
    """The analysis on the whole task and on every part of it, by small runs of the analysis."""
    asked = request_of(stability, args, options)
    analysis, task = asked["analysis"], asked["task"]
    if isinstance(analysis, Verdict):
        raise LensSkillsError(
            "a finished verdict is drawn again without a pass of the model, which takes a moment."
        )
    if not callable(analysis) or task is None:
        stability(analysis, task)  # says what it wants instead
    assert task is not None
    if asked["over"] == "paraphrases":
        others = len(task.paraphrases())
        runs = float(others if asked["n"] is None else min(asked["n"], others))
    else:
        runs = asked["share"] * (HALVES if asked["n"] is None else asked["n"])
    runs += asked["whole"] is None

    def analysed(task: Sequence[Example]) -> Any:
        return analysis(task)

    analysed.__name__ = "stability"
    plan = Plan(analysed, ("task",))
    one, _ = measured_estimate(plan, {"task": task})
    return Estimate(
        verb="stability",
        seconds=one.seconds * runs,
        low=one.low * runs,
        high=one.high * runs,
        memory=one.memory,
        model_bytes=one.model_bytes,
        disk=one.disk,
        parts=tuple((what, seconds * runs) for what, seconds in one.parts),
        measured=one.measured,
        measuring=one.measuring,
        waited=one.waited,
        notes=(f"{runs:g} times the analysis of the whole task", *one.notes),
    )
