"""`load_model` opens whatever holds a model; `describe_openable` says what can be opened here.

A Hugging Face model is converted into a HookedTransformer or a TransformerBridge.
"""

import copy
import inspect
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lens_skills.errors import LensSkillsError
from lens_skills.models import gguf_cache as cache
from lens_skills.models.backends import implementation_of
from lens_skills.models.bundled import BUNDLED, DEFAULT
from lens_skills.models.huggingface import (
    HuggingFaceModel,
    from_folder,
    from_hub,
    from_memory,
    quiet,
    reason_of,
)
from lens_skills.models.parity import check_parity, reference
from lens_skills.models.partial_forward import cache_argument


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
            state = "installed; the first load converts it (about half a minute)"
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
    default = "cuda" if torch.cuda.is_available() else "cpu"
    place = default if device is None else str(device)
    source, entry = _source(x, dtype, tokenizer)
    return _implement(source, implementation, place, entry)


def _source(x: Any, dtype: torch.dtype, tokenizer: Any) -> tuple[HuggingFaceModel, Path | None]:
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
) -> tuple[HuggingFaceModel, Path | None]:
    entry = cache.converted(path)
    return from_folder(entry, dtype=dtype, tokenizer=tokenizer, name=name), entry


def _implement(
    source: HuggingFaceModel, implementation: str | None, device: str, entry: Path | None
) -> Any:
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


def _can_open() -> str:
    rows = [row for row in describe_openable() if row.what != "implementation"]
    lines = [f"  {row.how:44} {row.name} ({row.state})" for row in rows]
    return "\n".join(["What can be opened here:", *lines])


NAMES_THAT_MISLEAD = ("llama", "gemma", "bert", "t5", "hubert")


class Unsupported(LensSkillsError):
    """This architecture has no place in the implementation asked for."""


def has_hooked() -> bool:
    """Whether the installed TransformerLens still has HookedTransformer (3.x has, 4.x has not)."""
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return False
    return True


def to_hooked(source: HuggingFaceModel, *, device: str) -> Any:
    """The source as an unprocessed HookedTransformer that took over its weights.

    Nothing is folded or centred: logits and residual stream are those of the original.

    Raises:
        Unsupported: TransformerLens has no converter for the architecture.
    """
    from transformer_lens import HookedTransformer
    from transformer_lens import loading_from_pretrained as loading

    hf_model, dtype = source.model, source.model.dtype
    try:
        with quiet(), torch.no_grad(), _config_folder(source) as where:
            cfg = loading.get_pretrained_model_config(
                where, hf_cfg=hf_model.config.to_dict(), device=device, dtype=dtype,
                **({"local_files_only": True} if source.known_as else {}),
            )  # fmt: skip
            state = loading.get_pretrained_state_dict(where, cfg, hf_model, dtype=dtype)
            model = HookedTransformer(cfg, source.tokenizer, move_to_device=False)
            state = {name: weight.to(dtype) for name, weight in state.items()}
            # TransformerLens's own loading copies key by key in ten times the time; `assign`
            # takes the converted views as they are. Tied matrices are parted, so that editing
            # the unembedding cannot change the embedding.
            if _shared(state.get("unembed.W_U"), state.get("embed.W_E")):
                state["unembed.W_U"] = state["unembed.W_U"].clone()
            model.load_state_dict(model.fill_missing_keys(state), strict=False, assign=True)
            model.move_model_modules_to_device()
    except Exception as error:  # any step may trip over an architecture it was not made for
        raise Unsupported(
            f"HookedTransformer cannot hold {source.name} ({type(hf_model).__name__}): "
            f"{reason_of(error).rstrip('.')}. Use load_model(..., implementation='bridge')."
        ) from error
    model.cfg.model_name = source.name
    model.cfg.tokenizer_name = source.tokenizer.name_or_path
    return model.eval()


def to_bridge(source: HuggingFaceModel, *, device: str) -> Any:
    """The source wrapped by a TransformerBridge, which changes ``source.model`` in place.

    Raises:
        Unsupported: TransformerLens has no adapter for the architecture.
    """
    from transformer_lens.model_bridge import TransformerBridge

    try:
        with quiet():
            bridge = TransformerBridge.boot_transformers(
                source.name,
                hf_model=source.model.to(device),
                tokenizer=source.tokenizer,
                device=device,
                dtype=source.model.dtype,
            )
    except Exception as error:  # as above
        way = "'hooked'" if has_hooked() else "a model of another architecture"
        raise Unsupported(
            f"TransformerBridge cannot hold {source.name} ({type(source.model).__name__}): "
            f"{reason_of(error).rstrip('.')}. Try {way}."
        ) from error
    accepts = inspect.signature(bridge.original_model.forward).parameters
    if cache_argument(accepts) == "cache":
        # TransformerLens loses the cache under its new name and then writes other text: its own
        # generate is asked for whole passes, unless the user asks for the cache.
        for name in ("generate", "generate_stream"):
            if hasattr(bridge, name):
                whole = partial(getattr(bridge, name), use_past_kv_cache=False)
                bridge.__dict__[name] = whole
    return bridge.eval()


@contextmanager
def _config_folder(source: HuggingFaceModel) -> Iterator[str]:
    """Where TransformerLens may read the configuration: a known name, or a neutral folder.

    It takes any path with "llama" or "gemma" in it for that architecture, so the real folder
    (/home/llama/models/x) is never shown to it.
    """
    if source.known_as:
        yield source.known_as
        return
    config = copy.deepcopy(source.model.config)
    config.architectures = [type(source.model).__name__]
    if hasattr(config, "n_positions") and not hasattr(config, "n_ctx"):
        config.n_ctx = config.n_positions  # transformers dropped GPT-2's second name for it
    places = (tempfile.gettempdir(), "/dev/shm", "/var/tmp", str(Path.home()), str(Path.cwd()))
    neutral = [
        place for place in places
        if Path(place).is_dir() and not any(n in place.lower() for n in NAMES_THAT_MISLEAD)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(
        prefix="lens-skills-", dir=neutral[0] if neutral else None
    ) as folder:
        config.save_pretrained(folder)
        yield folder


def _shared(one: Any, other: Any) -> bool:
    return one is not None and other is not None and one.data_ptr() == other.data_ptr()
