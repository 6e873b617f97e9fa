"""Neurons, attention heads and whole MLPs by name: ``L17N635``, ``L9H3``, ``L5MLP``."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lens_skills.activations.locations import DEFAULT_SITE, find_site
from lens_skills.errors import LensSkillsError
from lens_skills.models import ModelAdapter
from lens_skills.models.adapter import check_reading


def neuron_names(neurons: Int[Tensor, "neuron 2"]) -> list[str]:
    """The names of (layer, index) rows.

    >>> neuron_names(torch.tensor([[17, 635]]))
    ['L17N635']
    """
    return [f"L{layer}N{index}" for layer, index in neurons.tolist()]


def parse_neurons(neurons: Any) -> Int[Tensor, "k 2"]:
    """Neurons as (layer, index) rows, from rows, names such as ``"L17N635"``, or a `Selection`.

    >>> parse_neurons(["L1N2", (3, 4)]).tolist()
    [[1, 2], [3, 4]]
    """
    if hasattr(neurons, "neurons"):
        neurons = neurons.neurons
    if isinstance(neurons, Tensor):
        rows = neurons
    else:
        found = []
        for neuron in neurons:
            named = re.fullmatch(r"L(\d+)N(\d+)", neuron) if isinstance(neuron, str) else None
            if isinstance(neuron, str) and named is None:
                raise LensSkillsError(f"no neuron {neuron!r}. Names look like 'L17N635'.")
            pair = named.groups() if named else neuron
            found.append([int(part) for part in pair])
        rows = torch.tensor(found, dtype=torch.long).reshape(-1, 2)
    if rows.ndim != 2 or rows.shape[1] != 2:
        raise LensSkillsError(
            f"neurons must be rows of (layer, index), not a tensor of shape {tuple(rows.shape)}."
        )
    return rows.long()


def find_places(neurons: Any, layers: Sequence[int], width: int) -> Int[Tensor, " unit"]:
    rows = parse_neurons(neurons)
    if len(rows) == 0:
        raise LensSkillsError("no neurons to score: the selection is empty.")
    if len(torch.unique(rows, dim=0)) != len(rows):
        raise LensSkillsError("a neuron is named twice. Name each once.")
    for layer, neuron in rows.tolist():
        if layer not in layers or not 0 <= neuron < width:
            raise LensSkillsError(
                f"no neuron L{layer}N{neuron} here: layers {min(layers)} to {max(layers)} with "
                f"{width} neurons each are scored."
            )
    place = {layer: index for index, layer in enumerate(layers)}
    starts = torch.tensor([place[layer] * width for layer in rows[:, 0].tolist()])
    return starts + rows[:, 1]


HEADS, MLP = "attn.hook_z", "hook_mlp_out"
Width = Callable[[str], int]
_NAME = re.compile(r"L(\d+)(?:([NH])(\d+)|MLP)")


@dataclass(frozen=True)
class Component:
    """Neighbouring features of one hook point that are changed together.

    Attributes:
        name: ``"L17N635"`` (a neuron), ``"L9H3"`` (an attention head), ``"L5MLP"`` (a whole MLP).
        layer: Its block.
        site: The hook point within the block.
        start, stop: Its features, ``start`` up to but not including ``stop``, after all axes that
            follow batch and position are flattened (a head is ``d_head`` features of ``hook_z``).
    """

    name: str
    layer: int
    site: str
    start: int
    stop: int

    @property
    def hook_name(self) -> str:
        """The full name of its hook point.

        >>> Component("L1N2", 1, "mlp.hook_post", 2, 3).hook_name
        'blocks.1.mlp.hook_post'
        """
        return f"blocks.{self.layer}.{self.site}"

    @property
    def features(self) -> Int[Tensor, " feature"]:
        """The indices of its features."""
        return torch.arange(self.start, self.stop)


def parse_components(
    adapter: ModelAdapter, units: Any, *, at: str = DEFAULT_SITE
) -> tuple[Component, ...]:
    """Units of this model, in the order they were named.

    Args:
        adapter: The model.
        units: Names, (layer, index) rows, an ``Int[k 2]`` tensor, `Component` values, a
            `Selection`, or a list that mixes them; ``"all"`` is every neuron at ``at``. A name
            alone is a set of one.
        at: The site of everything named as a neuron. Heads are the whole slice of
            ``attn.hook_z``, a whole MLP is ``hook_mlp_out``.

    Raises:
        LensSkillsError: A name that means nothing, a unit this model does not have, a unit named
            twice, a `Selection` of another model or site.
    """
    if isinstance(units, str) and units == "all":
        width = site_width(adapter, at)
        return tuple(
            _neuron(layer, index, at) for layer in range(adapter.n_layers) for index in range(width)
        )
    if not isinstance(units, str) and hasattr(units, "neurons"):
        _check_selection(adapter, units, at)
        units = units.neurons
    # Asking the model for a site's width is slow beside a name: once per site.
    width = cache(partial(site_width, adapter))
    if isinstance(units, Tensor):
        found = _neurons(adapter, units, at, width)
    elif isinstance(units, str | Component):
        found = [_parse_component(adapter, units, at, width)]
    elif isinstance(units, Sequence):
        found = [_parse_component(adapter, unit, at, width) for unit in units]
    else:
        raise LensSkillsError(
            f"a {type(units).__name__} names no units. Give names, (layer, index) rows or a "
            "selection; scores['metric'].top(50) are rows."
        )
    names = [(unit.hook_name, unit.start) for unit in found]
    if len(set(names)) < len(names):
        twice = next(unit.name for unit in found if names.count((unit.hook_name, unit.start)) > 1)
        raise LensSkillsError(f"the unit {twice!r} is named twice. Name each once.")
    return tuple(found)


def sites_of(units: Iterable[Component]) -> dict[str, tuple[int, ...]]:
    """The layers of each site that the units stand in: what `Edit.bind` must know about.

    >>> sites_of(Component(f"L{n}N2", n, "mlp.hook_post", 2, 3) for n in (1, 0))
    {'mlp.hook_post': (0, 1)}
    """
    layers: dict[str, set[int]] = {}
    for unit in units:
        layers.setdefault(unit.site, set()).add(unit.layer)
    return {site: tuple(sorted(found)) for site, found in layers.items()}


def site_width(adapter: ModelAdapter, at: str) -> int:
    """How many features the site has after flattening, seen on a pass over one token."""
    site = find_site(adapter, at, 0)
    if at in ("attn.hook_pattern", "attn.hook_attn_scores"):
        raise LensSkillsError(f"{at!r} holds numbers per pair of tokens, not features per token.")
    if at in ("mlp.hook_post", "mlp.hook_pre", "mlp.hook_pre_linear"):
        return adapter.d_mlp
    if at == HEADS:
        return adapter.n_heads * adapter.d_head
    seen: list[int] = []

    def read(activation: Tensor) -> None:
        seen.append(activation.flatten(2).shape[-1] if activation.ndim > 2 else 0)

    token = torch.tensor([[adapter.pad_id]], device=adapter.device)
    readers = {site.hook_name(0): read}
    adapter.forward(
        token, torch.ones_like(token, dtype=torch.bool), readers=readers, logits_at=None
    )
    if not seen[0]:
        raise LensSkillsError(f"{at!r} holds no features per token. Choose another hook point.")
    return seen[0]


def _neuron(layer: int, index: int, at: str) -> Component:
    return Component(f"L{layer}N{index}", layer, at, index, index + 1)


def _neurons(adapter: ModelAdapter, rows: Tensor, at: str, width: Width) -> list[Component]:
    found = []
    for layer, index in parse_neurons(rows).tolist():
        _check(adapter, f"L{layer}N{index}", layer, index, width(at), f"neurons at {at}")
        found.append(_neuron(layer, index, at))
    return found


def _parse_component(adapter: ModelAdapter, unit: Any, at: str, width: Width) -> Component:
    if isinstance(unit, Component):
        n_features = width(unit.site)
        _check(
            adapter, unit.name, unit.layer, unit.stop - 1, n_features, f"features at {unit.site}"
        )
        return unit
    if not isinstance(unit, str):
        return _neurons(adapter, _row(unit), at, width)[0]
    named = _NAME.fullmatch(unit)
    if named is None:
        raise LensSkillsError(
            f"no unit {unit!r}. Names look like 'L17N635' (a neuron), 'L9H3' (a head) or 'L5MLP'."
        )
    layer, kind, index = int(named[1]), named[2], int(named[3] or 0)
    if kind == "N":
        return _neurons(adapter, torch.tensor([[layer, index]]), at, width)[0]
    if kind == "H":
        _check(adapter, unit, layer, index, adapter.n_heads, "heads")
        find_site(adapter, HEADS, layer)
        return Component(unit, layer, HEADS, index * adapter.d_head, (index + 1) * adapter.d_head)
    _check(adapter, unit, layer, 0, 1, "MLP")
    find_site(adapter, MLP, layer)
    return Component(unit, layer, MLP, 0, adapter.d_model)


def _row(unit: Any) -> Tensor:
    if isinstance(unit, Sequence | Tensor) and len(unit) == 2:
        return torch.as_tensor(unit).reshape(1, 2)
    raise LensSkillsError(f"no unit {unit!r}. Give a name or (layer, index).")


def _check(adapter: ModelAdapter, name: str, layer: int, index: int, count: int, kind: str) -> None:
    if not (0 <= layer < adapter.n_layers and 0 <= index < count):
        raise LensSkillsError(
            f"no unit {name!r} in {adapter.name}: it has layers 0 to {adapter.n_layers - 1} with "
            f"{count:,} {kind} each."
        )


def _check_selection(adapter: ModelAdapter, selection: Any, at: str) -> None:
    if selection.site != at:
        raise LensSkillsError(
            f"the selection holds neurons at {selection.site!r}, but {at!r} was asked for. Say "
            f"at={selection.site!r}."
        )
    about = selection.provenance.get("explore", {})
    check_reading(about, adapter, "the selection")
    made_with = about.get("model_fingerprint")
    if made_with is not None and made_with != adapter.fingerprint():
        raise LensSkillsError(
            f"the selection belongs to another model (fingerprint {made_with[:8]}…) than "
            f"{adapter.name} ({adapter.fingerprint()[:8]}…). Score and select with this model."
        )
