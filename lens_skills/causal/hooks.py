"""`hooks_of` and `edited`: an edit as plain TransformerLens hooks, and inside a ``with``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Position
from lens_skills.activations.positions import Span
from lens_skills.causal.baseline import edited_positions
from lens_skills.causal.edits import Edit
from lens_skills.causal.placement import Put, puts_of
from lens_skills.causal.units import Unit, parse_units, sites_of
from lens_skills.errors import LensSkillsError
from lens_skills.models import Lens, as_lens

Hook = Callable[..., Tensor]


def hooks_of(
    edit: Edit,
    model: Any,
    units: Any,
    *,
    position: Position = -1,
    at: str = DEFAULT_SITE,
    mask: Bool[Tensor, "batch pos"] | None = None,
    seed: int = 0,
) -> list[tuple[str, Hook]]:
    """The edit as ``(name, function)`` pairs for ``model.run_with_hooks(…, fwd_hooks=…)``.

    A hook sees columns of a batch, not prompts. Which columns are hit:

    * ``-1`` (default): the last column of every forward pass. That is the last token of an
      unpadded or left-padded prompt; during generation with a key-value cache it is the last
      prompt token and then every generated one.
    * ``"all"``: every column of every pass, special tokens and left padding included.
    * ``0, 1, …``: that column. Refused in a pass over a single token, because cached generation
      makes such passes and there the count would begin anew at every token.
    * With a ``mask`` of real tokens, positions count real tokens only: right-padded batches, and
      indices under left padding, come out right.

    The baseline of an edit is taken from its own source at the same position (``-1``: the last
    prompt token; ``"all"``: over all tokens); a `Selection` that is edited is a source itself.
    ``"resample"`` and ``"noise"`` take one random draw per forward pass, the next one each time;
    new hooks begin anew.

    Args:
        edit: `ablate`, `patch`, `steer`, `clamp` or `scale`. A patch pairs row i of the batch
            with example i of its source.
        model: A HookedTransformer or TransformerBridge.
        units: Neurons, heads and MLPs, as names, rows or a `Selection`.
        position: An index, ``"last"``, ``"all"`` or a list of indices.
        at: The site of what is named as a neuron.
        mask: Which tokens of the batch are real; then only batches of its shape are taken.
        seed: Of the random draws.

    Raises:
        LensSkillsError: Units this model does not have, an edit without the source it needs, a
            span of text (hooks see no text), a position outside the pass.
    """
    lens = as_lens(model)
    found = parse_units(lens, units, at=at)
    puts = bound_puts(edit.sourced(units), lens, found, position, seed)
    return [(name, _hook(put, position, mask)) for name, put in puts.items()]


@contextmanager
def edited(
    model: Any,
    units: Any,
    edit: Edit,
    *,
    position: Position = -1,
    at: str = DEFAULT_SITE,
    mask: Bool[Tensor, "batch pos"] | None = None,
    seed: int = 0,
) -> Iterator[Any]:
    """The model, edited inside the ``with``: ``with edited(model, units, scale(by=0)): …``.

    Works around anything that runs the model, ``model.generate`` included. Its own hooks are
    removed at the end, also after an exception; the user's stay. Arguments as in `hooks_of`.
    """
    hooks = hooks_of(edit, model, units, position=position, at=at, mask=mask, seed=seed)
    points = as_lens(model).model.hook_dict
    attached: list[tuple[Any, Hook]] = []
    try:
        for name, hook in hooks:
            points[name].add_hook(hook)
            attached.append((points[name], hook))
        yield model
    finally:
        # By identity, never reset_hooks(): the user's own hooks stay.
        for point, hook in attached:
            for handle in [handle for handle in point.fwd_hooks if handle.user_hook is hook]:
                handle.hook.remove()
                point.fwd_hooks.remove(handle)


def bound_puts(
    edit: Edit, lens: Lens, units: tuple[Unit, ...], position: Position, seed: int
) -> dict[str, Put]:
    """What edits each hook point, bound to rows of a batch instead of known examples."""
    reading = edited_positions(position)
    if any(isinstance(spot, Span) for spot in reading.spots):
        raise LensSkillsError(
            "hooks see columns of a batch, not text: a span cannot be found. Give an index, "
            "'last' or 'all'."
        )
    if edit.kind == "patch" and reading.ragged:
        raise LensSkillsError(
            "a patch at 'all' pairs the tokens of two prompts, which hooks do not know. Give "
            "single positions."
        )
    change = edit.bind(lens, (), sites_of(units), position=position, seed=seed)
    return puts_of(change, units)


def columns_of(
    position: Position, shape: tuple[int, int], mask: Bool[Tensor, "batch pos"] | None
) -> tuple[Int[Tensor, "batch spot"], Bool[Tensor, "batch spot"]]:
    """The columns of a batch that a position means, and which of them count.

    >>> columns_of([0, -1], (1, 4), torch.tensor([[True, True, True, False]]))[0].tolist()
    [[0, 2]]
    """
    n_rows, n_columns = shape
    if mask is None:
        mask = torch.ones(shape, dtype=torch.bool)
    elif mask.shape != shape:
        raise LensSkillsError(
            f"the mask has the shape {tuple(mask.shape)}, this forward pass {shape}: a mask is "
            "for passes over its own batch, not for generation."
        )
    reading, real = edited_positions(position), mask.cpu()
    if reading.ragged:
        return torch.arange(n_columns).expand(n_rows, -1), real
    # Columns of the real tokens first, in order.
    order, counts = real.int().argsort(dim=1, descending=True, stable=True), real.sum(1)
    columns = []
    for spot in reading.spots:
        assert isinstance(spot, int | str), "spans were refused"
        index = -1 if isinstance(spot, str) else spot
        if index >= 0 and n_columns == 1:
            raise LensSkillsError(
                f"position {index} counts the prompt's tokens, but this forward pass has a single "
                "one, as cached generation makes them. Use position=-1 or 'all', or generate with "
                "use_past_kv_cache=False."
            )
        place = counts + index if index < 0 else torch.full_like(counts, index)
        if bool(((place < 0) | (place >= counts)).any()):
            raise LensSkillsError(
                f"position {index} is outside a row of {int(counts.min())} tokens in this forward "
                "pass."
            )
        columns.append(order.gather(1, place[:, None])[:, 0])
    chosen = torch.stack(columns, dim=1)
    return chosen, torch.ones_like(chosen, dtype=torch.bool)


def apply(
    put: Put, activation: Tensor, position: Position, mask: Tensor | None, draw: int
) -> Tensor:
    """The activation of a whole batch, edited at the position; row i is example i."""
    n_rows, n_columns = activation.shape[:2]
    columns, valid = columns_of(position, (n_rows, n_columns), mask)
    return put(activation, columns, valid, torch.arange(n_rows), draw)


def _hook(put: Put, position: Position, mask: Tensor | None) -> Hook:
    draws = count()

    # The layer is bound inside: a bridge hands hooks the name of an alias.
    def replace(activation: Tensor, hook: Any = None) -> Tensor:
        return apply(put, activation, position, mask, next(draws))

    return replace
