"""Find, confirm and test the neurons of a language model that carry a skill.

A `Task` (prompts, answers, labels) is split by group; a `score` correlates every
neuron's activation with every metric (a label, the model's own confidence, its correctness) in one
pass and holds it against its nulls; `select` grades what a second, unseen split confirms;
`verify` intervenes on a third, beside matched controls, and says what each neuron does.
`study` runs all of it and prints one card, which opens with the attrition: how many neurons
there are, and how many are left after each step.

A model is whatever TransformerLens makes: `load_model` opens the bundled default, a hub name,
a folder, a GGUF file or a loaded Hugging Face model, and every verb takes a ``HookedTransformer``
or ``TransformerBridge`` of your own as it is::

    import lens_skills as ls

    model = ls.load_model()
    explore, confirm, intervene = ls.tasks.agreement().split(0.4, 0.2, 0.4, seed=0)
    metrics = {"plural": "label:plural", "sure": ls.confidence()}
    scores = ls.score(model, explore, metrics=metrics)
    confirm_scores = ls.score(model, confirm, metrics=metrics, neurons=scores["plural"].top(200))
    neurons = ls.select(scores["plural"], confirm_scores["plural"], fdr=0.05)
    print(ls.verify(model, intervene, neurons, do=ls.ablate("mean", over=scores)))

The public names are listed in ``__init__.pyi``, which type checkers read too. Each is loaded when
it is first used, so that importing the package, and asking the shell for help, costs nothing.
"""

import ast
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

# The module that each public name is imported from.
_MODULE = {
    alias.name: str(node.module)
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}

__all__ = [*_MODULE, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        from lens_skills.old_names import unknown_name

        raise AttributeError(unknown_name(name, __all__))
    value = _named(_MODULE[name], name)
    globals()[name] = value  # the next look-up is a plain one
    return value


def _named(module: str, name: str) -> Any:
    if module == __name__:
        return import_module(f"{module}.{name}")
    try:
        value = getattr(import_module(module), name)
    except AttributeError:  # a module of the room
        return import_module(f"{module}.{name}")
    return _checking_options(value) if hasattr(value, "__code__") else value


def _checking_options(function: Any) -> Any:
    """The function; an option that is not there, or of a wrong kind, is answered in words."""
    from inspect import signature

    from lens_skills.argument_types import check_arguments

    takes = signature(function).parameters
    open_ended = any(one.kind is one.VAR_KEYWORD for one in takes.values())

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        for option in options:
            if option not in takes and not open_ended:
                from lens_skills.old_names import unknown_option

                raise TypeError(unknown_option(function.__name__, option, takes))
        check_arguments(function, args, options)
        return function(*args, **options)

    call.__module__ = __name__  # where it is found again, also by pickle
    return call


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
