"""A Hugging Face model as a HookedTransformer or a TransformerBridge that computes the same.

Each conversion is compared with the plain forward; where one fails the other is tried.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lens_skills.errors import LensSkillsError
from lens_skills.models import parity
from lens_skills.models.huggingface import HuggingFaceModel, in_memory, quiet, reason_of
from lens_skills.models.text_writer import loses_cache

LABELS = {"hooked": "HookedTransformer", "bridge": "TransformerBridge"}


def implement(
    reopen: Callable[[], HuggingFaceModel], implementation: str | None, device: str, *, keep: bool
) -> Any:
    """The source in the implementation asked for, or in the first that passes the comparison.

    Args:
        reopen: Gives the source; called again where a conversion took the first one apart.
        implementation: ``"hooked"``, ``"bridge"`` or None.
        device: Where it goes.
        keep: Whether the comparison is stored, and taken from the store.

    Raises:
        LensSkillsError: Neither implementation holds it, or the one asked for does not.
    """
    kinds = ["hooked", "bridge"] if has_hooked() else ["bridge"]
    order = sorted(kinds, key=lambda kind: kind != implementation) if implementation else kinds
    source: HuggingFaceModel | None = None
    expected: Sequence[parity.Reference] | None = None
    failures: dict[str, str] = {}
    wrong = False
    for kind in order:
        source = source or reopen()
        name, key = source.name, parity.key_of(source.model, kind) if keep else ""
        found = parity.stored(key) if keep else None
        if found is None and expected is None:
            _compare_vocabularies(source)
            expected = parity.references(source.model, name)
        if found is not None and not found.passed:
            failures[kind], wrong = _differs(kind, found), True
            continue
        try:
            convert = to_hooked if kind == "hooked" else to_bridge
            model = convert(source, device=device)
        except Unsupported as error:
            failures[kind] = str(error)
            continue
        if found is None:
            found = parity.measured(model, expected or (), source.model)
            if keep:
                parity.store(key, found)
        if found.passed:
            break
        failures[kind], wrong = _differs(kind, found), True
        if kind == "bridge":
            source = None  # wrapped in place
    else:
        raise LensSkillsError(
            f"{name} cannot be opened. {' '.join(failures[kind] for kind in order)} Nothing read "
            f"from it could be trusted. (transformer-lens {version('transformer-lens')}, "
            f"transformers {version('transformers')}: other versions may hold it.)"
        )
    if implementation is not None and kind != implementation:
        raise LensSkillsError(
            f"{name}: {failures[implementation]} As a {LABELS[kind]} it passes ({found}): "
            f"load_model(..., implementation={kind!r})."
        )
    if wrong:
        said = " ".join(failures.values())
        warnings.warn(f"{name} is opened as a {LABELS[kind]}. {said}", stacklevel=4)
    if source is not None and source.known_as is None:
        model.cfg.default_prepend_bos = source.begins
    model.__dict__["parity"] = found
    return model


def _compare_vocabularies(source: HuggingFaceModel) -> None:
    """Nothing; warns where the tokenizer has ids the model has no embedding for."""
    rows = int(source.model.get_input_embeddings().weight.shape[0])
    known = source.tokenizer.get_vocab().values()
    added = getattr(source.tokenizer, "added_tokens_decoder", {})  # often never met in a text
    ids = [number for number in known if number >= rows and number not in added]
    if ids:
        warnings.warn(
            f"the tokenizer of {source.name} has {len(ids)} tokens (ids {min(ids)} to {max(ids)}) "
            f"beyond the model's {rows} embeddings: texts that need them are refused. Is it the "
            "tokenizer of this model?",
            stacklevel=5,
        )


def _differs(kind: str, found: parity.Parity) -> str:
    return f"As a {LABELS[kind]} it does not compute what the original computes: {found}."


def check_twin(model: Any, twin: Any) -> None:
    """Nothing; raises unless a user's own model computes what its Hugging Face twin computes.

    Raises:
        LensSkillsError: It does not; the message has the numbers.
    """
    original = getattr(model, "original_model", None)
    if original is twin:
        raise LensSkillsError(
            "twin= is the very model this bridge wraps, and the bridge changed it in place: they "
            "cannot differ. Pass one opened separately: AutoModelForCausalLM.from_pretrained(...)."
        )
    if not in_memory(twin):
        raise LensSkillsError(
            f"twin= takes a transformers model in memory, found {type(twin).__name__}. Open it "
            "with AutoModelForCausalLM.from_pretrained(...)."
        )
    found = parity.measured(model, parity.references(twin, type(twin).__name__), twin)
    if not found.passed:
        kind = "bridge" if original is not None else "hooked"
        raise LensSkillsError(
            f"{model.cfg.model_name}: {_differs(kind, found)} load_model(twin, tokenizer=...) "
            "opens the twin itself."
        )
    model.__dict__["parity"] = found


NAMES_THAT_MISLEAD = ("llama", "gemma", "bert", "t5", "hubert")


class Unsupported(LensSkillsError):
    """This architecture has no place in the implementation asked for."""


def has_hooked() -> bool:
    """Whether the installed TransformerLens still has HookedTransformer (3.x has, 4.x has not)."""
    try:
        with quiet():
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
            f"{reason_of(error).rstrip('.')}."
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
                # Packed weights stay where they were put.
                hf_model=source.model
                if parity.quantised(source.model)
                else source.model.to(device),
                tokenizer=source.tokenizer,
                device=device,
                dtype=source.model.dtype,
            )
    except Exception as error:  # as above
        raise Unsupported(
            f"TransformerBridge cannot hold {source.name} ({type(source.model).__name__}): "
            f"{reason_of(error).rstrip('.')}."
        ) from error
    if loses_cache(bridge):
        # Its own generate is asked for whole passes, unless the user asks for the cache.
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
