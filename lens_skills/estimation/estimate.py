"""`estimate`: what a call will take, told before it is made."""

from collections.abc import Callable
from typing import Any

from lens_skills.errors import LensSkillsError, did_you_mean
from lens_skills.estimation.estimates import Estimate
from lens_skills.estimation.in_parts import estimate_stability, estimate_study
from lens_skills.estimation.plans import PLANS
from lens_skills.estimation.small_runs import measured_estimate, request_of

_IN_PARTS: dict[str, Callable[..., Estimate]] = {
    "stability": estimate_stability,
    "study": estimate_study,
}
VERBS = (*PLANS, *_IN_PARTS)
"""What can be told beforehand."""


def estimate(verb: str | Callable[..., Any], *args: Any, **options: Any) -> Estimate:
    """How long a call will take, how much memory and how much disk, from small runs of it.

    The verb itself is run on a few examples (and few control neurons, few epochs, …), then on
    twice as many, for some seconds or about a tenth of the whole; what grows with the work is
    told apart from what does not. Nothing costs what it is said to cost elsewhere: all is measured
    here and now, on this machine, this model and these prompts. A call that is short is run whole.
    The small runs leave nothing behind: no checkpoint, no file, no state of a random generator.

    Args:
        verb: Its name (``"verify"``) or the function (``ls.verify``): every verb that runs a model
            for long. `study` is told as the sum of its parts, `stability` by its analysis.
        args, options: The call's own, exactly as it would be made.

    Returns:
        `Estimate`, whose card says what the time is made of and what would be cheaper.

    Raises:
        LensSkillsError: No such verb or option (with the nearest there is), an option left out; a
            call that would fail, with its own reason.

    Does not show: an exact time. Another program on the machine, a machine that slows down when
    hot, and what depends on the outcome (how many neurons are confirmed, when a soft prompt stops
    getting better, how many edges lead on) can make it shorter or longer; where the outcome
    decides, the estimate is of the most there can be.

    >>> import lens_skills as ls
    >>> model, task = ls.load_model("arithmetic-small"), ls.tasks.arithmetic("+", n=60)
    >>> told = ls.estimate("score", model, task, metrics="label:carry")
    >>> told.low <= told.seconds <= told.high
    True
    """
    name = verb if isinstance(verb, str) else getattr(verb, "__name__", repr(verb))
    if name not in VERBS:
        raise LensSkillsError(
            f"{name!r} is no verb that takes long.{did_you_mean(name, VERBS)} Told beforehand: "
            f"{', '.join(sorted(VERBS))}."
        )
    if name in _IN_PARTS:
        return _IN_PARTS[name](*args, **options)
    plan = PLANS[name]
    return measured_estimate(plan, request_of(plan.verb, args, options))[0]
