"""Where in the network to read: one kind of hook point, in some or all layers."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lens_skills.errors import LensSkillsError

DEFAULT_SITE = "mlp.hook_post"


@dataclass(frozen=True)
class Site:
    """A kind of hook point and the layers it is read in.

    Attributes:
        name: Without block and layer, e.g. ``"mlp.hook_post"``.
        layers: Layer indices in ascending order.
    """

    name: str
    layers: tuple[int, ...]

    def hook_name(self, layer: int) -> str:
        """The full name of the hook point in one layer.

        >>> Site("mlp.hook_post", (0, 1)).hook_name(1)
        'blocks.1.mlp.hook_post'
        """
        return f"blocks.{layer}.{self.name}"


def find_site(lens: Any, at: str, layers: int | Iterable[int] | None = None) -> Site:
    """The site called ``at`` in this model.

    Args:
        lens: The model.
        at: ``"mlp.hook_post"``, ``"hook_resid_post"``, …, or a full name with its layer
            (``"blocks.3.mlp.hook_post"``).
        layers: Which layers (default all); negative ones count from the end.

    Raises:
        LensSkillsError: An unknown hook point (with the nearest names) or layer.
    """
    full = re.fullmatch(r"blocks\.(\d+)\.(.+)", at)
    if full and layers is None:
        at, layers = full[2], int(full[1])
    chosen = _layers(lens, layers)
    site = Site(at, chosen)
    known = set(lens.hook_names())
    missing = [layer for layer in chosen if site.hook_name(layer) not in known]
    if missing:
        raise LensSkillsError(_unknown(at, known, missing, len(chosen)))
    return site


def site_names(hook_names: Iterable[str]) -> list[str]:
    """The kinds of hook point among full names, sorted.

    >>> site_names(["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post", "hook_embed"])
    ['mlp.hook_post']
    """
    matches = (re.fullmatch(r"blocks\.\d+\.(.+)", name) for name in hook_names)
    return sorted({match[1] for match in matches if match})


def _layers(lens: Any, layers: int | Iterable[int] | None) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(lens.n_layers))
    wanted: Sequence[int] = [layers] if isinstance(layers, int) else list(layers)
    wrong = [layer for layer in wanted if not -lens.n_layers <= layer < lens.n_layers]
    if wrong or not wanted:
        raise LensSkillsError(f"no layer {wrong} in a model of {lens.n_layers} layers.")
    return tuple(sorted({layer % lens.n_layers for layer in wanted}))


def _unknown(at: str, known: set[str], missing: list[int], n_layers: int) -> str:
    if 0 < len(missing) < n_layers:
        return f"the hook point {at!r} is missing in layers {missing} of this model."
    names = site_names(known)
    near = difflib.get_close_matches(at, names, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    return (
        f"no hook point {at!r} in this model's blocks.{hint} "
        f"`lens-skills models --hooks` lists all {len(names)}."
    )
