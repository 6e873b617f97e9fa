"""Units of a model by name: each says the hook point (the site) it belongs to.

| site | one feature | together |
|---|---|---|
| ``mlp.hook_post`` | ``L17N635``, a neuron | |
| ``mlp.hook_pre`` | ``L17N635.pre``, the same neuron before its nonlinearity | |
| ``mlp.hook_pre_linear`` | ``L17N635.pre_linear``, what its gate is multiplied by | |
| ``attn.hook_z`` | ``L9H3.36``, what head 3 hands on | ``L9H3``, the head |
| ``hook_mlp_out``, ``hook_attn_out`` | ``L5MLP.47``, ``L5ATTN.47`` | ``L5MLP``, the whole MLP |
| ``hook_resid_post`` | ``L5R47``, a dimension of the residual stream | |
| ``hook_resid_mid``, ``hook_resid_pre`` | ``L5R47.mid``, ``L5R47.pre`` | |
| ``features`` | ``L12F345``, a feature of an SAE or a transcoder | |
| any other | ``L5.attn.hook_q.47`` | |
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, SupportsIndex, overload

import torch
from jaxtyping import Int
from torch import Tensor

from lens_skills.activations.locations import DEFAULT_SITE, FEATURES, find_site
from lens_skills.cards import showing
from lens_skills.errors import LensSkillsError
from lens_skills.models import ModelAdapter
from lens_skills.models.identity import check_reading
from lens_skills.models.neurons import NEURON_SITES

HEADS, MLP = "attn.hook_z", "hook_mlp_out"
# The only place that knows how features are named. A head's feature needs the head's width.
_FORMS = {
    DEFAULT_SITE: "N{}",
    "mlp.hook_pre": "N{}.pre",
    "mlp.hook_pre_linear": "N{}.pre_linear",
    "hook_resid_post": "R{}",
    "hook_resid_mid": "R{}.mid",
    "hook_resid_pre": "R{}.pre",
    MLP: "MLP.{}",
    "hook_attn_out": "ATTN.{}",
    FEATURES: "F{}",
}
_READ = {re.compile(re.escape(form).replace(r"\{\}", r"(\d+)")): at for at, form in _FORMS.items()}
_EXAMPLES = (
    "'L17N635' (a neuron), 'L5R47' (a residual dimension), 'L9H3' (a head), 'L9H3.36' (a feature "
    "of it) or 'L5MLP'"
)


def unit_name(layer: int, index: int, at: str = DEFAULT_SITE, d_head: int | None = None) -> str:
    """The name of one feature of a site; its head and place in it, where the head's width is known.

    >>> unit_name(1, 47, "hook_resid_post"), unit_name(1, 47, "attn.hook_z", d_head=16)
    ('L1R47', 'L1H2.15')
    """
    if at == HEADS and d_head:
        return f"L{layer}H{index // d_head}.{index % d_head}"
    return f"L{layer}" + (_FORMS[at].format(index) if at in _FORMS else f".{at}.{index}")


def neuron_names(
    neurons: Int[Tensor, "neuron 2"], at: str = DEFAULT_SITE, about: Mapping[str, Any] | None = None
) -> list[str]:
    """The names of (layer, index) rows of a site.

    Args:
        neurons: The rows.
        at: Their site.
        about: The provenance of the result they are of; it holds the heads' width.

    >>> neuron_names(torch.tensor([[17, 635], [1, 2]]), "hook_mlp_out")
    ['L17MLP.635', 'L1MLP.2']
    """
    layers, indices = neurons.T.tolist()
    width = _d_head(about or {})
    if at in _FORMS:  # half a million neurons share the shape of their names
        return list(map(f"L{{}}{_FORMS[at]}".format, layers, indices))
    pairs = zip(layers, indices, strict=True)
    return [unit_name(layer, index, at, width) for layer, index in pairs]


def _d_head(about: Mapping[str, Any]) -> int | None:
    parts = [about, *(about.get(part) for part in ("explore", "scores"))]
    found = (part.get("d_head") for part in parts if isinstance(part, Mapping))
    return next((int(width) for width in found if width), None)


def _read_name(name: str) -> tuple[int, str, int, int | None] | None:
    """Layer, site, index, and a head feature's place in its head (-1: all of the head or MLP)."""
    parts = re.fullmatch(r"L(\d+)(.+)", name)
    if parts is None:
        return None
    layer, rest = int(parts[1]), parts[2]
    if rest == "MLP":
        return layer, MLP, 0, -1
    if head := re.fullmatch(r"H(\d+)(?:\.(\d+))?", rest):
        return layer, HEADS, int(head[1]), -1 if head[2] is None else int(head[2])
    for pattern, at in _READ.items():
        if found := pattern.fullmatch(rest):
            return layer, at, int(found[1]), None
    found = re.fullmatch(r"\.([a-z_]\w*(?:\.\w+)*)\.(\d+)", rest)
    return (layer, found[1], int(found[2]), None) if found else None


def _must_read(name: str) -> tuple[int, str, int, int | None]:
    found = _read_name(name)
    if found is None:
        raise LensSkillsError(f"no unit {name!r}. Names look like {_EXAMPLES}.")
    return found


def check_names(names: Iterable[str]) -> None:
    """Nothing; raises where a name means no unit of any model."""
    for name in names:
        _must_read(name)


def _agreed(name: str, own: str, at: str, *, named: bool = False) -> str:
    """The site of a unit that says ``own``, where ``at`` was asked for; a bare name says less."""
    before = ("mlp.hook_pre", "mlp.hook_pre_linear")
    if at in (own, DEFAULT_SITE):
        return own
    if named and own == DEFAULT_SITE and at in before:
        return at  # the same neuron, named without saying where
    raise LensSkillsError(
        f"{name} is at {own!r}, but at={at!r} was asked for: leave at= out, or name units there "
        f"({unit_name(1, 47, at)!r})."
    )


def site_of(units: Any, at: str = DEFAULT_SITE) -> str:
    """The one site that units say they are at; ``at`` where they say none ((layer, index) rows).

    Raises:
        LensSkillsError: Units of several sites, or of another one than was asked for.
    """
    if isinstance(units, str):
        units = [units]
    if units is None or isinstance(units, Tensor):
        return at
    if hasattr(units, "neurons"):
        return _agreed("the selection", getattr(units, "site", at), at)
    if not isinstance(units, Iterable):
        raise LensSkillsError(f"{units!r:.60} names no units: give names, rows or a selection.")
    found: dict[str, str] = {}
    for unit in units:
        if isinstance(unit, Component):
            found.setdefault(_agreed(unit.name, unit.site, at), unit.name)
        elif isinstance(unit, str):
            found.setdefault(_agreed(unit, _must_read(unit)[1], at, named=True), unit)
        else:
            found.setdefault(at, f"the row {unit}")
    if len(found) > 1:
        words = " and ".join(f"{name} ({site})" for site, name in list(found.items())[:2])
        raise LensSkillsError(
            f"one site is read at a time, but units of several are named: {words}."
        )
    return next(iter(found), at)


def parse_neurons(
    neurons: Any, at: str = DEFAULT_SITE, d_head: int | None = None
) -> Int[Tensor, "k 2"]:
    """Units of one site as (layer, index) rows, from rows, names, components, or a `Selection`.

    Args:
        neurons: The units.
        at: The site; what says another one is refused.
        d_head: The width of a head, for names of its features.

    >>> parse_neurons(["L1N2", (3, 4)]).tolist()
    [[1, 2], [3, 4]]
    """
    if hasattr(neurons, "neurons"):
        site_of(neurons, at)
        neurons = neurons.neurons
    if isinstance(neurons, Tensor):
        rows = neurons
    else:
        found = []
        for unit in [neurons] if isinstance(neurons, str | Component) else neurons:
            if isinstance(unit, str):
                layer, own, index, within = _must_read(unit)
                _same(unit, own, at, named=True)
                if within is not None:
                    if within < 0 or not d_head:
                        raise _not_single(unit)
                    if within >= d_head:
                        raise LensSkillsError(f"no unit {unit!r}: heads have {d_head} features.")
                    index = index * d_head + within
                found.append([layer, index])
            elif isinstance(unit, Component):
                _same(unit.name, unit.site, at)
                if unit.stop - unit.start != 1:
                    raise _not_single(unit.name)
                found.append([unit.layer, unit.start])
            else:
                found.append(_row(unit).reshape(2).tolist())
        rows = torch.tensor(found, dtype=torch.long).reshape(-1, 2)
    if rows.ndim != 2 or rows.shape[1] != 2:
        raise LensSkillsError(
            f"neurons must be rows of (layer, index), not a tensor of shape {tuple(rows.shape)}."
        )
    return rows.long()


def _same(name: str, own: str, at: str, *, named: bool = False) -> None:
    if own != at and _agreed(name, own, at, named=named) != at:
        raise LensSkillsError(f"{name} is at {own!r}, but units at {at!r} are meant here.")


def _not_single(name: str) -> LensSkillsError:
    return LensSkillsError(
        f"{name!r} is many features at once, and single ones are read. Name one ('L9H3.36')."
    )


def find_places(
    neurons: Any, layers: Sequence[int], width: int, at: str, d_head: int | None
) -> Int[Tensor, " unit"]:
    """The places of units among the features of the layers, each layer's beside the next's."""
    rows = parse_neurons(neurons, at, d_head)
    if len(rows) == 0:
        raise LensSkillsError("no neurons to score: the selection is empty.")
    if len(torch.unique(rows, dim=0)) != len(rows):
        raise LensSkillsError("a neuron is named twice. Name each once.")
    word = "neuron" if at in NEURON_SITES else "feature"
    for layer, index in rows.tolist():
        if layer not in layers or not 0 <= index < width:
            raise LensSkillsError(
                f"no {word} {unit_name(layer, index, at, d_head)} here: layers {min(layers)} to "
                f"{max(layers)} with {width} {word}s each are scored."
            )
    place = {layer: index for index, layer in enumerate(layers)}
    starts = torch.tensor([place[layer] * width for layer in rows[:, 0].tolist()])
    return starts + rows[:, 1]


Width = Callable[[str, int], int]


@dataclass(frozen=True, repr=False)
class Component:
    """Neighbouring features of one hook point, read or changed together; prints as its name.

    Attributes:
        name: ``"L17N635"`` (a neuron), ``"L9H3"`` (an attention head), …: see this module's table.
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

    def __repr__(self) -> str:
        return self.name

    @property
    def index(self) -> int:
        """Which of its kind in the layer: feature 47, or head 2.

        >>> Component("L9H2", 9, "attn.hook_z", 16, 24).index
        2
        """
        return self.start // (self.stop - self.start)

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


class Components(tuple[Component, ...]):
    """Units in order, as any verb takes them; prints as their names.

    >>> Components.of(torch.tensor([[1, 2], [0, 47]]), "hook_resid_post")
    [L1R2, L0R47]
    """

    @classmethod
    def of(
        cls,
        rows: Int[Tensor, "k 2"],
        at: str = DEFAULT_SITE,
        about: Mapping[str, Any] | None = None,
    ) -> "Components":
        """The features of a site at (layer, index) rows; ``about`` as in `neuron_names`."""
        names = neuron_names(rows, at, about)
        pairs = zip(names, rows.tolist(), strict=True)
        return cls(Component(name, layer, at, i, i + 1) for name, (layer, i) in pairs)

    @property
    def names(self) -> list[str]:
        return [unit.name for unit in self]

    @property
    def rows(self) -> Int[Tensor, "k 2"]:
        """Layer and index of each."""
        pairs = [(unit.layer, unit.index) for unit in self]
        return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)

    @overload
    def __getitem__(self, place: SupportsIndex) -> Component: ...
    @overload
    def __getitem__(self, place: slice) -> "Components": ...
    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return Components(found) if isinstance(place, slice) else found

    def _repr_html_(self) -> str:
        return str(showing("notebook_view").html(self))

    def __repr__(self) -> str:
        return f"[{', '.join(self.names)}]"


def parse_components(adapter: ModelAdapter, units: Any, *, at: str = DEFAULT_SITE) -> Components:
    """Units of this model, in the order they were named.

    Args:
        adapter: The model.
        units: Names, (layer, index) rows, an ``Int[k 2]`` tensor, `Component` values, a
            `Selection`, or a list that mixes them; ``"all"`` is every feature at ``at``. A name
            alone is a set of one.
        at: The site of (layer, index) rows and of ``"all"``; names, components and selections say
            their own. ``"L1N2"`` with ``at="mlp.hook_pre"`` is that neuron before its nonlinearity.

    Raises:
        LensSkillsError: A name that means nothing, a unit this model does not have, a unit named
            twice, units of another site than ``at`` says, a `Selection` of another model.
    """
    # Asking the model for a site's width is slow beside a name: once per site and layer.
    width = cache(partial(site_width, adapter))
    if isinstance(units, str) and units == "all":
        layers = find_site(adapter, at).layers
        rows = [(layer, index) for layer in layers for index in range(width(at, layer))]
        return Components.of(torch.tensor(rows).reshape(-1, 2), at, {"d_head": adapter.d_head})
    if not isinstance(units, str) and hasattr(units, "neurons"):
        at = site_of(units, at)
        _check_selection(adapter, units)
        units = units.neurons
    if isinstance(units, Tensor):
        units = parse_neurons(units, at).tolist()
    if isinstance(units, str | Component):
        units = [units]
    if not isinstance(units, Sequence):
        raise LensSkillsError(
            f"a {type(units).__name__} names no units. Give names, (layer, index) rows or a "
            "selection, or scores['metric'].top(50)."
        )
    found = [_parse_component(adapter, unit, at, width) for unit in units]
    counts = Counter((unit.hook_name, unit.start) for unit in found)
    twice = [unit.name for unit in found if counts[unit.hook_name, unit.start] > 1]
    if twice:
        raise LensSkillsError(f"the unit {twice[0]!r} is named twice. Name each once.")
    return Components(found)


def sites_of(units: Iterable[Component]) -> dict[str, tuple[int, ...]]:
    """The layers of each site that the units stand in: what `Edit.bind` must know about.

    >>> sites_of(Component(f"L{n}N2", n, "mlp.hook_post", 2, 3) for n in (1, 0))
    {'mlp.hook_post': (0, 1)}
    """
    layers: dict[str, set[int]] = {}
    for unit in units:
        layers.setdefault(unit.site, set()).add(unit.layer)
    return {site: tuple(sorted(found)) for site, found in layers.items()}


def site_width(adapter: ModelAdapter, at: str, layer: int = 0) -> int:
    """How many features the site has in a layer after flattening, seen on a pass over one token."""
    site = find_site(adapter, at, layer)
    if at in ("attn.hook_pattern", "attn.hook_attn_scores"):
        raise LensSkillsError(f"{at!r} holds numbers per pair of tokens, not features per token.")
    if layer in (held := adapter.dictionaries_at(at)):
        return held[layer].d_sae
    if at in NEURON_SITES:
        return adapter.mlp_widths[layer]
    if at == HEADS:
        return adapter.n_heads * adapter.d_head
    seen: list[int] = []

    def read(activation: Tensor) -> None:
        seen.append(activation.flatten(2).shape[-1] if activation.ndim > 2 else 0)

    token = torch.tensor([[adapter.pad_id]], device=adapter.device)
    readers = {site.hook_name(layer): read}
    adapter.forward(
        token, torch.ones_like(token, dtype=torch.bool), readers=readers, logits_at=None
    )
    if not seen[0]:
        raise LensSkillsError(f"{at!r} holds no features per token. Choose another hook point.")
    return seen[0]


def _parse_component(adapter: ModelAdapter, unit: Any, at: str, width: Width) -> Component:
    within: int | None = None
    if isinstance(unit, Component):
        layer, first, last = unit.layer, unit.start, unit.stop
        at = unit.site if last - first > 1 else _agreed(unit.name, unit.site, at)
    elif isinstance(unit, str):
        layer, own, index, within = _must_read(unit)
        # A whole head or MLP is no feature of the site that features are asked for at.
        at = own if within == -1 else _agreed(unit, own, at, named=True)
        size = {HEADS: adapter.d_head, MLP: adapter.d_model}[at] if within is not None else 1
        first = index * size + max(within or 0, 0)
        last = first + size if within == -1 else first + 1
    else:
        layer, first = _row(unit)[0].tolist()
        last = first + 1
    name = unit if isinstance(unit, str) else getattr(unit, "name", None)
    name = name or unit_name(layer, first, at, adapter.d_head)
    if not 0 <= layer < adapter.n_layers:
        raise LensSkillsError(
            f"no unit {name!r} in {adapter.name}: it has layers 0 to {adapter.n_layers - 1}."
        )
    count = width(at, layer)
    if not 0 <= first < last <= count or (within or 0) >= adapter.d_head:
        kind = "neurons" if at in NEURON_SITES else f"features at {at}"
        heads = f" ({adapter.n_heads} heads of {adapter.d_head})" if at == HEADS else ""
        raise LensSkillsError(
            f"no unit {name!r} in {adapter.name}: layer {layer} has {count:,} {kind}{heads}."
        )
    if within is None or within >= 0:
        name = unit_name(layer, first, at, adapter.d_head) if last == first + 1 else name
    return Component(name, layer, at, first, last)


def _row(unit: Any) -> Tensor:
    if not isinstance(unit, str | dict | set) and hasattr(unit, "__len__") and len(unit) == 2:
        with suppress(TypeError, ValueError, RuntimeError):
            row = torch.as_tensor(unit)
            if row.shape == (2,) and not row.is_floating_point():
                return row.reshape(1, 2)
    raise LensSkillsError(f"no unit {unit!r}. Give a name or (layer, index).")


def _check_selection(adapter: ModelAdapter, selection: Any) -> None:
    about = selection.provenance.get("explore", {})
    check_reading(about, adapter, "the selection")
    made_with = about.get("model_fingerprint")
    if made_with is not None and made_with != adapter.fingerprint():
        raise LensSkillsError(
            f"the selection belongs to another model (fingerprint {made_with[:8]}…) than "
            f"{adapter.name} ({adapter.fingerprint()[:8]}…). Score and select with this model."
        )
