"""Which methods can rank by a metric, with this model; and for the others, the way out."""

from collections.abc import Sequence

from lens_skills.activations import Metric
from lens_skills.methods.catalogue import METHODS
from lens_skills.methods.method import Method
from lens_skills.methods.reading import Reader
from lens_skills.methods.target import Target


def unfit(
    methods: Sequence[Method],
    target: Target,
    reader: Reader,
    gate: bool,
    differentiated: Metric | None,
) -> dict[str, str]:
    """Why some methods cannot rank here, each with the way out."""
    found = {}
    for method in methods:
        why = misfit(method, target)
        if method.reads == "gradient":
            why = _no_gradient(method, reader, differentiated)
        elif method.reads == "firing" and gate and not reader.gated:
            where = "a table" if reader.lens is None else reader.lens.name
            why = why or (
                f"{method.name} counts how often a neuron's gate is open, but {where} has none at "
                f"{reader.site.name}. Say gate=False to count how often the activation itself is "
                "above 0 (for a plain MLP that is the sign of its pre-activation)."
            )
        if why:
            found[method.name] = why
    return found


def _no_gradient(method: Method, reader: Reader, metric: Metric | None) -> str | None:
    if reader.lens is None:
        return f"{method.name} differentiates the model, which a table is not. Give the model."
    if reader.chat:
        return f"{method.name} differentiates plain prompts only. Leave chat=, or another method."
    if metric is None or metric.known:
        name = "nothing" if metric is None else repr(metric.name)
        return (
            f"{method.name} differentiates what the model says, but {name} is a column of the "
            "task. Rank by metric='logit_diff' or confidence('answer'), or choose a method that "
            "reads activations."
        )
    return None


def misfit(method: Method, target: Target) -> str | None:
    """Why a method cannot rank by a metric of this kind, with the way out; None where it can.

    A method of gradients is asked elsewhere, since it takes a metric of the model.
    """
    if target.kind in method.takes:
        return None
    if target.kind == "categorical":
        able = [name for name, each in METHODS.items() if "categorical" in each.takes]
        return (
            f"{method.name} needs numbers in order, but {target.name!r} has "
            f"{len(target.classes)} categories. Name one, against the rest: "
            f"'{target.name}={target.classes[0]}'; or choose a method that takes categories: "
            f"{', '.join(able)}."
        )
    return (
        f"{method.name} needs classes, but {target.name!r} is continuous. Split it in two, "
        "split='median'; or choose a method that takes numbers: "
        f"{', '.join(name for name, each in METHODS.items() if 'continuous' in each.takes)}."
    )
