"""Small runs of one verb, of growing size, and the estimate they give."""

import inspect
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lens_skills import settings
from lens_skills.argument_types import check_arguments
from lens_skills.errors import LensSkillsError
from lens_skills.estimation.estimates import Estimate
from lens_skills.estimation.extrapolation import TimeModel, disk_size, interval, peak_memory
from lens_skills.estimation.measuring import SmallRun, leaving_nothing, measured_run
from lens_skills.estimation.plans import WORDS, Plan, Request, Work
from lens_skills.models import as_adapter
from lens_skills.old_names import unknown_option

_SHORT, _LONG = 2.0, 6.0  # seconds: measure at least so long, and not much longer than so
_SHARE, _AT_MOST = 0.05, 0.12  # of the whole, where that is more
_TELLING = 0.3  # a run shorter than that tells little
_FAR = 3.0  # doublings from what was measured to the whole, above which more is measured
_PATIENCE = 40.0  # seconds of runs that fail, after which nobody tries on
Size = tuple[int, int]
"""Examples, and what the verb's other axis counts."""


def request_of(verb: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Request:
    """All arguments of a call by name, defaults among them.

    Raises:
        LensSkillsError: An option that the verb has not, one that is left out, one of another kind.
    """
    name, takes = verb.__name__, inspect.signature(verb)
    for option in options:
        if option not in takes.parameters:
            raise LensSkillsError(unknown_option(name, option, takes.parameters))
    try:
        bound = takes.bind(*args, **options)
    except TypeError as error:
        raise LensSkillsError(
            f"{name}(…) cannot be called like this: {error}. It takes: "
            f"{', '.join(takes.parameters)}."
        ) from error
    check_arguments(verb, args, options)
    bound.apply_defaults()
    return dict(bound.arguments)


def measured_estimate(plan: Plan, request: Request) -> tuple[Estimate, Any]:
    """The estimate of a request, and what its largest small run handed back."""
    began = time.perf_counter()
    for argument in plan.examples:
        if not len(request[argument]):
            raise LensSkillsError(f"{plan.verb.__name__}: {argument} holds no examples.")
    device = _device(request.get("model"))
    with leaving_nothing() as folder:
        run = partial(_run, plan, request, folder, device)
        runs, work = _small_runs(plan, request, run)
        told = _told(plan, request, runs, work, time.perf_counter() - began)
    return told, runs[-1].result


def _device(model: Any) -> torch.device | None:
    try:
        return torch.device(as_adapter(model).device)
    except LensSkillsError:
        return None


def _run(
    plan: Plan, request: Request, folder: Path, device: torch.device | None, n: int, m: int
) -> SmallRun:
    """The request at a size, in a new folder."""
    made = plan.smaller(request, n, m)
    place = folder / f"{n}-{m}-{time.monotonic_ns()}"
    place.mkdir()
    for argument in ("path", "folder"):
        if argument in made:
            made[argument] = place / "table"
    took = measured_run(lambda: plan.verb(**made), place, device)
    return SmallRun(n=n, m=m, work=plan.work(made, took["result"]), **took)


def _small_runs(
    plan: Plan, request: Request, run: Callable[[int, int], SmallRun]
) -> tuple[list[SmallRun], Work]:
    """Runs of growing size, the last one the largest, and the work of the whole.

    Only the first one of all if it is whole.

    Raises:
        LensSkillsError: The call fails, at every size.
    """
    most = plan.n(request), plan.size(request)
    size, began = (min(plan.start, most[0]), min(plan.first, most[1])), time.process_time()
    while True:
        try:
            first = run(*size)
            break
        except LensSkillsError as error:
            if size == most or time.process_time() - began > _PATIENCE:
                raise LensSkillsError(_fails(plan, size[0], most[0], error)) from error
            size = min(2 * size[0], most[0]), min(2 * size[1], most[1])
    # What a first run loads and builds once is no part of the time.
    runs = [run(*size)] if first.cpu < _SHORT or size == most else []
    batch, needed = settings.batch_size(plan.batch), 2 if most[1] == 1 else 4
    work, last = plan.work(request), runs[-1] if runs else first
    left = _LONG - (time.process_time() - began)
    by = 4 if (4 if most[1] == 1 else 4 + 4 + 16) * last.cpu <= left else 2
    grown = min(by * size[0], most[0]), min(by * size[1], most[1])
    alone = [(grown[0], size[1]), (size[0], grown[1]), grown]
    waiting = [other for other in dict.fromkeys(alone) if other != size]
    while size != most:
        spent = time.process_time() - began
        factor = _factor(runs, work, _LONG - spent)
        size = waiting.pop(0) if waiting else _larger(size, most, batch, factor)
        so_far = _so_far(plan, request, work, runs or [first], *size)
        told, ahead = (part / _slower(runs or [first]) for part in so_far)
        enough = len(runs) >= max(2, needed - (spent > _LONG))
        if enough and spent + ahead > max(_LONG, _AT_MOST * told):
            break
        if enough and spent > max(_SHORT, _SHARE * told) and factor == 2:
            break
        try:
            runs.append(run(*size))
        except LensSkillsError as error:
            if size == most:
                raise LensSkillsError(_fails(plan, most[0], most[0], error)) from error
        size = max(size, (max(one.n for one in runs), max(one.m for one in runs)))
    return runs, work


def _slower(runs: list[SmallRun]) -> float:
    """Seconds of the clock that a processor second took."""
    cpu = sum(run.cpu for run in runs)
    return sum(run.seconds for run in runs) / cpu if cpu > 0 else 1.0


def _fails(plan: Plan, n: int, most: int, error: LensSkillsError) -> str:
    name = plan.verb.__name__
    if n == most:
        return f"{name} fails as it is asked: {error}"
    return f"{name} fails on {n:,} of the {most:,} examples, and so cannot be told: {error}"


def _larger(size: Size, most: Size, batch: int, factor: int) -> Size:
    """The next size: two batches of examples first, then both axes in turn.

    >>> [_larger(size, (200, 16), 32, 2) for size in ((16, 8), (64, 8), (64, 16), (128, 16))]
    [(32, 8), (64, 16), (128, 16), (200, 16)]
    """
    n, m = size
    by_examples = n < most[0] and (m == most[1] or n < min(2 * batch, 4 * m))
    return (min(factor * n, most[0]), m) if by_examples else (n, min(factor * m, most[1]))


def _factor(runs: list[SmallRun], work: Work, left: float) -> int:
    """By how much to grow: more where the runs so far tell little of the whole.

    That is where the last one is short, where most of its time does not grow at all, or where the
    whole is far larger and ``left`` seconds are enough for four times the last one's work.
    """
    if len(runs) < 2:
        return 2
    model, last = TimeModel.of(runs), runs[-1]
    short = last.cpu < _TELLING or model.constant > 0.7 * model.seconds(last.work)
    ahead = model.seconds({kind: 4 * much for kind, much in last.work.items()}) / _slower(runs)
    far = model.doublings(work) > _FAR and ahead <= left
    return 4 if short or far else 2


def _so_far(
    plan: Plan, request: Request, work: Work, runs: list[SmallRun], n: int, m: int
) -> tuple[float, float]:
    """What the whole and the next run would take, by the runs so far."""
    if len(runs) > 1:
        model = TimeModel.of(runs)
        ahead = model.seconds(plan.work(plan.smaller(request, n, m)))
        return model.seconds(work), ahead
    last = runs[-1]
    one = last.seconds / (last.n * last.m)
    return one * plan.n(request) * plan.size(request), one * n * m


def _told(
    plan: Plan, request: Request, runs: list[SmallRun], work: dict[str, float], measuring: float
) -> Estimate:
    most_n, most_m = plan.n(request), plan.size(request)
    whole = [run for run in runs if (run.n, run.m) == (most_n, most_m)]
    name, last = plan.verb.__name__, runs[-1]
    disk = disk_size(runs, most_n, most_m)
    batch = settings.batch_size(plan.batch)
    grown = max(0.0, (disk or 0.0) - max(run.disk or 0 for run in runs))
    cheaper: list[tuple[str, float]] = []
    if whole:
        seconds = whole[-1].seconds
        low, high = seconds / 1.15, seconds * 1.15
        parts: tuple[tuple[str, float], ...] = (("the call itself, run whole", seconds),)
        memory = float(max(run.memory for run in whole))
    else:
        model = TimeModel.of(runs)
        seconds = model.seconds(work)
        low, high = interval(runs, model, work)
        parts = tuple((WORDS[kind], part) for kind, part in model.parts(work).items())
        memory = peak_memory(runs, most_n, batch, grown)
        for what, other in plan.cheaper(request):
            cheaper.append((what, model.seconds(plan.work(other))))
    adapter = request.get("model")
    return Estimate(
        verb=name,
        seconds=seconds,
        low=low,
        high=high,
        memory=int(memory),
        model_bytes=_parameter_bytes(adapter),
        disk=None if disk is None else int(disk),
        parts=parts,
        measured=_measured(plan, runs, most_n, most_m),
        measuring=measuring,
        waited=_slower(runs),
        cheaper=tuple(cheaper),
        notes=tuple(_notes(plan, request, last, bool(whole))),
    )


def _parameter_bytes(model: Any) -> int:
    model = getattr(model, "model", model)
    if not hasattr(model, "parameters"):
        return 0
    held = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()
    }
    return sum(held.values())


def _measured(plan: Plan, runs: list[SmallRun], most_n: int, most_m: int) -> str:
    sizes = sorted({run.n for run in runs})
    text = f"on {_listed(sizes)} of {most_n:,} examples"
    if most_m > 1:
        others, what = sorted({run.m for run in runs}), _AXES[plan.verb.__name__]
        text += f" × {_listed(others)} of {most_m:,} {what}"
    return text


_AXES = {
    "sweep": "neurons",
    "verify": "control neurons a layer",
    "audit": "control neurons a layer",
    "fit_prompt": "epochs",
}


def _listed(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"{numbers[0]:,}"
    return f"{', '.join(f'{n:,}' for n in numbers[:-1])} and {numbers[-1]:,}"


def _notes(plan: Plan, request: Request, last: SmallRun, whole: bool) -> Iterator[str]:
    name = plan.verb.__name__
    if last.seconds > 0.5 and last.cpu < 0.75 * last.seconds:
        yield (
            f"this process got the processor {last.cpu / last.seconds:.0%} of the time: the "
            "machine is busy, and the time would be shorter on a quiet one"
        )
    if name == "fit_prompt" and request["patience"] < request["epochs"]:
        yield (
            f"of all {request['epochs']} epochs; training stops earlier where the held-out loss "
            f"is not lower for {request['patience']}"
        )
    if name == "circuit" and not whole:
        yield "of all stages there can be; where no edge is confirmed, none is followed"
    if request.get("checkpoint") is not None:
        yield "the checkpoint takes up to as much disk again while it runs"
    if "precision" in request and request["precision"] in (None, "float32") and not whole:
        yield "precision='bfloat16' may be faster on this machine: estimate it likewise"
