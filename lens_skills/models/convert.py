"""Conversion of a Hugging Face model into the HookedTransformer or the TransformerBridge."""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lens_skills.errors import LensSkillsError
from lens_skills.models.huggingface import HuggingFaceModel, quiet

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
            f"{_reason(error)}. Use load_model(..., implementation='bridge')."
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
            f"{_reason(error)}. Try {way}."
        ) from error
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


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
