"""A Hugging Face model with its tokenizer, from a folder, a hub name or memory, opened quietly."""

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from lens_skills.errors import LensSkillsError


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing printed, no warning and no progress bar inside; all of it restored after.

    TransformerLens prints a line per model and deprecates its own constructor, which a user who
    asked for a model can do nothing about. Errors pass.
    """
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    # bitsandbytes, which TransformerLens imports, warns of a faster kernel that it could not get.
    packing = logging.getLogger("bitsandbytes")
    packing_level = packing.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        packing.setLevel(logging.ERROR)
        try:
            yield
        finally:
            packing.setLevel(packing_level)
            transformers_logging.set_verbosity(level)
            if bars:
                transformers_logging.enable_progress_bar()


WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class HuggingFaceModel:
    """A Hugging Face model that is ours to take apart, and its tokenizer.

    Attributes:
        model: A ``transformers.PreTrainedModel`` no one else holds.
        tokenizer: Its tokenizer, set to begin sequences with BOS where it has one.
        name: What the model is called in results.
        begins: Whether that tokenizer by itself, as it was given, begins a text with BOS.
        known_as: The name TransformerLens has a built-in configuration for, if any.
    """

    model: Any
    tokenizer: Any
    name: str
    begins: bool
    known_as: str | None = None


def from_folder(
    folder: Path, *, dtype: torch.dtype, tokenizer: Any = None, name: str | None = None
) -> HuggingFaceModel:
    """The model saved in ``folder`` by ``save_pretrained``; no network is touched.

    Raises:
        LensSkillsError: No ``config.json``, no weights, no tokenizer, or one that does not load.
    """
    present = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(present[:8]) or "nothing"
    if "config.json" not in present:
        raise LensSkillsError(
            f"{folder} holds no config.json (found: {shown}). A model folder is what "
            "save_pretrained writes: config.json, *.safetensors and the tokenizer's files."
        )
    if not any(True for pattern in WEIGHTS for _ in folder.glob(pattern)):
        raise LensSkillsError(
            f"{folder} holds no weights (found: {shown}). Expected *.safetensors or "
            "pytorch_model*.bin: was the download complete?"
        )
    tokenizer = tokenizer if tokenizer is not None else str(folder)
    return _pretrained(str(folder), tokenizer, dtype, name or folder.resolve().name, local=True)


def from_hub(name: str, *, dtype: torch.dtype, tokenizer: Any = None) -> HuggingFaceModel:
    """The model the hub calls ``name``; the local hub cache is asked before the network."""
    known_as = _official_name(name)
    where = known_as or name
    tokenizer = tokenizer if tokenizer is not None else where
    try:
        source = _pretrained(where, tokenizer, dtype, name, local=True)
    except LensSkillsError:
        source = _pretrained(where, tokenizer, dtype, name, local=False)
    return replace(source, name=name, known_as=known_as)


def in_memory(x: Any) -> bool:
    """Whether ``x`` is a ``transformers`` model, told without importing transformers."""
    return any(kind.__name__ == "PreTrainedModel" for kind in type(x).__mro__)


def from_memory(model: Any, tokenizer: Any, *, dtype: torch.dtype) -> HuggingFaceModel:
    """A copy of the user's model and tokenizer: theirs stay as they are, and saveable.

    Raises:
        LensSkillsError: No tokenizer was given.
    """
    if tokenizer is None:
        raise LensSkillsError(
            f"a {type(model).__name__} in memory needs its tokenizer: "
            "load_model(model, tokenizer=AutoTokenizer.from_pretrained(...))."
        )
    check_kind(model)
    own = _gathered(model).eval()
    if not getattr(own, "is_quantized", False):
        own = own.to(dtype=dtype)
        _restore_rotations(own)
    if not getattr(own.config, "architectures", None):
        own.config.architectures = [type(model).__name__]  # as save_pretrained would write it
    own.set_attn_implementation("eager")  # as in _pretrained
    name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    found, begins = _tokenizer(tokenizer)
    return HuggingFaceModel(own, found, name.rstrip("/").rsplit("/", 1)[-1], begins)


def _gathered(model: Any) -> Any:
    """A copy of the model that has all its weights and can be moved as a whole.

    accelerate may keep some elsewhere, or send each part's inputs to a device of its own.

    Raises:
        LensSkillsError: Weights that were never loaded, or packed ones that are offloaded.
    """
    if not any(weight.is_meta for weight in model.parameters()):
        own = copy.deepcopy(model)
        sent = any(hasattr(part, "_hf_hook") for part in own.modules())
        if sent and not getattr(own, "is_quantized", False):
            from accelerate.hooks import remove_hook_from_module

            remove_hook_from_module(own, recurse=True)
            own.__dict__.pop("hf_device_map", None)
        return own
    name = type(model).__name__
    try:
        from accelerate.utils.modeling import get_state_dict_offloaded_model

        if getattr(model, "is_quantized", False):
            raise ValueError("packed weights are not gathered")
        with quiet():
            state = get_state_dict_offloaded_model(model)
            if any(weight.is_meta for weight in state.values()):
                raise ValueError("there is nothing to load them from")
            own = type(model)(copy.deepcopy(model.config))
            own.to(model.dtype).load_state_dict(state, strict=False)
            own.tie_weights()
    except Exception as error:  # whatever accelerate's hooks meet
        raise LensSkillsError(
            f"the weights of this {name} are not in memory (offloaded, or on 'meta'), and could "
            f"not be gathered: {reason_of(error)}. Load it without offload: "
            "AutoModelForCausalLM.from_pretrained(...) with no disk or CPU in its device_map."
        ) from error
    _restore_rotations(own)
    return own


def check_kind(model: Any) -> None:
    """Nothing; raises for a ``transformers`` model that predicts no next token.

    Raises:
        LensSkillsError: An encoder-decoder, or a model without vocabulary projection.
    """
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise LensSkillsError(
            f"{name} is an encoder-decoder: its decoder reads another text beside its own. "
            "Decoder-only language models can be opened (GPT-2, Llama, Qwen, Gemma, ...)."
        )
    if model.get_output_embeddings() is None:
        raise LensSkillsError(
            f"{name} has no vocabulary projection, so it predicts no token. Open it with its "
            "head: AutoModelForCausalLM.from_pretrained(...)."
        )


def _restore_rotations(model: Any) -> None:
    """Rotary frequencies in full precision: ``.half()`` has rounded them with the weights."""
    for part in model.modules():
        kind = type(part)
        if "Rotary" in kind.__name__ and hasattr(part, "config") and part._buffers:
            for name, fresh in kind(part.config).named_buffers(recurse=False):
                part._buffers[name] = fresh.to(model.device)


def _pretrained(
    where: str, tokenizer: Any, dtype: torch.dtype, name: str, local: bool
) -> HuggingFaceModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    def load() -> Any:
        # Eager attention: the kernel both TransformerLens implementations compute with.
        config = AutoConfig.from_pretrained(where, local_files_only=local, trust_remote_code=False)
        if getattr(config, "is_encoder_decoder", False):
            raise LensSkillsError(
                f"{where} holds an encoder-decoder ({config.model_type}): its decoder reads "
                "another text beside its own. Decoder-only language models can be opened."
            )
        opened = AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype, local_files_only=local, attn_implementation="eager",
            output_loading_info=True, trust_remote_code=False, weights_only=True,
        )  # fmt: skip
        found, report = cast("tuple[Any, dict[str, Any]]", opened)
        if missing := sorted(report["missing_keys"]):
            raise LensSkillsError(
                f"{where} holds no weights for {', '.join(missing[:3])}"
                f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}, which would be "
                "random. It was saved without its vocabulary projection, or for another "
                "architecture: save it from AutoModelForCausalLM."
            )
        return found

    model = _loaded(load, f"the model {where!r} did not load")
    found, begins = _tokenizer(tokenizer, local=local)
    return HuggingFaceModel(model, found, name, begins)


def _tokenizer(given: Any, *, local: bool = True) -> tuple[Any, bool]:
    """A tokenizer of our own that TransformerLens will use as it is, beginning with BOS.

    And whether the tokenizer given does so by itself.
    """
    from transformers import AutoTokenizer

    def from_pretrained(where: str, **options: Any) -> Any:
        with quiet():
            return AutoTokenizer.from_pretrained(
                where, local_files_only=local, trust_remote_code=False, **options
            )

    if isinstance(given, str | Path):
        where = str(given)
        found, begins = _loaded(
            lambda: _opened_with_bos(from_pretrained, where),
            f"no tokenizer loads from {where!r}. Pass one: load_model(..., tokenizer=...)",
        )
    elif not hasattr(given, "bos_token") or not callable(given):
        raise LensSkillsError(
            f"tokenizer={given!r:.60} is no tokenizer: pass the object that "
            "AutoTokenizer.from_pretrained gives, its folder, or its hub name."
        )
    else:
        where = str(getattr(given, "name_or_path", "") or "memory")
        found, begins = copy.deepcopy(given), _begins(given)
        if found.bos_token is not None and not found.init_kwargs.get("add_bos_token"):
            with tempfile.TemporaryDirectory(prefix="lens-skills-") as folder:
                found.save_pretrained(folder)
                found = _with_bos(from_pretrained, folder)
            found.padding_side = given.padding_side
    found.init_kwargs["name_or_path"] = where
    found.name_or_path = where
    return found, begins


def _begins(tokenizer: Any) -> bool:
    """Whether it by itself begins a text with BOS."""
    bos, tokens = tokenizer.bos_token_id, tokenizer("a")["input_ids"]
    return bos is not None and len(tokens) > 0 and tokens[0] == bos


def _opened_with_bos(from_pretrained: Callable[..., Any], where: str) -> tuple[Any, bool]:
    """`_with_bos`, and whether the tokenizer as it lies there begins with BOS; read once if it may.

    A large vocabulary takes a second to read. The class that reads it whole from one file can be
    told of BOS afterwards, and is then as if it had been told before; others are read again.
    """
    import transformers

    found = from_pretrained(where)
    begins = _begins(found)
    if type(found) is not getattr(transformers, "TokenizersBackend", None):
        return _with_bos(from_pretrained, where), begins
    found.init_kwargs["add_bos_token"] = True
    if found.bos_token is not None:
        try:
            found.add_bos_token = True
        except ValueError:  # as in `_with_bos`
            return _with_bos(from_pretrained, where), begins
    return found, begins


def _with_bos(from_pretrained: Callable[..., Any], where: str) -> Any:
    """TransformerLens's policy, applied here because its own reload needs a name to load from."""
    try:
        found = from_pretrained(where, add_bos_token=True)
        if found.bos_token is not None:
            return found
    except ValueError:
        # No BOS token, or one the post-processor cannot express.
        pass
    found = from_pretrained(where)
    # Tells TransformerLens to leave the tokenizer as it is.
    found.init_kwargs["add_bos_token"] = True
    return found


def _loaded(load: Callable[[], Any], failure: str) -> Any:
    try:
        with quiet():
            return load()
    except LensSkillsError:
        raise
    except Exception as error:  # whatever a damaged or foreign file brings up in the libraries
        raise LensSkillsError(f"{failure}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """The most telling line of an error's message, on one line and not too long.

    Libraries begin with a line that says only that something failed, or end a list of names
    hundreds long.

    >>> reason_of(ValueError("Error(s) in loading state_dict for X:\\n\\tsize mismatch for W"))
    'size mismatch for W'
    >>> reason_of(KeyError("gpt9"))
    "KeyError 'gpt9'"
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.endswith(":") and len(line) > 12]
    found = (telling or lines or [""])[0]
    if " " not in found:
        found = f"{type(error).__name__} {found}".strip()
    return found if len(found) <= 240 else f"{found[:160]} … {found[-60:]}"


def _official_name(name: str) -> str | None:
    """The hub name TransformerLens 3.9 has a built-in configuration for, or None."""
    try:
        from transformer_lens.loading_from_pretrained import get_official_model_name
    except ImportError:
        return None
    try:
        return get_official_model_name(name)
    except ValueError:
        return None
