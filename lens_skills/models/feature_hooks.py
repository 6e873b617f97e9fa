"""Hooks as they are attached: those at features become hooks at the model's own hook points."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.models.dictionaries import Dictionary


def feature_reader(one: Dictionary, read: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    """What hands a dictionary's features to ``read``; it belongs at ``one.hook_name``."""

    def encode(x: Tensor) -> None:
        read(one.encode(x.flatten(2)))

    return encode


def feature_editors(
    one: Dictionary, edit: Callable[[Tensor], Tensor]
) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    """Hook points of the model, in order, and what does there what ``edit`` does to the features.

    ``edit`` is given the features of ``batch pos d_sae``. Where it changes nothing, activations
    stay the very same.
    """
    kept: list[Tensor] = []

    def change_of(x: Tensor) -> Tensor:
        found = one.encode(x.flatten(2))
        # A node of its own, so that a derivative by the features leaves out the way to them.
        new = edit(found.clone() if torch.is_grad_enabled() else found)
        return new.to(found) - found

    def add(x: Tensor, change: Tensor) -> Tensor:
        if not change.requires_grad and not bool(change.any()):
            return x
        return x + one.written(change, x.flatten(2)).to(x).view_as(x)

    def both(x: Tensor) -> Tensor:
        return add(x, change_of(x))

    def read(x: Tensor) -> Tensor:
        kept[:] = [change_of(x)]
        return x

    def write(x: Tensor) -> Tensor:
        return add(x, kept.pop())

    if not one.transcodes:
        return [(one.hook_name, both)]
    return [(one.hook_name, read), (one.hook_name_out, write)]


def placed(
    features: Mapping[str, Dictionary],
    readers: Mapping[str, Callable[[Tensor], Any]],
    editors: Mapping[str, Callable[[Tensor], Tensor]],
) -> Iterator[tuple[str, str, Callable[[Tensor], Any], bool]]:
    """What is attached for some hooks, in order: of each part the name of the hook it is of.

    And the model's own hook point, what is called there, and whether it edits.
    """
    for name, edit in editors.items():
        if name not in features:
            yield name, name, edit, True
            continue
        if name in readers:
            edit = _then(edit, readers[name])
        for place, function in feature_editors(features[name], edit):
            yield name, place, function, True
    for name, read in readers.items():
        one = features.get(name)
        if one is None:
            yield name, name, read, False
        elif name not in editors:
            yield name, one.hook_name, feature_reader(one, read), False


def _then(
    edit: Callable[[Tensor], Tensor], read: Callable[[Tensor], Any]
) -> Callable[[Tensor], Tensor]:
    """An editor, and a reader that sees what it made."""

    def both(activation: Tensor) -> Tensor:
        new = edit(activation)
        read(new)
        return new

    return both


def counted(
    name: str, function: Callable[[Tensor], Any], called: set[str], *, edits: bool
) -> Callable[..., Tensor | None]:
    """What is called at a hook point: a function, once for each name, which notes that it ran."""

    # One function per name: the bridge calls a hook with the name of the aliased hook point.
    def call(activation: Tensor, hook: Any) -> Any:
        called.add(name)
        out = function(activation)
        return out if edits else None

    return call


def refuse_sizes(held: Mapping[int, Dictionary], layers: Iterable[int], site: str) -> None:
    """Nothing; raises where dictionaries of several sizes would be read side by side."""
    if len({held[layer].d_sae for layer in layers if layer in held}) > 1:
        sizes = ", ".join(f"{one.d_sae:,} in layer {layer}" for layer, one in held.items())
        raise LensSkillsError(
            f"dictionaries of several sizes are called {site!r}: {sizes}. Read layers of one size "
            "at a time (layers=[…]), or give them names of their own."
        )
