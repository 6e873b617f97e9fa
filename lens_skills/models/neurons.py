"""Which layers have MLP neurons: features that feed one output matrix, and are tried to.

Names do not decide, a pass does: what is called ``mlp.hook_post`` is a layer of neurons where
changing it adds exactly that change times ``W_out`` to what the MLP returns.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lens_skills.errors import LensSkillsError

POST, OUT, HEADS = "mlp.hook_post", "hook_mlp_out", "attn.hook_z"
NEURON_SITES = (POST, "mlp.hook_pre", "mlp.hook_pre_linear")
"""Where features are an MLP's neurons: asked for in a model that has none, they are refused."""
# What a pass in half precision may be off by, as a share; what is no neuron is off by far more.
_TOLERANCE = 0.05
_ROUTED = re.compile(r"(^|[._])(experts?|router|moe)([._]|$)")

_known: WeakKeyDictionary[Any, dict[int, str]] = WeakKeyDictionary()


def layers_without_neurons(adapter: Any) -> dict[int, str]:
    """Of each layer without neurons, why (a key of the words below); asked once per model."""
    if adapter.model not in _known:
        _known[adapter.model] = _probe(adapter)
    return _known[adapter.model]


def refusal(adapter: Any, layers: Sequence[int], at: str = POST) -> str | None:
    """Why a site of these layers cannot be read or edited, in one sentence and the way out."""
    without = layers_without_neurons(adapter)
    if at not in NEURON_SITES and _SIDES not in without.values():
        return None
    wrong = [layer for layer in layers if layer in without]
    fine = [layer for layer in range(adapter.n_layers) if layer not in without]
    if wrong:
        kind = without[wrong[0]]
        which = [layer for layer in wrong if without[layer] == kind]
        where = "" if len(which) == adapter.n_layers else f" in {_ranges(which)}"
        if kind == _SIDES:
            return f"{adapter.name} cannot be read: {_WORDS[kind]}."
        said = f"{adapter.name} has no neurons{where}: {_WORDS[kind]}."
        heads = any(name.endswith(HEADS) for name in adapter.hook_names())
        sites = ["at='hook_resid_post' (the residual stream)"] + [f"at={HEADS!r} (heads)"] * heads
        ways = [f"layers={fine}"] * bool(fine) + sites
        return f"{said} What can be read: {', '.join(ways)}."
    widths: dict[int, list[int]] = {}
    for layer in layers:
        widths.setdefault(adapter.mlp_widths[layer], []).append(layer)
    if len(widths) < 2:
        return None
    sizes = ", ".join(f"{width:,} in {_ranges(each)}" for width, each in widths.items())
    return (
        f"the layers of {adapter.name} differ in how many neurons they have: {sizes}. Read layers "
        f"of one width at a time: layers={next(iter(widths.values()))}."
    )


_MOE, _NONE, _SIDES, _OTHER = "moe", "none", "encoder", "other"
_WORDS = {
    _MOE: "its MLP is a mixture of experts, whose neurons are active only on the tokens routed to "
    "them",
    _NONE: "there is no MLP",
    _SIDES: "it is an encoder, where a token sees those after it, and decoder-only language models "
    "are read here",
    _OTHER: f"what is called {POST!r} does not feed one output matrix",
}


def _ranges(layers: Sequence[int]) -> str:
    """Layer numbers in words.

    >>> _ranges([0, 1, 2, 5]), _ranges([3])
    ('layers 0 to 2, 5', 'layer 3')
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    words = ", ".join(f"{r[0]} to {r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
    return f"layer{'s' * (len(layers) > 1)} {words}"


def _probe(adapter: Any) -> dict[int, str]:
    """One pass: row 0 as it is, row 1 + n with layer n's features changed, the last with another
    second token. Rows before a change are equal, so that their difference is the change's alone.
    """
    n_layers, names = adapter.n_layers, set(adapter.hook_names())
    tokens = torch.tensor([[1, 2]], device=adapter.device).repeat(n_layers + 2, 1)
    tokens[-1, 1] = 0
    changes: dict[int, Tensor] = {}
    seen: dict[tuple[str, int], Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def change(layer: int) -> Callable[[Tensor], Tensor]:
        def hook(post: Tensor) -> Tensor:
            if post.ndim != 3:
                return post
            size = max(float(post[0].float().square().mean().sqrt()), 0.1)
            noise = torch.randn(post.shape[-1], generator=generator) * size
            changes[layer] = noise.to(post)
            out = post.clone()
            out[1 + layer] += changes[layer]
            return out

        return hook

    def keep(what: str, layer: int) -> Callable[[Any], None]:
        def read(out: Any) -> None:
            out = out[0] if isinstance(out, tuple) else out
            if isinstance(out, Tensor) and len(out) == n_layers + 2:
                seen[what, layer] = out[[0, 1 + layer, -1]].detach().float()

        return read

    edited = [n for n in range(n_layers) if f"blocks.{n}.{POST}" in names]
    editors = {f"blocks.{n}.{POST}": change(n) for n in edited}
    readers = {f"blocks.{n}.{OUT}": keep(OUT, n) for n in edited if f"blocks.{n}.{OUT}" in names}
    readers |= {f"blocks.{n - 1}.hook_resid_post": keep("", n - 1) for n in [n_layers]}
    with ExitStack() as stack:
        for layer in edited:
            part = getattr(adapter.model.blocks[layer], "mlp", None)
            if isinstance(part, nn.Module):
                # What the module returns, before a norm that follows it.
                read = keep("module", layer)
                hook = part.register_forward_hook(lambda _m, _a, out, read=read: read(out))
                stack.callback(hook.remove)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        adapter.forward(tokens, mask, readers=readers, logits_at=None, editors=editors)
    last = seen["", n_layers - 1][:, 0]
    if not torch.allclose(last[2], last[0], rtol=_TOLERANCE, atol=_TOLERANCE * float(last.std())):
        return dict.fromkeys(range(n_layers), _SIDES)
    found = {}
    for layer in range(n_layers):
        kinds = [seen[what, layer] for what in (OUT, "module") if (what, layer) in seen]
        if kind := _kind(adapter, layer, changes.get(layer), kinds):
            found[layer] = kind
    return found


def _kind(adapter: Any, layer: int, change: Tensor | None, seen: list[Tensor]) -> str | None:
    block = adapter.model.blocks[layer]
    mlp = getattr(block, "mlp", None)
    parts = [name for name, _ in mlp.named_modules()] if isinstance(mlp, nn.Module) else []
    routed = any(_ROUTED.search(name) for name in parts)
    if change is None:
        return _MOE if routed else _NONE if not parts else _OTHER
    try:
        weight = adapter.weight_out(layer).float()
    except LensSkillsError:
        # Packed weights cannot be multiplied here; one projection of the right width is enough.
        packed = adapter.mlp_widths[layer] == len(change) and not routed
        return None if packed else _MOE if routed else _OTHER
    if len(weight) == len(change):
        wanted = change.float() @ weight
        for rows in seen:
            moved = rows[1] - rows[0]
            if float((moved - wanted).norm()) <= _TOLERANCE * float(moved.norm()):
                return None
    return _MOE if routed else _OTHER
