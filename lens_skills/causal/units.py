"""`Unit`: what an intervention changes: a neuron, an attention head or a whole MLP."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lens_skills.activations import find_site
from lens_skills.activations.sites import DEFAULT_SITE
from lens_skills.errors import LensSkillsError
from lens_skills.models import Lens
from lens_skills.scoring.units import parse_neurons

HEADS, MLP = "attn.hook_z", "hook_mlp_out"
Width = Callable[[str], int]
_NAME = re.compile(r"L(\d+)(?:([NH])(\d+)|MLP)")


@dataclass(frozen=True)
class Unit:
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

        >>> Unit("L1N2", 1, "mlp.hook_post", 2, 3).hook_name
        'blocks.1.mlp.hook_post'
        """
        return f"blocks.{self.layer}.{self.site}"

    @property
    def features(self) -> Int[Tensor, " feature"]:
        """The indices of its features."""
        return torch.arange(self.start, self.stop)


def parse_units(lens: Lens, units: Any, *, at: str = DEFAULT_SITE) -> tuple[Unit, ...]:
    """Units of this model, in the order they were named.

    Args:
        lens: The model.
        units: Names, (layer, index) rows, an ``Int[k 2]`` tensor, `Unit` values, a `Selection`, or
            a list that mixes them; ``"all"`` is every neuron at ``at``. A name alone is a set of
            one.
        at: The site of everything named as a neuron. Heads are the whole slice of
            ``attn.hook_z``, a whole MLP is ``hook_mlp_out``.

    Raises:
        LensSkillsError: A name that means nothing, a unit this model does not have, a unit named
            twice, a `Selection` of another model or site.
    """
    if isinstance(units, str) and units == "all":
        width = site_width(lens, at)
        return tuple(
            _neuron(layer, index, at) for layer in range(lens.n_layers) for index in range(width)
        )
    if not isinstance(units, str) and hasattr(units, "neurons"):
        _check_selection(lens, units, at)
        units = units.neurons
    # Asking the model for a site's width is slow beside a name: once per site.
    width = cache(partial(site_width, lens))
    if isinstance(units, Tensor):
        found = _neurons(lens, units, at, width)
    elif isinstance(units, str | Unit):
        found = [_parse_unit(lens, units, at, width)]
    elif isinstance(units, Sequence):
        found = [_parse_unit(lens, unit, at, width) for unit in units]
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


def sites_of(units: Iterable[Unit]) -> dict[str, tuple[int, ...]]:
    """The layers of each site that the units stand in: what `Edit.bind` must know about.

    >>> sites_of([Unit("L1N2", 1, "mlp.hook_post", 2, 3), Unit("L0N2", 0, "mlp.hook_post", 2, 3)])
    {'mlp.hook_post': (0, 1)}
    """
    layers: dict[str, set[int]] = {}
    for unit in units:
        layers.setdefault(unit.site, set()).add(unit.layer)
    return {site: tuple(sorted(found)) for site, found in layers.items()}


def site_width(lens: Lens, at: str) -> int:
    """How many features the site has after flattening, seen on a pass over one token."""
    site = find_site(lens, at, 0)
    if at in ("attn.hook_pattern", "attn.hook_attn_scores"):
        raise LensSkillsError(f"{at!r} holds numbers per pair of tokens, not features per token.")
    if at in ("mlp.hook_post", "mlp.hook_pre", "mlp.hook_pre_linear"):
        return lens.d_mlp
    if at == HEADS:
        return lens.n_heads * lens.d_head
    seen: list[int] = []

    def read(activation: Tensor) -> None:
        seen.append(activation.flatten(2).shape[-1] if activation.ndim > 2 else 0)

    token = torch.tensor([[lens.pad_id]], device=lens.device)
    readers = {site.hook_name(0): read}
    lens.forward(token, torch.ones_like(token, dtype=torch.bool), readers=readers, logits_at=None)
    if not seen[0]:
        raise LensSkillsError(f"{at!r} holds no features per token. Choose another hook point.")
    return seen[0]


def _neuron(layer: int, index: int, at: str) -> Unit:
    return Unit(f"L{layer}N{index}", layer, at, index, index + 1)


def _neurons(lens: Lens, rows: Tensor, at: str, width: Width) -> list[Unit]:
    found = []
    for layer, index in parse_neurons(rows).tolist():
        _check(lens, f"L{layer}N{index}", layer, index, width(at), f"neurons at {at}")
        found.append(_neuron(layer, index, at))
    return found


def _parse_unit(lens: Lens, unit: Any, at: str, width: Width) -> Unit:
    if isinstance(unit, Unit):
        n_features = width(unit.site)
        _check(lens, unit.name, unit.layer, unit.stop - 1, n_features, f"features at {unit.site}")
        return unit
    if not isinstance(unit, str):
        return _neurons(lens, _row(unit), at, width)[0]
    named = _NAME.fullmatch(unit)
    if named is None:
        raise LensSkillsError(
            f"no unit {unit!r}. Names look like 'L17N635' (a neuron), 'L9H3' (a head) or 'L5MLP'."
        )
    layer, kind, index = int(named[1]), named[2], int(named[3] or 0)
    if kind == "N":
        return _neurons(lens, torch.tensor([[layer, index]]), at, width)[0]
    if kind == "H":
        _check(lens, unit, layer, index, lens.n_heads, "heads")
        find_site(lens, HEADS, layer)
        return Unit(unit, layer, HEADS, index * lens.d_head, (index + 1) * lens.d_head)
    _check(lens, unit, layer, 0, 1, "MLP")
    find_site(lens, MLP, layer)
    return Unit(unit, layer, MLP, 0, lens.d_model)


def _row(unit: Any) -> Tensor:
    if isinstance(unit, Sequence | Tensor) and len(unit) == 2:
        return torch.as_tensor(unit).reshape(1, 2)
    raise LensSkillsError(f"no unit {unit!r}. Give a name or (layer, index).")


def _check(lens: Lens, name: str, layer: int, index: int, count: int, kind: str) -> None:
    if not (0 <= layer < lens.n_layers and 0 <= index < count):
        raise LensSkillsError(
            f"no unit {name!r} in {lens.name}: it has layers 0 to {lens.n_layers - 1} with "
            f"{count:,} {kind} each."
        )


def _check_selection(lens: Lens, selection: Any, at: str) -> None:
    if selection.site != at:
        raise LensSkillsError(
            f"the selection holds neurons at {selection.site!r}, but {at!r} was asked for. Say "
            f"at={selection.site!r}."
        )
    made_with = selection.provenance.get("explore", {}).get("model_fingerprint")
    if made_with is not None and made_with != lens.fingerprint():
        raise LensSkillsError(
            f"the selection belongs to another model (fingerprint {made_with[:8]}…) than "
            f"{lens.name} ({lens.fingerprint()[:8]}…). Score and select with this model."
        )
