"""`load_model` opens whatever holds a model; `describe_openable` says what can be opened here."""

import os
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lens_skills.errors import LensSkillsError
from lens_skills.file_names import place_to_read
from lens_skills.models import gguf_cache as cache
from lens_skills.models.backends import implementation_of
from lens_skills.models.bundled import BUNDLED, DEFAULT
from lens_skills.models.conversion import check_twin, has_hooked, implement
from lens_skills.models.huggingface import (
    HuggingFaceModel,
    from_folder,
    from_hub,
    from_memory,
    in_memory,
    reason_of,
)
from lens_skills.models.origins import remember
from lens_skills.models.parity import BARS


@dataclass(frozen=True)
class Openable:
    """One row of ``lens-skills models``.

    Attributes:
        what: ``bundled``, ``hub cache``, ``kind`` or ``implementation``.
        name: The model, the kind of thing, or the implementation.
        how: The call that opens it.
        state: What was found here.
    """

    what: str
    name: str
    how: str
    state: str


def describe_openable() -> tuple[Openable, ...]:
    """Everything that can be opened here, found without network and without loading anything."""
    return (*_bundled(), *_hub_cache(), *_kinds(), *_implementations())


def _bundled() -> tuple[Openable, ...]:
    rows = []
    for entry in BUNDLED.values():
        found = entry.find()
        how = "load_model()" if entry.name == DEFAULT else f"load_model({entry.name!r})"
        if found is None:
            state = f"not installed: {entry.install}"
        elif found.is_dir():
            state = "installed"
        elif (cache.entry_of(found) / cache.MANIFEST).is_file():
            state = "installed, converted"
        else:
            state = "installed; the first load converts it (some seconds)"
        rows.append(Openable("bundled", entry.name, how, state))
    return tuple(rows)


def _hub_cache() -> tuple[Openable, ...]:
    try:
        from huggingface_hub import scan_cache_dir

        repositories = scan_cache_dir().repos
    except Exception:  # no cache, or one that is not ours to repair: there is nothing to list
        return ()
    return tuple(
        Openable("hub cache", repository.repo_id, f"load_model({repository.repo_id!r})",
                 f"downloaded, {repository.size_on_disk / 1e6:.0f} MB")
        for repository in sorted(repositories, key=lambda found: found.repo_id)
        if repository.repo_type == "model"
    )  # fmt: skip


def _kinds() -> tuple[Openable, ...]:
    local = "no network"
    return (
        Openable("kind", "folder", "load_model('path/to/folder')", f"by save_pretrained; {local}"),
        Openable("kind", "GGUF file", "load_model('model.gguf')", f"converted once; {local}"),
        Openable("kind", "Hugging Face model", "load_model(model, tokenizer=tokenizer)",
                 f"copied, yours stays as it is; {local}"),
        Openable("kind", "hub name", "load_model('gpt2')", "needs network unless downloaded"),
        Openable("kind", "HookedTransformer, TransformerBridge", "pass it to any verb",
                 "used as it is"),
    )  # fmt: skip


def _implementations() -> tuple[Openable, ...]:
    found = version("transformer-lens")
    hooked = int(found.split(".")[0]) < 4
    how = "load_model(..., implementation={!r})"
    absent = f"not in TransformerLens {found}: pip install 'transformer-lens<4'"
    here = f"TransformerLens {found}"
    return (
        Openable("implementation", "hooked", how.format("hooked"), here if hooked else absent),
        Openable("implementation", "bridge", how.format("bridge"), here),
    )


def load_model(
    x: Any = None,
    *,
    implementation: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    device: str | int | torch.device | None = None,
    tokenizer: Any = None,
    twin: Any = None,
) -> Any:
    """A HookedTransformer or TransformerBridge, unprocessed, in evaluation mode.

    Weights are neither folded nor centred, so logits and residual stream are the original's.
    A text begins with a BOS token where the tokenizer by itself puts one; for the models that
    TransformerLens knows by name its own habit holds (always). ``model.cfg.default_prepend_bos``
    says which, and everything here tokenises as ``model.to_tokens`` does. (SmolLM2's tokenizer
    puts none, its BOS being a chat marker; with one, its share of right answers fell from 97 % to
    90 % on agreement pairs, and from 17 % to 10 % on one- and two-digit arithmetic.)
    A local thing is opened without touching the network.

    Every model is compared with the plain Hugging Face forward before it is given out, through the
    adapter that all verbs use: log-probabilities and MLP activations, of prompts alone, padded on
    the left and on the right, past every window and position scale its configuration names (large
    windows are narrowed in both for it). ``model.parity`` has the numbers; those of files are kept
    in the cache, so that it costs once. With ``implementation=None`` a model that fails as a
    HookedTransformer is opened as a TransformerBridge, and a warning has the numbers. It shows
    nothing of positions it did not reach (``model.parity.not_reached``).

    Args:
        x: None for the bundled default; ``"arithmetic-small"`` for the little model in this
            package that can add and subtract; a folder written by ``save_pretrained``; a
            ``.gguf`` file (converted once, into ``$LENS_SKILLS_CACHE`` or the user's cache); a
            name on the Hugging Face hub; a ``transformers`` model in memory, which is copied and
            stays as it is. A HookedTransformer or TransformerBridge comes back itself.
        implementation: ``"hooked"`` or ``"bridge"``; None takes HookedTransformer where the
            installed TransformerLens has it and it passes the comparison, else the bridge.
        dtype: Of the weights: ``torch.float32``, ``"bfloat16"``, ... Quantised weights stay as
            they are.
        device: Where to put them (``"cpu"``, ``"cuda:1"``, 0); None takes a GPU if there is one.
        tokenizer: For a model in memory, or instead of the one beside the weights; an object, a
            folder or a hub name.
        twin: For a HookedTransformer or TransformerBridge of your own: the ``transformers`` model
            it should equal, with which it is compared.

    Raises:
        LensSkillsError: Not found, not readable, not supported by the implementation, without
            tokenizer, or computing something else than the original.

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
        if twin is not None:
            check_twin(x, twin)
        return x
    if twin is not None:
        raise LensSkillsError(
            "twin= is for a HookedTransformer or TransformerBridge of your own; everything else is "
            "compared with its original by itself."
        )
    dtype = _dtype(dtype)
    if implementation == "hooked" and not has_hooked():
        raise LensSkillsError(
            f"TransformerLens {version('transformer-lens')} has no HookedTransformer any more. "
            "Run pip install 'transformer-lens<4', or use implementation='bridge'."
        )
    place, keep = _device(device), not in_memory(x)
    gguf = _gguf(x)
    ahead = None if gguf is None else cache.look_ahead(gguf)
    model = implement(lambda: _source(x, dtype, tokenizer, ahead), implementation, place, keep=keep)
    if keep and (tokenizer is None or isinstance(tokenizer, str | os.PathLike)):
        remember(
            model,
            None if x is None else _absolute(x),
            implementation=implementation_of(model) or "",
            dtype=dtype,
            tokenizer=None if tokenizer is None else _absolute(tokenizer),
        )
    return model


def _absolute(x: str | os.PathLike[str]) -> str:
    """A path as it is opened from any folder; a name as it is."""
    if isinstance(x, str) and x.lower() in BUNDLED:
        return x
    path = place_to_read(Path(x).expanduser())
    return str(path.absolute()) if path.exists() else os.fspath(x)


def _gguf(x: Any) -> Path | None:
    """The GGUF file that will be opened, as `_source` finds it."""
    if x is None or (isinstance(x, str) and x.lower() in BUNDLED):
        found = BUNDLED[(x or DEFAULT).lower()].find()
    elif isinstance(x, str | os.PathLike):
        found = place_to_read(Path(x).expanduser())
    else:
        return None
    if found is None or not found.is_dir():
        return found if found is not None and found.is_file() else None
    inside = sorted(found.glob("*.gguf"))
    return inside[0] if len(inside) == 1 and not (found / "config.json").exists() else None


def _dtype(given: Any) -> torch.dtype:
    known = {str(kind).removeprefix("torch."): kind for kind in BARS}
    found = known.get(str(given).removeprefix("torch."))
    if found is None:
        raise LensSkillsError(
            f"dtype={given!r} is not one weights are computed with here. There are "
            f"{', '.join(sorted(known))}."
        )
    return found


def _device(given: Any) -> str:
    has_gpu = torch.cuda.is_available()
    if given is None:
        return "cuda" if has_gpu else "cpu"
    try:
        found = torch.device(f"cuda:{given}" if type(given) is int else given)
        torch.zeros(1, device=found).cpu()
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        here = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count() if has_gpu else 0))]
        raise LensSkillsError(
            f"device={given!r} cannot hold a model here: {reason_of(error)} There are "
            f"{', '.join(here)}."
        ) from error
    return str(found)


def _source(
    x: Any, dtype: torch.dtype, tokenizer: Any, ahead: Future[tuple[Path, bool] | None] | None
) -> HuggingFaceModel:
    """The Hugging Face model behind ``x``."""

    def from_gguf(path: Path, name: str) -> HuggingFaceModel:
        entry = cache.converted(path, ahead)
        return from_folder(entry, dtype=dtype, tokenizer=tokenizer, name=name)

    if in_memory(x):
        return from_memory(x, tokenizer, dtype=dtype)
    if x is None or (isinstance(x, str) and x.lower() in BUNDLED):
        bundled = BUNDLED[(x or DEFAULT).lower()]
        place = bundled.path()
        if place.is_dir():
            return from_folder(place, dtype=dtype, tokenizer=tokenizer, name=bundled.name)
        return from_gguf(place, name=bundled.name)
    if not isinstance(x, str | os.PathLike):
        raise LensSkillsError(
            f"a {type(x).__name__} is not a model. load_model takes a folder, a .gguf file, a hub "
            "name, a transformers model with tokenizer=, or nothing for the bundled default."
        )
    path, gguf = Path(x).expanduser(), _gguf(x)
    if gguf is not None:
        return from_gguf(gguf, name=gguf.stem)
    if path.is_dir():
        return from_folder(path, dtype=dtype, tokenizer=tokenizer)
    name = os.fspath(x)
    # A hub name is "name" or "owner/name"; anything else can only have been meant as a path.
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise LensSkillsError(f"there is no file or folder {name}. {_can_open()}")
    try:
        return from_hub(name, dtype=dtype, tokenizer=tokenizer)
    except LensSkillsError as error:
        raise LensSkillsError(
            f"no model {name!r}: there is no such folder, and the Hugging Face hub did not give "
            f"one (unknown name, or no network). {_can_open()}\nThe hub said: {error}"
        ) from error


def _can_open() -> str:
    rows = [row for row in describe_openable() if row.what != "implementation"]
    lines = [f"  {row.how:44} {row.name} ({row.state})" for row in rows]
    return "\n".join(["What can be opened here:", *lines])
