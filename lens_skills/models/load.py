"""`load_model`: one call that opens whatever holds a model."""

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lens_skills.errors import LensSkillsError
from lens_skills.models import cache
from lens_skills.models.bundled import BUNDLED, DEFAULT
from lens_skills.models.convert import Unsupported, has_hooked, to_bridge, to_hooked
from lens_skills.models.lens import implementation_of
from lens_skills.models.openable import describe_openable
from lens_skills.models.parity import check_parity, reference
from lens_skills.models.source import Source, from_folder, from_hub, from_memory


def load_model(
    x: Any = None,
    *,
    implementation: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    tokenizer: Any = None,
) -> Any:
    """A HookedTransformer or TransformerBridge, unprocessed, in evaluation mode.

    Weights are neither folded nor centred, so logits and residual stream are the original's.
    A text begins with a BOS token where the tokenizer by itself puts one; for the models that
    TransformerLens knows by name its own habit holds (always). ``model.cfg.default_prepend_bos``
    says which, and everything here tokenises as ``model.to_tokens`` does. (SmolLM2's tokenizer
    puts none, its BOS being a chat marker; with one, its share of right answers fell from 97 % to
    90 % on agreement pairs, and from 17 % to 10 % on one- and two-digit arithmetic.)
    A local thing is opened without touching the network. A converted model is first compared
    with the plain Hugging Face forward.

    Args:
        x: None for the bundled default; ``"arithmetic-small"`` for the little model in this
            package that can add and subtract; a folder written by ``save_pretrained``; a
            ``.gguf`` file (converted once, into ``$LENS_SKILLS_CACHE`` or the user's cache); a
            name on the Hugging Face hub; a ``transformers`` model in memory, which is copied and
            stays as it is. A HookedTransformer or TransformerBridge comes back itself.
        implementation: ``"hooked"`` or ``"bridge"``; None takes HookedTransformer where the
            installed TransformerLens has it and can hold the architecture, else the bridge.
        dtype: Of the weights.
        device: Where to put them; None takes a GPU if there is one.
        tokenizer: For a model in memory, or instead of the one beside the weights; an object, a
            folder or a hub name.

    Raises:
        LensSkillsError: Not found, not readable, not supported by the implementation, without
            tokenizer, or computing something else after conversion.

    >>> load_model(implementation="hook")
    Traceback (most recent call last):
    ...
    lens_skills.errors.LensSkillsError: no implementation 'hook'. There are 'hooked' \
(HookedTransformer) and 'bridge' (TransformerBridge); None chooses.
    """
    if implementation not in (None, "hooked", "bridge"):
        raise LensSkillsError(
            f"no implementation {implementation!r}. There are 'hooked' (HookedTransformer) and "
            "'bridge' (TransformerBridge); None chooses."
        )
    if implementation_of(x) is not None:
        return x
    if implementation == "hooked" and not has_hooked():
        raise LensSkillsError(
            f"TransformerLens {version('transformer-lens')} has no HookedTransformer any more. "
            "Run pip install 'transformer-lens<4', or use implementation='bridge'."
        )
    place = str(device) if device is not None else _default_device()
    source, entry = _source(x, dtype, tokenizer)
    return _implement(source, implementation, place, entry)


def _source(x: Any, dtype: torch.dtype, tokenizer: Any) -> tuple[Source, Path | None]:
    """The Hugging Face model behind ``x``, and the cache entry it was converted into, if any."""
    if any(kind.__name__ == "PreTrainedModel" for kind in type(x).__mro__):
        return from_memory(x, tokenizer, dtype=dtype), None
    if x is None or (isinstance(x, str) and x.lower() in BUNDLED):
        bundled = BUNDLED[(x or DEFAULT).lower()]
        place = bundled.path()
        if place.is_dir():
            return from_folder(place, dtype=dtype, tokenizer=tokenizer, name=bundled.name), None
        return _from_gguf(place, dtype, tokenizer, bundled.name)
    if not isinstance(x, str | os.PathLike):
        raise LensSkillsError(
            f"a {type(x).__name__} is not a model. load_model takes a folder, a .gguf file, a hub "
            "name, a transformers model with tokenizer=, or nothing for the bundled default."
        )
    path = Path(x).expanduser()
    if path.is_dir():
        inside = sorted(path.glob("*.gguf"))
        if len(inside) == 1 and not (path / "config.json").exists():
            return _from_gguf(inside[0], dtype, tokenizer, inside[0].stem)
        return from_folder(path, dtype=dtype, tokenizer=tokenizer), None
    if path.is_file():
        return _from_gguf(path, dtype, tokenizer, path.stem)
    name = os.fspath(x)
    # A hub name is "name" or "owner/name"; anything else can only have been meant as a path.
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise LensSkillsError(f"there is no file or folder {name}. {_can_open()}")
    try:
        return from_hub(name, dtype=dtype, tokenizer=tokenizer), None
    except LensSkillsError as error:
        raise LensSkillsError(
            f"no model {name!r}: there is no such folder, and the Hugging Face hub did not give "
            f"one (unknown name, or no network). {_can_open()}\nThe hub said: {error}"
        ) from error


def _from_gguf(
    path: Path, dtype: torch.dtype, tokenizer: Any, name: str
) -> tuple[Source, Path | None]:
    entry = cache.converted(path)
    return from_folder(entry, dtype=dtype, tokenizer=tokenizer, name=name), entry


def _implement(source: Source, implementation: str | None, device: str, entry: Path | None) -> Any:
    hooked = implementation == "hooked" or (implementation is None and has_hooked())
    kind = "hooked" if hooked else "bridge"
    # The bridge runs the Hugging Face modules themselves: only a file that was converted can
    # have gone wrong before it. Stored numbers stand for the versions they were measured with.
    compared = hooked or entry is not None
    if entry is not None and cache.parity_stored(entry, kind) is not None:
        compared = False
    expected = reference(source.model) if compared else None
    try:
        model = to_hooked(source, device=device) if hooked else to_bridge(source, device=device)
    except Unsupported:
        if implementation is not None or not hooked:
            raise
        return _implement(source, "bridge", device, entry)
    if source.known_as is None:
        model.cfg.default_prepend_bos = source.begins
    if expected is not None:
        parity = check_parity(model, expected, source.name)
        if entry is not None and source.model.dtype == torch.float32:
            cache.store_parity(entry, kind, parity)
    return model


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _can_open() -> str:
    rows = [row for row in describe_openable() if row.what != "implementation"]
    lines = [f"  {row.how:44} {row.name} ({row.state})" for row in rows]
    return "\n".join(["What can be opened here:", *lines])
