"""`edited_torch`: the same edit as plain torch hooks on a Hugging Face model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from lens_skills.activations import DEFAULT_SITE, Position
from lens_skills.causal.edits import Edit
from lens_skills.causal.hooks import apply, bound_puts
from lens_skills.causal.placement import Put
from lens_skills.causal.units import HEADS, MLP, parse_units
from lens_skills.errors import LensSkillsError
from lens_skills.models import Lens, as_lens

# What model families call the layers' parts; the first that a block has.
_MLP = ("mlp", "feed_forward", "ffn")
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
# The projection back to the residual stream.
_MLP_OUT = ("down_proj", "c_proj", "dense_4h_to_h", "fc_out", "fc2", "w2")
_ATTENTION_OUT = ("o_proj", "c_proj", "dense", "out_proj", "wo")


@contextmanager
def edited_torch(
    hf_model: nn.Module,
    units: Any,
    edit: Edit,
    *,
    lens: Any,
    position: Position = -1,
    at: str = DEFAULT_SITE,
    mask: Bool[Tensor, "batch pos"] | None = None,
    seed: int = 0,
) -> Iterator[list[Any]]:
    """The handles of plain torch hooks that edit a Hugging Face model inside the ``with``.

    Neurons of ``mlp.hook_post`` are the input of the MLP's output projection, heads of
    ``attn.hook_z`` that of the attention's, a whole MLP (``hook_mlp_out``) what the MLP returns;
    parts are found by their usual names and their sizes. The handles are removed at the end.

    Args:
        hf_model: The Hugging Face model (Llama-, GPT-2- or NeoX-like), not one a bridge wraps.
        units, edit, position, at, mask, seed: As in `hooks_of`.
        lens: The same model in TransformerLens: it names the units and reads the edit's source.

    Assumes: unprocessed weights or a processing that leaves the site as it is; folding value
    biases, for instance, shifts ``hook_z``.

    Raises:
        LensSkillsError: Another site, a model of another size or whose parts are not found.
    """
    reader = as_lens(lens)
    found = parse_units(reader, units, at=at)
    puts = bound_puts(edit.sourced(units), reader, found, position, seed)
    blocks = _blocks(hf_model, reader.n_layers)
    handles: list[Any] = []
    try:
        for unit in {unit.hook_name: unit for unit in found}.values():
            part = _part(blocks[unit.layer], unit.site, reader)
            call = _counted(puts[unit.hook_name], position, mask)
            if unit.site == MLP:
                handles.append(part.register_forward_hook(_on_output(call)))
            else:
                handles.append(part.register_forward_pre_hook(_on_input(call)))
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _counted(put: Put, position: Position, mask: Tensor | None) -> Callable[[Tensor], Tensor]:
    draws = count()
    return lambda activation: apply(put, activation, position, mask, next(draws))


def _on_input(call: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    return lambda module, args: (call(args[0]), *args[1:])


def _on_output(call: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(module: Any, args: Any, out: Any) -> Any:
        return (call(out[0]), *out[1:]) if isinstance(out, tuple) else call(out)

    return hook


def _blocks(hf_model: nn.Module, n_layers: int) -> nn.ModuleList:
    """The stack of blocks: the one list of modules with as many entries as layers, each with an MLP
    and an attention."""
    for module in hf_model.modules():
        if not isinstance(module, nn.ModuleList) or len(module) != n_layers:
            continue
        if _named(module[0], _MLP) is not None and _named(module[0], _ATTENTION) is not None:
            return module
    raise LensSkillsError(
        f"no stack of {n_layers} blocks with an MLP and an attention was found in "
        f"{type(hf_model).__name__}: lens= must be the same model. Use edited(model, …) on the "
        "TransformerLens model instead."
    )


def _part(block: nn.Module, site: str, lens: Lens) -> nn.Module:
    if site == MLP:
        if hasattr(block, "post_feedforward_layernorm"):
            raise LensSkillsError(
                f"{type(block).__name__} normalises what its MLP returns before adding it: {MLP!r} "
                "is no single module's output there. Name neurons, or use edited(model, …)."
            )
        part = _named(block, _MLP)
        assert part is not None, "the block was chosen for its MLP"
        return part
    sizes: dict[str, tuple[tuple[str, ...], tuple[str, ...], int]] = {
        "mlp.hook_post": (_MLP, _MLP_OUT, lens.d_mlp),
        HEADS: (_ATTENTION, _ATTENTION_OUT, lens.n_heads * lens.d_head),
    }
    if site not in sizes:
        raise LensSkillsError(
            f"{site!r} has no place in a Hugging Face model that is known here. Known: "
            f"{', '.join([*sizes, MLP])}."
        )
    owners, names, width = sizes[site]
    owner = _named(block, owners)
    assert owner is not None, "the block was chosen for its parts"
    for name in names:
        part = getattr(owner, name, None)
        if isinstance(part, nn.Module) and _takes(part) == width:
            return part
    raise LensSkillsError(
        f"the output projection of {type(owner).__name__} was not found (looked for "
        f"{', '.join(names)} with {width} inputs). Use edited(model, …) on the TransformerLens "
        "model instead."
    )


def _named(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    found = (getattr(module, name, None) for name in names)
    return next((part for part in found if isinstance(part, nn.Module)), None)


def _takes(part: nn.Module) -> int | None:
    """How many inputs a linear map takes."""
    # GPT-2's Conv1D does not say; its weight is "in out", torch's Linear is "out in".
    size = getattr(part, "in_features", None)
    if size is not None:
        return int(size)
    weight = getattr(part, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.ndim == 2 else None
