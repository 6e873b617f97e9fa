"""Each row's own columns: values there, and an MLP that runs there alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lens_skills.models.adapter import EditHook, layer_of


def rows_at(
    values: Float[Tensor, "batch pos features"], positions: Int[Tensor, "batch k"]
) -> Float[Tensor, "batch k features"]:
    """The values at each row's own positions.

    >>> rows_at(torch.arange(4.0).view(1, 4, 1), torch.tensor([[3, 0]])).flatten().tolist()
    [3.0, 0.0]
    """
    index = einops.repeat(positions, "batch k -> batch k features", features=values.shape[-1])
    return values.gather(1, index.to(values.device))


@contextmanager
def mlp_at(
    model: Any,
    layer: int,
    read_at: Int[Tensor, "batch r"] | None,
    logits_at: Int[Tensor, "batch k"] | None,
    editors: Mapping[str, EditHook],
) -> Iterator[None]:
    """Inside, the MLP of a block runs at these columns alone; zeros stand at all others.

    Nothing is done without ``read_at``, where the columns are more than half of all, where a block
    has no MLP of its own, or where this block or one above is edited.
    """
    edited = any(found is None or found >= layer for found in map(layer_of, editors))
    mlp = getattr(model.blocks[layer], "mlp", None)
    if read_at is None or edited or not isinstance(mlp, nn.Module):
        yield
        return
    at = read_at if logits_at is None else torch.cat([read_at, logits_at.to(read_at)], dim=1)
    shapes: list[Any] = []

    def gather(module: Any, args: Any) -> Any:
        whole = args[0] if args else torch.empty(0)
        fits = whole.ndim == 3 and len(whole) == len(at) and 2 * at.shape[1] <= whole.shape[1]
        shapes.append(whole.shape if fits else None)
        return (rows_at(whole, at), *args[1:]) if fits else None

    def scatter(module: Any, args: Any, out: Any) -> Any:
        shape = shapes.pop()
        if shape is None:
            return None
        some = out if isinstance(out, Tensor) else out[0]
        index = einops.repeat(at.to(some.device), "row k -> row k d", d=some.shape[-1])
        whole = some.new_zeros(*shape[:2], some.shape[-1]).scatter(1, index, some)
        return whole if isinstance(out, Tensor) else (whole, *out[1:])

    handles = [mlp.register_forward_pre_hook(gather), mlp.register_forward_hook(scatter)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
