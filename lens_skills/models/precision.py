"""Passes in bfloat16: the model's weights stay as they are, its matrix products are rounded.

`in_precision` gives the same model read that way; what runs inside `lowered` is computed so.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.models.rounding import distance

PRECISIONS = ("bfloat16",)
"""What a pass can be computed in beside the model's own precision."""

_LARGE = 512  # width of the residual stream from which on rounding pays
_TRIED = 8  # tokens that both precisions read before a pass is trusted


def in_precision(adapter: Any, precision: str | None) -> Any:
    """The same model, read in another precision; itself where none is asked for.

    Matrix products take bfloat16 (8 bits of mantissa, of float32's 24) under PyTorch's autocast:
    each weight is rounded as it is used, so that no second copy of them is held. The residual
    stream, the norms and the vocabulary projection stay in float32. A few tokens are read both ways
    first.

    Args:
        adapter: A `ModelAdapter`.
        precision: One of `PRECISIONS`; None: the model's own.

    Raises:
        LensSkillsError: An unknown precision; one that the machine lacks; a model whose weights
            are not float32, or that does not run so, or says something else then.
    """
    if precision is None or precision == adapter.precision:
        return adapter
    own = str(adapter.dtype).removeprefix("torch.")
    if precision not in PRECISIONS:
        raise LensSkillsError(
            f"precision={precision!r} is not known here. Say precision='bfloat16', or leave it out "
            f"for the precision of the weights, which of {adapter.name} is {own}."
        )
    if adapter.dtype != torch.float32 or adapter.packed:
        kind = "packed (quantised)" if adapter.packed else own
        raise LensSkillsError(
            f"precision={precision!r} is for weights in float32, and those of {adapter.name} are "
            f"{kind}: it is computed as it was stored. Leave precision= out."
        )
    check_machine(adapter.device)
    other = copy.copy(adapter)
    other.precision = precision
    _check_model(adapter, other)
    return other


@contextmanager
def lowered(adapter: Any) -> Iterator[None]:
    """What runs inside is computed in the adapter's precision; the projection in float32.

    Logits of 20 nats would be rounded to steps of an eighth in bfloat16.
    """
    if adapter.precision is None:
        yield
        return
    kind = adapter.device.type
    lowest = torch.finfo(torch.bfloat16).min

    def exactly(own: Callable[..., Any], residual: Tensor, *args: Any, **options: Any) -> Any:
        with torch.autocast(kind, enabled=False):
            return own(residual.to(adapter.dtype), *args, **options)

    def finite(value: Any) -> Any:
        """A mask whose lowest number does not become -inf in bfloat16: all-shut rows give NaN."""
        shut = isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()
        return value.clamp(min=lowest) if shut else value

    def masked(own: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return own(*map(finite, args), **{name: finite(v) for name, v in options.items()})

    blocks = adapter.model.blocks if adapter.implementation == "bridge" else ()
    with ExitStack() as stack:
        stack.enter_context(_wrapped(adapter.model.unembed, exactly))
        for block in blocks:
            stack.enter_context(_wrapped(block, masked))
        # Uncached: else every rounded weight would be held until the pass is over.
        stack.enter_context(torch.autocast(kind, torch.bfloat16, cache_enabled=False))
        yield


@contextmanager
def _wrapped(part: Any, wrap: Callable[..., Any]) -> Iterator[None]:
    """The part's ``forward`` goes through ``wrap`` inside, on this object only."""
    before = part.__dict__.get("forward")
    part.__dict__["forward"] = partial(wrap, part.forward)
    try:
        yield
    finally:
        del part.__dict__["forward"]
        if before is not None:
            part.__dict__["forward"] = before


def fast_bfloat16(device: torch.device) -> str:
    """What multiplies bfloat16 on a device faster than float32, in words; empty: nothing known to.

    By what PyTorch says of the machine: on a CPU AMX tiles or AVX-512 BF16 (`torch.cpu`), on a
    CUDA device its own products without emulation (`torch.cuda.is_bf16_supported`).
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.cuda.get_device_name(device) if native else ""
    if device.type != "cpu":
        return ""
    for word, name in (("AMX", "_is_amx_tile_supported"), ("AVX-512", "_is_avx512_bf16_supported")):
        if getattr(torch.cpu, name, bool)():
            return f"the CPU's {word} instructions"
    return ""


def faster_here(adapter: Any) -> str:
    """What would compute this model's passes faster in bfloat16 here, in words; empty: nothing.

    Nothing where its products are small: they then cost less than rounding what they take.
    """
    large = adapter.d_model >= _LARGE and adapter.dtype == torch.float32 and not adapter.packed
    return fast_bfloat16(adapter.device) if large else ""


def check_machine(device: torch.device) -> None:
    """Nothing; a warning where bfloat16 is emulated on a device, and so no faster.

    Raises:
        LensSkillsError: The device does not multiply in bfloat16 at all: seen on one product.
    """
    ones = torch.ones(2, 2, device=device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # autocast says that it is off, and goes on in float32
            with torch.autocast(device.type, torch.bfloat16):
                found = str((ones @ ones).dtype)
    except (RuntimeError, ValueError) as error:
        found = str(error).splitlines()[0]
    if found != "torch.bfloat16":
        raise LensSkillsError(
            f"this machine has no bfloat16 on {device} (a product came out as: {found}). Leave "
            "precision= out."
        )
    if not fast_bfloat16(device):
        warnings.warn(
            f"nothing on {device} is known to multiply bfloat16 faster than float32: it is "
            "emulated, the numbers are those of any other machine, and leaving precision= out "
            "would be more exact and probably no slower.",
            RuntimeWarning,
            stacklevel=3,
        )


def rounding_note(precision: str) -> str:
    """What a card says of numbers that were computed in another precision than the model's own.

    >>> rounding_note("bfloat16")
    'computed in bfloat16, not in the precision of the weights; sums in float64'
    """
    return f"computed in {precision}, not in the precision of the weights; sums in float64"


def refuse_reduced(adapter: Any, verb: str) -> None:
    """Nothing; raises where effects would be measured in another precision than the model's own."""
    if adapter.precision is not None:
        raise LensSkillsError(
            f"{verb} measures in the model's own precision, and this one is read in "
            f"{adapter.precision}: effects are differences of two passes, mostly smaller than what "
            "rounding moves them by. Give the model itself."
        )


def _check_model(adapter: Any, other: Any) -> None:
    """Nothing; raises where a model does not run in bfloat16, or is another one then."""
    n = min(_TRIED, adapter.n_ctx)
    tokens = torch.arange(2 * n).view(2, n) * 37 % adapter.n_embeddings
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, : n // 2] = False
    asked = {"readers": {}, "logits_at": torch.arange(n // 2, n).expand(2, -1)}
    leave = "Leave precision= out."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = other.forward(tokens, mask, **asked)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise LensSkillsError(
            f"{adapter.name} does not run in {other.precision}: {str(error).splitlines()[0]}. "
            f"{leave}"
        ) from error
    wanted = adapter.forward(tokens, mask, **asked)
    gap, allowed = distance(other, *(x.double().log_softmax(-1) for x in (found, wanted)))
    if not gap <= allowed:
        raise LensSkillsError(
            f"{adapter.name} is another model in {other.precision}: log-probabilities differ by "
            f"{gap:.2g} on average, beyond {allowed:.2g}. {leave}"
        )
